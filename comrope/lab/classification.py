"""Evaluation of trained classifiers, of images and of clips: at other sizes, with coordinates moved, over all processes."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn

import comrope
from comrope._values import FARTHEST, is_number
from comrope.encodings import Encoding
from comrope.errors import ConfigurationError
from comrope.lab.data.batches import read_batches
from comrope.lab.images.loading import EvalImages
from comrope.lab.options import check_scaling
from comrope.lab.rng import Stream, generator
from comrope.lab.vit import ViT

DIRECTIONS = ("random", "first-axis", "last-axis", "steepest")


class Samples(Protocol):
    """The samples that a classifier is evaluated on: images or clips."""

    @property
    def labels(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...


@dataclass(frozen=True)
class Condition:
    """A size of test images, a displacement of their coordinates, and a scaling of the frequencies."""

    size: tuple[int, int]
    """(height, width) in pixels."""
    offset: float = 0.0
    """Offset ρ in canvas widths."""
    direction: str = "random"
    """"random": each image moves by its own N(0, ρ²I) (Eq. 12). Else all move by ρ along the "first-axis", the "last-axis", or
    the "steepest" direction, in which the fastest plane of the model rotates most."""
    perturbation: float = 0.0
    """Standard deviation σ of the perturbation in patches, drawn for each image (Eq. 11)."""
    seed: int = 0
    scaling: str = "none"
    """One of `comrope.scaling.METHODS`, from the size trained at to this one, or "none"."""

    def __post_init__(self):
        check_scaling(self.scaling)
        if self.direction not in DIRECTIONS:
            raise ConfigurationError(f"direction={self.direction!r}: expected one of {', '.join(DIRECTIONS)}.")
        for name in ("offset", "perturbation"):
            if not is_number(getattr(self, name)):
                raise ConfigurationError(
                    f"{name}={getattr(self, name)}: expected a number, 0 or more, up to {FARTHEST:g}."
                )
        if self.seed < 0:
            raise ConfigurationError(f"seed={self.seed}: expected 0 or more.")

    @property
    def moves(self) -> bool:
        return bool(self.offset or self.perturbation)

    @property
    def still(self) -> Self:
        """The same condition with coordinates unmoved."""
        return replace(self, offset=0.0, direction="random", perturbation=0.0, seed=0)

    @property
    def image_size(self) -> tuple[int, ...]:
        """The size of a sample, as the model's `grid` and `positions` take it."""
        return self.size

    @property
    def method(self) -> str | tuple[str, ...]:
        """The scaling as `comrope.rescale` takes it."""
        return self.scaling

    @property
    def perturbed(self) -> tuple[bool, ...]:
        """Whether the perturbation moves positions along each axis."""
        return (True, True)

    def dataset(self, images: Any) -> Any:
        """Returns the evaluation dataset, which is indexed by lists of the images' indices."""
        return EvalImages(images, self.size)

    def describes(self, row: dict[str, Any]) -> bool:
        """Whether a row of `evaluate` was measured under this condition. Rows of earlier versions have no scaling."""
        return all({"scaling": "none", **row}[key] == v for key, v in {**vars(self), "size": list(self.size)}.items())


def evaluate(
    model: nn.Module, images: Samples, conditions: Sequence[Condition], *, batch_size: int = 150, num_workers: int = 0
) -> Iterator[dict[str, Any]]:
    """Returns rows, one for each condition, with the number of correct answers; a row is measured when it is asked for.

    If several processes call this together, each takes its share of the images. The counts are over all processes.

    Returns:
        In each row the condition's fields, `correct` of `total` images, the number `skipped` because they cannot be
        read, and the number of predicted labels `changed` from those at the same size with coordinates unmoved.
    Raises:
        InputError: a size that the model's patches do not divide, before anything is measured.
        NoSpectrumError: frequencies to be scaled of an encoding that has none, such as LieRE; likewise.
    """
    if isinstance(model, ViT):
        for condition in conditions:
            model.grid(condition.image_size)
    if any(condition.scaling != "none" for condition in conditions):
        for module in model.modules():
            if isinstance(module, Encoding):
                module.folded()
    return _rows(model, images, conditions, batch_size=batch_size, num_workers=num_workers)


def _rows(
    model: nn.Module, images: Samples, conditions: Sequence[Condition], **settings: Any
) -> Iterator[dict[str, Any]]:
    unmoved: dict[Condition, Tensor] = {}
    for condition in conditions:
        still = condition.still
        if still not in unmoved:
            unmoved[still] = predict(model, images, still, **settings)
        found = predict(model, images, condition, **settings) if condition.moves else unmoved[still]
        truth = images.labels[_share(len(images))]
        seen = found >= 0
        counts = torch.stack(
            ((found == truth).sum(), seen.sum(), (~seen).sum(), (found != unmoved[still]).logical_and(seen).sum())
        )
        total: Any = reduce(counts.to(PartialState().device), "sum")
        correct, seen_in_all, skipped, changed = total.tolist()
        counted = {"correct": correct, "total": seen_in_all, "skipped": skipped, "changed": changed}
        yield {**vars(condition), "size": list(condition.size), **counted}


