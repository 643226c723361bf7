"""What recipes ask for at each scale, and how cells are written: nothing here is trained."""

import pytest

from comrope.errors import ConfigurationError
from comrope.lab.reproduce import RECIPES, SCALES
from comrope.lab.reproduce.costs import table7
from comrope.lab.statistics import Difference, Summary
from comrope.lab.table import Table

TRAINING = [name for name in RECIPES if RECIPES[name](SCALES["small"]).jobs]
"""The recipes that train something."""


def _names(recipe: str, scale: str) -> set[str]:
    return {job.experiment.name for job in RECIPES[recipe](SCALES[scale]).jobs}


@pytest.mark.parametrize("scale", SCALES)
def test_recipes_share_runs(scale):
    of_table1 = _names("table1", scale)
    for recipe in ("fig5", "commutators", "spectra"):
        assert _names(recipe, scale) <= of_table1, recipe
    for recipe in ("fig6", "fig7", "starts"):  # the paper's block size, intensity and start are table 1's runs
        assert _names(recipe, scale) & of_table1, recipe
    assert _names("table8", scale) <= _names("fig6", scale)
    assert _names("larger", scale) <= of_table1 | _names("starts", scale)
    assert _names("larger-video", scale) <= _names("table3", scale)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("recipe", [name for name in RECIPES if "text" not in name])  # they have no paper's scale
def test_no_run_stands_for_two(recipe, scale):
    jobs = RECIPES[recipe](SCALES[scale]).jobs
    assert len({job.experiment for job in jobs}) == len({job.experiment.name for job in jobs}) == len(jobs)


@pytest.mark.parametrize("recipe", TRAINING)
def test_what_is_asked_for_reaches_every_run(recipe):
    scale = SCALES["small"].changed(data="elsewhere", seeds=(7,), epochs=4, batch_size=16)
    experiments = [job.experiment for job in RECIPES[recipe](scale).jobs]
    kinds = {experiment.kind for experiment in experiments}
    for experiment in experiments:
        assert (experiment.recipe.seed, experiment.recipe.epochs, experiment.recipe.batch_size) == (7, 4, 16)
        pretrains = experiment.kind == "images" and kinds != {"images"}  # a backbone for another problem
        assert experiment.data == "elsewhere" or pretrains


@pytest.mark.parametrize("recipe", RECIPES)
def test_docstrings_state_setting_and_cost(recipe):
    text = RECIPES[recipe].__doc__ or ""
    assert "paper" in text and "Cost: " in text


def test_paper_scale_is_the_published_protocol():
    for job in RECIPES["table1"](SCALES["paper"]).jobs:
        experiment, recipe = job.experiment, job.experiment.recipe
        assert (experiment.model, experiment.image_size, experiment.block_size) == ("vit-b/16", (224, 224), None)
        assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (200, 6144, 1e-3)
        assert (recipe.weight_decay, recipe.warmup) == (0.01, 0.02)
        assert [c.size[0] for c in job.conditions] == [112, 128, 192, 224, 256, 320, 384, 448, 512]
    tuned = RECIPES["table4"](SCALES["paper"]).jobs[-1].experiment
    assert (tuned.start, tuned.init, tuned.recipe.epochs, tuned.recipe.batch_size) == (
        "pretrained",
        "identity",
        4,
        3456,
    )


def test_data_seeds_and_encodings_can_be_changed():
    scale = SCALES["small"].changed(data="elsewhere", seeds=(7,), encodings=("rope", "comrope-ld"))
    jobs = RECIPES["table1"](scale).jobs
    assert [(j.experiment.encoding, j.experiment.perturbation) for j in jobs] == [
        ("rope", 1.0),
        ("comrope-ld", 1.0),
        ("rope", 0.0),
        ("comrope-ld", 0.0),
    ]
    assert {j.experiment.data for j in jobs} == {"elsewhere"} and {j.experiment.recipe.seed for j in jobs} == {7}
    assert {j.experiment.recipe.seed for j in RECIPES["fig6"](scale).jobs} == {7}


