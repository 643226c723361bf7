"""Attach: find the attention layers, read each by a proof, build what it takes, change the model, and look whether it holds."""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from comrope.encodings import ENCODINGS, Encoding, LearnedEncoding, encoding
from comrope.encodings.ape import AbsoluteEncoding
from comrope.encodings.arguments import check_flag
from comrope.errors import ConfigurationError
from comrope.hosts._attention import Layer, Reading, matches
from comrope.hosts._calls import calls, without_idle_norms
from comrope.hosts._description import record
from comrope.hosts._own import OwnTrunk
from comrope.hosts._proof import at_rest, check_same, outputs, read
from comrope.hosts._seat import Seat
from comrope.hosts._still import scales
from comrope.hosts._surgery import Attachment, Call, Graft, Hook, Swap, Trunk, one_axis_a_block
from comrope.hosts._tokens import Pinner

LIBRARIES = ("timm", "transformers", "diffusers")
"""Each has a module of its name here, whose `trunks` finds its models; it is imported once the library is."""

Positions = Tensor | Callable[..., Tensor]


def attach(
    model: nn.Module,
    name: str,
    *,
    block_size: int | None = None,
    init: str | None = None,
    layers: Sequence[int | str] | str | None = None,
    keep_ape: bool = True,
    prefix: str = "middle",
    positions: Positions | None = None,
    example: Any = None,
    **settings,
) -> nn.Module:
    """Gives the attention layers of a model an encoding, in place, and proves on the spot that it does what it promises.

    Positions come from each input: (row, column) of every patch for images of any size, `position_ids` for text. They are
    relative, on [0, 1], as `comrope.positions.grid` makes them; in a model that has a RoPE, which is replaced, they are in
    the units of that RoPE. Where comrope cannot know them, `positions` says them.

    The proof is a small forward pass of the model as it was and as it is, and a trial of each attention layer in float64:
    the start leaves the outputs as they were, angles reach the scores, moving all tokens by the same way changes nothing.

    Args:
        model: a model with attention layers whose queries and keys come from modules of usual names: q_proj and k_proj, qkv, ….
        name: of the encoding: any of `comrope.encoding` but `ape`, which adds to tokens.
        block_size: of the encoding, its own default if None.
        init: "identity" starts from zero angles, "rope" from the model's own RoPE (vanilla RoPE where it has none), "normal"
            from random angles. None leaves the model's outputs as they are: "rope" where it has one, else "identity".
        layers: which attention layers, by index or by name in the model, or as a pattern of names such as "blocks.*.attn"; all
            if None.
        keep_ape: whether the model keeps the absolute position embedding that it has.
        prefix: where class and register tokens sit, in a model without a RoPE: in the "middle" of the patches, or at the
            "first" patch as in timm's own rotary models, which is what `export_timm` can write.
        positions: (L, N) or (B, L, N), or a function that gives them, called with the arguments of the model's forward.
        example: arguments of a small forward pass for the proof, a tensor or a dict; made up where None.
        settings: further settings of the encoding, such as std=0.1.
    Returns:
        The model. Classes, weights and their names are as before; each attention layer has one more submodule, `encoding`.
    Raises:
        ConfigurationError: no attention layer, or one in which the proof fails, with what failed; a second attach, a compiled
            model, settings that do not fit (the layer is named). The model is untouched then.
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
    trunks, options = _trunks(model, layers, positions, example), {"keep_ape": keep_ape, "prefix": prefix}
    before = [_first_outputs(trunk) for trunk, _ in trunks]
    grafts = [
        _graft(trunk, name, arguments, whole=whole, named=layers is not None, **options) for trunk, whole in trunks
    ]
    attachment = Attachment(recorded | arguments, grafts)
    try:
        attachment.apply()
        after = [outputs(graft.trunk) for graft in grafts]
        if keep_ape and "init" not in arguments and name not in ("none", "rope", "liere"):
            check_same(before, after, "with the encoding at its start")
    except BaseException:
        attachment.undo()
        raise
    vars(model)["_comrope"] = attachment
    record(model)
    return model


def _first_outputs(trunk: Trunk) -> list[Tensor]:
    """`outputs`, and a word where the model makes nothing of its example."""
    whose = "a made-up input" if trunk.given is None else "the example given"
    remedy = "give one that does: comrope.attach(model, name, example=…), the arguments of a small forward pass."
    try:
        found = outputs(trunk)
    except ConfigurationError:
        raise
    except Exception as error:  # whatever a model makes of an input that does not suit it
        raise ConfigurationError(
            f"{type(trunk.module).__name__}: {whose} does not suit it ({type(error).__name__}: {error}); {remedy}"
        ) from error
    if any(tensor.isnan().any() for tensor in found):
        raise ConfigurationError(
            f"{type(trunk.module).__name__}: {whose} does not suit it, or its weights are damaged: what it says of it is NaN; "
            f"{remedy}"
        )
    return found


def _check_attachable(model: nn.Module, name: str) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"model: got {type(model).__name__}, expected a torch module.")
    if not isinstance(name, str):
        raise ConfigurationError(f"name={name!r}: expected the name of an encoding, one of {', '.join(ENCODINGS)}.")
    if issubclass(ENCODINGS.get(name, Encoding), AbsoluteEncoding):
        raise ConfigurationError("'ape' adds to tokens and turns no queries and keys: attach a rotary encoding.")
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


def _trunks(
    model: nn.Module, layers: Sequence[int | str] | str | None, positions: Positions | None, example: Any
) -> list[tuple[Trunk, bool]]:
    """The trunks of the model with the layers that are named, and whether these are all of the trunk's."""
    if positions is None:
        found: list[Trunk] = []
        for library in LIBRARIES:
            if library in sys.modules:
                found += importlib.import_module(f"comrope.hosts.{library}").trunks(model)
    else:
        found = [OwnTrunk.of(model, positions, layers)]
    if example is not None:
        for trunk in found:
            trunk.given = (model, example)
    names = [layer.name for trunk in found for layer in trunk.layers]
    if not names:
        raise ConfigurationError(_nothing_found(model, positions))
    chosen = set(range(len(names))) if layers is None else _indices(layers, names)
    picked, start = [], 0
    for trunk in found:
        count = len(trunk.layers)
        own = [layer for i, layer in enumerate(trunk.layers, start) if i in chosen]
        start += count
        if own:
            trunk.layers = own
            picked.append((trunk, len(own) == count))
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
        chosen = {i for i, name in enumerate(names) if matches(name, layers)}
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


