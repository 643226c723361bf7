# pyright: strict
"""A user's program with every public name of comrope. It runs with timm, and type checkers accept it at their strictest."""

import tempfile
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import comrope
from comrope.checks import Check, Report
from comrope.encodings import AbsoluteEncoding, ComRoPELD, Encoding, SpectralEncoding
from comrope.errors import ComropeError, ConfigurationError
from comrope.rotation import Rotation, Spectrum
from comrope.scaling import Scaling


class Attention(nn.Module):
    """Attention of one's own, with an encoding."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(width, 3 * width)
        self.encoding = comrope.encoding("comrope-ld", num_heads=num_heads, head_dim=width // num_heads, num_axes=2)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Returns the outputs of all heads: (B, L, width) to (B, L, width)."""
        heads = self.inputs(tokens).unflatten(-1, (3, self.encoding.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.encoding(heads[0], heads[1], positions)
        return nn.functional.scaled_dot_product_attention(q, k, heads[2]).transpose(1, 2).flatten(2)


def encodings() -> None:
    """What `comrope.encoding` gives, and what can be read of it."""
    positions: Tensor = comrope.positions.grid((3, 3), num_prefix_tokens=1)
    positions = comrope.positions.offset(
        comrope.positions.perturb(positions, (1 / 3, 1 / 3), 0.1, num_prefix_tokens=1), 0.5
    )
    Attention(32, 2)(torch.randn(2, 10, 32), positions)

    pe: Encoding = comrope.encoding("comrope-mt", num_heads=2, head_dim=16, num_axes=2, init="normal")
    q, k = torch.randn(1, 2, 10, 16), torch.randn(1, 2, 10, 16)
    rotated: tuple[Tensor, Tensor] = pe(q, k, positions)
    expected: tuple[Tensor, Tensor] = comrope.reference.rotate(q, k, pe.angle_matrices(), positions)
    scores, by_reference = rotated[0] @ rotated[1].mT, expected[0] @ expected[1].mT
    assert torch.allclose(scores, by_reference, atol=1e-4)
    spectrum: Spectrum = pe.spectrum()
    frozen: Encoding = comrope.freeze(pe)
    assert torch.equal(frozen.spectrum().frequencies, spectrum.frequencies)
    larger: Encoding = comrope.rescale(pe, "yarn", trained=(3, 3), shape=(6, 9), unit="relative")
    scaling: Scaling = Scaling.between("yarn", (3, 3), (6, 9), "relative")
    assert torch.equal(larger.spectrum().frequencies, scaling.apply(spectrum.frequencies))
    assert comrope.scaling.temperature(scaling.factors) == scaling.gain
    assert isinstance(pe, SpectralEncoding)
    rotation: Rotation = pe.rotation(positions)
    rotation.into_basis(torch.randn(32, 32))

    ape: AbsoluteEncoding = comrope.encoding("ape", num_heads=2, head_dim=16, num_axes=2, grid=(3, 3))
    tokens: Tensor = ape(torch.randn(1, 10, 32), positions)
    assert tokens.shape == (1, 10, 32)

    report: Report = comrope.check(pe)
    check: Check = report[0]
    assert report.holds and check.commutator < 1e-9
    name: str = "comrope-ap"  # as read from a file
    by_name: nn.Module = comrope.encoding(name, num_heads=2, head_dim=16, num_axes=2)
    assert isinstance(by_name, comrope.encodings.ComRoPEAP)


def models() -> None:
    """What can be done with a model of timm, whose class a type checker still knows afterwards."""
    vit = timm.models.VisionTransformer(depth=2, embed_dim=32, num_heads=2, num_classes=3)
    embed_dim: int = comrope.attach(vit, "comrope-ld", block_size=8).embed_dim
    assert embed_dim == 32
    groups = comrope.param_groups(vit, lr=1e-2, weight_decay=0.05)
    torch.optim.AdamW(groups, lr=1e-3)
    layers = [module for module in vit.modules() if isinstance(module, ComRoPELD)]
    state = {f"{i}.freqs": layer.base_matrices.detach().unsqueeze(1) for i, layer in enumerate(layers)}
    state |= {f"{i}.multiplier": torch.ones(1, 2, layer.num_blocks, 1, 1) for i, layer in enumerate(layers)}
    comrope.load_official(vit, state)
    depth: int = len(comrope.rescale(vit, "ntk", trained=(14, 14), shape=(28, 28)).blocks)
    assert depth == 2
    comrope.fold(vit)
    try:
        comrope.detach(vit)
    except ConfigurationError as error:
        assert isinstance(error, ComropeError)

    created: nn.Module = timm.create_model("vit_tiny_patch16_224", depth=1)
    comrope.attach(created, "rope-mixed", prefix="first", init="rope")
    comrope.export_timm(created)
    with tempfile.TemporaryDirectory() as folder:
        comrope.save(created, Path(folder) / "vit")
        loaded: nn.Module = comrope.load(Path(folder) / "vit")
    comrope.detach(loaded)
    assert not comrope.hosts.angle_parameters(loaded)


def main() -> None:
    """Runs all of it."""
    assert comrope.__version__
    encodings()
    models()


if __name__ == "__main__":
    main()
