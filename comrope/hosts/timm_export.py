"""`export_timm`: an attached timm model as a stock timm `Eva` with rope_type="mixed", which needs no comrope."""

import copy
from typing import Any

import timm
import torch
from timm.layers import GELU, LayerNorm, Mlp, PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from comrope.encodings.fixed import FixedEncoding
from comrope.errors import ConfigurationError
from comrope.hosts._attachment import Attachment
from comrope.hosts._attention_layer import find_attention_layers
from comrope.hosts._coordinate_grid import CoordinateGrid
from comrope.hosts.fold import fold, scale_queries

ARCHITECTURES = {1e-6: "vit_small_patch16_rope_mixed_224", 1e-5: "vit_small_patch16_dinov3"}
"""Architectures of timm that are an Eva whose norms have this epsilon. Everything else is set by arguments."""

ROPE = {
    "use_rot_pos_emb": True,
    "rope_type": "mixed",
    "rope_grid_indexing": "xy",
    "rope_grid_offset": 0.0,
    "rope_rotate_half": False,
}


def to_eva(model: nn.Module) -> Eva:
    """Implements `comrope.export_timm`."""
    attachment = Attachment.of(model)
    if not hasattr(timm.models, "get_model_args"):
        raise ConfigurationError(f"timm {timm.__version__} has no Eva that can hold this: timm 1.0.31 does, update it.")
    clone: Any = fold(copy.deepcopy(model))
    if type(clone) is Eva and "_comrope" not in vars(clone):
        _copy_exact_frequencies(clone, attachment)  # `fold` has written them into its own RoPE
        return clone
    for layer in Attachment.of(clone).backbones[0].layers:
        scale_queries(layer, layer.attention.encoding.gain)  # pyright: ignore
    if type(clone) is VisionTransformer:
        name, settings, state = _from_vision_transformer(clone)
    elif type(clone) is Eva:
        name, settings, state = _from_eva(clone)
    else:
        raise ConfigurationError(f"{type(model).__name__}: export_timm takes timm's VisionTransformer and Eva.")
    state["rope.freqs"] = _index_frequencies(clone)
    size = {"img_size": clone.patch_embed.img_size, "dynamic_img_size": clone.dynamic_img_size}
    pool = {"num_classes": clone.num_classes, "global_pool": clone.global_pool}
    exported: Any = timm.create_model(name, **settings | ROPE | size | pool)
    weight = clone.patch_embed.proj.weight
    exported.to(weight.device, weight.dtype)
    exported.rope.to(dtype=_frequency_dtype(weight.dtype))
    _load_state(exported, state)
    return exported.train(model.training)


def _frequency_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of frequencies for weights of a dtype. timm computes its table in the dtype of the frequencies."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.no_grad()
def _copy_exact_frequencies(exported: Any, attachment: Attachment) -> None:
    """Copies the attached model's frequencies into the RoPE of its folded copy, where they are rounded to the weights'
    dtype.
    """
    rope = exported.rope.to(dtype=_frequency_dtype(exported.patch_embed.proj.weight.dtype))
    for attached in attachment.backbones:
        backbone: Any = attached.backbone.module
        depths = {layer.attention: i for i, layer in enumerate(find_attention_layers(backbone.blocks))}
        for layer in attached.layers:
            attention: Any = layer.attention
            frequencies = attention.encoding.spectrum()[1].flatten(2)  # (2, H, D/2)
            rope.freqs[:, depths[attention]] = frequencies.flip(0) if rope.grid_indexing == "xy" else frequencies


def _load_state(exported: Eva, state: dict[str, Tensor]) -> None:
    own = exported.state_dict()
    for key in own.keys() - state.keys():
        # An Eva may have a bias or a layer scale that the model does not have.
        if key.endswith("bias"):
            state[key] = torch.zeros_like(own[key])
        elif key.endswith(("gamma_1", "gamma_2")):
            state[key] = torch.ones_like(own[key])
    if own.keys() != state.keys():
        raise ConfigurationError(f"an Eva has no place for {sorted(own.keys() ^ state.keys())[:5]}.")
    wrong = [key for key, value in state.items() if value.shape != own[key].shape]
    if wrong:
        raise ConfigurationError(f"an Eva has another shape for {wrong[:5]}.")
    exported.load_state_dict(state)


