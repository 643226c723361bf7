"""Accuracy from scratch: table 1 with figure 3, figures 6 and 7, table 10."""

from dataclasses import replace
from itertools import combinations
from typing import Any

from matplotlib.figure import Figure

from comrope.lab.experiment import Recipe
from comrope.lab.output import Outcome
from comrope.lab.reproduce import paper
from comrope.lab.reproduce.pictures import curves
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.scales import BLOCK_SIZE, BLOCKED, Scale
from comrope.lab.reproduce.tables import (
    Key,
    Result,
    accuracies,
    by_size,
    difference,
    differences,
    gather,
    means,
    on_seeds,
)
from comrope.lab.statistics import summary
from comrope.lab.study import Job
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table

PERTURBED = ("none", "ape", "rope", "rope-mixed", "string", "liere", "comrope-ap", "comrope-ld", "comrope-mt")
STILL = ("ape", "rope", "liere", "comrope-ap", "comrope-ld")
FAMILY = ("comrope-ap", "comrope-ld", "comrope-mt")
_INTENSITIES = (0.0, 0.25, 0.5, 1.0, 2.0)
INTENSITIES = {"demo": (0.0, 1.0), "small": _INTENSITIES, "paper": _INTENSITIES}
"""The values of σ in figure 7, in patches, by the scale's name."""
_DEIT: dict[str, Any] = {"weight_decay": 0.05, "warmup": 5 / 300, "repeats": 3}
DEIT = {
    "demo": Recipe(epochs=2, batch_size=24, learning_rate=3e-3, **_DEIT),
    "small": Recipe(epochs=4, batch_size=32, learning_rate=1e-3, **_DEIT),
    "paper": Recipe(epochs=300, batch_size=1024, learning_rate=1e-3, precision="bf16", **_DEIT),
}
"""DeiT's recipe (table 10), by the scale's name; its augmentation comes with augment="deit"."""
A_RADIAN_A_PATCH = "a radian a patch"
COUNTING = f"rope, {A_RADIAN_A_PATCH}"
"""The start by which RoPE counts patches."""
LONGER = 5
"""Length of long trainings, in the scale's own number of epochs."""


def table1(scale: Scale) -> Plan:
    """Encodings at other resolutions than the one trained at, with and without coordinate perturbation (with figure 3).

    The paper: ViT-B/16 on ImageNet-1K from scratch at 224, 200 epochs, batch 6144, AdamW at 1e-3, block size 8; tested from
    112 to 512 without retraining. ComRoPE-LD has 65.49 % at 224 and 55.29 % at 512 with σ = 1, LieRE 64.36 % and 53.74 %, RoPE
    63.09 % and 51.11 %, APE 58.76 % and 50.99 %; σ = 1 is better than σ = 0 nearly everywhere.
    Ours adds a model without encoding, RoPE-Mixed, STRING and ComRoPE-MT at σ = 1.

    Cost: 14 trainings a seed (9 encodings at σ = 1, 5 at σ = 0), each measured at every size.
    """
    keys = [(name, 1.0) for name in scale.of(*PERTURBED)] + [(name, 0.0) for name in scale.among(*STILL)]
    jobs = [Job(scale.experiment(n, seed, perturbation=s), scale.squares()) for n, s in keys for seed in scale.seeds]

    def outcome(results: list[dict]) -> Outcome:
        found = gather(keys, results)
        shared = (scale, found)
        against = [((name, 1.0), ("rope", 1.0)) for name in PERTURBED if name != "rope"]
        against += [((name, 1.0), ("rope-mixed", 1.0)) for name in ("string", *FAMILY)]
        against += [((name, 1.0), ("liere", 1.0)) for name in FAMILY]
        against += [((f, 1.0), (s, 1.0)) for s, f in combinations(FAMILY, 2)]
        against += [((name, 0.0), ("rope", 0.0)) for name in STILL if name != "rope"]
        against += [((name, 0.0), ("liere", 0.0)) for name in FAMILY if name in STILL]
        against += [(("comrope-ld", 0.0), ("comrope-ap", 0.0))]
        sigmas = [((name, 1.0), (name, 0.0)) for name in STILL]
        tables = [
            by_size("table1", "Top-1 accuracy in %, trained from scratch.", *shared, paper.TABLE1),
            differences("table1-differences", "Between encodings.", *shared, against, paper.TABLE1),
            differences("table1-perturbation", "What training with perturbation adds.", *shared, sigmas, paper.TABLE1),
        ]
        drawn = {"table1-fig3": _by_resolution(scale, found, 1.0)}
        if any(sigma == 0 for _, sigma in keys):
            drawn["table1-fig3-still"] = _by_resolution(scale, found, 0.0)
        return Outcome(tables, drawn, [on_seeds(len(scale.seeds)), scale.differs])

    return Plan("Table 1 and figure 3: accuracy at other resolutions", jobs, outcome)


