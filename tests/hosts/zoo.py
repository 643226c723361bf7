"""A table of tiny real models of timm, transformers, diffusers and torch, randomly initialised, for what attends in them.

The libraries are imported when an entry is built, so that the table is there without them; an entry whose class or
setting the installed version lacks raises ImportError or AttributeError then.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH = 8
ROWS, COLUMNS = 2, 3
LENGTH = 12
WORDS = 50
IMAGE_WORD = 5


@dataclass(frozen=True)
class Entry:
    """A tiny model, what it is called with, and which tensor of what it returns is compared.

    Args:
        name: of the entry, unique in the table.
        library: that has the class of the model: "timm", "transformers", "diffusers" or "torch".
        build: makes the model in eval mode, always with the same weights; its keyword arguments go to the model's class,
            or to `_from_config` in transformers, such as attn_implementation="eager".
        keywords: example keyword arguments of the model's forward, always the same ones.
        tensor: takes logits or the last hidden state out of what forward returns.
    """

    name: str
    library: str
    build: Callable[..., nn.Module]
    keywords: Callable[[], dict[str, Any]]
    tensor: Callable[[Any], Tensor]

    def run(self, model: nn.Module) -> Tensor:
        """The tensor of this entry for a model that `build` made and for the example keyword arguments."""
        return self.tensor(model(**self.keywords()))


ZOO: dict[str, Entry] = {}


def names(library: str) -> list[str]:
    """Of the entries of one library, in the order of the table."""
    return [name for name, entry in ZOO.items() if entry.library == library]


@torch.no_grad()
def shaken(model: nn.Module, gain: float = 1.5) -> nn.Module:
    """The model in eval mode, with weights so large that attention is far from uniform and every part of it matters.

    Scalars and the frequencies of a RoPE are left as they are.
    """
    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if "rope" in name or parameter.ndim == 0:
            continue
        if "gamma" in name or "layer_scale" in name or last in ("lambda_1", "lambda_2", "temperature"):
            parameter.normal_(1, 0.2)
        elif parameter.ndim == 1 and "weight" in name:
            owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
            usual = 0.0 if "Gemma" in owner else 1.0  # Gemma's norms add one to their weight
            parameter.normal_(usual + (0.5 if any(part in name for part in _NORMS) else 0.0), 0.2)
        elif parameter.ndim == 1:
            parameter.normal_(0, 0.3)
        elif "pos" in name or "token" in last or "embed" in last or last in ("latent", "probe"):
            parameter.normal_(0, 0.5)
        elif "expert" in name and parameter.ndim == 3:
            parameter.normal_(0, parameter.shape[-1] ** -0.5)
        else:
            inputs = parameter.shape[0] if ".c_" in name else parameter[0].numel()
            parameter.normal_(0, (gain if any(part in name for part in _QUERIES_AND_KEYS) else 1.0) / inputs**0.5)
    return model.eval()


_QUERIES_AND_KEYS = (
    *("qkv", "q_proj", "k_proj", "query", "key", "to_q", "to_k", "c_attn", "in_proj", "inputs"),
    *(".q.", ".k.", ".qk.", ".kv."),
)
_NORMS = ("q_norm", "k_norm", "norm_q", "norm_k", "q_layernorm", "k_layernorm", "norm_added_q", "norm_added_k")


def _drawn(make: Callable[[], nn.Module], gain: float = 1.5) -> nn.Module:
    """A model whose weights do not depend on how many random numbers its class draws to initialise itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        torch.manual_seed(1)
        return shaken(model, gain)


