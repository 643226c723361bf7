"""What the queries and keys of an attention layer carry in each plane: known from its weights, or from tokens of an image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from comrope.encodings import Encoding
from comrope.errors import ConfigurationError, NoSpectrumError
from comrope.hosts._attached_layer import AttachedLayer, mapped_rows
from comrope.hosts._attachment import AttachedBackbone
from comrope.hosts._attention_layer import projection_rows
from comrope.hosts._proof import deterministic_eval


def amplitudes(layer: AttachedLayer) -> Tensor | str:
    """Returns a_p = √(E|q_p|² E|k_p|²) of each query head and plane, (H·g, D/2), for white inputs: norms of rows of weights.

    With q_p = W_p t + b_p, two rows and t ~ N(0, I), E|q_p|² = ‖W_p‖² + ‖b_p‖². A string says why it is not known.
    """
    attention: Any = layer.attention
    try:
        folded = attention.encoding.folded()
    except NoSpectrumError:
        return "angles that do not commute have no planes"
    if any(not isinstance(norm, nn.Identity) for norm in layer.norms()):
        return "queries and keys are normalised after their projections, so that weights do not tell their size"
    if not layer.projections:
        return "the weights that its queries and keys come from are not known"
    squares: dict[str, Any] = {"q": 0.0, "k": 0.0}
    try:
        for name, rows in _rows(layer):
            matrices = folded.query_map if name == "q" else folded.key_map
            planes = mapped_rows(rows.double(), len(matrices), matrices, attention.order).flatten(0, 1)  # (heads, D, C)
            squares[name] = squares[name] + planes.unflatten(1, (-1, 2)).square().sum((2, 3))  # (heads, D/2)
    except ConfigurationError:
        return "its projections are wrapped, by an adapter for example"
    group = len(squares["q"]) // len(squares["k"])
    return (squares["q"] * squares["k"].repeat_interleave(group, dim=0)).sqrt().cpu()


def _rows(layer: AttachedLayer) -> Iterator[tuple[str, Tensor]]:
    """Yields the weights (…, heads, D, C) and biases (…, heads, D, 1) of queries ("q") and keys ("k")."""
    for module in layer.projections:
        names = "qk" if module.output == "qkv" else module.output
        for rows in projection_rows(layer.attention.get_submodule(module.name)):
            pieces = layer.split_rows(rows if rows.ndim == 2 else rows.unsqueeze(1), module)
            yield from zip(names, pieces, strict=False)
    for name in "qk":  # some attention layers have biases outside of their projections
        bias = getattr(layer.attention, f"{name}_bias", None)
        if isinstance(bias, Tensor):
            yield name, bias.view(1, -1, layer.head_dim, 1)


@dataclass(frozen=True)
class Tokens:
    """Queries and keys of one layer, without the rotation if angles commute, with it otherwise; the softmax's scale in q."""

    queries: Tensor
    """(L, H·g, D), float64."""
    keys: Tensor
    """(L, H, D), float64."""
    rotated: bool


def tokens(attached: AttachedBackbone, run: Any) -> tuple[dict[str, Tokens], Tensor]:
    """Returns the queries and keys of each layer in a forward pass, by its name, and the tokens' positions (L, N).

    Args:
        attached: the backbone with its encodings.
        run: a function that calls the model with one sample.
    Raises:
        ConfigurationError: a layer does not compute its scores by `scaled_dot_product_attention`, or with a mask.
    """
    running: list[AttachedLayer] = []
    recorded: dict[str, tuple[Tensor, Tensor]] = {}

    def record(q: Tensor, k: Tensor, options: Mapping[str, Any]) -> None:
        if not running:
            return
        layer = running[-1]
        if options.get("attn_mask") is not None or options.get("is_causal"):
            raise ConfigurationError(
                f"{layer.name} adds a mask or a bias to its scores, which a page does not show: leave image out."
            )
        scale = options.get("scale")
        recorded[layer.name] = q.double() * (q.shape[-1] ** -0.5 if scale is None else scale), k.double()

    handles = []
    for layer in attached.layers:
        handles.append(layer.attention.register_forward_pre_hook(lambda *_, layer=layer: running.append(layer)))
        handles.append(layer.attention.register_forward_hook(lambda *_: running.pop() and None))
    try:
        with deterministic_eval(attached.backbone.module), _RecordScores(record):
            run()
    finally:
        for handle in handles:
            handle.remove()
    missing = [layer.name for layer in attached.layers if layer.name not in recorded]
    if missing:
        raise ConfigurationError(
            f"{missing[0]} does not call scaled_dot_product_attention, by which its queries and keys are read: switch it on "
            "(timm: attention.fused_attn = True; transformers: model.set_attn_implementation('sdpa')), or leave image out."
        )
    positions = attached.backbone.position_context.latest().positions
    positions = positions if positions.ndim == 2 else positions[0]
    found = {layer.name: _unrotated(layer, *recorded[layer.name], positions) for layer in attached.layers}
    return found, positions


