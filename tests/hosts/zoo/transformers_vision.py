"""Tiny models of transformers that take images or videos, some together with a text."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.hosts.zoo.entry import COLUMNS, IMAGE_TOKEN, PATCH_SIZE, ROWS, VOCAB_SIZE, images, normal, token_ids
from tests.hosts.zoo.transformers_common import BERT, TEXT, VISION, add_model


def image_inputs(**more) -> dict[str, Any]:
    return {"pixel_values": images(), **more}


_interpolated_inputs = partial(image_inputs, interpolate_pos_encoding=True)
_FIXED_SIZE = {"image_size": [PATCH_SIZE * ROWS, PATCH_SIZE * COLUMNS]}


def _clip_inputs() -> dict[str, Any]:
    words = token_ids()
    words[:, -1] = VOCAB_SIZE - 1
    return _interpolated_inputs(input_ids=words, attention_mask=torch.ones_like(words))


def _siglip2_inputs() -> dict[str, Any]:
    """Images of 2 × 3 and of 2 × 2 patches, the second padded with two patches that are masked."""
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    return {
        "pixel_values": normal(2, 6, PATCH_SIZE * PATCH_SIZE * 3),
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([[2, 3], [2, 2]]),
    }


def _video(rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    return normal(2, 4, 3, PATCH_SIZE * rows, PATCH_SIZE * columns)


def _qwen_vl_inputs() -> dict[str, Any]:
    """An image of 4 × 6 patches and a video of 2 × 4 × 4 patches."""
    grid = torch.tensor([[1, 4, 6], [2, 4, 4]])
    return {"hidden_states": normal(56, 3 * 2 * PATCH_SIZE * PATCH_SIZE), "grid_thw": grid}


def _merged_patches(output: Any) -> Tensor:
    """The patches after the merger, which is the whole output in some versions."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _llava_inputs() -> dict[str, Any]:
    words = token_ids()
    words[:, 2:6] = IMAGE_TOKEN
    return {"input_ids": words, "pixel_values": images(2, 2), "attention_mask": torch.ones_like(words)}


add_model("clip vision", "CLIPVisionModel", "CLIPVisionConfig", VISION, _interpolated_inputs)
add_model(
    "clip",
    "CLIPModel",
    "CLIPConfig",
    {
        "vision_config": VISION,
        "text_config": BERT | {"bos_token_id": 1, "eos_token_id": VOCAB_SIZE - 1},
        "projection_dim": 16,
    },
    _clip_inputs,
    lambda output: torch.cat([output.image_embeds, output.text_embeds], dim=-1),
)
add_model("siglip vision", "SiglipVisionModel", "SiglipVisionConfig", VISION, _interpolated_inputs)
add_model(
    "siglip2 vision",
    "Siglip2VisionModel",
    "Siglip2VisionConfig",
    {key: value for key, value in VISION.items() if key != "image_size"},
    _siglip2_inputs,
    num_patches=16,
)
add_model("vit", "ViTModel", "ViTConfig", VISION, _interpolated_inputs)
add_model("vit classifier", "ViTForImageClassification", "ViTConfig", VISION | _FIXED_SIZE, image_inputs, num_labels=3)
add_model("dinov2", "Dinov2Model", "Dinov2Config", VISION, image_inputs)
add_model(
    "dinov2 with registers",
    "Dinov2WithRegistersModel",
    "Dinov2WithRegistersConfig",
    VISION,
    image_inputs,
    num_register_tokens=2,
)
add_model(
    "dinov3", "DINOv3ViTModel", "DINOv3ViTConfig", VISION, image_inputs, num_register_tokens=3, drop_path_rate=0.0
)
add_model("deit", "DeiTModel", "DeiTConfig", VISION, _interpolated_inputs)
add_model(
    "beit",
    "BeitModel",
    "BeitConfig",
    VISION | _FIXED_SIZE,
    image_inputs,
    use_relative_position_bias=True,
    use_mask_token=False,
    drop_path_rate=0.0,
    layer_scale_init_value=1.0,
)
add_model(
    "vit mae",
    "ViTMAEModel",
    "ViTMAEConfig",
    VISION,
    lambda: _interpolated_inputs(noise=torch.arange(6.0).expand(2, 6).clone()),
    mask_ratio=0.0,
)
add_model(
    "videomae",
    "VideoMAEModel",
    "VideoMAEConfig",
    VISION | _FIXED_SIZE,
    lambda: {"pixel_values": _video()},
    num_frames=4,
    tubelet_size=2,
)
add_model(
    "vivit",
    "VivitModel",
    "VivitConfig",
    {key: value for key, value in VISION.items() if key != "patch_size"},
    lambda: {"pixel_values": _video(3, 3)},
    image_size=3 * PATCH_SIZE,
    num_frames=4,
    tubelet_size=[2, PATCH_SIZE, PATCH_SIZE],
)
add_model(
    "vjepa2",
    "VJEPA2Model",
    "VJEPA2Config",
    {key: VISION[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")},
    lambda: {"pixel_values_videos": _video(3, 3), "skip_predictor": True},
    crop_size=3 * PATCH_SIZE,
    frames_per_clip=4,
    tubelet_size=2,
    mlp_ratio=2.0,
    pred_hidden_size=32,
    pred_num_attention_heads=2,
    pred_num_hidden_layers=1,
    pred_num_mask_tokens=1,
)
add_model("yolos", "YolosModel", "YolosConfig", VISION | _FIXED_SIZE, image_inputs, num_detection_tokens=3)
add_model(
    "sam vision",
    "SamVisionModel",
    "SamVisionConfig",
    VISION | {"image_size": 3 * PATCH_SIZE},
    lambda: {"pixel_values": images(3, 3)},
    window_size=2,
    global_attn_indexes=[1],
    mlp_dim=64,
    output_channels=16,
    num_pos_feats=16,
)
add_model(
    "pixtral vision",
    "PixtralVisionModel",
    "PixtralVisionConfig",
    VISION,
    lambda: image_inputs(image_sizes=torch.tensor([[16, 24], [16, 16]])),
)
for _number in (2, 3):
    _module = f"idefics{_number}.modeling_idefics{_number}.Idefics{_number}VisionTransformer"
    _configuration = f"idefics{_number}.configuration_idefics{_number}.Idefics{_number}VisionConfig"
    add_model(f"idefics{_number} vision", _module, _configuration, VISION, image_inputs)
add_model(
    "qwen2.5-vl vision",
    "qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel",
    "qwen2_5_vl.configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig",
    {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": PATCH_SIZE},
    _qwen_vl_inputs,
    _merged_patches,
    out_hidden_size=32,
    window_size=4 * PATCH_SIZE,
    fullatt_block_indexes=[1],
)
add_model(
    "qwen2-vl vision",
    "qwen2_vl.modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel",
    "qwen2_vl.configuration_qwen2_vl.Qwen2VLVisionConfig",
    {"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2, "patch_size": PATCH_SIZE},
    _qwen_vl_inputs,
    _merged_patches,
)
add_model(
    "llava",
    "LlavaForConditionalGeneration",
    "LlavaConfig",
    {
        "vision_config": ("CLIPVisionConfig", VISION | {"image_size": 2 * PATCH_SIZE}),
        "text_config": ("LlamaConfig", TEXT),
        "image_token_index": IMAGE_TOKEN,
        "vision_feature_layer": -1,
        "image_seq_length": 4,
    },
    _llava_inputs,
)
