"""Proves, numerically, that an encoding works in an attention layer. No class name is trusted.

A small forward pass shows how each attention layer is called, and at which positions. Then each layer is tested alone: a
copy in float64, with queries scaled so that attention is far from uniform. The conventions that names leave open (see
`Convention`) are the first under which the layer passes three tests:

1. at the start, with zero angles or those of its own RoPE, its output is what it was;
2. other angles change its output, so they reach the scores;
3. a common shift of all positions changes nothing, so that queries and keys, and nothing else, are rotated consistently.

Tests 2 and 3 draw a random basis and random frequencies for each key head, so that no head or plane can pass for another.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from comrope.encodings.fixed import FixedSpectrum
from comrope.errors import ConfigurationError
from comrope.hosts._attached_layer import AttachedLayer
from comrope.hosts._attention_layer import AttentionLayer, Convention, LayerCall
from comrope.hosts._backbone import Backbone
from comrope.hosts._layer_calls import num_heads_of
from comrope.hosts._position_context import PositionContext
from comrope.hosts._position_hooks import tensors_in

SCORE_STD = 3.0
"""Standard deviation of the scores in the tests of a layer."""
MAX_RESIDUAL = 1e-2
"""Largest difference where there should be none, relative to the effect tested. A wrong convention leaves all of the effect."""

OUTPUT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference of a model's outputs before and after, relative to the largest output; 0.1 in half precision."""


@contextmanager
def deterministic_eval(model: nn.Module) -> Iterator[None]:
    """Puts the model into eval mode, without gradients and with a fixed seed; restores modes and random state afterwards."""
    training = {module: module.training for module in model.modules()}
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        model.eval()
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(0)
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def example_outputs(backbone: Backbone) -> list[Tensor]:
    """Returns copies of the floating-point tensors that the backbone outputs for its example."""
    with deterministic_eval(backbone.module):
        return [t.detach().clone() for t in tensors_in(backbone.run_example()) if t.is_floating_point()]


def check_same_outputs(before: Sequence[Sequence[Tensor]], after: Sequence[Sequence[Tensor]], when: str) -> None:
    """Raises ConfigurationError if outputs differ by more than rounding; `when` begins its message."""
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old, new, strict=True):
            size, difference = a.abs().max().item(), (a - b).abs().max().item()
            if not difference <= OUTPUT_TOLERANCE.get(a.dtype, 0.1) * size:
                raise ConfigurationError(
                    f"{when} the model's outputs differ by {difference:.1e} from those before, of {size:.1e}: what it does "
                    "beside its attention layers does not go together with that. It is as it was."
                )


def find_convention(
    layer: AttentionLayer, call: LayerCall, candidates: Sequence[Convention], *, any_start: bool = False
) -> Convention:
    """Returns the first candidate under which the layer passes its tests.

    With `any_start`, a candidate that fails only test 1 is accepted if none passes all three: a start was chosen by the user.

    Raises:
        ConfigurationError: no candidate passes; the message says in what the most likely one failed.
    """
    if not (call.positions != call.positions[..., :1, :]).any():
        raise ConfigurationError(
            f"{layer.name}: all tokens of the example are at one place, positions {call.positions.flatten(0, -2)[0].tolist()}, "
            "where no encoding can be proved: give an example of several."
        )
    test, reasons = _LayerTest(layer, call), []
    for candidate in candidates:
        for convention in _with_layouts(layer, call, candidate):
            reason = test.failure(convention)
            if reason is None:
                return convention
            reasons.append(reason)
    if any_start:
        for candidate in candidates:
            for convention in _with_layouts(layer, call, candidate):
                if test.failure(convention, start=False) is None:
                    return replace(convention, frequencies=None)
    raise ConfigurationError(
        f"{layer.name}: an encoding cannot be proved in this {type(layer.attention).__name__}: {reasons[0]}. Nothing has "
        "changed."
    )


def _with_layouts(layer: AttentionLayer, call: LayerCall, convention: Convention) -> list[Convention]:
    """Returns the convention with every feature layout that the sizes allow."""
    if layer.rotate_at != "modules":
        return [convention]
    if layer.rotated_modules == layer.projections and layer.projections[0].output == "qkv":
        return [replace(convention, num_groups=num_groups) for num_groups in dict.fromkeys((1, layer.num_key_heads))]
    shapes = {module.output: call.outputs[module.name].shape for module in layer.rotated_modules}
    if any(len(shape) != 4 for shape in shapes.values()):
        return [convention]
    first = all(shape[1] == num_heads_of(layer, output) for output, shape in shapes.items())
    last = all(shape[2] == num_heads_of(layer, output) for output, shape in shapes.items())
    return [replace(convention, heads_first=value) for value, fits in ((True, first), (False, last)) if fits]


