"""All that a page shows of one model: numbers of each layer and head, ready for JSON."""

import base64
import copy
import ctypes
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from comrope.checks import commutators, offset_drifts
from comrope.encodings import Encoding, FixedFrequencies, FixedMaps, FixedSpectrum, TokenEncoding, name_of
from comrope.encodings.ape import AbsoluteEncoding
from comrope.errors import ConfigurationError, InputError, NoSpectrumError
from comrope.explorer import contents, geometry, kernels, pictures
from comrope.explorer.geometry import Geometry
from comrope.hosts._attached_layer import AttachedLayer
from comrope.hosts._attachment import AttachedBackbone, Attachment
from comrope.hosts._custom_model import CustomBackbone
from comrope.hosts._proof import deterministic_eval

MOST_HEADS = 4096
"""A page of more heads than this would be too large to look at."""
NUM_TOKENS = 32
"""Tokens at random patches with which the drift of scores is measured."""


@dataclass(frozen=True)
class _Layer:
    """One encoding, and the attention layer that it is attached to, if it is."""

    name: str
    encoding: Encoding
    geometry: Geometry
    attached: AttachedLayer | None = None
    tokens: contents.Tokens | None = None
    positions: Tensor | None = None
    """The positions of the tokens, (L, N)."""

    @property
    def num_heads(self) -> int:
        """The number of query heads."""
        return self.encoding.num_heads if self.attached is None else self.attached.num_heads["q"]


@torch.no_grad()
def explore(model: nn.Module, *, name: str | None = None, grid: Any = None, image: Any = None) -> dict[str, Any]:
    """Returns the numbers of a model or encoding, as the script of the page reads them.

    Args:
        model: an encoding, or a model with encodings attached.
        name: what to call it; its own name if None.
        grid: patches along each axis, if the model does not tell, or to look at another image size.
        image: an image file, or a tensor as the model takes it, whose tokens to show.
    Raises:
        ConfigurationError: see `comrope.show`.
    """
    _check_model(model)
    layers, pixels = _layers(model, grid, image)
    if sum(layer.num_heads for layer in layers) > MOST_HEADS:
        raise ConfigurationError(f"{type(model).__name__} has more than {MOST_HEADS} heads: pass a part of it.")
    geometries = {layer.geometry for layer in layers}
    if len(geometries) > 1:
        raise ConfigurationError(
            f"{type(model).__name__} has attention layers of {len(geometries)} different grids: pass the part of it to look "
            "at, such as model.vision_model."
        )
    shape = layers[0].geometry
    levels = contents.LEVELS[0]
    if pixels is not None:
        levels = _fitting_levels(layers)
    return {
        "name": _title(model) if name is None else str(name),
        "axes": shape.axes,
        "grid": shape.grid,
        "layers": [_layer(layer, levels) for layer in layers],
        "image": None if pixels is None else _image(layers[0], pixels),
    }


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"model: got {type(model).__name__}, expected a model with an encoding, or an encoding."
        )
    if isinstance(model, AbsoluteEncoding):
        raise ConfigurationError(
            "'ape' adds to tokens and rotates nothing, so that it has no kernel: give a rotary encoding."
        )
    if not any(isinstance(module, Encoding) for module in model.modules()):
        raise ConfigurationError(f"{type(model).__name__} holds no rotary encoding: comrope.attach one first.")
    of_tokens = next((m for m in model.modules() if isinstance(m, TokenEncoding)), None)
    if of_tokens is not None:
        raise ConfigurationError(
            f"{type(of_tokens).__name__} rotates each token by what the tokens say, so that it has no kernel to show."
        )
    if any(m.device.type == "meta" for m in model.modules() if isinstance(m, Encoding)):
        raise InputError(
            f"{type(model).__name__} is on the meta device, where it has no values: load or draw its weights first."
        )


def _title(model: nn.Module) -> str:
    if isinstance(model, Encoding):
        return _kind(model)
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    return config.get("architecture") or type(model).__name__


