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
from torch import nn
from transformers import PreTrainedModel

from comrope.errors import ConfigurationError
from comrope.hosts._attention import Reading, find_layers, half_layout
from comrope.hosts._patches import tokens_around, tokens_follow
from comrope.hosts._proof import at_rest
from comrope.hosts._surgery import Hook, Swap, Trunk
from comrope.hosts._tables import measured
from comrope.hosts._tellers import (
    TABLE,
    DropTeller,
    FollowingTokens,
    GridTeller,
    IdsTeller,
    LookupTeller,
    PackedTeller,
    SamePlaces,
    takes,
)
from comrope.hosts._tokens import Canvas, PatchTeller, Tokens

POSITIONS = r"position|wpe|pos_emb"
"""What embeddings of positions are called."""

INNER_ROPE = "apply_rotary_embeddings"
"""The method of attention layers that work out a RoPE themselves."""


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
    if any(_frequency_names(m) and takes(m, "position_ids") for m in own.values()):
        return TextTrunk if hasattr(module.config, "vocab_size") else GridRopeTrunk
    if any(takes(m, "spatial_shapes") for m in own.values() if m is not module):
        return PackedTrunk
    if any(_frequency_names(m) and takes(m, "pixel_values") for m in own.values()):
        return PatchRopeTrunk
    if any(hasattr(m, INNER_ROPE) for m in own.values()):
        return InnerRopeTrunk
    if any(isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for m in own.values()):
        return PatchTrunk
    if any(isinstance(m, nn.Embedding) and re.search(POSITIONS, n.rpartition(".")[2]) for n, m in own.items()):
        return EmbeddedTrunk
    return None


def _frequency_names(module: nn.Module) -> list[str]:
    """Buffers with the frequencies of a RoPE; where there is one for each kind of layer, all of them."""
    names = [name for name, _ in module.named_buffers(recurse=False) if name.endswith("inv_freq")]
    return [name for name in names if "original" not in name]


def _example_shape(module: Any, name: str) -> tuple[int, ...] | None:
    """Of a small main input, as the configuration tells; None where it does not."""
    config = module.config
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", None)
    if size is not None:
        size = (size, size) if isinstance(size, int) else tuple(size)
        channels = getattr(config, "num_channels", None) or getattr(config, "in_chans", 3)
        frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
        video = any(isinstance(m, nn.Conv3d) for m in module.modules())
        return (1, frames, channels, *size) if video and frames else (1, channels, *size)
    if name == "input_features" and hasattr(config, "max_source_positions"):
        return (1, config.num_mel_bins, 2 * config.max_source_positions)
    if name == "input_ids" and hasattr(config, "vocab_size"):
        return (1, min(12, getattr(config, "max_position_embeddings", None) or 12))
    return None


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
        return [m for n, m in modules if isinstance(m, nn.Embedding) and re.search(POSITIONS, n.rpartition(".")[2])]

    def example(self):
        name, config, weight = self.module.main_input_name, self.module.config, next(self.module.parameters())
        shape = _example_shape(self.module, name)
        if shape is None:
            raise ConfigurationError(
                f"{type(self.module).__name__} takes {name}, of which comrope cannot make up an example: give one, "
                "comrope.attach(model, name, example={…}), the arguments of a small forward pass."
            )
        if name == "input_ids" and not self._sees:
            return {name: torch.randint(config.vocab_size, shape, device=weight.device)}
        name = "pixel_values" if name == "input_ids" else name
        return {name: torch.randn(shape, dtype=weight.dtype, device=weight.device)}

    _sees = False
    """Whether it takes images, videos or sound, whatever it calls its main input."""

    def _ropes(self) -> Iterator[tuple[Any, str]]:
        for module in self.module.modules():
            for name in _frequency_names(module):
                yield module, name


