"""`fold`: multiplies the basis into the projections, which leaves plain RoPE with frequencies for each head.

⟨Rot(ωᵀx)A_q q, Rot(ωᵀy)A_k k⟩ with q = W_q t and k = W_k t is the same as with A_q and A_k multiplied into the rows of W_q and
W_k. If an encoding has a basis Q, A_q = A_k = Qᵀ.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from comrope.encodings.fixed import FixedEncoding, FixedFrequencies
from comrope.errors import ConfigurationError, NoSpectrumError
from comrope.hosts._attached_layer import AttachedLayer, mapped_rows
from comrope.hosts._attachment import AttachedBackbone, Attachment, Model
from comrope.hosts._attention_layer import projection_rows
from comrope.hosts._backbone import ModuleOverride
from comrope.hosts._proof import check_same_outputs, example_outputs
from comrope.hosts._saved_settings import write_to_config
from comrope.scaling import Scaling


@dataclass(frozen=True)
class _FoldedLayer:
    """What folding makes of one attention layer, computed before anything changes."""

    frequencies: Tensor
    """ω (N, H, D/2), float64, before any scaling."""
    scaling: Scaling | None
    """How `rescale` scales them, and the scores."""
    weights: list[tuple[Tensor, Tensor]]
    """Views of the weights of the projections, and their new values."""
    order: Tensor | None
    """The feature order that is still needed at run time."""


@torch.no_grad()
def fold(model: Model) -> Model:
    """Turns an attached encoding into plain RoPE, in place: the logits stay as they are, to rounding.

    The basis is multiplied into the weights of queries and keys, in float64, and the product is rounded once to their dtype.
    Afterwards `encoding` is `FixedFrequencies`, in float64 whatever the model is cast to: scores in float32 have errors below
    1e-6 of |q||k|, for tokens a million positions apart too.

    If the host's own RoPE has frequencies for each head (timm's Eva with rope_type="mixed"), they are written into it, scaled
    if `rescale` scaled them, in its own dtype, and nothing of comrope remains in the model. A float32 frequency changes a phase
    by up to 6e-8 of itself: by 6e-6 radians where it is 100, and by 0.06 where it is a million.

    Args:
        model: one that `attach` has returned.
    Returns:
        The model. One that is already folded stays as it is.
    Raises:
        NoSpectrumError: the encoding is neither a `SpectralEncoding` nor a `MappedEncoding`. LieRE's angle matrices do not
            commute, so that there is no basis to fold.
        ConfigurationError: nothing is attached; norms between the basis and the weights do not commute with the basis;
            projections are wrapped, by an adapter for example. The model is unchanged in any case.
    Examples:
        >>> import timm, torch, comrope
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=1).eval()
        >>> images = torch.randn(1, 3, 224, 224)
        >>> trained = comrope.attach(model, "comrope-ld", init="normal")(images)
        >>> torch.allclose(comrope.fold(model)(images), trained, atol=1e-4)
        True
    """
    attachment = Attachment.of(model)
    if attachment.folded:
        return model
    backbones = attachment.backbones
    folded = {layer.attention: _fold_layer(layer) for attached in backbones for layer in attached.layers}
    before, originals = [example_outputs(attached.backbone) for attached in backbones], {}
    original_overrides = [[_as_it_is(override) for override in attached.overrides] for attached in backbones]
    for layer in folded.values():
        for view, value in layer.weights:
            originals[id(view)] = view, view.clone()
            view.copy_(value)
    for attached in backbones:
        attached.replace_overrides(
            [
                _with_plain_rope(override, folded[override.module]) if "encoding" in override.attributes else override
                for override in attached.overrides
            ]
        )
    try:
        check_same_outputs(before, [example_outputs(attached.backbone) for attached in backbones], "folded")
    except BaseException:
        for view, value in originals.values():
            view.copy_(value)
        for attached, overrides in zip(backbones, original_overrides, strict=True):
            attached.replace_overrides(overrides)
        raise
    keep_ape = attachment.settings["keep_ape"]
    attachment.backbones = [each for each in backbones if not (keep_ape and _restore_host_rope(each, folded))]
    attachment.folded = True
    write_to_config(model)
    if not attachment.backbones:
        del model._comrope
    return model


def _restore_host_rope(attached: AttachedBackbone, folded: dict[nn.Module, _FoldedLayer]) -> bool:
    """Writes the frequencies into the backbone's own RoPE and detaches it; returns False if that RoPE cannot hold them."""
    own = {layer.attention: folded[layer.attention] for layer in attached.layers}
    if any(layer.order is not None for layer in own.values()):
        return False
    encodings: list[Any] = [layer.attention.encoding for layer in attached.layers]
    spectra = {a: encoding.spectrum().frequencies.flatten(2) for a, encoding in zip(own, encodings, strict=True)}
    gains = [(layer, encoding.gain) for layer, encoding in zip(attached.layers, encodings, strict=True)]
    if any(gain != 1 and not _has_queries_in_weights(layer) for layer, gain in gains):
        return False
    attached.undo()
    if attached.backbone.restore_rope(spectra):
        for layer, gain in gains:
            scale_queries(layer, gain)
        return True
    attached.apply()
    return False


