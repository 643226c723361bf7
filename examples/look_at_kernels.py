# %% [markdown]
# # Train on images, and look at the kernels
#
# What does an encoding learn? A token at displacement δ from a query with the same content gets, on average over
# contents, the score
#
# $$ \kappa_h(\delta) = \tfrac{1}{D} \, \mathrm{tr} \, R_h(\delta) = \frac{2}{D} \sum_k \cos(\omega_{hk}^\top \delta) $$
#
# in head $h$: the sum runs over the planes, and the basis does not matter. This *kernel* is a picture of how a head
# sees distance and direction. Here a small ViT without any other position is trained on digits, and the kernels are
# drawn before and after. It takes half a minute.

# %%
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import comrope
from comrope.lab.images.in_memory import digits

OUT = Path("runs/kernels")
SIZE = (24, 24)

# %%
torch.manual_seed(0)
training, test = digits()
sizes = {
    "img_size": SIZE,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 64,
    "depth": 2,
    "num_heads": 4,
    "num_classes": 10,
}
model = timm.create_model("vit_tiny_patch16_224", pos_embed="none", **sizes)
comrope.attach(model, "comrope-mt", init="normal", std=3.0)  # every commuting family, with fast planes

# %% [markdown]
# The frequencies of a layer are part of its spectrum, in radians per image width.


# %%
@torch.no_grad()
def kernels(model: Any, points: int = 49) -> list[Tensor]:
    """Returns the kernels of each layer, (heads, points, points), for displacements of −½ to ½ image along rows and columns."""
    side = torch.linspace(-0.5, 0.5, points, dtype=torch.float64)
    displacements = torch.stack(torch.meshgrid(side, side, indexing="ij"), dim=-1)  # (points, points, 2)
    frequencies = [block.attn.encoding.spectrum().frequencies.flatten(2) for block in model.blocks]  # (2, heads, D/2)
    return [torch.einsum("yxn,nhp->hyxp", displacements, of_layer).cos().mean(-1) for of_layer in frequencies]


before = kernels(model)

# %%
optimizer = torch.optim.AdamW(comrope.param_groups(model, lr=1e-2, weight_decay=0.05), lr=2e-3)
pixels, draws = training.fitted(SIZE), torch.Generator().manual_seed(0)
for _ in range(4):
    for batch in torch.randperm(len(training), generator=draws).split(64):
        F.cross_entropy(model(pixels[batch]), training.labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
model.eval()
with torch.no_grad():
    right = (model(test.fitted(SIZE)).argmax(-1) == test.labels).float().mean().item()
print(f"{100 * right:.1f} % of the test digits are right")

# %% [markdown]
# Each row is a layer, before and after. The middle of a picture is the query's own place; red is a high score, blue a
# low one.

# %%
after = kernels(model)
figure, axes = plt.subplots(4, 4, figsize=(7, 7.4), layout="constrained")
for row, (when, layer) in enumerate((w, layer) for layer in range(2) for w in ("before", "after")):
    for head in range(4):
        picture = (before if when == "before" else after)[layer][head]
        axes[row, head].imshow(picture, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        axes[row, head].set(xticks=[], yticks=[])
    axes[row, 0].set_ylabel(f"layer {layer + 1}, {when}")
OUT.mkdir(parents=True, exist_ok=True)
figure.savefig(OUT / "kernels.png", dpi=80)
moved = max((a - b).abs().max().item() for a, b in zip(before, after, strict=True))
print(f"training changed the kernels by up to {moved:.2f}; see {OUT / 'kernels.png'}")

# %% [markdown]
# ![Kernels of four heads in two layers, before and after](../figures/kernels.png)
#
# Heads look along lines and at spots of different sizes and directions. In this short training they keep the shapes that
# they start with; [the start](../choose.md#settings) decides how fast planes rotate. Attention depends on displacements
# only, as the trained matrices still commute:

# %%
assert comrope.check(model).holds
comrope.show(model, path=OUT / "kernels.html")  # a page with all kernels and spectra
