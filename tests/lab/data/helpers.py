"""Data sets in the formats of Hugging Face's `datasets`, made on the spot."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

CLASSES = ("ant", "bee", "cat")
NAMED = datasets.ClassLabel(names=list(CLASSES))
TEXTS = [f"{word} {word.upper()} ä {word * (3 + i)}\n" for i, word in enumerate(("rose", "nettle", "tulip", "fern"))]


def png(label: int, number: int, mode: str = "RGB") -> bytes:
    """An image whose red tells its class, and whose green its number; in other modes whatever that gives."""
    whole = io.BytesIO()
    colour = Image.new("RGB", (12, 8), (80 * label, number, 0))
    (Image.new(mode, (12, 8), 40 * 257) if mode == "I;16" else colour.convert(mode)).save(whole, "png")
    return whole.getvalue()


def write_images(
    path: Path,
    num: int,
    *,
    first: int = 0,
    label: Any = NAMED,
    labels: Sequence[Any] | None = None,
    bad: bool = False,
    **more: Any,
) -> Path:
    """A parquet file of images of the three classes in turn, with the numbers from `first` on.

    `label` is the type of the labels, `labels` are others than the class's number, `bad` makes the fourth image none,
    and `more` are other columns.
    """
    values = [{"bytes": b"no" if bad and i == 3 else png(i % 3, first + i), "path": None} for i in range(num)]
    columns = {"image": values, "label": labels or [i % 3 for i in range(num)]}
    types = {"image": datasets.Image(), "label": label}
    write_rows(path, {**columns, **{k: v for k, (v, _) in more.items()}}, types | {k: t for k, (_, t) in more.items()})
    return path


def write_rows(path: Path, columns: dict[str, list], types: dict[str, Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=types and datasets.Features(types)).to_parquet(path)
    return path


def write_image_splits(folder: Path, files: int = 3, num: int = 10) -> Path:
    """A folder of parquet files: `files` of them to train on, of `num` images each, and one to test on."""
    for file in range(files):
        write_images(folder / f"train-{file:05d}-of-{files:05d}.parquet", num, first=num * file)
    write_images(folder / "test.parquet", 9, first=200)
    return folder


def mapped(rows: Any, column: str) -> bool:
    """Whether the bytes of a column lie in Arrow files that are mapped into memory, as the kernel says."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    spans = [line.split()[0].split("-") for line in maps if line.endswith(".arrow")]
    buffers = [buffer for chunk in rows.data.column(column).chunks for buffer in chunk.buffers() if buffer]
    inside = [any(int(a, 16) <= buffer.address < int(b, 16) for a, b in spans) for buffer in buffers if buffer.size]
    return bool(inside) and all(inside)