def _layers(model: nn.Module, grid: Any, image: Any) -> tuple[list[_Layer], Tensor | None]:
    """Returns the layers with their tokens, if there is an image, and its pixels."""
    attachments = [
        m.__dict__["_comrope"] for m in model.modules() if isinstance(m.__dict__.get("_comrope"), Attachment)
    ]
    backbones = [attached for attachment in attachments for attached in attachment.backbones]
    if not backbones:
        if image is not None:
            raise ConfigurationError(
                f"image was given with {type(model).__name__}, which has no queries and keys to show: give a model that an "
                "encoding was attached to, or leave image out."
            )
        found = [(name, m) for name, m in model.named_modules() if isinstance(m, Encoding)]
        return [_Layer(name, m, geometry.of_encoding(m, grid)) for name, m in found], None
    layers: list[_Layer] = []
    pixels = None
    for attached in backbones:
        shape = geometry.of_backbone(attached, grid)
        tokens, positions = {}, None
        if image is not None:
            tokens, positions, pixels, shape = _tokens(model, attached, image, shape)
        for layer in attached.layers:
            attention: Any = layer.attention
            layers.append(_Layer(layer.name, attention.encoding, shape, layer, tokens.get(layer.name), positions))
    return layers, pixels


def _tokens(
    model: nn.Module, attached: AttachedBackbone, image: Any, shape: Geometry
) -> tuple[dict[str, contents.Tokens], Tensor, Tensor, Geometry]:
    """Returns the tokens of an image, their positions, its pixels, and the patches that it has."""
    backbone: Any = attached.backbone
    if len(shape.grid) != 2:
        raise ConfigurationError(
            f"image was given with a model of {len(shape.grid)}-dimensional positions: expected one of images."
        )
    custom = isinstance(backbone, CustomBackbone)
    with deterministic_eval(backbone.module):  # an example is made of random numbers
        example = None if custom else backbone.example()
    arguments, pixels = pictures.prepared(image, example, model)
    called = model if custom else backbone.module
    found, positions = contents.tokens(
        attached, lambda: called(**arguments) if isinstance(arguments, dict) else called(arguments)
    )
    patches, before = shape.positions, len(positions) - len(shape.positions)
    if before < 0 or not torch.allclose(positions[before:].double().cpu(), patches, atol=1e-4):
        raise ConfigurationError(
            f"the image of {tuple(pixels.shape[:2])} pixels gives {len(positions)} tokens, which are not the patches of a grid "
            f"of {' × '.join(map(str, shape.grid))} with others before them: give the grid that it has, grid=(rows, columns)."
        )
    return found, positions, pixels, shape


def _fitting_levels(layers: Sequence[_Layer]) -> int:
    """Returns how finely queries and keys are rounded, so that the page does not become too large."""
    kernels_of_places = sum(
        4 * layer.num_heads * len(kernels.displacements(layer.geometry.grid)) * torch.int16.itemsize
        for layer in layers
        if layer.tokens is not None and layer.tokens.rotated
    )
    size = 0.0
    for levels in contents.LEVELS:
        size = kernels_of_places + sum(
            len(zlib.compress(_bytes(contents.Rounded.of(part, levels).numbers), 6))
            for layer in layers
            if layer.tokens is not None
            for part in (layer.tokens.queries, layer.tokens.keys)
        )
        if size <= contents.MOST_BYTES:
            return levels
    raise ConfigurationError(
        f"the queries and keys of {len(layers)} layers would make a page of {size / 1e6:.0f} MB: give a smaller image, or "
        "leave image out."
    )


