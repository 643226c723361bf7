"""The demo: one small model with every encoding, at other sizes, under offsets, with its laws and its planes, on one page."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from comrope.lab.classification import plain, shifted
from comrope.lab.experiment import Recipe
from comrope.lab.figures import percent
from comrope.lab.images.model import MODELS
from comrope.lab.output import Outcome
from comrope.lab.reproduce.pictures import curves
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.planes import draw_planes
from comrope.lab.reproduce.scales import Scale
from comrope.lab.reproduce.tables import Result, checks, gather, holds, on_seeds, row
from comrope.lab.statistics import Summary, half_width, summary
from comrope.lab.study import Job
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table

SCALE = Scale(
    name="minutes",
    data="digits",
    model="demo",
    image_size=(48, 48),
    edges=(24, 32, 48, 64, 96),
    recipe=Recipe(epochs=12, learning_rate=2e-3),
)
"""The scale of `comrope demo`."""
OFFSETS = (0.5, 1.0, 2.0)
"""The values of ρ in canvas widths."""
Measured = Mapping[str, Sequence[Result]]
"""The rows of all seeds' evaluations under one condition, by encoding."""


def demo(scale: Scale) -> Plan:
    """Every encoding in one small vision transformer: other image sizes, offsets, the RoPE equation, what is learned.

    The paper has other sizes in table 1 and figure 3 and offsets in figure 5; it shows no frequencies, and proves the RoPE
    equation without measuring it. Here all stand on one page, with what to look for in them. σ = 1 in training; beside
    square images one size that is not square; offsets are random, N(0, ρ²I) for each image (Eq. 12).

    Cost: one training for each encoding and seed; four minutes on two cores by `comrope demo`.
    """
    names, sizes = scale.encodings, _sizes(scale)
    offsets = OFFSETS
    conditions = {s: (*plain(sizes), *shifted(scale.image_size, offsets, s)) for s in scale.seeds}
    jobs = [Job(scale.experiment(name, seed), conditions[seed]) for name in names for seed in scale.seeds]

    def outcome(results: list[Result]) -> Outcome:
        found = gather(names, results)

        def measured(index: int) -> Measured:
            pairs = {name: zip(each, scale.seeds, strict=True) for name, each in found.items()}
            return {name: [row(r, conditions[seed][index]) for r, seed in pair] for name, pair in pairs.items()}

        by_size = {size: measured(i) for i, size in enumerate(sizes)}
        trained = by_size[scale.image_size]
        by_offset = {0.0: trained, **{rho: measured(i) for i, rho in enumerate(offsets, len(sizes))}}
        tables = [
            _accuracies(scale, by_size, by_offset),
            checks("demo-check", "The RoPE equation after training: the largest of all layers.", found),
            _training(found),
        ]
        figures = {
            "accuracy_against_resolution": curves(
                "Accuracy at other image sizes than the one trained on, without retraining",
                {n: [(float(i), _mean(each[n])) for i, each in enumerate(by_size.values())] for n in names},
                x="size of the test images (rows × columns, pixels)",
                y="test accuracy (%)",
                names={float(i): _text(size) for i, size in enumerate(sizes)},
                marked=(sizes.index(scale.image_size), "trained here"),
            ),
            "accuracy_against_offset": curves(
                "Accuracy when all positions of an image are shifted together",
                {n: [(rho, _mean(each[n])) for rho, each in by_offset.items()] for n in names},
                x="offset ρ: standard deviation of the shift (canvas widths)",
                y="test accuracy (%)",
            ),
            "spectra": draw_planes({name: each[0]["frequencies"] for name, each in found.items()}),
            "training": _losses(found),
        }
        notes = [
            *(_extremes(size, by_size[size], scale) for size in dict.fromkeys((scale.image_size, sizes[0], sizes[-1]))),
            _under_offsets(found, by_offset),
            _confidence(trained),
            on_seeds(len(scale.seeds)),
        ]
        return Outcome(tables, figures, notes, _lead(scale, results, trained), template="reproduce/demo.html")

    plural = "s" if len(names) > 1 else ""
    title = f"{len(names)} position encoding{plural} in one small vision transformer"
    return Plan(title, jobs, outcome, files=("accuracy_against_*", "spectra.*", "training.*"))


def _sizes(scale: Scale) -> list[tuple[int, int]]:
    """Returns the scale's square sizes and one size that is not square, by area."""
    tall = scale.image_size[0], scale.image_size[1] - MODELS[scale.model]["patch_size"]
    return sorted([*((edge, edge) for edge in scale.edges), tall], key=math.prod)


def _accuracies(
    scale: Scale, by_size: Mapping[tuple[int, int], Measured], by_offset: Mapping[float, Measured]
) -> Table:
    columns = [*by_size.values(), *by_offset.values()]
    rows: list[tuple[Cell, ...]] = []
    for name in scale.encodings:
        changed = max(r["changed"] for each in by_offset.values() for r in each[name])
        rows.append((label(name), *(_mean(each[name]) for each in columns), changed))
    headings = [f"{h}×{w}" + (" (trained)" if (h, w) == scale.image_size else "") for h, w in by_size]
    headings += [f"ρ = {rho:g}" for rho in by_offset]
    title = (
        "Top-1 accuracy in % by image size, and at the size trained at by the offset ρ: the standard deviation of one random "
        "shift of all positions of an image, in canvas widths. Labels changed: test images that get another label under the "
        "worst offset; fewer is better."
    )
    decimals = 1 if _total(columns[0]) < 1000 else 2
    best = (None, *[max] * len(columns), min)
    return Table("demo", title, ("encoding", *headings, "labels changed"), rows, decimals, best)