def longer(scale: Scale) -> Plan:
    """Table 1's comparison, trained five times as long: does the order hold, and does perturbation begin to pay?

    The paper trains for 200 epochs, where the small scale has 4: what a long training evens out, four epochs need not. With
    RoPE that rotates by a radian a patch and RoPE-Mixed that starts three times as fast beside those of table 1.

    Cost: 10 trainings a seed and σ, five times as long as table 1's.
    """
    recipe = replace(scale.recipe, epochs=scale.recipe.epochs * (1 if "epochs" in scale.asked else LONGER))
    ways = _compared(scale)
    names = scale.of(*dict.fromkeys(name for name, _ in ways))
    keys = [(*way, sigma) for sigma in (1.0, 0.0) for way in ways if way[0] in names]
    jobs = [
        Job(scale.experiment(name, seed, perturbation=sigma, recipe=recipe, **ways[name, start]), scale.squares())
        for name, start, sigma in keys
        for seed in scale.few_seeds
    ]

    def outcome(results: list[Result]) -> Outcome:
        found = gather(keys, results)
        edges, few = scale.edges, scale.few_edges
        rows: list[tuple[Cell, ...]] = []
        against: list[tuple[Cell, ...]] = []
        for (name, start, sigma), each in found.items():
            about = (label(name), start, f"{sigma:g}", len(each))
            rows.append((*about, *(summary(accuracies(each, edge)) for edge in edges)))
            for other, way in (("rope", "rope"), ("rope", COUNTING), ("liere", "normal, std 1"), ("", "")):
                second = found.get((other, way, sigma)) if other else found[name, start, 0.0]
                if second is not None and second is not each:
                    minus = f"{label(other)}, {way}" if other else "the same, σ = 0"
                    against.append((*about, minus, *(difference(each, second, edge) for edge in few)))
        columns = ("method", "start", "σ", "seeds")
        title = f"Top-1 accuracy in %, epochs: {recipe.epochs}. Columns: edge of the test images in pixels."
        tables = [
            Table("longer", title, (*columns, *map(str, edges)), rows),
            Table("longer-differences", "In percentage points.", (*columns, "minus", *map(str, few)), against),
        ]
        return Outcome(tables, {}, [on_seeds(len(scale.few_seeds))])

    return Plan("Table 1 in longer training", jobs, outcome)


def _compared(scale: Scale) -> dict[tuple[str, str], dict[str, Any]]:
    """Settings of what `longer` compares, by (encoding, its start)."""
    usual = "normal, std 1"
    return {
        ("none", "–"): {},
        ("ape", "–"): {},
        ("rope", "rope"): {},
        ("rope", COUNTING): {"max_frequency": scale.patches},
        ("rope-mixed", usual): {},
        ("rope-mixed", "normal, std 3"): {"std": 3.0},
        **{(name, usual): {} for name in ("liere", *FAMILY)},
    }


def fig6(scale: Scale) -> Plan:
    """The block size b: accuracy, training time and parameters.

    The paper varies b = 2, 4, 8 for ComRoPE-AP, -LD and LieRE and finds larger blocks better and slower (figure 6, a picture,
    no numbers). Ours goes on to the whole head, and adds ComRoPE-MT, whose b only groups the planes that share a basis.

    Cost: at most 6 block sizes × 4 encodings a seed; b = 8 are table 1's runs.
    """
    keys = [(name, b) for name in scale.of(*BLOCKED) for b in scale.block_sizes_of(name)]
    conditions = scale.squares(scale.few_edges)
    jobs = [Job(scale.experiment(n, seed, block_size=b), conditions) for n, b in keys for seed in scale.few_seeds]

    def outcome(results: list[dict]) -> Outcome:
        found, trained = gather(keys, results), scale.image_size[0]
        rows: list[tuple[Cell, ...]] = []
        for (name, b), each in found.items():
            reached = [summary(accuracies(each, edge)) for edge in scale.few_edges]
            usual = found.get((name, BLOCK_SIZE), each)
            gained = None if usual is each else difference(each, usual, trained)
            seconds = summary([result["timing"]["train_seconds"] for result in each])
            rows.append((label(name), b, len(each), *reached, gained, seconds, each[0]["num_encoding_parameters"]))
        sizes = [f"top-1 % at {edge}" for edge in scale.few_edges]
        gained = f"minus b = {BLOCK_SIZE}, at {trained}"
        columns = ("method", "block size", "seeds", *sizes, gained, "training, s", "parameters of the encoding")
        title = f"Accuracy by block size, trained at {trained}, σ = 1. The paper gives a picture only."
        reached = means(found, trained)
        drawn = {n: [(float(b), reached[n, b]) for m, b in keys if m == n] for n in dict.fromkeys(n for n, _ in keys)}
        figure = curves(
            "Accuracy by block size (σ = 1)", drawn, x="block size b", y=f"test accuracy at {trained} (%)", scale="log"
        )
        notes = [
            on_seeds(len(scale.few_seeds)),
            "Seconds of training are of processes side by side, and are no benchmark: see table 9 and `comrope bench`.",
        ]
        return Outcome([Table("fig6", title, columns, rows)], {"fig6": figure}, notes)

    return Plan("Figure 6: block size", jobs, outcome)