def _layer(layer: _Layer, levels: int) -> dict[str, Any]:
    """Returns what the page shows of one layer."""
    encoding, shape = copy.deepcopy(layer.encoding).double(), layer.geometry
    group = layer.num_heads // encoding.num_heads
    commutator, drift = _laws(encoding, shape)
    found: dict[str, Any] = {
        "name": layer.name,
        "encoding": _kind(encoding),
        "heads": layer.num_heads,
        "headDim": encoding.head_dim,
        "blockSize": encoding.block_size,
        "commutator": commutator.repeat_interleave(group).tolist(),
        "drift": drift.repeat_interleave(group).tolist(),
        "why": {},
    }
    try:
        frequencies = encoding.folded().frequencies
    except NoSpectrumError:
        found |= _by_place(layer, encoding)
        frequencies = None
    else:
        step = torch.tensor(shape.step, dtype=torch.float64)
        planes = (frequencies.flatten(2).permute(1, 2, 0).cpu() * step).repeat_interleave(group, dim=0)  # (H·g, P, N)
        found |= _by_plane(layer, planes)
        frequencies = planes
    if layer.tokens is not None:
        found["tokens"] = _shown_tokens(layer, frequencies, levels)
    return found


def _kind(encoding: Encoding) -> str:
    """Returns the name of an encoding; of constants, what they are."""
    if type(encoding) in (FixedSpectrum, FixedMaps):
        return "frozen"
    if type(encoding) is FixedFrequencies:
        return "folded to RoPE"
    return name_of(type(encoding)) or type(encoding).__name__


def _laws(encoding: Encoding, shape: Geometry) -> tuple[Tensor, Tensor]:
    """Returns the commutators and the drift of scores of each head, (H,), when all patches move by half of the grid.

    The drift is the largest change of a score of unit queries and keys at random patches, in float64.
    """
    generator = torch.Generator().manual_seed(0)
    places = shape.positions[torch.randperm(len(shape.positions), generator=generator)[:NUM_TOKENS]]
    draws = torch.randn(
        2, 1, encoding.num_heads, len(places), encoding.head_dim, generator=generator, dtype=torch.float64
    )
    q, k = nn.functional.normalize(draws, dim=-1).to(encoding.device)
    offset = torch.tensor([[n * s / 2 for n, s in zip(shape.grid, shape.step, strict=True)]], dtype=torch.float64)
    drift = offset_drifts(encoding, q, k, places.to(encoding.device), offset.to(encoding.device))
    return commutators(encoding.angle_matrices()).cpu(), drift.cpu()


def _by_plane(layer: _Layer, planes: Tensor) -> dict[str, Any]:
    """Returns frequencies, weights and reach of a layer whose angles commute; planes (H, P, N) in radians per patch."""
    grid, speed, why = layer.geometry.grid, kernels.speeds(planes), {}
    weights: dict[str, Tensor] = {"uniform": torch.full(planes.shape[:2], 1 / planes.shape[1], dtype=torch.float64)}
    known = contents.amplitudes(layer.attached) if layer.attached is not None else "an encoding alone has no weights"
    if isinstance(known, Tensor):
        weights["weights"] = known / known.sum(1, keepdim=True).clamp(min=1e-300)
    else:
        why["weights"] = known
    if layer.tokens is not None:
        before = len(layer.tokens.queries) - len(layer.geometry.positions)
        weights["image"] = contents.mean_product(layer.tokens.queries[before:], layer.tokens.keys[before:])
    return {
        "commutes": True,
        "frequencies": packed(planes),
        "weights": {name: packed(torch.view_as_real(c.to(torch.complex128))) for name, c in weights.items()},
        "reach": {name: kernels.reach(kernels.kernel(planes, c, grid)) for name, c in weights.items()},
        "dead": (speed < kernels.DEAD).sum(1).tolist(),
        "alias": (speed > kernels.ALIAS).sum(1).tolist(),
        "why": why,
    }


