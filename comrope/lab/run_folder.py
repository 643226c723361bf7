"""The folder of a run: its JSON files, its lock, and the check that it belongs to an experiment."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock, Timeout

from comrope.errors import ComropeError, ConfigurationError, DataError
from comrope.lab import results
from comrope.lab.data.hugging_face import PREFIX
from comrope.lab.experiment import ExperimentConfig
from comrope.lab.kinds import KINDS

LOCK = ".lock"
RESULT = ("experiment", "history", "evaluation", "timing")
"""What every result of a run has."""


def record_in(folder: Path) -> dict[str, Any] | None:
    """Returns run.json, or None if there is none; raises DataError if it is damaged."""
    return _read(folder / "run.json", "kind", "experiment")


def result_in(folder: Path) -> dict[str, Any] | None:
    """Returns result.json, which is there once training is finished, or None; raises DataError if it is damaged."""
    return _read(folder / "result.json", *RESULT)


def experiment_in(found: dict[str, Any], where: Path) -> ExperimentConfig:
    """Returns the configuration of the run `found`, which is in the folder or file `where`; raises DataError if it has none."""
    kind = found["kind"]
    if kind not in KINDS:
        raise DataError(f"{where} has a run of kind {kind!r}: this version of comrope knows {', '.join(KINDS)}.")
    try:
        return KINDS[kind].from_json(found["experiment"])
    except ComropeError as error:
        raise DataError(f"{where}: {error}") from error


def check(folder: Path, experiment: ExperimentConfig, data: dict[str, dict]) -> None:
    """Raises an error if the folder holds a run of another experiment that has begun, a run on other data, or other files."""
    results.refuse_file(folder)
    found = record_in(folder)
    if found is None:
        if folder.exists() and {path.name for path in folder.iterdir()} - {LOCK}:
            raise DataError(f"{folder} holds what is no run of comrope: name another folder.")
        return
    finished = (folder / "result.json").exists()
    if not finished and not (folder / "checkpoints").exists():
        return
    here = experiment_in(found, folder)
    if here != experiment:
        different = [key for key, value in vars(experiment).items() if vars(here).get(key) != value]
        raise ConfigurationError(
            f"{folder} holds a run with other settings ({', '.join(different)}): name another folder, or remove it."
        )
    different = other_data(found, data, finished=finished)
    if different:
        raise DataError(
            f"{folder} is a run on other data, of which {different}: bring those back, or name another folder."
        )


def other_data(found: dict[str, Any], data: dict[str, dict], *, finished: bool) -> str:
    """Returns how the data of a run differ from those that are there now; nothing if they do not, or if it does not say.

    Args:
        found: the run's run.json or result.
        data: what identifies the data sets now, see `comrope.lab.data.labelled.about`.
        finished: whether the run is finished: then it does not need its training data any more, except for the classes.
    """
    for part, now in data.items():
        before = {**now, **found.get("data", {}).get(part, {})}
        compared = ("classes",) if finished and part == "train" else tuple(now)
        different = [
            f"{key} {_short(before[key])}, now {_short(now[key])}" for key in compared if before[key] != now[key]
        ]
        if different:
            return f"{part} had {'; '.join(different)}"
    return ""


def _short(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


@contextmanager
def alone(folder: Path, state: PartialState) -> Iterator[None]:
    """Locks the folder, so that no other command works on it. All processes of one command hold the lock together."""
    if not state.is_main_process:
        state.wait_for_everyone()
        yield
        return
    with results.writing(folder, "nothing was lost"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise DataError(
                f"another process is at work on {folder}: wait until it is done, or name another folder."
            ) from None
    state.wait_for_everyone()
    try:
        yield
    finally:
        lock.release()


def claim(folder: Path, experiment: ExperimentConfig, data: dict[str, dict], command: str, state: PartialState) -> None:
    """Writes run.json, which reserves the folder for the experiment, unless training has begun there before."""
    if state.is_main_process and not (folder / "checkpoints").exists():
        readers = ("datasets",) if str(getattr(experiment, "data", "")).startswith(PREFIX) else ()
        versions = results.versions("torch", "timm", "accelerate", *readers)
        about_it = {"kind": experiment.kind, "experiment": experiment.to_json(), "data": data, "command": command}
        results.write_json(about_it | {"versions": versions}, folder / "run.json")
    state.wait_for_everyone()


def _read(path: Path, *needed: str) -> dict[str, Any] | None:
    """Returns what a JSON file holds, or None if there is none; raises DataError if it is damaged or lacks a needed key."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        damage = f"it does not say {', '.join(lacking)}" if (lacking := [n for n in needed if n not in found]) else None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        damage = error
    if damage is not None:
        raise DataError(f"{path} is damaged ({damage}): remove {path.parent}, and give its training command again.")
    return found