def _fold_layer(layer: AttachedLayer) -> _FoldedLayer:
    attention: Any = layer.attention
    try:
        encoding = attention.encoding
        query_map, key_map, frequencies = encoding.folded()
        scaling = None
        if isinstance(encoding, FixedEncoding) and encoding.scaling is not None:
            query_map, frequencies, scaling = query_map / encoding.gain, encoding.frequencies, encoding.scaling
        eye = torch.eye(query_map.shape[-1]).to(query_map).expand_as(query_map)
        maps_nothing = torch.equal(query_map, eye) and torch.equal(key_map, eye)
        orthogonal = all((each @ each.mT - eye).abs().max() < 1e-9 for each in (query_map, key_map))
        obstacles = [norm for norm in layer.norms() if not (orthogonal and _commutes(norm))]
        obstacles = [norm for norm in obstacles if not isinstance(norm, nn.Identity)]
        if obstacles and maps_nothing:
            return _FoldedLayer(frequencies.flatten(2), scaling, [], attention.order)
        if obstacles:
            raise ConfigurationError(
                f"queries and keys go through {type(obstacles[0]).__name__}, which does not commute with "
                f"{'the basis, for it has weights or a mean of its own' if orthogonal else 'maps that are no rotations'}: they "
                "cannot be folded into the projections. comrope.freeze makes constants of the angles and keeps the basis at "
                "run time; rope-mixed has no basis."
            )
        if not layer.projections:
            raise ConfigurationError(
                "its queries and keys were caught where their scores are made, and comrope does not know the weights they come "
                "from: comrope.freeze makes constants of the angles."
            )
        maps = {"q": query_map, "k": key_map}
        weights = [
            (v, mapped_rows(v.double(), len(eye), maps[name], attention.order)) for name, v in _weight_views(layer)
        ]
        return _FoldedLayer(frequencies.flatten(2), scaling, weights, None)
    except (ConfigurationError, NoSpectrumError) as error:
        raise type(error)(f"{layer.name}: {error}") from error


def _has_queries_in_weights(layer: AttachedLayer) -> bool:
    """Returns whether a factor of the queries can be multiplied into the weights: they are known, and no norm follows."""
    return bool(layer.projections) and all(isinstance(norm, nn.Identity) for norm in layer.norms())


def scale_queries(layer: AttachedLayer, gain: float) -> None:
    """Multiplies the weights and biases of the queries by `gain`.

    Raises:
        ConfigurationError: a norm would undo it, or comrope does not know the weights.
    """
    if gain == 1:
        return
    if not _has_queries_in_weights(layer):
        raise ConfigurationError(
            f"{layer.name}: scores are {gain:.3g} times as large as in training, which the weights of the queries cannot hold: "
            "a norm follows, or they are not known. comrope.rescale with gain=1 leaves them as they were."
        )
    for name, view in _weight_views(layer):
        if name == "q":
            view.mul_(gain)


def _as_it_is(override: ModuleOverride) -> ModuleOverride:
    """Returns the override of an attention layer with the encoding that it has now, which may be frozen or rescaled."""
    if "encoding" not in override.attributes:
        return override
    return replace(override, attributes={**override.attributes, "encoding": override.module.encoding})


def _weight_views(layer: AttachedLayer) -> list[tuple[str, Tensor]]:
    """Returns views of the weights and biases of queries ("q") and keys ("k") in the projections of a layer, and beside them.

    Weights are (…, heads that share a key head, D, C), biases (…, heads that share a key head, D, 1).
    """
    found: list[tuple[str, Tensor]] = []
    for module in layer.projections:
        names = "qk" if module.output == "qkv" else module.output
        for tensor in projection_rows(layer.attention.get_submodule(module.name)):
            rows = tensor if tensor.ndim == 2 else tensor.unsqueeze(1)
            found += zip(names, layer.split_rows(rows, module), strict=False)
    shape = (layer.num_heads["k"], -1, layer.head_dim, 1)
    biases = [(name, getattr(layer.attention, f"{name}_bias", None)) for name in "qk"]
    return found + [(name, bias.detach().view(shape)) for name, bias in biases if isinstance(bias, Tensor)]


def _commutes(norm: nn.Module) -> bool:
    """Returns whether norm(Qx) = Q norm(x) for every orthogonal Q."""
    if isinstance(norm, nn.Identity):
        return True
    is_rms = isinstance(norm, nn.RMSNorm) or type(norm).__name__ in ("RmsNorm", "RmsNormFp32")
    return is_rms and norm.weight is None


def _with_plain_rope(override: ModuleOverride, layer: _FoldedLayer) -> ModuleOverride:
    """Returns the override of an attention layer with plain RoPE as its encoding."""
    old = override.attributes["encoding"]
    size = {"num_heads": old.num_heads, "head_dim": old.head_dim, "num_axes": old.num_axes}
    plain = FixedFrequencies(**size, device=old.device)
    plain.frequencies.copy_(layer.frequencies.unsqueeze(-1))
    plain.set_scaling(layer.scaling)
    order = None if layer.order is None else nn.Buffer(layer.order, persistent=False)
    attributes = {**override.attributes, "encoding": plain.train(old.training), "order": order}
    return replace(override, attributes=attributes)
