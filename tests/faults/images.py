"""Folders of two small images, and what is read of them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from comrope.lab.images.folder import image_folder


def write_images(root: Path) -> Path:
    """Two classes of one image each, to train and to test on."""
    for part in ("train", "val"):
        for name, value in (("a", 50), ("b", 200)):
            folder = root / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (value,) * 3).save(folder / "0.png")
    return root


def pixels(root, name: str) -> np.ndarray:
    train, _ = image_folder(root)
    (index,) = (i for i in range(len(train)) if train.name(i).endswith(name))
    image = train.pil(index)
    assert image is not None
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def noise(size: int) -> bytes:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)).save(whole, format="PNG")
    return whole.getvalue()[:size]
