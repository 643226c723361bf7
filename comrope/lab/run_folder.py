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
from comrope.lab.experiment import ExperimentConfig
from comrope.lab.kinds import KINDS

LOCK = ".lock"


def record_in(folder: Path) -> dict[str, Any] | None:
    """Returns run.json, or None if there is none; raises DataError if it is damaged."""
    return _read(folder / "run.json", "kind", "experiment")


def result_in(folder: Path) -> dict[str, Any] | None:
    """Returns result.json, which is there once training is finished, or None; raises DataError if it is damaged."""
    return _read(folder / "result.json", "experiment", "history", "evaluation", "timing")


def experiment_in(found: dict[str, Any], folder: Path) -> ExperimentConfig:
    """Returns the configuration in `found`, the run.json of `folder`; raises DataError if there is none."""
    kind = found["kind"]
    if kind not in KINDS:
        raise DataError(f"{folder} is a run of kind {kind!r}: this version of comrope knows {', '.join(KINDS)}.")
    try:
        return KINDS[kind].from_json(found["experiment"])
    except ComropeError as error:
        raise DataError(f"{folder}: {error}") from error


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
    for part, now in data.items():
        before = found.get("data", {}).get(part, now)
        # A finished run does not need its training data any more, except for the classes.
        compared = ("classes",) if finished and part == "train" else tuple(now)
        different = [
            f"{key} {_short(before[key])}, now {_short(now[key])}" for key in compared if before[key] != now[key]
        ]
        if different:
            raise DataError(
                f"{folder} is a run on other data, of which {part} had {'; '.join(different)}: bring those back, or name "
                "another folder."
            )


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
        versions = results.versions("torch", "timm", "accelerate")
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
