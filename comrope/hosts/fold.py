"""Fold: the basis goes into the projections, and what stays is plain RoPE with frequencies of each head.

⟨Rot(ωᵀx)Qᵀq, Rot(ωᵀy)Qᵀk⟩ with q = W_q t and k = W_k t is the same as with Qᵀ multiplied into the rows of W_q and W_k.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from comrope.encodings.fixed import FixedFrequencies
from comrope.errors import ConfigurationError, NoSpectrumError
from comrope.hosts._attention import Part, rows
from comrope.hosts._description import record
from comrope.hosts._proof import check_same, outputs
from comrope.hosts._seat import Seat, into_planes
from comrope.hosts._surgery import Attachment, Graft, Swap


@dataclass(frozen=True)
class _Folded:
    """One attention layer, worked out before anything changes."""

    frequencies: Tensor
    """ω (N, H, D/2), float64."""
    weights: list[tuple[Tensor, Tensor]]
    """Views of the projections, and what to write into them."""
    order: Tensor | None
    """What re-ordering of features stays at run time."""


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Makes plain RoPE of an attached encoding, in place: logits stay as they are, to rounding.

    The basis is multiplied into the weights of queries and keys, in float64, and what comes out is rounded once to their dtype.
    `encoding` is `FixedFrequencies` afterwards, float64 whatever the model is cast to: scores in float32 are right to 1e-6 of
    |q||k|, a million tokens apart too.

    A host whose own RoPE has frequencies of each head (timm's Eva with rope_type="mixed") gets them there, in its own dtype,
    and nothing of comrope remains in it. A float32 frequency turns a phase by up to 6e-8 of itself: by 6e-6 radians where it
    is 100, and by 0.06 where it is a million.

    Returns:
        The model. One that is folded already stays as it is.
    Raises:
        NoSpectrumError: the angle matrices do not commute (LieRE): there is no basis to fold.
        ConfigurationError: nothing is attached; norms that do not commute with the basis stand between it and the weights;
            projections that are wrapped, by an adapter for example. Nothing has changed then, in any case.
    """
    attachment = Attachment.of(model)
    if attachment.folded:
        return model
    layers = {seat.attention: _work_out(seat) for graft in attachment.grafts for seat in graft.seats}
    before, weights = [outputs(graft.trunk) for graft in attachment.grafts], {}
    kept = [graft.swaps for graft in attachment.grafts]
    for layer in layers.values():
        for view, turned in layer.weights:
            weights[id(view)] = view, view.clone()
            view.copy_(turned)
    for graft in attachment.grafts:
        graft.change([_plain(s, layers[s.module]) if "encoding" in s.sets else s for s in graft.swaps])
    try:
        check_same(before, [outputs(graft.trunk) for graft in attachment.grafts], "folded")
    except BaseException:
        for view, value in weights.values():
            view.copy_(value)
        for graft, swaps in zip(attachment.grafts, kept, strict=True):
            graft.change(swaps)
        raise
    keep_ape = attachment.settings["keep_ape"]
    attachment.grafts = [graft for graft in attachment.grafts if not (keep_ape and _taken_back(graft, layers))]
    attachment.folded = True
    record(model)
    if not attachment.grafts:
        del model._comrope
    return model


def _taken_back(graft: Graft, layers: dict[nn.Module, _Folded]) -> bool:
    """Whether the trunk's own RoPE holds the frequencies, so that nothing of comrope is needed in it any more."""
    own = {seat.attention: layers[seat.attention] for seat in graft.seats}
    if any(layer.order is not None for layer in own.values()):
        return False
    graft.undo()
    if graft.trunk.take_back({attention: layer.frequencies for attention, layer in own.items()}):
        return True
    graft.apply()
    return False


def _work_out(seat: Seat) -> _Folded:
    attention: Any = seat.attention
    try:
        basis, frequencies = attention.encoding.spectrum()
        rotates = not torch.equal(basis, torch.eye(basis.shape[-1]).to(basis).expand_as(basis))
        kept = [norm for norm in seat.norms() if not _commutes(norm)]
        if kept and not rotates:
            return _Folded(frequencies.flatten(2), [], attention.order)
        if kept:
            raise ConfigurationError(
                f"queries and keys go through {type(kept[0]).__name__} with weights or a mean of its own, which does not "
                "commute with the basis: it cannot be folded into the projections. comrope.freeze makes constants of the "
                "angles and keeps the basis at run time; rope-mixed has no basis."
            )
        if not seat.projections:
            raise ConfigurationError(
                "its queries and keys were caught where their scores are made, and comrope does not know the weights they come "
                "from: comrope.freeze makes constants of the angles."
            )
        views = [view for part in seat.projections for view in _heads(seat, part)] + _biases(seat)
        return _Folded(
            frequencies.flatten(2),
            [(v, into_planes(v.double(), len(basis), basis, attention.order)) for v in views],
            None,
        )
    except (ConfigurationError, NoSpectrumError) as error:
        raise type(error)(f"{seat.name}: {error}") from error


def _heads(seat: Seat, part: Part) -> list[Tensor]:
    """Views of weights (…, heads that share a key head, D, C) and biases (…, D, 1): those that make queries, and keys."""
    tensors = [t if t.ndim == 2 else t.unsqueeze(1) for t in rows(seat.attention.get_submodule(part.name))]
    return [view for tensor in tensors for view in seat.pieces(tensor, part)[:2]]


def _biases(seat: Seat) -> list[Tensor]:
    """The same of biases that an attention layer has itself, beside its projections."""
    found = [getattr(seat.attention, name, None) for name in ("q_bias", "k_bias")]
    return [b.detach().view(seat.num_heads["k"], -1, seat.head_dim, 1) for b in found if isinstance(b, Tensor)]


def _commutes(norm: nn.Module) -> bool:
    """Whether norm(Qx) = Q norm(x) for every orthogonal Q."""
    if isinstance(norm, nn.Identity):
        return True
    is_rms = isinstance(norm, nn.RMSNorm) or type(norm).__name__ in ("RmsNorm", "RmsNormFp32")
    return is_rms and norm.weight is None


def _plain(swap: Swap, layer: _Folded) -> Swap:
    """The swap of an attention layer with plain RoPE for its encoding."""
    old = swap.sets["encoding"]
    size = {"num_heads": old.num_heads, "head_dim": old.head_dim, "num_axes": old.num_axes}
    plain = FixedFrequencies(**size, device=old.device)
    plain.frequencies.copy_(layer.frequencies.unsqueeze(-1))
    order = None if layer.order is None else nn.Buffer(layer.order, persistent=False)
    return replace(swap, sets={**swap.sets, "encoding": plain.train(old.training), "order": order})
