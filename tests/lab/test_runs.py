"""Runs on disk: killed for real and resumed, and told apart from what else lies in a folder."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from comrope.errors import ConfigurationError, DataError
from comrope.lab import runs
from comrope.lab.classification import Condition, plain
from comrope.lab.experiment import Recipe
from tests.lab.helpers import QUICK
from tests.processes import CONTEXT

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
SIZES = [(8, 8), (12, 16)]
# As long as it takes to be killed on the way: 30 steps, a checkpoint after each.
ARGUMENTS = (
    *("train", "images", "--data", "digits", "--num-train", "60", "--num-test", "40", "--image-size", "8", "8"),
    *("--model", "tiny", "--encoding", "comrope-ld", "--epochs", "10", "--batch-size", "20", "--learning-rate", "3e-3"),
    *("--save-every", "1"),
)
EXPERIMENT = replace(QUICK, encoding="comrope-ld", recipe=replace(QUICK.recipe, epochs=10))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The same run without interruption, from Python."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    runs.run(EXPERIMENT, plain([(8, 8)]), folder)
    return folder


def _train(out: Path) -> None:
    torch.set_num_threads(1)
    runs.run(EXPERIMENT, plain([(8, 8)]), out, save_every=1)


def _kill_when(process: Any, due: Callable[[], bool]) -> bool:
    """Kills the process as soon as `due()`; False if it ended before."""
    while process.is_alive():
        if due():
            process.kill()
            process.join()
            return True
        time.sleep(0.0005)
    return False


def _steps(folder: Path) -> int:
    return max((int(p.name.removeprefix("step-")) for p in (folder / "checkpoints").glob("step-*")), default=0)


def _same_weights(first: Path, second: Path) -> bool:
    return (first / "weights.safetensors").read_bytes() == (second / "weights.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_at_any_instant_it_resumes_to_the_same_bits(tmp_path, whole):
    folder = tmp_path / "run"
    seen = []
    # Between two steps; in the middle of writing a checkpoint; while an older one is being removed.
    for due in (
        lambda: _steps(folder) >= 2,
        lambda: _steps(folder) >= 5 and any((folder / "checkpoints" / "partial").glob("*")),
        lambda: _steps(folder) >= 9 and len(list((folder / "checkpoints").glob("step-*"))) > 1,
    ):
        process = CONTEXT.Process(target=_train, args=(folder,))
        process.start()
        assert _kill_when(process, due), "it ended before it could be killed"
        assert not (folder / "result.json").exists()
        seen.append(_steps(folder))
    assert seen == sorted(seen) and seen[0] >= 2
    command = [sys.executable, "-m", "comrope", *ARGUMENTS, "--out", str(folder)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _same_weights(folder, whole)
    result, expected = runs.read(folder), runs.read(whole)
    assert result["history"] == expected["history"] and len(result["history"]) == 10
    assert result["evaluation"] == expected["evaluation"]
    assert not (folder / "checkpoints").exists()
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 30


@pytest.mark.slow
def test_accumulated_micro_batches_are_one_batch(tmp_path, whole):
    runs.run(EXPERIMENT, [], tmp_path / "run", micro_batch=4)
    here, alone = (load_file(f / "weights.safetensors") for f in (tmp_path / "run", whole))
    assert all(torch.allclose(here[name], alone[name], rtol=1e-3, atol=2e-5) for name in alone)
    with pytest.raises(ConfigurationError, match="micro_batch=3"):
        runs.run(QUICK, [], tmp_path / "other", micro_batch=3)


def test_a_finished_run_is_not_trained_again_and_only_measured_where_it_was_not(tmp_path):
    folder = tmp_path / "run"
    first = runs.run(QUICK, plain(SIZES[:1]), folder)
    before = (folder / "weights.safetensors").stat().st_mtime_ns
    again = runs.run(QUICK, plain(SIZES), folder)
    assert (folder / "weights.safetensors").stat().st_mtime_ns == before
    assert again["evaluation"][:1] == first["evaluation"]
    assert [row["size"] for row in again["evaluation"]] == [list(size) for size in SIZES]
    assert runs.read(folder) == again
    assert runs.run(QUICK, plain(SIZES), folder) == again


def test_what_a_run_says_of_itself(tmp_path):
    folder = tmp_path / "run"
    result = runs.run(QUICK, [Condition((8, 8), 1.0)], folder, command="comrope train images …")
    assert runs.experiment_of(folder) == QUICK
    assert result["name"] == QUICK.name and result["command"] == "comrope train images …"
    assert result["num_encoding_parameters"] > 0 and len(result["check"]) == 2 and len(result["frequencies"]) == 2
    angles = [block.attn.encoding.angle_matrices().detach() for block in runs.load_run(folder).blocks]
    above = torch.cat([a[..., *torch.triu_indices(8, 8, 1)].flatten() for a in angles]).double()
    assert result["elements"]["std"] == pytest.approx(above.std(correction=0).item(), rel=1e-6)
    assert sum(result["elements"]["counts"]) == above.numel()
    (row,) = result["evaluation"]
    assert (row["offset"], row["total"], row["changed"]) == (1.0, 40, 0)


def test_a_folder_is_one_experiments(tmp_path):
    folder = tmp_path / "run"
    runs.run(QUICK, [], folder)
    with pytest.raises(ConfigurationError, match=r"other settings \(recipe, perturbation\)"):
        runs.run(replace(QUICK, perturbation=0.0, recipe=Recipe(epochs=1)), [], folder)
    with pytest.raises(DataError, match="no run of comrope"):
        runs.run(QUICK, [], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        runs.run(QUICK, [], tmp_path / "file")
    with pytest.raises(DataError, match=r"no run\.json"):
        runs.experiment_of(tmp_path)
    with pytest.raises(DataError, match="no finished run"):
        runs.read(tmp_path)


def test_what_was_never_begun_does_not_keep_the_folder(tmp_path):
    """A mistake in the settings is found before or after the folder was made: a corrected command may use it."""
    with pytest.raises(ConfigurationError, match="no training step"):
        runs.run(replace(QUICK, recipe=Recipe(epochs=1, batch_size=61)), [], tmp_path / "run")
    with pytest.raises(ConfigurationError, match="there is no encoding"):
        runs.run(replace(QUICK, encoding="ropee"), [], tmp_path / "run")
    assert runs.run(QUICK, [], tmp_path / "run")["name"] == QUICK.name
    assert runs.experiment_of(tmp_path / "run") == QUICK


def test_names_tell_experiments_apart():
    others = (replace(QUICK, **change) for change in ({"block_size": 4}, {"std": 0.5}, {"recipe": Recipe(seed=1)}, {}))
    names = [experiment.name for experiment in others]
    assert len(set(names)) == 4 and names[-1] == QUICK.name
    assert names[0].startswith("comrope-ld-b4-s1-seed0-")


@pytest.mark.parametrize("encoding", ["none", "ape", "rope", "liere"])
def test_every_kind_of_encoding_makes_a_run(tmp_path, encoding):
    result = runs.run(
        replace(QUICK, encoding=encoding, recipe=Recipe(epochs=1, batch_size=20)), plain(SIZES), tmp_path / "run"
    )
    assert json.loads(json.dumps(result)) == result
    assert (result["elements"] is None) == (encoding != "liere")
