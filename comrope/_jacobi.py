"""Invariant planes of a skew-symmetric matrix in a fixed number of operators: Jacobi's method on planes (Paardekooper, 1971).

LAPACK and its GPU counterparts report whether they have converged, and the host waits for that report. Here the number of
steps is fixed, so the host queues all the work and never waits for the accelerator.

**One step** takes two planes and makes S block-diagonal on the four coordinates they span. A skew-symmetric 4 × 4 matrix M,
with a = (m01, m02, m03) and d = (m23, m31, m12), acts on R⁴, whose vectors are read as quaternions x, by

    M x = −½ (u x + x w)      with the imaginary quaternions u = a + d, w = a − d: so(4) = so(3) ⊕ so(3).

Its off-diagonal 2 × 2 block (m02, m03, m12, m13) is zero if u and w are both multiples of i. The rotation x ↦ p x q̄ of R⁴,
where p and q are unit quaternions, maps u to p u p̄ and w to q w q̄, independently, and

    p ∝ ±|u| − i u = (u₁ ± |u|) + u₃ j − u₂ k      maps u to ±|u| i.

q is obtained from w in the same way. No angle is computed. If ± is the sign of u₁, nothing cancels, and u is rotated by 90° at
most. This is the smallest rotation that makes M block-diagonal, which Jacobi's method needs to converge.

**One sweep** pairs every two planes once, as a round-robin tournament: in each round all planes form pairs, which are 4 × 4
blocks on the diagonal, and then move on by one position. Let e be the norm outside the planes' own 2 × 2 blocks, as a share of
|S|. It shrinks in every step, and in the end each sweep squares it.

**Equal frequencies**, zeros included, need care. If μ_j = ±μ_k, then u or w is zero but for an error of about e²|S| that the
other planes cause, and its direction is arbitrary. A large rotation by it would gain nothing and undo earlier steps of the
sweep, so that each sweep would gain one digit only. So |u| above is replaced by √(|u|² + c²), where c is 0.1 e² plus rounding.
That changes the rotation of far larger vectors to second order only, and leaves far smaller ones almost unrotated.

**The cost is the number of operators**, ten per step for any number of pairs and matrices, so nothing is stored that one
product can compute. Only the rows of Qᵀ and of QᵀS are updated, both by one product with a matrix that rotates all pairs and
reorders the planes. A pair's block of QᵀSQ is the product of four rows with four rows. c/2 times the identity is added to S,
which no step changes. Half the trace of the block is then c; u and w, being imaginary, do not use the trace, and their norms
as quaternions become the √(|u|² + c²) above.
"""

import math

import torch
from torch import Tensor

# c / |S| is _SECOND_ORDER · e² + _ROUNDING.
_SECOND_ORDER = 0.1
_ROUNDING = 1e-15


def num_sweeps(num_planes: int) -> int:
    """Returns the number of sweeps after which only rounding is left, for any spectrum: 7 for 4 planes, 13 for 14.

    One plane needs no step, and two planes need a single one. For h ≥ 3, ⌈3√h⌉ sweeps were enough for every matrix tested, the
    slowest being those with frequencies over 12 orders of magnitude. One sweep is added for safety.
    """
    return num_planes - 1 if num_planes <= 2 else math.ceil(3 * num_planes**0.5) + 1


