"""Encodings with constant frequencies and basis, which need no decomposition, and `freeze`, which makes them.

Their frequencies can be scaled, for more tokens than trained with (`comrope.rescale`).

The constants stay float64 when the model is cast. The phase of position x is ωᵀx, and rounding ω to float32 would change it by
up to 6e-8 of itself: 0.06 radians for a phase of a million.
"""

from collections.abc import Mapping
from typing import ClassVar, TypeVar, overload

import torch
from torch import Tensor, nn

from comrope._values import described, is_floating
from comrope.encodings.arguments import check_parameter_dtype
from comrope.encodings.base import Encoding, FoldedRope
from comrope.encodings.mapped import MappedEncoding
from comrope.encodings.rope import NoEncoding, Rope, RopeMixed
from comrope.encodings.spectral import SpectralEncoding
from comrope.errors import InputError
from comrope.scaling import Scaling

Model = TypeVar("Model", bound=nn.Module)


class FixedEncoding(Encoding):
    """Base class of encodings with constant angles, whose frequencies `comrope.rescale` can scale.

    Buffer: `frequencies` ω, (N, H, m, b/2), float64, as they were before they were scaled, and zero at first: constructors of
    subclasses call `set_frequencies`.
    """

    _allowed_dtypes: ClassVar = (torch.float64,)
    frequencies: Tensor
    scaling: Scaling | None = None
    """How frequencies and attention scores are scaled, if they are."""
    _ratio: Tensor | None
    """Scaled frequencies over those of before."""

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        block_size: int = 2,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        check_parameter_dtype(dtype)
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=torch.float64)
        shape = (num_axes, num_heads, self.num_blocks, block_size // 2)
        self.register_buffer("frequencies", torch.zeros(shape, **self.factory_kwargs))
        self.register_buffer("_ratio", None, persistent=False)

    def set_scaling(self, scaling: Scaling | None) -> None:
        """Scales the frequencies of the buffer, and the scores, in place of an earlier scaling; None scales nothing.

        Raises:
            InputError: a scaling for another number of axes.
        """
        self._ratio = None if scaling is None else scaling.ratio(self.frequencies)
        self.scaling = scaling

    @property
    def gain(self) -> float:
        return 1.0 if self.scaling is None else self.scaling.gain

    def scaled_frequencies(self) -> Tensor:
        """Returns ω, (N, H, m, b/2), as `scaling` scales it."""
        return self.frequencies if self._ratio is None else self.frequencies * self._ratio

    def extra_repr(self) -> str:
        if self.scaling is None:
            return super().extra_repr()
        methods = "/".join(dict.fromkeys(self.scaling.method))
        return f"{super().extra_repr()}, scaled={methods} {self.scaling.trained} → {self.scaling.shape}"

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.set_scaling(self.scaling)

    def set_frequencies(self, frequencies: Tensor) -> None:
        """Sets ω of the buffer; a scaling goes on.

        Args:
            frequencies: (N, H, D/2), or (N, D/2) for all heads; plane p has the features 2p and 2p + 1.
        Raises:
            InputError: another shape.
        """
        shape = (self.num_axes, self.num_heads, self.head_dim // 2)
        if not is_floating(frequencies) or frequencies.shape not in (shape, shape[::2]):
            raise InputError(
                f"frequencies: got {described(frequencies)}; expected {shape}, or {shape[::2]} for all heads."
            )
        of_heads = frequencies.unsqueeze(1).expand(shape) if frequencies.ndim == 2 else frequencies
        self.frequencies.copy_(of_heads.reshape(self.frequencies.shape))
        self.set_scaling(self.scaling)

    def _first_tensor(self) -> Tensor:
        return self.frequencies


class FixedFrequencies(FixedEncoding, SpectralEncoding):
    """RoPE with constant frequencies, of every plane on every axis.

    Buffer: `frequencies` ω, (N, H, m, b/2), float64, zero at first. `block_size` only groups the planes.
    `dtype` is taken, as by all encodings, and changes nothing.
    """

    def folded(self) -> FoldedRope:
        query_map, key_map, frequencies = super().folded()
        return FoldedRope(self.gain * query_map, key_map, frequencies)

    def spectrum_inputs(self) -> tuple[Tensor, ...]:
        return (self.scaled_frequencies().transpose(0, 1),)

    @classmethod
    def spectrum_from(cls, *inputs: Tensor) -> tuple[Tensor | None, Tensor]:
        return None, inputs[0].transpose(0, 1)


class FixedSpectrum(FixedFrequencies):
    """The rotation of any commuting encoding, as constants. Buffers, float64: `basis` Q, (H, m, b, b), and `frequencies`."""

    basis: Tensor

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        block_size: int = 8,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=dtype)
        eye = torch.eye(block_size, **self.factory_kwargs)
        self.register_buffer("basis", eye.repeat(num_heads, self.num_blocks, 1, 1))

    def spectrum_inputs(self) -> tuple[Tensor, ...]:
        return self.basis, *super().spectrum_inputs()

    @classmethod
    def spectrum_from(cls, *inputs: Tensor) -> tuple[Tensor | None, Tensor]:
        return inputs[0], inputs[1].transpose(0, 1)


class FixedMaps(FixedEncoding, MappedEncoding):
    """Any `MappedEncoding`, as constants. Buffers, float64: `query_map` A_q, `key_map` A_k, (H, m, b, b), and `frequencies`."""

    query_map: Tensor
    key_map: Tensor

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        num_axes: int,
        block_size: int = 8,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=dtype)
        eye = torch.eye(block_size, **self.factory_kwargs).repeat(num_heads, self.num_blocks, 1, 1)
        self.register_buffer("query_map", eye)
        self.register_buffer("key_map", eye.clone())

    def folded(self) -> FoldedRope:
        return FoldedRope(self.gain * self.query_map, self.key_map, self.scaled_frequencies())


