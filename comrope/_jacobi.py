"""The planes of a skew-symmetric matrix without asking a question: Jacobi's method, plane by plane (Paardekooper, 1971).

The routines of LAPACK and of its kin on a GPU hand back whether they have converged, and the host waits for the answer.
Here the number of steps is fixed: an accelerator is given its work and is never waited for.

**One step** takes two planes and makes S block-diagonal on the four coordinates they span. A skew-symmetric 4 × 4 matrix M,
with a = (m01, m02, m03) and d = (m23, m31, m12), acts on R⁴, read as the quaternions x, as

    M x = −½ (u x + x w)      with the imaginary quaternions u = a + d, w = a − d: so(4) = so(3) ⊕ so(3).

Its off-diagonal 2 × 2 block (m02, m03, m12, m13) is zero where u and w both lie along i. Turning R⁴ by x ↦ p x q̄, p and q
being unit quaternions, makes p u p̄ of u and q w q̄ of w, each for itself, and

    p ∝ ±|u| − i u = (u₁ ± |u|) + u₃ j − u₂ k      takes u to ±|u| i,

q the same for w. No angle is worked out. With the sign of u₁ nothing cancels, and u turns by a quarter turn at most: the
smallest of the rotations that do it, which is what makes Jacobi's method converge.

**One sweep** takes every two planes once. The planes play a round-robin tournament: in each round all of them meet in
pairs, side by side on the diagonal, and then move up one seat. What is next to the diagonal, e as a share of |S|, shrinks with
every step, and with its square in every sweep at last.

**Equal frequencies** need care, and so do zeros. Where μ_j = ±μ_k a u or w is zero but for what the others leave there, some
e²|S|, and points anywhere: a large turn by it would gain nothing, and undo what earlier steps of the sweep have done. Then
every sweep gains one digit only. So √(|u|² + c²) stands for |u| above, c being 0.1 e² and rounding: far larger vectors are
turned as before but for an error of second order, far smaller ones stay as they are.

**Few operators** are what it costs, ten a step whatever the number of pairs and of matrices, so nothing is carried along that
can be had by a product. Of Qᵀ and of QᵀS only the rows are turned, both at once, by a product with one matrix that turns all
pairs and gives them their next seats. A pair's block of QᵀSQ is a product of four rows with four. To S is added c/2 times the
identity, which no step changes: half the trace of the block, c, then stands where u and w, being imaginary, have no part, and
their norms as quaternions are the √(|u|² + c²) that are wanted.
"""

import math

import torch
from torch import Tensor

# What c is made of, as shares of |S|: of e², and of what rounding leaves.
_SECOND_ORDER = 0.1
_ROUNDING = 1e-15


def num_sweeps(num_planes: int) -> int:
    """How many sweeps leave nothing but rounding, whatever the spectrum: 7 for 4 planes, 13 for 14.

    One plane has nothing to meet, and one step is all for two. For more, ⌈3√h⌉ is enough for the slowest of many matrices,
    those of frequencies over 12 orders of magnitude; one more is to spare.
    """
    return num_planes - 1 if num_planes <= 2 else math.ceil(3 * num_planes**0.5) + 1


