# %% [markdown]
# # Fine-tune a ViT with a learned rotary encoding
#
# A small timm ViT with its absolute position embedding is trained on scikit-learn's digits. Then two copies are
# trained on for as long: one as it is, one with ComRoPE-LD attached at zero angles, which is exactly the model it
# was. How many test images does each get right, at the training size and at a larger one? It takes half a minute on
# two cores.

# %%
import copy
import json

import timm
import torch
import torch.nn.functional as F

import comrope
from comrope.lab.images.in_memory import digits

SIZE, LARGER = (24, 24), (36, 36)
VIT = {"img_size": SIZE, "patch_size": 4, "in_chans": 1, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 10}

# %% [markdown]
# Training is plain PyTorch. `comrope.param_groups` gives the angles, if there are any, three times the learning rate
# and no weight decay.


# %%
def train(model, images, epochs: int, lr: float, seed: int):
    optimizer = torch.optim.AdamW(comrope.param_groups(model, lr=3 * lr, weight_decay=0.05), lr=lr)
    pixels, draws = images.fitted(SIZE), torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=draws).split(64):
            F.cross_entropy(model(pixels[batch]), images.labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@torch.no_grad()
def correct(model, images, size) -> int:
    return (model(images.fitted(size)).argmax(-1) == images.labels).sum().item()


# %% [markdown]
# The "pretrained" model is trained here, so that nothing is downloaded. With a network it would be
# `timm.create_model(…, pretrained=True)`.

# %%
torch.manual_seed(0)
training, test = digits()
model = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **VIT)
train(model, training, epochs=4, lr=1e-3, seed=0)

# %% [markdown]
# Attaching changes no logit, to rounding.

# %%
attached = comrope.attach(copy.deepcopy(model), "comrope-ld", block_size=8)
with torch.no_grad():
    pixels = test.fitted(SIZE)
    change = (attached(pixels) - model(pixels)).abs().max().item()

# %% [markdown]
# Both are trained on. Whether the encoding is what helps, a single seed cannot say; the [results](../results.md) have
# more.

# %%
further = {"as it was": copy.deepcopy(model), "with comrope-ld": attached}
for other in further.values():
    train(other, training, epochs=3, lr=1e-3, seed=1)
counts = {
    name: {"{}×{}".format(*size): correct(m, test, size) for size in (SIZE, LARGER)}
    for name, m in ({"pretrained": model} | further).items()
}
found = {"largest change of a logit by attaching": change, "test images": len(test), "correct": counts}
print(json.dumps(found, indent=1, ensure_ascii=False))