@overload
def freeze(module: Encoding) -> Encoding: ...
@overload
def freeze(module: Model) -> Model: ...
def freeze(module: nn.Module) -> nn.Module:
    """Returns the model with all learned angles replaced by constants. Its outputs are the same, and nothing is decomposed.

    Use it for inference and export: ONNX has no eigendecomposition and no linear solve. Unlike `fold` it changes no projection
    weights, so there may be norms between projection and rotation. The constants stay float64 when the model is cast: errors of
    scores in float32 are below 1e-6 of |q||k|, even for tokens a million positions apart.

    Args:
        module: a model with encodings in it, changed in place, or an encoding.
    Returns:
        The model; for an encoding, a new `FixedSpectrum`, for RoPE-Mixed, which has no basis, `FixedFrequencies`, and for one
        with maps of queries and keys, `FixedMaps`.
    Raises:
        InputError: there is no rotary encoding in it, or one on the meta device.
        NoSpectrumError: it contains an encoding with neither a spectrum nor maps and frequencies, such as LieRE, whose
            matrices do not commute. After any error the model is unchanged.
    Examples:
        >>> import comrope
        >>> pe = comrope.encoding("comrope-ld", num_heads=2, head_dim=16, num_axes=2)
        >>> type(comrope.freeze(pe)).__name__
        'FixedSpectrum'
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"module: got {type(module).__name__}, expected a model with encodings in it, or an encoding.")
    if isinstance(module, Encoding):
        return _frozen(module)
    found = [m for m in module.modules() if isinstance(m, Encoding)]
    if not found:
        raise InputError(f"{type(module).__name__} holds no rotary encoding: attach one first.")
    replace_encodings(module, {encoding: _frozen(encoding) for encoding in found})
    return module


def replace_encodings(module: nn.Module, new: Mapping[Encoding, Encoding]) -> None:
    """Puts other encodings in the place of those in a model."""
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, Encoding) and child in new:
                setattr(owner, name, new[child])


def _frozen(encoding: Encoding) -> Encoding:
    """Returns the encoding with constant angles; itself if it has no parameters."""
    return encoding if next(encoding.parameters(), None) is None else constant(encoding)


@torch.no_grad()
def constant(encoding: Encoding) -> FixedEncoding:
    """Returns an encoding with the same angles in buffers, also of one that learns none; itself if it is such an encoding."""
    if isinstance(encoding, FixedEncoding):
        return encoding
    if encoding.device.type == "meta":
        raise InputError(
            f"{type(encoding).__name__} is on the meta device, where it has no values: load or draw its weights first."
        )
    sizes = (encoding.num_heads, encoding.head_dim, encoding.num_axes, encoding.block_size)
    if isinstance(encoding, MappedEncoding):
        fixed = FixedMaps(*sizes, device=encoding.device)
        constants = encoding.folded()._asdict()
    elif isinstance(encoding, (RopeMixed, Rope, NoEncoding)):
        fixed = FixedFrequencies(*sizes, device=encoding.device)
        constants = {"frequencies": encoding.spectrum().frequencies}
    else:
        fixed = FixedSpectrum(*sizes, device=encoding.device)
        constants = encoding.spectrum()._asdict()
    for name, value in constants.items():
        fixed.get_buffer(name).copy_(value)
    return fixed.train(encoding.training)
