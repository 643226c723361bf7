"""transformers: image, video and language models, by what they are made of and never by their class.

Every `PreTrainedModel` says what it takes and how large: its innermost ones with attention layers are the trunks. Where their
tokens are is told by whichever of these a trunk has, in this order: a RoPE that is called with `position_ids`, or with the
image; a convolution that makes patches; an embedding of positions.
"""

import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from comrope.errors import ConfigurationError
from comrope.hosts._attention import Reading, find_layers, half_layout
from comrope.hosts._proof import at_rest, tokens_around
from comrope.hosts._surgery import Hook, Swap, Trunk
from comrope.hosts._tokens import Canvas, PatchTeller, Tokens

TABLE = "position_embeddings"
"""The argument in which attention layers of transformers get the table of a RoPE."""


def trunks(model: nn.Module) -> list[Trunk]:
    """The innermost models of transformers in a model that have attention layers, and positions that comrope can know."""
    found: list[HFTrunk] = []
    inner: tuple[str, ...] = ()
    models = [(name, module) for name, module in model.named_modules() if isinstance(module, PreTrainedModel)]
    for name, module in sorted(models, key=lambda each: -each[0].count(".") - bool(each[0])):
        prefix = f"{name}." if name else ""
        layers = [layer for layer in find_layers(module, name) if not layer.name.startswith(inner)]
        kind = _kind(module, prefix, inner)
        if layers and kind is not None:
            found.append(kind(module, layers))
            inner += (prefix,)
    names = [name for name, _ in model.named_modules()]
    found.sort(key=lambda trunk: names.index(trunk.layers[0].name))
    # A text tower beside others has positions of its own already; alone it is what is meant.
    lone = [trunk for trunk in found if not isinstance(trunk, EmbeddedTrunk)]
    return list(lone or found)


def _kind(module: nn.Module, prefix: str, inner: tuple[str, ...]) -> "type[HFTrunk] | None":
    """What tells positions in a model, but for what is in the trunks inside of it."""
    own = {n: m for n, m in module.named_modules() if not f"{prefix}{n}.".startswith(inner)}
    if any(_frequency_names(m) and _takes(m, "position_ids") for m in own.values()):
        return RopeTrunk
    if any(_frequency_names(m) and _takes(m, "pixel_values") for m in own.values()):
        return PatchRopeTrunk
    if any(isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for m in own.values()):
        return PatchTrunk
    if any(isinstance(m, nn.Embedding) and "position" in n for n, m in own.items()):
        return EmbeddedTrunk
    return None


