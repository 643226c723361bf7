"""Fine-tune a pretrained ViT with a learned rotary encoding, starting from exactly the model it was.

A small timm ViT with its absolute position embedding is trained on scikit-learn's digits. Then two copies are trained on for
as long: one as it is, one with ComRoPE-LD attached at zero angles. Prints how many test images each gets right, at the
training size and at a larger one. Half a minute on two cores:

    python examples/finetune.py
"""

import copy
import json

import timm
import torch
import torch.nn.functional as F

import comrope
from comrope.lab.images.in_memory import digits

SIZE, LARGER = (24, 24), (36, 36)
VIT = {"img_size": SIZE, "patch_size": 4, "in_chans": 1, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 10}


def train(model, images, epochs: int, lr: float, seed: int):
    """AdamW; angles, if there are any, at three times the rate and without weight decay."""
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


def main() -> dict:
    torch.manual_seed(0)
    training, test = digits()
    model = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **VIT)
    train(model, training, epochs=6, lr=1e-3, seed=0)

    attached = comrope.attach(copy.deepcopy(model), "comrope-ld", block_size=8)
    with torch.no_grad():
        logits = model(test.fitted(SIZE))
        change = (attached(test.fitted(SIZE)) - logits).abs().max().item()
    further = {"as it was": copy.deepcopy(model), "with comrope-ld": attached}
    for other in further.values():
        train(other, training, epochs=4, lr=1e-3, seed=1)
    counts = {
        name: {"{}×{}".format(*size): correct(m, test, size) for size in (SIZE, LARGER)}
        for name, m in ({"pretrained": model} | further).items()
    }
    return {"largest change of a logit by attaching": change, "test images": len(test), "correct": counts}


if __name__ == "__main__":
    print(json.dumps(main(), indent=1, ensure_ascii=False))
