"""Angles that are no longer learned: frequencies and a basis as they are, with no decomposition left to do.

They are float64 whatever the model is cast to. The phase of position x is ωᵀx, and rounding ω to float32 would turn it by up
to 6e-8 of itself: by 0.06 radians where it is a million.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from comrope.encodings.base import Encoding, LearnedEncoding, SpectralEncoding
from comrope.encodings.rope import RopeMixed
from comrope.errors import InputError


class FixedFrequencies(SpectralEncoding):
    """Plain RoPE whose planes turn with all axes, each at a constant rate. Buffer: `frequencies` (N, H, m, b/2), float64.

    `block_size` only groups the planes.
    """

    _dtypes: ClassVar = (torch.float64,)
    frequencies: Tensor

    def __init__(self, num_heads, head_dim, num_axes, block_size: int = 2, *, device=None):
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=torch.float64)
        shape = (num_axes, num_heads, self.num_blocks, block_size // 2)
        self.register_buffer("frequencies", torch.zeros(shape, **self._factory))

    def _home(self) -> Tensor:
        return self.frequencies

    def _ingredients(self) -> tuple[Tensor, ...]:
        return (self.frequencies.transpose(0, 1),)

    @classmethod
    def _spectrum_of(cls, *ingredients: Tensor) -> tuple[Tensor | None, Tensor]:
        return None, ingredients[0].transpose(0, 1)


class FixedSpectrum(FixedFrequencies):
    """The rotation of another commuting encoding, as constants. Buffers, float64: `basis` (H, m, b, b) and `frequencies`."""

    basis: Tensor

    def __init__(self, num_heads, head_dim, num_axes, block_size: int = 8, *, device=None):
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device)
        eye = torch.eye(block_size, **self._factory)
        self.register_buffer("basis", eye.repeat(num_heads, self.num_blocks, 1, 1))

    def _ingredients(self):
        return self.basis, *super()._ingredients()

    @classmethod
    def _spectrum_of(cls, *ingredients):
        return ingredients[0], ingredients[1].transpose(0, 1)


def freeze(module: nn.Module) -> nn.Module:
    """Makes constants of all learned angles in a model: the same outputs, nothing to learn, nothing to decompose.

    For inference and for export: ONNX has no eigendecomposition and no linear solve. Unlike `fold` it changes no weights, so
    norms between projection and rotation do no harm. The constants are float64 and stay so under casts of the model: scores in
    float32 are right to 1e-6 of |q||k|, a million tokens apart too.

    Args:
        module: a model with encodings in it, changed in place, or an encoding.
    Returns:
        The model; for an encoding, a new `FixedSpectrum`, or for RoPE-Mixed, which has no basis, `FixedFrequencies`.
    Raises:
        InputError: there is no rotary encoding in it, or one without values, on the meta device.
        NoSpectrumError: LieRE, whose matrices do not commute. Nothing has changed then.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"module: got {type(module).__name__}, expected a model with encodings in it, or an encoding.")
    if isinstance(module, Encoding):
        return _fixed(module)
    owners = [(m, n, e) for m in module.modules() for n, e in m.named_children() if isinstance(e, Encoding)]
    if not owners:
        raise InputError(f"{type(module).__name__} holds no rotary encoding: attach one first.")
    for owner, name, fixed in [(owner, name, _fixed(encoding)) for owner, name, encoding in owners]:
        setattr(owner, name, fixed)
    return module


@torch.no_grad()
def _fixed(encoding: Encoding) -> Encoding:
    if not isinstance(encoding, LearnedEncoding):
        return encoding
    if encoding.device.type == "meta":
        raise InputError(
            f"{type(encoding).__name__} is on the meta device, where it has no values: load or draw its weights first."
        )
    basis, frequencies = encoding.spectrum()
    sizes = (encoding.num_heads, encoding.head_dim, encoding.num_axes, encoding.block_size)
    if isinstance(encoding, RopeMixed):
        fixed = FixedFrequencies(*sizes, device=encoding.device)
    else:
        fixed = FixedSpectrum(*sizes, device=encoding.device)
        fixed.basis.copy_(basis)
    fixed.frequencies.copy_(frequencies)
    return fixed.train(encoding.training)
