"""The paper's Algorithm 1 by `torch.matrix_exp`: the oracle that the fast engine is held against, and its opponent.

Slow and plain on purpose. Everything here is differentiated by autograd alone, to any order.
"""

import torch
from torch import Tensor

from comrope._values import check_finite, is_dense, is_floating, shape_of
from comrope.errors import InputError

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def rotation_matrices(angle_matrices: Tensor, positions: Tensor) -> Tensor:
    """R(x) = exp(Σ_i x_i A_i) (paper, Eq. 3), block by block.

    Args:
        angle_matrices: B_ij, shape (N, H, m, b, b): axes, heads, blocks, block rows and columns.
        positions: (L, N) or (B, L, N).
    Returns:
        (L, H, m, b, b) or (B, L, H, m, b, b), in the angle matrices' dtype, off by its rounding times the angle.
    Raises:
        InputError: shapes, dtypes or devices that do not fit, or positions that are not finite.
    Examples:
        >>> quarter = torch.tensor([[0.0, -torch.pi / 2], [torch.pi / 2, 0.0]]).view(1, 1, 1, 2, 2)
        >>> rotation_matrices(quarter, torch.ones(1, 1)).round().int().tolist()
        [[[[[0, -1], [1, 0]]]]]
    """
    _check_tensor(angle_matrices, "angle_matrices", bits=32)
    if angle_matrices.ndim != 5 or angle_matrices.shape[-1] != angle_matrices.shape[-2]:
        raise InputError(f"angle_matrices: got {tuple(angle_matrices.shape)}, expected (N, H, m, b, b).")
    real = is_floating(positions) or (is_dense(positions) and positions.dtype in _WHOLE)
    if not real:
        came = positions.dtype if is_dense(positions) else shape_of(positions)
        raise InputError(f"positions: got {came}, expected real numbers in a dense tensor (L, N) or (B, L, N).")
    _check_one_device(positions, angle_matrices, "positions", "the angle matrices")
    if positions.ndim not in (2, 3) or positions.shape[-1] != angle_matrices.shape[0]:
        raise InputError(
            f"positions: got {tuple(positions.shape)}, expected (L, N) or (B, L, N) with N={angle_matrices.shape[0]} axes."
        )
    check_finite(positions, "positions")
    exponent = torch.einsum("...n,nhmcd->...hmcd", positions.to(angle_matrices.dtype), angle_matrices)
    return torch.linalg.matrix_exp(exponent.contiguous())


def rotate(q: Tensor, k: Tensor, angle_matrices: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """R(x)q and R(x)k for each token (paper, Algorithm 1), with one rotation per distinct row of `positions`.

    Args:
        q: (B, H·g, L, D) with D = m·b; g > 1 where query heads share a key head (grouped-query attention).
        k: (B, H, L, D).
        angle_matrices: (N, H, m, b, b).
        positions: (L, N), shared by the batch, or (B, L, N).
    Returns:
        Rotated q and k, same shapes, in the angle matrices' dtype.
    Raises:
        InputError: shapes, dtypes or devices that do not fit, or positions that are not finite.
    Examples:
        >>> import comrope
        >>> pe = comrope.encoding("comrope-ld", num_heads=2, head_dim=16, num_axes=2, dtype=torch.float64)
        >>> x = comrope.positions.grid((3, 3), dtype=torch.float64)
        >>> q, k = torch.randn(2, 1, 2, 9, 16, dtype=torch.float64)
        >>> (fast_q, fast_k), (q, k) = pe(q, k, x), rotate(q, k, pe.angle_matrices(), x)
        >>> torch.allclose(fast_q @ fast_k.mT, q @ k.mT)
        True
    """
    rotation = rotation_matrices(angle_matrices, positions)
    return apply(rotation, q), apply(rotation, k)


def apply(rotation: Tensor, x: Tensor) -> Tensor:
    """R x, block by block.

    Args:
        rotation: dense blocks, (L, H, m, b, b) or (B, L, H, m, b, b).
        x: (B, H·g, L, D), floating-point numbers.
    Returns:
        Same shape as x, in the rotation's dtype.
    Raises:
        InputError: shapes, dtypes or devices that do not fit.
    """
    _check_tensor(rotation, "rotation")
    _check_tensor(x, "x")
    _check_one_device(x, rotation, "x", "the rotations")
    if rotation.ndim not in (5, 6) or rotation.shape[-1] != rotation.shape[-2]:
        raise InputError(f"rotation: got {tuple(rotation.shape)}, expected (L, H, m, b, b) or (B, L, H, m, b, b).")
    length, num_heads, num_blocks, block_size = rotation.shape[-5:-1]
    fits = x.ndim == 4 and x.shape[2:] == (length, num_blocks * block_size) and x.shape[1] % num_heads == 0
    if not fits or (rotation.ndim == 6 and rotation.shape[0] != x.shape[0]):
        raise InputError(
            f"got {tuple(x.shape)} to rotate by {tuple(rotation.shape)}: expected (B, heads, {length}, "
            f"{num_blocks * block_size}) with heads a multiple of {num_heads}."
        )
    batch, heads, length, head_dim = x.shape
    blocks = x.to(rotation.dtype).reshape(batch, num_heads, heads // num_heads, length, num_blocks, block_size)
    if rotation.ndim == 5:
        rotation = rotation.unsqueeze(0)  # shared by the batch
    rotated = torch.einsum("blhmcd,bhglmd->bhglmc", rotation, blocks)
    return rotated.reshape(batch, heads, length, head_dim)


def _check_tensor(x: Tensor, name: str, bits: int = 16) -> None:
    if not is_floating(x) or 8 * x.dtype.itemsize < bits:
        came = f"{x.dtype}, {x.layout}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"{name}: got {came}; expected floating-point numbers of {bits} bits or more in a dense tensor."
        )


def _check_one_device(x: Tensor, other: Tensor, name: str, others_name: str) -> None:
    if x.device != other.device:
        raise InputError(
            f"{name} on {x.device} and {others_name} on {other.device}: expected one device, move one of them."
        )
