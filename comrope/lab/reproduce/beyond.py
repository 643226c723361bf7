"""Ideas for doing better than ComRoPE-LD at the same cost, each with the hypothesis that it was tried for."""

from typing import Any

from comrope.lab.output import Outcome
from comrope.lab.reproduce.learning import SPREAD, even_frequencies
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.scales import Scale
from comrope.lab.reproduce.tables import Result, accuracies, difference, gather, on_seeds
from comrope.lab.statistics import summary
from comrope.lab.study import Job
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table

PLAIN = "as it is"
CODE = "and a code book"
SHARED = "one set of angles for all layers"
Way = tuple[str, str]
"""(encoding, what is different)"""


def beyond(scale: Scale) -> Plan:
    """Ideas to be more accurate than ComRoPE-LD at the same cost, all without perturbation, against LD and LieRE.

    The paper's best is LD, 1.20 points ahead of LieRE with σ = 0. An idea succeeds if it is ahead of LD by more than LD is of
    LieRE, with an interval that excludes 0. Each has a hypothesis, written before its runs. *A code book beside the
    rotation*: APE is ahead of RoPE where the place in the image says much, and the two know different things, so both
    together know more; with LD, and with the fixed RoPE of evenly spread directions. *One set of angles for all layers*: if
    the start matters and learning does little, sharing loses nothing, and gradients of all layers together may gain.
    *Evenly spread frequencies*, fixed, between a radian over the image and π a patch: no plane is wasted, so a fixed spectrum
    is as good as a learned one.

    Cost: 6 trainings a seed, of which LD and LieRE are table 1's with σ = 0.
    """
    ways = {way: settings for way, settings in _ways(scale).items() if scale.among(way[0])}
    scale.of(*dict.fromkeys(name for name, _ in _ways(scale)))  # refuses what is not among them
    conditions = scale.squares()
    jobs = [
        Job(scale.experiment(name, seed, perturbation=0, **settings), conditions)
        for (name, _), settings in ways.items()
        for seed in scale.seeds
    ]

    def outcome(results: list[Result]) -> Outcome:
        found: dict[Way, list[Result]] = gather(ways, results)
        rows: list[tuple[Cell, ...]] = []
        against: list[tuple[Cell, ...]] = []
        for (name, what), each in found.items():
            about = (label(name), what, len(each))
            seconds = summary([result["timing"]["train_seconds"] for result in each])
            reached = [summary(accuracies(each, edge)) for edge in scale.edges]
            rows.append((*about, *reached, seconds, each[0]["num_parameters"]))
            for other in ("comrope-ld", "liere"):
                second = found.get((other, PLAIN))
                if second is not None and second is not each:
                    minus = [difference(each, second, edge) for edge in scale.few_edges]
                    against.append((*about, label(other), *minus))
        columns = ("method", "", "seeds")
        title = "Top-1 accuracy in % (σ = 0). Columns: edge of the test images in pixels."
        headings = (*columns, *map(str, scale.edges), "training, s", "parameters")
        tables = [
            Table("beyond", title, headings, rows),
            Table(
                "beyond-differences", "In percentage points.", (*columns, "minus", *map(str, scale.few_edges)), against
            ),
        ]
        notes = [
            on_seeds(len(scale.seeds)),
            "Seconds of training are of processes side by side, and are no benchmark.",
        ]
        return Outcome(tables, {}, notes)

    return Plan("Beyond LD at the same cost", jobs, outcome)


def _ways(scale: Scale) -> dict[Way, dict[str, Any]]:
    """Returns the settings of each idea, and of what it is compared with."""
    even = even_frequencies(scale) | {"directions": "spread"}
    return {
        ("liere", PLAIN): {},
        ("comrope-ld", PLAIN): {},
        ("comrope-ld", CODE): {"absolute": True},
        ("comrope-ld", SHARED): {"shared_angles": True},
        ("rope", SPREAD): even,
        ("rope", f"{SPREAD}, {CODE}"): even | {"absolute": True},
    }
