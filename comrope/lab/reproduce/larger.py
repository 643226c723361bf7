"""Images and clips larger than trained: what scaling the frequencies does for learned and for fixed spectra."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from comrope.lab.classification import Condition
from comrope.lab.experiment import ExperimentConfig
from comrope.lab.figures import percent
from comrope.lab.output import Outcome
from comrope.lab.reproduce import accuracy, video
from comrope.lab.reproduce.accuracy import A_RADIAN_A_PATCH, COUNTING
from comrope.lab.reproduce.pictures import gains
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.scales import Scale
from comrope.lab.reproduce.tables import Result, gather, on_seeds, row
from comrope.lab.statistics import Difference, paired, summary
from comrope.lab.study import Job
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table
from comrope.lab.video.problem import Condition as ClipCondition

METHODS = ("extrapolate", "ntk", "ntk-by-parts", "yarn", "entropy")
"""The scalings of images; "linear" is what relative positions do without one."""
CLIP_METHODS = ("extrapolate", "ntk", "yarn", "riflex", "entropy")
WITHOUT_PLANES = ("none", "ape")
"""Encodings without frequencies, of whose scores alone there is a scaling, "entropy". LieRE has none at all."""
RATIOS = ((2, 2), (3, 3), (4, 4), (1, 4), (2, 4))
"""Height and width of the test images over those of training."""
CLIP_RATIOS = ((2, 1), (3, 1), (4, 1), (1, 2), (1, 3), (2, 2))
"""Frames of the test clips, and edges of their frames, over those of training."""

Key = tuple[str, str, float]
"""(encoding, how RoPE rotates if not as in the paper, σ)"""


def larger(scale: Scale) -> Plan:
    """Frequencies scaled for images of 2, 3 and 4 times the trained size, non-square ones too: which method helps whom?

    The paper tests up to 2.3 times the trained size, without scaling. Table 1's positions are relative, on [0, 1] whatever the
    size, so that without scaling they interpolate, which is "linear". The other methods of `comrope.scaling` go from the
    trained grid to that of the test image, each component of a plane by its own speed along its axis; "entropy" leaves
    frequencies alone and sharpens attention. With a RoPE that rotates by a radian a patch beside the paper's. An image that is
    not square shows the middle of the square one that covers it.

    Cost: no training beyond table 1's, and one run of `starts`, a seed; each model measured under 6 to 31 conditions.
    """
    height, width = scale.image_size
    sizes = {f"{height * a}×{width * b}": Condition((height * a, width * b)) for a, b in RATIOS}
    trained = {f"{height}×{width}": Condition(scale.image_size)}
    keys: list[Key] = [(name, "", 1.0) for name in scale.of(*accuracy.PERTURBED)]
    keys += [(name, "", 0.0) for name in scale.among(*accuracy.STILL)]
    keys += [("rope", COUNTING, 1.0) for _ in scale.among("rope")]
    asked = {key: _conditions(key, trained, sizes, METHODS) for key in keys}

    def experiment(key: Key, seed: int) -> ExperimentConfig:
        faster: dict[str, Any] = {"max_frequency": scale.patches} if key[1] else {}
        return scale.experiment(key[0], seed, perturbation=key[2], **faster)

    jobs = [Job(experiment(key, seed), tuple(asked[key])) for key in keys for seed in scale.few_seeds]

    def outcome(results: list[Result]) -> Outcome:
        found = gather(keys, results)
        tables = _tables("larger", "Top-1 accuracy in %", found, asked, trained | sizes, METHODS)
        biggest = f"{height * 4}×{width * 4}"
        drawn = _gained(f"at {biggest} pixels", found, asked, sizes[biggest], METHODS)
        return Outcome(tables, {} if drawn is None else {"larger": drawn}, [on_seeds(len(scale.few_seeds))])

    return Plan("Images larger than trained", jobs, outcome)


def larger_video(scale: Scale) -> Plan:
    """Frequencies scaled for clips of more frames, and of larger ones, than trained: which method helps whom?

    Table 3's models, whose positions are relative along frames, rows and columns, as in `larger`. More frames are the same
    stretch of time seen more often. "riflex" is for the frames alone, as it was published. The paper tests no other number of
    frames, and scales nothing. With a RoPE that rotates by a radian a patch beside the paper's, as in table 3.

    Cost: no training beyond table 3's; each model measured under 7 to 40 conditions.
    """
    here = video.VIDEO[scale.name]
    base = scale.applied(here.experiment)
    (height, width), frames = base.image_size, base.num_frames
    clips = {(a, b): ClipCondition((height * b, width * b), num_frames=frames * a) for a, b in ((1, 1), *CLIP_RATIOS)}
    named = {f"{c.num_frames}×{c.size[0]}×{c.size[1]}": c for c in clips.values()}
    trained = dict(list(named.items())[:1])
    keys: list[Key] = [(name, "", 1.0) for name in scale.of(*video.PERTURBED)]
    keys += [(name, "", 0.0) for name in scale.among(*video.STILL)]
    keys += [("rope", COUNTING, 1.0) for _ in scale.among("rope")]
    asked = {key: _conditions(key, trained, named, CLIP_METHODS) for key in keys}
    asked = {key: [c for c in each if c.scaling != "riflex" or c.num_frames > frames] for key, each in asked.items()}

    def experiment(key: Key, seed: int) -> ExperimentConfig:
        faster: dict[str, Any] = video.counting_settings(base) if key[1] else {}
        return replace(base, encoding=key[0], perturbation=key[2], recipe=replace(base.recipe, seed=seed), **faster)

    jobs = [Job(experiment(key, seed), tuple(asked[key])) for key in keys for seed in scale.few_seeds]

    def outcome(results: list[Result]) -> Outcome:
        found = gather(keys, results)
        title = "Top-1 accuracy in % on clips of frames × height × width"
        tables = _tables("larger-video", title, found, asked, named, CLIP_METHODS)
        longest = clips[4, 1]
        drawn = _gained(f"at {longest.num_frames} frames", found, asked, longest, CLIP_METHODS)
        figures = {} if drawn is None else {"larger-video": drawn}
        return Outcome(tables, figures, [on_seeds(len(scale.few_seeds))], lead=f"Scale “{scale.name}”: {base.data}.")

    return Plan("Clips of more and of larger frames than trained", jobs, outcome)


def _conditions(key: Key, trained: Mapping[str, Any], sizes: Mapping[str, Any], methods: Sequence[str]) -> list[Any]:
    """Returns the trained size, and every larger one without and with each scaling that the encoding has."""
    scaled = ("entropy",) if key[0] in WITHOUT_PLANES else () if key[0] == "liere" else methods
    found = [replace(c, scaling=s) for c in sizes.values() for s in ("none", *scaled) if c not in trained.values()]
    return [*trained.values(), *found]


def _tables(
    name: str,
    title: str,
    found: Mapping[Key, Sequence[Result]],
    asked: Mapping[Key, Sequence[Any]],
    sizes: Mapping[str, Any],
    methods: Sequence[str],
) -> list[Table]:
    """Returns the tables of accuracies, and of scaled minus unscaled frequencies."""
    rows: list[tuple[Cell, ...]] = []
    against: list[tuple[Cell, ...]] = []
    for key, each in found.items():
        for method in ("none", *methods):
            wanted = [replace(c, scaling=method) for c in sizes.values()]
            if not any(c in asked[key] for c in wanted):
                continue
            about = (_named(key), f"{key[2]:g}", method, len(each))
            rows.append((*about, *(summary(_accuracies(each, c)) if c in asked[key] else None for c in wanted)))
            if method != "none":
                differences = (_difference(each, c) if c in asked[key] else None for c in wanted[1:])
                against.append((*about, *differences))
    columns = ("method", "σ", "scaling", "seeds", *sizes)
    tables = [
        Table(name, f"{title}, by how frequencies are scaled; the first size is that of training.", columns, rows)
    ]
    if against:
        columns = tuple(column for column in columns if column != next(iter(sizes)))
        tables.append(Table(f"{name}-differences", "Scaled minus not scaled, in percentage points.", columns, against))
    return tables


def _gained(
    where: str,
    found: Mapping[Key, Sequence[Result]],
    asked: Mapping[Key, Sequence[Any]],
    condition: Any,
    methods: Sequence[str],
) -> Any:
    """Draws what each scaling adds for each encoding trained with σ = 1; None if there is nothing to draw."""
    panels: dict[str, list[tuple[str, str, Difference]]] = {}
    for method in methods:
        scaled = replace(condition, scaling=method)
        there = {key: each for key, each in found.items() if key[2] == 1 and scaled in asked[key]}
        panels[method] = [(key[0], _named(key), _difference(each, scaled)) for key, each in there.items()]
    if not any(panels.values()):
        return None
    title = f"What scaling adds {where} (σ = 1)"
    return gains(title, panels, x="accuracy minus that without scaling (percentage points)")


def _named(key: Key) -> str:
    return label(key[0]) + (f", {A_RADIAN_A_PATCH}" if key[1] == COUNTING else "")


def _accuracies(results: Sequence[Result], condition: Any) -> list[float]:
    return [percent(row(result, condition)) for result in results]


def _difference(results: Sequence[Result], condition: Any) -> Difference:
    """Returns the accuracy under a condition minus that without its scaling, seed by seed."""
    return paired(_accuracies(results, condition), _accuracies(results, replace(condition, scaling="none")))
