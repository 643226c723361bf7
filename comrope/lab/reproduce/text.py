"""Language models: bits per byte at other lengths than the one trained on, and the cost of very long sequences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comrope.errors import ConfigurationError
from comrope.lab.experiment import Recipe
from comrope.lab.output import Outcome
from comrope.lab.reproduce.pictures import curves
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.scales import Scale
from comrope.lab.reproduce.tables import Result, gather, quartiles
from comrope.lab.statistics import Summary, paired, summary
from comrope.lab.study import Job
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table
from comrope.lab.text.config import TextConfig
from comrope.lab.text.long import FOLDED, OFFSET, costs, exactness
from comrope.lab.text.problem import Condition, bits_per_byte, longer
from comrope.lab.text.scaling import SCALINGS

ENCODINGS = ("none", "rope", "rope-mixed", "string", "comrope-ld", "comrope-mt")
TUNED = ("rope", "rope-mixed", "string", "comrope-ld", "comrope-mt")


@dataclass(frozen=True)
class TextScale:
    """The sizes of the recipe's models, texts and long sequences."""

    experiment: TextConfig
    tuning: Recipe
    """Recipe of continued training; an epoch has as many windows."""
    lengths: tuple[int, ...]
    """Lengths of long sequences in tokens."""
    chunk: int = 2048
    """Tokens that are read at a time with a cache."""
    rounds: int = 3
    memory: bool = True
    """Whether memory is measured, which takes a process for each model."""


_QUICK = Recipe(epochs=1, batch_size=8, learning_rate=3e-3, warmup=0.05)
TEXT_SCALES = {
    "demo": TextScale(
        TextConfig(model="tiny", length=32, test_length=256, num_train=80, num_test=4, recipe=_QUICK),
        tuning=replace(_QUICK, learning_rate=1e-3),
        lengths=(128, 256),
        chunk=50,
        rounds=2,
        memory=False,
    ),
    "small": TextScale(
        TextConfig(num_train=4000, num_test=16, recipe=_QUICK),
        tuning=replace(_QUICK, learning_rate=1e-3),
        lengths=(8192, 16384, 32768),
    ),
}
""""demo" takes seconds, "small" hours, with two minutes a run on one core. The paper has no experiment on text."""


def text(scale: Scale) -> Plan:
    """Causal language models on bytes, and sequences of up to 32k tokens; not in the paper, which names them as future work.

    transformers' Llama architecture, trained from scratch on the standard library of the Python that runs, split by file; all
    encodings start from vanilla RoPE's frequencies but "none". Bits per byte at the trained length and 2, 4 and 8 times that,
    the same bytes predicted at each, with and without frequency scaling by length over the trained length: linear (position
    interpolation, arXiv:2306.15595), NTK-aware, and YaRN (arXiv:2309.00071), applied to learned frequencies plane by plane.
    Then RoPE models continue with their angles learned, at equal steps, and untrained models read long sequences.

    Cost: 11 trainings a seed (6 encodings, 5 that continue), about two minutes each; and half an hour of long sequences.
    """
    ours, seeds = text_scale(scale), scale.few_seeds
    base = ours.experiment
    names = scale.of(*ENCODINGS)
    first = {seed: replace(base, encoding="rope", recipe=replace(base.recipe, seed=seed)) for seed in seeds}
    plain = longer(base)
    jobs = [
        Job(
            replace(first[seed], encoding=name),
            tuple(longer(base, SCALINGS if name != "none" else ("none",))),  # it has no frequencies to scale
        )
        for name in names
        for seed in seeds
    ]
    tuned = scale.among(*TUNED)
    jobs += [
        Job(
            replace(first[seed], encoding=name, start=first[seed].name, recipe=replace(ours.tuning, seed=seed)),
            tuple(plain),
        )
        for name in tuned
        for seed in seeds
    ]
    jobs += [Job(experiment, tuple(plain)) for experiment in first.values()] if tuned else []

    def outcome(results: list[Result]) -> Outcome:
        scratch = gather(names, results[: len(names) * len(seeds)])
        rest = results[len(names) * len(seeds) :]
        further, before = gather(tuned, rest[: len(tuned) * len(seeds)]), rest[len(tuned) * len(seeds) :]
        tables = [
            _by_length("text", f"Bits per byte by length of the window, trained at {base.length}.", scratch, plain),
            _differences("text-differences", "Bits per byte minus RoPE's, of the same seed.", scratch, plain),
            _scaled(scratch, longer(base, SCALINGS)),
            _by_position(scratch, plain[-1]),
            *([_by_length("text-continued", _CONTINUED, {"": before, **further}, plain)] if tuned else []),
            *([_differences("text-continued-differences", _CONTINUED_MINUS, further, plain)] if tuned else []),
            *_long(scale.among(*ENCODINGS[1:]), ours),
        ]
        return Outcome(tables, _figures(scratch, plain, base.length), notes(base, len(seeds)))

    return Plan("Language models and long sequences", jobs, outcome, measures=True)


