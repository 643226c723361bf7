"""Tiny real models of timm, with weights that make attention look at positions, and what is done to them."""

import copy
import functools
from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from comrope import hosts
from comrope.hosts._surgery import Attachment
from comrope.hosts._tokens import Canvas, Tokens
from tests.hosts import outcomes
from tests.hosts.zoo import ZOO

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

FAMILY: dict[str, Any] = {"name": "comrope-ld", "block_size": 2}
"""What is attached to each model of the zoo: LD in the smallest blocks, which hold every start."""


LIBRARIES = ("timm", "transformers", "diffusers", "torch")
ABSENT: dict[str, str] = {}
"""Libraries that cannot be imported beside the installed versions of the others, and why."""


@functools.cache
def recorded(library: str) -> dict[str, str]:
    """What this version made of each model when docs/models was written; of one that is newer, the newest known."""
    versions, number = outcomes.recorded()[library], None
    try:
        number = outcomes.version(library)
    except ImportError as error:
        ABSENT[library] = str(error)
    return versions[number if number in versions else outcomes.in_order(versions)[-1]]


WORKING = [name for library in LIBRARIES for name, reason in recorded(library).items() if not reason]
"""The models of the zoo that take an encoding."""


def with_encoding(name: str, **build) -> nn.Module:
    """A model of the zoo with an encoding, its angles away from where they start; the same one each time."""
    entry = ZOO[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return turned_away(outcomes.attached(entry, model=entry.build(**build), **FAMILY))


@torch.no_grad()
def turned_away(model: nn.Module, size: float = 0.3) -> nn.Module:
    """The model with its angles away from where they start, the same way each time."""
    generator = torch.Generator().manual_seed(2)
    for parameter in hosts.angle_parameters(model).values():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return model


def run(name: str, model: nn.Module) -> Tensor:
    """What a model of the zoo says to its example."""
    torch.manual_seed(3)
    return ZOO[name].run(model)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """As near as that in units of the largest number expected."""
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def loss(output: Tensor) -> Tensor:
    """Of which each number has a gradient of its own."""
    return output.float().sin().sum()


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
    """All that a failed or undone attach must leave as it was: weights, classes, attributes, modes and hooks."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    return state, {name: _nature(module) for name, module in model.named_modules()}


def _nature(module: nn.Module) -> tuple:
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    with_arguments = len(module._forward_pre_hooks_with_kwargs) + len(module._forward_hooks_with_kwargs)
    kinds = [getattr(hook, "__qualname__", type(hook)) for hook in hooks]
    return type(module), sorted(vars(module)), module.training, kinds, with_arguments


def assert_as_before(model: nn.Module, before: tuple) -> None:
    state, natures = before
    now, natures_now = snapshot(model)
    assert list(now) == list(state)
    assert all(torch.equal(now[key], state[key]) for key in state)
    assert natures_now == natures


def canvas_of(model: nn.Module) -> Canvas:
    """How an attached vision model measures positions."""
    return Attachment.of(model).grafts[0].hooks[0].call.canvas  # pyright: ignore[reportFunctionMemberAccess]


def tokens_of(model: nn.Module) -> list[Tokens]:
    """The tokens of all that tells or asks positions in an attached model: one object for each trunk, many times."""
    grafts = Attachment.of(model).grafts
    tellers = [hook.call.tokens for graft in grafts for hook in graft.hooks]  # pyright: ignore[reportFunctionMemberAccess]
    return [
        *tellers,
        *(graft.trunk.tokens for graft in grafts),
        *(seat.tokens for graft in grafts for seat in graft.seats),
    ]


def places_heard(attention: nn.Module) -> list[Tensor]:
    """From now on a list of the positions at which an attention layer turns its queries and keys."""
    encoding: Any = attention.encoding
    heard, rotation = [], encoding.rotation

    def hearing(positions: Tensor, **options) -> Any:
        heard.append(positions)
        return rotation(positions, **options)

    encoding.rotation = hearing
    return heard


def unturned(attention: Any, x: Tensor) -> list[Tensor]:
    """Queries (B, H·g, L, D), keys and values (B, H, L, D) of timm's attention, by its weights, before norms and rotation."""
    if attention.qkv is None:
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        projected = [functional.linear(x, p.weight, p.bias) for p in projections]
    else:
        bias = attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:
            bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
        projected = functional.linear(x, attention.qkv.weight, bias).chunk(3, dim=-1)
    return [by_heads(y, attention.head_dim) for y in projected]


def by_heads(y: Tensor, head_dim: int) -> Tensor:
    """(B, L, H·D) as (B, H, L, D)."""
    return y.unflatten(-1, (-1, head_dim)).transpose(1, 2)


@torch.no_grad()
def turned(model: nn.Module, x: Tensor, places: Tensor, **arguments) -> list[Tensor]:
    """Queries (B, H·g, L, D) and keys (B, H, L, D) that meet in the first attention layer, called with tokens at `places`."""
    graft = Attachment.of(model).grafts[0]
    seat, heard = graft.seats[0], {}
    graft.trunk.tokens.tell(places)
    parts = {part.name: seat.attention.get_submodule(part.name) for part in seat.parts}
    # Hooks that come later hear what those of the encoding have made of it.
    handles = [m.register_forward_hook(lambda m, _, y: heard.update({m: y})) for m in parts.values()]
    seat.attention(x, **arguments)
    for handle in handles:
        handle.remove()
    outputs = [heard[module] for module in parts.values()]
    if [part.holds for part in seat.parts] == ["qkv"]:
        outputs = outputs[0].chunk(3, dim=-1)[:2]
    return [y if y.ndim == 4 else by_heads(y, seat.head_dim) for y in outputs]


def error(actual: Tensor, expected: Tensor) -> float:
    return (actual - expected).abs().max().item()


def far_scores(model: nn.Module, distance: int, **arguments) -> Tensor:
    """Cosines of queries and keys of the first attention layer with an encoding, in groups of tokens `distance` apart.

    `arguments` are functions of the places (L, N), and give what else the layer is called with.
    """
    attention: Any = Attachment.of(model).grafts[0].seats[0].attention
    x = torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(3)).to(next(attention.parameters()).dtype)
    places = torch.rand(24, attention.encoding.num_axes, generator=torch.Generator().manual_seed(4))
    places = (places * 9).round().double() + distance * (torch.arange(24) >= 12).double().unsqueeze(1)
    given = {name: make(places) for name, make in arguments.items()}
    q, k = (functional.normalize(t.double(), dim=-1) for t in turned(model, x, places, **given))
    return q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT
