"""`check` measures whether angle matrices commute and the RoPE equation holds, on every encoding in a model."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from comrope._values import is_whole
from comrope.encodings import Encoding, TokenEncoding
from comrope.errors import InputError

MAX_POSITIONS = 2**12
"""For more, the scores of all pairs would take too much memory."""


@dataclass(frozen=True)
class Check:
    """The errors that `check` measured on one encoding, in float64. They are about 1e-14 if a law holds.

    All are NaN, which holds nothing, for a `TokenEncoding`: the laws are about rotations by positions alone.
    """

    name: str
    """The encoding's path in the model, and its class."""
    commutator: float
    """max ‖A_iA_j − A_jA_i‖ / (‖A_i‖‖A_j‖) over axes, heads and blocks (Frobenius): Theorem 1. A_i is ∂R/∂x_i at the origin."""
    equation: float
    """max |R(x)ᵀR(y) − R(y − x)| over pairs of positions: the RoPE equation (Def. 4)."""
    offset_drift: float
    """max change of an attention score, of unit queries and keys, when all positions move by a standard normal offset."""

    @property
    def applies(self) -> bool:
        """False for an encoding that depends on the tokens."""
        return not math.isnan(self.equation)

    @property
    def holds(self) -> bool:
        """True if all three are rounding errors."""
        return all(measured < 1e-9 for measured in (self.commutator, self.equation, self.offset_drift))  # False for NaN


class Report(tuple[Check, ...]):
    """The checks of all encodings in a model. Its repr is a table."""

    @property
    def holds(self) -> bool:
        """True if every check holds."""
        return all(check.holds for check in self)

    def __repr__(self) -> str:
        width = max(len(check.name) for check in self)
        lines = [f"{'encoding':<{width}}  commutator  RoPE equation  offset drift  holds"]
        for c in self:
            figures = f"{c.commutator:>10.1e}  {c.equation:>13.1e}  {c.offset_drift:>12.1e}"
            verdict = ("yes" if c.holds else "NO") if c.applies else "depends on the tokens"
            lines.append(f"{c.name:<{width}}  {figures}  {verdict}")
        return "\n".join(lines)


@torch.no_grad()
def check(module: nn.Module, *, num_positions: int = 32, seed: int = 0) -> Report:
    """Returns how far each encoding in `module` is from the laws: commuting angle matrices and the RoPE equation.

    Everything is computed in float64, scores by the encoding's own forward.

    Args:
        module: an `Encoding`, or any module that contains some.
        num_positions: the number of random positions. They are standard normal, and scaled down if the angle matrices are so
            large that a unit of position is many full rotations.
        seed: of the positions, queries and keys. The global generator is not used.
    Returns:
        One `Check` per encoding.
    Raises:
        InputError: `module` contains no rotary encoding, or one on the meta device.
    Examples:
        >>> import comrope
        >>> comrope.check(comrope.encoding("liere", num_heads=2, head_dim=16, num_axes=2)).holds
        False
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"module={type(module).__name__}: expected an encoding, or a model with some in it.")
    if not is_whole(num_positions, 1, MAX_POSITIONS):
        raise InputError(f"num_positions={num_positions!r}: expected a whole number, 1 to {MAX_POSITIONS}.")
    if not is_whole(seed, 0, 2**63 - 1):
        raise InputError(f"seed={seed!r}: expected a whole number, 0 or more, of 63 bits.")
    encodings = [(name, m) for name, m in module.named_modules() if isinstance(m, Encoding)]
    if not encodings:
        raise InputError(f"{type(module).__name__} holds no rotary encoding: attach one, or pass the encoding itself.")
    without_values = [name or type(m).__name__ for name, m in encodings if m.device.type == "meta"]
    if without_values:
        raise InputError(
            f"{without_values[0]} is on the meta device, where it has no values: load or draw its weights first."
        )
    return Report(
        _check(f"{name} {type(m).__name__}".strip(), m, int(num_positions), int(seed)) for name, m in encodings
    )


def _check(name: str, encoding: Encoding, num_positions: int, seed: int) -> Check:
    device = encoding.device
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    if isinstance(encoding, TokenEncoding):
        return Check(name, *[math.nan] * 3)
    encoding = copy.deepcopy(encoding).double()
    angles = encoding.angle_matrices()  # (N, H, m, b, b)
    # Rounding grows with the phases: scale positions down so that no phase is much larger than 30.
    unit = 30 / max(30.0, torch.linalg.matrix_norm(angles).max().item())
    x, y = unit * draw(2, num_positions, encoding.num_axes)
    rx, ry, rxy = (encoding.rotation_matrices(p) for p in (x, y, y - x))
    q, k = nn.functional.normalize(draw(2, 1, encoding.num_heads, num_positions, encoding.head_dim), dim=-1)
    offset = unit * draw(1, encoding.num_axes)
    return Check(
        name=name,
        commutator=commutators(angles).max().item(),
        equation=(rx.mT @ ry - rxy).abs().max().item(),
        offset_drift=offset_drifts(encoding, q, k, x, offset).max().item(),
    )


def offset_drifts(encoding: Encoding, q: Tensor, k: Tensor, positions: Tensor, offset: Tensor) -> Tensor:
    """Returns max |⟨R(x+o)q, R(y+o)k⟩ − ⟨R(x)q, R(y)k⟩| over the tokens, (H,), for one offset o (1, N) of all positions."""
    return (_scores(encoding, q, k, positions + offset) - _scores(encoding, q, k, positions)).abs().amax((0, 2, 3))


def _scores(encoding: Encoding, q: Tensor, k: Tensor, positions: Tensor) -> Tensor:
    q, k = encoding(q, k, positions)
    return q @ k.mT


def commutators(angles: Tensor) -> Tensor:
    """Returns max ‖[A_i, A_j]‖ / (‖A_i‖‖A_j‖) over pairs of axes and blocks, (H,), counting 0 where a matrix is zero."""
    first, second = angles.unsqueeze(0), angles.unsqueeze(1)  # (1, N, H, m, b, b), (N, 1, H, m, b, b)
    bracket = torch.linalg.matrix_norm(first @ second - second @ first)
    size = torch.linalg.matrix_norm(first) * torch.linalg.matrix_norm(second)
    return torch.where(size == 0, torch.zeros_like(size), bracket / size).amax((0, 1, 3))
