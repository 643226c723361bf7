"""The laws of encodings as tests: each holds for all encodings of a kind, and raises AssertionError where it fails.

With pytest:

    @pytest.mark.parametrize("law", laws.of("my-encoding", num_axes=2), ids=str)
    def test_my_encoding(law):
        law()
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from comrope.encodings import (
    DenseEncoding,
    Encoding,
    MappedEncoding,
    NoEncoding,
    SpectralEncoding,
    TokenEncoding,
    kind_of,
)
from comrope.errors import ConfigurationError
from comrope.testing._by_position import BY_POSITION, RELATIVE, SPECTRAL
from comrope.testing._every_encoding import EVERY
from comrope.testing._other_kinds import DENSE, MAPPED, OF_TOKENS
from comrope.testing._subject import Subject


@dataclass(frozen=True)
class Law:
    """A law, to be tested on one encoding by calling it."""

    name: str
    """What holds, in words."""
    test: Callable[[Subject], None]
    subject: Subject

    def __call__(self) -> None:
        """Raises AssertionError if the law does not hold."""
        self.test(self.subject)

    def __str__(self) -> str:
        return self.name


def of(name: str, *, num_heads: int = 2, head_dim: int | None = None, num_axes: int = 2, **settings: Any) -> list[Law]:
    """Returns the laws of an encoding, each a test without arguments. They depend on the class that it derives from.

    Args:
        name: the name of an encoding, of this library or registered.
        num_heads: key heads.
        head_dim: features in a head; 8 · num_axes if None.
        num_axes: axes of positions.
        settings: further settings of the encoding, such as block_size=4.
    Raises:
        ConfigurationError: there is no such rotary encoding, or its constructor does not take the settings.
    Examples:
        >>> for law in of("comrope-ld", num_axes=3):
        ...     law()
    """
    kind = kind_of(name)
    if not issubclass(kind, Encoding):
        raise ConfigurationError(f"{name} rotates nothing: its laws are those of tests for an absolute encoding.")
    sizes = {"num_heads": num_heads, "head_dim": 8 * num_axes if head_dim is None else head_dim, "num_axes": num_axes}
    subject = Subject(name, sizes | settings)
    subject.make()  # an error in the settings is not one of a law
    tests: list[tuple[type | tuple[type, ...], Sequence[Callable[[Subject], None]]]] = [
        (Encoding, EVERY),
        ((SpectralEncoding, NoEncoding, MappedEncoding, DenseEncoding), BY_POSITION),
        ((SpectralEncoding, NoEncoding, MappedEncoding), RELATIVE),
        ((SpectralEncoding, NoEncoding), SPECTRAL),
        (MappedEncoding, MAPPED),
        (DenseEncoding, DENSE),
        (TokenEncoding, OF_TOKENS),
    ]
    found = [test for kinds, each in tests if issubclass(kind, kinds) for test in each]
    return [Law(test.__name__.replace("_", " ").strip(), test, subject) for test in found]
