"""Longer texts than trained on, by slower planes: RoPE's frequency scalings, for frequencies that were learned.

Each takes frequencies ω of any shape, in radians per token, plane by plane: a plane is treated as vanilla RoPE treats the
plane of the same wavelength 2π/|ω|, whatever head and place it is in. So on vanilla RoPE's own frequencies they give what
transformers has under these names.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import comrope
from comrope.encodings import Encoding, FixedFrequencies
from comrope.errors import ConfigurationError

SCALINGS = ("none", "linear", "ntk", "yarn")


def linear(frequencies: Tensor, factor: float) -> Tensor:
    """Position interpolation (arXiv:2306.15595): ω/s. In s times the length every plane turns as far as it did in one."""
    return frequencies / factor


def ntk(frequencies: Tensor, factor: float, *, base: float, head_dim: int) -> Tensor:
    """NTK-aware scaling (named in arXiv:2309.00071, section 3.1): ω·s⁻ᵗ, t from 0 for fast planes to 1 for slow ones.

    Vanilla RoPE's base becomes base·s^(D/(D−2)), which slows plane j = 0 … D/2 − 1 by s^(2j/(D−2)): the fastest, at ω = 1, not
    at all, and the slowest, at ω_min = base^(−(D−2)/D), by s. The exponent is ln ω / ln ω_min, which any ω has; it is kept
    within [0, 1] for those that are faster or slower than vanilla RoPE's.
    """
    slowest = -(head_dim - 2) / head_dim * math.log(base)
    return frequencies * factor ** -(frequencies.abs().log() / slowest).clamp(0, 1)


def yarn(frequencies: Tensor, factor: float, *, length: int, fast: float = 32, slow: float = 1) -> Tensor:
    """YaRN's "NTK by parts" (arXiv:2309.00071, section 3.2): fast planes stay, slow ones are interpolated.

    A plane turns r = length·|ω|/2π times within the trained length. With r ≥ `fast` it stays; with r ≤ `slow`, so that it was
    never seen all round, it is divided by s; between, the two are mixed, linearly in ln r, as in the code that was released
    with the paper and in transformers (with truncate=False). As there, nothing faster than ω = 1 is asked of a plane to stay.
    """
    first, last = math.log(min(2 * math.pi * fast / length, 1)), math.log(2 * math.pi * slow / length)
    share = ((first - frequencies.abs().log()) / (first - last)).clamp(0, 1)
    return frequencies * (1 - share) + frequencies / factor * share


def temperature(method: str, factor: float) -> float:
    """What scores are multiplied by: (0.1 ln s + 1)² with YaRN (section 3.4), else 1."""
    return (0.1 * math.log(factor) + 1) ** 2 if method == "yarn" else 1.0


@torch.no_grad()
def scaled(model: LlamaForCausalLM, method: str, factor: float) -> LlamaForCausalLM:
    """A copy of a model with its frequencies scaled, in every layer and head; the model itself where there is nothing to do.

    Args:
        model: with an encoding, or with its own RoPE; `max_position_embeddings` is the length it was trained with.
        method: of SCALINGS.
        factor: s ≥ 1, how many times that length is read. 1 changes nothing.
    """
    if method not in SCALINGS or factor < 1:
        raise ConfigurationError(
            f"scaling={method!r} by {factor}: expected one of {', '.join(SCALINGS)}, by 1 or more."
        )
    if method == "none" or factor == 1:
        return model
    found = copy.deepcopy(model)
    if not any(isinstance(module, Encoding) for module in found.modules()):
        comrope.attach(found, "rope-mixed")  # starts at the model's own frequencies
    comrope.freeze(found)
    config: Any = found.config
    for attention in found.modules():
        encoding = getattr(attention, "encoding", None)
        if isinstance(encoding, FixedFrequencies):
            ways = {
                "linear": lambda w: linear(w, factor),
                "ntk": lambda w: ntk(w, factor, base=config.rope_parameters["rope_theta"], head_dim=config.head_dim),
                "yarn": lambda w: yarn(w, factor, length=config.max_position_embeddings),
            }
            encoding.frequencies.copy_(ways[method](encoding.frequencies))
            attention.scaling = attention.scaling * temperature(method, factor)  # pyright: ignore
    return found
