"""Drawn encodings, tokens, positions and ways of calling, against scores and gradients in 400-bit arithmetic.

What is promised. A call returns queries and keys rotated, up to one orthogonal change of basis that is the same constant for
all calls: Q₀ᵀR(x)q with Q₀ = Q in value and without a gradient. So it does not matter which call a token went through, and
a rotated token that is detached is a constant vector. Losses here are linear in the scores, Σ weight·score.

How far results may be off. Let u = eps(dtype of the tokens) + eps(float64)·Φ, Φ the largest phase Σ_i |x_i||B_i| in a block:
phases are worked out in float64 and tokens come in and out in their own dtype. For each query n let g_n = Σ_l |weight_nl||k_l|,
which bounds the gradient in R(x_n)q_n, and v_n = g_n|q_n|; likewise for each key. Everything is taken block by block. Then
errors are measured in units of

    scores            u · Σ_blocks |q_n||k_l|
    q, k              u · g_n
    positions         u · Σ_{heads, blocks} |B_i| v_n
    base_matrices     Σ_n τ_n v_n,  τ_n = Σ_i |s_i x_ni|  (s = θ for LD, 1 or 0 for AP; LieRE: |x_ni| for each axis)
    axis_scale        |S| · Σ_n |x_ni| v_n
    frequencies       Σ_n |x_ni| v_n
    basis_generator   Σ_n v_n

These are the sums of the absolute values that the gradients are sums of: where terms cancel, what rounding leaves of them does
not. The last four, which add up many tokens, are times eps(float64)·Φ + eps(dtype inside, float32 at least), and to that
comes eps(dtype of the tokens) times the root of the sum of the terms' squares, because tokens are rounded independently. The
eps of a leaf's own dtype is added as well.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

import comrope
from tests import oracle
from tests.helpers import ONE_PARAMETER, orthogonal, planes, scores, trainable

NUM_EXAMPLES = 12
"""Of each test: a few tenths of a second each, nearly all of it in the oracle."""

FAMILIES = {
    "one matrix a block": ONE_PARAMETER,
    "learned basis": ("comrope-mt", "string"),
    "others": ("rope", "rope-mixed", "liere", "none"),
}
PRECISIONS = {
    "float64": (torch.float64,),
    "float32": (torch.float32,),
    "half": (torch.bfloat16, torch.float16),
    "any": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
}
GROUPS = [
    *[pytest.param((name,), p, id=f"{name}-{p}") for name in ONE_PARAMETER for p in ("float64", "float32", "half")],
    *[pytest.param((name,), "any", id=name) for name in ("comrope-mt", "string", "rope-mixed", "liere")],
    pytest.param(("rope", "none"), "any", id="rope or none"),
]
"""Families and precisions that are drawn together."""
ALLOWED = {torch.float64: 30.0, torch.float32: 10.0, torch.bfloat16: 2.0, torch.float16: 2.0}
"""Units of error, by the dtype of the tokens. Half precision is rounded in and out alone, the others at each operation."""

LAYOUTS = ("contiguous", "transposed", "offset", "permuted", "strided", "expanded")
KINDS = ("free", "near", "opposite", "small", "equal", "zero")
SCALES = (0.0, 1.5, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0)
WHERE = ("near", "wide", "ten thousand", "a million", "near a million", "mixed", "grid")
NEAR = ("near", "wide", "grid")

# No shrinking: the examples are small as they are, and it would take minutes.
drawn = settings(
    max_examples=NUM_EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
)


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


# The ways of calling. Each returns the rotated queries and keys, put together.
def _one(pe, q, k, x, y):
    """Queries and keys in one call."""
    return pe(q, k, x, y)


def _queries_alone(pe, q, x):
    return pe(q, torch.zeros_like(q[:, : pe.num_heads]), x)[0]


def _keys_alone(pe, k, x):
    return pe(torch.zeros_like(k), k, x)[1]


def _split(pe, q, k, x, y):
    """Queries from one call and keys from another."""
    return _queries_alone(pe, q, x), _keys_alone(pe, k, x if y is None else y)


def _detached(pe, q, k, x, y):
    """Keys from a call of their own, without a graph, as out of a cache."""
    with torch.no_grad():
        rotated_k = _keys_alone(pe, k, x if y is None else y)
    return _queries_alone(pe, q, x), rotated_k.detach()  # with no encoding it is k itself


def _stopped(pe, q, k, x, y):
    """Queries and keys in one call, and the keys detached afterwards."""
    rotated_q, rotated_k = pe(q, k, x, y)
    return rotated_q, rotated_k.detach()


def _chunked(pe, q, k, x, y):
    """A sequence in up to three chunks, a call each, keys put together for all queries."""
    num_chunks = min(3, q.shape[2], k.shape[2])
    calls = zip(
        q.tensor_split(num_chunks, dim=2),
        k.tensor_split(num_chunks, dim=2),
        x.tensor_split(num_chunks, dim=-2),
        [None] * num_chunks if y is None else y.tensor_split(num_chunks, dim=-2),
        strict=True,
    )
    rotated = [pe(*call) for call in calls]
    return tuple(torch.cat(parts, dim=2) for parts in zip(*rotated, strict=True))


WAYS = {"one": _one, "split": _split, "detached": _detached, "stopped": _stopped, "chunked": _chunked}
KEYS_ARE_CONSTANT = ("detached", "stopped")


def units(case: Case, pe, leaves: dict[str, Tensor], weight: Tensor, detached_keys: bool) -> dict[str, Tensor]:
    """The unit of error of the scores and of each gradient, entry by entry (see the top of the file)."""
    blocks, group = (case.num_blocks, case.block_size), (case.num_heads, case.group)
    q_norms, k_norms = (leaves[n].detach().double().unflatten(3, blocks).norm(dim=-1) for n in ("q", "k"))
    q_norms = q_norms.unflatten(1, group)  # (B, H, g, L, m); k_norms: (B, H, M, m)
    w = weight.abs().unflatten(1, group)  # (B, H, g, L, M)
    in_q = torch.einsum("bhgnl,bhlm->bhgnm", w, k_norms)
    in_k = torch.einsum("bhgnl,bhgnm->bhlm", w, q_norms) * (not detached_keys)

    def of_tokens(power: int) -> dict[str, Tensor]:
        """Σ |weight||q||k| for each row of positions, (B, L, H, m), or the sum of the terms' squares."""
        w_, q_, k_ = w**power, q_norms**power, k_norms**power
        terms = torch.einsum("bhgnl,bhgnm,bhlm->bnlhm", w_, q_, k_)
        queries, keys = terms.sum(2), terms.sum(1) * (not detached_keys)
        if "key_positions" in leaves:
            return {"positions": queries, "key_positions": keys}
        return {"positions": queries + keys}

    speeds = torch.linalg.matrix_norm(oracle.angle_matrices(pe), ord=2)  # (N, H, m)
    v = of_tokens(1)
    places = {name: leaves[name].detach().double().abs() for name in v}
    phases = [torch.einsum("...ln,nhm->...lhm", x, speeds).flatten(0, -3).amax(0) for x in places.values()]
    of_phases = torch.finfo(torch.float64).eps * torch.stack(phases).amax(0)  # (H, m)
    of_tokens_dtype = torch.finfo(case.dtype).eps
    u = of_tokens_dtype + of_phases
    out = {"scores": torch.einsum("hm,bhgnm,bhlm->bhgnl", u, q_norms, k_norms).flatten(1, 2)}
    out["q"] = (u[:, None, None] * in_q).flatten(1, 2).repeat_interleave(case.block_size, dim=-1)
    out["k"] = (u[:, None] * in_k).repeat_interleave(case.block_size, dim=-1)
    for name, x in places.items():
        u_x = u + torch.finfo(case.position_dtype).eps
        unit = torch.einsum("hm,nhm,blhm->bln", u_x, speeds, v[name])
        out[name] = unit if x.ndim == 3 else unit.sum(0)

    def add_up(coefficient: Callable[[Tensor], Tensor]) -> Tensor:
        """Σ_n coefficient(|x_n|) v_n, (..., H, m), in units: for the coefficient (..., B or 1, L, H or 1, m or 1)."""
        total, squares = 0.0, 0.0
        of_squares = of_tokens(2)
        for name, x in places.items():
            c = coefficient(x if x.ndim == 3 else x.unsqueeze(0))
            total = total + (c * v[name]).sum((-4, -3))
            squares = squares + (c**2 * of_squares[name]).sum((-4, -3))
        inside = torch.finfo(torch.promote_types(case.dtype, torch.float32)).eps
        return (inside + torch.finfo(case.parameter_dtype).eps + of_phases) * total + of_tokens_dtype * squares.sqrt()

    along_axis = add_up(lambda x: x.movedim(-1, 0)[..., None, None])  # (N, H, m)
    out["frequencies"] = along_axis[..., None]
    out["basis_generator"] = add_up(lambda x: torch.ones_like(x[..., :1, None]))[..., None, None]
    if case.name == "comrope-ld":
        skew = (pe.base_matrices - pe.base_matrices.mT).detach().double()
        out["axis_scale"] = torch.linalg.matrix_norm(skew, ord=2) * along_axis
        along_axis = add_up(lambda x: torch.einsum("bln,nhm->blhm", x, pe.axis_scale.detach().double().abs()))
    if case.name == "comrope-ap":
        along_axis = add_up(lambda x: x[..., torch.arange(case.num_blocks) % case.num_axes].unsqueeze(-2))
    out["base_matrices"] = along_axis[..., None, None]
    return out


