"""`attach`: finds the attention layers, proves each, builds the encodings, changes the model, compares its outputs."""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from comrope.encodings import ENCODINGS, Encoding, LearnedEncoding, LieRE, TokenEncoding, encoding, kind_of
from comrope.encodings.ape import AbsoluteEncoding
from comrope.encodings.arguments import check_flag
from comrope.errors import ConfigurationError
from comrope.hosts._attached_layer import AttachedLayer, attention_input
from comrope.hosts._attachment import AttachedBackbone, Attachment, Model
from comrope.hosts._attention_layer import Convention, LayerCall, matches_pattern
from comrope.hosts._backbone import Backbone, ModuleHook, ModuleOverride
from comrope.hosts._custom_model import CustomBackbone
from comrope.hosts._host_rope import one_axis_per_block
from comrope.hosts._identity_rope import table_scales
from comrope.hosts._layer_calls import record_calls, without_identity_norms
from comrope.hosts._position_hooks import AnchorOutputsHook
from comrope.hosts._proof import check_same_outputs, deterministic_eval, example_outputs, find_convention
from comrope.hosts._saved_settings import write_to_config

LIBRARIES = ("timm", "transformers", "diffusers")
"""Each has a module of its name here, whose `find_backbones` finds its models; it is imported if the library is."""

Positions = Tensor | Callable[..., Tensor]


def attach(
    model: Model,
    name: str,
    *,
    block_size: int | None = None,
    init: str | None = None,
    layers: Sequence[int | str] | str | None = None,
    keep_ape: bool = True,
    prefix: str = "middle",
    positions: Positions | None = None,
    example: Any = None,
    **settings: Any,
) -> Model:
    """Gives the attention layers of a model a learned encoding, in place, and proves that it works.

    Positions come from each input: (row, column) of every patch, for images of any size; `position_ids` for text. By
    default they are relative, on [0, 1], as from `comrope.positions.grid`. If the model has a RoPE, the encoding replaces
    it, and positions are in the units of that RoPE. If comrope cannot find positions in the model, pass `positions`.

    The proof is a small forward pass of the model before and after, and a test of each attention layer in float64: the
    start leaves the outputs as they were, the angles reach the scores, and a common shift of all positions changes
    nothing.

    Args:
        model: a model with attention layers whose queries and keys come from modules of usual names: q_proj and k_proj,
            qkv, ….
        name: the encoding: any name of `comrope.encoding` except `ape`, which adds to tokens.
        block_size: the features in a block; the encoding's default if None.
        init: "identity" starts from zero angles, "rope" from the model's own RoPE (from vanilla RoPE if it has none),
            "normal" from random angles. None leaves the model's outputs as they are: "rope" if it has a RoPE, else
            "identity".
        layers: which attention layers: a list of indices or names in the model, or a pattern of names such as
            "blocks.*.attn"; all if None.
        keep_ape: whether the model keeps its absolute position embedding.
        prefix: where class and register tokens are, in a model without a RoPE: in the "middle" of the patches, or at the
            "first" patch as in timm's own rotary models, which is what `export_timm` can write.
        positions: a tensor (L, N) or (B, L, N), or a function that returns one, called with the arguments of the model's
            forward.
        example: arguments of a small forward pass for the proof, a tensor or a dict; made up if None.
        **settings: further settings of the encoding, such as std=0.1.
    Returns:
        The model. Classes, weights and their names are as before; each attention layer has one more submodule,
        `encoding`.
    Raises:
        ConfigurationError: there is no attention layer, or the proof fails in one (the message says how); an encoding is
            attached already; the model is compiled; settings do not fit (the message names the layer). The model is
            unchanged.
    Examples:
        >>> import timm, torch, comrope
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=1).eval()
        >>> images = torch.randn(1, 3, 224, 224)
        >>> before = model(images)
        >>> torch.allclose(comrope.attach(model, "comrope-ld")(images), before, atol=1e-5)
        True
    """
    _check_attachable(model, name)
    check_flag(keep_ape=keep_ape)
    if not isinstance(prefix, str) or prefix not in ("middle", "first"):
        raise ConfigurationError(f"prefix={prefix!r}: expected 'middle' or 'first', of the patches.")
    if init is not None and not isinstance(init, str):
        raise ConfigurationError(f"init={init!r}: expected 'normal', 'identity' or 'rope', or None.")
    if positions is not None and not callable(positions) and (not isinstance(positions, Tensor) or positions.is_meta):
        raise ConfigurationError(
            f"positions={positions!r}: expected a tensor of values, (L, N) or (B, L, N), or a function that gives one."
        )
    known = [each for each in settings if each in ("num_heads", "head_dim", "num_axes", "device", "dtype")]
    if known:
        raise ConfigurationError(f"{', '.join(known)}: what the model has is taken; leave it out.")
    arguments = {"block_size": block_size, "init": init, **settings}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    recorded = {
        "name": name,
        "layers": list(layers) if isinstance(layers, Sequence) and not isinstance(layers, str) else layers,
        "keep_ape": keep_ape,
        "prefix": prefix,
    }
    backbones = _find_backbones(model, layers, positions, example)
    before = [_checked_outputs(backbone) for backbone, _ in backbones]
    options: dict[str, Any] = {"keep_ape": keep_ape, "prefix": prefix, "layers_chosen": layers is not None}
    attached = [
        _prepare(backbone, name, arguments, all_layers=all_layers, **options) for backbone, all_layers in backbones
    ]
    attachment = Attachment(recorded | arguments, attached)
    try:
        attachment.apply()
        after = [example_outputs(each.backbone) for each in attached]
        if keep_ape and "init" not in arguments and _starts_unchanged(kind_of(name)):
            check_same_outputs(before, after, "with the encoding at its start")
    except BaseException:
        attachment.undo()
        raise
    vars(model)["_comrope"] = attachment
    write_to_config(model)
    return model


