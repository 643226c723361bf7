"""Untrained models whose attention is far from uniform, and random bytes, for measurements on long sequences."""

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from comrope.encodings import LearnedEncoding, kind_of
from comrope.lab.rng import Stream, generator
from comrope.lab.text.model import llama, with_encoding


def untrained_model(encoding: str, length: int, **settings) -> LlamaForCausalLM:
    """Returns a small untrained model in eval mode, with weights that are large enough for attention far from uniform.

    Learned angles are random, with frequencies of about 0.7 radians per token: planes that rotate thousands of times
    within a sequence are the hardest case for rounding.
    """
    model = llama("small", length, initializer_range=0.1, **settings)
    drawn = {"init": "normal", "std": 0.5} if issubclass(kind_of(encoding), LearnedEncoding) else {}
    return with_encoding(model, encoding, **drawn).eval()


def random_bytes(length: int) -> Tensor:
    """Returns random bytes (1, length), always the same."""
    return torch.randint(256, (1, length), generator=generator(0, Stream.EXAMPLE))