def _training(found: Mapping[str, Sequence[Result]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, each in found.items():
        sizes = (each[0]["num_parameters"], each[0]["num_encoding_parameters"])
        loss = summary([result["history"][-1]["loss"] for result in each])
        rows.append((label(name), *sizes, loss, summary([result["timing"]["train_seconds"] for result in each])))
    columns = ("encoding", "parameters", "of the encoding", "loss at the end", "training, s")
    return Table("demo-training", "Parameters, and training on one thread.", columns, rows)


def _losses(found: Mapping[str, Sequence[Result]]) -> Figure:
    lines = {}
    for name, each in found.items():
        epochs = zip(*(result["history"] for result in each), strict=True)
        lines[name] = [(float(rows[0]["epoch"]), summary([r["loss"] for r in rows])) for rows in epochs]
    losses = [value.mean for line in lines.values() for _, value in line]
    return curves(
        "Training loss after each epoch",
        lines,
        x="epoch (passes over the training images)",
        y="training loss (cross-entropy, nats)",
        y_scale="log" if max(losses) > 5 * min(losses) > 0 else "linear",
        value="{:.3f}",
    )


def _extremes(size: tuple[int, int], measured: Measured, scale: Scale) -> str:
    """Returns a sentence on the encodings with the highest and the lowest accuracy, whichever they are."""
    reached = {label(name): _mean(rows).mean for name, rows in measured.items()}

    def names_at(value: float) -> str:
        return f"{' and '.join(name for name, other in reached.items() if other == value)} ({value:.1f} %)"

    where = "the size trained at" if size == scale.image_size else "without retraining"
    highest, lowest = names_at(max(reached.values())), names_at(min(reached.values()))
    return f"At {_text(size)}, {where}, accuracy is highest with {highest} and lowest with {lowest}."


def _under_offsets(found: Mapping[str, Sequence[Result]], by_offset: Mapping[float, Measured]) -> str:
    """Returns a sentence on the largest offset: one part for all encodings that passed the check, one for each other."""
    farthest = max(by_offset)
    changed = {name: max(r["changed"] for r in rows) for name, rows in by_offset[farthest].items()}
    drop = {name: _mean(by_offset[0.0][name]).mean - _mean(by_offset[farthest][name]).mean for name in changed}
    lawful = [name for name, each in found.items() if holds(name, each)]
    parts = []
    if lawful:
        worst = max(changed[name] for name in lawful)
        which = f"the {len(lawful)} encodings" if len(lawful) > 1 else "the one encoding"
        of_all = f"of {_total(by_offset[farthest])} labels"
        parts.append(
            f"{which} that passed the check of the RoPE equation changed {f'at most {worst}' if worst else 'none'} {of_all}"
        )
    for name in sorted((name for name in changed if name not in lawful), key=lambda name: -drop[name]):
        points = f"{-drop[name]:+.1f} points".replace("-", "−") if drop[name] else "no change in accuracy"
        parts.append(f"{label(name)}: {points}, {changed[name]} labels changed")
    return f"With all positions shifted (ρ = {farthest:g} canvas widths), {'; '.join(parts)}."


def _confidence(measured: Measured) -> str:
    """Returns a sentence on the confidence intervals of accuracies."""
    rows = sorted((r for rows in measured.values() for r in rows), key=percent)
    typical = rows[len(rows) // 2]
    total = typical["total"]
    return (
        f"With {total:,} test images, an accuracy of {percent(typical):.1f} % is known to ± "
        f"{half_width(typical['correct'], total):.1f} points, one of 50 % to ± {half_width(total // 2, total):.1f} points "
        "(Wilson's 95 % interval)."
    )


def _lead(scale: Scale, results: Sequence[Result], measured: Measured) -> str:
    """Returns the first paragraph of the page: the model, the data, the training and the evaluation."""
    model, recipe = MODELS[scale.model], scale.recipe
    parameters = sorted({result["num_parameters"] for result in results})
    range_of_them = " to ".join(f"{n:,}" for n in dict.fromkeys((parameters[0], parameters[-1])))
    count = "".join(f"{n:,} " for n in {result["data"]["train"]["count"] for result in results if "data" in result})
    data = "scikit-learn's digits, upsampled from 8 × 8" if scale.data == "digits" else scale.data
    return (
        f"The same vision transformer ({model['depth']} layers, width {model['embed_dim']}, {model['num_heads']} heads, "
        f"patches of {_text((model['patch_size'],) * 2)} pixels, {range_of_them} parameters) was trained with each encoding "
        f"on {count}images of {_text(scale.image_size)} pixels ({data}) for {recipe.epochs} epochs, batch size "
        f"{recipe.batch_size}, learning rate {recipe.learning_rate:g}, seed {', '.join(map(str, scale.seeds))}. While it "
        "trained, each patch's position was perturbed by Gaussian noise (σ = 1 patch size), cut off at the patch's edge. "
        f"Then {_total(measured):,} other images were classified: at the trained size, at sizes it never saw, and with all "
        "positions shifted."
    )


def _mean(rows: Sequence[Result]) -> Summary:
    """Returns the accuracy in % over seeds."""
    return summary([percent(r) for r in rows])


def _total(measured: Measured) -> int:
    """Returns the number of test images."""
    return next(iter(measured.values()))[0]["total"]


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"