def plane_basis(matrix: Tensor) -> Tensor:
    """Returns Q, orthogonal up to rounding, of which columns 2k and 2k+1 span an invariant plane of `matrix`.

    QᵀSQ = diag(μ_1 J, …, μ_h J), where the μ are unordered and have either sign. NaN and infinity give NaN if there are two
    planes or more.

    Args:
        matrix: S, (..., b, b), b even, skew-symmetric, float64.
    Returns:
        (..., b, b).
    """
    b = matrix.shape[-1]
    if b == 2:
        return torch.eye(2, dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
    count, num_pairs = math.prod(matrix.shape[:-2]), (b // 2 + 1) // 2
    size = 4 * num_pairs  # an odd number of planes is padded with a plane of zeros, which is never rotated
    s = matrix.reshape(count, b, b)
    s = _divide(s, s.abs().amax((-2, -1), keepdim=True))  # so that squares neither underflow nor overflow
    s = _divide(s, torch.linalg.matrix_norm(s, keepdim=True))
    s = torch.nn.functional.pad(s, (0, size - b, 0, size - b))
    rows = torch.cat((torch.eye(size, dtype=s.dtype, device=s.device).expand_as(s), s), dim=-1)  # Qᵀ and QᵀS
    to_quaternions, to_rotation = _step_matrices(num_pairs, s)
    plane = torch.arange(size, device=s.device) // 2
    off_planes = plane.unsqueeze(-1) != plane
    second_order = _SECOND_ORDER / 2 if num_pairs > 1 else 0.0  # a single pair has no other planes to disturb
    shift = 0.0  # the multiple of the identity in S
    for _ in range(num_sweeps(b // 2)):
        qt, qt_s = rows.split(size, dim=-1)
        e = torch.linalg.matrix_norm(qt_s.bmm(qt.mT) * off_planes, keepdim=True)
        new_shift = second_order * e**2 + _ROUNDING / 2  # c/2
        qt_s.addcmul_(qt, new_shift - shift)
        shift = new_shift
        for _ in range(2 * num_pairs - 1):
            qt, qt_s = rows.view(count * num_pairs, 4, 2 * size).split(size, dim=-1)
            pq = qt_s.bmm(qt.mT).view(count * num_pairs, 16).mm(to_quaternions).view(count * num_pairs, 2, 4)
            real = pq[..., 2]  # −iu and −iw, up to a factor, become p and q; the last component, c, is dropped
            real += torch.copysign(torch.linalg.vector_norm(pq, dim=-1), real)
            pq = pq[..., :3]
            p, q = (pq / torch.linalg.vector_norm(pq, dim=-1, keepdim=True)).unbind(-2)
            products = (p.unsqueeze(-1) * q.unsqueeze(-2)).view(count, 9 * num_pairs)
            rows = products.mm(to_rotation).view(count, size, size).bmm(rows)
    return rows[:, :b, :b].mT.reshape(matrix.shape)  # each whole sweep restores the order of the planes


def _divide(matrix: Tensor, size: Tensor) -> Tensor:
    """Returns matrix / size, with zeros for a matrix of zeros."""
    return matrix / size.clamp_min(torch.finfo(matrix.dtype).tiny)


def _step_matrices(num_pairs: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the two constant matrices that every step multiplies by. They are made on the device, so nothing is copied to it.

    Returns:
        (16, 8): maps a block M to 2iu and 2iw, up to their signs, with components in the order j, k, 1, i and the trace of M
        in place of i.
        (9·num_pairs, size²): maps the products p_c q_d of all pairs, in the order j, k, 1, to the matrix that rotates each pair
        by x ↦ p x q̄ and then reorders the planes for the next round.
    """
    unit = torch.arange(4, device=like.device)  # e₀ = 1, e₁ = i, e₂ = j, e₃ = k: e_c e_d is ± e_(c ^ d)
    sign = _product_sign(unit.unsqueeze(-1), unit)
    order = unit.roll(-2)
    c, d, row = order.view(4, 1, 1, 1), order.view(4, 1, 1), unit.unsqueeze(-1)
    left = c ^ unit
    signs = sign[c, unit] * sign[left, d] * sign[d, d]  # ē_d = e_d · (e_d e_d), where e_d e_d is 1 or −1
    two_sided = torch.where(row == left ^ d, signs, 0.0).to(like.dtype)  # the matrices of x ↦ e_c x ē_d
    from_left, from_right = two_sided[:, 2], two_sided[2]
    # M = −½ Σ_c (u_c L_c − w_c R_c), where L_c: x ↦ e_c x and R_c: x ↦ x ē_c are all orthogonal to one another.
    to_quaternions = torch.cat((from_left[3] @ from_left, from_right[3] @ from_right)).view(8, 16).mT
    eye = torch.eye(num_pairs, dtype=like.dtype, device=like.device)
    rotations = torch.einsum("nm,nl,cdrs->ncdmrls", eye, eye, two_sided[:3, :3])
    rotations = rotations.reshape(9 * num_pairs, 4 * num_pairs, 4 * num_pairs)
    return to_quaternions, rotations.index_select(1, _round_robin(num_pairs, like.device)).flatten(1)


def _product_sign(c: Tensor, d: Tensor) -> Tensor:
    """Returns the sign ±1 of the product e_c e_d: + for products with 1, and for ij, jk and ki."""
    return torch.where((c * d == 0) | ((d - c) % 3 == 1), 1.0, -1.0)


def _round_robin(num_pairs: int, device: torch.device) -> Tensor:
    """Returns the order of coordinates for the next round, (4·num_pairs,): the first plane stays, the others move in a ring."""
    top, bottom = torch.arange(2 * num_pairs, device=device).view(num_pairs, 2).unbind(-1)
    ring = torch.cat((top[1:], bottom.flip(0))).roll(1)
    planes = torch.stack((torch.cat((top[:1], ring[: num_pairs - 1])), ring[num_pairs - 1 :].flip(0)), dim=-1)
    return (2 * planes.view(-1, 1) + torch.arange(2, device=device)).flatten()