def plane_basis(matrix: Tensor) -> Tensor:
    """An orthogonal Q, up to rounding, of which columns 2k and 2k+1 span a plane that `matrix` keeps.

    Planes come in no order, and QᵀSQ = diag(μ_1 J, …, μ_h J) has μ of either sign. NaN and infinity give NaN where there are
    two planes or more.

    Args:
        matrix: S, (..., b, b), b even, skew-symmetric, float64.
    Returns:
        (..., b, b).
    """
    b = matrix.shape[-1]
    if b == 2:
        return torch.eye(2, dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    count, pairs = math.prod(matrix.shape[:-2]), (b // 2 + 1) // 2
    size = 4 * pairs  # an odd number of planes is made even by one of zeros, which turns with no other
    s = matrix.reshape(count, b, b)
    s = _scaled(s, s.abs().amax((-2, -1), keepdim=True))  # whose squares are neither 0 nor infinite
    s = _scaled(s, torch.linalg.matrix_norm(s, keepdim=True))
    s = torch.nn.functional.pad(s, (0, size - b, 0, size - b))
    rows = torch.cat((torch.eye(size, dtype=s.dtype, device=s.device).expand_as(s), s), dim=-1)  # Qᵀ and QᵀS
    looks, turns = _constants(pairs, s)
    plane = torch.arange(size, device=s.device) // 2
    outside = plane.unsqueeze(-1) != plane
    second_order = _SECOND_ORDER / 2 if pairs > 1 else 0.0  # a single pair has no others to undo
    added = 0.0  # times the identity to S
    for _ in range(num_sweeps(b // 2)):
        turned, image = rows.split(size, dim=-1)
        e = torch.linalg.matrix_norm(image.bmm(turned.mT) * outside, keepdim=True)
        care = second_order * e**2 + _ROUNDING / 2
        image.addcmul_(turned, care - added)
        added = care
        for _ in range(2 * pairs - 1):
            turned, image = rows.view(count * pairs, 4, 2 * size).split(size, dim=-1)
            pq = image.bmm(turned.mT).view(count * pairs, 16).mm(looks).view(count * pairs, 2, 4)
            real = pq[..., 2]  # −iu and −iw, up to a factor, become p and q, and c, the last, is left out
            real += torch.copysign(torch.linalg.vector_norm(pq, dim=-1), real)
            pq = pq[..., :3]
            p, q = (pq / torch.linalg.vector_norm(pq, dim=-1, keepdim=True)).unbind(-2)
            products = (p.unsqueeze(-1) * q.unsqueeze(-2)).view(count, 9 * pairs)
            rows = products.mm(turns).view(count, size, size).bmm(rows)
    return rows[:, :b, :b].mT.reshape(matrix.shape)  # after whole sweeps everyone is back in his seat


def _scaled(matrix: Tensor, size: Tensor) -> Tensor:
    return matrix / size.clamp_min(torch.finfo(matrix.dtype).tiny)  # zeros stay zeros


def _constants(pairs: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The two matrices of all steps, made on the device: nothing is carried there.

    Returns:
        (16, 8): from a block M to 2iu and 2iw, up to their signs, in the order j, k, 1, i, with the trace of M for i.
        (9·pairs, size²): from the products p_c q_d of each pair, in the order j, k, 1, to the matrix that turns all pairs by
        x ↦ p x q̄ and gives them their next seats.
    """
    unit = torch.arange(4, device=like.device)  # e₀ = 1, e₁ = i, e₂ = j, e₃ = k: e_c e_d is ± e_(c ^ d)
    sign = _sign(unit.unsqueeze(-1), unit)
    order = unit.roll(-2)
    c, d, row = order.view(4, 1, 1, 1), order.view(4, 1, 1), unit.unsqueeze(-1)
    left = c ^ unit
    signs = sign[c, unit] * sign[left, d] * sign[d, d]  # e_d e_d being 1 or −1 as ē_d is e_d or −e_d
    two_sided = torch.where(row == left ^ d, signs, 0.0).to(like.dtype)  # of x ↦ e_c x ē_d, the matrix
    from_left, from_right = two_sided[:, 2], two_sided[2]
    # M = −½ Σ_c (u_c L_c − w_c R_c), where x ↦ e_c x and x ↦ x ē_c, the L and R, are all orthogonal to one another.
    looks = torch.cat((from_left[3] @ from_left, from_right[3] @ from_right)).view(8, 16).mT
    eye = torch.eye(pairs, dtype=like.dtype, device=like.device)
    turns = torch.einsum("nm,nl,cdrs->ncdmrls", eye, eye, two_sided[:3, :3]).reshape(9 * pairs, 4 * pairs, 4 * pairs)
    return looks, turns.index_select(1, _next_seats(pairs, like.device)).flatten(1)


def _sign(c: Tensor, d: Tensor) -> Tensor:
    """±1, of the product e_c e_d: + for those with 1, and for ij, jk and ki."""
    return torch.where((c * d == 0) | ((d - c) % 3 == 1), 1.0, -1.0)


def _next_seats(pairs: int, device: torch.device) -> Tensor:
    """Where the coordinates of each seat come from, (4·pairs,): the first plane stays, the others move round in a ring."""
    top, bottom = torch.arange(2 * pairs, device=device).view(pairs, 2).unbind(-1)
    ring = torch.cat((top[1:], bottom.flip(0))).roll(1)
    planes = torch.stack((torch.cat((top[:1], ring[: pairs - 1])), ring[pairs - 1 :].flip(0)), dim=-1)
    return (2 * planes.view(-1, 1) + torch.arange(2, device=device)).flatten()
