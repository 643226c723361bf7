"""Learned angles against fixed ones: both start as one model does, and fixed ones stay."""

import pytest
import torch

import comrope
from comrope.errors import ConfigurationError
from comrope.lab import reproduce, runs
from comrope.lab.experiment import Recipe
from comrope.lab.images.config import ImageConfig
from comrope.lab.images.data import datasets
from comrope.lab.reproduce import RECIPES, SCALES
from comrope.lab.runs import load_run

pytestmark = pytest.mark.slow

TINY = {"data": "digits", "model": "tiny", "image_size": (16, 16), "num_train": 48, "num_test": 20}
BRIEF = Recipe(epochs=1, batch_size=24, learning_rate=1e-2)


def _spectra(model: torch.nn.Module) -> list[torch.Tensor]:
    found = [m.spectrum() for m in model.modules() if isinstance(m, comrope.encodings.SpectralEncoding)]
    return [tensor for spectrum in found for tensor in spectrum]


@pytest.mark.parametrize("encoding", ["comrope-ld", "rope-mixed"])
def test_frozen_angles_stay_as_they_start_and_all_else_is_trained(tmp_path, encoding):
    trained = {}
    for frozen in (True, False):
        config = ImageConfig(**TINY, recipe=BRIEF, encoding=encoding, frozen=frozen)
        images, _ = datasets(config)
        start = config.problem.build(config, images)
        runs.run(config, [], tmp_path / config.name)
        trained[frozen] = load_run(tmp_path / config.name, images)
        same = [torch.equal(a, b) for a, b in zip(_spectra(start), _spectra(trained[frozen]), strict=True)]
        assert all(same) if frozen else not any(same[1::2]), "frequencies"
        assert not torch.equal(start.head.weight, trained[frozen].head.weight)
    assert not torch.equal(trained[True].head.weight, trained[False].head.weight)


@pytest.mark.parametrize("encoding", ["none", "rope"])
def test_an_encoding_without_learned_angles_cannot_be_frozen(tmp_path, encoding):
    config = ImageConfig(**TINY, recipe=BRIEF, encoding=encoding, frozen=True)
    with pytest.raises(ConfigurationError, match=f"frozen=True with encoding='{encoding}'"):
        runs.run(config, [], tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.json"))


@pytest.mark.parametrize("name", ["learning-video", "learning-text"])
def test_recipes_of_other_problems_compare_learned_with_fixed(name, tmp_path):
    scale = SCALES["demo"].changed(encodings=("rope-mixed",), seeds=(0,), epochs=1)
    found = reproduce.run(name, scale, tmp_path / "out", runs=tmp_path / "runs", parallel=0)
    (_, *rows), (heading, *minus) = (table["rows"] for table in found["tables"])
    assert len(rows) == 2 * len(minus) > 0
    first = heading.index("seeds") + 1
    for fixed, learned, gained in zip(rows[::2], rows[1::2], minus, strict=True):
        assert (fixed[3], learned[3]) == ("fixed", "learned") and fixed[:3] == learned[:3] == gained[:3]
        assert [b - a for a, b in zip(fixed[5::3], learned[5::3], strict=True)] == pytest.approx(
            gained[first::4], abs=0.02
        )
    assert reproduce.page_of(found).count("<table id=") == 2


@pytest.mark.parametrize("scale", SCALES)
def test_learned_and_fixed_angles_start_alike(scale):
    """The jobs of a start come in pairs: first all seeds with fixed angles, then all with learned ones."""
    scale = SCALES[scale].changed(data="digits", num_train=48, num_test=20)
    jobs = [job.experiment for job in RECIPES["learning"](scale).jobs if job.experiment.recipe.seed == 0]
    images, _ = datasets(jobs[0])
    for fixed, learned in zip(jobs[::2], jobs[1::2], strict=True):
        assert fixed.recipe == learned.recipe and not learned.frozen
        if scale.name == "paper":
            continue  # ViT-B takes long to build
        pair = [_spectra(config.problem.build(config, images)) for config in (fixed, learned)]
        # A fixed RoPE has planes of 2, a learned encoding blocks: compared as frequencies of planes in order.
        first, second = (torch.cat([f.flatten(1) for f in found[1::2]], 1) for found in pair)
        assert torch.allclose(first.double(), second.double(), rtol=1e-6)