def _starts_unchanged(kind: type[nn.Module]) -> bool:
    """Returns whether a model's outputs stay as they are at the default start. LieRE cannot hold every RoPE of a host."""
    return issubclass(kind, LearnedEncoding) and not issubclass(kind, LieRE)


def _checked_outputs(backbone: Backbone) -> list[Tensor]:
    """Returns `example_outputs`; ConfigurationError with a remedy if the model cannot run its example, or outputs NaN."""
    whose = "a made-up input" if backbone.user_example is None else "the example given"
    remedy = "give one that does: comrope.attach(model, name, example=…), the arguments of a small forward pass."
    try:
        found = example_outputs(backbone)
    except ConfigurationError:
        raise
    except Exception as error:  # whatever a model raises for an unsuitable input
        raise ConfigurationError(
            f"{type(backbone.module).__name__}: {whose} does not suit it ({type(error).__name__}: {error}); {remedy}"
        ) from error
    if any(tensor.isnan().any() for tensor in found):
        raise ConfigurationError(
            f"{type(backbone.module).__name__}: {whose} does not suit it, or its weights are damaged: what it says of it is "
            f"NaN; {remedy}"
        )
    return found


def _check_attachable(model: nn.Module, name: str) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"model: got {type(model).__name__}, expected a torch module.")
    if not isinstance(name, str):
        raise ConfigurationError(f"name={name!r}: expected the name of an encoding, such as {', '.join(ENCODINGS)}.")
    if issubclass(kind_of(name), AbsoluteEncoding):
        raise ConfigurationError("'ape' adds to tokens and does not rotate queries and keys: attach a rotary encoding.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigurationError(
            f"{type(model).__name__} has parameters on the meta device, and what has no values cannot be proved: load or draw "
            "its weights first, then attach."
        )
    if any(isinstance(module, Encoding) for module in model.modules()):
        raise ConfigurationError(
            f"{type(model).__name__} has an encoding attached already: comrope.detach it first, or attach to a fresh model."
        )
    if any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules()):
        raise ConfigurationError(
            f"{type(model).__name__} is compiled, and would go on running what it was compiled from: attach first, then "
            "compile."
        )


