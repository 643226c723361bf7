"""Tiny models of diffusers."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.hosts.zoo.entry import ZOO, Entry, main_output, normal, seeded

_DIFFUSION = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}


def _add(name: str, kind: str, keywords: Callable[[], dict[str, Any]], **settings) -> None:
    """Adds a class of diffusers. Settings override _DIFFUSION."""

    def build(**overrides) -> nn.Module:
        of_kind = getattr(importlib.import_module("diffusers"), kind)
        known = inspect.signature(of_kind.__init__).parameters
        return seeded(lambda: of_kind(**({k: v for k, v in _DIFFUSION.items() if k in known} | settings | overrides)))

    ZOO[name] = Entry(name, "diffusers", build, keywords, main_output)


def _latent_inputs(*size: int, text: bool = True, **more) -> dict[str, Any]:
    """Latents of the given size, and five tokens of text if `text`."""
    texts = {"encoder_hidden_states": normal(2, 5, 32, seed=2)} if text else {}
    return {"hidden_states": normal(*size), "timestep": torch.tensor([3, 700])} | texts | more


def _flux_inputs() -> dict[str, Any]:
    rows, columns = torch.meshgrid(torch.arange(2.0), torch.arange(3.0), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
    timestep = torch.tensor([0.1, 0.7])
    places_of_text = torch.zeros(5, 3)
    pooled = normal(2, 32, seed=3)
    return _latent_inputs(
        2, 6, 16, pooled_projections=pooled, img_ids=places, txt_ids=places_of_text, timestep=timestep
    )


_add(
    "dit",
    "DiTTransformer2DModel",
    lambda: _latent_inputs(2, 4, 8, 8, text=False, class_labels=torch.tensor([1, 3])),
    sample_size=8,
    num_embeds_ada_norm=1000,
    norm_num_groups=4,
)
_add(
    "pixart",
    "PixArtTransformer2DModel",
    lambda: _latent_inputs(2, 4, 4, 6),
    sample_size=8,
    caption_channels=32,
    cross_attention_dim=32,
    norm_num_groups=4,
)
_add(
    "sana",
    "SanaTransformer2DModel",
    lambda: _latent_inputs(2, 4, 2, 3),
    in_channels=4,
    out_channels=4,
    sample_size=8,
    caption_channels=32,
    num_cross_attention_heads=2,
    cross_attention_head_dim=16,
    cross_attention_dim=32,
)
_add(
    "latte",
    "LatteTransformer3DModel",
    lambda: _latent_inputs(2, 4, 2, 8, 8),
    in_channels=4,
    sample_size=8,
    patch_size=2,
    caption_channels=32,
    cross_attention_dim=32,
    video_length=2,
    norm_type="ada_norm_single",
    norm_elementwise_affine=False,
)
_add(
    "cogvideox",
    "CogVideoXTransformer3DModel",
    lambda: _latent_inputs(2, 2, 4, 4, 6),
    in_channels=4,
    out_channels=4,
    time_embed_dim=8,
    text_embed_dim=32,
    sample_width=6,
    sample_height=4,
    sample_frames=5,
    max_text_seq_length=5,
)
for _name, _more in {"sd3": {}, "sd3.5": {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}}.items():
    _add(
        _name,
        "SD3Transformer2DModel",
        lambda: _latent_inputs(2, 4, 4, 6, pooled_projections=normal(2, 32, seed=3)),
        sample_size=8,
        in_channels=4,
        out_channels=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        **_more,
    )
_add(
    "flux",
    "FluxTransformer2DModel",
    _flux_inputs,
    num_layers=1,
    num_single_layers=1,
    in_channels=16,
    joint_attention_dim=32,
    pooled_projection_dim=32,
    axes_dims_rope=(4, 6, 6),
)
_add(
    "wan",
    "WanTransformer3DModel",
    lambda: _latent_inputs(2, 4, 2, 4, 6),
    in_channels=4,
    out_channels=4,
    attention_head_dim=24,
    text_dim=32,
    freq_dim=32,
    ffn_dim=64,
    rope_max_seq_len=32,
)
_add(
    "ltx",
    "LTXVideoTransformer3DModel",
    lambda: _latent_inputs(2, 12, 4, encoder_attention_mask=torch.ones(2, 5), num_frames=2, height=2, width=3),
    in_channels=4,
    out_channels=4,
    cross_attention_dim=32,
    caption_channels=32,
)
_add(
    "lumina2",
    "Lumina2Transformer2DModel",
    lambda: _latent_inputs(2, 4, 4, 6, encoder_attention_mask=torch.ones(2, 5, dtype=torch.bool)),
    in_channels=4,
    hidden_size=24,
    num_attention_heads=3,
    num_kv_heads=1,
    num_refiner_layers=1,
    multiple_of=16,
    axes_dim_rope=(4, 2, 2),
    axes_lens=(64, 16, 16),
    cap_feat_dim=32,
)
for _name, _linear in {"unet": False, "unet linear": True}.items():
    _add(
        _name,
        "UNet2DConditionModel",
        lambda: {
            key: value for key, value in _latent_inputs(1, sample=normal(2, 4, 4, 6)).items() if key != "hidden_states"
        },
        num_attention_heads=None,
        attention_head_dim=2,  # how many heads, in spite of its name
        use_linear_projection=_linear,
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        mid_block_type=None,
        cross_attention_dim=32,
        norm_num_groups=4,
    )
