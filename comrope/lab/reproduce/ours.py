"""Experiments that are not in the paper: commutators after training, number of axes, learned frequencies, initial angles."""

import math
from typing import Any

import torch

import comrope
from comrope.encodings import Encoding
from comrope.errors import ConfigurationError
from comrope.lab.bench.clock import Step, compared, in_turn
from comrope.lab.images.model import MODELS
from comrope.lab.output import Outcome
from comrope.lab.reproduce.accuracy import A_RADIAN_A_PATCH, COUNTING, FAMILY
from comrope.lab.reproduce.curve import MODEL, Condition, curve_tables, steepness
from comrope.lab.reproduce.pictures import scatter
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.planes import ALIGNED, all_planes, built, draw_planes, planes_of, speeds
from comrope.lab.reproduce.scales import Scale
from comrope.lab.reproduce.tables import Result, accuracies, checks, difference, gather, on_seeds, quartiles
from comrope.lab.rng import Stream, generator
from comrope.lab.statistics import Summary, summary
from comrope.lab.study import Job
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table

ROTATING = ("none", "rope", "rope-mixed", "string", "liere", *FAMILY)
LEARNED = ("rope-mixed", "string", *FAMILY)
STARTED = ("rope", "rope-mixed", "string", *FAMILY)
STARTS = {
    "normal, std 1": {},
    "normal, std 3": {"std": 3.0},
    "normal, std 0.3": {"std": 0.3},
    "identity": {"init": "identity"},
}
"""Settings of an encoding with learned angles, by name; the first is its own default."""
FASTER = 10
"""The larger learning rate of the angles, as a multiple of that of the weights."""
GRID_STDS = (0.5, 1.0, 2.0, 4.0, 8.0)
NUM_HEADS, HEAD_DIM = 2, 96
_CANVASES = ((1024,), (32, 32), (8, 8, 16), (4, 4, 8, 8))
CANVASES = {"demo": ((64,), (8, 8), (4, 4, 4), (2, 2, 4, 4)), "small": _CANVASES, "paper": _CANVASES}
"""Grids of tokens with one to four axes, by the scale's name."""


def commutators(scale: Scale) -> Plan:
    """Do the trained angle matrices commute, and does the RoPE equation hold?

    The paper proves it by construction and does not measure it; LieRE's matrices commute with probability 0. Measured in
    float64 by `comrope.check` in every layer of every run of table 1 with σ = 1; the largest is shown.

    Cost: table 1's runs with σ = 1.
    """
    names = scale.of(*ROTATING)
    jobs = [Job(scale.experiment(name, seed)) for name in names for seed in scale.seeds]

    def outcome(results: list[Result]) -> Outcome:
        title = "After training (σ = 1): the largest over layers and seeds."
        notes = [
            "Commutator: ‖A₁A₂ − A₂A₁‖ / (‖A₁‖‖A₂‖). RoPE equation: elements of R(x)ᵀR(y) − R(y − x). Offset drift: change of "
            "an attention score when all positions move. Rounding alone leaves about 1e-14."
        ]
        return Outcome([checks("commutators", title, gather(names, results))], {}, notes)

    return Plan("Commutators after training", jobs, outcome)