def _find_backbones(
    model: nn.Module, layers: Sequence[int | str] | str | None, positions: Positions | None, example: Any
) -> list[tuple[Backbone, bool]]:
    """Returns each backbone with only the chosen layers, and whether these are all of its layers."""
    if positions is None:
        found: list[Backbone] = []
        for library in LIBRARIES:
            if library in sys.modules:
                found += importlib.import_module(f"comrope.hosts.{library}").find_backbones(model)
    else:
        found = [CustomBackbone.of(model, positions, layers)]
    if example is not None:
        for backbone in found:
            backbone.user_example = (model, example)
    names = [layer.name for backbone in found for layer in backbone.layers]
    if not names:
        raise ConfigurationError(_nothing_found(model, positions))
    chosen = set(range(len(names))) if layers is None else _indices(layers, names)
    picked, start = [], 0
    for backbone in found:
        count = len(backbone.layers)
        own = [layer for i, layer in enumerate(backbone.layers, start) if i in chosen]
        start += count
        if own:
            backbone.layers = own
            picked.append((backbone, len(own) == count))
    return picked


def _nothing_found(model: nn.Module, positions: Positions | None) -> str:
    what = type(model).__name__
    if positions is not None:
        return (
            f"{what} has no attention layer that comrope can read: none with modules for queries and keys of usual names "
            "(q_proj and k_proj, query and key, to_q and to_k, qkv, …) and a head_dim or num_heads beside them. Elsewhere "
            "call a comrope.encoding yourself."
        )
    return (
        f"{what} is no model of timm, transformers or diffusers whose attention layers and positions comrope can find, nor "
        "contains one. Say where its tokens are: comrope.attach(model, name, positions=…, example=…); or call a "
        "comrope.encoding in its attention."
    )


def _indices(layers: Sequence[int | str] | str, names: list[str]) -> set[int]:
    if isinstance(layers, str):
        chosen = {i for i, name in enumerate(names) if matches_pattern(name, layers)}
        good = bool(chosen)
    else:
        count = len(names)
        known = {i: i % count for i in range(-count, count)} | {name: i for i, name in enumerate(names)}
        good = isinstance(layers, Sequence) and all(type(i) in (int, str) and i in known for i in layers)
        chosen = {known[i] for i in layers} if good else set()
        good = good and 0 < len(chosen) == len(layers)
    if not good:
        raise ConfigurationError(
            f"layers={layers!r}: expected a list of different indices or names, at least one, or a pattern of names, of the "
            f"model's {len(names)} attention layers (0 to {len(names) - 1}: {names[0]!r} to {names[-1]!r}), or None for all."
        )
    return chosen


def _prepare(
    backbone: Backbone,
    name: str,
    settings: dict[str, Any],
    *,
    keep_ape: bool,
    prefix: str,
    all_layers: bool,
    layers_chosen: bool,
) -> AttachedBackbone:
    """Returns what is to change in a backbone, after proving each of its layers; changes nothing itself."""
    hooks = [
        *backbone.position_hooks(prefix),
        ModuleHook(backbone.module, AnchorOutputsHook(backbone.position_context)),
    ]
    with deterministic_eval(backbone.module):
        called = record_calls(backbone.run_example, backbone.layers, backbone.position_context, hooks)
    fitting = [call for call in called.values() if isinstance(call, LayerCall)]
    for layer, reason in called.items():
        # Cross-attention, whose queries and keys are of different tokens, is skipped unless it was chosen by name.
        if isinstance(reason, str) and (layers_chosen or "different tokens" not in reason or not fitting):
            raise ConfigurationError(
                f"{layer.name}: an encoding cannot be put into this {type(layer.attention).__name__}: {reason}. Name the "
                "layers that are to have one by layers=[…], or give an example=… in which all run. Nothing has changed."
            )
    any_start = settings.get("init") in ("identity", "normal")
    proved = [_prove(backbone, call, any_start) for call in fitting]
    backbone.layers = [call.layer for call, _ in proved]
    layers, overrides = [], backbone.overrides(keep_ape=keep_ape, all_layers=all_layers)
    for call, convention in proved:
        layer = call.layer
        built, order = _build_encoding(call, name, dict(settings), convention)
        layers.append(AttachedLayer(layer, convention, backbone.position_context))
        order = None if order is None else nn.Buffer(order.to(layer.weight.device), persistent=False)
        overrides.append(ModuleOverride(layer.attention, {"encoding": built, "order": order}))
    return AttachedBackbone(backbone, hooks, layers, overrides)