class PatchTrunk(HFTrunk):
    """Tokens are the patches of a convolution, row by row, perhaps between class and register tokens."""

    _sees = True

    def hooks(self, prefix):
        canvas, droppers = Canvas(prefix=prefix), self._droppers()
        if droppers:
            # Which tokens stay is drawn anew each time: class tokens come first, as the embeddings have them.
            before = sum(hasattr(dropper, "cls_token") for dropper in droppers)
            conv = next(m for m in self.module.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
            after = 0
        else:
            with at_rest(self.module):
                conv, before, after = tokens_around(self.run, self.module)
        hooks = [Hook(conv, PatchTeller(self.tokens, canvas, self.module, before, after))]
        hooks += [Hook(dropper, DropTeller(self.tokens, before), with_kwargs=True) for dropper in droppers]
        if droppers:
            with at_rest(self.module):
                tokens_follow(self.run, self.module, self.tokens, hooks, canvas)
        return hooks

    def _droppers(self) -> list[nn.Module]:
        """Embeddings that leave out patches: masked autoencoders."""
        embeddings = (m for m in self.module.modules() if any(isinstance(c, nn.Module) for c in m.children()))
        return [
            m
            for m in embeddings
            if m is not self.module
            and "pixel_values" in (names := inspect.signature(m.forward).parameters)
            and ("noise" in names or ("bool_masked_pos" in names and not hasattr(m, "mask_token")))
        ]


class InnerRopeTrunk(PatchTrunk):
    """Its encoder's attention layers work out a RoPE themselves (V-JEPA 2); those of its predictor keep it.

    That RoPE multiplies the two features of a plane by cosines of different frequencies, so it is no rotation, and no encoding
    can start from it.
    """

    def __init__(self, module, layers):
        super().__init__(module, [layer for layer in layers if ".predictor." not in f".{layer.name}"])

    def example(self):
        more = {"skip_predictor": True} if takes(self.module, "skip_predictor") else {}
        return super().example() | more

    def readings(self, layer, call):
        return [Reading(still=INNER_ROPE)]


class PatchRopeTrunk(HFTrunk):
    """Like it, with a RoPE that is called with the image and measures its patches itself (DINOv3)."""

    def hooks(self, prefix):
        with at_rest(self.module):
            conv, before, after = tokens_around(self.run, self.module)
        config = self.module.config
        augmentation: dict[str, Any] = {
            name: getattr(config, f"pos_embed_{name}", None) for name in ("shift", "jitter", "rescale")
        }
        canvas = Canvas("centred", "origin", **augmentation)
        teller = PatchTeller(self.tokens, canvas, self.module, before, after)
        return [Hook(conv, teller), *(Hook(rope, SamePlaces(teller)) for rope, _ in self._ropes())]

    def readings(self, layer, call):
        rope, name = next(self._ropes())
        bands = 2 * math.pi * getattr(rope, name).double()  # (D/4,)
        frequencies = torch.block_diag(bands, bands).unsqueeze(1)
        return [
            Reading(frequencies=frequencies, order=half_layout(layer.head_dim), table=TABLE, still="origin"),
            Reading(table=TABLE, still="origin"),
        ]


class TextTrunk(HFTrunk):
    """Tokens are where the ids say with which its RoPE is called."""

    def __init__(self, module, layers):
        super().__init__(module, layers, Tokens(keyword="position_ids"))

    def hooks(self, prefix):
        for rope, _ in self._ropes():
            _check_rope_type(rope)
        return [Hook(rope, IdsTeller(self.tokens, rope), before=True) for rope in {r: None for r, _ in self._ropes()}]

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


class GridRopeTrunk(HFTrunk):
    """Images of any shape in one row of tokens: a RoPE is called with (row, column) of each (Pixtral, Qwen-VL)."""

    _sees = True

    tokens: "FollowingTokens"

    def __init__(self, module, layers):
        super().__init__(module, layers, FollowingTokens(keyword=TABLE))

    def example(self):
        if "grid_thw" not in inspect.signature(self.module.forward).parameters:
            return super().example()
        config, weight = self.module.config, next(self.module.parameters())
        side = 2 * config.spatial_merge_size
        features = config.in_channels * config.temporal_patch_size * config.patch_size**2
        pixels = torch.randn(
            side * (side + config.spatial_merge_size), features, dtype=weight.dtype, device=weight.device
        )
        grid = torch.tensor([[1, side, side + config.spatial_merge_size]], device=weight.device)
        first = next(iter(inspect.signature(self.module.forward).parameters))
        return {first: pixels, "grid_thw": grid}

    def hooks(self, prefix):
        (rope,) = {module: None for module, _ in self._ropes()}
        return [Hook(rope, GridTeller(self.tokens, rope, self.module.config), with_kwargs=True)]

    def readings(self, layer, call):
        table = call.kwargs.get(TABLE)
        known = torch.cat([getattr(rope, name).flatten() for rope, name in self._ropes()])
        return [
            Reading(frequencies=frequencies, order=order, table=TABLE, still="origin")
            for frequencies, order in measured(table, call.positions, layer.head_dim, known)
        ]


class PackedTrunk(HFTrunk):
    """Patches come packed and padded, each image with the shape of its grid (SigLIP 2)."""

    def example(self):
        config, weight = self.module.config, next(self.module.parameters())
        pixels = torch.randn(1, 6, config.num_channels * config.patch_size**2, dtype=weight.dtype, device=weight.device)
        mask = torch.ones(1, 6, dtype=torch.long, device=weight.device)
        return {
            "pixel_values": pixels,
            "pixel_attention_mask": mask,
            "spatial_shapes": torch.tensor([[2, 3]], device=weight.device),
        }

    def hooks(self, prefix):
        takers = [m for m in self.module.modules() if m is not self.module and takes(m, "spatial_shapes")]
        embeddings = next(m for m in takers if not any(inner in takers for inner in list(m.modules())[1:]))
        return [Hook(embeddings, PackedTeller(self.tokens, Canvas(prefix=prefix)), with_kwargs=True)]


class EmbeddedTrunk(HFTrunk):
    """Tokens are where an embedding of positions is looked up."""

    def hooks(self, prefix):
        return [Hook(m, LookupTeller(self.tokens), before=True) for m in self._position_embeddings()[:1]]


def _check_rope_type(rope: Any) -> None:
    kinds = getattr(rope, "rope_type", "default")
    for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
        if "dynamic" in kind or kind == "longrope":
            raise ConfigurationError(
                f"rope_type={kind!r} changes its frequencies with the length of the text, and the learned frequencies of an "
                "encoding are the same for all lengths: set another rope_type in the configuration (default, linear, llama3, "
                "yarn)."
            )
