"""Builds the language model of a configuration: transformers' Llama on bytes, with an encoding attached."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from transformers import LlamaConfig, LlamaForCausalLM

import comrope
from comrope.errors import ConfigurationError, DataError
from comrope.lab.experiment import WEIGHTS
from comrope.lab.text.config import TextConfig
from comrope.lab.text.corpus import BOS, VOCABULARY

MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "small": {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 256},
    "medium": {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1408},
}
"""Settings of LlamaConfig; heads of 16, 32 and 64 features."""


def check(config: TextConfig) -> None:
    """Raises ConfigurationError for an unknown model."""
    if config.model not in MODELS:
        raise ConfigurationError(f"model={config.model!r}: expected one of {', '.join(MODELS)}.")


def build(config: TextConfig, text: Any = None, runs: Path | None = None) -> LlamaForCausalLM:
    """Returns the untrained model; with the same seed, weights outside of the encoding are the same for all encodings.

    Args:
        config: the configuration.
        text: not used, since all text has the same vocabulary.
        runs: the folder that the folder of the run `config.start` is in.
    """
    model = llama(config.model, config.length, config.recipe.seed)
    if config.start is not None:
        weights = (runs or Path()) / config.start / WEIGHTS
        if not weights.exists():
            raise DataError(f"start={config.start!r}: {weights} does not exist; train that run first.")
        try:
            load_model(model, weights)
        except RuntimeError as error:
            raise ConfigurationError(
                f"start={config.start!r}: expected a run of the same model with encoding='rope'. {error}"
            ) from error
    return with_encoding(model, config.encoding, **config.settings)


def llama(name: str, length: int, seed: int = 0, **settings: Any) -> LlamaForCausalLM:
    """Returns an untrained model with transformers' own RoPE.

    Args:
        name: a name in MODELS.
        length: the context length of training in tokens, stored as `max_position_embeddings`.
        seed: the seed of the weights.
        settings: further settings of LlamaConfig.
    """
    if name not in MODELS:
        raise ConfigurationError(f"model={name!r}: expected one of {', '.join(MODELS)}.")
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": None, "pad_token_id": None}
    sizes: dict[str, Any] = MODELS[name] | tokens | {"max_position_embeddings": length} | settings
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**sizes))


def with_encoding(model: LlamaForCausalLM, encoding: str, **settings: Any) -> LlamaForCausalLM:
    """Attaches an encoding to a model in place, and returns the model. For "rope", which it has, nothing is attached.

    Without `init`, learned angles start from the model's RoPE.
    """
    if encoding != "rope":
        comrope.attach(model, encoding, **settings)
    elif settings:
        raise ConfigurationError(
            f"encoding='rope' is transformers' own and takes no {', '.join(settings)}: leave it out."
        )
    return model
