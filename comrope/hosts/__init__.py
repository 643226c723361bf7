"""Encodings in models that people already have: attach, detach, fold.

What is particular to a library is in a module of its name, imported once the library is: a model of it cannot exist before.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from comrope.encodings import ENCODINGS, Encoding, LearnedEncoding, encoding
from comrope.encodings.ape import AbsoluteEncoding
from comrope.errors import ConfigurationError
from comrope.hosts._surgery import (
    Attachment,
    Graft,
    Host,
    Rotary,
    Site,
    Swap,
    Tokens,
    Trunk,
    find_trunks,
    one_axis_a_block,
)
from comrope.hosts.fold import fold as fold

LIBRARIES = ("timm", "transformers")


def attach(
    model: nn.Module,
    name: str,
    *,
    block_size: int | None = None,
    init: str | None = None,
    layers: Sequence[int | str] | None = None,
    keep_ape: bool = True,
    prefix: str = "middle",
    **settings,
) -> nn.Module:
    """Gives the attention layers of a timm or transformers model an encoding, in place.

    Positions come from each input: (row, column) of every patch for images of any size, `position_ids` for text. They are
    relative, on [0, 1], as `comrope.positions.grid` makes them; in a model that has a RoPE, which is replaced, they are in
    the units of that RoPE.

    Args:
        model: a model of a supported class, or a module that contains some.
        name: of the encoding: any of `comrope.encoding` but `ape`, which adds to tokens.
        block_size: of the encoding, its own default if None.
        init: "identity" starts from zero angles, "rope" from the model's own RoPE (vanilla RoPE where it has none), "normal"
            from random angles. None leaves the model's outputs as they are: "rope" where it has one, else "identity".
        layers: which attention layers, by index or by name in the model; all if None.
        keep_ape: whether the model keeps the absolute position embedding that it has.
        prefix: where class and register tokens sit, in a model without a RoPE: in the "middle" of the patches, or at the
            "first" patch as in timm's own rotary models, which is what `export_timm` can write.
        settings: further settings of the encoding, such as std=0.1.
    Returns:
        The model. Weights and their names are as before; each attention layer has one more submodule, `encoding`.
    Raises:
        ConfigurationError: an unknown architecture, a second attach, a compiled model, settings that do not fit (the layer
            is named). The model is untouched then.
    """
    _check_attachable(model, name)
    arguments = {"block_size": block_size, "init": init, **settings}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    grafts = []
    for trunk, whole in _trunks(model, layers):
        tokens = Tokens()
        swaps = trunk.host.surroundings(trunk.module, tokens, keep_ape=keep_ape, prefix=prefix, whole=whole)
        swaps += [_swap(site, name, dict(arguments), tokens) for site in trunk.sites]
        grafts.append(Graft(trunk, swaps))
    recorded = {
        "name": name,
        "layers": None if layers is None else list(layers),
        "keep_ape": keep_ape,
        "prefix": prefix,
    }
    attachment = Attachment(recorded | arguments, grafts)
    attachment.apply()
    vars(model)["_comrope"] = attachment
    return model


def detach(model: nn.Module) -> nn.Module:
    """Undoes `attach`: classes, attributes, names and outputs are those of before; what was trained stays trained.

    Raises:
        ConfigurationError: nothing is attached, or it has been folded into the weights.
    """
    attachment = Attachment.of(model)
    if attachment.folded:
        raise ConfigurationError(
            f"The encoding of this {type(model).__name__} is folded into its weights and cannot be taken out: detach before "
            "folding, or detach a copy."
        )
    attachment.undo()
    del model._comrope
    return model


def export_timm(model: nn.Module) -> nn.Module:
    """A stock timm model with the weights and positions of an attached one, folded; the attached one stays as it is.

    The result is made by `timm.create_model`, in float32, frequencies included, and has the same logits, to that rounding, at
    the model's own image size. Save it with `timm.models.save_for_hf(exported, folder, safe_serialization=True)`, load it with
    `timm.create_model(f"local-dir:{folder}", pretrained=True)`. Its positions are patch indices: at another image size they go
    on counting, where relative positions would be rescaled. Dropout and stochastic depth are not carried over.

    Args:
        model: a `VisionTransformer` of timm with an encoding, or an `Eva` made by `timm.create_model` with one.
    Raises:
        NoSpectrumError, ConfigurationError: what cannot be folded; what an Eva cannot express. An Eva leaves class and register
            tokens unrotated and counts patches from 0, so that these tokens sit at the first patch: a model with such tokens
            must have been attached with prefix="first", or have a RoPE with index positions itself.
    """
    from comrope.hosts.timm_export import to_eva

    return to_eva(model)


def angle_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that belong to encodings, by their name in the model."""
    owners = [(n, m) for n, m in model.named_modules() if isinstance(m, (Encoding, AbsoluteEncoding))]
    return {f"{n}.{p}" if n else p: parameter for n, m in owners for p, parameter in m.named_parameters()}


