"""What is drawn: encodings with frequencies in every relation to each other, tokens and positions in every layout."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

import comrope
from tests.helpers import orthogonal, planes

LAYOUTS = ("contiguous", "transposed", "offset", "permuted", "strided", "expanded")
KINDS = ("free", "near", "opposite", "small", "equal", "zero")
SCALES = (0.0, 1.5, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0)
WHERE = ("near", "wide", "ten thousand", "a million", "near a million", "mixed", "grid")
NEAR = ("near", "wide", "grid")


@dataclass(frozen=True)
class Case:
    """An encoding, tokens and positions; everything random in them follows from the seed."""

    name: str
    dtype: torch.dtype
    parameter_dtype: torch.dtype
    position_dtype: torch.dtype
    block_size: int
    num_blocks: int
    num_axes: int
    num_heads: int
    group: int
    batch: int
    num_queries: int
    num_keys: int | None
    """None for keys at the queries' positions."""
    scale: float
    """Decade of the angles, in radians per unit."""
    gaps: tuple[tuple[str, float], ...]
    """How each frequency but the first relates to the one before: see `_frequencies`."""
    where: str
    per_sample: bool
    layouts: tuple[str, str, str]
    """Of queries, keys and positions."""
    seed: int

    def draw(self, *shape: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + seed)
        return torch.randn(shape, generator=generator, dtype=torch.float64)