@functools.cache
def expected(case: Case) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scores and gradients from the oracle, and the same with detached keys; once for all ways of calling."""
    pe, leaves = build(case), inputs(case)
    exact = oracle.Oracle(pe, *_arguments(leaves))
    weight = oracle.exact(_weight(case, leaves))
    rotated_scores = {"scores": exact.scores()}
    return tuple(
        {
            name: oracle.rounded(each)
            for name, each in (exact.gradients(weight, detached_keys=d) | rotated_scores).items()
        }
        for d in (False, True)
    )


def _arguments(leaves: dict[str, Tensor]) -> list[Tensor | None]:
    return [leaves.get(name) for name in ("q", "k", "positions", "key_positions")]


def _weight(case: Case, leaves: dict[str, Tensor]) -> Tensor:
    return case.draw(case.batch, leaves["q"].shape[1], leaves["q"].shape[2], leaves["k"].shape[2], seed=40)


def results(case: Case, way: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Scores and the gradient in each leaf by the engine, by the oracle, and their units of error."""
    pe, leaves = build(case), inputs(case)
    weight = _weight(case, leaves)
    rotated = WAYS[way](pe, *_arguments(leaves))
    assert [t.dtype for t in rotated] == [case.dtype, case.dtype]
    ours = scores(*(t.double() for t in rotated))
    leaves |= trainable(pe)
    gradients = torch.autograd.grad((weight * ours).sum(), list(leaves.values()), materialize_grads=True)
    actual = dict(zip(leaves, gradients, strict=True)) | {"scores": ours.detach()}
    constant = way in KEYS_ARE_CONSTANT
    return actual, expected(case)[constant], units(case, pe, leaves, weight, constant)


