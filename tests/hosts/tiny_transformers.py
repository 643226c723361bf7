"""Tiny, randomly initialised models of transformers whose attention is far from uniform."""

import torch
import transformers as hf
from torch import Tensor, nn

PATCH = 8
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 4 * PATCH,
    "patch_size": PATCH,
}
_TEXT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
VISION = {
    "clip": (hf.CLIPVisionModel, hf.CLIPVisionConfig, {}),
    "vit": (hf.ViTForImageClassification, hf.ViTConfig, {"num_labels": 3}),
    "dinov2": (hf.Dinov2ForImageClassification, hf.Dinov2Config, {"num_labels": 3}),
    "dinov2 with registers": (hf.Dinov2WithRegistersModel, hf.Dinov2WithRegistersConfig, {"num_register_tokens": 2}),
    "siglip": (hf.SiglipVisionModel, hf.SiglipVisionConfig, {}),
    "dinov3": (hf.DINOv3ViTModel, hf.DINOv3ViTConfig, {"num_register_tokens": 3, "drop_path_rate": 0.0}),
}
TEXT = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, {}),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, {}),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, {}),
    "mistral": (hf.MistralForCausalLM, hf.MistralConfig, {"sliding_window": 6}),
}
NUM_PREFIX_TOKENS = {"clip": 1, "vit": 1, "dinov2": 1, "dinov2 with registers": 3, "siglip": 0, "dinov3": 4}


def build(name: str, **config) -> nn.Module:
    """Returns the model called `name`, in eval mode, with weights so large that attention is far from uniform."""
    kind, configuration, settings = VISION[name] if name in VISION else TEXT[name]
    shape = _VISION if name in VISION else _TEXT
    torch.manual_seed(0)
    return randomise_weights(kind(configuration(**(shape | settings | config))).eval())


def clip_model() -> nn.Module:
    """Returns CLIP with both towers."""
    torch.manual_seed(0)
    text = {k: v for k, v in _TEXT.items() if k in ("vocab_size", "hidden_size", "intermediate_size")}
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}
    config = hf.CLIPConfig(text_config=text | sizes, vision_config=_VISION, projection_dim=16)
    return randomise_weights(hf.CLIPModel(config).eval())


@torch.no_grad()
def randomise_weights(model: nn.Module) -> nn.Module:
    """Draws new weights for all linear layers, and moves those of norms away from one; returns the model."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(0, 0.3)
        elif module.__class__.__name__.endswith(("RMSNorm", "LayerNorm")):
            module.weight.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def perturb_angles(model: nn.Module, size: float = 0.5) -> nn.Module:
    """Adds normal noise to all angles, and returns the model."""
    import comrope.hosts

    for parameter in comrope.hosts.angle_parameters(model).values():
        parameter.add_(torch.randn_like(parameter), alpha=size)
    return model


def images(rows: int = 4, columns: int = 4, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, PATCH * rows, PATCH * columns, generator=torch.Generator().manual_seed(1))


def forward(model: nn.Module, x: Tensor, **keywords) -> Tensor:
    """Returns the logits or hidden states for images of any size, or for token ids."""
    if x.is_floating_point() and isinstance(
        model, (hf.CLIPVisionModel, hf.SiglipVisionModel, hf.ViTForImageClassification)
    ):
        keywords["interpolate_pos_encoding"] = True
    return model(x, **keywords)[0]


def token_ids(length: int = 12, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.randint(3, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


def checkpoint_blocks(model: nn.Module, *, reentrant: bool = False) -> None:
    """Enables gradient checkpointing, by the method that this version of transformers has."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