def _from_vision_transformer(model: Any) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Returns an architecture of timm, its arguments, and the weights by the names of an Eva."""
    _check_expressible(model)
    block = model.blocks[0]
    attention, mlp = block.attn, block.mlp
    norm = next(m for m in (model.norm, model.fc_norm, block.norm1) if not isinstance(m, nn.Identity))
    settings = {
        "patch_size": model.patch_embed.patch_size,
        "in_chans": model.in_chans,
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": attention.num_heads,
        "attn_type": "rope",
        "qkv_fused": True,
        "qkv_bias": attention.qkv.bias is not None,
        "qk_norm": not isinstance(attention.q_norm, nn.Identity),
        "scale_attn_inner": not isinstance(attention.norm, nn.Identity),
        "mlp_ratio": mlp.fc1.out_features / model.embed_dim,
        "swiglu_mlp": False,
        "scale_mlp": not isinstance(mlp.norm, nn.Identity),
        "init_values": 1.0,
        "class_token": model.cls_token is not None,
        "num_reg_tokens": model.num_reg_tokens,
        "no_embed_class": model.no_embed_class,
        "use_abs_pos_emb": model.pos_embed is not None,
        "use_pre_transformer_norm": not isinstance(model.norm_pre, nn.Identity),
        "use_post_transformer_norm": not isinstance(model.norm, nn.Identity),
        "use_fc_norm": not isinstance(model.fc_norm, nn.Identity),
        "dynamic_img_pad": model.patch_embed.dynamic_img_pad,
    }
    if model.attn_pool is not None:
        pool_mlp = model.attn_pool.mlp.fc1
        settings["attn_pool_num_heads"] = model.attn_pool.num_heads
        settings["attn_pool_mlp_ratio"] = pool_mlp.out_features / pool_mlp.in_features
    renamed = {".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2"}
    state = {}
    for key, value in _weights(model).items():
        for old, new in renamed.items():
            key = key.replace(old, new)
        state[key] = value
    return ARCHITECTURES[norm.eps], settings, state


def _check_expressible(model: Any) -> None:
    """Raises ConfigurationError if a VisionTransformer differs from an Eva in more than names."""
    blocks, norms = list(model.blocks), [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    activations = {_name(m.act) for m in model.modules() if isinstance(m, Mlp)}
    obstacles = {
        "blocks of another kind than Block": any(type(block) is not Block for block in blocks),
        "an MLP of another kind than Mlp": any(type(block.mlp) is not Mlp for block in blocks),
        f"the activation {', '.join(activations)} in place of the exact GELU": activations != {_name(nn.GELU())},
        "a norm of another kind than LayerNorm": type(blocks[0].norm1) not in (LayerNorm, nn.LayerNorm),
        f"norms with epsilon {sorted({m.eps for m in norms})}, where timm's entries have one of {sorted(ARCHITECTURES)}": (
            len({m.eps for m in norms}) != 1 or norms[0].eps not in ARCHITECTURES
        ),
        "a gate on its attention": blocks[0].attn.gate is not None,
        "a patch embedding of another kind than PatchEmbed, without a norm": (
            type(model.patch_embed) is not PatchEmbed or not isinstance(model.patch_embed.norm, nn.Identity)
        ),
        "pooling over the prefix tokens": model.pool_include_prefix,
        f"global_pool={model.global_pool!r}": model.global_pool == "prr",
    }
    found = [obstacle for obstacle, there in obstacles.items() if there]
    if found:
        raise ConfigurationError(f"timm's Eva cannot express this VisionTransformer: it has {'; '.join(found)}.")


def _name(activation: nn.Module) -> str:
    if type(activation) is GELU:
        return _name(nn.GELU())
    return f"{type(activation).__name__}({activation.extra_repr()})"


def _from_eva(model: Any) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Returns the same as `_from_vision_transformer`: the architecture and arguments that the Eva itself was made with."""
    arguments = getattr(model, "_model_args", None)
    if arguments is None or "architecture" not in (getattr(model, "pretrained_cfg", None) or {}):
        raise ConfigurationError("This Eva does not know its own arguments: make it with timm.create_model.")
    if model.rope is not None:
        raise ConfigurationError("Some layers of this Eva keep its own RoPE: attach to all layers, with layers=None.")
    drop = {key for key in arguments if key.startswith("rope_") or key.endswith("drop_rate")}
    settings = {key: value for key, value in arguments.items() if key not in drop}
    settings["use_abs_pos_emb"] = model.pos_embed is not None
    return model.pretrained_cfg["architecture"], settings, _weights(model)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if ".encoding." not in key}


