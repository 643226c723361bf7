"""Angles that are no longer learned: a basis and frequencies as they are, with no decomposition left to do."""

import torch
from torch import Tensor, nn

from comrope.encodings.base import Encoding, LearnedEncoding, SpectralEncoding
from comrope.errors import InputError


class FixedSpectrum(SpectralEncoding):
    """The rotation of another commuting encoding, as constants. Buffers: `basis` (H, m, b, b), `frequencies` (N, H, m, b/2)."""

    basis: Tensor
    frequencies: Tensor

    def __init__(self, num_heads, head_dim, num_axes, block_size: int = 8, *, device=None, dtype=None):
        super().__init__(num_heads, head_dim, num_axes, block_size, device=device, dtype=dtype)
        eye = torch.eye(block_size, **self._factory)
        self.register_buffer("basis", eye.repeat(num_heads, self.num_blocks, 1, 1))
        shape = (num_axes, num_heads, self.num_blocks, block_size // 2)
        self.register_buffer("frequencies", torch.zeros(shape, **self._factory))

    def _home(self) -> Tensor:
        return self.basis

    @torch.no_grad()
    def _set_spectrum(self, basis: Tensor, frequencies: Tensor) -> None:
        self.basis.copy_(basis)
        self.frequencies.copy_(frequencies)

    def _ingredients(self):
        return self.basis, self.frequencies.transpose(0, 1)

    @classmethod
    def _spectrum_of(cls, basis, frequencies):
        return basis, frequencies.transpose(0, 1)


def freeze(module: nn.Module) -> nn.Module:
    """Makes constants of all learned angles in a model: the same outputs, nothing to learn, nothing to decompose.

    For inference and for export: ONNX has no eigendecomposition and no linear solve. Unlike `fold` it changes no weights, so
    norms between projection and rotation do no harm.

    Args:
        module: a model with encodings in it, changed in place, or an encoding.
    Returns:
        The model; for an encoding, a new `FixedSpectrum`.
    Raises:
        InputError: there is no rotary encoding in it.
        NoSpectrumError: LieRE, whose matrices do not commute. Nothing has changed then.
    """
    if isinstance(module, Encoding):
        return _fixed(module)
    owners = [(m, n, e) for m in module.modules() for n, e in m.named_children() if isinstance(e, Encoding)]
    if not owners:
        raise InputError(f"{type(module).__name__} holds no rotary encoding: attach one first.")
    for owner, name, fixed in [(owner, name, _fixed(encoding)) for owner, name, encoding in owners]:
        setattr(owner, name, fixed)
    return module


def _fixed(encoding: Encoding) -> Encoding:
    spectrum = encoding.spectrum()
    if not isinstance(encoding, LearnedEncoding):
        return encoding
    sizes = (encoding.num_heads, encoding.head_dim, encoding.num_axes, encoding.block_size)
    fixed = FixedSpectrum(*sizes, device=encoding.device, dtype=encoding.dtype)
    fixed._set_spectrum(*spectrum)
    return fixed.train(encoding.training)
