"""Figure 5: all coordinates moved together. Encodings that commute do not change; LieRE and APE do."""

from comrope.lab.classification import Condition, shifted
from comrope.lab.figures import percent
from comrope.lab.output import Outcome
from comrope.lab.reproduce.pictures import curves
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.scales import Scale
from comrope.lab.reproduce.tables import Result, gather, on_seeds, row
from comrope.lab.statistics import summary
from comrope.lab.study import Job
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table

ENCODINGS = ("ape", "rope", "rope-mixed", "liere", "comrope-ap", "comrope-ld", "comrope-mt")
DIRECTIONS = ("first-axis", "last-axis", "steepest")
_OFFSETS = (0.0, 0.25, 0.5, 1.0, 2.0)
OFFSETS = {"demo": (0.0, 1.0), "small": _OFFSETS, "paper": _OFFSETS}
"""The values of ρ in canvas widths, by the scale's name."""
FAR = {"demo": (1e3,), "small": (1e3, 1e6), "paper": (1e3, 1e6)}
"""Offsets far beyond the canvas, in canvas widths, by the scale's name."""


def fig5(scale: Scale) -> Plan:
    """All coordinates of an image moved together, on table 1's models trained with σ = 1.

    The paper: a random shift N(0, ρ²I) for each image (Eq. 12). LieRE loses accuracy as ρ grows, ComRoPE stays flat (figure 5,
    a picture without numbers). Ours adds what an adversary would choose: offsets far from any canvas trained on, and along each
    axis and the steepest direction, in which a model's fastest plane rotates most.

    Cost: no training beyond table 1's; each model measured under about a dozen conditions.
    """
    names = scale.of(*ENCODINGS)
    conditions = {seed: _conditions(scale, seed) for seed in scale.few_seeds}
    jobs = [Job(scale.experiment(n, seed), tuple(conditions[seed])) for n in names for seed in scale.few_seeds]

    def outcome(results: list[Result]) -> Outcome:
        found = gather(names, results)
        num_random = len(OFFSETS[scale.name]) + len(FAR[scale.name])
        num_all = len(conditions[scale.few_seeds[0]])
        tables = []
        for name, what, indices in (
            ("fig5", "random, ρ in canvas widths", range(num_random)),
            ("fig5-adversarial", "chosen by an adversary, in canvas widths", (0, *range(num_random, num_all))),
        ):
            rows: list[tuple[Cell, ...]] = []
            for encoding, each in found.items():
                met = [[row(r, conditions[s][i]) for r, s in zip(each, scale.few_seeds, strict=True)] for i in indices]
                rows.append((label(encoding), "top-1 %", *(summary([percent(m) for m in ms]) for ms in met)))
                rows.append((label(encoding), "labels changed, %", *(summary([_changed(m) for m in ms]) for ms in met)))
            headings = (_heading(conditions[scale.few_seeds[0]][i]) for i in indices)
            title = f"Accuracy, and labels that are other ones than without an offset. Offsets: {what}."
            tables.append(Table(name, title, ("method", "measure", *headings), rows))
        drawn = {
            encoding: [
                (
                    c.offset,
                    summary([percent(row(r, conditions[s][i])) for r, s in zip(each, scale.few_seeds, strict=True)]),
                )
                for i, c in enumerate(conditions[scale.few_seeds[0]][: len(OFFSETS[scale.name])])
            ]
            for encoding, each in found.items()
        }
        figure = curves(
            "Accuracy when all positions of an image are shifted together (σ = 1)",
            drawn,
            x="offset ρ: standard deviation of the shift (canvas widths)",
            y="test accuracy (%)",
        )
        notes = [
            on_seeds(len(scale.few_seeds)),
            "The paper gives a picture only. Labels changed are counted by image, so a model whose accuracy stays the same by "
            "luck is still found out.",
        ]
        return Outcome(tables, {"fig5": figure}, notes)

    return Plan("Figure 5: coordinate offset", jobs, outcome)


def _conditions(scale: Scale, seed: int) -> list[Condition]:
    """Returns random offsets, small then large, with numbers of this seed, then offsets in chosen directions."""
    size = scale.image_size
    random = shifted(size, (*OFFSETS[scale.name], *FAR[scale.name]), seed)
    return random + [Condition(size, offset, d) for d in DIRECTIONS for offset in (1.0, FAR[scale.name][-1])]


def _heading(condition: Condition) -> str:
    return f"{condition.offset:g}" if condition.direction == "random" else f"{condition.direction} {condition.offset:g}"


def _changed(measured: dict) -> float:
    """Returns the share of changed labels in %."""
    return 100 * measured["changed"] / measured["total"]