def fig7(scale: Scale) -> Plan:
    """The perturbation intensity σ in training.

    The paper draws accuracy against σ (figure 7, a picture, no numbers) and settles on σ = 1. Here σ is in patches, drawn anew
    at every step from a Gaussian cut off at the patch's edge.

    Cost: 5 intensities × 5 encodings a seed; σ = 0 and 1 are table 1's runs.
    """
    keys = [(name, float(sigma)) for name in scale.of(*STILL) for sigma in INTENSITIES[scale.name]]
    conditions = scale.squares(scale.few_edges)
    jobs = [Job(scale.experiment(n, seed, perturbation=s), conditions) for n, s in keys for seed in scale.few_seeds]

    def outcome(results: list[dict]) -> Outcome:
        found, trained = gather(keys, results), scale.image_size[0]
        rows: list[tuple[Cell, ...]] = [
            (label(n), f"{s:g}", len(each), *(summary(accuracies(each, edge)) for edge in scale.few_edges))
            for (n, s), each in found.items()
        ]
        columns = ("method", "σ", "seeds", *(f"top-1 % at {edge}" for edge in scale.few_edges))
        title = f"Accuracy by perturbation intensity, trained at {trained}. The paper gives a picture only."
        gains: list[tuple[Cell, ...]] = [
            (label(n), f"{s:g}", len(each), *(difference(each, found[n, 0.0], edge) for edge in scale.few_edges))
            for (n, s), each in found.items()
            if s != 0 and (n, 0.0) in found
        ]
        tables = [
            Table("fig7", title, columns, rows),
            Table("fig7-differences", "Minus the same method's at σ = 0, in percentage points.", columns, gains),
        ]
        drawn = {}
        for edge in scale.few_edges:
            reached = means(found, edge)
            lines = {n: [(s, reached[n, s]) for m, s in keys if m == n] for n in dict.fromkeys(n for n, _ in keys)}
            drawn[f"fig7-{edge}"] = curves(
                f"Accuracy at {edge} pixels by perturbation intensity",
                lines,
                x="perturbation intensity σ in training (patches)",
                y="test accuracy (%)",
            )
        return Outcome(tables, drawn, [on_seeds(len(scale.few_seeds))])

    return Plan("Figure 7: perturbation intensity", jobs, outcome)


def table10(scale: Scale) -> Plan:
    """DeiT's recipe instead of the basic one: RoPE-Mixed, ComRoPE-AP and -LD.

    DeiT: RandAugment (9, 0.5), colour jitter, random erasing 0.25, mixup 0.8, CutMix 1, label smoothing 0.1, stochastic depth
    0.1, every image three times an epoch, weight decay 0.05; 300 epochs with 5 of warm-up, batch 1024, learning rate 1e-3. The
    paper's numbers at 224: RoPE-Mixed 81.42 %, AP 82.01 %, LD 81.78 %; at 512: 78.39 %, 79.75 %, 78.97 %.
    The paper does not say which σ; ours is 1.

    Cost: 3 trainings a seed.
    """
    keys = [(name, 1.0) for name in scale.of("rope-mixed", "comrope-ap", "comrope-ld")]
    deit = {"augment": "deit", "recipe": scale.lengthened(DEIT[scale.name])}
    jobs = [Job(scale.experiment(n, seed, **deit), scale.squares()) for n, _ in keys for seed in scale.few_seeds]

    def outcome(results: list[dict]) -> Outcome:
        found = gather(keys, results)
        published = {(name, 1.0): accuracies for name, accuracies in paper.TABLE10.items()}
        pairs = [((name, 1.0), ("rope-mixed", 1.0)) for name in ("comrope-ap", "comrope-ld")]
        tables = [
            by_size("table10", "Top-1 accuracy in % with DeiT's recipe.", scale, found, published),
            differences("table10-differences", "Between encodings.", scale, found, pairs, published),
        ]
        notes = [on_seeds(len(scale.few_seeds)), "The paper does not say which σ table 10 has.", scale.differs]
        return Outcome(tables, {}, notes)

    return Plan("Table 10: DeiT's recipe", jobs, outcome)


def _by_resolution(scale: Scale, found: dict[Key, list[Result]], sigma: float) -> Figure:
    """Draws figure 3: accuracy against image size, for encodings trained with `sigma`."""
    lines = {
        name: [(float(edge), summary(accuracies(each, edge))) for edge in scale.edges]
        for (name, trained_with), each in found.items()
        if trained_with == sigma
    }
    return curves(
        f"Accuracy at other image sizes than the one trained on (σ = {sigma:g})",
        lines,
        x="edge of the square test images (pixels)",
        y="test accuracy (%)",
        scale="log",
        marked=(scale.image_size[0], "trained here"),
    )