def errors(case: Case, way: str) -> dict[str, float]:
    """The largest error of the scores and of the gradient in each leaf, in units."""
    actual, exact, unit = results(case, way)
    return {name: _largest(actual[name].double() - exact[name], unit[name]) for name in actual}


def _largest(error: Tensor, unit: Tensor) -> float:
    """The largest |error|/unit. Where the unit is 0 there must be no error at all."""
    ratio = torch.where(error == 0, 0.0, error.abs() / unit)
    return math.inf if ratio.isnan().any() else ratio.max().item()


def _assert_within(allowed: float, found: dict[str, float]) -> None:
    wrong = {name: f"{error:.3g}" for name, error in found.items() if not error <= allowed}
    assert not wrong, f"errors in units, {allowed:g} allowed: {wrong}"


# Every way of calling meets the same cases, because of the seed, and so the oracle works each of them out once.
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("names, precision", GROUPS)
@seed(0)
@drawn
@given(data=st.data())
def test_scores(names, precision, way, data):
    case = data.draw(cases(names, PRECISIONS[precision]))
    _assert_within(ALLOWED[case.dtype], {"scores": errors(case, way)["scores"]})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("names, precision", GROUPS)
@seed(0)
@drawn
@given(data=st.data())
def test_gradients(names, precision, way, data):
    case = data.draw(cases(names, PRECISIONS[precision]))
    _assert_within(ALLOWED[case.dtype], errors(case, way))


def _assert_close(relative: float, case: Case, way: str) -> None:
    """Each error is at most `relative` times the largest entry, and the rounding that terms leave that cancel."""
    actual, exact, unit = results(case, way)
    for name in actual:
        allowed = relative * exact[name].abs().max() + ALLOWED[case.dtype] * unit[name]
        error = (actual[name].double() - exact[name]).abs()
        assert (error <= allowed).all(), f"{name}: error up to {error.max():.2e}, allowed {allowed.max():.2e}"


@pytest.mark.parametrize("names", FAMILIES.values(), ids=FAMILIES)
@drawn
@given(data=st.data())
def test_gradients_of_one_call_near_the_origin(names, data):
    _assert_close(1e-9, data.draw(cases(names, PRECISIONS["float64"], NEAR)), "one")


@pytest.mark.parametrize("way", WAYS)
@seed(0)
@drawn
@given(data=st.data())
def test_nearly_equal_frequencies_far_out(way, data):
    """In float64, at positions up to 10⁴."""
    kinds = ("near", "opposite", "small", "equal", "zero")
    names = FAMILIES["one matrix a block"]
    case = data.draw(cases(names, PRECISIONS["float64"], ("ten thousand",), kinds, (4, 8)))
    _assert_close(1e-6, case, way)


@pytest.mark.parametrize("way", WAYS)
@seed(0)
@drawn
@given(data=st.data())
def test_small_angles_in_half_precision(way, data):
    names = FAMILIES["one matrix a block"]
    case = data.draw(cases(names, PRECISIONS["half"], ("near",), block_sizes=(4,), scales=(-2.0, -1.0, -3.0)))
    _assert_within(ALLOWED[case.dtype], errors(case, way))
