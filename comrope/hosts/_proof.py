"""The proof that an encoding does in a model what it promises: no class name is trusted, and no silence taken for success.

A small forward pass shows how each attention layer is called, and where its tokens are. Then each layer is tried by itself,
a copy of it in float64 and with queries so loud that attention is far from uniform. What its names leave open (see `Reading`)
is whatever passes:

1. at the start, zero angles or those of its own RoPE, the layer says what it said before;
2. other angles change what it says: they reach the scores;
3. moving all its tokens by the same way changes nothing: queries and keys are turned as they meet, and nothing else is.

In 2 and 3 a basis and frequencies are drawn at random for each key head, so that no head or plane can stand for another.
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
from comrope.hosts._attention import Layer, Reading
from comrope.hosts._calls import heads_of
from comrope.hosts._seat import Seat
from comrope.hosts._surgery import Call, Trunk
from comrope.hosts._tokens import Tokens, tensors_in

LOUD = 3.0
"""Standard deviation of the scores in a trial."""
SAME = 1e-2
"""How much of an effect may be left where there should be none. Wrong readings leave all of it."""

ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
"""How far outputs of a model may be from those before, relative to the largest; in half precision 0.1."""


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, without gradients, and with random draws that nobody else sees."""
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


def outputs(trunk: Trunk) -> list[Tensor]:
    """The floating-point tensors that the trunk gives in its example."""
    with at_rest(trunk.module):
        return [t.detach().clone() for t in tensors_in(trunk.run()) if t.is_floating_point()]


def check_same(before: Sequence[Sequence[Tensor]], after: Sequence[Sequence[Tensor]], when: str) -> None:
    """ConfigurationError unless outputs are what they were, to rounding."""
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old, new, strict=True):
            size, left = a.abs().max().item(), (a - b).abs().max().item()
            if not left <= ROUNDING.get(a.dtype, 0.1) * size:
                raise ConfigurationError(
                    f"{when} the model's outputs differ by {left:.1e} from those before, of {size:.1e}: what it does beside "
                    "its attention layers does not go together with that. It is as it was."
                )


def read(layer: Layer, call: Call, readings: Sequence[Reading], *, any_start: bool = False) -> Reading:
    """The first reading under which the layer passes its trial; ConfigurationError with what the likeliest failed in.

    With `any_start` one is taken too that starts elsewhere, if none does not: who chooses a start does not ask for the model's.
    """
    if not (call.positions != call.positions[..., :1, :]).any():
        raise ConfigurationError(
            f"{layer.name}: all tokens of the example are at one place, positions {call.positions.flatten(0, -2)[0].tolist()}, "
            "where no encoding can be proved: give an example of several."
        )
    trial, reasons = _Trial(layer, call), []
    for reading in readings:
        for laid_out in _layouts(layer, call, reading):
            reason = trial.fails(laid_out)
            if reason is None:
                return laid_out
            reasons.append(reason)
    if any_start:
        for reading in readings:
            for laid_out in _layouts(layer, call, reading):
                if trial.fails(laid_out, start=False) is None:
                    return replace(laid_out, frequencies=None)
    raise ConfigurationError(
        f"{layer.name}: an encoding cannot be proved in this {type(layer.attention).__name__}: {reasons[0]}. Nothing has "
        "changed."
    )


def _layouts(layer: Layer, call: Call, reading: Reading) -> list[Reading]:
    """A reading with every layout of features that sizes allow."""
    if layer.way != "parts":
        return [reading]
    if layer.parts == layer.projections and layer.projections[0].holds == "qkv":
        return [replace(reading, groups=groups) for groups in dict.fromkeys((1, layer.num_heads))]
    shapes = {part.holds: call.outputs[part.name].shape for part in layer.parts}
    if any(len(shape) != 4 for shape in shapes.values()):
        return [reading]
    first = all(shape[1] == heads_of(layer, holds) for holds, shape in shapes.items())
    last = all(shape[2] == heads_of(layer, holds) for holds, shape in shapes.items())
    return [replace(reading, heads_first=where) for where, fits in ((True, first), (False, last)) if fits]