def axes(scale: Scale) -> Plan:
    """One to four axes: what an encoding costs and whether the RoPE equation holds.

    The paper has two axes (images) and three (video). The laboratory's ViT has two, so this looks at encodings alone: the same
    number of tokens (1024) on one to four axes, 2 heads of 96, block size 8, forward and backward.

    Cost: no training; a minute.
    """

    names = scale.of(*ROTATING[1:])

    def outcome(results: list[Result]) -> Outcome:
        rows: list[tuple[Cell, ...]] = []
        for grid in CANVASES[scale.name]:
            each = {name: _encoding(name, len(grid)) for name in names}
            positions = comrope.positions.grid(grid)
            rounds = max(2, scale.rounds // 2)
            seconds = in_turn({n: _step(pe, positions) for n, pe in each.items()}, rounds, lambda name: None)
            timed = {row["opponent"]: row for row in compared(seconds, next(iter(each)))}
            for name, pe in each.items():
                (check,) = comrope.check(pe)
                milliseconds = 1e3 * timed[name]["seconds"][1]
                ratio = quartiles(timed[name]["ratio"])
                laws = (f"{check.commutator:.1e}", f"{check.equation:.1e}", "yes" if check.holds else "no")
                rows.append(
                    (label(name), len(grid), milliseconds, ratio, sum(p.numel() for p in pe.parameters()), *laws)
                )
        rows.sort(key=lambda row: ROTATING.index(next(n for n in ROTATING if label(n) == row[0])))
        columns = ("method", "axes", "ms", "ratio", "parameters", "commutator", "RoPE equation", "holds")
        tokens = math.prod(CANVASES[scale.name][0])
        title = f"Rotating q and k of {tokens} tokens, {NUM_HEADS} heads of {HEAD_DIM}, forward and backward, by axes."
        notes = [
            "Angles are as drawn, not trained: with one axis every encoding commutes, LieRE too. Ratios are to "
            f"{label(names[0])} of the same round: median (lower – upper quartile)."
        ]
        return Outcome([Table("axes", title, columns, rows)], {}, notes)

    return Plan("Number of axes", [], outcome, ROTATING[1:], measures=True)


def spectra(scale: Scale) -> Plan:
    """What frequencies are learned: how fast the planes of each layer rotate, and along which axes.

    The paper looks at elements of the angle matrices only (figure 8); elements depend on the basis, frequencies do not.

    Cost: table 1's runs with σ = 1.
    """
    names = scale.of(*LEARNED)
    jobs = [Job(scale.experiment(name, seed)) for name in names for seed in scale.seeds]

    def outcome(results: list[Result]) -> Outcome:
        found = gather(names, results)
        rows: list[tuple[Cell, ...]] = []
        for name, each in found.items():
            runs = [planes_of(result["frequencies"]) for result in each]
            for layer in range(len(each[0]["frequencies"])):
                measured = [speeds(planes[layer]) for planes in runs if planes is not None]
                if measured:
                    rows.append(
                        (label(name), layer + 1, *(summary(list(column)) for column in zip(*measured, strict=True)))
                    )
        columns = ("method", "layer", "median |ω|", "95 % below", "largest", f"within {ALIGNED:g}° of an axis, %")
        title = "Learned frequencies |ω| of planes, radians per canvas (σ = 1)."
        first = draw_planes({name: each[0]["frequencies"] for name, each in found.items()})
        notes = [
            on_seeds(len(scale.seeds)),
            f"Directions at random would have {100 * 4 * ALIGNED / 180:.0f} % of planes within {ALIGNED:g}° of an axis; "
            f"ComRoPE-AP has all by construction. The figure is of seed {scale.seeds[0]}.",
        ]
        return Outcome([Table("spectra", title, columns, rows)], {"spectra": first}, notes)

    return Plan("Learned frequencies", jobs, outcome)


def starts(scale: Scale) -> Plan:
    """Which initial angles and which learning rate of the angles matter, and how RoPE does with faster frequencies.

    The paper draws standard normal parameters and has one learning rate. All commuting encodings fold to RoPE-Mixed, so
    what differs between them is how they start and how they train: the same std gives planes of AP, LD and MT, which
    are eigenvalues of 8 × 8 matrices, larger frequencies than RoPE-Mixed's. AP and LD with b = 8 do not include vanilla
    RoPE. The paper's RoPE rotates by a radian a canvas at most. So it differs from learned encodings by its frequencies
    too, not only because its angles are fixed. A RoPE that rotates by a radian a patch, as where patches are counted,
    separates the two.

    Cost: 5 encodings × (4 to 6 starts, and a larger learning rate with the default one) and 2 of RoPE a seed; the default is
    table 1's run.
    """
    ways = {name: _starts(scale, name) for name in scale.of(*STARTED)}
    keys = [(name, start, 1) for name in ways for start in ways[name]]
    keys += [(name, next(iter(ways[name])), FASTER) for name in ways if name in LEARNED]
    keys.sort(key=lambda key: STARTED.index(key[0]))
    rate = scale.recipe.learning_rate
    conditions = scale.squares(scale.few_edges)
    jobs = [
        Job(scale.experiment(n, seed, angle_learning_rate=None if r == 1 else r * rate, **ways[n][start]), conditions)
        for n, start, r in keys
        for seed in scale.few_seeds
    ]

    def outcome(results: list[Result]) -> Outcome:
        found, trained = gather(keys, results), scale.image_size[0]
        rows: list[tuple[Cell, ...]] = []
        against: list[tuple[Cell, ...]] = []
        drawn: dict[str, list[tuple[Summary, Summary]]] = {}
        fastest: dict[tuple[str, str, int], list[float]] = {}
        counting = found.get(("rope", COUNTING, 1))
        for (name, start, r), each in found.items():
            about = (label(name), start, f"× {r}", len(each))
            reached = [summary(accuracies(each, edge)) for edge in scale.few_edges]
            first = found[name, next(iter(ways[name])), 1]
            gained = None if first is each else difference(each, first, trained)
            measured = [speeds(all_planes(scale, result)) for result in each]
            fastest[name, start, r] = [values[1] for values in measured]
            median, most = (summary([values[i] for values in measured]) for i in (0, 1))
            rows.append((*about, *reached, gained, median, most))
            drawn.setdefault(name, []).append((most, summary(accuracies(each, trained))))
            if counting is not None and each is not counting:
                against.append((*about, *(difference(each, counting, edge) for edge in scale.few_edges)))
        edges = [f"top-1 % at {edge}" for edge in scale.few_edges]
        columns = ("method", "start", "learning rate of angles", "seeds", *edges)
        title = "Accuracy by start and learning rate of the angles (σ = 1); |ω| in radians per canvas, after training."
        tables = [
            Table("starts", title, (*columns, f"minus the default, at {trained}", "median |ω|", "95 % below"), rows)
        ]
        if against:
            title = f"Minus {label('rope')} that turns {A_RADIAN_A_PATCH}, in percentage points."
            tables.append(Table("starts-differences", title, columns, against))
        one_curve = {
            edge: [Condition(label(key[0]), fastest[key], accuracies(each, edge)) for key, each in found.items()]
            for edge in scale.few_edges
        }
        tables += curve_tables("starts", one_curve)
        figure = scatter(
            "Accuracy by how fast the planes turn, each point a start or a learning rate (σ = 1)",
            drawn,
            x="95 % of planes turn slower, radians per canvas after training",
            y=f"test accuracy at {trained} (%)",
        )
        return Outcome(tables, {"starts": figure}, [on_seeds(len(scale.few_seeds))])

    return Plan("Starts and learning rates of the angles", jobs, outcome)


def grids(scale: Scale) -> Plan:
    """Is it radians over the image or radians a patch that tell a good start from a slow one?

    The paper has one grid, 14 × 14, and positions from 0 to 1. Here RoPE-Mixed starts from several standard deviations, trained
    on images of the scale's size and of twice that, upsampled: the same contents, on twice as many patches along each side.
    If speed matters over the image, one curve belongs to both; if it matters from patch to patch, the curve of the larger grid
    rises at twice the speed.

    Cost: 5 starts × 2 sizes a seed; the larger size has four times as many tokens.
    """
    scale.of("rope-mixed")
    sizes = [tuple(factor * side for side in scale.image_size) for factor in (1, 2)]
    keys = [(size, std) for size in sizes for std in GRID_STDS]
    jobs = [
        Job(
            scale.experiment("rope-mixed", seed, image_size=size, std=None if std == 1 else std),
            scale.squares((size[0],)),
        )
        for size, std in keys
        for seed in scale.few_seeds
    ]

    def outcome(results: list[Result]) -> Outcome:
        found = gather(keys, results)
        rows: list[tuple[Cell, ...]] = []
        curves: dict[tuple[int, ...], list[Condition]] = {}
        for (size, std), each in found.items():
            patches = size[0] // MODELS[scale.model]["patch_size"]
            fastest = [speeds(all_planes(scale, result))[1] for result in each]
            reached = accuracies(each, size[0])
            most = summary(fastest)
            rows.append(
                (f"{patches} × {patches}", f"{std:g}", len(each), summary(reached), most, f"{most.mean / patches:.2f}")
            )
            curves.setdefault(size, []).append(Condition("RoPE-Mixed", fastest, reached))
        columns = ("patches", "std", "seeds", "top-1 % at that size", "95 % below, over the image", "a patch")
        tables = [Table("grids", "Accuracy of RoPE-Mixed by the start's std (σ = 1).", columns, rows)]
        if len(scale.few_seeds) > 1:
            fits: list[tuple[Cell, ...]] = []
            for size, conditions in curves.items():
                patches = size[0] // MODELS[scale.model]["patch_size"]
                rise = steepness(conditions)
                fits.append((f"{patches} × {patches}", rise, None if rise is None else f"{rise / patches:.2f}"))
            columns = ("patches", "c, radians over the image", "c, radians a patch")
            tables.append(Table("grids-curve", f"{MODEL}, fitted to each grid.", columns, fits))
        return Outcome(tables, {}, [on_seeds(len(scale.few_seeds))])

    return Plan("Speed over the image or from patch to patch", jobs, outcome)


def _starts(scale: Scale, encoding: str) -> dict[str, dict[str, Any]]:
    """Returns the settings of the starts that an encoding has, by their names; the first are its defaults."""
    counting = {"max_frequency": scale.patches}
    if encoding == "rope":
        return {"rope": {}, COUNTING: counting}
    rope = {"init": "rope"}
    ways = {**STARTS, "rope": rope, COUNTING: rope | counting}
    return {start: settings for start, settings in ways.items() if _possible(scale, encoding, settings)}


def _encoding(name: str, num_axes: int) -> Encoding:
    torch.manual_seed(0)
    sizes = {"num_heads": NUM_HEADS, "head_dim": HEAD_DIM, "num_axes": num_axes}
    return comrope.encoding(name, **sizes)  # pyright: ignore[reportReturnType]


def _step(pe: Encoding, positions: torch.Tensor) -> Step:
    """Returns a step: forward and backward of the rotation of q and k."""
    rng = generator(0, Stream.EXAMPLE)
    q, k, grad = (torch.randn(1, NUM_HEADS, len(positions), HEAD_DIM, generator=rng) for _ in range(3))
    q.requires_grad_()
    k.requires_grad_()

    def step() -> None:
        q.grad = k.grad = None
        torch.autograd.backward(pe(q, k, positions), (grad, grad))

    return step


def _possible(scale: Scale, encoding: str, settings: dict[str, Any]) -> bool:
    """Whether the encoding has this start."""
    try:
        built(scale, encoding, settings)
    except ConfigurationError:
        return False
    return True
