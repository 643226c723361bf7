"""Tiny models of timm whose attention depends on positions, attached models of the zoo, and comparisons."""

import copy
import functools
from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from comrope import hosts
from comrope.hosts._attachment import Attachment
from comrope.hosts._coordinate_grid import CoordinateGrid
from comrope.hosts._position_context import PositionContext
from tests.hosts import model_table
from tests.hosts.zoo import LIBRARIES, ZOO

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
ROPE_HOSTS = {
    "cat": {"dynamic_img_size": True},
    "cat xy": {"rope_grid_indexing": "xy", "rope_grid_offset": 0.5, "ref_feat_shape": (3, 5), "attn_type": "rope"},
    "mixed": {"rope_type": "mixed", "rope_grid_indexing": "xy", "dynamic_img_size": True},
    "mixed rope": {"rope_type": "mixed", "attn_type": "rope"},
    "dinov3": {"rope_type": "dinov3", "rope_rotate_half": True, "num_reg_tokens": 2, "dynamic_img_size": True},
    "grouped": {"attn_type": "rope", "qkv_fused": False, "num_kv_heads": 1},
    "split": {"qkv_fused": False},
    "mrope": {"rope_type": "mrope"},
}
ALL_HOSTS = (*VITS, *ROPE_HOSTS, "eva")
FAMILIES = ("rope-mixed", "string", "comrope-ap", "comrope-ld", "comrope-mt")

ENCODING: dict[str, Any] = {"name": "comrope-ld", "block_size": 2}
"""Arguments of `attach` for the models of the zoo: LD in the smallest blocks, which can represent every host's RoPE."""

UNAVAILABLE: dict[str, str] = {}
"""Libraries that cannot be imported together with the installed versions of the others, and why."""


@functools.cache
def recorded_outcomes(library: str) -> dict[str, str]:
    """Returns the recorded outcome of `attach` for each model, of the installed version or else the newest one in
    docs/models.
    """
    versions, number = model_table.recorded_outcomes()[library], None
    try:
        number = model_table.version(library)
    except ImportError as error:
        UNAVAILABLE[library] = str(error)
    return versions[number if number in versions else model_table.in_order(versions)[-1]]


SUPPORTED = [name for library in LIBRARIES for name, reason in recorded_outcomes(library).items() if not reason]
"""The models of the zoo that take an encoding."""