def _by_place(layer: _Layer, encoding: Encoding) -> dict[str, Any]:
    """Returns the kernels and reach of a layer whose angles do not commute: means and deviations over all places."""
    grid, group = layer.geometry.grid, layer.num_heads // encoding.num_heads
    matrices = encoding.rotation_matrices(layer.geometry.positions.to(encoding.device)).cpu()  # (L, H, m, b, b)
    flat = matrices.flatten(2) / encoding.head_dim**0.5
    found = {"uniform": [each.repeat_interleave(group, dim=0) for each in kernels.kernel_by_place(flat, flat, grid)]}
    if layer.tokens is not None:
        before = len(layer.tokens.queries) - len(matrices)
        rotation = matrices.repeat_interleave(group, dim=1)
        q, k = layer.tokens.queries[before:], layer.tokens.keys[before:].repeat_interleave(group, dim=1)

        def placed(x: Tensor) -> Tensor:
            """Returns R(x) times the mean content, which is rotated at each patch."""
            blocks = x.unflatten(-1, matrices.shape[2:4])  # (L, H, m, b)
            content = torch.einsum("lhmcd,lhmc->hmd", rotation, blocks) / len(blocks)
            return torch.einsum("lhmcd,hmd->lhmc", rotation, content).flatten(2)

        found["image"] = list(kernels.kernel_by_place(placed(q), placed(k), grid))
    return {
        "commutes": False,
        "kernels": {
            name: {"mean": _rounded(mean), "spread": _rounded(spread)} for name, (mean, spread) in found.items()
        },
        "reach": {name: kernels.reach(mean) for name, (mean, _) in found.items()},
        "why": {"weights": "angles that do not commute have no planes"},
    }


def _shown_tokens(layer: _Layer, planes: Tensor | None, levels: int) -> dict[str, Any]:
    """Returns the rounded queries and keys of a layer, and the largest change of an attention weight by the rounding."""
    assert layer.tokens is not None and layer.positions is not None
    exact, places = layer.tokens, layer.geometry.in_patches(layer.positions)
    queries, keys = (contents.Rounded.of(part, levels) for part in (exact.queries, exact.keys))
    change = 0.0
    for head in range(layer.num_heads):
        key = head * exact.keys.shape[1] // layer.num_heads
        own = None if planes is None else planes[head : head + 1]
        before, after = (
            contents.attention(q[:, head : head + 1], k[:, key : key + 1], own, places)
            for q, k in ((exact.queries, exact.keys), (queries.features(), keys.features()))
        )
        change = max(change, (before - after).abs().max().item())
    parts = {"queries": queries, "keys": keys}
    return {
        name: {"numbers": packed(part.numbers), "mean": packed(part.mean), "step": packed(part.step)}
        for name, part in parts.items()
    } | {"rounding": change, "keyHeads": exact.keys.shape[1]}


def _image(layer: _Layer, pixels: Tensor) -> dict[str, Any]:
    assert layer.positions is not None
    return {
        "url": pictures.data_url(pixels),
        "size": list(pixels.shape[:2]),
        "places": packed(layer.geometry.in_patches(layer.positions)),
        "first": [f / s for f, s in zip(layer.geometry.first, layer.geometry.step, strict=True)],
        "prefix": len(layer.positions) - len(layer.geometry.positions),
    }


def _rounded(values: Tensor) -> dict[str, Any]:
    """Returns kernels packed as 16-bit multiples of a step."""
    step = max(values.abs().max().item(), 1e-30) / torch.iinfo(torch.int16).max
    return packed((values / step).round().to(torch.int16)) | {"step": step}


def packed(tensor: Tensor) -> dict[str, Any]:
    """Returns numbers compressed for the page: small integers as they are, others as float32, little-endian."""
    values = tensor.detach().cpu().contiguous()
    values = values.float() if values.is_floating_point() else values
    data = zlib.compress(_bytes(values), 9)
    return {
        "kind": str(values.dtype).removeprefix("torch."),
        "shape": list(values.shape),
        "data": base64.b64encode(data).decode(),
    }


def _bytes(values: Tensor) -> bytes:
    """Returns the numbers of a contiguous tensor as they lie in memory; `Tensor.numpy` would need numpy."""
    values = values.contiguous()
    return ctypes.string_at(values.data_ptr(), values.numel() * values.element_size())
