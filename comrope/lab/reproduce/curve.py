"""One curve through all conditions: accuracy against how fast planes rotate, whatever the family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import curve_fit

from comrope.lab.statistics import Difference, paired
from comrope.lab.table import Cell, Table

MODEL = "accuracy = a − b·exp(−ω/c)"
"""ω is the speed that 95 % of planes stay below, in radians over the image."""


@dataclass(frozen=True)
class Condition:
    """The runs of one condition, seed by seed, the same seeds in all conditions."""

    family: str
    speeds: Sequence[float]
    """ω of each run."""
    accuracies: Sequence[float]
    """In %, of each run."""


@dataclass(frozen=True)
class Fit:
    """A saturating curve fitted to conditions by least squares, and what it leaves."""

    a: float
    b: float
    c: float
    r_squared: float
    """Share of the variance between means of conditions that the curve explains."""
    residual: float
    """Standard deviation of the means of conditions around the curve."""
    noise: float
    """Standard deviation of a condition's mean over seeds, effects that a seed has in all conditions taken out."""
    lack_of_fit: float
    """p of F, the residuals against the noise: small if the curve is not all there is."""
    families: float
    """p of F, a constant for each family added to the curve: small if families differ at the same speed."""


def _saturating(x: np.ndarray, a: float, b: float, c: float) -> np.ndarray:
    return a - b * np.exp(-x / c)


def _means(conditions: Sequence[Condition]) -> tuple[np.ndarray, np.ndarray]:
    """Returns speed and accuracy of each condition, means over seeds."""
    return (
        np.array([np.mean(each.speeds) for each in conditions]),
        np.array([np.mean(each.accuracies) for each in conditions]),
    )


def _parameters(conditions: Sequence[Condition], offsets: np.ndarray | None = None) -> np.ndarray:
    """Returns a, b and c, and the factors of the columns of `offsets` (conditions, n), which are added to the curve."""
    x, y = _means(conditions)
    columns = np.zeros((len(x), 0)) if offsets is None else offsets

    def curve(_, a, b, c, *factors):
        return _saturating(x, a, b, c) + columns @ np.asarray(factors)

    start = [y.max(), max(np.ptp(y), 1e-3), np.median(x), *np.zeros(columns.shape[1])]
    bounds = ([-np.inf, -np.inf, 1e-3] + [-np.inf] * columns.shape[1], np.inf)
    found, _ = curve_fit(curve, x, y, p0=start, bounds=bounds, max_nfev=20_000)
    return found


def fit(conditions: Sequence[Condition]) -> Fit:
    """Fits the curve to the means of conditions, of which there must be more than parameters and families together."""
    x, y = _means(conditions)
    seeds = len(conditions[0].accuracies)
    a, b, c = _parameters(conditions)
    left = float(((y - _saturating(x, a, b, c)) ** 2).sum())
    runs = np.array([each.accuracies for each in conditions])
    noise = runs - runs.mean(0, keepdims=True) - runs.mean(1, keepdims=True) + runs.mean()
    freedom = (len(x) - 1) * (seeds - 1)
    variance = float((noise**2).sum()) / freedom if freedom else np.nan  # of one run
    of_fit = len(x) - 3
    names = sorted({each.family for each in conditions})
    dummies = np.array([[float(each.family == name) for name in names[1:]] for each in conditions])
    a2, b2, c2, *factors = _parameters(conditions, dummies)
    with_families = float(((y - _saturating(x, a2, b2, c2) - dummies @ np.asarray(factors)) ** 2).sum())
    more, rest = len(names) - 1, of_fit - (len(names) - 1)
    return Fit(
        float(a),
        float(b),
        float(c),
        1 - left / float(((y - y.mean()) ** 2).sum()),
        float(np.sqrt(left / of_fit)),
        float(np.sqrt(variance / seeds)),
        float(stats.f.sf(seeds * left / of_fit / variance, of_fit, freedom)),
        float(stats.f.sf((left - with_families) / more / (with_families / rest), more, rest)) if more else np.nan,
    )


def steepness(conditions: Sequence[Condition]) -> float | None:
    """Returns c of the curve through the means of conditions; None if all accuracies are the same or no curve fits."""
    if not np.ptp(_means(conditions)[1]):
        return None
    try:
        return float(_parameters(conditions)[2])
    except RuntimeError:  # what curve_fit raises if it does not converge
        return None


def left_out(conditions: Sequence[Condition], family: str) -> Difference:
    """Returns accuracies of a family minus what the curve through all others says of them, paired by seed."""
    inside = [each for each in conditions if each.family == family]
    a, b, c = _parameters([each for each in conditions if each.family != family])
    observed = np.array([each.accuracies for each in inside]).mean(0)
    expected = np.array([_saturating(np.array(each.speeds), a, b, c) for each in inside]).mean(0)
    return paired(observed.tolist(), expected.tolist())


def curve_tables(name: str, by_edge: Mapping[int, Sequence[Condition]]) -> list[Table]:
    """Returns the table of fits and that of families left out, for conditions by the edge of test images.

    There is none where conditions or seeds are too few to tell a curve from noise, or all accuracies are the same.
    """
    families = dict.fromkeys(each.family for conditions in by_edge.values() for each in conditions)
    for conditions in by_edge.values():
        largest = max(sum(each.family == family for each in conditions) for family in families)
        few = len(conditions) < len(families) + 4 or len(conditions) - largest < 4
        if few or len(conditions[0].accuracies) < 2 or not np.ptp(_means(conditions)[1]):
            return []
    rows = [(family, *(left_out(conditions, family) for conditions in by_edge.values())) for family in families]
    headings = ("family left out", *(f"minus the curve, at {edge}" for edge in by_edge))
    left = "Families minus the curve through all others, in percentage points, paired by seed."
    return [fits_table(name, by_edge), Table(f"{name}-left-out", left, headings, rows)]


def fits_table(name: str, by_edge: Mapping[int, Sequence[Condition]]) -> Table:
    """Returns the table of the curve fitted at each edge; what a constant for each family adds, if there are several."""
    fits: list[tuple[Cell, ...]] = []
    families = len({each.family for conditions in by_edge.values() for each in conditions}) > 1
    for edge, conditions in by_edge.items():
        f = fit(conditions)
        numbers = [f"{value:.2f}" for value in (f.a, f.b, f.c, f.r_squared, f.residual, f.noise)]
        tests = [f"{p:.3f}" for p in ((f.lack_of_fit, f.families) if families else (f.lack_of_fit,))]
        fits.append((edge, len(conditions), *numbers, *tests))
    columns = ["test images", "conditions", "a", "b", "c", "R²", "sd of residuals", "sd of seeds", "p, lack of fit"]
    title = f"{MODEL}, ω of 95 % of planes in radians over the image, fitted to means of conditions."
    return Table(f"{name}-curve", title, (*columns, "p, families") if families else tuple(columns), fits)
