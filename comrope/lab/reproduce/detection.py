"""Detection: table 2 and figure 4, on scenes of digits or on COCO."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from comrope.lab.detection import problem
from comrope.lab.detection.config import DetectionConfig
from comrope.lab.detection.metric import NAMES
from comrope.lab.detection.pictures import examples
from comrope.lab.experiment import Recipe
from comrope.lab.images.config import ImageConfig
from comrope.lab.output import Outcome
from comrope.lab.reproduce import paper
from comrope.lab.reproduce.pictures import curves
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.scales import Config, Scale
from comrope.lab.reproduce.tables import Result, gather, on_seeds
from comrope.lab.statistics import Summary, paired, summary
from comrope.lab.study import Job
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table

COMPARED = ("ape", "rope-mixed", "liere", "comrope-ld", "comrope-mt")


@dataclass(frozen=True)
class DetectionScale:
    """The configurations of a scale's recipes for detection."""

    experiment: DetectionConfig
    pretraining: ImageConfig | None = None
    """The classifier whose training initialises the backbone; None if timm has pretrained weights."""


_DIGITS = ImageConfig(data="digits", model="timm:demo", encoding="ape", image_size=(32, 32), perturbation=0.0)
_QUICK = Recipe(epochs=2, batch_size=4, learning_rate=2e-3)
_SMALL = Recipe(epochs=10, batch_size=4, learning_rate=2e-3, warmup=0.05)
_PAPER = Recipe(epochs=12, batch_size=16, learning_rate=1e-4, weight_decay=0.05, warmup=0.01, precision="bf16")

DETECTION: dict[str, DetectionScale] = {
    "demo": DetectionScale(
        DetectionConfig(num_train=12, num_test=6, recipe=_QUICK),
        replace(_DIGITS, num_train=100, num_test=50, recipe=Recipe(epochs=1, batch_size=50)),
    ),
    "small": DetectionScale(
        DetectionConfig(num_train=200, num_test=60, recipe=_SMALL),
        replace(_DIGITS, recipe=Recipe(epochs=15, batch_size=50, learning_rate=2e-3)),
    ),
    "paper": DetectionScale(
        DetectionConfig(
            data="coco",
            model="vit-s/16",
            head="masks",
            start="pretrained",
            short_edges=(800,),
            long_edge=1333,
            drop_path=0.1,
            recipe=_PAPER,
        )
    ),
}
"""Scales of detection by name. The paper trains by the protocol of ViT-CoMer; "paper" is that protocol for ViTDet's pyramid."""


def table2(scale: Scale) -> Plan:
    """Object detection: average precision with an encoding added to a pretrained backbone, angles starting at zero.

    The paper: ViT-S in ViT-CoMer under Mask R-CNN on COCO. AP 44.0 with APE, 44.5 with LieRE, 44.7 with ComRoPE-LD.
    Ours is a plain ViT under ViTDet's simple feature pyramid instead of ViT-CoMer; RoPE-Mixed and ComRoPE-MT are added. At the
    scales below "paper" the scenes are digits on photographs, Faster R-CNN, and a backbone pretrained on the digits.

    Cost: 5 trainings a seed, shared with figure 4.
    """
    names, here, jobs = _jobs(scale)

    def outcome(results: list[Result]) -> Outcome:
        found = _found(names, here, scale, results)
        tables = [_precisions(found), _against_ape(found)]
        test = problem.datasets(here.experiment)[1]
        shown = {name: each[0]["evaluation"][0]["examples"] for name, each in found.items()}
        return Outcome(
            [t for t in tables if t.rows], {"table2-examples": examples(test, shown)}, _notes(scale, here.experiment)
        )

    return Plan("Table 2: object detection", jobs, outcome)


def fig4(scale: Scale) -> Plan:
    """Average precision against the epoch, and how many iterations an encoding needs to reach APE's final AP.

    The paper: ComRoPE-LD reaches APE's final metric in 29 % fewer iterations. Ours as for table 2. The learning rate falls
    to zero over the whole training, as in the paper's runs, so that late epochs gain less than early ones would.

    Cost: none beside table 2's runs.
    """
    names, here, jobs = _jobs(scale)

    def outcome(results: list[Result]) -> Outcome:
        found = _found(names, here, scale, results)
        lines = {name: _curve(each) for name, each in found.items()}
        figure = curves("AP on the test images after each epoch", lines, x="epoch", y="AP (%)")
        table = _iterations(found)
        return Outcome([table] if table.rows else [], {"fig4": figure}, _notes(scale, here.experiment))

    return Plan("Figure 4: average precision against the epoch", jobs, outcome)


