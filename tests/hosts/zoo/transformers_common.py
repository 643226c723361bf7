"""How tiny models of transformers are added to the zoo, and the settings that they share."""

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tests.hosts.zoo.entry import PATCH_SIZE, VOCAB_SIZE, ZOO, Entry, import_path, main_output, seeded

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 4 * PATCH_SIZE,
    "patch_size": PATCH_SIZE,
}
BERT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
TEXT = BERT | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": 1,
    "eos_token_id": None,
}
WIDE = {key: value for key, value in TEXT.items() if key != "head_dim"} | {"hidden_size": 64}


def add_model(
    name: str,
    kind: str,
    config: str,
    shape: dict[str, Any],
    keywords: Callable[[], dict[str, Any]],
    tensor: Callable[[Any], Tensor] = main_output,
    *,
    gain: float = 1.5,
    **settings,
) -> None:
    """Adds a class of transformers, which may be a dotted name below transformers.models. Settings override `shape`."""

    def build(**overrides) -> nn.Module:
        hf = importlib.import_module("transformers")
        of_kind = import_path(f"transformers.models.{kind}") if "." in kind else getattr(hf, kind)
        of_config = import_path(f"transformers.models.{config}") if "." in config else getattr(hf, config)
        wanted = {key: _config(hf, value) for key, value in (shape | settings).items()}
        return seeded(lambda: of_kind._from_config(of_config(**wanted), **overrides), gain)

    ZOO[name] = Entry(name, "transformers", build, keywords, tensor)


def _config(hf: Any, value: Any) -> Any:
    """Replaces a pair (name of a configuration class, its settings) by that configuration."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
        return getattr(hf, value[0])(**value[1])
    return value
