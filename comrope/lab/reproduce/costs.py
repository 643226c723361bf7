"""Table 7: the parameters and operations of encodings, by formula and counted."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import comrope
from comrope import reference
from comrope.encodings import Encoding
from comrope.lab.images.model import MODELS
from comrope.lab.output import Outcome
from comrope.lab.reproduce import paper
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.scales import BLOCK_SIZE, Scale
from comrope.lab.rng import Stream, generator
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table

NUM_AXES = 2
COUNTED = ("ape", "rope", "rope-mixed", "string", "liere", "comrope-ap", "comrope-ld", "comrope-mt")
OURS: dict[str, tuple[str, Any]] = {
    "rope-mixed": ("L·N·d/2", lambda layers, width, head, axes, block: layers * axes * width // 2),
    "string": ("L·d(d/H + N/2)", lambda layers, width, head, axes, block: layers * (width * head + axes * width // 2)),
    "comrope-mt": (
        "L·d(b + N/2)",
        lambda layers, width, head, axes, block: layers * (width * block + axes * width // 2),
    ),
}
"""Extra parameters of encodings that the paper's table 7 leaves out; d/H is the head dimension."""
_MATRIX_FUNCTIONS = ("linalg_matrix_exp", "exp_skew", "skew_basis", "_linalg_solve_ex")


@dataclass(frozen=True)
class Shape:
    """The sizes of a ViT and its images."""

    model: str
    size: tuple[int, int]

    @property
    def layers(self) -> int:
        return MODELS[self.model]["depth"]

    @property
    def width(self) -> int:
        return MODELS[self.model]["embed_dim"]

    @property
    def num_heads(self) -> int:
        return MODELS[self.model]["num_heads"]

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def grid(self) -> tuple[int, int]:
        patch = MODELS[self.model]["patch_size"]
        return self.size[0] // patch, self.size[1] // patch

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]


def table7(scale: Scale) -> Plan:
    """Extra parameters, and operations of rotating queries and keys: by formula, and counted in the encodings.

    The paper's extra parameters (L layers, width d, n tokens, N axes, block size b): APE nd, RoPE 0, LieRE LNdb, ComRoPE-AP
    Ldb, ComRoPE-LD Ld(b + N/b). Operations here are those of one layer and one image without its class token, forward, in
    multiply-adds of matrix products, as torch's own counter has them, and the number of small matrix functions, which it
    leaves out: an exponential for each token as published, a decomposition or a linear solve for each block as we do it,
    whatever the tokens.

    Cost: no training; seconds.
    """

    def outcome(results: list[dict]) -> Outcome:
        shapes = [Shape("vit-b/16", (224, 224))]
        if scale.model != "vit-b/16":
            shapes.append(Shape(scale.model, scale.image_size))
        tables = []
        for i, shape in enumerate(shapes):
            suffix = "" if i == 0 else "-ours"
            about = f"“{shape.model}” at {shape.size[0]}, b = {BLOCK_SIZE}"
            names = scale.of(*COUNTED)
            columns = ("method", "formula", "parameters by formula", "counted", "source of the formula")
            parameters = [_parameters(name, shape) for name in names]
            tables.append(Table(f"table7{suffix}", f"Extra parameters: {about}.", columns, parameters, 0))
            columns = ("method", "formula", "multiply-adds by formula", "counted", "small matrix functions", "counted")
            operations = [_published(shape), *(_operations(name, shape) for name in names if name != "ape")]
            title = f"Rotating q and k in one layer for one image, forward: {about}."
            tables.append(Table(f"table7{suffix}-operations", title, columns, operations, 0))
        notes = [
            "n counts patches, H heads; the spectral engine's rotation of planes, 4·n·d multiply-adds element by element, is "
            "in neither column, since the counter sees products of matrices alone.",
            "Our engine applies the blocks of a head together as one d/H × d/H matrix, one product of a good size, where b × b "
            "blocks would take n·d·b for q and for k.",
        ]
        return Outcome(tables, {}, notes)

    return Plan("Table 7: extra parameters and operations", [], outcome, COUNTED)