def _unrotated(layer: AttachedLayer, q: Tensor, k: Tensor, positions: Tensor) -> Tokens:
    """Returns the tokens of a layer, given what scores are made of: q (1, H·g, L, D) and k (1, H or H·g, L, D)."""
    attention: Any = layer.attention
    encoding: Encoding = attention.encoding
    if len(q) != 1 or q.shape[2] != len(positions) or k.shape[2] != len(positions):
        raise ConfigurationError(
            f"{layer.name} has queries {tuple(q.shape)} for {len(positions)} positions: expected one image, all of its tokens."
        )
    k = k[:, :: k.shape[1] // encoding.num_heads]  # some models repeat the key heads
    q, k = q[0].transpose(0, 1), k[0].transpose(0, 1)  # (L, heads, D)
    try:
        frequencies = encoding.folded().frequencies
    except NoSpectrumError:
        return Tokens(q.cpu(), k.cpu(), rotated=True)
    phases = torch.einsum("ln,nhp->lhp", positions.double(), frequencies.flatten(2))  # (L, H, D/2)
    back = torch.polar(torch.ones_like(phases), -phases)
    group = q.shape[1] // encoding.num_heads

    def rotate_back(x: Tensor, by: Tensor) -> Tensor:
        planes = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(planes * by).flatten(-2).cpu()

    return Tokens(rotate_back(q, back.repeat_interleave(group, dim=1)), rotate_back(k, back), rotated=False)


class _RecordScores(TorchFunctionMode):
    """Calls `record(query, key, other arguments)` for each call of `scaled_dot_product_attention`."""

    def __init__(self, record: Any):
        super().__init__()
        self.record = record

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            given = dict(zip(names, args, strict=False)) | dict(kwargs or {})
            self.record(given["query"], given["key"], given)
        return func(*args, **(kwargs or {}))


def mean_product(queries: Tensor, keys: Tensor) -> Tensor:
    """Returns the mean of q̄_p k_p over all pairs of tokens, (H·g, D/2), complex: of queries and keys (L, heads, D).

    The mean over pairs is the product of the means: κ(Δ) with these weights is the mean score of any query's content and any
    key's, Δ apart.
    """
    group = queries.shape[1] // keys.shape[1]
    q, k = (torch.view_as_complex(x.mean(0).unflatten(-1, (-1, 2)).contiguous()) for x in (queries, keys))
    return q.conj() * k.repeat_interleave(group, dim=0)


LEVELS = (2048, 32, 16, 8, 4)
"""Steps that one standard deviation of a query's or key's features is rounded to: as fine as the page has room for. Those up to
32 fit into 8 bits."""
MOST_BYTES = 3_000_000
"""Compressed queries and keys of all layers, with kernels that are no sums over planes, before base64."""


@dataclass(frozen=True)
class Rounded:
    """Features (L, H, D) as mean + step · number."""

    numbers: Tensor
    """(H, D, L), int8 or int16."""
    mean: Tensor
    """(H, D), float32."""
    step: Tensor
    """(H,), float32."""

    @classmethod
    def of(cls, features: Tensor, levels: int) -> "Rounded":
        centred = (features - features.mean(0)).permute(1, 2, 0)  # (H, D, L)
        size = centred.square().mean((1, 2)).sqrt() / levels
        dtype = torch.int8 if levels <= 32 else torch.int16
        step = torch.maximum(size, centred.abs().amax((1, 2)) / torch.iinfo(dtype).max).clamp(min=1e-30)
        numbers = (centred / step[:, None, None]).round().to(dtype)
        return cls(numbers, features.mean(0).float(), step.float())

    def features(self) -> Tensor:
        """Returns the rounded features, (L, H, D), float64."""
        return (self.mean.double().unsqueeze(-1) + self.step[:, None, None] * self.numbers.double()).permute(2, 0, 1)


def attention(queries: Tensor, keys: Tensor, frequencies: Tensor | None, places: Tensor) -> Tensor:
    """Returns attention softmax_j Σ_p Re(q̄_ip k_jp e^{i w_pᵀ(x_j − x_i)}), (H·g, L, L).

    Args:
        queries, keys: (L, heads, D), with the softmax's scale in the queries.
        frequencies: w, (H·g, D/2, N), in radians per patch; None if the tokens are rotated already.
        places: x, (L, N), in patches.
    """
    group = queries.shape[1] // keys.shape[1]
    keys = keys.repeat_interleave(group, dim=1)
    if frequencies is not None:
        phases = torch.einsum("ln,hpn->lhp", places, frequencies)
        turn = torch.polar(torch.ones_like(phases), phases)
        queries, keys = (
            torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
            for x in (queries, keys)
        )
    return torch.einsum("ihd,jhd->hij", queries, keys).softmax(-1)
