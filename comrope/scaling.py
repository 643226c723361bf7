"""Frequencies for images, videos and texts larger than trained: linear, NTK, YaRN, RIFLEx, for every plane and axis by itself.

A plane rotates at ω_i radians per unit of position along axis i. Neighbouring tokens are u_i apart: 1 where positions are
indices, 1/n_i where they are relative, on a canvas of n_i tokens. So its speed along the axis is ν_i = |ω_i|·u_i radians per
token. To read s_i times as many tokens along the axis as in training, a method multiplies each speed by a factor
ρ(ν_i; s_i, n_i) ≤ 1. The tokens are then u'_i apart, and

    ω'_i = ω_i · ρ(ν_i; s_i, n_i) · u_i / u'_i.

Indices have u = u', so that ρ = 1 leaves them as they are: more tokens are further rotation. Relative positions have
u / u' = s, so that ρ = 1/s leaves them as they are: they interpolate by themselves.

A plane that rotates with several axes at once, as learned ones do, has a speed along each. Each component is scaled by its own
speed, as vanilla RoPE's plane of that speed on that axis would be; along an axis of unchanged size nothing changes. For the
frequencies of vanilla RoPE on one axis, the methods are those of the same names in transformers; for axial RoPE on two,
FiTv2's (arXiv:2410.13925).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from comrope._values import FARTHEST, is_number, is_whole, shape_of
from comrope.errors import ConfigurationError, InputError

METHODS = ("extrapolate", "linear", "ntk", "ntk-by-parts", "yarn", "riflex", "entropy")
"""The methods, in the order of the guide."""
UNITS = ("relative", "index")


def ntk(speeds: Tensor, factor: float, *, span: tuple[float, float] | None = None) -> Tensor:
    """Returns ρ = s⁻ᵗ, t from 0 for the fastest planes to 1 for the slowest: NTK-aware scaling (arXiv:2309.00071, section 3.1).

    Vanilla RoPE's base becomes base·s^(d/(d−2)), which slows plane j = 0 … d/2 − 1 by s^(2j/(d−2)). As its speeds fall
    geometrically, t = ln(ν_max/ν) / ln(ν_max/ν_min), which is defined for any speed.

    Args:
        speeds: ν, of any shape, in radians per token.
        factor: s, the size to be read over the trained size; less than 1 counts as 1.
        span: (ν_min, ν_max); t is clamped to [0, 1] beyond. None takes the slowest and the fastest of `speeds` that are not 0.
    """
    span = span or _span(speeds)
    if span is None:
        return torch.ones_like(speeds)
    slowest, fastest = span
    if slowest == fastest:
        share = (speeds < fastest).to(speeds.dtype)
    else:
        share = ((math.log(fastest) - speeds.log()) / math.log(fastest / slowest)).clamp(0, 1)
    return max(factor, 1.0) ** -share


def by_parts(speeds: Tensor, factor: float, *, length: float, fast: float = 32, slow: float = 1) -> Tensor:
    """Returns ρ of YaRN's "NTK-by-parts" (arXiv:2309.00071, section 3.2): 1 for fast planes, 1/s for slow ones.

    A plane makes r = n·ν/2π full rotations within the trained length n. If r ≥ `fast`, it is unchanged. If r ≤ `slow`, it
    never completed a rotation in training, and is interpolated. In between the two are mixed, linearly in ln r, as in the code
    released with the paper and in transformers (with truncate=False). As there, planes of a radian a token or more are
    unchanged in any case, which decides where n is small.

    Args:
        speeds: ν, of any shape, in radians per token.
        factor: s, the size to be read over the trained size; less than 1 counts as 1.
        length: n, the tokens along the axis in training.
        fast: full rotations from which on a plane is unchanged.
        slow: full rotations up to which a plane is interpolated.
    """
    unchanged = min(2 * math.pi * fast / length, 1.0)
    interpolated = min(2 * math.pi * slow / length, unchanged)
    if interpolated == unchanged:
        share = (speeds < unchanged).to(speeds.dtype)
    else:
        share = ((math.log(unchanged) - speeds.log()) / math.log(unchanged / interpolated)).clamp(0, 1)
    return 1 - share + share / max(factor, 1.0)


def riflex(speeds: Tensor, factor: float, *, length: float) -> Tensor:
    """Returns ρ that keeps what did not repeat in training from repeating now, after RIFLEx (arXiv:2502.15894, Eq. 8).

    A plane repeats after 2π/ν tokens. If that is no less than the trained length n, and less than the s·n to be read, it is
    slowed to one period in s·n. Planes that repeated in training, and those slow enough, are unchanged. RIFLEx slows one
    plane of the axis of time, the one whose period is nearest to the frame at which videos were seen to repeat. On CogVideoX
    and HunyuanVideo, where they are read at twice the length, this rule finds the same plane. The code released with the
    paper slows it further, to nine tenths of a period.

    Args:
        speeds: ν, of any shape, in radians per token.
        factor: s, the size to be read over the trained size; less than 1 counts as 1.
        length: n, the tokens along the axis in training.
    """
    once = 2 * math.pi / length
    slowed = (once / max(factor, 1.0) / speeds).clamp(max=1)
    return torch.where(speeds > once, torch.ones_like(speeds), slowed)


def temperature(factors: Sequence[float]) -> float:
    """Returns YaRN's factor of attention scores, (0.1 ln s + 1)² (arXiv:2309.00071, section 3.4).

    Args:
        factors: s along each axis, of which the largest counts, as in FiTv2; at least 1.
    """
    return (0.1 * math.log(max(1.0, *factors)) + 1) ** 2


def entropy(trained: Sequence[int], shape: Sequence[int]) -> float:
    """Returns the factor of attention scores √(ln N' / ln N), for N' tokens in place of N (arXiv:2306.08645).

    It keeps the entropy of attention about what it was in training: over more tokens, the same scores are spread thinner.

    Args:
        trained: tokens along each axis in training.
        shape: tokens along each axis to be read.
    """
    before, now = math.prod(trained), math.prod(shape)
    return math.sqrt(math.log(now) / math.log(before)) if min(before, now) > 1 else 1.0


@dataclass(frozen=True)
class Scaling:
    """A method for each axis, with the sizes that it goes from and to. `comrope.rescale` puts it on encodings.

    `Scaling.between` makes it from the names of a method and a unit.
    """

    method: tuple[str, ...]
    """The method for each axis: one of METHODS, or "none"."""
    trained: tuple[int, ...]
    """n, the tokens along each axis in training."""
    shape: tuple[int, ...]
    """s·n, the tokens along each axis to be read."""
    pitch: tuple[tuple[float, float], ...]
    """(u, u') for each axis: how far apart neighbouring tokens are in training, and at `shape`, in the unit of positions."""
    span: tuple[float, float] | None = None
    """(ν_min, ν_max) for "ntk", in radians per token. None takes those of the planes that rotate most along each axis."""
    gain: float = 1.0
    """The factor of attention scores."""

    def __post_init__(self) -> None:
        known = (*METHODS, "none")
        wrong = [name for name in self.method if not isinstance(name, str) or name not in known]
        if wrong:
            raise ConfigurationError(f"method={wrong[0]!r}: expected one of {', '.join(known)}, or one for each axis.")
        for name in ("trained", "shape"):
            _sizes(getattr(self, name), name)
        if not len(self.method) == len(self.trained) == len(self.shape) == len(self.pitch):
            raise ConfigurationError(
                f"trained={self.trained}, shape={self.shape}, method={self.method}: expected as many axes in each."
            )
        if not all(len(pair) == 2 and all(is_number(u, 1 / FARTHEST) for u in pair) for pair in self.pitch):
            raise ConfigurationError(f"pitch={self.pitch!r}: expected two positive distances of tokens for each axis.")
        if self.span is not None and not (
            len(self.span) == 2 and all(is_number(v, 1 / FARTHEST) for v in self.span) and self.span[0] < self.span[1]
        ):
            raise ConfigurationError(
                f"span={self.span!r}: expected the slowest and the fastest speed, in radians per token, such as (1e-4, 1)."
            )
        if not is_number(self.gain, 1 / FARTHEST):
            raise ConfigurationError(f"gain={self.gain!r}: expected a positive factor of scores, 'yarn' or 'entropy'.")

    @classmethod
    def between(
        cls,
        method: str | Sequence[str],
        trained: int | Sequence[int],
        shape: int | Sequence[int],
        unit: str | Sequence[tuple[float, float]],
        *,
        span: tuple[float, float] | None = None,
        gain: float | str | None = None,
    ) -> "Scaling":
        """Returns the scaling by a method from the trained size to another.

        Args:
            method: one of METHODS, or one for each axis, where "none" keeps the frequencies.
            trained: tokens along each axis in training; a number if there is one axis.
            shape: tokens along each axis to be read, likewise.
            unit: "relative" if the canvas is [0, 1] whatever its size, "index" if neighbouring tokens are 1 apart; or the
                distances (u, u') for each axis.
            span: (ν_min, ν_max) for "ntk", see `ntk`.
            gain: the factor of attention scores, or "yarn" (`temperature`) or "entropy" for that of this method; by default
                that of the methods given.
        Raises:
            ConfigurationError: an unknown method or unit, or sizes that do not fit.
        """
        trained, shape = _sizes(trained, "trained"), _sizes(shape, "shape")
        if not isinstance(method, Sequence):
            raise ConfigurationError(f"method={method!r}: expected one of {', '.join(METHODS)}, or one for each axis.")
        methods = (method,) * len(trained) if isinstance(method, str) else tuple(method)
        if isinstance(unit, str):
            if unit not in UNITS:
                raise ConfigurationError(f"unit={unit!r}: expected one of {', '.join(UNITS)}.")
            sizes = zip(trained, shape, strict=False)
            unit = [(1 / n, 1 / larger) if unit == "relative" else (1.0, 1.0) for n, larger in sizes]
        found = cls(methods, trained, shape, tuple(unit), None if span is None else _pair(span))
        return replace(found, gain=found._gain(gain))

    @classmethod
    def from_json(cls, values: Any) -> "Scaling":
        """Returns the scaling whose fields JSON has.

        Raises:
            ConfigurationError: it is none.
        """
        try:
            fields = {name: _tuples(value) for name, value in values.items()}
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise ConfigurationError(f"{values!r} is no scaling of frequencies: {error}.") from error

    @property
    def factors(self) -> tuple[float, ...]:
        """s along each axis: the size to be read over the trained size."""
        return tuple(b / a for a, b in zip(self.trained, self.shape, strict=True))

    def ratio(self, frequencies: Tensor) -> Tensor:
        """Returns ω' / ω for frequencies ω (N, …), in radians per unit of position, in float64.

        Raises:
            InputError: frequencies of another number of axes.
        """
        if not isinstance(frequencies, Tensor) or not len(frequencies.shape) or len(frequencies) != len(self.trained):
            raise InputError(
                f"frequencies: got {shape_of(frequencies)}, expected (N, …) with N={len(self.trained)}, the axes of "
                f"trained={self.trained}."
            )
        pitch = torch.tensor([u for u, _ in self.pitch], dtype=torch.float64, device=frequencies.device)
        speeds = frequencies.detach().double().abs() * pitch.view(-1, *[1] * (frequencies.ndim - 1))
        fastest = speeds.amax(0)
        axes = enumerate(speeds)
        return torch.stack([self._axis_ratio(axis, each, each[each == fastest]) for axis, each in axes])

    def apply(self, frequencies: Tensor) -> Tensor:
        """Returns the scaled frequencies ω' of frequencies ω (N, …), in float64.

        Raises:
            InputError: frequencies of another number of axes.
        """
        return frequencies.double() * self.ratio(frequencies)

    def _axis_ratio(self, axis: int, speeds: Tensor, of_main_planes: Tensor) -> Tensor:
        """Returns ω' / ω along one axis, given the speeds of all planes along it, and of those that have no faster axis."""
        (before, now), length, factor = self.pitch[axis], self.trained[axis], self.factors[axis]
        rho: Mapping[str, Callable[[], Tensor]] = {
            "extrapolate": lambda: torch.ones_like(speeds),
            "linear": lambda: torch.full_like(speeds, 1 / factor),
            "ntk": lambda: ntk(speeds, factor, span=self.span or _span(of_main_planes)),
            "ntk-by-parts": lambda: by_parts(speeds, factor, length=length),
            "yarn": lambda: by_parts(speeds, factor, length=length),
            "riflex": lambda: riflex(speeds, factor, length=length),
        }
        method = self.method[axis]
        return rho[method]() * (before / now) if method in rho else torch.ones_like(speeds)

    def _gain(self, gain: float | str | None) -> float:
        """Returns the factor of scores that is asked for: a number, or that of a method; by default those of `method`."""
        if isinstance(gain, str):
            if gain not in ("yarn", "entropy"):
                raise ConfigurationError(f"gain={gain!r}: expected a positive factor of scores, 'yarn' or 'entropy'.")
            return temperature(self.factors) if gain == "yarn" else entropy(self.trained, self.shape)
        if gain is not None:
            return float(gain) if is_number(gain) else gain
        warm = [factor for factor, name in zip(self.factors, self.method, strict=True) if name == "yarn"]
        even = entropy(self.trained, self.shape) if "entropy" in self.method else 1.0
        return even * (temperature(warm) if warm else 1.0)


def _sizes(sizes: Any, name: str) -> tuple[int, ...]:
    """Returns the sizes of all axes, from a number if there is one; ConfigurationError unless they are sizes."""
    found = tuple(sizes) if isinstance(sizes, Sequence) else (sizes,)
    if not found or not all(is_whole(n, 1) for n in found):
        raise ConfigurationError(f"{name}={sizes!r}: expected the number of tokens along each axis, such as (14, 14).")
    return tuple(map(int, found))


def _span(speeds: Tensor) -> tuple[float, float] | None:
    """Returns the slowest and the fastest speed that is not 0; None if there is none."""
    moving = speeds[speeds > 0]
    return (moving.min().item(), moving.max().item()) if len(moving) else None


def _pair(span: Any) -> tuple[float, float]:
    return tuple(span) if isinstance(span, Sequence) else (span,)  # pyright: ignore[reportReturnType]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
