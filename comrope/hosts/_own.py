"""A model of nobody's library: attention layers by the names of their parts, positions as its user says."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from comrope.errors import ConfigurationError, InputError
from comrope.hosts._attention import find_layers
from comrope.hosts._surgery import Hook, Trunk
from comrope.hosts._tokens import Tokens


class OwnTrunk(Trunk):
    """Any module whose forward is told where its tokens are."""

    teller: "_Teller"

    @classmethod
    def of(cls, model: nn.Module, positions: Tensor | Callable[..., Tensor]) -> "OwnTrunk":
        tokens = Tokens()
        teller = _Teller(tokens, positions)
        trunk = cls(model, find_layers(model), tokens)
        trunk.teller = teller
        return trunk

    def hooks(self, prefix):
        return [Hook(self.module, self.teller, before=True)]

    def example(self):
        raise ConfigurationError(
            "positions=… belongs to a model that comrope does not know: give an example=… as well, the arguments of a small "
            "forward pass, for the proof."
        )


class _Teller:
    """Tells positions at the start of the model's forward."""

    def __init__(self, tokens: Tokens, positions: Tensor | Callable[..., Tensor]):
        self.tokens, self.positions = tokens, positions

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        positions = self.positions if isinstance(self.positions, Tensor) else self.positions(*args, **kwargs)
        if not isinstance(positions, Tensor) or positions.ndim not in (2, 3):
            came = tuple(positions.shape) if isinstance(positions, Tensor) else type(positions).__name__
            raise InputError(f"positions: got {came}, expected a tensor (L, N) or (B, L, N), one row for each token.")
        self.tokens.tell(positions)
