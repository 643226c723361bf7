"""Tiny models of timm."""

import importlib
import inspect
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tests.hosts.zoo.entry import (
    COLUMNS,
    PATCH_SIZE,
    ROWS,
    ZOO,
    Entry,
    images,
    import_path,
    main_output,
    normal,
    seeded,
)

_VIT = {
    "img_size": (PATCH_SIZE * ROWS, PATCH_SIZE * COLUMNS),
    "patch_size": PATCH_SIZE,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
}


def _add(
    name: str, path: str, *, rows: int = ROWS, columns: int = COLUMNS, patch: int = PATCH_SIZE, **settings
) -> None:
    """Adds a class of timm.models. Settings override _VIT; those that are None are left out.

    A setting that is a string starting with "timm." is replaced by the object with that dotted name.
    """

    def build(**overrides) -> nn.Module:
        wanted = {key: value for key, value in (_VIT | settings | overrides).items() if value is not None}
        for key, value in wanted.items():
            if isinstance(value, str) and value.startswith("timm."):
                wanted[key] = import_path(value)
        kind = import_path(f"timm.models.{path}")
        known = inspect.signature(kind).parameters
        unknown = set(wanted) - set(known)
        if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            raise AttributeError(f"{path} of this timm has no settings {sorted(unknown)}")
        return seeded(lambda: kind(**wanted))

    ZOO[name] = Entry(name, "timm", build, lambda: {"x": images(rows, columns, patch)}, main_output)


_add("timm vit", "vision_transformer.VisionTransformer", dynamic_img_size=True)
_add("timm deit3", "vision_transformer.VisionTransformer", no_embed_class=True, init_values=1.0)
_add(
    "timm dinov2",
    "vision_transformer.VisionTransformer",
    reg_tokens=3,
    no_embed_class=True,
    init_values=1.0,
    dynamic_img_size=True,
)
_add("timm siglip", "vision_transformer.VisionTransformer", class_token=False, global_pool="map")
_add("timm qk-norm", "vision_transformer.VisionTransformer", qk_norm=True, global_pool="avg")
_add(
    "timm parallel",
    "vision_transformer.VisionTransformer",
    block_fn="timm.models.vision_transformer.ParallelScalingBlock",
)
_add(
    "timm parallel qk-norm",
    "vision_transformer.VisionTransformer",
    block_fn="timm.models.vision_transformer.ParallelScalingBlock",
    qk_norm=True,
)
_add("timm diff", "vision_transformer.VisionTransformer", attn_layer="timm.layers.DiffAttention")
_add("timm distilled", "deit.VisionTransformerDistilled")
_add("timm eva", "eva.Eva")
_add("timm eva cat", "eva.Eva", use_rot_pos_emb=True, dynamic_img_size=True)
_add("timm eva mixed", "eva.Eva", use_rot_pos_emb=True, rope_type="mixed", rope_grid_indexing="xy")
_add("timm eva dinov3", "eva.Eva", use_rot_pos_emb=True, rope_type="dinov3", rope_rotate_half=True, num_reg_tokens=2)
_add("timm eva split", "eva.Eva", use_rot_pos_emb=True, qkv_fused=False)
_add("timm eva qk-norm", "eva.Eva", use_rot_pos_emb=True, qk_norm=True)
_add("timm eva grouped", "eva.Eva", use_rot_pos_emb=True, attn_type="rope", qkv_fused=False, num_kv_heads=1)
_add(
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
_add("timm naflex", "naflexvit.NaFlexVit", **_NAFLEX)
_add("timm naflex map", "naflexvit.NaFlexVit", **_NAFLEX | {"global_pool": "map", "reg_tokens": 1})
_add("timm naflex rope", "naflexvit.NaFlexVit", **_NAFLEX, pos_embed="none", rope_type="axial", class_token=True)
_add("timm naflex mixed", "naflexvit.NaFlexVit", **_NAFLEX, rope_type="mixed", reg_tokens=1)
_add("timm beit", "beit.Beit", use_rel_pos_bias=True, use_abs_pos_emb=False, init_values=1.0)
_add("timm cait", "cait.Cait", init_values=1.0)
_add("timm xcit", "xcit.Xcit", img_size=(32, 48), patch_size=16, patch=16)
_add(
    "timm swin",
    "swin_transformer.SwinTransformer",
    patch_size=4,
    embed_dim=32,
    depth=None,
    depths=(2,),
    num_heads=(2,),
    window_size=2,
)
_add(
    "timm hiera",
    "hiera.Hiera",
    patch_size=None,
    depth=None,
    stages=(1, 1),
    q_pool=1,
    mask_unit_size=(2, 2),
    mask_unit_attn=(True, False),
)
_add("timm convit", "convit.ConVit", rows=3, img_size=PATCH_SIZE * 3, local_up_to_layer=1)
_add(
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
_add(
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
_add(
    "timm sam",
    "vision_transformer_sam.VisionTransformerSAM",
    use_rel_pos=True,
    window_size=2,
    global_attn_indexes=(1,),
    neck_chans=16,
)
_add(
    "timm sam rope",
    "vision_transformer_sam.VisionTransformerSAM",
    use_rope=True,
    window_size=2,
    global_attn_indexes=(1,),
    neck_chans=16,
    ref_feat_shape=((4, 4), (2, 2)),
)
_add("timm relpos mlp", "vision_transformer_relpos.VisionTransformerRelPos", init_values=1.0)
_add(
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
    return seeded(lambda: mvitv2.MultiScaleVit(cfg, img_size=(32, 32), num_classes=5, **overrides))


def _resnet(**overrides) -> nn.Module:
    return seeded(lambda: import_path("timm.create_model")("test_resnet", **{"num_classes": 5} | overrides))


def _naflex_patches() -> dict[str, Any]:
    """Images of 2 × 3 and of 2 × 2 patches, the second padded with two patches that are not valid."""
    rows, columns = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    wide = torch.stack([rows, columns], -1).flatten(0, 1)
    rows, columns = torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")
    narrow = functional.pad(torch.stack([rows, columns], -1).flatten(0, 1), (0, 0, 0, 2))
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    return {
        "x": normal(2, 6, PATCH_SIZE * PATCH_SIZE * 3),
        "patch_coord": torch.stack([wide, narrow]),
        "patch_valid": valid,
    }


ZOO["timm mvitv2"] = Entry("timm mvitv2", "timm", _mvit, lambda: {"x": images(4, 4)}, main_output)
for _name in ("timm naflex", "timm naflex rope"):
    _patches_name = f"{_name} patches"
    ZOO[_patches_name] = Entry(_patches_name, "timm", ZOO[_name].build, _naflex_patches, main_output)
ZOO["timm resnet"] = Entry("timm resnet", "timm", _resnet, lambda: {"x": images(4, 6)}, main_output)