def _index_frequencies(model: Any) -> Tensor:
    """Returns ω of all layers for positions that are patch indices, (2, depth, H, D/2), axes (column, row) as in timm."""
    attentions: list[Any] = [layer.attention for layer in find_attention_layers(model.blocks)]
    num_heads, head_dim = attentions[0].num_heads, attentions[0].head_dim
    if head_dim % 4:
        raise ConfigurationError(f"head_dim={head_dim}: timm's mixed RoPE wants a multiple of 4.")
    layers = []
    for attention in attentions:
        encoding = getattr(attention, "encoding", None)
        if encoding is None:
            layers.append(torch.zeros(2, num_heads, head_dim // 2))
            continue
        if attention.order is not None:
            raise ConfigurationError(
                "Features are re-ordered behind norms with weights, which timm's mixed RoPE cannot do."
            )
        if encoding.num_heads != num_heads:
            raise ConfigurationError("Grouped-query attention: timm's mixed RoPE has frequencies for every query head.")
        layers.append(encoding.spectrum().frequencies.flatten(2))
    frequencies = torch.stack([layer.to(model.patch_embed.proj.weight.device) for layer in layers], dim=1)
    return (frequencies * _patch_spacing(model, frequencies).view(2, 1, 1, 1)).flip(0)


def _patch_spacing(model: Any, frequencies: Tensor) -> Tensor:
    """Returns the distance of neighbouring patches on each axis, (2,), at the size the model was rescaled for, or else its own.

    Raises:
        ConfigurationError: prefix tokens are not at the first patch, where timm has them.
    """
    scaling = next((m.scaling for m in model.modules() if isinstance(m, FixedEncoding) and m.scaling), None)
    rows, columns = model.patch_embed.grid_size if scaling is None else scaling.shape
    grid: CoordinateGrid = Attachment.of(model).backbones[0].hooks[0].call.coordinate_grid  # pyright: ignore[reportFunctionMemberAccess]
    positions = grid.positions((rows, columns), model.num_prefix_tokens, like=frequencies.double())
    prefix, patches = positions[: model.num_prefix_tokens], positions[model.num_prefix_tokens :]
    elsewhere = len(prefix) > 0 and bool((prefix[0] - patches[0]).abs().max() > 1e-9)
    if elsewhere and frequencies.any():
        own = grid.prefix == "origin"
        remedy = "its own RoPE is made so" if own else "attach with prefix='first', before training"
        raise ConfigurationError(
            f"The {len(prefix)} class and register tokens sit at {prefix[0].tolist()}, but those of timm's mixed RoPE always "
            f"sit at the first patch, here {patches[0].tolist()}: {remedy}."
        )
    last = patches[-1] - patches[0]
    return last / torch.tensor([max(rows - 1, 1), max(columns - 1, 1)], dtype=last.dtype, device=last.device)