def _graft(
    trunk: Trunk, name: str, settings: dict[str, Any], *, keep_ape: bool, prefix: str, whole: bool, named: bool
) -> Graft:
    """What is to change in a trunk, after the trial of each of its layers."""
    hooks = [*trunk.hooks(prefix), Hook(trunk.module, Pinner(trunk.tokens))]
    with at_rest(trunk.module):
        called = calls(trunk.run, trunk.layers, trunk.tokens, hooks)
    fitting = [call for call in called.values() if isinstance(call, Call)]
    for layer, reason in called.items():
        # Cross-attention is no place for positions of one kind of tokens, and goes without unless it is named.
        if isinstance(reason, str) and (named or "different tokens" not in reason or not fitting):
            raise ConfigurationError(
                f"{layer.name}: an encoding cannot be put into this {type(layer.attention).__name__}: {reason}. Name the "
                "layers that are to have one by layers=[…], or give an example=… in which all run. Nothing has changed."
            )
    any_start = settings.get("init") in ("identity", "normal")
    proved = [_read(trunk, call, any_start) for call in fitting]
    trunk.layers = [call.layer for call, _ in proved]
    seats, swaps = [], trunk.swaps(keep_ape=keep_ape, whole=whole)
    for call, reading in proved:
        layer = call.layer
        built, order = _built(layer, name, dict(settings), reading, call.positions.shape[-1])
        seats.append(Seat(layer, reading, trunk.tokens))
        order = None if order is None else nn.Buffer(order.to(layer.weight.device), persistent=False)
        swaps.append(Swap(layer.attention, {"encoding": built, "order": order}))
    return Graft(trunk, hooks, seats, swaps)


