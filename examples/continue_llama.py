# %% [markdown]
# # Continue a small Llama with learned angles
#
# A language model has a RoPE. An encoding that is attached starts from exactly its angles, so training goes on where
# it was. Here a tiny Llama is trained on the bytes of Python's own standard library, and then trained on for as long
# twice: with its RoPE, and with ComRoPE-LD in its place. It takes half a minute.

# %%
import copy
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import comrope

LENGTH, LONGER = 64, 256
LLAMA: Any = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
}

# %% [markdown]
# The text: some files to train on, and another one to test on.

# %%
library = Path(sysconfig.get_path("stdlib"))


def read(*names: str) -> torch.Tensor:
    return torch.cat([torch.tensor(list((library / f"{name}.py").read_bytes())) for name in names])


training, test = read("argparse", "ast", "inspect", "pathlib", "subprocess", "tarfile", "typing"), read("pickletools")


# %%
def train(model: nn.Module, steps: int, seed: int) -> nn.Module:
    optimizer = torch.optim.AdamW(comrope.param_groups(model, weight_decay=0.01), lr=3e-3)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(training) - LENGTH, (8, 1), generator=draws)
        windows = training[starts + torch.arange(LENGTH)]
        model(windows, labels=windows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def bits_per_byte(model: nn.Module, length: int) -> float:
    windows = test[: 4096 // length * length].view(-1, length)
    return model(windows, labels=windows).loss.item() / torch.tensor(2.0).log().item()


# %%
torch.manual_seed(0)
model: Any = LlamaForCausalLM(LlamaConfig(**LLAMA, eos_token_id=None))
train(model, steps=50, seed=0)

# %% [markdown]
# Attaching takes over the frequencies of the model's RoPE. What it generates is the same, token by token.

# %%
attached: Any = comrope.attach(copy.deepcopy(model), "comrope-ld", block_size=4)
prompt = test[None, :32]
settings = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
assert torch.equal(attached.generate(prompt, **settings), model.generate(prompt, **settings))

# %% [markdown]
# Both are trained on, and measured at the length of training and at four times that. A single seed of a tiny model
# decides nothing; the [results](../results.md#training-on-with-the-angles-learned) have three seeds of a larger one.

# %%
for name, other in {"RoPE": copy.deepcopy(model), "ComRoPE-LD": attached}.items():
    train(other, steps=50, seed=1)
    found = {length: bits_per_byte(other, length) for length in (LENGTH, LONGER)}
    print(f"{name}: " + ", ".join(f"{bits:.3f} bits per byte at {length}" for length, bits in found.items()))

# %% [markdown]
# Folded, it is a Llama with frequencies of each head, and generates the same.

# %%
text = attached.generate(prompt, **settings)
comrope.fold(attached)
assert torch.equal(attached.generate(prompt, **settings), text)
comrope.save(attached, "runs/llama")
again: Any = comrope.load("runs/llama")
assert torch.equal(again.generate(prompt, **settings), text)
