"""Where tokens are: tensors of shape (L, N), one row a token, one column an axis, or (B, L, N), one set a sample.

Axes come in the order of the array's dimensions: (row, column) for images, (frame, row, column) for video. Positions
are float32 unless asked otherwise, and plain tensors: nothing here keeps state.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from comrope._values import FARTHEST, MOST, check_finite, is_dense, is_number, is_whole, shape_of
from comrope.errors import InputError


def grid(
    shape: Sequence[int],
    *,
    relative: bool = True,
    centre: bool = True,
    extents: Sequence[float] | None = None,
    num_prefix_tokens: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Positions of the patches of a canvas, in any number of axes: x_i = (index_i + ½) / X_i.

    Args:
        shape: patches along each axis, such as (14, 14) for an image or (8, 14, 14) for a clip. Its shape decides, never
            its count: (7, 28) and (14, 14) are different grids.
        relative: divide by the extents X, so that the canvas is [0, 1]ᴺ whatever its patch count (the paper's
            relative scaling); if False, positions are in patches.
        centre: put a patch at its centre, index + ½; if False at its first corner, index.
        extents: X_i in patches, where it is not the axis's own count. extents=(14, 14) for a (7, 14) grid keeps the
            patches square on the canvas.
        num_prefix_tokens: tokens before the patches (class, register): they sit in the middle of the patches, which on a
            canvas of the grid's own extents is ½ on every axis.
        dtype: float32 or float64.
        device: where the result lives.
    Returns:
        (num_prefix_tokens + Π shape, N), the patches in row-major order.
    Raises:
        InputError: a shape or extent that is empty or not positive, extents that do not match the axes or are given
            although relative=False, and any other argument that is none.

    Examples:
        >>> grid((2, 2)).tolist()
        [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    """
    counts = _counts(shape)
    _check_dtype(dtype)
    _check_flags(relative=relative, centre=centre)
    if extents is not None and not relative:
        raise InputError(
            "extents= was given with relative=False, where nothing is divided by it: leave one of them out."
        )
    given = None if extents is None else list(extents) if isinstance(extents, Sequence) else [extents]
    if given is not None and (len(given) != len(counts) or not all(is_number(e, 1 / FARTHEST) for e in given)):
        raise InputError(
            f"extents={extents!r}: expected {len(counts)} positive numbers, one for each axis of shape={counts}, from "
            f"{1 / FARTHEST:g} to {FARTHEST:g}."
        )
    _check_prefix(num_prefix_tokens)
    scale = [1.0] * len(counts) if not relative else counts if given is None else [float(e) for e in given]
    shift = 0.5 if centre else 0.0
    float64 = {"dtype": torch.float64, "device": device}
    axes = [(torch.arange(n, **float64) + shift) / s for n, s in zip(counts, scale, strict=True)]
    patches = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)  # (Π shape, N)
    middle = torch.stack([torch.full((), n / s / 2, **float64) for n, s in zip(counts, scale, strict=True)])
    return torch.cat((middle.expand(num_prefix_tokens, -1), patches)).to(dtype)


