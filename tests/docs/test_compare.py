"""docs/compare.md: what it says of installed packages is so, with the versions that it names."""

import pytest
import torch

import comrope
from comrope.encodings import ENCODINGS, LearnedEncoding
from tests.docs.pages import DOCS, ROOT

PAGE = (DOCS / "compare.md").read_text(encoding="utf-8")
SIZES = {"num_heads": 2, "head_dim": 24}


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm.layers.pos_embed_sincos")


@pytest.fixture(scope="module")
def ret():
    return pytest.importorskip("rotary_embedding_torch").RotaryEmbedding


def test_the_versions_are_those_of_the_constraints():
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for package in ("timm", "rotary-embedding-torch"):
        (pinned,) = [line.removeprefix(f"{package}==") for line in constraints if line.startswith(f"{package}==")]
        assert f"| {package} {pinned} |" in PAGE


def test_ours_takes_any_axes_blocks_and_positions_of_each_sample():
    assert len(ENCODINGS) == 9
    learned = {name for name, kind in ENCODINGS.items() if issubclass(kind, LearnedEncoding)} | {"ape"}
    assert set(ENCODINGS) - learned == {"none", "rope"}  # all but two
    for axes in (1, 2, 3, 4):
        pe = comrope.encoding("comrope-mt", num_axes=axes, block_size=12, **SIZES)
        q, k = torch.randn(2, 3, 2, 5, 24)
        assert pe(q, k, torch.rand(3, 5, axes))[0].shape == q.shape
        assert pe.bfloat16().dtype == torch.float32
        assert pe.angle_matrices().shape == (axes, 2, 2, 12, 12)  # of each head
        assert comrope.check(pe).holds


def test_timms_mixed_rope_is_learned_for_each_layer_and_head_in_two_axes_and_is_cast(timm):
    mixed = timm.RotaryEmbeddingMixed(48, depth=3, num_heads=2, feat_shape=[4, 4])
    assert mixed.freqs.shape == (2, 3, 2, 12) and mixed.freqs.requires_grad
    assert mixed.bfloat16().freqs.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="2 spatial dimensions"):
        timm.RotaryEmbeddingMixed(48, depth=3, num_heads=2, feat_shape=[4, 4, 4])


def test_timms_axial_rope_is_fixed_and_stays_precise(timm):
    axial = timm.RotaryEmbeddingCat(24, feat_shape=None).bfloat16()
    assert not list(axial.parameters())
    assert {b.dtype for b in axial.buffers() if b.is_floating_point()} == {torch.float32}


def test_rotary_embedding_torch_has_one_set_of_frequencies_on_any_axes_and_is_cast(ret):
    learned = ret(8, learned_freq=True)
    assert [tuple(p.shape) for p in learned.parameters()] == [(4,)]
    assert learned.get_axial_freqs(2, 3, 4).shape == (2, 3, 4, 24)
    assert learned.bfloat16().freqs.dtype == torch.bfloat16


def test_only_ours_attaches_starts_and_folds_unchanged(timm):
    """As the page says of ours; of the others it says that there is nothing of the kind, which is read, not tested."""
    import timm as library

    model = library.create_model("vit_tiny_patch16_224", depth=1, num_classes=2, img_size=32).eval()
    image = torch.randn(1, 3, 32, 32)
    before = model(image)
    comrope.attach(model, "comrope-ld")
    assert torch.allclose(model(image), before, atol=1e-5)
    assert torch.allclose(comrope.fold(model)(image), before, atol=1e-4)
