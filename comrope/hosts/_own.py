"""A model of nobody's library: attention layers by the names of their parts, positions as its user says."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from comrope._values import described, is_dense
from comrope.errors import ConfigurationError, InputError
from comrope.hosts._attention import Layer, find_layers, matches
from comrope.hosts._surgery import Hook, Trunk
from comrope.hosts._tokens import Tokens


class OwnTrunk(Trunk):
    """Any module whose forward is told where its tokens are."""

    teller: "_Teller"

    @classmethod
    def of(
        cls, model: nn.Module, positions: Tensor | Callable[..., Tensor], layers: Sequence[int | str] | str | None
    ) -> "OwnTrunk":
        tokens = Tokens()
        trunk = cls(model, find_layers(model) or _named(model, layers), tokens)
        trunk.teller = _Teller(tokens, positions)
        return trunk

    def hooks(self, prefix):
        return [Hook(self.module, self.teller, before=True)]

    def example(self):
        raise ConfigurationError(
            "positions=… belongs to a model that comrope does not know: give an example=… as well, the arguments of a small "
            "forward pass, for the proof."
        )


def _named(model: nn.Module, layers: Sequence[int | str] | str | None) -> list[Layer]:
    """Modules that are named as attention layers, whose parts have names that comrope does not know: scores will tell."""
    patterns = [layers] if isinstance(layers, str) else [name for name in layers or () if isinstance(name, str)]
    modules = model.named_modules()
    named = [(n, m) for n, m in modules if any(matches(n, pattern) for pattern in patterns)]
    return [Layer(name, module, 0, 0, 0, (), way="scores") for name, module in named]


class _Teller:
    """Tells positions at the start of the model's forward."""

    def __init__(self, tokens: Tokens, positions: Tensor | Callable[..., Tensor]):
        self.tokens, self.positions = tokens, positions

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        positions = self.positions if isinstance(self.positions, Tensor) else self.positions(*args, **kwargs)
        numbers = is_dense(positions) and not positions.dtype.is_complex and positions.dtype != torch.bool
        if not numbers or positions.ndim not in (2, 3) or not positions.shape[-1]:
            raise InputError(
                f"positions: got {described(positions)}, expected real numbers in a dense tensor (L, N) or (B, L, N), one "
                "row for each token."
            )
        self.tokens.tell(positions)
