"""Results of the engine beside the oracle's, and the units in which they may differ.

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

import torch
from torch import Tensor

from tests import oracle
from tests.helpers import scores, trainable
from tests.properties.cases import Case, arguments, build, inputs, loss_weight
from tests.properties.ways import KEYS_ARE_CONSTANT, WAYS


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


_exact = functools.cache(lambda case: oracle.Oracle(build(case), *arguments(inputs(case))))


@functools.cache
def expected(case: Case, detached_keys: bool) -> dict[str, Tensor]:
    """Scores and gradients from the oracle, once for all ways of calling."""
    exact, weight = _exact(case), oracle.exact(loss_weight(case, inputs(case)))
    found = exact.gradients(weight, detached_keys=detached_keys) | {"scores": exact.scores()}
    return {name: oracle.rounded(each) for name, each in found.items()}


def results(case: Case, way: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Scores and the gradient in each leaf by the engine, by the oracle, and their units of error."""
    pe, leaves = build(case), inputs(case)
    weight = loss_weight(case, leaves)
    rotated = WAYS[way](pe, *arguments(leaves))
    assert [t.dtype for t in rotated] == [case.dtype, case.dtype]
    ours = scores(*(t.double() for t in rotated))
    leaves |= trainable(pe)
    gradients = torch.autograd.grad((weight * ours).sum(), list(leaves.values()), materialize_grads=True)
    actual = dict(zip(leaves, gradients, strict=True)) | {"scores": ours.detach()}
    constant = way in KEYS_ARE_CONSTANT
    return actual, expected(case, constant), units(case, pe, leaves, weight, constant)


def errors(case: Case, way: str) -> dict[str, float]:
    """The largest error of the scores and of the gradient in each leaf, in units."""
    actual, exact, unit = results(case, way)
    return {name: _largest(actual[name].double() - exact[name], unit[name]) for name in actual}


def _largest(error: Tensor, unit: Tensor) -> float:
    """The largest |error|/unit. Where the unit is 0 there must be no error at all."""
    ratio = torch.where(error == 0, 0.0, error.abs() / unit)
    return math.inf if ratio.isnan().any() else ratio.max().item()