@torch.no_grad()
def predict(
    model: nn.Module, images: Samples, condition: Condition, *, batch_size: int = 150, num_workers: int = 0
) -> Tensor:
    """Returns the labels that `model` gives to this process's share of `images`; −1 for those that were skipped."""
    model = scaled(model, condition)
    device = next(model.parameters()).device
    share = _share(len(images))
    batches = [list(share)[i : i + batch_size] for i in range(0, len(share), batch_size)]
    positions = _positions(model, len(images), condition)
    labels = torch.full((len(images),), -1)
    for indices, batch in zip(batches, read_batches(condition.dataset(images), batches, num_workers), strict=True):
        seen = [index for index in indices if images.name(index) not in batch.skipped] if batch.skipped else indices
        if not seen:
            continue
        pixels = batch.pixels.to(device)
        if positions is None:
            logits = model(pixels)
        else:
            logits = model(pixels, (positions[seen] if positions.ndim == 3 else positions).to(device))
        labels[seen] = logits.argmax(-1).cpu()
    return labels[list(share)]


def scaled(model: nn.Module, condition: Condition) -> nn.Module:
    """Returns a copy of a model with its frequencies scaled from the size trained at; the model itself if nothing changes."""
    if condition.scaling == "none":
        return model
    if isinstance(model, ViT):
        grids: dict[str, Any] = {"trained": model.trained_grid, "shape": model.grid(condition.image_size)}
        return comrope.rescale(copy.deepcopy(model), condition.method, unit="relative", **grids)
    embedding: Any = model.patch_embed
    grids = {"trained": embedding.grid_size, "shape": embedding.dynamic_feat_size(condition.size)}
    return comrope.rescale(copy.deepcopy(model), condition.method, **grids)


def _share(num_images: int) -> range:
    """Returns the indices of this process's images: every n-th, so that the counts add up without padding."""
    state = PartialState(cpu=not torch.cuda.is_available())
    return range(state.process_index, num_images, state.num_processes)


def _positions(model: nn.Module, num_images: int, condition: Condition) -> Tensor | None:
    """Returns the tokens' positions, (L, N), or (num_images, L, N) if images differ; None if the model sets its own."""
    if not isinstance(model, ViT):
        if condition.moves:
            raise ConfigurationError(
                f"{type(model).__name__} reads its positions off the image: only the laboratory's ViT can have them moved."
            )
        return None
    positions = model.positions(condition.image_size)
    if condition.perturbation:
        patch = [1 / n for n in model.grid(condition.image_size)]
        settings: dict[str, Any] = {
            "num_prefix_tokens": model.num_prefix_tokens,
            "batch_size": num_images,
            "axes": condition.perturbed,
        }
        rng = generator(condition.seed, Stream.EVALUATED_PERTURBATION)
        positions = comrope.positions.perturb(positions, patch, condition.perturbation, **settings, generator=rng)
    if condition.offset:
        positions = positions.double()  # float32 merges neighbouring patches far from the canvas
        if condition.direction == "random":
            rng = generator(condition.seed, Stream.EVALUATED_OFFSET)
            positions = comrope.positions.offset(positions, condition.offset, batch_size=num_images, generator=rng)
        else:
            positions = positions + condition.offset * direction(model, condition.direction).double()
    return positions


def direction(model: nn.Module, name: str) -> Tensor:
    """Returns the unit vector (N,) of a direction by name. Without rotations the steepest direction is the first axis."""
    axes = torch.eye(model.num_axes)  # pyright: ignore[reportArgumentType]
    first, last = axes[0], axes[-1]
    if name != "steepest":
        return {"first-axis": first, "last-axis": last}[name]
    steepest, height = first, 0.0
    for encoding in (module for module in model.modules() if isinstance(module, Encoding)):
        angles = encoding.angle_matrices().detach().double().cpu().flatten(1, 2)  # (N, blocks, b, b)
        found, its_height = _steepest(angles)
        if its_height > height:
            steepest, height = found, its_height
    return steepest


def _steepest(angles: Tensor, rounds: int = 30) -> tuple[Tensor, float]:
    """Returns the unit vector u, (N,), with the largest ‖Σ u_i A_i‖₂ of any block, and that norm: by ascent from each axis.

    For a unit vector v, |vᴴ(Σ u_i A_i)v| is largest in u at u_i ∝ vᴴA_i v / i, and largest in v at the leading eigenvector:
    alternating never lowers it, and one alternation is enough if the matrices commute.
    """
    u = torch.eye(len(angles), dtype=torch.float64)[:, None].repeat(1, angles.shape[1], 1)  # (starts, blocks, N)
    height = torch.zeros(u.shape[:2], dtype=torch.float64)
    for _ in range(rounds):
        values, vectors = torch.linalg.eigh(-1j * torch.einsum("sni,inab->snab", u, angles))
        height, v = values[..., -1], vectors[..., -1]
        slopes = torch.einsum("sna,inab,snb->sni", v.conj(), angles + 0j, v).imag
        u = torch.nn.functional.normalize(slopes, dim=-1)
    best = height.flatten().argmax()
    return u.flatten(0, 1)[best].float(), height.flatten()[best].item()


def plain(sizes: Sequence[tuple[int, int]]) -> list[Condition]:
    """Returns a condition for each size, with coordinates unmoved."""
    return [Condition(size) for size in sizes]


def shifted(size: tuple[int, int], offsets: Sequence[float], seed: int = 0) -> list[Condition]:
    """Returns a condition for each strength ρ of random offsets, at one size."""
    return [Condition(size, offset, seed=seed) if offset else Condition(size) for offset in offsets]
