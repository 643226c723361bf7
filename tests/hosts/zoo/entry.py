"""The table of models, what an entry is, and functions that make weights and inputs."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PATCH_SIZE = 8
ROWS, COLUMNS = 2, 3
NUM_TOKENS = 12
VOCAB_SIZE = 50
IMAGE_TOKEN = 5


@dataclass(frozen=True)
class Entry:
    """A tiny model, its example arguments, and which tensor of its output is compared.

    Args:
        name: unique in the table.
        library: the library of the model's class: "timm", "transformers", "diffusers" or "torch".
        build: makes the model in eval mode, always with the same weights; its keyword arguments go to the model's class,
            or to `_from_config` in transformers, such as attn_implementation="eager".
        keywords: returns example keyword arguments of the model's forward, always the same ones.
        tensor: returns the logits or the last hidden state from the model's output.
    """

    name: str
    library: str
    build: Callable[..., nn.Module]
    keywords: Callable[[], dict[str, Any]]
    tensor: Callable[[Any], Tensor]

    def run(self, model: nn.Module) -> Tensor:
        """Returns the tensor of this entry for a model that `build` made, called with the example arguments."""
        return self.tensor(model(**self.keywords()))


ZOO: dict[str, Entry] = {}


def names(library: str) -> list[str]:
    """Returns the names of the entries of a library, in the order of the table."""
    return [name for name, entry in ZOO.items() if entry.library == library]


@torch.no_grad()
def randomise_weights(model: nn.Module, gain: float = 1.5) -> nn.Module:
    """Returns the model in eval mode, with weights so large that attention is far from uniform and every part matters.

    Scalars and the frequencies of a RoPE are not changed.
    """
    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if "rope" in name or parameter.ndim == 0:
            continue
        if "gamma" in name or "layer_scale" in name or last in ("lambda_1", "lambda_2", "temperature"):
            parameter.normal_(1, 0.2)
        elif parameter.ndim == 1 and "weight" in name:
            owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
            usual = 0.0 if "Gemma" in owner else 1.0  # Gemma's norms add one to their weight
            parameter.normal_(usual + (0.5 if any(part in name for part in _NORMS) else 0.0), 0.2)
        elif parameter.ndim == 1:
            parameter.normal_(0, 0.3)
        elif "pos" in name or "token" in last or "embed" in last or last in ("latent", "probe"):
            parameter.normal_(0, 0.5)
        elif "expert" in name and parameter.ndim == 3:
            parameter.normal_(0, parameter.shape[-1] ** -0.5)
        else:
            inputs = parameter.shape[0] if ".c_" in name else parameter[0].numel()
            parameter.normal_(0, (gain if any(part in name for part in _QUERIES_AND_KEYS) else 1.0) / inputs**0.5)
    return model.eval()


_QUERIES_AND_KEYS = (
    *("qkv", "q_proj", "k_proj", "query", "key", "to_q", "to_k", "c_attn", "in_proj", "inputs"),
    *(".q.", ".k.", ".qk.", ".kv."),
)
_NORMS = ("q_norm", "k_norm", "norm_q", "norm_k", "q_layernorm", "k_layernorm", "norm_added_q", "norm_added_k")


def seeded(make: Callable[[], nn.Module], gain: float = 1.5) -> nn.Module:
    """Returns the model with weights that do not depend on the random numbers drawn by its class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        torch.manual_seed(1)
        return randomise_weights(model, gain)


def normal(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def images(rows: int = ROWS, columns: int = COLUMNS, patch: int = PATCH_SIZE) -> Tensor:
    return normal(2, 3, patch * rows, patch * columns)


def token_ids() -> Tensor:
    return torch.randint(6, VOCAB_SIZE, (2, NUM_TOKENS), generator=torch.Generator().manual_seed(1))


def main_output(output: Any) -> Tensor:
    """Returns the logits if there are any, else the last hidden state, the sample, or the output itself."""
    for name in ("logits", "last_hidden_state", "sample"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return output if isinstance(output, Tensor) else output[0]


def import_path(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