@pytest.mark.parametrize("recipe", ["table1", "table3", "text"])
@pytest.mark.parametrize("encoding", ["comrope-mt", "none"])
def test_an_encoding_that_is_in_one_part_of_a_recipe_can_be_asked_for_alone(recipe, encoding):
    jobs = RECIPES[recipe](SCALES["demo"].changed(encodings=(encoding,))).jobs
    assert jobs and {job.experiment.encoding for job in jobs} <= {encoding, "rope"}


@pytest.mark.parametrize("recipe", TRAINING)
def test_of_other_data_all_samples_are_taken_unless_a_number_is_said(recipe):
    def counts(**asked) -> set:
        configs = [job.experiment for job in RECIPES[recipe](SCALES["small"].changed(**asked)).jobs]
        return {(c.num_train, c.num_test) for c in configs if asked["data"] == c.data}

    assert counts(data="elsewhere") == {(None, None)}
    assert counts(data="elsewhere", num_train=40, num_test=20) == {(40, 20)}


def test_what_cannot_be_asked_for_is_refused():
    scale = SCALES["demo"]
    with pytest.raises(ConfigurationError, match="rope-mixd"):
        scale.changed(encodings=("rope-mixd",))
    with pytest.raises(ConfigurationError, match="different"):
        scale.changed(seeds=(1, 1))
    with pytest.raises(ConfigurationError, match="this recipe is about"):
        RECIPES["table10"](scale.changed(encodings=("ape",)))


def test_axial_partition_gets_an_even_number_of_blocks():
    scale = SCALES["small"]
    assert scale.head_dim == 32
    assert scale.block_sizes_of("comrope-ap") == [2, 4, 8, 16]
    assert scale.block_sizes_of("comrope-ld") == [2, 4, 8, 16, 32]


def test_starts_are_those_that_a_family_holds_and_rope_counts_patches():
    found = {}
    for job in RECIPES["starts"](SCALES["paper"]).jobs:
        found.setdefault(job.experiment.encoding, []).append(job.experiment)
    assert {name: len(each) for name, each in found.items()} == {
        "rope": 2,
        "rope-mixed": 7,
        "string": 7,
        "comrope-ap": 5,
        "comrope-ld": 5,
        "comrope-mt": 7,
    }
    assert [e.max_frequency for e in found["rope"]] == [None, 14.0]  # 224 / 16 patches
    assert sum((e.init, e.max_frequency) == ("rope", 14.0) for e in found["comrope-mt"]) == 1
    assert sum(e.recipe.angle_learning_rate is not None for e in found["comrope-ld"]) == 1


def test_parameters_and_operations_counted_are_those_of_the_formulas():
    tables = table7(SCALES["small"]).outcome([]).tables
    assert [table.name for table in tables] == ["table7", "table7-operations", "table7-ours", "table7-ours-operations"]
    for table in tables:
        for row in table.rows:
            assert row[2] == row[3], row
            if "operations" in table.name:
                assert row[4] == row[5], row
    published, *ours = tables[1].rows
    assert published[4] == 196 * 12 * 8  # an exponential for each token, head and block; ours none for any token
    assert all(row[4] <= 12 * 8 for row in ours if row[0] != "LieRE")


def test_cells_in_print_and_spelt_out():
    rows = [("a", Summary(60.125, 0.25, 3), Difference(-1.5, -2.0, -1.0, 3), 1200), ("b", 61.0, None, None)]
    table = Table("t", "Title.", ("method", "accuracy", "minus", "parameters"), rows)
    assert table.printed() == [["a", "60.12 ± 0.25", "−1.50 (−2.00 … −1.00)", "1,200"], ["b", "61.00", "–", "–"]]
    heading, first, second = table.spelt_out()
    assert heading[:4] == ["method", "accuracy mean", "accuracy deviation", "accuracy count"]
    assert first == ["a", 60.125, 0.25, 3, -1.5, -2.0, -1.0, 3, 1200]
    assert second == ["b", 61.0, None, None, None, None, None, None, None]


def test_one_seed_is_printed_without_spread():
    table = Table("t", "Title.", ("x", "y"), [(Summary(60.0, None, 1), Difference(0.5, None, None, 1))])
    assert table.printed() == [["60.00", "+0.50"]]
