"""Every table and figure of the paper, and a few of our own: one recipe each, at one of three scales.

A recipe is a function from a scale to a plan: its runs, and a function that makes tables and figures of their results.
All recipes of a scale share the folder of the runs. So no run is made twice, and a stopped recipe goes on where it was.
"""

import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from comrope.encodings import ENCODINGS
from comrope.errors import ComropeError, ConfigurationError, DataError
from comrope.lab import output, results
from comrope.lab.output import Outcome as Outcome
from comrope.lab.reproduce.accuracy import fig6, fig7, longer, table1, table10
from comrope.lab.reproduce.beyond import beyond
from comrope.lab.reproduce.costs import table7
from comrope.lab.reproduce.demo import SCALE as DEMO
from comrope.lab.reproduce.demo import demo
from comrope.lab.reproduce.detection import fig4, table2
from comrope.lab.reproduce.elements import table8
from comrope.lab.reproduce.finetuning import table4
from comrope.lab.reproduce.larger import larger, larger_video
from comrope.lab.reproduce.learning import learning, learning_text, learning_video
from comrope.lab.reproduce.offsets import fig5
from comrope.lab.reproduce.ours import axes, commutators, grids, spectra, starts
from comrope.lab.reproduce.plan import Plan as Plan
from comrope.lab.reproduce.rivals import rivals
from comrope.lab.reproduce.scales import SCALES as SCALES
from comrope.lab.reproduce.scales import Scale as Scale
from comrope.lab.reproduce.text import text
from comrope.lab.reproduce.timing import table9
from comrope.lab.reproduce.video import table3
from comrope.lab.study import OnRunProgress, run_all

RECIPES: dict[str, Callable[[Scale], Plan]] = {
    "table1": table1,
    "table2": table2,
    "fig4": fig4,
    "table3": table3,
    "fig5": fig5,
    "fig6": fig6,
    "fig7": fig7,
    "table4": table4,
    "table7": table7,
    "table8": table8,
    "table9": table9,
    "table10": table10,
    "commutators": commutators,
    "axes": axes,
    "spectra": spectra,
    "starts": starts,
    "grids": grids,
    "learning": learning,
    "learning-video": learning_video,
    "learning-text": learning_text,
    "larger": larger,
    "larger-video": larger_video,
    "longer": longer,
    "beyond": beyond,
    "rivals": rivals,
    "text": text,
    "demo": demo,
}
"""In the paper's order, then ours. Figure 3 comes with table 1, figure 8 with table 8; `comrope demo` runs the last."""


def run(
    name: str,
    scale: Scale,
    out: Path,
    *,
    runs: Path | None = None,
    recorded: Sequence[Path] = (),
    parallel: int = 2,
    command: str = "",
    on_progress: OnRunProgress = lambda name, stage, done, total, speed: None,
    show: Callable[[Outcome], None] = lambda outcome: None,
    **settings,
) -> dict[str, Any]:
    """Runs a recipe, and writes its tables, figures and page.

    Args:
        name: the name of the recipe.
        scale: one of SCALES, or `scale.changed(…)` of it.
        out: the folder for results.json, tables.md, report.html, a CSV for each table, and an SVG and a PNG for each
            figure. It is written atomically.
        runs: the folder of the runs, which recipes share; if None, a folder beside `out` that is named after the scale.
        recorded: folders with earlier results, whose runs are taken in place of training them again, see
            `comrope.lab.study.run_all`. `out` may be one of them: it is read first.
        parallel: the number of runs at a time, see `comrope.lab.study.run_all`. Under `torchrun` all processes share
            each run, and the first writes.
        command: the command that was typed, for the record.
        on_progress: is called with (name of the run, stage, done, total, samples per second).
        show: is called with the outcome, in the process that writes.
        **settings: further arguments of `comrope.lab.runs.run`.
    Returns:
        What results.json holds.
    Raises:
        ConfigurationError: there is no such recipe, or none of its encodings was asked for.
        DataError: the data are missing, or not those of a recorded run; a recorded result is missing or damaged; `out`
            holds other files.
    """
    if name not in RECIPES:
        raise ConfigurationError(
            f"there is no recipe {name!r}: expected one of {', '.join(RECIPES)} (figure 3 comes with "
            "table1, figure 8 with table8)."
        )
    plan = RECIPES[name](scale)
    there = {job.experiment.encoding for job in plan.jobs} | set(plan.encodings)
    foreign = [each for each in scale.encodings if each not in there]
    if foreign and scale.encodings != tuple(ENCODINGS):
        raise ConfigurationError(f"encodings: {name} has no {', '.join(foreign)}: leave them out.")
    runs = out.resolve().parent / f"runs-{scale.name}" if runs is None else runs
    writes = int(os.environ.get("RANK", "0")) == 0
    patterns = (f"{name}.*", f"{name}-*", *plan.files)
    with results.atomic_folder(out, patterns) if writes else nullcontext() as folder:
        settings |= {"recorded": recorded, "parallel": parallel, "command": command, "on_progress": on_progress}
        made = run_all(plan.jobs, runs, **settings)
        outcome = _outcome(name, plan, scale, made)
        found = {
            "recipe": name,
            "title": plan.title,
            "command": command,
            "versions": results.versions("torch", "timm"),
            "scale": json.loads(json.dumps(asdict(scale))),
            "notes": outcome.notes,
            "tables": [{"name": t.name, "title": t.title, "rows": t.spelt_out()} for t in outcome.tables],
            "runs": made,
        }
        if folder is not None:
            output.write(found, outcome, folder)
            show(outcome)
    return found