def text_scale(scale: Scale) -> TextScale:
    """Returns the sizes of the scale's recipes on text, with the data and the length that were asked for."""
    if scale.name not in TEXT_SCALES:
        raise ConfigurationError(f"scale={scale.name!r}: the paper has no experiment on text; use demo or small.")
    ours = TEXT_SCALES[scale.name]
    return replace(ours, experiment=scale.applied(ours.experiment), tuning=scale.lengthened(ours.tuning))


_CONTINUED = (
    "RoPE models, first as they were, then trained on with angles fixed (RoPE) or learned: bits per byte by length."
)
_CONTINUED_MINUS = "Bits per byte after training on, minus those of RoPE trained on as long."


def bits(results: Sequence[Result], condition: Condition) -> list[float]:
    """Returns the bits per byte of each seed's run under a condition."""
    return [bits_per_byte(next(r for r in result["evaluation"] if condition.describes(r))) for result in results]


def _by_length(name: str, title: str, found: Mapping[str, Sequence[Result]], conditions: Sequence[Condition]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (label(n) if n else "before", len(each), *(summary(bits(each, c)) for c in conditions))
        for n, each in found.items()
    ]
    return Table(name, title, ("method", "seeds", *(str(c.length) for c in conditions)), rows, 3)


def _differences(
    name: str, title: str, found: Mapping[str, Sequence[Result]], conditions: Sequence[Condition]
) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (label(n), len(each), *(paired(bits(each, c), bits(found["rope"], c)) for c in conditions))
        for n, each in found.items()
        if n != "rope" and "rope" in found
    ]
    return Table(name, title, ("method", "seeds", *(str(c.length) for c in conditions)), rows, 3)


def _scaled(found: Mapping[str, Sequence[Result]], conditions: Sequence[Condition]) -> Table:
    lengths = list(dict.fromkeys(c.length for c in conditions if c.scaling != "none"))
    rows: list[tuple[Cell, ...]] = []
    for name, each in found.items():
        for scaling in SCALINGS if name != "none" else ("none",):
            cells = (summary(bits(each, Condition(length, scaling))) for length in lengths)
            rows.append((label(name), scaling, len(each), *cells))
    columns = ("method", "scaling", "seeds", *map(str, lengths))
    return Table(
        "text-scaling", "Bits per byte beyond the trained length, by scaling of frequencies.", columns, rows, 3
    )


def _by_group(results: Sequence[Result], condition: Condition) -> list[tuple[int, int, Summary]]:
    """Returns (first, last + 1, bits per byte) for each group of positions in the window."""
    rows = [next(r for r in result["evaluation"] if condition.describes(r))["positions"] for result in results]
    bits = [[bits_per_byte({"nats": nats, "bytes": count}) for _, _, nats, count in each] for each in rows]
    return [
        (start, stop, summary(list(b))) for (start, stop, *_), b in zip(rows[0], zip(*bits, strict=True), strict=True)
    ]


def _by_position(found: Mapping[str, Sequence[Result]], condition: Condition) -> Table:
    groups = {name: _by_group(each, condition) for name, each in found.items()}
    headings = [f"{a} – {b - 1}" if b - a > 1 else str(a) for a, b, _ in next(iter(groups.values()), [])]
    rows: list[tuple[Cell, ...]] = [(label(n), *(s for *_, s in each)) for n, each in groups.items()]
    title = f"Bits per byte by the byte's place in a window of {condition.length}."
    return Table("text-positions", title, ("method", *headings), rows, 3)