def _jobs(scale: Scale) -> tuple[list[str], DetectionScale, list[Job]]:
    """Returns the encodings, what `Scale.changed` leaves of the scale, and the jobs: pretraining first, then each encoding."""
    names, here = scale.of(*COMPARED), DETECTION[scale.name]
    base, before = scale.applied(here.experiment), here.pretraining
    here = DetectionScale(base, before and replace(before, recipe=scale.lengthened(before.recipe)))
    first = {seed: _with_seed(here.pretraining, seed) for seed in scale.few_seeds} if here.pretraining else {}
    tuned = [_tuned(base, name, seed, first) for name in names for seed in scale.few_seeds]
    jobs = [Job(classifier) for classifier in first.values()]
    return names, here, jobs + [Job(config, tuple(problem.conditions(config))) for config in tuned]


def _tuned(base: DetectionConfig, encoding: str, seed: int, first: Mapping[int, ImageConfig]) -> DetectionConfig:
    """Returns the configuration of an encoding and a seed, which starts from the pretrained classifier of that seed."""
    start = first[seed].name if first else base.start
    return _with_seed(replace(base, encoding=encoding, start=start), seed)


def _with_seed(config: Config, seed: int) -> Config:
    return replace(config, recipe=replace(config.recipe, seed=seed))


def _found(names: Sequence[str], here: DetectionScale, scale: Scale, results: list[Result]) -> dict[str, list[Result]]:
    """Returns the results of the detectors by encoding, without those of pretraining."""
    return gather(names, results[len(scale.few_seeds) if here.pretraining else 0 :])


def _notes(scale: Scale, base: DetectionConfig) -> list[str]:
    edges = f"shorter side {base.short_edges[-1]}, longer ≤ {base.long_edge} pixels"
    notes = [
        f"Detection runs on {base.data}, model “{base.model}”, head “{base.head}”, {edges}; a ViT under ViTDet's "
        "simple feature pyramid, where the paper has ViT-CoMer. All encodings keep the backbone's absolute positions.",
        on_seeds(len(scale.few_seeds)),
    ]
    if scale.name == "paper":
        return notes
    return [
        *notes,
        "Rows marked “paper” are of COCO with ViT-S: compare orders and differences, not values. Scenes have no object of 96² "
        "pixels or more, so that APl does not exist.",
    ]


def _values(results: Sequence[Result], name: str) -> list[float] | None:
    """Returns a metric of each seed's run; None if it does not exist, as APl without large objects."""
    values = [result["evaluation"][0][name] for result in results]
    return None if None in values else values


def _precisions(found: dict[str, list[Result]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, results in found.items():
        ours = [_values(results, metric) for metric in NAMES]
        cells = [None if values is None else summary(values) for values in ours]
        rows.append((label(name), "ours", len(results), *cells))
        if name in paper.TABLE2:
            rows.append((label(name), "paper", 1, *paper.TABLE2[name]))
    return Table("table2", "Average precision of boxes in %.", ("method", "source", "seeds", *NAMES), rows, decimals=1)


def _against_ape(found: dict[str, list[Result]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name in found if "ape" in found else ():
        if name != "ape":
            pairs = [(_values(found[name], metric), _values(found["ape"], metric)) for metric in NAMES]
            cells = [None if first is None or second is None else paired(first, second) for first, second in pairs]
            rows.append((label(name), len(found[name]), *cells))
    title = "Average precision minus that of APE, in percentage points."
    return Table("table2-differences", title, ("method", "seeds", *NAMES), rows, decimals=1)


def _curve(results: Sequence[Result]) -> list[tuple[float, Summary]]:
    """Returns (epoch, AP over seeds) after each epoch."""
    histories = [[row["AP"] or 0.0 for row in result["history"]] for result in results]
    return [(float(epoch), summary(values)) for epoch, values in enumerate(zip(*histories, strict=True), 1)]


def _iterations(found: dict[str, list[Result]]) -> Table:
    """Returns for each encoding the share of the iterations until it first reaches APE's final AP, seed by seed."""
    rows: list[tuple[Cell, ...]] = []
    goals = [result["history"][-1]["AP"] or 0.0 for result in found.get("ape", ())]
    for name, results in found.items() if goals else ():
        shares = [_share([row["AP"] or 0.0 for row in r["history"]], g) for r, g in zip(results, goals, strict=True)]
        reached = [100 * share for share in shares if share is not None]
        theirs = f"{100 - paper.FIG4_SAVED}" if name == "comrope-ld" else "–"
        rows.append((label(name), f"{len(reached)} of {len(shares)}", summary(reached) if reached else None, theirs))
    title = (
        "Iterations until APE's final AP is first reached, in % of the whole training, over the seeds that reach it."
    )
    return Table("fig4", title, ("method", "seeds that reach it", "iterations, %", "paper, %"), rows, decimals=0)


def _share(precisions: Sequence[float], goal: float) -> float | None:
    """Returns the share of the training after which the AP first reaches `goal`, interpolated linearly within an epoch.

    Returns None if it never does, or if the goal is 0, which is meaningless.
    """
    before = 0.0
    for epoch, now in enumerate(precisions):
        if now >= goal > 0:
            return (epoch + (goal - before) / (now - before)) / len(precisions)
        before = now
    return None
