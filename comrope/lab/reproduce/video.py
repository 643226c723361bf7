"""Table 3: video classification at other resolutions and other numbers of frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from comrope.lab.experiment import Recipe
from comrope.lab.figures import INK, percent
from comrope.lab.output import Outcome
from comrope.lab.reproduce import paper
from comrope.lab.reproduce.pictures import curves
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.scales import Scale
from comrope.lab.reproduce.tables import Key, Result, accuracies, by_size, differences, gather, on_seeds, row
from comrope.lab.statistics import Summary, summary
from comrope.lab.study import Job
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table
from comrope.lab.video import problem
from comrope.lab.video.config import VideoConfig, VideoOptions
from comrope.lab.video.loading import EvalClips
from comrope.lab.video.model import MODELS
from comrope.lab.video.problem import Condition

PERTURBED = ("none", "ape", "rope", "rope-mixed", "liere", "comrope-ap", "comrope-ld", "comrope-mt")
STILL = ("ape", "rope", "liere", "comrope-ap", "comrope-ld")
FAMILY = ("comrope-ap", "comrope-ld", "comrope-mt")


@dataclass(frozen=True)
class VideoScale:
    """The configuration and the evaluation of a scale's recipes for video."""

    experiment: VideoConfig
    edges: tuple[int, ...]
    """Edges of the square test clips in pixels."""
    frames: tuple[int, ...]
    """Numbers of frames of the test clips, among them the number trained with."""

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Every size with the trained number of frames, and every number of frames at the trained size."""
        asked = (VideoOptions(resolutions=tuple(map(str, self.edges))), VideoOptions(frames=self.frames))
        return tuple(dict.fromkeys(c for options in asked for c in problem.conditions(self.experiment, options)))


_QUICK = Recipe(epochs=2, batch_size=16, learning_rate=3e-3)
_SMALL = Recipe(epochs=20, batch_size=64, learning_rate=3e-3, warmup=0.1)
_PAPER = Recipe(epochs=80, batch_size=768, learning_rate=1.2e-4, weight_decay=0.01, warmup=0.02, precision="bf16")

VIDEO: dict[str, VideoScale] = {
    "demo": VideoScale(
        VideoConfig(num_train=64, num_test=32, model="tiny", num_frames=4, recipe=_QUICK),
        edges=(16, 32, 64),
        frames=(2, 4, 8),
    ),
    "small": VideoScale(
        VideoConfig(num_train=1000, num_test=300, num_frames=4, recipe=_SMALL),
        edges=(16, 24, 32, 40, 48, 64),
        frames=(2, 3, 4, 6, 8, 12, 24),
    ),
    "paper": VideoScale(
        VideoConfig(data="ucf-101", model="paper", image_size=(224, 224), recipe=_PAPER),
        edges=paper.SIZES,
        frames=(4, 8, 16, 32),
    ),
}
"""They take seconds, two minutes a run on one core, and days on a cluster."""


def table3(scale: Scale) -> Plan:
    """Encodings in three axes, on video, at other resolutions and other numbers of frames than trained at.

    The paper: 8 layers, width 384, 8 heads, patches of one frame × 16 × 16, joint attention over all patches of 8
    frames, on UCF-101 from scratch at 224, 80 epochs, batch 768, AdamW at 1.2e-4, block size 8; tested from 112 to 512.
    At 512, σ = 1: ComRoPE-LD 60.39 %, AP 59.34 %, LieRE 58.23 %, RoPE 57.34 %, APE 53.18 %; at 224 all but APE are
    within a point. Perturbation moves rows and columns, never frames; each axis is scaled by its own extent. Ours adds
    a model without encoding, RoPE-Mixed and ComRoPE-MT at σ = 1, and other numbers of frames, which the paper does not
    test; and beside the paper's RoPE, which rotates by a radian a canvas at most, one that rotates by a radian a patch.

    Cost: 14 trainings a seed (8 encodings and the other RoPE at σ = 1, 5 at σ = 0), each measured at every size and number of
    frames.
    """
    here = VIDEO[scale.name]
    base = scale.applied(here.experiment)
    keys = [(name, 1.0) for name in scale.of(*PERTURBED)] + [(name, 0.0) for name in scale.among(*STILL)]

    def experiment(key: Key, seed: int) -> VideoConfig:
        return replace(base, encoding=key[0], perturbation=key[1], recipe=replace(base.recipe, seed=seed))

    wanted = [experiment(key, seed) for key in keys for seed in scale.few_seeds]
    trained, size = base.num_frames, base.image_size
    others = [replace(e, **counting_settings(base)) for e in wanted if (e.encoding, e.perturbation) == ("rope", 1.0)]
    jobs = [Job(e, here.conditions) for e in (*wanted, *others)]
    like: Scale = replace(scale, data=base.data, model=base.model, image_size=size, edges=here.edges)

    def outcome(results: list[Result]) -> Outcome:
        found = gather(keys, results[: len(wanted)])
        by_frames = {n: {key: [with_frames(r, n) for r in each] for key, each in found.items()} for n in here.frames}
        shared = (like, by_frames[trained])
        perturbed = [key for key in keys if key[1] == 1]
        against = [((name, 1.0), ("rope", 1.0)) for name in PERTURBED if name not in ("none", "rope")]
        against += [((name, 1.0), ("liere", 1.0)) for name in FAMILY]
        sigmas = [((name, 1.0), (name, 0.0)) for name in STILL]
        tables = [
            by_size("table3", f"Top-1 accuracy in % on clips of {trained} frames.", *shared, paper.TABLE3),
            differences("table3-differences", "Between encodings.", *shared, against, paper.TABLE3),
            differences("table3-perturbation", "What training with perturbation adds.", *shared, sigmas, paper.TABLE3),
            _frames_table(here, by_frames),
        ]
        if others:
            counted = [with_frames(result, trained) for result in results[len(wanted) :]]
            tables.append(_counting_table(here.edges, shared[1]["rope", 1.0], counted))
        at_sizes = {k[0]: [(e, summary(accuracies(shared[1][k], e))) for e in here.edges] for k in perturbed}
        at_frames = {k[0]: [(n, summary(accuracies(by_frames[n][k], size[0]))) for n in here.frames] for k in perturbed}
        drawn = {
            "table3-sizes": _curves("image sizes", at_sizes, "edge of the square test clips (pixels)", size[0]),
            "table3-frames": _curves("numbers of frames", at_frames, "frames of the test clips", trained),
            "table3-clips": _strips(base),
        }
        notes = [on_seeds(len(scale.few_seeds)), *_differs(like)]
        return Outcome(tables, drawn, notes)

    return Plan("Table 3: video", jobs, outcome)


def counting_settings(config: VideoConfig) -> dict[str, float]:
    """Returns RoPE's settings for fastest planes that rotate by a radian a patch."""
    return {"max_frequency": config.image_size[0] / MODELS[config.model]["patch_size"]}


