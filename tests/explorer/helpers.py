"""Small models for the tests of the explorer, and the numbers that a page holds."""

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

import comrope


def encoding(name: str, num_axes: int = 2, **settings) -> Any:
    """Returns an encoding of 2 heads of 24 features that rotate visibly from patch to patch."""
    torch.manual_seed(0)
    learned = (
        {"init": "normal", "std": 2.0}
        if name not in ("none", "rope")
        else {"max_frequency": 6.0}
        if name == "rope"
        else {}
    )
    return comrope.encoding(name, num_heads=2, head_dim=24, num_axes=num_axes, **(learned | settings))


def vit(name: str = "comrope-ld", *, side: int = 32, **settings) -> Any:
    """Returns a small ViT of timm, patches of 8 pixels, 4 × 4 by default, and a class token, with an encoding attached."""
    import timm

    torch.manual_seed(0)
    sizes = {"img_size": side, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 3}
    model: Any = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.normal_(0, 0.3)
            block.attn.qkv.bias.normal_(0, 0.3)
    return comrope.attach(model, name, **({"init": "normal", "std": 2.0} | settings))


def data_of(page: Path | str) -> dict[str, Any]:
    """Returns the data in a page, with numbers as arrays."""
    text = page.read_text(encoding="utf-8") if isinstance(page, Path) else page
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    assert found is not None
    return unpacked(json.loads(found[1]))


def unpacked(value: Any) -> Any:
    """Returns data of a page with packed numbers as arrays."""
    if isinstance(value, list):
        return [unpacked(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "kind" in value and "data" in value:
        raw = zlib.decompress(base64.b64decode(value["data"]))
        return np.frombuffer(raw, dtype=value["kind"]).reshape(value["shape"]) * value.get("step", 1)
    return {key: unpacked(each) for key, each in value.items()}


def brute_kernel(model: dict[str, Any], layer: int, head: int, kind: str, displacement: tuple[float, ...]) -> float:
    """Returns κ(Δ) of a commuting layer from the numbers in a page."""
    found = model["layers"][layer]
    phase = found["frequencies"][head].astype(float) @ np.asarray(displacement, dtype=float)
    c = found["weights"][kind][head].astype(float)
    return float((c[:, 0] * np.cos(phase) - c[:, 1] * np.sin(phase)).sum())