def _prove(backbone: Backbone, call: LayerCall, any_start: bool) -> tuple[LayerCall, Convention]:
    """Returns the call to use for a layer, and the convention under which the layer passes the proof.

    Norms that are `nn.Identity` are skipped if possible, since the output of projections costs less to rotate. It is not
    possible if something, such as a bias, is added in between.
    """
    with deterministic_eval(call.layer.attention):
        direct = without_identity_norms(call)
        if direct is not None:
            try:
                candidates = _candidates(backbone, direct)
                return direct, find_convention(direct.layer, direct, candidates, any_start=any_start)
            except ConfigurationError:
                pass
        return call, find_convention(call.layer, call, _candidates(backbone, call), any_start=any_start)


def _candidates(backbone: Backbone, call: LayerCall) -> list[Convention]:
    """Returns the conventions that a layer may follow; a table that does not scale is replaced by the identity."""
    found = []
    for convention in backbone.conventions(call.layer, call):
        argument = convention.rope_argument
        table = call.args[argument] if isinstance(argument, int) else call.kwargs.get(argument or "")
        exact = convention.disable_rope == "origin" and table is not None and not table_scales(table)
        found.append(replace(convention, disable_rope="identity") if exact else convention)
    return found


def _build_encoding(
    call: LayerCall, name: str, settings: dict[str, Any], convention: Convention
) -> tuple[Encoding, Tensor | None]:
    """Returns the encoding of one layer, in the layer's mode, and the feature order that it needs."""
    try:
        built, order = _build(call, name, settings, convention)
    except ConfigurationError as error:
        raise ConfigurationError(f"{call.layer.name}: {error}") from error
    return built.train(call.layer.attention.training), order


def _build(
    call: LayerCall, name: str, settings: dict[str, Any], convention: Convention
) -> tuple[Encoding, Tensor | None]:
    layer = call.layer
    kind = kind_of(name)
    learned = issubclass(kind, LearnedEncoding)
    if learned:
        settings.setdefault("init", "identity" if convention.frequencies is None else "rope")
    from_host = learned and settings["init"] == "rope" and convention.frequencies is not None
    for given in ("base", "max_frequency", "directions"):
        if from_host and given in settings:
            raise ConfigurationError(f"{given}= has no use here: init='rope' starts from the RoPE that the model has.")
    if issubclass(kind, TokenEncoding):
        tokens = attention_input(call.args, call.kwargs)
        if tokens is None or layer.rotate_at == "multihead":
            raise ConfigurationError(
                f"{name} rotates by what the tokens say, and it is not clear which argument of its "
                f"{type(layer.attention).__name__} holds them, (B, L, width): attach one that rotates by positions alone."
            )
        settings.setdefault("width", tokens.shape[-1])
    weight = layer.weight
    built = encoding(
        name,
        num_heads=layer.num_key_heads,
        head_dim=layer.head_dim,
        num_axes=call.positions.shape[-1],
        device=weight.device,
        dtype=torch.float64 if weight.dtype == torch.float64 else torch.float32,
        **(settings | {"init": "identity"} if from_host else settings),
    )
    assert isinstance(built, Encoding)
    return built, _start_from_host_rope(built, convention) if from_host else convention.order


def _start_from_host_rope(built: Encoding, convention: Convention) -> Tensor | None:
    """Sets the angles of `built` to the host's RoPE, and returns the feature order in which it can represent them."""
    assert isinstance(built, LearnedEncoding) and convention.frequencies is not None
    frequencies = convention.frequencies.detach().double()
    shape = (built.num_axes, built.num_heads, built.num_blocks, built.block_size // 2)
    try:
        built.set_spectrum(None, frequencies.expand(-1, built.num_heads, -1).reshape(shape))
        return convention.order
    except ConfigurationError:
        planes = one_axis_per_block(frequencies, built.block_size)
        if planes is None:
            raise
    built.set_spectrum(None, frequencies[..., planes].expand(-1, built.num_heads, -1).reshape(shape))
    order = convention.order
    features = torch.arange(built.head_dim, device=planes.device) if order is None else order.to(planes.device)
    return features.view(-1, 2)[planes].flatten()
