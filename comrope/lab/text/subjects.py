"""What long sequences are tried on: untrained models whose attention looks hard, and random bytes."""

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from comrope.encodings import ENCODINGS, LearnedEncoding
from comrope.lab.rng import Stream, generator
from comrope.lab.text.model import llama, with_encoding


def subject(encoding: str, length: int, **settings) -> LlamaForCausalLM:
    """A small model with random weights, large enough for attention that is far from uniform, in eval mode.

    Learned angles are drawn at random, with frequencies of about 0.7 radians per token: planes that turn thousands of times
    within a sequence are the hardest case for rounding.
    """
    model = llama("small", length, initializer_range=0.1, **settings)
    drawn = {"init": "normal", "std": 0.5} if issubclass(ENCODINGS[encoding], LearnedEncoding) else {}
    return with_encoding(model, encoding, **drawn).eval()


def words(length: int) -> Tensor:
    """Bytes at random, (1, length), always the same."""
    return torch.randint(256, (1, length), generator=generator(0, Stream.EXAMPLE))