def sequence(
    length: int, *, start: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """Positions start, start + 1, … of a token sequence, shape (length, 1), in tokens; exact up to 2²⁴ in float32.

    Args:
        length: the number of tokens, 1 or more.
        start: the position of the first one.
        dtype: float32 or float64.
        device: where the result lives.
    Returns:
        (length, 1).
    Raises:
        InputError: a number that is none of these, or positions that float32 cannot tell apart.
    Examples:
        >>> sequence(3, start=5).tolist()
        [[5.0], [6.0], [7.0]]
    """
    if not is_whole(length, 1):
        raise InputError(f"length={length!r}: expected a whole number of tokens, 1 or more, as many as memory holds.")
    last = int(FARTHEST)
    if not is_whole(start, -last, last - length):
        raise InputError(
            f"start={start!r}: expected a whole number, from which on all positions are below {FARTHEST:g}."
        )
    _check_dtype(dtype)
    if dtype == torch.float32 and max(abs(start), abs(start + length - 1)) > 2**24:
        raise InputError(
            f"float32 cannot tell neighbours apart at position {start + length - 1}: pass dtype=torch.float64."
        )
    positions = torch.arange(start, start + int(length), dtype=torch.float64, device=device)
    return positions.unsqueeze(-1).to(dtype)


def perturb(
    positions: Tensor,
    patch_size: Sequence[float] | Tensor,
    intensity: float,
    *,
    axes: Sequence[bool] | None = None,
    num_prefix_tokens: int = 0,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Coordinate perturbation (paper, Eq. 11): each patch moves by a Gaussian step that ends inside its own patch.

    x̂_i = x_i + ε_i p_i, ε_i ~ N(0, σ²) truncated to [−½, ½], p the patch size and σ the intensity. For training only.

    Args:
        positions: (L, N) or (B, L, N), patch centres.
        patch_size: the patch's extent on each axis, in the unit of the positions: 1/shape for relative ones.
        intensity: σ ≥ 0, in patches. 0 returns the positions unchanged; the paper trains with 0 and 1.
        axes: which axes move; all by default. (False, True, True) holds the frames of a video still, as the paper does.
        num_prefix_tokens: leading tokens that have no patch and stay where they are.
        batch_size: draw anew for each of so many samples, giving (B, L, N); None draws once for the whole batch, which
            keeps (L, N) and lets the rotation be shared.
        generator: source of randomness, on the positions' device; torch's own by default.
    Returns:
        The moved positions, (L, N) or (B, L, N).
    Raises:
        InputError: positions, sizes or an intensity that do not fit; the message names the argument.
    Examples:
        >>> moved = perturb(grid((2, 2)), patch_size=(0.5, 0.5), intensity=1.0) - grid((2, 2))
        >>> bool((moved.abs() <= 0.25).all())
        True
    """
    _check_positions(positions)
    num_axes = positions.shape[-1]
    _check_intensity(intensity, "in patches")
    sizes = _listed(patch_size)
    if not isinstance(sizes, Sequence) or len(sizes) != num_axes or not all(is_number(s) and s > 0 for s in sizes):
        raise InputError(
            f"patch_size={patch_size!r}: expected {num_axes} positive numbers, one an axis of the positions, up to "
            f"{FARTHEST:g}."
        )
    moves = [True] * num_axes if axes is None else axes
    if not isinstance(moves, Sequence) or len(moves) != num_axes or not all(isinstance(move, bool) for move in moves):
        raise InputError(
            f"axes={axes!r}: expected {num_axes} truth values, True or False, one an axis of the positions."
        )
    _check_prefix(num_prefix_tokens, positions.shape[-2])
    _check_generator(generator)
    positions = _per_sample(positions, batch_size)
    if intensity == 0:
        return positions
    # Inverse transform sampling of the truncated normal: u uniform between Φ(−½/σ) and Φ(½/σ), ε = σ Φ⁻¹(u).
    bound = math.erf(0.5 / intensity / math.sqrt(2))
    uniform = torch.rand(positions.shape, generator=generator, dtype=torch.float64, device=positions.device)
    step = intensity * math.sqrt(2) * torch.erfinv((2 * uniform - 1) * bound)
    reach = [torch.full_like(step[..., 0], s if move else 0.0) for s, move in zip(sizes, moves, strict=True)]
    step = (step.clamp(-0.5, 0.5) * torch.stack(reach, dim=-1)).to(positions.dtype)
    step[..., :num_prefix_tokens, :] = 0
    return positions + step


def offset(
    positions: Tensor, intensity: float, *, batch_size: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Coordinate offset (paper, Eq. 12): one random shift N(0, ρ²I) for all tokens of an image, prefix tokens too.

    Args:
        positions: (L, N) or (B, L, N), in any unit.
        intensity: ρ ≥ 0, in the unit of the positions. 0 returns the positions unchanged.
        batch_size: one shift for each of so many samples, giving (B, L, N); None shifts an (L, N) input once.
        generator: source of randomness, on the positions' device; torch's own by default.
    Returns:
        The shifted positions, (L, N) or (B, L, N).
    Raises:
        InputError: positions or an intensity that do not fit; the message names the argument.
    Examples:
        >>> shift = offset(grid((2, 2)), intensity=1.0) - grid((2, 2))
        >>> torch.allclose(shift, shift[:1], atol=1e-6)
        True
    """
    _check_positions(positions)
    _check_intensity(intensity, "in units of the positions")
    _check_generator(generator)
    positions = _per_sample(positions, batch_size)
    if intensity == 0:
        return positions
    shape = (*positions.shape[:-2], 1, positions.shape[-1])
    shift = torch.randn(shape, generator=generator, dtype=torch.float64, device=positions.device)
    return positions + (float(intensity) * shift).to(positions.dtype)


def _counts(shape: Sequence[int]) -> list[int]:
    counts = list(shape) if isinstance(shape, Sequence) else [shape]
    known = [n for n in counts if not isinstance(n, torch.SymInt)]  # a graph exported for any image has symbolic sizes
    if not counts or not all(is_whole(n, 1) for n in known) or math.prod(known) > MOST:
        raise InputError(
            f"shape={shape!r}: expected a sequence of positive whole numbers, patches along each axis, e.g. (14, 14), as many "
            "as memory holds."
        )
    return [n if isinstance(n, torch.SymInt) else int(n) for n in counts]


def _listed(numbers: Any) -> Any:
    """The numbers of a tensor, where it has any that can be looked at; anything else as it is."""
    return numbers.tolist() if is_dense(numbers) and not numbers.is_meta else numbers


def _check_flags(**flags: bool) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise InputError(f"{name}={value!r}: expected True or False.")


def _check_prefix(num_prefix_tokens: int, num_tokens: float = math.inf) -> None:
    if not is_whole(num_prefix_tokens):
        raise InputError(
            f"num_prefix_tokens={num_prefix_tokens!r}: expected a whole number, 0 or more, of the tokens before the patches."
        )
    if num_prefix_tokens > num_tokens:
        raise InputError(
            f"num_prefix_tokens={num_prefix_tokens}, but there are only {num_tokens} tokens: expected at most as many."
        )


def _check_intensity(intensity: float, unit: str) -> None:
    if not is_number(intensity):
        raise InputError(f"intensity={intensity!r}: expected a finite number, 0 or more ({unit}), up to {FARTHEST:g}.")


def _check_generator(generator: torch.Generator | None) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError(f"generator={generator!r}: expected a torch.Generator, or None for torch's own.")


def _check_dtype(dtype: torch.dtype) -> None:
    if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"dtype={dtype}: positions need float32 or float64; lower precision merges neighbouring tokens."
        )


def _check_positions(positions: Tensor) -> None:
    if not is_dense(positions) or positions.ndim not in (2, 3):
        raise InputError(
            f"positions: got {shape_of(positions)}, expected a tensor (L, N) or (B, L, N), neither sparse nor nested, as "
            "comrope.positions.grid makes."
        )
    _check_dtype(positions.dtype)
    check_finite(positions, "positions")


def _per_sample(positions: Tensor, batch_size: int | None) -> Tensor:
    if batch_size is None:
        return positions
    if not is_whole(batch_size):
        raise InputError(f"batch_size={batch_size!r}: expected a whole number of samples, or None to share the draw.")
    if positions.ndim == 3 and positions.shape[0] != batch_size:
        raise InputError(
            f"batch_size={batch_size}, but the positions are already for {positions.shape[0]} samples: expected the same, or "
            "None."
        )
    return positions.expand(batch_size, -1, -1) if positions.ndim == 2 else positions