class _LayerTest:
    """The three tests, on a float64 copy of an attention layer and of the arguments that it was called with."""

    def __init__(self, layer: AttentionLayer, call: LayerCall):
        self.attention: Any = copy.deepcopy(layer.attention).double().eval()
        self.layer = replace(layer, attention=self.attention)
        done: dict[int, Tensor] = {}
        self.args = tuple(_double(value, done) for value in call.args)
        self.kwargs = {name: None if _is_cache(name) else _double(value, done) for name, value in call.kwargs.items()}
        self.positions, self.outputs = call.positions.double(), call.outputs
        sizes = (layer.num_key_heads, layer.head_dim, self.positions.shape[-1])
        generator = torch.Generator().manual_seed(0)
        self.identity = FixedSpectrum(*sizes, block_size=layer.head_dim)
        self.random = FixedSpectrum(*sizes, block_size=layer.head_dim)
        shape = self.random.basis.shape
        self.random.basis.copy_(torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64))[0])
        extent = (self.positions.flatten(0, -2).amax(0) - self.positions.flatten(0, -2).amin(0)).clamp(min=1e-9).cpu()
        draws = torch.randn(self.random.frequencies.shape, generator=generator, dtype=torch.float64)
        self.random.frequencies.copy_(3 * draws / extent.view(-1, 1, 1, 1))
        device = self.positions.device
        self.identity, self.random = self.identity.to(device), self.random.to(device)
        self.gain = SCORE_STD / max(self._score_scale(), 1e-30)
        self.shift = extent.to(device) * torch.randn(len(extent), generator=generator, dtype=torch.float64).to(device)

    def failure(self, convention: Convention, *, start: bool = True) -> str | None:
        """Returns what the layer fails in under a convention; None if it passes. Test 1 is skipped unless `start`."""
        try:
            return self._failure(convention, start)
        except Exception as error:  # whatever a layer raises under a wrong convention
            return f"it fails with {type(error).__name__}: {error}"

    def _failure(self, convention: Convention, start: bool) -> str | None:
        before = self.output(convention, None)
        unrotated = self.output(convention, self.identity)
        started = unrotated if convention.frequencies is None else self.output(convention, self._host_rope(convention))
        residual, effect = _max_difference(started, before), _max_difference(unrotated, before)
        size = before.abs().max().item()
        if start and residual > MAX_RESIDUAL * (effect if convention.frequencies is not None and effect > 0 else size):
            return (
                f"at the start its output differs by {residual:.1e} from what it was, of {size:.1e}; it may have positions of "
                "its own that comrope cannot set aside; where it is to start anew, say init='normal' or init='identity'"
            )
        rotated = self.output(convention, self.random)
        effect = _max_difference(rotated, unrotated)
        if not effect > 1e-9 * size:
            return "rotating its queries and keys changes nothing that it says, so it has no scores of queries and keys"
        residual = _max_difference(self.output(convention, self.random, self.shift), rotated)
        if residual > MAX_RESIDUAL * effect:
            return (
                f"moving all tokens by the same way changes what it says, by {residual:.1e} where turning does by "
                f"{effect:.1e}; its features may be laid out in another way, or meet features of another kind than keys of the "
                "same head"
            )
        return None

    def output(self, convention: Convention, encoding: Any, shift: Tensor | float = 0.0) -> Tensor:
        """Returns the layer's output with `encoding` in place of its own RoPE; with its own RoPE if `encoding` is None."""
        keep_rope = encoding is None
        position_context = PositionContext()
        position_context.set(self.positions + shift)
        used = replace(convention, rope_argument=None, disable_rope="none") if keep_rope else convention
        attached = AttachedLayer(self.layer, used, position_context)
        self.attention.encoding = _WithQueryGain(self.identity if keep_rope else encoding, self.gain)
        order = None if keep_rope else convention.order
        self.attention.order = None if order is None else order.to(self.positions.device)
        attached.install()
        try:
            output = self.attention(*self.args, **self.kwargs)
        finally:
            attached.uninstall()
        return (output[0] if isinstance(output, (tuple, list)) else output).double()

    def _score_scale(self) -> float:
        """Returns the RMS of queries times the RMS of keys, which estimates the RMS of q·k/√D."""
        if self.layer.rotate_at == "multihead":
            return 1.0
        rms = {name: y.double().square().mean().sqrt().item() for name, y in self.outputs.items()}
        if self.layer.rotate_at == "modules":
            names = {module.output: module.name for module in self.layer.rotated_modules}
        else:
            names = {"q": "q", "k": "k"}
        return rms[names["qkv"]] ** 2 if "qkv" in names else rms[names["q"]] * rms[names["k"]]

    def _host_rope(self, convention: Convention) -> FixedSpectrum:
        host = copy.deepcopy(self.identity)
        assert convention.frequencies is not None
        frequencies = convention.frequencies.double().expand(-1, self.layer.num_key_heads, -1)
        host.frequencies.copy_(frequencies.unsqueeze(2))
        return host


class _WithQueryGain(nn.Module):
    """An encoding whose rotated queries are multiplied by a gain."""

    def __init__(self, encoding: Any, gain: float):
        super().__init__()
        self.encoding, self.gain = encoding, gain

    def rotation(self, positions: Tensor, *, dtype: torch.dtype) -> "_RotationWithQueryGain":
        return _RotationWithQueryGain(self.encoding.rotation(positions, dtype=dtype), self.gain)


class _RotationWithQueryGain:
    def __init__(self, rotation: Any, gain: float):
        self.rotation, self.gain = rotation, gain
        self.keys = rotation.keys

    def queries(self, q: Tensor) -> Tensor:
        return self.rotation.queries(q) * self.gain


def _double(value: Any, done: dict[int, Tensor]) -> Any:
    """Returns floating-point tensors in float64. An argument that occurs twice is converted once, to the same tensor."""
    if isinstance(value, Tensor):
        return done.setdefault(id(value), value.double() if value.is_floating_point() else value)
    if isinstance(value, (tuple, list)):
        return type(value)(_double(v, done) for v in value)
    return value


def _is_cache(name: str) -> bool:
    return name.startswith(("past_key_value", "cache", "layer_past"))


def _max_difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()
