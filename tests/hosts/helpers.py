"""Tiny real models of timm, with weights that make attention look at positions, and what is done to them."""

import copy
from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from comrope import hosts

VIT = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
EVA = VIT | {"use_rot_pos_emb": True}

VITS = {
    "vit": {"dynamic_img_size": True},
    "deit3": {"no_embed_class": True, "init_values": 1.0},
    "dinov2": {"reg_tokens": 3, "no_embed_class": True, "init_values": 1.0, "dynamic_img_size": True},
    "siglip": {"class_token": False, "global_pool": "map"},
    "clip": {"pre_norm": True, "global_pool": "token", "dynamic_img_size": True},
    "qk-norm": {"qk_norm": True, "global_pool": "avg"},
}
ROPED = {
    "cat": {"dynamic_img_size": True},
    "cat xy": {"rope_grid_indexing": "xy", "rope_grid_offset": 0.5, "ref_feat_shape": (3, 5), "attn_type": "rope"},
    "mixed": {"rope_type": "mixed", "rope_grid_indexing": "xy", "dynamic_img_size": True},
    "mixed rope": {"rope_type": "mixed", "attn_type": "rope"},
    "dinov3": {"rope_type": "dinov3", "rope_rotate_half": True, "num_reg_tokens": 2, "dynamic_img_size": True},
    "grouped": {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1},
    "split": {"qkv_fused": False},
    "mrope": {"rope_type": "mrope"},
}
EVERY = (*VITS, *ROPED, "eva")
FAMILIES = ("rope-mixed", "string", "comrope-ap", "comrope-ld", "comrope-mt")


def tiny(name: str, *, seed: int = 0, **settings) -> nn.Module:
    """One of VITS or ROPED, or "eva", an Eva without a RoPE; in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in VITS:
            model = VisionTransformer(**VIT | VITS[name] | settings)
        else:
            model = Eva(**(VIT if name == "eva" else EVA | ROPED[name]) | settings)
        return stirred(model)


@torch.no_grad()
def stirred(model: nn.Module) -> nn.Module:
    """The model with weights so large that attention is far from uniform and every part of it shows in the logits."""
    for name, parameter in model.named_parameters():
        if "rope" in name:
            continue
        if "gamma" in name or (parameter.ndim == 1 and "weight" in name):
            parameter.normal_(1, 0.2)
        elif parameter.ndim == 1:
            parameter.normal_(0, 0.3)
        else:
            gain = 1.5 if any(part in name for part in ("qkv", "q_proj", "k_proj")) else 1.0
            parameter.normal_(0, gain / parameter[0].numel() ** 0.5)
    return model.eval()


def images(*sizes: tuple[int, int], batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 3, *size, generator=generator) for size in sizes]


def attached(model: nn.Module, name: str, *, turn: float = 0.0, **settings) -> nn.Module:
    """A copy of the model with an encoding, its angle parameters `turn` × standard normal away from their start."""
    model = hosts.attach(copy.deepcopy(model), name, **settings)
    with torch.no_grad():
        for parameter in hosts.angle_parameters(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=turn)
    return model


def block_of(family: str, size: int) -> dict:
    """block_size where the family groups planes."""
    return {"block_size": size} if family.startswith("comrope") or family == "liere" else {}


def snapshot(model: nn.Module) -> tuple:
    """All that a failed or undone attach must leave as it was."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    return state, {name: type(module) for name, module in model.named_modules()}, sorted(vars(model))


def assert_as_before(model: nn.Module, before: tuple) -> None:
    state, kinds, attributes = before
    now, kinds_now, attributes_now = snapshot(model)
    assert list(now) == list(state)
    assert all(torch.equal(now[key], state[key]) for key in state)
    assert kinds_now == kinds
    assert attributes_now == attributes


def error(actual: Tensor, expected: Tensor) -> float:
    return (actual - expected).abs().max().item()


@torch.no_grad()
def far_scores(attention: nn.Module, distance: int) -> Tensor:
    """Cosines of queries and keys of an attention layer with an encoding, in groups of tokens `distance` apart."""
    encoding: Any = attention.encoding
    tokens = torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(3))
    places = torch.rand(24, encoding.num_axes, generator=torch.Generator().manual_seed(4))
    places = (places * 9).round().double() + distance * (torch.arange(24) >= 12).double().unsqueeze(1)
    q, k, _ = attention._heads(tokens.to(next(attention.parameters()).dtype))  # pyright: ignore
    q, k = (nn.functional.normalize(t.double(), dim=-1) for t in attention.turn(q, k, places))  # pyright: ignore
    return q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT
