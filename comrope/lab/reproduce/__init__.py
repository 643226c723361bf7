"""Every table and figure of the paper, and a few of our own: one recipe each, at one of three scales.

A recipe is a function from a scale to a study: the runs it takes, and what to make of their results. Runs lie in a folder
that recipes share, so that none is made twice, and what was stopped goes on where it was.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from comrope.encodings import ENCODINGS
from comrope.errors import ConfigurationError
from comrope.lab import results
from comrope.lab.reproduce import output
from comrope.lab.reproduce.accuracy import fig6, fig7, table1, table10
from comrope.lab.reproduce.costs import table7
from comrope.lab.reproduce.detection import fig4, table2
from comrope.lab.reproduce.elements import table8
from comrope.lab.reproduce.finetuning import table4
from comrope.lab.reproduce.offsets import fig5
from comrope.lab.reproduce.ours import axes, commutators, spectra, starts
from comrope.lab.reproduce.scales import SCALES as SCALES
from comrope.lab.reproduce.scales import Scale as Scale
from comrope.lab.reproduce.study import Outcome as Outcome
from comrope.lab.reproduce.study import Study as Study
from comrope.lab.reproduce.text import text
from comrope.lab.reproduce.timing import table9
from comrope.lab.reproduce.video import table3
from comrope.lab.study import Report, run_all

RECIPES: dict[str, Callable[[Scale], Study]] = {
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
    "text": text,
}
"""In the paper's order, then ours. Figure 3 comes with table 1, figure 8 with table 8."""


def run(
    name: str,
    scale: Scale,
    out: Path,
    *,
    runs: Path | None = None,
    workers: int = 2,
    command: str = "",
    report: Report = lambda name, stage, done, total, speed: None,
    show: Callable[[Outcome], None] = lambda outcome: None,
    **settings,
) -> dict[str, Any]:
    """Runs a recipe, and writes its tables, figures and report.

    Args:
        name: of the recipe.
        scale: one of SCALES, or `scale.changed(…)` of it.
        out: folder for results.json, tables.md, report.html, a CSV a table, an SVG and a PNG a figure; it appears whole or
            not at all.
        runs: folder of the runs themselves, shared by recipes; beside `out` and named by the scale if None.
        workers: runs at a time, see `comrope.lab.study.run_all`; started by `torchrun`, all processes share each run, and the
            first writes.
        command: what was typed, for the record.
        report: is told (name of the run, stage, done, in all, samples a second).
        show: is given what was found, in the process that writes.
        settings: further ones of `comrope.lab.runs.run`.
    Returns:
        What results.json holds.
    Raises:
        ConfigurationError: there is no such recipe, or none of its encodings was asked for.
        DataError: the data are not there, or `out` holds something else.
    """
    if name not in RECIPES:
        raise ConfigurationError(
            f"there is no recipe {name!r}: expected one of {', '.join(RECIPES)} (figure 3 comes with "
            "table1, figure 8 with table8)."
        )
    recipe = RECIPES[name]
    study = recipe(scale)
    there = {job.experiment.encoding for job in study.jobs} | set(study.encodings)
    foreign = [each for each in scale.encodings if each not in there]
    if foreign and scale.encodings != tuple(ENCODINGS):
        raise ConfigurationError(f"encodings: {name} has no {', '.join(foreign)}: leave them out.")
    runs = out.resolve().parent / f"runs-{scale.name}" if runs is None else runs
    writes = int(os.environ.get("RANK", "0")) == 0
    with results.whole_or_nothing(out, also=(f"{name}.*", f"{name}-*")) if writes else nullcontext() as folder:
        made = run_all(study.jobs, runs, workers=workers, command=command, report=report, **settings)
        outcome = study.outcome(made)
        found = output.as_json(name, study.title, scale, outcome, made, command)
        if folder is not None:
            output.write(found, recipe.__doc__ or "", scale, outcome, folder)
            show(outcome)
    return found