def _long(names: Sequence[str], ours: TextScale) -> list[Table]:
    """Returns tables of costs and of numerical accuracy at each length; gradients are measured at the shortest one only."""
    cost_rows: list[tuple[Cell, ...]] = []
    error_rows: list[tuple[Cell, ...]] = []
    models = [
        n
        for name in dict.fromkeys(("rope", *names))
        for n in (name, name + FOLDED)
        if n in (name, "comrope-ld" + FOLDED)
    ]
    for length in ours.lengths:
        for training in (False, True) if length == ours.lengths[0] else (False,):
            rows = costs(models, length, ours.rounds, training=training, memory=ours.memory)
            for row in rows:
                cost = (row["seconds"][1], quartiles(row["ratio"]))
                memory = (row["bytes"] / 2**20, row["bytes"] / rows[0]["bytes"]) if ours.memory else (None, None)
                way = "forward + backward" if training else "forward"
                cost_rows.append((_label(row["opponent"]), length, way, *cost, *memory))
        for name in names:
            asked = {"chunk": ours.chunk, "split": length == ours.lengths[0] and name == "comrope-mt"}
            row = exactness(name, length, **asked)
            error_rows.append((label(name), length, *(_error(row[key]) for key in _ERRORS)))
    columns = ("method", "tokens", "pass", "seconds", "ratio to RoPE", "MiB", "ratio to RoPE")
    title = "One sequence read by a small model on one process: time, and memory above that of the model."
    columns_errors = ("method", "tokens", *_ERRORS.values())
    title_errors = "What should be the same, in float32: largest difference over the largest value."
    return [
        Table("text-long", title, columns, cost_rows),
        Table("text-long-exactness", title_errors, columns_errors, error_rows),
    ]


_ERRORS = {
    "scores": "far-end scores against float64",
    "scores_offset": f"the same, {OFFSET:,} tokens on",
    "offset": f"logits, all positions moved by {OFFSET:,}",
    "cached": "logits by chunks and tokens with a cache",
    "split": "logits of two processes with half each",
}


def _label(name: str) -> str:
    return label(name.removesuffix(FOLDED)) + (FOLDED if name.endswith(FOLDED) else "")


def _error(value: float | None) -> str | None:
    return None if value is None else f"{value:.1e}"


def _figures(found: Mapping[str, Sequence[Result]], conditions: Sequence[Condition], trained: int) -> dict[str, Any]:
    lengths = {n: [(float(c.length), summary(bits(each, c))) for c in conditions] for n, each in found.items()}
    groups = {n: [(float(b), s) for _, b, s in _by_group(each, conditions[-1])] for n, each in found.items()}
    common: dict[str, Any] = {
        "y": "bits per byte",
        "scale": "log",
        "marked": (trained, "trained here"),
        "value": "{:.2f}",
    }
    return {
        "text": curves("Bits per byte at other lengths, frequencies unscaled", lengths, x="window (bytes)", **common),
        "text-positions": curves(
            f"Bits per byte by place in a window of {conditions[-1].length}",
            groups,
            x="last place of the group (bytes)",
            **common,
        ),
    }


def notes(base: TextConfig, num_seeds: int) -> list[str]:
    spread = (
        f"Means of {num_seeds} seeds ± their sample standard deviation; differences are within a seed, which fixes weights and "
        "batches, with 95 % Student-t intervals, each for itself. Both cover what the seed changes, not which texts were "
        "drawn: these are the same in every run. Less is better."
        if num_seeds > 1
        else "One seed: nothing here says how far another would differ, and no interval is given. Less is better."
    )
    return [
        f"Text: {base.data}, model “{base.model}”, windows of {base.length} bytes, "
        f"{base.num_train} a training run; test text in stretches of {base.test_length} bytes. The image settings of the scale "
        "are not used. Another version of Python has another standard library, and other numbers.",
        spread,
        "“RoPE” is transformers' own, which works out phases in float32: far positions cost it exactness. Long sequences are "
        "read by untrained models with large random weights, learned angles drawn at random.",
    ]
