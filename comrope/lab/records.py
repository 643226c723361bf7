"""Records of finished runs in earlier results, which a study takes in place of training them again.

A results.json has the complete result of each of its runs, a run's own result.json that of one, and neither has weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comrope.errors import DataError
from comrope.lab import results, run_folder, runs
from comrope.lab.data.labelled import files_below
from comrope.lab.experiment import ExperimentConfig

_NEEDED = {"name", "kind", *run_folder.RESULT}


@dataclass(frozen=True)
class Record:
    """A finished run in an earlier result."""

    path: Path
    """The results.json, or the run's own result.json."""
    experiment: ExperimentConfig
    result: dict[str, Any]
    """What `comrope.lab.runs.run` returned."""


def read(folders: Sequence[Path]) -> list[Record]:
    """Returns the runs of every results.json and result.json in the folders and below them, in the order of folders and paths.

    Raises:
        DataError: a folder holds neither, or one is damaged, of another version, or not of a recipe.
    """
    return [record for folder in folders for path in _results_in(folder) for record in _runs_in(path)]


def find(
    records: Sequence[Record],
    experiment: ExperimentConfig,
    conditions: Sequence[Any],
    describe: Callable[[ExperimentConfig], dict[str, dict]],
) -> dict[str, Any] | None:
    """Returns the first result of the experiment that has all conditions, or None. Its key `recorded` names the results.json.

    Args:
        records: those of `read`.
        experiment: the configuration; a setting that a record does not name has its default there.
        conditions: those that the model has to be measured under.
        describe: returns what identifies the experiment's data sets now. It is called if a record says what did then.
    Raises:
        DataError: a record of this experiment is damaged, or is on other data.
    """
    complete: list[Record] = []
    for record in records:
        if record.experiment != experiment:
            continue
        described = describe(experiment) if "data" in record.result else {}
        try:
            different = run_folder.other_data(record.result, described, finished=True)
            if not runs.missing(record.result, conditions):
                complete.append(record)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{record.path} is damaged ({experiment.name}: {error!r}): {_LEAVE_OUT}.") from error
        if different:
            raise DataError(
                f"{record.path} has {experiment.name} on other data, of which {different}: bring those back, or {_LEAVE_OUT}, "
                "and the run is trained on the data that are there now."
            )
    return {**complete[0].result, "recorded": str(complete[0].path)} if complete else None


_LEAVE_OUT = "leave this result out of those that runs are taken from"


def _results_in(folder: Path) -> list[Path]:
    try:
        if folder.is_file():
            return [folder]
        found = [path for path in map(Path, files_below(str(folder))) if path.name in ("results.json", "result.json")]
        problem = "holds no results.json and no result.json"
    except OSError as error:
        found, problem = [], f"cannot be read ({error})"
    if not found:
        raise DataError(
            f"{folder} {problem}: expected a folder that `comrope reproduce` wrote to (--out), one of runs (--runs), or one "
            "above such folders."
        )
    return found


def _runs_in(path: Path) -> list[Record]:
    found = results.read(path)
    made = [found] if path.name == "result.json" else found.get("runs")
    if not isinstance(made, list) or not all(_is_run(run) for run in made):
        raise DataError(f"{path} is not, or is no longer, what `comrope reproduce` wrote: {_LEAVE_OUT}.")
    return [Record(path, run_folder.experiment_in(run, path), run) for run in made]


def _is_run(run: Any) -> bool:
    return (
        isinstance(run, dict) and run.keys() >= _NEEDED and all(isinstance(run[key], str) for key in ("name", "kind"))
    )