def with_frames(result: Result, num_frames: int) -> Result:
    """Returns a result with those rows only that have this number of frames."""
    return result | {"evaluation": [row for row in result["evaluation"] if row["num_frames"] == num_frames]}


def _frames_table(here: VideoScale, by_frames: Mapping[int, Mapping[Key, Sequence[Result]]]) -> Table:
    (height, width), trained = here.experiment.image_size, here.experiment.num_frames
    rows: list[tuple[Cell, ...]] = []
    for key in by_frames[trained]:
        reached = [_accuracy(by_frames[n][key], Condition((height, width), num_frames=n)) for n in here.frames]
        rows.append((label(key[0]), f"{key[1]:g}", len(by_frames[trained][key]), *reached))
    title = f"Top-1 accuracy in % by the number of frames, trained at {trained}; {height} × {width} pixels. Not in the paper."
    return Table("table3-frames", title, ("method", "σ", "seeds", *map(str, here.frames)), rows)


def _counting_table(edges: Sequence[int], plain: Sequence[Result], counted: Sequence[Result]) -> Table:
    kinds = {"a radian a canvas, as in the paper": plain, "a radian a patch": counted}
    rows: list[tuple[Cell, ...]] = [
        (kind, len(each), *(summary(accuracies(each, edge)) for edge in edges)) for kind, each in kinds.items()
    ]
    title = (
        "Top-1 accuracy in % of RoPE (σ = 1) by how far its fastest planes turn, at edges of the test clips in pixels."
    )
    return Table("table3-counting", title, ("fastest planes", "seeds", *map(str, edges)), rows)


def _accuracy(results: Sequence[Result], condition: Condition) -> Summary:
    return summary([percent(row(result, condition)) for result in results])


def _curves(what: str, lines: Mapping[str, list], x: str, trained: int) -> Figure:
    title = f"Accuracy at other {what} than trained at (σ = 1)"
    return curves(title, lines, x=x, y="test accuracy (%)", scale="log", marked=(trained, "trained here"))


def _strips(experiment: VideoConfig, count: int = 4) -> Figure:
    """Draws a test clip of each of `count` classes, its frames side by side, as the model sees them."""
    _, clips = problem.datasets(experiment, unreadable="skip")
    shown = [next(i for i, at in enumerate(clips.labels.tolist()) if at == c) for c in clips.labels.unique()[:count]]
    dataset = EvalClips(clips, experiment.num_frames, experiment.image_size)
    figure = Figure(figsize=(8, 8 / experiment.num_frames * len(shown) + 0.3 * len(shown)), facecolor="white")
    for axes, index in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        strip = dataset.__getitems__([index]).pixels.permute(0, 3, 2, 4, 1).flatten(0, 1).flatten(1, 2)  # (H, T·W, 3)
        axes.imshow((strip.numpy() + 1) / 2)
        axes.set_title(clips.classes[int(clips.labels[index])], fontsize=9, color=INK, loc="left")
        axes.set_axis_off()
    return figure


def _differs(scale: Scale) -> list[str]:
    if scale.name == "paper":
        return []
    return [
        "Rows marked “paper” are the paper's own numbers, of UCF-101 and 8 layers of width 384, one run each. Ours are of "
        f"other clips ({scale.data}) and a small model: compare orders and differences, not values. “motion” are clips written "
        "on the spot, whose four classes cannot be told apart without positions: chance is 25 %."
    ]
