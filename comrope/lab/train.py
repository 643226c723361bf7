"""The training loop of all experiments, on Accelerate. It can be interrupted at any time.

Random numbers depend on seed, step and sample alone (`comrope.lab.rng`). So a run is the same whether it was
interrupted or not, and the same but for rounding in any number of processes.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import reduce, set_seed
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

import comrope
from comrope.errors import ConfigurationError, DataError, DivergedError
from comrope.lab.checkpoints import Checkpoints
from comrope.lab.data.batches import read_batches
from comrope.lab.data.streams import batches_of
from comrope.lab.experiment import Recipe
from comrope.lab.rng import Stream, generator, seed_for

CHECKED_EVERY = 50
"""Steps between two checks, on an accelerator, that the loss is still finite: each waits for the device."""


@dataclass(frozen=True)
class BatchMetrics:
    """The metrics of a batch: means over its `count` samples, to be averaged over the epoch."""

    count: int
    values: dict[str, Tensor]
    skipped: int = 0
    """How many more samples there were that could not be read."""


class TrainDataset(Protocol):
    """A training set that is read by the batch, on the CPU."""

    def __len__(self) -> int: ...

    def __getitems__(self, keys: Any) -> Any:
        """Returns the batch of `keys`, each (epoch, index, copy). The augmentation of a sample depends on its key alone.

        A dataset with a `comrope.lab.data.streams.SampleStream` as its attribute `stream` gets samples of that instead.
        """
        ...


class Task(ABC):
    """A training task: a training set and a loss."""

    dataset: TrainDataset

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, rng: torch.Generator) -> tuple[Tensor, BatchMetrics]:
        """Returns the mean loss of a batch and the metrics to record.

        `rng` gives the same numbers in all processes and micro-batches of a step. If no sample of the batch could be read, the
        model must be called all the same, on any input, and the loss be 0 with `count` 0: the other processes wait for this
        one's gradient.
        """

    def after_epoch(self, model: nn.Module) -> dict[str, Any]:
        """Returns further entries of the epoch's row, ready for JSON. All processes call it, with the model in eval mode."""
        return {}


@dataclass(frozen=True)
class StepProgress:
    """What `train` reports after each step."""

    step: int
    total: int
    loss: Tensor
    """The loss of this process's last micro-batch, on the device: reading it waits for the step."""
    samples_per_second: float
    learning_rate: float


def train(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    checkpoints: Checkpoints | None = None,
    micro_batch: int | None = None,
    num_workers: int = 0,
    compile: bool = False,
    after_step: Callable[[StepProgress], None] = lambda progress: None,
) -> list[dict]:
    """Trains `model` in place, in as many processes as `torchrun` or `accelerate launch` started.

    Reseeds the global generators of Python, numpy and torch at every step, for dropout and the like.

    Args:
        model: the model to train.
        task: the training set and the loss.
        recipe: epochs, batch size, learning rate and so on.
        checkpoints: where the state is saved. Training continues from the newest state there. Nothing is saved if None.
        micro_batch: samples that one process takes at a time; the rest of its share of a batch is accumulated. All if None.
        num_workers: processes that read data, for each process that trains.
        compile: whether to compile the model with `torch.compile`.
        after_step: is called after each optimiser step.
    Returns:
        A row for each epoch: the means of the training loss and of the task's metrics over the epoch's batches, and the
        number of samples that were `skipped`.
    Raises:
        ConfigurationError: the batch does not divide by processes and micro-batches, or is larger than the training set.
        DataError: no sample of an epoch could be read; a checkpoint cannot be written, or all are damaged.
        DivergedError: the loss is NaN or infinite. Earlier checkpoints are kept.
    """
    check_precision(recipe)
    AcceleratorState._reset_state()  # otherwise the precision of an earlier run in this process would stay
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=recipe.precision)
    rank, world = accelerator.process_index, accelerator.num_processes
    micro_batch = sizes(recipe, len(task.dataset), world, micro_batch)
    batches = batches_of(task.dataset, recipe, micro_batch, rank, world, num_workers)
    groups = comrope.param_groups(model, lr=recipe.angle_learning_rate, weight_decay=recipe.weight_decay)
    optimizer: Any = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    warmup = round(recipe.warmup * batches.total)
    # With warmup_prefix timm counts the cosine's steps from the end of the warm-up.
    cosine = {"t_initial": max(1, batches.total - warmup), "warmup_t": warmup, "warmup_prefix": True}
    schedule = CosineLRScheduler(optimizer, **cosine, t_in_epochs=False)
    if compile:
        model.compile()
    prepared, optimizer = accelerator.prepare(model, optimizer)

    history, sums, step, spent, state = [], _EpochMetrics(), 0, 0.0, None
    if checkpoints is not None and (found := checkpoints.restore(accelerator)) is not None:
        step, history, sums.values, spent = (found[key] for key in ("step", "history", "sums", "seconds"))
        state = found.get("data")
    batches.start_at(step, state)
    read = read_batches(task.dataset, batches, num_workers)
    parts = recipe.batch_size // world // micro_batch
    begun, first = time.perf_counter(), step
    prepared.train()
    while step < batches.total:
        schedule.step_update(step)
        for part in range(parts):
            batch = next(read)
            set_seed(seed_for(recipe.seed, Stream.DROPOUT, step, part, rank))
            with nullcontext() if part == parts - 1 else accelerator.no_sync(prepared):
                loss, means = task.loss(prepared, batch, generator(recipe.seed, Stream.PERTURBATION, step))
                accelerator.backward(loss / parts)
            sums.add(loss, means, step)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        epoch_ends = step % batches.steps_per_epoch == 0
        saves = checkpoints is not None and (step == batches.total or checkpoints.due(step, batches.steps_per_epoch))
        if epoch_ends or saves or not loss.is_cuda or step % CHECKED_EVERY == 0:
            sums.check(accelerator, batches.total)
        if epoch_ends:
            model.eval()
            history.append(
                {"epoch": step // batches.steps_per_epoch, **sums.means(accelerator), **task.after_epoch(model)}
            )
            prepared.train()
        seconds = time.perf_counter() - begun
        if checkpoints is not None and saves:
            sums.gather(accelerator)
            progress = {"step": step, "history": history, "sums": sums.values, "seconds": spent + seconds}
            checkpoints.save(accelerator, progress | {"data": batches.state(step)})
        speed = (step - first) * recipe.batch_size / seconds
        after_step(StepProgress(step, batches.total, loss.detach(), speed, optimizer.param_groups[0]["lr"]))
    model.eval()
    return history


def check_precision(recipe: Recipe) -> None:
    """Raises ConfigurationError if the recipe's precision needs another device."""
    if recipe.precision == "fp16" and not torch.cuda.is_available():
        raise ConfigurationError("precision='fp16' needs a GPU, and there is none: use 'bf16' or 'no'.")


def sizes(recipe: Recipe, num_samples: int, world: int, micro_batch: int | None) -> int:
    """Returns the micro-batch: the number of samples that a process takes at a time.

    Raises:
        ConfigurationError: the batch does not divide by processes and micro-batches, or is larger than the training set.
    """
    if recipe.batch_size > num_samples:
        raise ConfigurationError(
            f"batch_size={recipe.batch_size} and {num_samples} samples make no training step: take a batch_size of "
            f"{num_samples} or less, or more samples."
        )
    share, rest = divmod(recipe.batch_size, world)
    micro_batch = share if micro_batch is None else min(micro_batch, share)
    if rest or micro_batch < 1 or share % micro_batch:
        raise ConfigurationError(
            f"batch_size={recipe.batch_size} in {world} processes with micro_batch={micro_batch}: expected a batch that "
            "divides by processes, and a share of it that divides by micro-batches."
        )
    return micro_batch


class _EpochMetrics:
    """Sums of the metrics over the epoch so far, on the device until `gather` adds those of all processes."""

    def __init__(self):
        self.values: dict[str, float] = {}
        self._here: dict[str, Tensor] = {}
        self._diverged: Tensor | None = None
        """The first step whose loss was NaN or infinite; infinity if there was none."""

    def add(self, loss: Tensor, means: BatchMetrics, step: int) -> None:
        never = torch.full((), math.inf, dtype=torch.float64, device=loss.device)
        now = torch.where(loss.detach().isfinite(), never, float(step + 1))
        self._diverged = now if self._diverged is None else torch.minimum(self._diverged, now)
        count = torch.full((), means.count, dtype=torch.float64, device=loss.device)
        self._accumulate("count", count)
        self._accumulate("skipped", torch.full_like(count, means.skipped))
        for name, value in {"loss": loss, **means.values}.items():
            self._accumulate(name, value.detach().double() * means.count)

    def _accumulate(self, name: str, value: Tensor) -> None:
        self._here[name] = self._here[name] + value if name in self._here else value

    def check(self, accelerator: Accelerator, total: int) -> None:
        """Raises DivergedError, in all processes, if a loss in any of them was NaN or infinite."""
        if self._diverged is None:
            return
        everywhere: Any = accelerator.gather(self._diverged.unsqueeze(0))
        first = everywhere.min().item()
        if first != math.inf:
            raise DivergedError(
                f"the loss is no number since step {first:.0f} of {total}: training diverged. Try a smaller learning rate or a "
                "longer warm-up, in another folder; the checkpoints of the steps before are kept."
            )

    def gather(self, accelerator: Accelerator) -> None:
        """Adds the sums of all processes to `values`."""
        if self._here:
            total: Any = reduce(torch.stack(list(self._here.values())), "sum")
            for name, value in zip(self._here, total.tolist(), strict=True):
                self.values[name] = self.values.get(name, 0.0) + value
            self._here = {}

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Returns the means over the epoch, and starts anew."""
        self.gather(accelerator)
        count, skipped = self.values.pop("count"), int(self.values.pop("skipped"))
        if not count:
            raise DataError(f"none of the {skipped} samples of an epoch can be read.")
        means = {name: value / count for name, value in self.values.items()}
        self.values = {}
        return {**means, "skipped": skipped}
