"""Language modelling as a `comrope.lab.problem.Problem`: bits per byte at any context length."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from comrope.errors import ConfigurationError
from comrope.lab.options import among_larger, check_scaling
from comrope.lab.text.config import TextConfig, TextOptions
from comrope.lab.text.corpus import BOS, EvalText, TextBatch, TrainText
from comrope.lab.text.data import datasets as datasets
from comrope.lab.text.model import build as build
from comrope.lab.text.model import check as check
from comrope.lab.text.rows import TextStream
from comrope.lab.text.scaling import scaled
from comrope.lab.train import BatchMetrics, Task

_TOKENS = 16384
"""Number of tokens in a batch of the evaluation."""


@dataclass(frozen=True)
class Condition:
    """A context length, and a scaling of the frequencies."""

    length: int
    """Bytes in a window."""
    scaling: str = "none"
    """One of `comrope.scaling.METHODS`, or "none". The factor is the length over the trained length."""

    def __post_init__(self):
        check_scaling(self.scaling)
        if self.length < 1:
            raise ConfigurationError(f"length={self.length}: expected 1 or more.")

    def describes(self, row: dict[str, Any]) -> bool:
        """Whether a row of `evaluate` was measured under this condition."""
        return row["length"] == self.length and row["scaling"] == self.scaling


def longer(config: TextConfig, scalings: Sequence[str] = ("none",)) -> list[Condition]:
    """Returns the trained length and 2, 4, 8, … times that, up to the length of test segments, with each scaling."""
    factors = [2**i for i in range(config.test_length.bit_length())]
    lengths = [f * config.length for f in factors if f * config.length <= config.test_length]
    return [Condition(n, s) for n in lengths for s in scalings if s == "none" or n > config.length]


def conditions(config: TextConfig, options: TextOptions | None = None) -> list[Condition]:
    """Returns every combination of the lengths and scalings asked for; by default the trained length without scaling.

    Scalings are combined with lengths beyond the trained one only.
    """
    options = options or TextOptions()
    for length in options.lengths:
        if length < 1 or config.test_length % length:
            raise ConfigurationError(_no_divisor(length, config.test_length))
    scalings = options.scalings or ("none",)
    asked = itertools.product(options.lengths or [config.length], scalings)
    return among_larger([Condition(n, s) for n, s in asked], lambda c: c.length > config.length)


def _no_divisor(length: int, segment: int) -> str:
    return (
        f"length={length}: expected a divisor of the {segment} bytes in a segment of test text, so that the same bytes are "
        "predicted at every length (test_length)."
    )


def task(model: nn.Module, train: TrainText | TextStream, evaluation: EvalText, config: TextConfig) -> "NextByte":
    """Returns the training task: the training windows and the loss of the next byte."""
    return NextByte(train)


class NextByte(Task):
    """Trains on the prediction of the next byte, at every byte of a window."""

    def __init__(self, text: TrainText | TextStream):
        self.dataset = text

    def loss(self, model: nn.Module, batch: TextBatch, rng: torch.Generator) -> tuple[Tensor, BatchMetrics]:
        """Returns the loss in nats per token. The first token of the next document is not predicted."""
        device = next(model.parameters()).device
        tokens, positions = batch.tokens.to(device), batch.positions.to(device)
        logits = model(input_ids=tokens[:, :-1], position_ids=positions, use_cache=False).logits
        targets = tokens[:, 1:]
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=BOS, reduction="sum")
        loss = nats / targets.numel()  # not by the number predicted: all windows have the same weight
        return loss, BatchMetrics(len(tokens), {"bits_per_byte": loss / math.log(2)})


def evaluate(
    model: nn.Module, text: EvalText, conditions: Sequence[Condition], *, num_workers: int = 0
) -> Iterator[dict[str, Any]]:
    """Returns rows, one for each condition, with the loss on the test text in nats, over the same bytes at every length.

    If several processes call this together, each takes its share of the segments; the rows have the sums of all
    processes.

    Args:
        model: a `LlamaForCausalLM`.
        text: test segments; every length must divide theirs.
        conditions: the lengths and scalings to evaluate at.
        num_workers: not used, since the text is in memory.
    Returns:
        In each row the condition's fields, the sum `nats` over all `bytes`, and `positions`: rows [first, last + 1,
        nats, bytes] for the bytes at the positions 0, 1, 2–3, 4–7, 8–15, … of the window.
    """
    assert isinstance(model, LlamaForCausalLM)
    for condition in conditions:
        if text.length % condition.length:
            raise ConfigurationError(_no_divisor(condition.length, text.length))
    return _rows(model, text, conditions)


def _rows(model: LlamaForCausalLM, text: EvalText, conditions: Sequence[Condition]) -> Iterator[dict[str, Any]]:
    for condition in conditions:
        nats = nats_by_position(scaled(model, condition.scaling, condition.length), text, condition.length)
        count = len(text.tokens) * (text.length // condition.length)
        edges = [0, *(2**i for i in range(condition.length.bit_length()) if 2**i < condition.length), condition.length]
        bins = [[a, b, nats[a:b].sum().item(), (b - a) * count] for a, b in itertools.pairwise(edges)]
        found = {"nats": nats.sum().item(), "bytes": count * condition.length, "positions": bins}
        yield {**vars(condition), **found}


@torch.no_grad()
def nats_by_position(model: LlamaForCausalLM, text: EvalText, length: int) -> Tensor:
    """Returns −ln p of the bytes of all segments, summed by position in windows of `length`: (length,), float64.

    If several processes call this together, each computes its share and returns the sums of all.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    device = next(model.parameters()).device
    mine = text.tokens[state.process_index :: state.num_processes].long()
    inputs, targets = (part.reshape(-1, length) for part in (mine[:, :-1], mine[:, 1:]))
    sums = torch.zeros(length, dtype=torch.float64, device=device)
    size = max(1, _TOKENS // length)
    for read, expected in zip(inputs.split(size), targets.split(size), strict=True):
        logits = model(input_ids=read.to(device), use_cache=False).logits.float()
        sums += F.cross_entropy(logits.mT, expected.to(device), reduction="none").double().sum(0)
    total: Any = reduce(sums, "sum")
    return total.cpu()


def bits_per_byte(row: dict[str, Any]) -> float:
    """Returns the bits per byte of a row of `evaluate`."""
    return row["nats"] / row["bytes"] / math.log(2)
