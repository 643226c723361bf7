"""The planes of a skew-symmetric matrix without asking a question: Jacobi's method, plane by plane (Paardekooper, 1971).

The routines of LAPACK and of its kin on a GPU hand back whether they have converged, and the host waits for the answer.
Here the number of steps is fixed: an accelerator is given its work and is never waited for.

**One step** takes two planes and makes S block-diagonal on the four coordinates they span. A skew-symmetric 4 × 4 matrix M,
with a = (m01, m02, m03) and d = (m23, m31, m12), acts on R⁴, read as the quaternions x, as

    M x = −½ (u x + x w)      with the imaginary quaternions u = a + d, w = a − d: so(4) = so(3) ⊕ so(3).

Its off-diagonal 2 × 2 block (m02, m03, m12, m13) is zero where u and w both lie along i. Turning R⁴ by x ↦ p x q̄, p and q
being unit quaternions, makes p u p̄ of u and q w q̄ of w, each for itself, and

    p ∝ (u₁ ± |u|) + u₃ j − u₂ k      takes u to ±|u| i,

q the same for w. No angle is worked out. With the sign of u₁ nothing cancels, and u turns by a quarter turn at most: the
smallest of the rotations that do it, which is what makes Jacobi's method converge.

**One sweep** takes every two planes once. The planes play a round-robin tournament: in each round all of them meet in
pairs, side by side on the diagonal, and then move up one seat. What is next to the diagonal, e as a share of |S|, shrinks with
every step, and with its square in every sweep at last.

**Equal frequencies** need care, and so do zeros. Where μ_j = ±μ_k a u or w is zero but for what the others leave there, some
e²|S|, and points anywhere: a large turn by it would gain nothing, and undo what earlier steps of the sweep have done. Then
every sweep gains one digit only. So |u| + c stands for |u| above, c being 0.1 e² and rounding: far larger vectors are turned
as before but for an error of second order, far smaller ones stay as they are.
"""

import math

import torch
from torch import Tensor

# What c is made of, as shares of |S|: of e², and of what rounding leaves.
_SECOND_ORDER = 0.1
_ROUNDING = 1e-15


def num_sweeps(num_planes: int) -> int:
    """How many sweeps leave nothing but rounding, whatever the spectrum: 7 for 4 planes, 18 for 32.

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
    pairs = (b // 2 + 1) // 2
    size = 4 * pairs  # an odd number of planes is made even by one of zeros, which turns with no other
    s = _scaled(matrix, matrix.abs().amax((-2, -1), keepdim=True))  # whose squares are neither 0 nor infinite
    s = _scaled(s, torch.linalg.matrix_norm(s, keepdim=True))
    s = torch.nn.functional.pad(s, (0, size - b, 0, size - b))
    rows = torch.eye(size, dtype=s.dtype, device=s.device).expand_as(s)  # Qᵀ
    seats = _next_seats(pairs, s.device)
    plane = torch.arange(size, device=s.device) // 2
    outside = plane.unsqueeze(-1) != plane

    def turned(x: Tensor, turns: Tensor) -> Tensor:
        """The rows of x (..., 4·pairs, n), four by four, by (..., pairs, 4, 4), and in their next seats."""
        return (turns @ x.unflatten(-2, (pairs, 4))).flatten(-3, -2).index_select(-2, seats)

    for _ in range(num_sweeps(b // 2)):
        e = torch.linalg.matrix_norm(s * outside)
        care = _ROUNDING + (_SECOND_ORDER * e**2 if pairs > 1 else 0 * e)  # a single pair has no others to undo
        for _ in range(2 * pairs - 1):
            four = s.unflatten(-1, (pairs, 4)).unflatten(-3, (pairs, 4)).diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
            turns = _turns(four, care[..., None, None])
            half, rows = turned(torch.cat((s, rows), dim=-1), turns).chunk(2, dim=-1)
            s = turned(half.mT, turns).mT
    return rows[..., :b, :b].mT  # after whole sweeps everyone is back in his seat


def _scaled(matrix: Tensor, size: Tensor) -> Tensor:
    return matrix / size.clamp_min(torch.finfo(matrix.dtype).tiny)  # zeros stay zeros


def _turns(four: Tensor, care: Tensor) -> Tensor:
    """x ↦ p x q̄ as a matrix T for each M (..., 4, 4): T M Tᵀ is block-diagonal as far as M is larger than `care`."""
    a = four[..., 0, 1:]
    d = torch.stack((four[..., 2, 3], four[..., 3, 1], four[..., 1, 2]), dim=-1)
    both = torch.stack((a + d, a - d), dim=-2)  # u and w, (..., 2, 3)
    first, second, third = both.unbind(-1)
    size = torch.linalg.vector_norm(both, dim=-1) + care
    pq = torch.stack((first + torch.copysign(size, first), third, -second), dim=-1)  # without i, of which there is none
    pq = pq / torch.linalg.vector_norm(pq, dim=-1, keepdim=True)
    p, pj, pk, q, qj, qk = pq.flatten(-2).unbind(-1)
    _, mj, mk, _, nj, nk = pq.neg().flatten(-2).unbind(-1)
    zero = torch.zeros_like(p)
    left = (p, zero, mj, mk, zero, p, mk, pj, pj, pk, p, zero, pk, mj, zero, p)  # x ↦ p x, row by row
    right = (q, zero, qj, qk, zero, q, nk, qj, nj, qk, q, zero, nk, nj, zero, q)  # x ↦ x q̄
    return torch.stack(left, dim=-1).unflatten(-1, (4, 4)) @ torch.stack(right, dim=-1).unflatten(-1, (4, 4))


def _next_seats(pairs: int, device: torch.device) -> Tensor:
    """Where the coordinates of each seat come from, (4·pairs,): the first plane stays, the others move round in a ring."""
    top, bottom = torch.arange(2 * pairs, device=device).view(pairs, 2).unbind(-1)
    ring = torch.cat((top[1:], bottom.flip(0))).roll(1)
    planes = torch.stack((torch.cat((top[:1], ring[: pairs - 1])), ring[pairs - 1 :].flip(0)), dim=-1)
    return (2 * planes.view(-1, 1) + torch.arange(2, device=device)).flatten()