def _takes(module: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(module.forward).parameters


def _frequency_names(module: nn.Module) -> list[str]:
    """Buffers with the frequencies of a RoPE; where there is one for each kind of layer, all of them."""
    names = [name for name, _ in module.named_buffers(recurse=False) if name.endswith("inv_freq")]
    return [name for name in names if "original" not in name]


class HFTrunk(Trunk):
    """A model of transformers, or the part of one that has the attention layers."""

    module: Any

    def __init__(self, module: nn.Module, layers, tokens: Tokens | None = None):
        super().__init__(module, layers, Tokens() if tokens is None else tokens)

    def swaps(self, *, keep_ape, whole):
        if keep_ape:
            return []
        # Embeddings add it whatever it is: zeros are what they can do without.
        swaps = []
        for owner in self.module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                embedded = isinstance(owner, nn.Embedding) and owner in self._position_embeddings()
                if embedded or re.fullmatch(r"(abs_)?pos(ition)?_?embed(ding)?s?", name):
                    swaps.append(Swap(owner, {name: nn.Parameter(torch.zeros_like(parameter), requires_grad=False)}))
        return swaps

    def _position_embeddings(self) -> list[nn.Embedding]:
        modules = self.module.named_modules()
        return [m for n, m in modules if isinstance(m, nn.Embedding) and re.search(r"position|wpe", n.rpartition(".")[2])]

    def example(self):
        config = self.module.config
        weight = next(self.module.parameters())
        if self.module.main_input_name == "input_ids":
            length = min(12, getattr(config, "max_position_embeddings", None) or 12)
            return {"input_ids": torch.randint(config.vocab_size, (1, length), device=weight.device)}
        size = getattr(config, "image_size", None)
        if self.module.main_input_name != "pixel_values" or size is None:
            raise ConfigurationError(
                f"{type(self.module).__name__} takes {self.module.main_input_name}, of which comrope cannot make up an example: "
                "give one, comrope.attach(model, name, example={…}), the arguments of a small forward pass."
            )
        size = (size, size) if isinstance(size, int) else tuple(size)
        channels = getattr(config, "num_channels", 3)
        return {"pixel_values": torch.randn(1, channels, *size, dtype=weight.dtype, device=weight.device)}

    def _ropes(self) -> Iterator[tuple[Any, str]]:
        for module in self.module.modules():
            for name in _frequency_names(module):
                yield module, name


class PatchTrunk(HFTrunk):
    """Tokens are the patches of a convolution, row by row, perhaps between class and register tokens."""

    def hooks(self, prefix):
        with at_rest(self.module):
            conv, before, after = tokens_around(self.run, self.module, self.layers)
        return [Hook(conv, PatchTeller(self.tokens, Canvas(prefix=prefix), self.module, before, after))]


class PatchRopeTrunk(HFTrunk):
    """Like it, with a RoPE that is called with the image and measures its patches itself (DINOv3)."""

    def hooks(self, prefix):
        with at_rest(self.module):
            conv, before, after = tokens_around(self.run, self.module, self.layers)
        config = self.module.config
        augmentation = {name: getattr(config, f"pos_embed_{name}", None) for name in ("shift", "jitter", "rescale")}
        canvas = Canvas("centred", "origin", **augmentation)
        teller = PatchTeller(self.tokens, canvas, self.module, before, after)
        return [Hook(conv, teller), *(Hook(rope, _SamePlaces(teller)) for rope, _ in self._ropes())]

    def readings(self, layer, call):
        rope, name = next(self._ropes())
        bands = 2 * math.pi * getattr(rope, name).double()  # (D/4,)
        frequencies = torch.block_diag(bands, bands).unsqueeze(1)
        return [
            Reading(frequencies=frequencies, order=half_layout(layer.head_dim), table=TABLE, still="origin"),
            Reading(table=TABLE, still="origin"),
        ]


class RopeTrunk(HFTrunk):
    """Tokens are where the ids say with which its RoPE is called."""

    def __init__(self, module, layers):
        super().__init__(module, layers, Tokens(keyword="position_ids"))

    def hooks(self, prefix):
        for rope, _ in self._ropes():
            _check_rope_type(rope)
        return [Hook(rope, _IdsTeller(self.tokens, rope), before=True) for rope in {r: None for r, _ in self._ropes()}]

    def readings(self, layer, call):
        table = call.kwargs.get(TABLE)
        if table is None:
            return [Reading()]
        cos, positions = table[0], call.positions.double()
        turned, found = cos.shape[-1], []
        scale = (table[0].double().square() + table[1].double().square()).sqrt().mean()
        for rope, name in self._ropes():
            frequencies = getattr(rope, name).double().to(positions.device)
            if 2 * len(frequencies) != turned or turned > layer.head_dim:
                continue
            expected = scale * (positions * frequencies).cos()  # (…, L, r/2)
            if (cos[..., : turned // 2].double() - expected).abs().max() > 0.05 * scale:
                continue
            still = torch.zeros((layer.head_dim - turned) // 2).to(frequencies)
            together = torch.cat((frequencies, still)).view(1, 1, -1)
            for order in (half_layout(layer.head_dim, turned), None):
                found.append(Reading(frequencies=together, order=order, table=TABLE, still="origin"))
        # A layer may be given a table and not use it.
        return [*found, Reading(table=TABLE, still="origin")]


class EmbeddedTrunk(HFTrunk):
    """Tokens are where an embedding of positions is looked up."""

    def hooks(self, prefix):
        return [Hook(m, _LookupTeller(self.tokens), before=True) for m in self._position_embeddings()[:1]]


def _check_rope_type(rope: Any) -> None:
    kinds = getattr(rope, "rope_type", "default")
    for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
        if "dynamic" in kind or kind == "longrope":
            raise ConfigurationError(
                f"rope_type={kind!r} changes its frequencies with the length of the text, and the learned frequencies of an "
                "encoding are the same for all lengths: set another rope_type in the configuration (default, linear, llama3, "
                "yarn)."
            )


class _IdsTeller:
    """The hook on a RoPE that is called with position ids, (B, L)."""

    def __init__(self, tokens: Tokens, rope: nn.Module):
        self.tokens = tokens
        self.place = list(inspect.signature(rope.forward).parameters).index("position_ids")

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = kwargs["position_ids"] if "position_ids" in kwargs else args[self.place]
        places = self.tokens.among({"position_ids": ids})
        assert places is not None
        self.tokens.tell(places.positions)


class _LookupTeller:
    """The hook on an embedding of positions, which is called with their numbers."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids: Tensor = args[0] if args else kwargs["input"]
        ids = ids.unsqueeze(0) if ids.ndim == 1 else ids
        self.tokens.tell(ids[0].unsqueeze(-1) if len(ids) == 1 else ids.unsqueeze(-1))


class _SamePlaces:
    """The hook on a RoPE that measures patches itself, for layers that keep it: its table at the positions that were told.

    In training both would shift, stretch and rescale the canvas at random, each in its own way.
    """

    def __init__(self, teller: PatchTeller):
        self.teller = teller

    def __call__(self, module: Any, args: tuple, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        positions = self.teller.tokens.latest()
        patches = positions[self.teller.num_prefix_tokens : len(positions) - self.teller.num_suffix_tokens]
        phases = 2 * math.pi * patches.unsqueeze(-1) * module.inv_freq  # (L, 2, D/4)
        phases = phases.flatten(1).repeat(1, 2)
        return phases.cos().to(output[0].dtype), phases.sin().to(output[1].dtype)