def _normal(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def _images(rows: int = ROWS, columns: int = COLUMNS, patch: int = PATCH) -> Tensor:
    return _normal(2, 3, patch * rows, patch * columns)


def _words() -> Tensor:
    return torch.randint(6, WORDS, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def _first(output: Any) -> Tensor:
    """Logits where there are some, else the last hidden state, the sample, or the tensor that the output is."""
    for name in ("logits", "last_hidden_state", "sample"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return output if isinstance(output, Tensor) else output[0]


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


# timm

_VIT = {
    "img_size": (PATCH * ROWS, PATCH * COLUMNS),
    "patch_size": PATCH,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
}


def _timm(name: str, path: str, *, rows: int = ROWS, columns: int = COLUMNS, patch: int = PATCH, **settings) -> None:
    """Adds a class of timm.models; settings come on top of _VIT, and those that are None are left out.

    A setting that is a string starting with "timm." stands for what has that dotted name.
    """

    def build(**overrides) -> nn.Module:
        wanted = {key: value for key, value in (_VIT | settings | overrides).items() if value is not None}
        for key, value in wanted.items():
            if isinstance(value, str) and value.startswith("timm."):
                wanted[key] = _imported(value)
        kind = _imported(f"timm.models.{path}")
        known = inspect.signature(kind).parameters
        unknown = set(wanted) - set(known)
        if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            raise AttributeError(f"{path} of this timm has no settings {sorted(unknown)}")
        return _drawn(lambda: kind(**wanted))

    ZOO[name] = Entry(name, "timm", build, lambda: {"x": _images(rows, columns, patch)}, _first)


_timm("timm vit", "vision_transformer.VisionTransformer", dynamic_img_size=True)
_timm("timm deit3", "vision_transformer.VisionTransformer", no_embed_class=True, init_values=1.0)
_timm(
    "timm dinov2",
    "vision_transformer.VisionTransformer",
    reg_tokens=3,
    no_embed_class=True,
    init_values=1.0,
    dynamic_img_size=True,
)
_timm("timm siglip", "vision_transformer.VisionTransformer", class_token=False, global_pool="map")
_timm("timm qk-norm", "vision_transformer.VisionTransformer", qk_norm=True, global_pool="avg")
_timm(
    "timm parallel",
    "vision_transformer.VisionTransformer",
    block_fn="timm.models.vision_transformer.ParallelScalingBlock",
)
_timm(
    "timm parallel qk-norm",
    "vision_transformer.VisionTransformer",
    block_fn="timm.models.vision_transformer.ParallelScalingBlock",
    qk_norm=True,
)
_timm("timm diff", "vision_transformer.VisionTransformer", attn_layer="timm.layers.DiffAttention")
_timm("timm distilled", "deit.VisionTransformerDistilled")
_timm("timm eva", "eva.Eva")
_timm("timm eva cat", "eva.Eva", use_rot_pos_emb=True, dynamic_img_size=True)
_timm("timm eva mixed", "eva.Eva", use_rot_pos_emb=True, rope_type="mixed", rope_grid_indexing="xy")
_timm("timm eva dinov3", "eva.Eva", use_rot_pos_emb=True, rope_type="dinov3", rope_rotate_half=True, num_reg_tokens=2)
_timm("timm eva split", "eva.Eva", use_rot_pos_emb=True, qkv_fused=False)
_timm("timm eva qk-norm", "eva.Eva", use_rot_pos_emb=True, qk_norm=True)
_timm("timm eva grouped", "eva.Eva", use_rot_pos_emb=True, attn_type="rope", qkv_fused=False, num_kv_heads=1)
_timm(
    "timm perception encoder",
    "eva.Eva",
    global_pool="map",
    attn_type="rope",
    use_pre_transformer_norm=True,
    use_rot_pos_emb=True,
    ref_feat_shape=(4, 4),
    rope_grid_offset=1.0,
    rope_grid_indexing="xy",
    attn_pool_num_heads=2,
    attn_pool_mlp_ratio=4.0,
)
_NAFLEX = {"img_size": None, "pos_embed_grid_size": (4, 4), "attn_pool_num_heads": None, "global_pool": "avg"}
_timm("timm naflex", "naflexvit.NaFlexVit", **_NAFLEX)
_timm("timm naflex map", "naflexvit.NaFlexVit", **_NAFLEX | {"global_pool": "map", "reg_tokens": 1})
_timm("timm naflex rope", "naflexvit.NaFlexVit", **_NAFLEX, pos_embed="none", rope_type="axial", class_token=True)
_timm("timm naflex mixed", "naflexvit.NaFlexVit", **_NAFLEX, rope_type="mixed", reg_tokens=1)
_timm("timm beit", "beit.Beit", use_rel_pos_bias=True, use_abs_pos_emb=False, init_values=1.0)
_timm("timm cait", "cait.Cait", init_values=1.0)
_timm("timm xcit", "xcit.Xcit", img_size=(32, 48), patch_size=16, patch=16)
_timm(
    "timm swin",
    "swin_transformer.SwinTransformer",
    patch_size=4,
    embed_dim=32,
    depth=None,
    depths=(2,),
    num_heads=(2,),
    window_size=2,
)
_timm(
    "timm hiera",
    "hiera.Hiera",
    patch_size=None,
    depth=None,
    stages=(1, 1),
    q_pool=1,
    mask_unit_size=(2, 2),
    mask_unit_attn=(True, False),
)
_timm("timm convit", "convit.ConVit", rows=3, img_size=PATCH * 3, local_up_to_layer=1)
_timm(
    "timm volo",
    "volo.VOLO",
    rows=4,
    columns=6,
    img_size=(32, 48),
    embed_dim=None,
    depth=None,
    layers=[1, 1],
    embed_dims=[32, 32],
    num_heads=[2, 2],
    downsamples=(True, False),
    outlook_attention=(True, False),
    stem_hidden_dim=8,
)
_timm(
    "timm tnt",
    "tnt.TNT",
    patch=16,
    img_size=(32, 48),
    patch_size=16,
    num_heads=None,
    num_heads_inner=2,
    num_heads_outer=2,
    inner_dim=16,
)
_timm(
    "timm sam",
    "vision_transformer_sam.VisionTransformerSAM",
    use_rel_pos=True,
    window_size=2,
    global_attn_indexes=(1,),
    neck_chans=16,
)
_timm(
    "timm sam rope",
    "vision_transformer_sam.VisionTransformerSAM",
    use_rope=True,
    window_size=2,
    global_attn_indexes=(1,),
    neck_chans=16,
    ref_feat_shape=((4, 4), (2, 2)),
)
_timm("timm relpos mlp", "vision_transformer_relpos.VisionTransformerRelPos", init_values=1.0)
_timm(
    "timm relpos bias",
    "vision_transformer_relpos.VisionTransformerRelPos",
    init_values=1.0,
    rel_pos_type="bias",
    class_token=True,
    qk_norm=True,
)


def _mvit(**overrides) -> nn.Module:
    mvitv2 = importlib.import_module("timm.models.mvitv2")
    shape = {"depths": (1, 1), "embed_dim": 32, "num_heads": 2, "stride_q": ((1, 1), (2, 2))}
    cfg = mvitv2.MultiScaleVitCfg(**shape)
    return _drawn(lambda: mvitv2.MultiScaleVit(cfg, img_size=(32, 32), num_classes=5, **overrides))


def _resnet(**overrides) -> nn.Module:
    return _drawn(lambda: _imported("timm.create_model")("test_resnet", **{"num_classes": 5} | overrides))


def _naflex_patches() -> dict[str, Any]:
    """Images of 2 × 3 and of 2 × 2 patches, the second filled up with two patches that are not valid."""
    rows, columns = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    wide = torch.stack([rows, columns], -1).flatten(0, 1)
    rows, columns = torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")
    narrow = functional.pad(torch.stack([rows, columns], -1).flatten(0, 1), (0, 0, 0, 2))
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    return {
        "x": _normal(2, 6, PATCH * PATCH * 3),
        "patch_coord": torch.stack([wide, narrow]),
        "patch_valid": valid,
    }


ZOO["timm mvitv2"] = Entry("timm mvitv2", "timm", _mvit, lambda: {"x": _images(4, 4)}, _first)
for _name in ("timm naflex", "timm naflex rope"):
    _of_patches = f"{_name} patches"
    ZOO[_of_patches] = Entry(_of_patches, "timm", ZOO[_name].build, _naflex_patches, _first)
ZOO["timm resnet"] = Entry("timm resnet", "timm", _resnet, lambda: {"x": _images(4, 6)}, _first)

# transformers

_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 4 * PATCH,
    "patch_size": PATCH,
}
_BERT = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_TEXT = _BERT | {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_WIDE = {key: value for key, value in _TEXT.items() if key != "head_dim"} | {"hidden_size": 64}


def _hf(
    name: str,
    kind: str,
    config: str,
    shape: dict[str, Any],
    keywords: Callable[[], dict[str, Any]],
    tensor: Callable[[Any], Tensor] = _first,
    *,
    gain: float = 1.5,
    **settings,
) -> None:
    """Adds a class of transformers, which may be a dotted name below transformers.models; settings come on top of shape."""

    def build(**overrides) -> nn.Module:
        hf = importlib.import_module("transformers")
        of_kind = _imported(f"transformers.models.{kind}") if "." in kind else getattr(hf, kind)
        of_config = _imported(f"transformers.models.{config}") if "." in config else getattr(hf, config)
        wanted = {key: _config(hf, value) for key, value in (shape | settings).items()}
        return _drawn(lambda: of_kind._from_config(of_config(**wanted), **overrides), gain)

    ZOO[name] = Entry(name, "transformers", build, keywords, tensor)


def _config(hf: Any, value: Any) -> Any:
    """A pair (name of a configuration class, its settings) stands for that configuration."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
        return getattr(hf, value[0])(**value[1])
    return value


def _seen(**more) -> dict[str, Any]:
    return {"pixel_values": _images(), **more}


def _read(**more) -> dict[str, Any]:
    return {"input_ids": _words(), **more}


_resized = partial(_seen, interpolate_pos_encoding=True)
_FITTED = {"image_size": [PATCH * ROWS, PATCH * COLUMNS]}


def _both_towers() -> dict[str, Any]:
    words = _words()
    words[:, -1] = WORDS - 1
    return _resized(input_ids=words, attention_mask=torch.ones_like(words))


def _siglip2_inputs() -> dict[str, Any]:
    """Images of 2 × 3 and of 2 × 2 patches, the second filled up with two patches that are masked."""
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    return {
        "pixel_values": _normal(2, 6, PATCH * PATCH * 3),
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([[2, 3], [2, 2]]),
    }


def _video(rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    return _normal(2, 4, 3, PATCH * rows, PATCH * columns)


def _qwen_vl_inputs() -> dict[str, Any]:
    """An image of 4 × 6 patches and a video of 2 × 4 × 4 patches."""
    grid = torch.tensor([[1, 4, 6], [2, 4, 4]])
    return {"hidden_states": _normal(56, 3 * 2 * PATCH * PATCH), "grid_thw": grid}


def _merged(output: Any) -> Tensor:
    """The patches after the merger, which some versions return by themselves."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _llava_inputs() -> dict[str, Any]:
    words = _words()
    words[:, 2:6] = IMAGE_WORD
    return {"input_ids": words, "pixel_values": _images(2, 2), "attention_mask": torch.ones_like(words)}


_hf("clip vision", "CLIPVisionModel", "CLIPVisionConfig", _VISION, _resized)
_hf(
    "clip",
    "CLIPModel",
    "CLIPConfig",
    {
        "vision_config": _VISION,
        "text_config": _BERT | {"bos_token_id": 1, "eos_token_id": WORDS - 1},
        "projection_dim": 16,
    },
    _both_towers,
    lambda output: torch.cat([output.image_embeds, output.text_embeds], dim=-1),
)
_hf("siglip vision", "SiglipVisionModel", "SiglipVisionConfig", _VISION, _resized)
_hf(
    "siglip2 vision",
    "Siglip2VisionModel",
    "Siglip2VisionConfig",
    {key: value for key, value in _VISION.items() if key != "image_size"},
    _siglip2_inputs,
    num_patches=16,
)
_hf("vit", "ViTModel", "ViTConfig", _VISION, _resized)
_hf("vit classifier", "ViTForImageClassification", "ViTConfig", _VISION | _FITTED, _seen, num_labels=3)
_hf("dinov2", "Dinov2Model", "Dinov2Config", _VISION, _seen)
_hf(
    "dinov2 with registers",
    "Dinov2WithRegistersModel",
    "Dinov2WithRegistersConfig",
    _VISION,
    _seen,
    num_register_tokens=2,
)
_hf("dinov3", "DINOv3ViTModel", "DINOv3ViTConfig", _VISION, _seen, num_register_tokens=3, drop_path_rate=0.0)
_hf("deit", "DeiTModel", "DeiTConfig", _VISION, _resized)
_hf(
    "beit",
    "BeitModel",
    "BeitConfig",
    _VISION | _FITTED,
    _seen,
    use_relative_position_bias=True,
    use_mask_token=False,
    drop_path_rate=0.0,
    layer_scale_init_value=1.0,
)
_hf(
    "vit mae",
    "ViTMAEModel",
    "ViTMAEConfig",
    _VISION,
    lambda: _resized(noise=torch.arange(6.0).expand(2, 6).clone()),
    mask_ratio=0.0,
)
_hf(
    "videomae",
    "VideoMAEModel",
    "VideoMAEConfig",
    _VISION | _FITTED,
    lambda: {"pixel_values": _video()},
    num_frames=4,
    tubelet_size=2,
)
_hf(
    "vivit",
    "VivitModel",
    "VivitConfig",
    {key: value for key, value in _VISION.items() if key != "patch_size"},
    lambda: {"pixel_values": _video(3, 3)},
    image_size=3 * PATCH,
    num_frames=4,
    tubelet_size=[2, PATCH, PATCH],
)
_hf(
    "vjepa2",
    "VJEPA2Model",
    "VJEPA2Config",
    {key: _VISION[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")},
    lambda: {"pixel_values_videos": _video(3, 3), "skip_predictor": True},
    crop_size=3 * PATCH,
    frames_per_clip=4,
    tubelet_size=2,
    mlp_ratio=2.0,
    pred_hidden_size=32,
    pred_num_attention_heads=2,
    pred_num_hidden_layers=1,
    pred_num_mask_tokens=1,
)
_hf("yolos", "YolosModel", "YolosConfig", _VISION | _FITTED, _seen, num_detection_tokens=3)
_hf(
    "sam vision",
    "SamVisionModel",
    "SamVisionConfig",
    _VISION | {"image_size": 3 * PATCH},
    lambda: {"pixel_values": _images(3, 3)},
    window_size=2,
    global_attn_indexes=[1],
    mlp_dim=64,
    output_channels=16,
    num_pos_feats=16,
)
_hf(
    "pixtral vision",
    "PixtralVisionModel",
    "PixtralVisionConfig",
    _VISION,
    lambda: _seen(image_sizes=torch.tensor([[16, 24], [16, 16]])),
)
for _number in (2, 3):
    _module = f"idefics{_number}.modeling_idefics{_number}.Idefics{_number}VisionTransformer"
    _configuration = f"idefics{_number}.configuration_idefics{_number}.Idefics{_number}VisionConfig"
    _hf(f"idefics{_number} vision", _module, _configuration, _VISION, _seen)
_hf(
    "qwen2.5-vl vision",
    "qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel",
    "qwen2_5_vl.configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig",
    {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": PATCH},
    _qwen_vl_inputs,
    _merged,
    out_hidden_size=32,
    window_size=4 * PATCH,
    fullatt_block_indexes=[1],
)
_hf(
    "qwen2-vl vision",
    "qwen2_vl.modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel",
    "qwen2_vl.configuration_qwen2_vl.Qwen2VLVisionConfig",
    {"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2, "patch_size": PATCH},
    _qwen_vl_inputs,
    _merged,
)
_hf(
    "llava",
    "LlavaForConditionalGeneration",
    "LlavaConfig",
    {
        "vision_config": ("CLIPVisionConfig", _VISION | {"image_size": 2 * PATCH}),
        "text_config": ("LlamaConfig", _TEXT),
        "image_token_index": IMAGE_WORD,
        "vision_feature_layer": -1,
        "image_seq_length": 4,
    },
    _llava_inputs,
)
_hf("llama", "LlamaForCausalLM", "LlamaConfig", _TEXT, _read)
_hf("mistral", "MistralForCausalLM", "MistralConfig", _TEXT, _read, sliding_window=6)
_hf("qwen2", "Qwen2ForCausalLM", "Qwen2Config", _WIDE, _read)
_hf("qwen3", "Qwen3ForCausalLM", "Qwen3Config", _TEXT, _read)
_hf("gemma", "GemmaForCausalLM", "GemmaConfig", _TEXT, _read)
_hf("gemma2", "Gemma2ForCausalLM", "Gemma2Config", _TEXT, _read, sliding_window=6, query_pre_attn_scalar=16)
_hf(
    "gemma3 text",
    "Gemma3ForCausalLM",
    "Gemma3TextConfig",
    _TEXT,
    _read,
    sliding_window=6,
    query_pre_attn_scalar=16,
    layer_types=["sliding_attention", "full_attention"],
)
_hf("phi", "PhiForCausalLM", "PhiConfig", _WIDE, _read, partial_rotary_factor=0.5, qk_layernorm=True)
_hf("phi3", "Phi3ForCausalLM", "Phi3Config", _WIDE, _read)
_hf("phi3 partial", "Phi3ForCausalLM", "Phi3Config", _WIDE, _read, partial_rotary_factor=0.5)
_hf("gpt-neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", _BERT, _read, rotary_pct=0.5, bos_token_id=1, eos_token_id=2)
_hf("olmo2", "Olmo2ForCausalLM", "Olmo2Config", _WIDE, _read)
_hf("smollm3", "SmolLM3ForCausalLM", "SmolLM3Config", _WIDE, _read, no_rope_layers=[1, 0])
_hf("mixtral", "MixtralForCausalLM", "MixtralConfig", _TEXT, _read, num_local_experts=4, sliding_window=6)
_hf(
    "gpt2",
    "GPT2LMHeadModel",
    "GPT2Config",
    {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    _read,
    bos_token_id=1,
    eos_token_id=2,
)
_hf("bert", "BertModel", "BertConfig", _BERT, _read)
_hf("roberta", "RobertaModel", "RobertaConfig", _BERT, _read, pad_token_id=1, bos_token_id=0, eos_token_id=2)
_hf(
    "modernbert",
    "ModernBertModel",
    "ModernBertConfig",
    _BERT,
    _read,
    global_attn_every_n_layers=2,
    local_attention=8,
    bos_token_id=1,
    eos_token_id=2,
    cls_token_id=1,
    sep_token_id=2,
)
_hf(
    "whisper encoder",
    "whisper.modeling_whisper.WhisperEncoder",
    "WhisperConfig",
    {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "vocab_size": WORDS},
    lambda: {"input_features": _normal(2, 8, 2 * LENGTH)},
    num_mel_bins=8,
    max_source_positions=LENGTH,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
)
_hf(
    "t5 encoder",
    "T5EncoderModel",
    "T5Config",
    {"vocab_size": WORDS, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    _read,
    gain=0.75,
)
_hf(
    "falcon",
    "FalconForCausalLM",
    "FalconConfig",
    {key: value for key, value in _BERT.items() if key not in ("intermediate_size", "max_position_embeddings")},
    _read,
    bos_token_id=1,
    eos_token_id=2,
)
_hf(
    "falcon grouped",
    "FalconForCausalLM",
    "FalconConfig",
    {key: value for key, value in _BERT.items() if key not in ("intermediate_size", "max_position_embeddings")},
    _read,
    hidden_size=64,
    num_attention_heads=4,
    num_kv_heads=2,
    new_decoder_architecture=True,
    bos_token_id=1,
    eos_token_id=2,
)
_hf(
    "bloom",
    "BloomForCausalLM",
    "BloomConfig",
    {"vocab_size": WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 2},
    _read,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
_hf(
    "opt",
    "OPTForCausalLM",
    "OPTConfig",
    {key: value for key, value in _BERT.items() if key != "intermediate_size"},
    _read,
    ffn_dim=64,
    word_embed_proj_dim=32,
    bos_token_id=1,
    eos_token_id=2,
)

# diffusers

_DIFFUSION = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}


def _diffusers(name: str, kind: str, keywords: Callable[[], dict[str, Any]], **settings) -> None:
    """Adds a class of diffusers; settings come on top of _DIFFUSION."""

    def build(**overrides) -> nn.Module:
        of_kind = getattr(importlib.import_module("diffusers"), kind)
        known = inspect.signature(of_kind.__init__).parameters
        return _drawn(lambda: of_kind(**({k: v for k, v in _DIFFUSION.items() if k in known} | settings | overrides)))

    ZOO[name] = Entry(name, "diffusers", build, keywords, _first)


def _noisy(*size: int, text: bool = True, **more) -> dict[str, Any]:
    """Latents of the given size, with five tokens of text where wanted."""
    texts = {"encoder_hidden_states": _normal(2, 5, 32, seed=2)} if text else {}
    return {"hidden_states": _normal(*size), "timestep": torch.tensor([3, 700])} | texts | more


def _flux_inputs() -> dict[str, Any]:
    rows, columns = torch.meshgrid(torch.arange(2.0), torch.arange(3.0), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
    timestep = torch.tensor([0.1, 0.7])
    places_of_text = torch.zeros(5, 3)
    pooled = _normal(2, 32, seed=3)
    return _noisy(2, 6, 16, pooled_projections=pooled, img_ids=places, txt_ids=places_of_text, timestep=timestep)


_diffusers(
    "dit",
    "DiTTransformer2DModel",
    lambda: _noisy(2, 4, 8, 8, text=False, class_labels=torch.tensor([1, 3])),
    sample_size=8,
    num_embeds_ada_norm=1000,
    norm_num_groups=4,
)
_diffusers(
    "pixart",
    "PixArtTransformer2DModel",
    lambda: _noisy(2, 4, 4, 6),
    sample_size=8,
    caption_channels=32,
    cross_attention_dim=32,
    norm_num_groups=4,
)
_diffusers(
    "sana",
    "SanaTransformer2DModel",
    lambda: _noisy(2, 4, 2, 3),
    in_channels=4,
    out_channels=4,
    sample_size=8,
    caption_channels=32,
    num_cross_attention_heads=2,
    cross_attention_head_dim=16,
    cross_attention_dim=32,
)
_diffusers(
    "latte",
    "LatteTransformer3DModel",
    lambda: _noisy(2, 4, 2, 8, 8),
    in_channels=4,
    sample_size=8,
    patch_size=2,
    caption_channels=32,
    cross_attention_dim=32,
    video_length=2,
    norm_type="ada_norm_single",
    norm_elementwise_affine=False,
)
_diffusers(
    "cogvideox",
    "CogVideoXTransformer3DModel",
    lambda: _noisy(2, 2, 4, 4, 6),
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
    _diffusers(
        _name,
        "SD3Transformer2DModel",
        lambda: _noisy(2, 4, 4, 6, pooled_projections=_normal(2, 32, seed=3)),
        sample_size=8,
        in_channels=4,
        out_channels=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        **_more,
    )
_diffusers(
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
_diffusers(
    "wan",
    "WanTransformer3DModel",
    lambda: _noisy(2, 4, 2, 4, 6),
    in_channels=4,
    out_channels=4,
    attention_head_dim=24,
    text_dim=32,
    freq_dim=32,
    ffn_dim=64,
    rope_max_seq_len=32,
)
_diffusers(
    "ltx",
    "LTXVideoTransformer3DModel",
    lambda: _noisy(2, 12, 4, encoder_attention_mask=torch.ones(2, 5), num_frames=2, height=2, width=3),
    in_channels=4,
    out_channels=4,
    cross_attention_dim=32,
    caption_channels=32,
)
_diffusers(
    "lumina2",
    "Lumina2Transformer2DModel",
    lambda: _noisy(2, 4, 4, 6, encoder_attention_mask=torch.ones(2, 5, dtype=torch.bool)),
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
    _diffusers(
        _name,
        "UNet2DConditionModel",
        lambda: {key: value for key, value in _noisy(1, sample=_normal(2, 4, 4, 6)).items() if key != "hidden_states"},
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

# torch


class OwnAttention(nn.Module):
    """Attention as one writes it oneself: fused queries, keys and values, [q|k|v], and torch's attention function."""

    def __init__(self, width: int = 32, heads: int = 2):
        super().__init__()
        self.heads, self.inputs, self.outputs = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inputs(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.outputs(x.transpose(1, 2).flatten(2))


class OwnModel(nn.Module):
    """Two layers of OwnAttention, each after a norm and beside a shortcut, on tokens with a learned embedding of places."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(LENGTH, 32))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.layers = nn.ModuleList(OwnAttention() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return x


def _encoder(**overrides) -> nn.Module:
    layer = {"d_model": 32, "nhead": 2, "dim_feedforward": 64, "batch_first": True} | overrides
    return _drawn(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(**layer), num_layers=2))


ZOO["torch encoder"] = Entry("torch encoder", "torch", _encoder, lambda: {"src": _normal(2, LENGTH, 32)}, _first)
ZOO["torch own"] = Entry("torch own", "torch", lambda: _drawn(OwnModel), lambda: {"x": _normal(2, LENGTH, 32)}, _first)
