"""RoPE's frequency scalings for longer texts than trained on, extended to learned frequencies.

Each function takes frequencies ω of any shape, in radians per token. It scales a plane as vanilla RoPE scales its plane
of the same wavelength 2π/|ω|, whatever the plane's head and index. So, for the frequencies of vanilla RoPE, the results
are those of transformers' scalings of the same names.
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
    """Returns ω/s, position interpolation (arXiv:2306.15595): over s times the length, planes rotate as far as in training."""
    return frequencies / factor


def ntk(frequencies: Tensor, factor: float, *, base: float, head_dim: int) -> Tensor:
    """Returns ω·s⁻ᵗ, with t from 0 for fast planes to 1 for slow ones: NTK-aware scaling (arXiv:2309.00071, section 3.1).

    Vanilla RoPE's base becomes base·s^(D/(D−2)), which slows plane j = 0 … D/2 − 1 by s^(2j/(D−2)): the fastest plane,
    with ω = 1, is unchanged, and the slowest, with ω_min = base^(−(D−2)/D), is slowed by s. So t = ln ω / ln ω_min,
    which is defined for any ω, and is clamped to [0, 1] for planes that are faster or slower than those of vanilla
    RoPE.
    """
    slowest = -(head_dim - 2) / head_dim * math.log(base)
    return frequencies * factor ** -(frequencies.abs().log() / slowest).clamp(0, 1)


def yarn(frequencies: Tensor, factor: float, *, length: int, fast: float = 32, slow: float = 1) -> Tensor:
    """Returns ω by YaRN's "NTK by parts" (arXiv:2309.00071, section 3.2): fast planes stay, slow ones are interpolated.

    A plane makes r = length·|ω|/2π full rotations within the trained length. If r ≥ `fast`, ω is unchanged. If r ≤
    `slow`, the plane never completed a rotation in training, and ω is divided by s. In between the two are mixed,
    linearly in ln r, as in the code released with the paper and in transformers (with truncate=False). As there, ω ≥ 1
    is unchanged in any case.
    """
    first, last = math.log(min(2 * math.pi * fast / length, 1)), math.log(2 * math.pi * slow / length)
    share = ((first - frequencies.abs().log()) / (first - last)).clamp(0, 1)
    return frequencies * (1 - share) + frequencies / factor * share


def temperature(method: str, factor: float) -> float:
    """Returns the factor of attention scores: (0.1 ln s + 1)² for YaRN (section 3.4), else 1."""
    return (0.1 * math.log(factor) + 1) ** 2 if method == "yarn" else 1.0


@torch.no_grad()
def scaled(model: LlamaForCausalLM, method: str, factor: float) -> LlamaForCausalLM:
    """Returns a copy of a model with scaled frequencies in all layers and heads; the model itself if nothing changes.

    Args:
        model: a model with an encoding or with its own RoPE, trained at the length `max_position_embeddings`.
        method: one of SCALINGS.
        factor: s ≥ 1, the length to be read over the trained length. 1 changes nothing.
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
            scalings = {
                "linear": lambda w: linear(w, factor),
                "ntk": lambda w: ntk(w, factor, base=config.rope_parameters["rope_theta"], head_dim=config.head_dim),
                "yarn": lambda w: yarn(w, factor, length=config.max_position_embeddings),
            }
            encoding.frequencies.copy_(scalings[method](encoding.frequencies))
            attention.scaling = attention.scaling * temperature(method, factor)  # pyright: ignore
    return found