@st.composite
def cases(draw, names, dtypes, where=WHERE, kinds=KINDS, block_sizes=(4, 2, 8, 6), scales=SCALES):
    """Cases of these families, dtypes of tokens, positions, relations between frequencies, block sizes and scales."""
    name, dtype = draw(st.sampled_from(names)), draw(st.sampled_from(dtypes))
    block_size = draw(st.sampled_from(block_sizes))
    num_axes = draw(st.integers(1, 3))
    # AP shares its blocks out among the axes, and vanilla RoPE its planes.
    num_blocks = num_axes if name in ("comrope-ap", "rope") else draw(st.integers(1, 2 if block_size < 6 else 1))
    small = block_size * num_blocks <= 12
    num_heads = draw(st.integers(1, 2)) if small else 1
    longest = 5 if small else 3
    double = dtype == torch.float64
    parameter_dtype = torch.float64 if double else draw(st.sampled_from((torch.float32, torch.float64)))
    return Case(
        name=name,
        dtype=dtype,
        parameter_dtype=parameter_dtype,
        position_dtype=draw(st.sampled_from((torch.float64, torch.float32))),
        block_size=block_size,
        num_blocks=num_blocks,
        num_axes=num_axes,
        num_heads=num_heads,
        group=draw(st.integers(1, 2)),
        batch=draw(st.integers(1, 2)),
        num_queries=draw(st.integers(2, longest)),
        num_keys=draw(st.none() | st.integers(1, longest)),
        scale=draw(st.sampled_from(scales)),
        gaps=tuple(
            (draw(st.sampled_from(kinds)), draw(st.floats(-12, 0, width=16))) for _ in range(block_size // 2 - 1)
        ),
        where=draw(st.sampled_from(where)),
        per_sample=draw(st.booleans()),
        layouts=tuple(draw(st.sampled_from(LAYOUTS)) for _ in range(3)),
        seed=draw(st.integers(0, 2**16)),
    )


def _frequencies(case: Case) -> Tensor:
    """(b/2,): the first is 1, and the others have gaps, or sums with the one before, of the drawn decades; all × 10^scale."""
    mu = [1.0]
    for n, (kind, decade) in enumerate(case.gaps):
        gap = 10.0**decade
        of_kind = {
            "free": 0.3 + 1.4 * torch.sigmoid(case.draw(1, seed=90 + n)).item(),
            "near": mu[-1] + gap,
            "opposite": gap - mu[-1],
            "small": gap,
            "equal": mu[-1],
            "zero": 0.0,
        }
        mu.append(of_kind[kind])
    return torch.tensor(mu, dtype=torch.float64) * 10.0**case.scale


def build(case: Case):
    """The encoding, with the drawn frequencies in a random basis of each head and block."""
    pe = comrope.encoding(
        case.name,
        num_heads=case.num_heads,
        head_dim=case.block_size * case.num_blocks,
        num_axes=case.num_axes,
        block_size=case.block_size,
        dtype=case.parameter_dtype,
    )
    blocks = (case.num_heads, case.num_blocks)
    mu = _frequencies(case)
    parameters = dict(pe.named_parameters())
    with torch.no_grad():
        if "base_matrices" in parameters:
            base = parameters["base_matrices"]
            basis = orthogonal(*base.shape[:-1], seed=case.seed)
            base.copy_(basis @ planes(mu) @ basis.mT / 2)
        if "axis_scale" in parameters:
            parameters["axis_scale"].copy_(case.draw(case.num_axes, *blocks, seed=1))
        if "frequencies" in parameters:
            parameters["frequencies"].copy_(case.draw(case.num_axes, *blocks, 1, seed=2) * mu)
        if "basis_generator" in parameters:
            parameters["basis_generator"].copy_(case.draw(*blocks, case.block_size, case.block_size, seed=3) / 2)
    for buffer in pe.buffers():
        buffer.copy_(orthogonal(*buffer.shape[:-1], seed=case.seed + 1))
    return pe


def _places(case: Case, length: int, seed: int) -> Tensor:
    shape = (case.batch, length, case.num_axes) if case.per_sample else (length, case.num_axes)
    x = case.draw(*shape, seed=seed)
    uniform = torch.special.ndtr(x)
    return {
        "near": x,
        "wide": 30 * x,
        "ten thousand": 1e4 * uniform,
        "a million": 1e6 * uniform,
        "near a million": 1e6 + x,
        "mixed": x * 10.0 ** (9 * torch.special.ndtr(case.draw(*shape[:-1], 1, seed=seed + 1)) - 3),
        "grid": x.round(),  # tokens share positions, and some are at 0
    }[case.where]


def _laid_out(values: Tensor, layout: str) -> Tensor:
    """The values in a tensor of that layout in memory; "expanded" repeats the first entry of the first dimension."""
    if layout == "transposed":
        return values.transpose(-3 % values.ndim, -2).contiguous().transpose(-3 % values.ndim, -2)
    if layout == "offset":
        return torch.cat((values.new_zeros(1), values.flatten()))[1:].view(values.shape)
    if layout == "permuted":
        return values.movedim(-1, 0).contiguous().movedim(0, -1)
    if layout == "strided":
        return torch.stack((values, values), dim=-1)[..., 1]
    if layout == "expanded":
        return values[:1].expand_as(values)
    return values.contiguous()


def inputs(case: Case) -> dict[str, Tensor]:
    """q, k, positions, and key_positions where the keys have their own, each a leaf that takes a gradient."""
    head_dim = case.block_size * case.num_blocks
    num_keys = case.num_queries if case.num_keys is None else case.num_keys
    q = case.draw(case.batch, case.num_heads * case.group, case.num_queries, head_dim, seed=10).to(case.dtype)
    k = case.draw(case.batch, case.num_heads, num_keys, head_dim, seed=11).to(case.dtype)
    of_q, of_k, of_x = case.layouts
    out = {"q": _laid_out(q, of_q), "k": _laid_out(k, of_k)}
    places = {"positions": _places(case, case.num_queries, 20)}
    if case.num_keys is not None:
        places["key_positions"] = _places(case, num_keys, 30)
    for name, x in places.items():
        out[name] = _laid_out(x.to(case.position_dtype), of_x)
    return {name: t.detach().requires_grad_() for name, t in out.items()}


def arguments(leaves: dict[str, Tensor]) -> list[Tensor | None]:
    return [leaves.get(name) for name in ("q", "k", "positions", "key_positions")]


def loss_weight(case: Case, leaves: dict[str, Tensor]) -> Tensor:
    return case.draw(case.batch, leaves["q"].shape[1], leaves["q"].shape[2], leaves["k"].shape[2], seed=40)
