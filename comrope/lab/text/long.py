"""Long sequences: what attached models cost beside plain RoPE, and how exact they are."""

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
from comrope.lab.text.subjects import subject, words

OFFSET = 1_000_000
FOLDED = ", folded"
"""After the name of an encoding: folded into the weights."""
_SCORES = "comrope_scores"


def costs(
    subjects: Sequence[str], length: int, rounds: int, *, training: bool = False, memory: bool = True
) -> list[dict[str, Any]]:
    """Time and memory of reading one sequence, without a cache: forward alone, or with backward to all parameters.

    Args:
        subjects: names of encodings, some followed by FOLDED; the first is what ratios are to.
        length: in tokens.
        rounds: turns that each takes, after two that are not counted.
        training: whether gradients are computed.
        memory: whether it is measured, in a process of its own for each, which takes seconds to start (Linux only).
    Returns:
        A row each: `seconds` and `ratio` (quartiles, of the same round), and `bytes` held at most, above what was held
        before; None if not measured.
    """
    steps = {name: reading(name, length, training) for name in subjects}
    rows = list(compared(in_turn(steps, rounds, lambda name: None), subjects[0]))
    for row in rows:
        row["bytes"] = peak_memory(reading, row["opponent"], length, training, above_start=True) if memory else None
    return rows


def reading(name: str, length: int, training: bool) -> Step:
    """One pass over the words, of the subject of this name."""
    model = subject(name.removesuffix(FOLDED), length)
    if name.endswith(FOLDED):
        comrope.fold(model)
    tokens = words(length)

    def step() -> None:
        with torch.set_grad_enabled(training):
            logits = model(tokens, use_cache=False, logits_to_keep=0 if training else 1).logits
        if training:
            logits.square().mean().backward()
            model.zero_grad()

    return step


@torch.no_grad()
def exactness(encoding: str, length: int, *, chunk: int = 2048, single: int = 16, split: bool = True) -> dict[str, Any]:
    """How far apart are numbers that should be the same, relative to the largest of them.

    Args:
        encoding: of a subject, in float32; "rope" is transformers' own.
        length: in tokens.
        chunk: tokens that are read at a time, with a cache.
        single: tokens at the end that are read one by one, with a cache.
        split: whether to compute it in two processes too.
    Returns:
        `offset`: logits with all positions moved by OFFSET. `cached`: logits by chunks, then token by token. `split`: logits of
        two processes with half of the tokens each. `scores` and `scores_offset`: scores of the last query with all keys in a
        layer, against float64 throughout, at the positions 0, 1, … and moved by OFFSET.
    """
    model, tokens = subject(encoding, length), words(length)
    whole = model(tokens, use_cache=False).logits[0]
    moved = model(tokens, position_ids=_positions(length, OFFSET), use_cache=False).logits[0]
    found: dict[str, Any] = {"encoding": encoding, "length": length, "offset": _apart(moved, whole)}
    found["cached"] = _apart(cached_logits(model, tokens, chunk, single), whole)
    found["split"] = _apart(split_logits(encoding, length), whole) if split else None
    for key, offset in (("scores", 0), ("scores_offset", OFFSET)):
        one = subject(encoding, length, num_hidden_layers=1)
        found[key] = _apart(far_scores(one, tokens, offset), far_scores(_in_float64(one), tokens, offset))
    return found


def cached_logits(model: LlamaForCausalLM, tokens: Tensor, chunk: int, single: int) -> Tensor:
    """(L, vocabulary): all but the last `single` of tokens (1, L) read `chunk` at a time, those one by one, with a cache."""
    cache = DynamicCache(config=model.config)
    parts = [*tokens[:, : len(tokens[0]) - single].split(chunk, 1), *tokens[:, len(tokens[0]) - single :].split(1, 1)]
    return torch.cat([model(part, past_key_values=cache, use_cache=True).logits[0] for part in parts])


def far_scores(model: LlamaForCausalLM, tokens: Tensor, offset: int = 0) -> Tensor:
    """Scores of the last query with all keys in a model of one layer, (heads, L), float64."""
    model = copy.deepcopy(model)
    model.set_attn_implementation(_SCORES)
    seen: list[Tensor] = []
    positions = _positions(tokens.shape[1], offset)
    model(tokens, position_ids=positions, use_cache=False, seen=seen)
    return seen[0]


def _last_scores(module, query, key, value, mask, *, scaling: float, seen: list[Tensor], **options):
    """In place of attention: notes the last query's scores, and lets each token see itself alone."""
    seen.append((query[0, :, -1:].double() @ key[0].double().mT).squeeze(1) * scaling)
    return value.transpose(1, 2), None


AttentionInterface.register(_SCORES, _last_scores)


def _in_float64(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy with phases in float64 too, which transformers' own RoPE works out in float32 whatever the model's dtype."""
    found = copy.deepcopy(model)
    if not any(isinstance(module, Encoding) for module in found.modules()):
        comrope.attach(found, "rope-mixed")
    return found.double()


def _positions(length: int, offset: int) -> Tensor:
    return (torch.arange(length) + offset).unsqueeze(0)


def _apart(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).abs().max() / expected.abs().max()).item()
