"""Long sequences: time and memory of attached models compared with plain RoPE, and their numerical accuracy."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, LlamaForCausalLM

import comrope
from comrope.encodings import Encoding
from comrope.lab.bench.clock import Step, compared, in_turn, peak_memory
from comrope.lab.text.split import split_logits
from comrope.lab.text.untrained import random_bytes, untrained_model

OFFSET = 1_000_000
FOLDED = ", folded"
"""Suffix of an encoding's name: the encoding is folded into the weights."""
_SCORES = "comrope_scores"


def costs(
    names: Sequence[str], length: int, rounds: int, *, training: bool = False, memory: bool = True
) -> list[dict[str, Any]]:
    """Measures time and memory for one sequence without a cache: forward alone, or with backward to all parameters.

    Args:
        names: names of encodings, some followed by FOLDED. Ratios are to the first.
        length: the length of the sequence in tokens.
        rounds: how often each model is timed, after two warm-up rounds.
        training: whether gradients are computed.
        memory: whether memory is measured, in a new process for each model, which takes seconds to start (Linux only).
    Returns:
        A row for each model: the quartiles of `seconds` and of `ratio`, the ratio within a round, and the peak memory
        in `bytes` above that before the step, None if not measured.
    """
    steps = {name: reading(name, length, training) for name in names}
    rows = list(compared(in_turn(steps, rounds, lambda name: None), names[0]))
    for row in rows:
        row["bytes"] = peak_memory(reading, row["opponent"], length, training, above_start=True) if memory else None
    return rows


def reading(name: str, length: int, training: bool) -> Step:
    """Returns a step: one pass of the model of this name over the sequence."""
    model = untrained_model(name.removesuffix(FOLDED), length)
    if name.endswith(FOLDED):
        comrope.fold(model)
    tokens = random_bytes(length)

    def step() -> None:
        with torch.set_grad_enabled(training):
            logits = model(tokens, use_cache=False, logits_to_keep=0 if training else 1).logits
        if training:
            logits.square().mean().backward()
            model.zero_grad()

    return step


@torch.no_grad()
def exactness(encoding: str, length: int, *, chunk: int = 2048, single: int = 16, split: bool = True) -> dict[str, Any]:
    """Returns how far numbers differ that should be the same, relative to the largest of them.

    Args:
        encoding: the encoding of the model, which computes in float32; "rope" is transformers' own.
        length: the length of the sequence in tokens.
        chunk: the number of tokens that are read at a time with a cache.
        single: the number of tokens at the end that are read one by one with a cache.
        split: whether to also compute the sequence in two processes.
    Returns:
        `offset`: logits with all positions moved by OFFSET, against logits without. `cached`: logits computed in
        chunks, then token by token, against those of one pass. `split`: logits of two processes with half of the tokens
        each, against those of one process. `scores` and `scores_offset`: attention scores of the last query with all
        keys in one layer, against float64 throughout, at the positions 0, 1, … and at those moved by OFFSET.
    """
    model, tokens = untrained_model(encoding, length), random_bytes(length)
    whole = model(tokens, use_cache=False).logits[0]
    moved = model(tokens, position_ids=_positions(length, OFFSET), use_cache=False).logits[0]
    found: dict[str, Any] = {"encoding": encoding, "length": length, "offset": _relative_difference(moved, whole)}
    found["cached"] = _relative_difference(cached_logits(model, tokens, chunk, single), whole)
    found["split"] = _relative_difference(split_logits(encoding, length), whole) if split else None
    for key, offset in (("scores", 0), ("scores_offset", OFFSET)):
        one = untrained_model(encoding, length, num_hidden_layers=1)
        found[key] = _relative_difference(far_scores(one, tokens, offset), far_scores(_in_float64(one), tokens, offset))
    return found


def cached_logits(model: LlamaForCausalLM, tokens: Tensor, chunk: int, single: int) -> Tensor:
    """Returns logits (L, vocabulary) of tokens (1, L), computed with a cache.

    The last `single` tokens are read one by one, the others `chunk` at a time.
    """
    cache = DynamicCache(config=model.config)
    parts = [*tokens[:, : len(tokens[0]) - single].split(chunk, 1), *tokens[:, len(tokens[0]) - single :].split(1, 1)]
    return torch.cat([model(part, past_key_values=cache, use_cache=True).logits[0] for part in parts])


def far_scores(model: LlamaForCausalLM, tokens: Tensor, offset: int = 0) -> Tensor:
    """Returns the attention scores of the last query with all keys in a model of one layer, (heads, L), float64."""
    model = copy.deepcopy(model)
    model.set_attn_implementation(_SCORES)
    seen: list[Tensor] = []
    positions = _positions(tokens.shape[1], offset)
    model(tokens, position_ids=positions, use_cache=False, seen=seen)
    return seen[0]


def _last_scores(module, query, key, value, mask, *, scaling: float, seen: list[Tensor], **options):
    """Replaces attention: appends the last query's scores to `seen`, and lets each token attend to itself alone."""
    seen.append((query[0, :, -1:].double() @ key[0].double().mT).squeeze(1) * scaling)
    return value.transpose(1, 2), None


AttentionInterface.register(_SCORES, _last_scores)


def _in_float64(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Returns a float64 copy. Its phases are float64 too; transformers' RoPE computes them in float32 whatever the dtype."""
    found = copy.deepcopy(model)
    if not any(isinstance(module, Encoding) for module in found.modules()):
        comrope.attach(found, "rope-mixed")
    return found.double()


def _positions(length: int, offset: int) -> Tensor:
    return (torch.arange(length) + offset).unsqueeze(0)


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).abs().max() / expected.abs().max()).item()