def _read(trunk: Trunk, call: Call, any_start: bool) -> tuple[Call, Reading]:
    """How a layer is to be read. Projections, which cost less to turn, come before norms that do nothing.

    Where something is added in between, such as a bias, those are the right place.
    """
    with at_rest(call.layer.attention):
        direct = without_idle_norms(call)
        if direct is not None:
            try:
                return direct, read(direct.layer, direct, _readings(trunk, direct), any_start=any_start)
            except ConfigurationError:
                pass
        return call, read(call.layer, call, _readings(trunk, call), any_start=any_start)


def _readings(trunk: Trunk, call: Call) -> list[Reading]:
    """How a layer may have to be read, with what is to be left of its own RoPE's table."""
    found = []
    for reading in trunk.readings(call.layer, call):
        table = call.args[reading.table] if isinstance(reading.table, int) else call.kwargs.get(reading.table or "")
        exact = reading.still == "origin" and table is not None and not scales(table)
        found.append(replace(reading, still="identity") if exact else reading)
    return found


def _built(
    layer: Layer, name: str, settings: dict[str, Any], reading: Reading, num_axes: int
) -> tuple[Encoding, Tensor | None]:
    """The encoding of one layer, in its mode, and the order of features in which it turns them."""
    try:
        built, order = _build(layer, name, settings, reading, num_axes)
    except ConfigurationError as error:
        raise ConfigurationError(f"{layer.name}: {error}") from error
    return built.train(layer.attention.training), order


def _build(
    layer: Layer, name: str, settings: dict[str, Any], reading: Reading, num_axes: int
) -> tuple[Encoding, Tensor | None]:
    learned = issubclass(ENCODINGS.get(name, Encoding), LearnedEncoding)
    if learned:
        settings.setdefault("init", "identity" if reading.frequencies is None else "rope")
    from_host = learned and settings["init"] == "rope" and reading.frequencies is not None
    for given in ("base", "max_frequency"):
        if from_host and given in settings:
            raise ConfigurationError(f"{given}= has no use here: init='rope' starts from the RoPE that the model has.")
    weight = layer.weight
    built = encoding(
        name,
        num_heads=layer.num_heads,
        head_dim=layer.head_dim,
        num_axes=num_axes,
        device=weight.device,
        dtype=torch.float64 if weight.dtype == torch.float64 else torch.float32,
        **(settings | {"init": "identity"} if from_host else settings),
    )
    assert isinstance(built, Encoding)
    return built, _start_from(built, reading) if from_host else reading.order


def _start_from(built: Encoding, reading: Reading) -> Tensor | None:
    """Sets `built` to the RoPE of the host. Returns the order of features in which its family holds that."""
    assert isinstance(built, LearnedEncoding) and reading.frequencies is not None
    frequencies = reading.frequencies.detach().double()
    shape = (built.num_axes, built.num_heads, built.num_blocks, built.block_size // 2)
    try:
        built.set_spectrum(None, frequencies.expand(-1, built.num_heads, -1).reshape(shape))
        return reading.order
    except ConfigurationError:
        planes = one_axis_a_block(frequencies, built.block_size)
        if planes is None:
            raise
    built.set_spectrum(None, frequencies[..., planes].expand(-1, built.num_heads, -1).reshape(shape))
    features = (
        torch.arange(built.head_dim, device=planes.device) if reading.order is None else reading.order.to(planes.device)
    )
    return features.view(-1, 2)[planes].flatten()