def attached_model(name: str, **build) -> nn.Module:
    """Returns a model of the zoo with an encoding and perturbed angles, always the same one."""
    entry = ZOO[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return perturb_angles(model_table.attach_to(entry, model=entry.build(**build), **ENCODING))


@torch.no_grad()
def perturb_angles(model: nn.Module, size: float = 0.3) -> nn.Module:
    """Adds noise to all angles, always the same noise, and returns the model."""
    generator = torch.Generator().manual_seed(2)
    for parameter in hosts.angle_parameters(model).values():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return model


def run(name: str, model: nn.Module) -> Tensor:
    """Returns the output of a model of the zoo for its example."""
    torch.manual_seed(3)
    return ZOO[name].run(model)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Asserts that the error is at most `tolerance` times the largest expected number."""
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def loss(output: Tensor) -> Tensor:
    """Returns a loss whose gradient in every number of the output is different."""
    return output.float().sin().sum()


def tiny(name: str, *, seed: int = 0, **settings) -> nn.Module:
    """Returns one of VITS or ROPE_HOSTS, or "eva", an Eva without a RoPE; in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in VITS:
            model = VisionTransformer(**VIT | VITS[name] | settings)
        else:
            model = Eva(**(VIT if name == "eva" else EVA | ROPE_HOSTS[name]) | settings)
        return randomise_weights(model)


@torch.no_grad()
def randomise_weights(model: nn.Module) -> nn.Module:
    """Sets the weights so large that attention is far from uniform and every part changes the logits; returns the model."""
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


def attached(model: nn.Module, name: str, *, perturbation: float = 0.0, **settings) -> nn.Module:
    """Returns a copy of the model with an encoding, and normal noise of size `perturbation` added to its angles."""
    model = hosts.attach(copy.deepcopy(model), name, **settings)
    with torch.no_grad():
        for parameter in hosts.angle_parameters(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=perturbation)
    return model


def block_of(family: str, size: int) -> dict:
    """Returns the argument block_size, for families that have one."""
    return {"block_size": size} if family.startswith("comrope") or family == "liere" else {}


def snapshot(model: nn.Module) -> tuple:
    """Returns all that a failed or undone attach must leave unchanged: weights, classes, attributes, modes and hooks."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    return state, {name: _module_state(module) for name, module in model.named_modules()}


def _module_state(module: nn.Module) -> tuple:
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    with_arguments = len(module._forward_pre_hooks_with_kwargs) + len(module._forward_hooks_with_kwargs)
    kinds = [getattr(hook, "__qualname__", type(hook)) for hook in hooks]
    return type(module), sorted(vars(module)), module.training, kinds, with_arguments


def assert_as_before(model: nn.Module, before: tuple) -> None:
    state, modules = before
    now, modules_now = snapshot(model)
    assert list(now) == list(state)
    assert all(torch.equal(now[key], state[key]) for key in state)
    assert modules_now == modules


def coordinate_grid_of(model: nn.Module) -> CoordinateGrid:
    """Returns the coordinate grid of an attached vision model."""
    return Attachment.of(model).backbones[0].hooks[0].call.coordinate_grid  # pyright: ignore[reportFunctionMemberAccess]


def position_contexts_of(model: nn.Module) -> list[PositionContext]:
    """Returns the position contexts of all hooks, backbones and layers: the same object for each backbone, many times."""
    backbones = Attachment.of(model).backbones
    hooks: list[Any] = [hook for attached in backbones for hook in attached.hooks]
    return [
        *(hook.call.position_context for hook in hooks),
        *(attached.backbone.position_context for attached in backbones),
        *(layer.position_context for attached in backbones for layer in attached.layers),
    ]


def record_positions(attention: nn.Module) -> list[Tensor]:
    """Returns a list, to which an attention layer appends its positions whenever it computes a rotation."""
    encoding: Any = attention.encoding
    recorded, rotation = [], encoding.rotation

    def recording(positions: Tensor, **options) -> Any:
        recorded.append(positions)
        return rotation(positions, **options)

    encoding.rotation = recording
    return recorded


def unrotated_qkv(attention: Any, x: Tensor) -> list[Tensor]:
    """Returns queries (B, H·g, L, D), keys and values (B, H, L, D) of timm's attention, before norms and rotation."""
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
    """Returns (B, L, H·D) as (B, H, L, D)."""
    return y.unflatten(-1, (-1, head_dim)).transpose(1, 2)


@torch.no_grad()
def rotated_queries_and_keys(model: nn.Module, x: Tensor, positions: Tensor, **arguments) -> list[Tensor]:
    """Returns queries (B, H·g, L, D) and keys (B, H, L, D) of the first attached layer, called with tokens at `positions`."""
    attached = Attachment.of(model).backbones[0]
    layer, recorded = attached.layers[0], {}
    attached.backbone.position_context.set(positions)
    modules = {module.name: layer.attention.get_submodule(module.name) for module in layer.rotated_modules}
    # These hooks run after those of the encoding, and get rotated outputs.
    handles = [m.register_forward_hook(lambda m, _, y: recorded.update({m: y})) for m in modules.values()]
    layer.attention(x, **arguments)
    for handle in handles:
        handle.remove()
    outputs = [recorded[module] for module in modules.values()]
    if [module.output for module in layer.rotated_modules] == ["qkv"]:
        outputs = outputs[0].chunk(3, dim=-1)[:2]
    return [y if y.ndim == 4 else by_heads(y, layer.head_dim) for y in outputs]


def error(actual: Tensor, expected: Tensor) -> float:
    return (actual - expected).abs().max().item()


def far_scores(model: nn.Module, distance: int, **arguments) -> Tensor:
    """Returns cosines of queries and keys in the first attached layer, for two groups of tokens that are `distance`
    apart.

    `arguments` are functions of the positions (L, N), which return the other arguments that the layer is called with.
    """
    attention: Any = Attachment.of(model).backbones[0].layers[0].attention
    x = torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(3)).to(next(attention.parameters()).dtype)
    positions = torch.rand(24, attention.encoding.num_axes, generator=torch.Generator().manual_seed(4))
    positions = (positions * 9).round().double() + distance * (torch.arange(24) >= 12).double().unsqueeze(1)
    given = {name: make(positions) for name, make in arguments.items()}
    q, k = (functional.normalize(t.double(), dim=-1) for t in rotated_queries_and_keys(model, x, positions, **given))
    return q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT
