"""Language modelling: what decides a run, its loss, and bits per byte at any length."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import reduce
from safetensors.torch import load_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from comrope.errors import ConfigurationError, DataError
from comrope.lab.experiment import WEIGHTS
from comrope.lab.text.corpus import BOS, Stretches, Training, Windows, documents
from comrope.lab.text.experiment import TextExperiment
from comrope.lab.text.model import MODELS, llama, with_encoding
from comrope.lab.text.scaling import SCALINGS, scaled
from comrope.lab.train import Means

_TOKENS = 16384
"""Read at a time when measuring."""


@dataclass(frozen=True)
class Condition:
    """How test text is read."""

    length: int
    """Bytes in a window."""
    scaling: str = "none"
    """How frequencies are scaled, by length over the trained length: of `comrope.lab.text.scaling.SCALINGS`."""

    def __post_init__(self):
        if self.scaling not in SCALINGS or self.length < 1:
            raise ConfigurationError(
                f"length={self.length}, scaling={self.scaling!r}: expected 1 or more, and one of {', '.join(SCALINGS)}."
            )

    def describes(self, row: dict[str, Any]) -> bool:
        """Whether a row of `measure` was found under this condition."""
        return row["length"] == self.length and row["scaling"] == self.scaling


def longer(experiment: TextExperiment, scalings: Sequence[str] = ("none",)) -> list[Condition]:
    """The trained length, and 2, 4, 8, … times that as far as test text goes, with each scaling."""
    factors = [2**i for i in range(experiment.test_length.bit_length())]
    lengths = [f * experiment.length for f in factors if f * experiment.length <= experiment.test_length]
    return [Condition(n, s) for n in lengths for s in scalings if s == "none" or n > experiment.length]


def conditions(
    experiment: TextExperiment, lengths: Sequence[int] = (), scalings: Sequence[str] = ("none",)
) -> list[Condition]:
    """Every combination of lengths, the trained one if there are none, and scalings, which nothing but longer windows have."""
    for length in lengths:
        if length < 1 or experiment.test_length % length:
            raise ConfigurationError(_no_divisor(length, experiment.test_length))
    asked = itertools.product(lengths or [experiment.length], scalings)
    found = [Condition(n, s) for n, s in asked if s == "none" or n > experiment.length]
    if not found:
        raise ConfigurationError(
            f"scalings {', '.join(scalings)}: they are for longer windows than the {experiment.length} bytes trained at: give "
            "such lengths as well."
        )
    return found


def _no_divisor(length: int, stretch: int) -> str:
    return (
        f"length={length}: expected a divisor of the {stretch} bytes in a stretch of test text, so that the same bytes are "
        "predicted at every length (test_length)."
    )


@lru_cache(maxsize=2)
def _load(experiment: tuple, unreadable: str) -> tuple[Training, Stretches]:
    source, suffixes, num_train, num_test, length, test_length, seed = experiment
    train, test = documents(source, suffixes, unreadable)
    return Training(train, length, num_train, seed=seed), Stretches.of(test, test_length, num_test)


def data(experiment: TextExperiment, unreadable: str = "fail") -> tuple[Training, Stretches]:
    """Windows to train on and stretches to test on; those read last are kept in memory."""
    names = ("data", "suffixes", "num_train", "num_test", "length", "test_length")
    return _load((*(getattr(experiment, name) for name in names), experiment.recipe.seed), unreadable)


def check(experiment: TextExperiment) -> None:
    """Refuses a model that there is not."""
    if experiment.model not in MODELS:
        raise ConfigurationError(f"model={experiment.model!r}: expected one of {', '.join(MODELS)}.")


def build(experiment: TextExperiment, text: Any = None, runs: Path | None = None) -> LlamaForCausalLM:
    """The model of an experiment; with the same seed all encodings start from the same weights outside of themselves.

    Args:
        experiment: which.
        text: not asked: all text has the same vocabulary.
        runs: the folder that `experiment.start` is a run in.
    """
    model = llama(experiment.model, experiment.length, experiment.recipe.seed)
    if experiment.start is not None:
        weights = (runs or Path()) / experiment.start / WEIGHTS
        if not weights.exists():
            raise DataError(f"start={experiment.start!r}: {weights} does not exist; train that run first.")
        try:
            load_model(model, weights)
        except RuntimeError as error:
            raise ConfigurationError(
                f"start={experiment.start!r}: expected a run of the same model with encoding='rope'. {error}"
            ) from error
    return with_encoding(model, experiment.encoding, **experiment.settings)


def task(model: nn.Module, text: Training, experiment: TextExperiment) -> "NextByte":
    return NextByte(text)


class NextByte:
    """The next byte of every byte of a window, for the training loop."""

    def __init__(self, feed: Training):
        self.feed = feed

    def loss(self, model: nn.Module, batch: Windows, draws: torch.Generator) -> tuple[Tensor, Means]:
        """Nats a token. Where the next token begins another document nothing is asked, and nothing is lost."""
        device = next(model.parameters()).device
        tokens, positions = batch.tokens.to(device), batch.positions.to(device)
        logits = model(input_ids=tokens[:, :-1], position_ids=positions, use_cache=False).logits
        targets = tokens[:, 1:]
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=BOS, reduction="sum")
        loss = nats / targets.numel()  # not by those asked: parts of a batch weigh alike
        return loss, Means(len(tokens), {"bits_per_byte": loss / math.log(2)})


def measure(
    model: nn.Module, text: Stretches, conditions: Sequence[Condition], *, readers: int = 0
) -> list[dict[str, Any]]:
    """What the test text costs under each condition, in nats: the same bytes at every length.

    Called in several processes, each takes its share of the stretches; the sums are of all of them.

    Args:
        model: a `LlamaForCausalLM`.
        text: stretches that every length divides.
        conditions: at which lengths, and how frequencies are scaled.
        readers: of no use here: text is in memory.
    Returns:
        A row a condition: its fields, `nats` of all `bytes`, and `positions`, rows [first, last + 1, nats, bytes] of places
        in the window: 0, 1, 2–3, 4–7, 8–15, ….
    """
    assert isinstance(model, LlamaForCausalLM)
    rows = []
    for condition in conditions:
        if text.length % condition.length:
            raise ConfigurationError(_no_divisor(condition.length, text.length))
        factor = max(1.0, condition.length / model.config.max_position_embeddings)
        nats = nats_by_position(scaled(model, condition.scaling, factor), text, condition.length)
        count = len(text.tokens) * (text.length // condition.length)
        edges = [0, *(2**i for i in range(condition.length.bit_length()) if 2**i < condition.length), condition.length]
        bins = [[a, b, nats[a:b].sum().item(), (b - a) * count] for a, b in itertools.pairwise(edges)]
        found = {"nats": nats.sum().item(), "bytes": count * condition.length, "positions": bins}
        rows.append({**vars(condition), **found})
    return rows


@torch.no_grad()
def nats_by_position(model: LlamaForCausalLM, text: Stretches, length: int) -> Tensor:
    """−ln p of the bytes of all stretches, read `length` at a time, summed by place in the window: (length,), float64.

    Every process that calls it computes its share, and has the sums of all.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    device = next(model.parameters()).device
    mine = text.tokens[state.process_index :: state.num_processes].long()
    inputs, targets = (part.reshape(-1, length) for part in (mine[:, :-1], mine[:, 1:]))
    sums = torch.zeros(length, dtype=torch.float64, device=device)
    size = max(1, _TOKENS // length)
    for read, asked in zip(inputs.split(size), targets.split(size), strict=True):
        logits = model(input_ids=read.to(device), use_cache=False).logits.float()
        sums += F.cross_entropy(logits.mT, asked.to(device), reduction="none").double().sum(0)
    total: Any = reduce(sums, "sum")
    return total.cpu()


def bits_per_byte(row: dict[str, Any]) -> float:
    """Of a row of `measure`."""
    return row["nats"] / row["bytes"] / math.log(2)
