"""What learning the angles adds: every start trained with its angles learned and with its angles as they were."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from comrope.lab.experiment import ExperimentConfig
from comrope.lab.output import Outcome
from comrope.lab.reproduce.accuracy import COUNTING, LONGER
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.planes import all_planes, speeds
from comrope.lab.reproduce.scales import Scale
from comrope.lab.reproduce.tables import Result, accuracies, difference, gather, on_seeds
from comrope.lab.reproduce.text import bits, text_scale
from comrope.lab.reproduce.text import notes as notes_on_text
from comrope.lab.reproduce.video import VIDEO, counting_settings, with_frames
from comrope.lab.statistics import paired, summary
from comrope.lab.study import Job
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table
from comrope.lab.text.problem import longer
from comrope.lab.video import problem as video
from comrope.lab.video.config import VideoOptions

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
    starts = _starts(scale)
    ways = [way for epochs in _lengths(scale) for way in _ways(scale, starts, epochs)]
    base = scale.experiment("comrope-ld", seed=0)
    conditions = scale.squares(scale.few_edges)
    jobs = [Job(_started(base, way, starts, seed), conditions) for way in ways for seed in scale.seeds]

    def outcome(results: list[Result]) -> Outcome:
        found: dict[Way, list[Result]] = gather(ways, results)
        tables = _tables("learning", "Accuracy in % (σ = 1)", found, scale.few_edges, accuracies, planes=scale)
        oblique: list[tuple[Cell, ...]] = []
        for (name, start, learned, epochs), each in found.items():
            axial = found.get((name, AXIAL, learned, epochs))
            if start == SPREAD and axial is not None:
                minus = [difference(each, axial, edge) for edge in scale.few_edges]
                oblique.append((_angles(learned), epochs, len(each), *minus))
        if oblique:
            title = "Planes spread in direction minus planes along axes, at the same speeds, in percentage points."
            headings = ("angles", "epochs", "seeds", *map(str, scale.few_edges))
            tables.append(Table("learning-oblique", title, headings, oblique))
        return Outcome(tables, {}, [on_seeds(len(scale.seeds))])

    return Plan("What learning the angles adds", jobs, outcome)


def learning_video(scale: Scale) -> Plan:
    """Does learning the angles do anything in video? Learned against fixed, from the same start and seeds, as in `learning`.

    Table 3's model and clips, σ = 1, tested at the trained number of frames. The starts are RoPE that rotates by a radian a
    patch, which RoPE-Mixed learns on from, RoPE-Mixed's with std 3, and the defaults of LD and MT. The paper does not ask.

    Cost: 4 starts × 2 a seed.
    """
    here = VIDEO[scale.name]
    base = scale.applied(here.experiment)
    starts = {
        ("rope-mixed", "normal, std 3"): {"std": 3.0},
        ("comrope-ld", "normal, std 1"): {},
        ("comrope-mt", "normal, std 1"): {},
        ("rope-mixed", COUNTING): {"init": "rope"} | counting_settings(base),
    }
    ways = _ways(scale, starts, base.recipe.epochs)
    edges = tuple(dict.fromkeys((here.edges[0], base.image_size[0], here.edges[-1])))
    conditions = tuple(video.conditions(base, VideoOptions(resolutions=tuple(map(str, edges)))))
    jobs = [Job(_started(base, way, starts, seed), conditions) for way in ways for seed in scale.seeds]

    def outcome(results: list[Result]) -> Outcome:
        def values(each: Sequence[Result], edge: int) -> list[float]:
            return accuracies([with_frames(result, base.num_frames) for result in each], edge)

        title = f"Accuracy in % on clips of {base.num_frames} frames (σ = 1)"
        tables = _tables("learning-video", title, gather(ways, results), edges, values)
        return Outcome(tables, {}, [on_seeds(len(scale.seeds))], lead=f"Scale “{scale.name}”: {base.data}.")

    return Plan("What learning the angles adds in video", jobs, outcome)


def learning_text(scale: Scale) -> Plan:
    """Does learning the angles do anything in language models? Learned against fixed, from the same seeds, as in `learning`.

    The models of `text`, in which all encodings start with RoPE's frequencies. So fixed angles are RoPE, whatever the encoding.
    The paper has no language models.

    Cost: 4 trainings a seed, of which `text` shares its own.
    """
    base = text_scale(scale).experiment
    learned = ("rope-mixed", "comrope-ld", "comrope-mt")
    ways = _ways(scale, {(name, "rope"): {} for name in learned}, base.recipe.epochs)
    names = ("rope", *scale.of(*learned))
    conditions = tuple(longer(base))
    jobs = [
        Job(replace(base, encoding=name, recipe=replace(base.recipe, seed=seed)), conditions)
        for name in names
        for seed in scale.seeds
    ]

    def outcome(results: list[Result]) -> Outcome:
        by_name = gather(names, results)
        found = {way: by_name[way[0] if way[2] else "rope"] for way in ways}
        tables = _tables("learning-text", "Bits per byte", found, conditions, bits, digits=3, heading=_length)
        return Outcome(tables, {}, notes_on_text(base, len(scale.seeds)), lead=f"Scale “{scale.name}”: {base.data}.")

    return Plan("What learning the angles adds in language models", jobs, outcome)


def _length(condition: Any) -> str:
    return str(condition.length)


Column = TypeVar("Column")


def _tables(
    name: str,
    title: str,
    found: Mapping[Way, list[Result]],
    columns: Sequence[Column],
    values: Callable[[list[Result], Column], list[float]],
    *,
    heading: Callable[[Column], str] = str,
    digits: int = 2,
    planes: Scale | None = None,
) -> list[Table]:
    """Returns the tables of what every way reaches, and of learned minus fixed angles.

    Args:
        found: the results of each way.
        columns: what is measured, such as sizes of images.
        values: returns the value of each seed's run for a column.
        heading: returns a column's heading.
        planes: the scale, if the speeds of the planes are to be given, in positions of two axes.
    """
    rows: list[tuple[Cell, ...]] = []
    gained: list[tuple[Cell, ...]] = []
    for (encoding, start, learned, epochs), each in found.items():
        about = (label(encoding), start, epochs)
        measured = [] if planes is None else [speeds(all_planes(planes, result)) for result in each]
        fast = [] if planes is None else [summary([of_run[i] for of_run in measured]) for i in (0, 1)]
        rows.append(
            (*about, _angles(learned), len(each), *(summary(values(each, column)) for column in columns), *fast)
        )
        if learned:
            fixed = found[encoding, start, False, epochs]
            minus = (paired(values(each, column), values(fixed, column)) for column in columns)
            gained.append((*about, len(each), *minus))
    about, headings = ("learned as", "start", "epochs"), tuple(map(heading, columns))
    of_planes = () if planes is None else ("median |ω|", "95 % below")
    note = "" if planes is None else "; |ω| in radians per canvas, after training"
    return [
        Table(
            name,
            f"{title}, with learned and with fixed angles{note}.",
            (*about, "angles", "seeds", *headings, *of_planes),
            rows,
            digits,
        ),
        Table(f"{name}-differences", "Learned minus fixed.", (*about, "seeds", *headings), gained, digits),
    ]


def _ways(scale: Scale, starts: Mapping[tuple[str, str], Any], epochs: int) -> list[Way]:
    """Returns every start of the encodings to compare, with fixed and with learned angles."""
    names = scale.of(*dict.fromkeys(name for name, _ in starts))
    return [(*start, learned, epochs) for start in starts if start[0] in names for learned in (False, True)]


Config = TypeVar("Config", bound=ExperimentConfig)


def _started(base: Config, way: Way, starts: Mapping[tuple[str, str], dict[str, Any]], seed: int) -> Config:
    """Returns the run of a start; where it draws nothing, fixed angles are RoPE's."""
    name, start, learned, epochs = way
    settings = dict(starts[name, start])
    if not learned and settings.get("init") == "rope":
        name = "rope"
        del settings["init"]
    frozen = not learned and name != "rope"
    return replace(
        base, encoding=name, frozen=frozen, recipe=replace(base.recipe, seed=seed, epochs=epochs), **settings
    )


def _angles(learned: bool) -> str:
    return "learned" if learned else "fixed"


def _lengths(scale: Scale) -> list[int]:
    """Returns the epochs of short and long training; those that were asked for, if they were."""
    lengths = (1,) if "epochs" in scale.asked else LENGTHS[scale.name]
    return [length * scale.recipe.epochs for length in lengths]


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
