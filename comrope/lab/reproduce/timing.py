"""Table 9: the time of a training epoch and of an evaluation, all encodings side by side."""

import torch

import comrope
from comrope.errors import ConfigurationError
from comrope.lab.bench.clock import Step, compared, in_turn
from comrope.lab.images.config import ImageConfig
from comrope.lab.images.data import load
from comrope.lab.images.in_memory import ImageSet
from comrope.lab.images.loading import EvalImages
from comrope.lab.images.problem import Classification, build
from comrope.lab.images.rows import ImageStream
from comrope.lab.output import Outcome
from comrope.lab.reproduce import paper
from comrope.lab.reproduce.plan import Plan
from comrope.lab.reproduce.scales import Scale
from comrope.lab.reproduce.tables import quartiles
from comrope.lab.rng import Stream, generator
from comrope.lab.styles import label
from comrope.lab.table import Cell, Table

TIMED = (("rope", None), ("liere", 8), ("comrope-ld", 4), ("comrope-ap", 4), ("comrope-ld", 8), ("comrope-ap", 8))
"""(encoding, block size), in the paper's order; ratios are to the first."""
MOST_TIMED = 64
"""Largest number of images in a timed step: one device cannot hold a batch of thousands."""


def table9(scale: Scale) -> Plan:
    """Time of a training epoch and of an evaluation, side by side in one process.

    The paper: RoPE 16 minutes an epoch and 32 seconds an evaluation, LieRE (b = 8) 21 and 36, ComRoPE-AP and -LD 19 to
    20 and 34 to 35, on its cluster. Here training steps (forward, backward, AdamW, data read before) and evaluations of
    one batch alternate in float32, encoding by encoding; medians are multiplied by the number of steps, and ratios
    taken within each round.

    Cost: no training; six models, so many rounds of a step and of an evaluation.
    """

    def outcome(results: list[dict]) -> Outcome:
        wanted = scale.of(*(name for name, _ in TIMED))
        keys = [(name, b) for name, b in TIMED if name in wanted and (b is None or scale.head_dim % b == 0)]
        train, test = load(scale.data, scale.num_train, scale.num_test)
        if isinstance(train, ImageStream):
            raise ConfigurationError(
                f"data={scale.data!r}: a step is timed on images read before: leave out streaming."
            )
        experiments = {_key(n, b): scale.experiment(n, 0, block_size=b) for n, b in keys}
        batch = min(MOST_TIMED, scale.recipe.batch_size, len(train), len(test))
        steps = {key: _steps(experiment, train, test, batch) for key, experiment in experiments.items()}
        found = {}
        for i, (stage, num_steps) in enumerate((("training", len(train) / batch), ("evaluation", len(test) / batch))):
            seconds = in_turn({key: both[i] for key, both in steps.items()}, scale.rounds, lambda name: None)
            for timed in compared(seconds, next(iter(steps))):
                found[timed["opponent"], stage] = timed["seconds"][1] * num_steps, quartiles(timed["ratio"])
        rows: list[tuple[Cell, ...]] = []
        base = paper.TABLE9["rope", None]
        for name, b in keys:
            ours = [cell for stage in ("training", "evaluation") for cell in found[_key(name, b), stage]]
            minutes, seconds = paper.TABLE9[name, b]
            theirs = (minutes, minutes / base[0], seconds, seconds / base[1])
            rows.append((label(name), b, *ours, *theirs))
        columns = ("method", "block size", "epoch, s", "ratio", "evaluation, s", "ratio")
        columns = (*columns, "paper: epoch, min", "paper: ratio", "paper: evaluation, s", "paper: ratio")
        device = (
            torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
        )
        title = f"Time on {len(train)} training and {len(test)} test images, batch {batch}, “{scale.model}”, {device}."
        notes = [
            f"Medians of {scale.rounds} rounds; ratios to {label(keys[0][0])} of a round, median (lower – upper quartile).",
            scale.differs,
            "The paper's column AP, b = 4, is not labelled in our copy.",
        ]
        return Outcome([Table("table9", title, columns, rows)], {}, notes)

    return Plan("Table 9: time of an epoch and an evaluation", [], outcome, [name for name, _ in TIMED], measures=True)


def _key(name: str, block_size: int | None) -> str:
    return name if block_size is None else f"{name}, b = {block_size}"


def _steps(experiment: ImageConfig, train: ImageSet, test: ImageSet, batch_size: int) -> tuple[Step, Step]:
    """Returns a training step, and the evaluation of a batch, on images that were read before."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(experiment, train).to(device)
    task = Classification(model, train, experiment)
    batch = task.dataset.__getitems__([(0, index, 0) for index in range(batch_size)])
    optimizer = torch.optim.AdamW(comrope.param_groups(model, lr=None, weight_decay=experiment.recipe.weight_decay))
    pixels = EvalImages(test, experiment.image_size).__getitems__(list(range(batch_size))).pixels.to(device)

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def training() -> None:
        model.train()
        task.loss(model, batch, generator(0, Stream.EXAMPLE))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize()

    @torch.no_grad()
    def evaluation() -> None:
        model.eval()(pixels)
        synchronize()

    return training, evaluation
