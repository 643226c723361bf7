"""The main job: train the same small ViT with every encoding on real images, compare them, verify their laws, report."""

import json
import multiprocessing
import platform
import queue
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

import comrope
from comrope.encodings import ENCODINGS, Encoding, LearnedEncoding, SpectralEncoding
from comrope.errors import ConfigurationError
from comrope.lab.data import Images, digits
from comrope.lab.evaluate import across_offsets, across_resolutions
from comrope.lab.train import Recipe, train
from comrope.lab.vit import ViT


@dataclass(frozen=True)
class Setting:
    """The model and what it is measured on; the training recipe stands beside it."""

    width: int = 64
    depth: int = 3
    num_heads: int = 4
    patch_size: int = 8
    block_size: int = 8
    sizes: tuple[tuple[int, int], ...] = ((24, 24), (32, 32), (32, 56), (48, 48), (64, 64), (96, 96))
    offsets: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)


RECIPE = Recipe(image_size=(48, 48), epochs=12, batch_size=64, learning_rate=2e-3, perturbation=1.0)


def build(name: str, setting: Setting, recipe: Recipe, classes: int, channels: int) -> ViT:
    """The demo's ViT with encoding `name`; with the same seed all start from the same weights outside the encoding."""
    torch.manual_seed(recipe.seed)
    blocks = {"block_size": setting.block_size} if name in ("liere", "comrope-ap", "comrope-ld", "comrope-mt") else {}
    return ViT(
        name,
        recipe.image_size,
        blocks,
        patch_size=setting.patch_size,
        in_chans=channels,
        num_classes=classes,
        embed_dim=setting.width,
        depth=setting.depth,
        num_heads=setting.num_heads,
        mlp_ratio=2,
    )


def run(
    encodings: Sequence[str] = tuple(ENCODINGS),
    setting: Setting = Setting(),
    recipe: Recipe = RECIPE,
    *,
    workers: int = 2,
    command: str = "",
    progress: Callable[[str, str, int, int], None] = lambda encoding, stage, done, total: None,
) -> dict:
    """Trains and measures one model an encoding, each in one thread of its own process.

    Args:
        encodings: names, in the order of the report.
        setting, recipe: what is trained, and how.
        workers: processes at a time. The numbers do not depend on it.
        command: what was typed, for the record.
        progress: called with (encoding, stage, steps done, steps in all).
    Returns:
        The results as JSON-ready dicts and lists; everything but `timing` is the same for the same seed and machine.
    """
    unknown = [name for name in encodings if name not in ENCODINGS]
    if unknown or not encodings or len(set(encodings)) < len(encodings):
        raise ConfigurationError(
            f"encodings: got {list(encodings)}, expected different ones of {', '.join(ENCODINGS)}."
        )
    if workers < 1:
        raise ConfigurationError(f"workers={workers}: expected 1 or more.")
    started = time.perf_counter()
    train_images, test_images = digits()
    runs, seconds = zip(*_in_processes(workers, encodings, setting, recipe, progress), strict=True)
    return {
        "command": command,
        "versions": {
            **{package: version(package) for package in ("comrope", "torch", "timm")},
            "python": platform.python_version(),
        },
        "settings": {
            **_as_json(setting),
            **_as_json(recipe),
            "training_size": list(recipe.image_size),
            "num_train": len(train_images),
            "num_test": len(test_images),
            "data": "scikit-learn's digits, upsampled from 8 x 8",
        },
        "runs": list(runs),
        "timing": {
            "threads": workers,
            "seconds": round(time.perf_counter() - started, 1),
            "train_seconds": dict(zip(encodings, seconds, strict=True)),
        },
    }


def _as_json(settings: Setting | Recipe) -> dict:
    return json.loads(json.dumps(asdict(settings)))


def _in_processes(workers, encodings, setting, recipe, progress) -> list[tuple[dict, float]]:
    """`_train_and_measure` for every encoding, in order; whatever goes wrong here or there, no process is left over."""
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(reports,)) as pool:
        try:
            futures = [pool.submit(_train_and_measure, name, setting, recipe) for name in encodings]
            while not all(future.done() and future.result() for future in futures):
                with suppress(queue.Empty):
                    progress(*reports.get(timeout=0.2))
            return [future.result() for future in futures]
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


_reports: Any = None  # in a worker process: where its progress goes


def _start_worker(reports) -> None:
    global _reports
    _reports = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def _train_and_measure(name: str, setting: Setting, recipe: Recipe) -> tuple[dict, float]:
    """In a worker: the row of one encoding, and the seconds that training took."""
    train_images, test_images = digits()
    model = build(name, setting, recipe, len(train_images.classes), train_images.pixels.shape[1])
    begun = time.perf_counter()
    history = train(model, train_images, recipe, lambda done, total: _reports.put((name, "training", done, total)))
    seconds = round(time.perf_counter() - begun, 1)
    row = _measure(name, model, history, test_images, setting, recipe)
    _reports.put((name, "measured", 1, 1))
    return row, seconds


def _measure(name: str, model: ViT, history: list[dict], test: Images, setting: Setting, recipe: Recipe) -> dict:
    rotary = [m for m in model.modules() if isinstance(m, Encoding)]
    learned = [m for m in rotary if isinstance(m, SpectralEncoding) and isinstance(m, LearnedEncoding)]
    return {
        "encoding": name,
        "num_parameters": _count(model.parameters()),
        "num_encoding_parameters": _count(model.encoding_parameters().values()),
        "history": history,
        "resolutions": across_resolutions(model, test, list(setting.sizes)),
        "offsets": across_offsets(model, test, recipe.image_size, list(setting.offsets), recipe.seed),
        "check": [] if name == "ape" else [{**asdict(c), "holds": c.holds} for c in comrope.check(model)],
        "frequencies": [m.spectrum().frequencies.tolist() for m in learned] or None,
    }


def _count(parameters) -> int:
    return sum(p.numel() for p in parameters if isinstance(p, nn.Parameter))