def page_of(found: Mapping[str, Any]) -> str:
    """Returns the page of a result that `run` wrote, made again from its runs.

    Raises:
        DataError: a part of it is missing or damaged, an earlier version of comrope wrote it, or the recipe measures times.
    """
    remedy = "Expected what `comrope demo` and `comrope reproduce` of this version write: give its command again."
    try:
        name, made = found["recipe"], found["runs"]
        scale = scale_of(found)
        plan = RECIPES[name](scale)
        if plan.measures:
            raise DataError(
                f"results: {name} takes times when it is run, which its runs do not hold: give its command again, "
                f"{found['command']}; runs that are there are not trained again."
            )
        asked = [job.experiment.encoding for job in plan.jobs]
        if asked != [run["experiment"]["encoding"] for run in made]:
            raise DataError(f"results: the runs are not those that {name} asks for. {remedy}")
        return output.as_page(found, _outcome(name, plan, scale, made))
    except KeyError as error:
        raise DataError(f"results: {error} is missing or unknown. {remedy}") from error
    except ComropeError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, StopIteration) as error:
        raise DataError(f"results: some part is of another kind ({error}). {remedy}") from error


def scale_of(found: Mapping[str, Any]) -> Scale:
    """Returns the scale that a result was made at."""
    asked: dict[str, Any] = found["scale"]["asked"]
    asked = {key: tuple(v) if isinstance(v, list) else v for key, v in asked.items()}
    asked.pop("few_seeds", None)
    return {**SCALES, DEMO.name: DEMO}[found["scale"]["name"]].changed(**asked)


def _outcome(name: str, plan: Plan, scale: Scale, made: list[dict[str, Any]]) -> Outcome:
    """Returns the plan's outcome with notes on test samples and recorded runs, a first sentence and the recipe's docstring."""
    outcome = plan.outcome(made)
    counts = sorted({run["data"]["test"]["count"] for run in made if "data" in run})
    tested = f"Test samples of each run: {' or '.join(f'{count:,}' for count in counts)}." if counts else ""
    lead = f"Scale “{scale.name}”."
    if {run["kind"] for run in made} <= {"images"}:
        size = " × ".join(map(str, scale.image_size))
        lead = f"Scale “{scale.name}”: {scale.data}, model “{scale.model}”, {size} pixels."
    notes = [note for note in (*outcome.notes, tested, _recorded(made)) if note]
    return replace(outcome, notes=notes, lead=outcome.lead or lead, about=inspect.getdoc(RECIPES[name]) or "")


def _recorded(made: list[dict[str, Any]]) -> str:
    """Returns a note on the runs that were taken from earlier results; nothing if none were."""
    taken = {run["name"]: run for run in made if "recorded" in run}
    if not taken:
        return ""
    unsaid = sum("data" not in run for run in taken.values())
    without = f", {unsaid} of them without a checksum of the data, which could not be compared" if unsaid else ""
    return f"{len(taken)} of {len({run['name'] for run in made})} runs were taken from earlier results{without}."
