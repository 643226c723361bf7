"""Encodings of others, and of installed packages, beside ComRoPE-LD and RoPE that counts patches."""

from typing import Any

from comrope.encodings import ENCODINGS, encoding, kind_of, known_encodings, registration
from comrope.errors import ConfigurationError, NoSpectrumError
from comrope.lab.output import Outcome
from comrope.lab.reproduce.accuracy import A_RADIAN_A_PATCH
from comrope.lab.reproduce.curve import Condition, fits_table
from comrope.lab.reproduce.pictures import gains
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.planes import all_planes, speeds
from comrope.lab.reproduce.scales import Scale
from comrope.lab.reproduce.tables import Result, accuracies, difference, gather, holds, on_seeds
from comrope.lab.statistics import summary
from comrope.lab.study import Job
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table

LD, ROPE = "comrope-ld", "rope"
"""What all others are compared with."""
ENOUGH = 8
"""Spectra that it takes to fit a curve of three parameters."""


def rivals(scale: Scale) -> Plan:
    """Rotary encodings of others in table 1's setting (σ = 1), against ComRoPE-LD and RoPE that rotates by a radian a patch.

    Every encoding that is registered (`comrope.register`), by this library or an installed package, with its own defaults but
    for the speed: a rival's fastest planes rotate by as many radians a patch as its publication has on its own training
    grid. `--encodings` picks some; by default it is those for images that fit the model's heads. Neither the paper nor their
    publications compare them with ComRoPE. The curve of `starts`, accuracy by the speed that 95 % of planes stay below, is
    fitted to those that have a spectrum, if they are enough.

    Cost: a training for each encoding and seed; LD and RoPE are shared with `learning`.
    """
    registered = [name for name in known_encodings() if name not in ENCODINGS]
    left_out = {}
    if scale.encodings == tuple(ENCODINGS):
        left_out = {name: reason for name in registered if (reason := _obstacle(scale, name))}
        names = [name for name in registered if name not in left_out]
    else:
        names = scale.of(*registered)
    settings = {LD: {}, ROPE: {"max_frequency": scale.patches}} | {n: _speed(scale, n) for n in names}
    conditions = scale.squares()
    jobs = [
        Job(scale.experiment(name, seed, **each), conditions)
        for name, each in settings.items()
        for seed in scale.few_seeds
    ]

    def outcome(results: list[Result]) -> Outcome:
        found: dict[str, list[Result]] = gather(settings, results)
        few = scale.few_edges
        titles = {LD: label(LD), ROPE: f"{label(ROPE)}, {A_RADIAN_A_PATCH}"}
        rows: list[tuple[Cell, ...]] = []
        against: list[tuple[Cell, ...]] = []
        fastest = {name: values for name, each in found.items() if (values := _fastest(scale, each)) is not None}
        for name, each in found.items():
            method = titles.get(name, label(name))
            speed = settings[name].get("max_frequency")
            published = None if speed is None else f"{speed / scale.patches:.2f}"
            most = summary(fastest[name]) if name in fastest else None
            law = {True: "yes", False: "no", None: None}[holds(name, each)]
            reached = [summary(accuracies(each, edge)) for edge in scale.edges]
            rows.append((method, len(each), published, most, law, each[0]["num_encoding_parameters"], *reached))
            for other, title in titles.items():
                if name not in (other, LD):
                    minus = [difference(each, found[other], edge) for edge in few]
                    against.append((method, title, len(each), *minus))
        title = "Top-1 accuracy in % (σ = 1). Columns: edge of the test images in pixels."
        about = ("fastest, rad a patch", "95 % below, rad over the image", "RoPE equation", "angles")
        headings = ("method", "seeds", *about, *map(str, scale.edges))
        tables = [
            Table("rivals", title, headings, rows),
            Table(
                "rivals-differences",
                "In percentage points.",
                ("method", "minus", "seeds", *map(str, few)),
                against,
            ),
        ]
        trained = scale.image_size[0]
        others = [
            (n, titles.get(n, label(n)), difference(each, found[LD], trained)) for n, each in found.items() if n != LD
        ]
        title = f"Accuracy at {trained} pixels against that of {label(LD)} (σ = 1)"
        figure = gains(title, {f"minus {label(LD)}": others}, x="percentage points")
        if len(fastest) >= ENOUGH and len(scale.few_seeds) > 1:
            spectra = {e: [Condition("", v, accuracies(found[n], e)) for n, v in fastest.items()] for e in few}
            tables.append(fits_table("rivals", spectra))
        notes = [f"{label(name)}: {each.about}" for name in names if (each := registration(name))]
        notes += [f"{label(name)} is left out: {reason}" for name, reason in left_out.items()]
        return Outcome(tables, {"rivals": figure}, [on_seeds(len(scale.few_seeds)), *notes])

    return Plan("Encodings of others", jobs, outcome)


def _fastest(scale: Scale, results: list[Result]) -> list[float] | None:
    """Returns for each run the speed that 95 % of planes stay below, in radians over the image; None without a spectrum."""
    try:
        return [speeds(all_planes(scale, result))[1] for result in results]
    except NoSpectrumError:
        return None


def _obstacle(scale: Scale, name: str) -> str | None:
    """Returns why an encoding cannot be trained on images by the scale's model, such as one for text; None if it can."""
    sizes = {"num_heads": scale.num_heads, "head_dim": scale.head_dim, "num_axes": 2, "device": "meta"}
    try:
        encoding(name, **sizes, **_speed(scale, name))
    except ConfigurationError as error:
        return str(error)
    return None


def _speed(scale: Scale, name: str) -> dict[str, Any]:
    """Returns the setting by which a rival rotates as fast a patch as published, where that is known."""
    published = getattr(kind_of(name), "published_speed", None)
    return {} if published is None else {"max_frequency": published * scale.patches}