class _Trial:
    """One attention layer, copied into float64, and what it was called with."""

    def __init__(self, layer: Layer, call: Call):
        self.attention: Any = copy.deepcopy(layer.attention).double().eval()
        self.layer = replace(layer, attention=self.attention)
        done: dict[int, Tensor] = {}
        self.args = tuple(_double(value, done) for value in call.args)
        self.kwargs = {name: None if _is_cache(name) else _double(value, done) for name, value in call.kwargs.items()}
        self.positions, self.outputs = call.positions.double(), call.outputs
        sizes = (layer.num_heads, layer.head_dim, self.positions.shape[-1])
        generator = torch.Generator().manual_seed(0)
        self.still = FixedSpectrum(*sizes, block_size=layer.head_dim)
        self.turning = FixedSpectrum(*sizes, block_size=layer.head_dim)
        shape = self.turning.basis.shape
        self.turning.basis.copy_(torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64))[0])
        extent = (self.positions.flatten(0, -2).amax(0) - self.positions.flatten(0, -2).amin(0)).clamp(min=1e-9).cpu()
        rates = torch.randn(self.turning.frequencies.shape, generator=generator, dtype=torch.float64)
        self.turning.frequencies.copy_(3 * rates / extent.view(-1, 1, 1, 1))
        device = self.positions.device
        self.still, self.turning = self.still.to(device), self.turning.to(device)
        self.gain = LOUD / max(self._loudness(), 1e-30)
        self.move = extent.to(device) * torch.randn(len(extent), generator=generator, dtype=torch.float64).to(device)

    def fails(self, reading: Reading, *, start: bool = True) -> str | None:
        """What the layer fails in under a reading; None if it passes."""
        try:
            return self._fails(reading, start)
        except Exception as error:  # whatever a layer that is read wrongly makes of it
            return f"it fails with {type(error).__name__}: {error}"

    def _fails(self, reading: Reading, start: bool) -> str | None:
        before = self.says(reading, None)
        plain = self.says(reading, self.still)
        started = plain if reading.frequencies is None else self.says(reading, self._host(reading))
        left, effect = _distance(started, before), _distance(plain, before)
        size = before.abs().max().item()
        if start and left > SAME * (effect if reading.frequencies is not None and effect > 0 else size):
            return (
                f"at the start its output differs by {left:.1e} from what it was, of {size:.1e}; it may have positions of its "
                "own that comrope cannot set aside; where it is to start anew, say init='normal' or init='identity'"
            )
        turned = self.says(reading, self.turning)
        effect = _distance(turned, plain)
        if not effect > 1e-9 * size:
            return "turning its queries and keys changes nothing that it says, so it has no scores of queries and keys"
        left = _distance(self.says(reading, self.turning, self.move), turned)
        if left > SAME * effect:
            return (
                f"moving all tokens by the same way changes what it says, by {left:.1e} where turning does by {effect:.1e}; "
                "its features may be laid out in another way, or meet features of another kind than keys of the same head"
            )
        return None

    def says(self, reading: Reading, encoding: Any, move: Tensor | float = 0.0) -> Tensor:
        """The output of the layer: with its own RoPE if `encoding` is None, else with that in its place."""
        own = encoding is None
        tokens = Tokens()
        tokens.tell(self.positions + move)
        seat = Seat(self.layer, replace(reading, table=None, still="none") if own else reading, tokens)
        self.attention.encoding = _Loud(self.still if own else encoding, self.gain)
        order = None if own else reading.order
        self.attention.order = None if order is None else order.to(self.positions.device)
        seat.sit()
        try:
            output = self.attention(*self.args, **self.kwargs)
        finally:
            seat.rise()
        return (output[0] if isinstance(output, (tuple, list)) else output).double()

    def _loudness(self) -> float:
        """The root mean square of queries times that of keys, which is about that of their scores in units of 1/√D."""
        if self.layer.way == "multihead":
            return 1.0
        size = {name: y.double().square().mean().sqrt().item() for name, y in self.outputs.items()}
        names = (
            {part.holds: part.name for part in self.layer.parts} if self.layer.way == "parts" else {"q": "q", "k": "k"}
        )
        return size[names["qkv"]] ** 2 if "qkv" in names else size[names["q"]] * size[names["k"]]

    def _host(self, reading: Reading) -> FixedSpectrum:
        host = copy.deepcopy(self.still)
        assert reading.frequencies is not None
        frequencies = reading.frequencies.double().expand(-1, self.layer.num_heads, -1)
        host.frequencies.copy_(frequencies.unsqueeze(2))
        return host


class _Loud(nn.Module):
    """An encoding whose queries are so much larger."""

    def __init__(self, encoding: Any, gain: float):
        super().__init__()
        self.encoding, self.gain = encoding, gain

    def rotation(self, positions: Tensor, *, dtype: torch.dtype) -> "_LoudRotation":
        return _LoudRotation(self.encoding.rotation(positions, dtype=dtype), self.gain)


class _LoudRotation:
    def __init__(self, rotation: Any, gain: float):
        self.rotation, self.gain = rotation, gain
        self.keys = rotation.keys

    def queries(self, q: Tensor) -> Tensor:
        return self.rotation.queries(q) * self.gain


def _double(value: Any, done: dict[int, Tensor]) -> Any:
    """Floating-point tensors in float64; what was one tensor stays one."""
    if isinstance(value, Tensor):
        return done.setdefault(id(value), value.double() if value.is_floating_point() else value)
    if isinstance(value, (tuple, list)):
        return type(value)(_double(v, done) for v in value)
    return value


def _is_cache(name: str) -> bool:
    return name.startswith(("past_key_value", "cache", "layer_past"))


def _distance(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()
