"""Language models for longer texts than trained on: what `comrope.rescale` needs to know of a Llama."""

import copy
from typing import Any

import torch
from transformers import LlamaForCausalLM

import comrope
from comrope.encodings import Encoding

SCALINGS = ("none", "linear", "ntk", "yarn")
"""Those that the recipe compares."""


@torch.no_grad()
def scaled(model: LlamaForCausalLM, method: str, length: int) -> LlamaForCausalLM:
    """Returns a copy of a model with scaled frequencies in all layers and heads; the model itself if nothing changes.

    Args:
        model: a model with an encoding or with its own RoPE, trained at the length `max_position_embeddings`. "ntk" scales
            planes as those of that RoPE, from which learned angles start.
        method: one of `comrope.scaling.METHODS`, or "none".
        length: the tokens to be read. Up to the trained length nothing changes.
    """
    config: Any = model.config
    trained = config.max_position_embeddings
    if method == "none" or length <= trained:
        return model
    found = copy.deepcopy(model)
    if not any(isinstance(module, Encoding) for module in found.modules()):
        comrope.attach(found, "rope-mixed")  # starts at the model's own frequencies
    slowest = config.rope_parameters["rope_theta"] ** -((config.head_dim - 2) / config.head_dim)
    return comrope.rescale(found, method, trained=trained, shape=length, span=(slowest, 1.0))