def _parameters(name: str, shape: Shape) -> tuple[Cell, ...]:
    """Returns the row of an encoding in the table of parameters."""
    with torch.device("meta"):
        owned = [_encoding(name, shape)] * shape.layers if name != "ape" else [_encoding(name, shape, grid=shape.grid)]
    counted = sum(parameter.numel() for pe in owned for parameter in pe.parameters())
    if name in OURS:
        formula, value = OURS[name]
        number = value(shape.layers, shape.width, shape.head_dim, NUM_AXES, BLOCK_SIZE)
        return label(name), formula, number, counted, "ours"
    formula, value = paper.TABLE7[name]
    number = int(value(shape.layers, shape.width, shape.num_patches, NUM_AXES, BLOCK_SIZE))
    return label(name), formula, number, counted, "paper"


def _published(shape: Shape) -> tuple[Cell, ...]:
    """Returns the row of the paper's algorithm, with a rotation shared by q and k and by the batch."""
    pe = _encoding("comrope-ld", shape)
    counted = _count(lambda q, k, x: reference.rotate(q, k, pe.angle_matrices(), x), shape)
    return "as published", *_dense(shape), counted[0], shape.num_patches * shape.width // BLOCK_SIZE, counted[1]


def _operations(name: str, shape: Shape) -> tuple[Cell, ...]:
    """Returns the row of an encoding in the table of operations."""
    pe, n, d, b = _encoding(name, shape), shape.num_patches, shape.width, BLOCK_SIZE
    counted = _count(pe, shape)
    basis, phases = 2 * n * d * shape.head_dim, NUM_AXES * n * d // 2
    if name == "liere":
        return label(name), *_dense(shape), counted[0], n * d // b, counted[1]
    formulas = {
        "string": ("N·n·d/2 + 2·n·d·d/H", phases + basis, shape.num_heads),
        "comrope-ap": ("N·n·d/b + 2·n·d·d/H + 2·d·b²", NUM_AXES * n * d // b + basis + 2 * d * b**2, d // b),
        "comrope-ld": ("N·n·d/b + 2·n·d·d/H + 2·d·b²", NUM_AXES * n * d // b + basis + 2 * d * b**2, d // b),
        "comrope-mt": ("N·n·d/2 + 2·n·d·d/H + 5·d·b²", phases + basis + 5 * d * b**2, d // b),
    }
    formula, value, functions = formulas.get(name, ("N·n·d/2", phases, 0))
    return label(name), formula, value, counted[0], functions, counted[1]


def _dense(shape: Shape) -> tuple[str, int]:
    """Returns formula and number of the multiply-adds with dense blocks."""
    return "N·n·d·b + 2·n·d·b", (NUM_AXES + 2) * shape.num_patches * shape.width * BLOCK_SIZE


def _encoding(name: str, shape: Shape, **settings: Any) -> Encoding:
    sizes = {"num_heads": shape.num_heads, "head_dim": shape.head_dim, "num_axes": NUM_AXES}
    return comrope.encoding(name, **sizes, **settings)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def _count(rotate: Any, shape: Shape) -> tuple[int, int]:
    """Returns the numbers of multiply-adds in products and of small matrix functions, for q and k of one image."""
    q, k = torch.zeros(2, 1, shape.num_heads, shape.num_patches, shape.head_dim)
    x = torch.rand(shape.num_patches, NUM_AXES, generator=generator(0, Stream.EXAMPLE))
    with FlopCounterMode(display=False) as products, _MatrixFunctions() as functions:
        rotate(q, k, x)
    return products.get_total_flops() // 2, functions.count


class _MatrixFunctions(TorchDispatchMode):
    """Counts the matrices that are decomposed, exponentiated or solved with."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in _MATRIX_FUNCTIONS:
            self.count += args[0].numel() // args[0].shape[-1] ** 2
        return func(*args, **(kwargs or {}))