def param_groups(
    model: nn.Module, *, lr: float | None = None, weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """Groups for an optimizer of torch: weights, then what does not decay, then angles.

    Args:
        model: any model with encodings in it.
        lr: learning rate of the angles; the optimizer's if None.
        weight_decay: of the weights; the optimizer's if None. Biases, norms, angles and what the model's own
            `no_weight_decay()` names have none: decay would pull angles towards no positions at all.
    Returns:
        One to three groups, of the parameters that require a gradient. `torch.optim.AdamW(param_groups(model, lr=1e-2), 1e-3)`.
    """
    angles = set(angle_parameters(model))
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # pyright: ignore
    groups: dict[str, list[Tensor]] = {"weights": [], "no decay": [], "angles": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name in exempt
            groups["angles" if name in angles else "no decay" if plain else "weights"].append(parameter)
    options: dict[str, dict[str, Any]] = {
        "weights": {} if weight_decay is None else {"weight_decay": weight_decay},
        "no decay": {"weight_decay": 0.0},
        "angles": {"weight_decay": 0.0} | ({} if lr is None else {"lr": lr}),
    }
    return [{"params": params, **options[kind]} for kind, params in groups.items() if params]


def _hosts() -> Iterator[Host]:
    for library in LIBRARIES:
        if library in sys.modules:
            yield importlib.import_module(f"comrope.hosts.{library}").HOST


def _check_attachable(model: nn.Module, name: str) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"model: got {type(model).__name__}, expected a torch module.")
    if isinstance(name, str) and issubclass(ENCODINGS.get(name, Encoding), AbsoluteEncoding):
        raise ConfigurationError("'ape' adds to tokens and turns no queries and keys: attach a rotary encoding.")
    if any(isinstance(module, Rotary) for module in model.modules()):
        raise ConfigurationError(
            f"{type(model).__name__} has an encoding attached already: comrope.detach it first, or attach to a fresh model."
        )
    if any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules()):
        raise ConfigurationError(
            f"{type(model).__name__} is compiled, and would go on running what it was compiled from: attach first, then "
            "compile."
        )


def _trunks(model: nn.Module, layers: Sequence[int | str] | None) -> list[tuple[Trunk, bool]]:
    """The trunks of the model with the sites that `layers` names, and whether these are all of the trunk's."""
    hosts = list(_hosts())
    found = find_trunks(model, hosts)
    count = sum(len(trunk.sites) for trunk in found)
    if not count:
        known = [kind.__name__ for host in hosts for kind in host.kinds]
        raise ConfigurationError(
            f"{type(model).__name__} is no model that comrope knows, nor contains one. Supported, subclasses not included: "
            f"{', '.join(known) or 'models of timm and transformers'}. In another, call a comrope.encoding in its attention."
        )
    names = [site.name for trunk in found for site in trunk.sites]
    chosen = range(count) if layers is None else _indices(layers, names)
    picked, start = [], 0
    for trunk in found:
        sites = tuple(site for i, site in enumerate(trunk.sites, start) if i in chosen)
        start += len(trunk.sites)
        if sites:
            picked.append((replace(trunk, sites=sites), len(sites) == len(trunk.sites)))
    return picked


def _indices(layers: Sequence[int | str], names: list[str]) -> set[int]:
    count = len(names)
    known = {i: i % count for i in range(-count, count)} | {name: i for i, name in enumerate(names)}
    good = isinstance(layers, Sequence) and all(type(i) in (int, str) and i in known for i in layers)
    chosen = {known[i] for i in layers} if good else set()
    if isinstance(layers, str) or not chosen or len(chosen) != len(layers):
        raise ConfigurationError(
            f"layers={layers!r}: expected a list of different indices or names, at least one, of the model's {count} attention "
            f"layers (0 to {count - 1}: {names[0]!r} to {names[-1]!r}), or None for all."
        )
    return chosen


def _swap(site: Site, name: str, settings: dict[str, Any], tokens: Tokens) -> Swap:
    try:
        built, order = _build(site, name, settings)
    except ConfigurationError as error:
        raise ConfigurationError(f"{site.name}: {error}") from error
    built.train(site.attention.training)
    order = None if order is None else nn.Buffer(order.to(site.query_weight.device), persistent=False)
    return Swap(site.attention, site.into, {"encoding": built, "tokens": tokens, "order": order})


def _build(site: Site, name: str, settings: dict[str, Any]) -> tuple[Encoding, Tensor | None]:
    """The encoding of one layer, and the order of features in which it turns them."""
    learned = issubclass(ENCODINGS.get(name, Encoding), LearnedEncoding)
    if learned:
        settings.setdefault("init", "identity" if site.frequencies is None else "rope")
    from_host = learned and settings["init"] == "rope" and site.frequencies is not None
    for given in ("base", "max_frequency"):
        if from_host and given in settings:
            raise ConfigurationError(f"{given}= has no use here: init='rope' starts from the RoPE that the model has.")
    dtype = torch.float64 if site.query_weight.dtype == torch.float64 else torch.float32
    built = encoding(
        name,
        num_heads=site.num_heads,
        head_dim=site.head_dim,
        num_axes=site.num_axes,
        device=site.query_weight.device,
        dtype=dtype,
        **(settings | {"init": "identity"} if from_host else settings),
    )
    assert isinstance(built, Encoding)
    return built, _start_from(built, site) if from_host else site.order


def _start_from(built: Encoding, site: Site) -> Tensor | None:
    """Sets `built` to the RoPE of the host. Returns the order of features in which its family holds that."""
    assert isinstance(built, LearnedEncoding) and site.frequencies is not None
    frequencies = site.frequencies.detach().double()
    shape = (built.num_axes, built.num_heads, built.num_blocks, built.block_size // 2)
    try:
        built.set_spectrum(None, frequencies.expand(-1, built.num_heads, -1).reshape(shape))
        return site.order
    except ConfigurationError:
        planes = one_axis_a_block(frequencies, built.block_size)
        if planes is None:
            raise
    built.set_spectrum(None, frequencies[..., planes].expand(-1, built.num_heads, -1).reshape(shape))
    features = (
        torch.arange(built.head_dim, device=planes.device) if site.order is None else site.order.to(planes.device)
    )
    return features.view(-1, 2)[planes].flatten()
