"""What learning the angles adds: every start trained with its angles learned and with its angles as they were."""

import math
from dataclasses import replace
from typing import Any

from comrope.lab.experiment import Recipe
from comrope.lab.images.config import ImageConfig
from comrope.lab.output import Outcome
from comrope.lab.reproduce.accuracy import COUNTING, LONGER
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.planes import all_planes, speeds
from comrope.lab.reproduce.scales import Scale
from comrope.lab.reproduce.tables import Result, accuracies, difference, gather, on_seeds
from comrope.lab.statistics import summary
from comrope.lab.study import Job
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table

LENGTHS = {"demo": (1,), "small": (1, LONGER), "paper": (1,)}
"""How long training is, in the scale's own number of epochs, by the scale's name."""
AXIAL, SPREAD = (f"1 radian over the image to π a patch, {way}" for way in ("along axes", "spread"))
Way = tuple[str, str, bool, int]
"""(encoding that is learned, its start, whether its angles are learned, epochs)"""


def learning(scale: Scale) -> Plan:
    """Does learning the angles do anything? Learned against fixed, from the same start and seeds, in short and long training.

    The paper learns all angles but RoPE's and does not ask. Fixed and learned share the start, all other weights, images and
    batches. The starts are the default of LD and MT, RoPE-Mixed with std 3, whose planes rotate as fast, and three that draw
    nothing, which RoPE has and RoPE-Mixed learns on from: RoPE that rotates by a radian a patch, and frequencies evenly
    spread (in logarithm) from a radian a canvas to π radians a patch, each plane along one axis, or along a direction of its
    own. The last two have the same speeds, so that what differs is that planes rotate with both axes at once ("oblique").

    Cost: 6 starts × 2 a seed and length of training.
    """
    names = scale.of(*dict.fromkeys(name for name, _ in _starts(scale)))
    recipes = {recipe.epochs: recipe for recipe in _recipes(scale)}
    starts = [start for start in _starts(scale) if start[0] in names]
    keys = [(*start, learned, epochs) for epochs in recipes for start in starts for learned in (False, True)]
    conditions = scale.squares(scale.few_edges)
    jobs = [Job(_config(scale, key, seed, recipes[key[3]]), conditions) for key in keys for seed in scale.seeds]

    def outcome(results: list[Result]) -> Outcome:
        found: dict[Way, list[Result]] = gather(keys, results)
        rows: list[tuple[Cell, ...]] = []
        gained: list[tuple[Cell, ...]] = []
        oblique: list[tuple[Cell, ...]] = []
        for key, each in found.items():
            name, start, learned, epochs = key
            about = (label(name), start, epochs)
            measured = [speeds(all_planes(scale, result)) for result in each]
            median, most = (summary([values[i] for values in measured]) for i in (0, 1))
            reached = [summary(accuracies(each, edge)) for edge in scale.few_edges]
            rows.append((*about, _angles(learned), len(each), *reached, median, most))
            if learned:
                fixed = found[name, start, False, epochs]
                gained.append((*about, len(each), *(difference(each, fixed, edge) for edge in scale.few_edges)))
            axial = found.get((name, AXIAL, learned, epochs))
            if start == SPREAD and axial is not None:
                minus = [difference(each, axial, edge) for edge in scale.few_edges]
                oblique.append((_angles(learned), epochs, len(each), *minus))
        edges = [f"top-1 % at {edge}" for edge in scale.few_edges]
        about = ("learned as", "start", "epochs")
        title = "Accuracy with learned and with fixed angles (σ = 1); |ω| in radians per canvas, after training."
        tables = [
            Table("learning", title, (*about, "angles", "seeds", *edges, "median |ω|", "95 % below"), rows),
            Table(
                "learning-differences", "Learned minus fixed, in percentage points.", (*about, "seeds", *edges), gained
            ),
        ]
        if oblique:
            title = "Planes spread in direction minus planes along axes, at the same speeds, in percentage points."
            tables.append(Table("learning-oblique", title, ("angles", "epochs", "seeds", *edges), oblique))
        return Outcome(tables, {}, [on_seeds(len(scale.seeds))])

    return Plan("What learning the angles adds", jobs, outcome)


def _angles(learned: bool) -> str:
    return "learned" if learned else "fixed"


def _recipes(scale: Scale) -> list[Recipe]:
    """Short and long training; of the length that was asked for, if one was."""
    lengths = (1,) if "epochs" in scale.asked else LENGTHS[scale.name]
    return [replace(scale.recipe, epochs=length * scale.recipe.epochs) for length in lengths]


def _starts(scale: Scale) -> dict[tuple[str, str], dict[str, Any]]:
    """Settings by (the encoding that is learned, how its start is called)."""
    axial = {"init": "rope"} | even_frequencies(scale)
    return {
        ("rope-mixed", "normal, std 3"): {"std": 3.0},
        ("comrope-ld", "normal, std 1"): {},
        ("comrope-mt", "normal, std 1"): {},
        ("rope-mixed", COUNTING): {"init": "rope", "max_frequency": scale.patches},
        ("rope-mixed", AXIAL): axial,
        ("rope-mixed", SPREAD): axial | {"directions": "spread"},
    }


def even_frequencies(scale: Scale) -> dict[str, float]:
    """Returns RoPE's settings for frequencies from 1 radian over the image to π a patch, beyond which there are aliases."""
    most = math.pi * scale.patches
    return {"max_frequency": most, "base": most}


def _config(scale: Scale, way: Way, seed: int, recipe: Recipe) -> ImageConfig:
    """The run of a start; where it draws nothing, fixed angles are RoPE's."""
    name, start, learned, _ = way
    settings = _starts(scale)[name, start]
    if not learned and settings.get("init") == "rope":
        return scale.experiment("rope", seed, recipe=recipe, **{k: v for k, v in settings.items() if k != "init"})
    return scale.experiment(name, seed, recipe=recipe, frozen=not learned, **settings)
