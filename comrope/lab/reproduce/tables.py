"""Tables of accuracies over seeds, at each image size, beside the paper's."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from comrope.encodings import Encoding, kind_of
from comrope.lab.classification import Condition
from comrope.lab.figures import percent
from comrope.lab.reproduce import paper
from comrope.lab.reproduce.scales import Scale
from comrope.lab.statistics import Difference, Summary, paired, summary
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table

Result = dict[str, Any]
Key = tuple[str, float]
"""Encoding and σ."""
MEASURES = {
    "commutator": "largest commutator",
    "equation": "largest residual of the RoPE equation",
    "offset_drift": "offset drift",
}
"""The measurements of `comrope.check`, and their headings."""


def gather(keys: Iterable[Any], results: Sequence[Result]) -> dict[Any, list[Result]]:
    """Returns the results by key. They are in the order of the keys, with all seeds of a key together."""
    keys = list(keys)
    each = len(results) // max(1, len(keys))
    return {key: list(results[i * each : (i + 1) * each]) for i, key in enumerate(keys)}


def row(result: Result, condition: Condition) -> dict[str, Any]:
    """Returns the row of a run's evaluation under a condition."""
    return next(r for r in result["evaluation"] if condition.describes(r))


def accuracies(results: Sequence[Result], edge: int) -> list[float]:
    """Returns top-1 accuracy in % of each seed's run on square images."""
    return [percent(row(result, Condition((edge, edge)))) for result in results]


def difference(first: Sequence[Result], second: Sequence[Result], edge: int) -> Difference:
    """Returns first − second on square images, seed by seed, in percentage points."""
    return paired(accuracies(first, edge), accuracies(second, edge))


def checks(name: str, title: str, found: Mapping[str, Sequence[Result]]) -> Table:
    """Returns a row for each encoding: the largest of each of MEASURES over layers and seeds; dashes where nothing rotates."""
    rows: list[tuple[Cell, ...]] = []
    for encoding, each in found.items():
        answer = holds(encoding, each)
        layers = [layer for result in each for layer in result["check"]]
        worst = [None if answer is None else f"{max(layer[m] for layer in layers):.1e}" for m in MEASURES]
        verdict = {None: None, True: "yes", False: "no"}[answer]
        rows.append((label(encoding), None if answer is None else len(layers), *worst, verdict))
    return Table(name, title, ("method", "layers × seeds", *MEASURES.values(), "holds in all"), rows)


def holds(encoding: str, results: Sequence[Result]) -> bool | None:
    """Whether `comrope.check` found the RoPE equation to hold in all layers; None for an encoding that does not rotate."""
    layers = [layer for result in results for layer in result["check"]]
    if not layers or not issubclass(kind_of(encoding), Encoding):
        return None
    return all(layer["holds"] for layer in layers)


def by_size(
    name: str,
    title: str,
    scale: Scale,
    found: Mapping[Key, Sequence[Result]],
    published: Mapping[Key, Mapping[int, float]],
) -> Table:
    """Returns a table with a row for each encoding and σ, the paper's below it if there is one, and a column for each size."""
    pairs = _sizes(scale, published)
    rows: list[tuple[Cell, ...]] = []
    for key, results in found.items():
        ours = [None if edge is None else summary(accuracies(results, edge)) for edge, _ in pairs]
        rows.append((label(key[0]), f"{key[1]:g}", "ours", len(results), *ours))
        if key in published:
            theirs = [published[key].get(size) if size else None for _, size in pairs]
            rows.append((label(key[0]), f"{key[1]:g}", "paper", 1, *theirs))
    return Table(
        name, f"{title} {_explained(scale)}", ("method", "σ", "source", "seeds", *_headings(scale, pairs)), rows
    )


def differences(
    name: str,
    title: str,
    scale: Scale,
    found: Mapping[Key, Sequence[Result]],
    pairs_of_keys: Sequence[tuple[Key, Key]],
    published: Mapping[Key, Mapping[int, float]],
) -> Table:
    """Returns a table of paired differences, first − second, in percentage points, for each pair of keys at each size."""
    sizes = _sizes(scale, published)
    rows: list[tuple[Cell, ...]] = []
    for first, second in pairs_of_keys:
        if first not in found or second not in found:
            continue
        both = (found[first], found[second])
        about = tuple(f"{label(encoding)}, σ = {sigma:g}" for encoding, sigma in (first, second))
        ours = [None if edge is None else difference(*both, edge) for edge, _ in sizes]
        rows.append((*about, "ours", len(both[0]), *ours))
        if first in published and second in published:
            theirs = [_minus(published[first].get(size or 0), published[second].get(size or 0)) for _, size in sizes]
            rows.append((*about, "paper", 1, *theirs))
    headings = ("method", "minus", "source", "seeds", *_headings(scale, sizes))
    return Table(name, f"{title} {_explained(scale)}", headings, rows)


def means(results: Mapping[Any, Sequence[Result]], edge: int) -> dict[Any, Summary]:
    """Returns the accuracy on square images over seeds, by key."""
    return {key: summary(accuracies(each, edge)) for key, each in results.items()}


def quartiles(values: Sequence[float]) -> str:
    """Returns (lower quartile, median, upper quartile) as text: "1.05 (1.02 – 1.09)"."""
    low, middle, high = values
    return f"{middle:.2f} ({low:.2f} – {high:.2f})"


def on_seeds(count: int) -> str:
    """Returns a note on what deviations and intervals mean."""
    if count == 1:
        return "One seed: nothing here says how far another would differ, and no interval is given."
    return (
        f"Means of {count} seeds ± their sample standard deviation. Differences are paired (a seed fixes images, "
        "batches and starting weights outside of the encoding), in percentage points, with 95 % Student-t intervals, each for "
        "a difference by itself, not corrected for how many are shown. Deviations and intervals cover what the seed changes, "
        "not which test data were drawn: these are the same in every run."
    )


def _minus(first: float | None, second: float | None) -> Difference | None:
    return None if first is None or second is None else Difference(first - second, None, None, 1)


def _sizes(scale: Scale, published: Mapping[Key, Mapping[int, float]]) -> list[tuple[int | None, int | None]]:
    """Returns pairs of our edge and the paper's with the same ratio to the trained size; either is None if there is none."""
    trained = scale.image_size[0]
    theirs = sorted({size for sizes in published.values() for size in sizes})
    matched = {edge * paper.SIZE / trained: edge for edge in scale.edges}
    ratios = sorted({*matched, *map(float, theirs)})
    return [(matched.get(ratio), int(ratio) if ratio in theirs else None) for ratio in ratios]


def _headings(scale: Scale, pairs: Sequence[tuple[int | None, int | None]]) -> list[str]:
    if scale.name == "paper":
        return [str(ours or theirs) for ours, theirs in pairs]
    return [f"{ours or '–'} [{theirs or '–'}]" for ours, theirs in pairs]


def _explained(scale: Scale) -> str:
    if scale.name == "paper":
        return f"Columns: edge of the test images in pixels; trained at {scale.image_size[0]}."
    return (
        f"Columns: edge of our test images in pixels, trained at {scale.image_size[0]}; in brackets the paper's size of the "
        f"same ratio to its {paper.SIZE}."
    )
