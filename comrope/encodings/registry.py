"""The encodings by name: those of this library, and those that `register` adds to them."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from torch import nn

from comrope.encodings.ape import AbsoluteEncoding
from comrope.encodings.base import Encoding
from comrope.encodings.commuting import ComRoPEAP, ComRoPELD, ComRoPEMT, String
from comrope.encodings.liere import LieRE
from comrope.encodings.rope import NoEncoding, Rope, RopeMixed
from comrope.errors import ConfigurationError

ENCODINGS: dict[str, type[nn.Module]] = {
    "none": NoEncoding,
    "ape": AbsoluteEncoding,
    "rope": Rope,
    "rope-mixed": RopeMixed,
    "string": String,
    "liere": LieRE,
    "comrope-ap": ComRoPEAP,
    "comrope-ld": ComRoPELD,
    "comrope-mt": ComRoPEMT,
}
"""The encodings of the paper, and ComRoPE-MT, by name."""

ENTRY_POINTS = "comrope.encodings"
"""The group of entry points by which an installed package names the modules that register its encodings."""
SIZES = ("num_heads", "head_dim", "num_axes", "device", "dtype")
"""The arguments that the constructor of every registered encoding takes, since `attach` gives them."""

Kind = TypeVar("Kind", bound=type[Encoding])


@dataclass(frozen=True)
class Registration:
    """An encoding that `register` added."""

    kind: type[Encoding]
    label: str
    """Its name in tables and figures."""
    about: str
    """One line for readers who do not know it."""


_REGISTERED: dict[str, Registration] = {}


def register(name: str, *, label: str | None = None, about: str | None = None) -> Callable[[Kind], Kind]:
    """Adds an encoding under a name, as a decorator of its class. Every function that takes the name of an encoding takes it.

    What holds for the encoding depends on the class that it derives from:

    - `SpectralEncoding`: one basis and frequencies, such as ComRoPE. Everything holds and works.
    - `MappedEncoding`: plain RoPE after a linear map of queries and another one of keys. The RoPE equation holds and `fold`
      works; there is no `spectrum`.
    - `DenseEncoding`: any rotation matrix for each position. No RoPE equation, no `spectrum`, no `fold`.
    - `TokenEncoding`: a rotation that depends on the tokens, too. Nothing of the above, and no key cache.

    What does not apply raises `NoSpectrumError`, which says why. `comrope.testing.laws.of(name)` are the laws of its kind as
    tests. The command line finds the encodings of an installed package by an entry point of the group "comrope.encodings"
    that names the module with the class.

    Args:
        name: small letters, digits and hyphens.
        label: its name in tables and figures; `name` if None.
        about: one line for readers who do not know it; the first sentence of the class's docstring if None.
    Returns:
        A decorator that returns the class as it is.
    Raises:
        ConfigurationError: the name is taken or malformed; the class is abstract, derives from none of the four, or its
            constructor does not take num_heads, head_dim, num_axes, device and dtype.
    Examples:
        >>> import torch, comrope
        >>> @comrope.register("one-speed", about="All planes rotate at one speed, each along one axis.")
        ... class OneSpeed(comrope.encodings.FixedFrequencies):
        ...     def __init__(self, **settings):
        ...         super().__init__(**settings)
        ...         axis = torch.arange(self.head_dim // 2) % self.num_axes  # of each plane
        ...         self.set_frequencies(torch.nn.functional.one_hot(axis, self.num_axes).T.double())
        >>> comrope.check(comrope.encoding("one-speed", num_heads=2, head_dim=16, num_axes=2)).holds
        True
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ConfigurationError(f"name={name!r}: expected small letters, digits and hyphens, such as 'my-rope'.")

    def add(kind: Kind) -> Kind:
        _check_kind(name, kind)
        taken = ENCODINGS.get(name) or (_REGISTERED[name].kind if name in _REGISTERED else None)
        if taken is not None and _path(taken) != _path(kind):  # a module that is imported again replaces its own
            raise ConfigurationError(f"there is an encoding {name!r} already, {_path(taken)}: choose another name.")
        text = inspect.getdoc(kind) or ""
        first = text.partition("\n\n")[0].replace("\n", " ")
        _REGISTERED[name] = Registration(kind, label or name, first if about is None else about)
        return kind

    return add


def _check_kind(name: str, kind: Any) -> None:
    if not isinstance(kind, type) or not issubclass(kind, Encoding):
        raise ConfigurationError(
            f"{name}: got {kind!r}, expected a class that derives from SpectralEncoding, MappedEncoding, DenseEncoding or "
            "TokenEncoding of comrope.encodings."
        )
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    if missing:
        raise ConfigurationError(f"{name}: {kind.__name__} does not define {', '.join(missing)}: define it first.")
    accepted = accepted_settings(kind)
    lacking = [size for size in SIZES if size not in accepted]
    others = [setting for setting, required in accepted.items() if required and setting not in SIZES]
    if lacking or others:
        what = f"takes no {', '.join(lacking)}" if lacking else f"needs {', '.join(others)}"
        raise ConfigurationError(
            f"{name}: the constructor of {kind.__name__} {what}; expected one that takes {', '.join(SIZES)}, and has defaults "
            "for all of its other settings."
        )


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def kind_of(name: str) -> type[nn.Module]:
    """Returns the class of an encoding. For an unknown name, ConfigurationError suggests the nearest known one."""
    if isinstance(name, str) and name in ENCODINGS:
        return ENCODINGS[name]
    known = known_encodings()
    if not isinstance(name, str) or name not in known:
        raise ConfigurationError(f"there is no encoding {name!r}{did_you_mean(name, known)} Known: {', '.join(known)}.")
    return known[name]


def known_encodings() -> dict[str, type[nn.Module]]:
    """Returns the classes of all encodings by name: this library's, its rivals', and those of installed packages."""
    _import_registering_modules()
    return ENCODINGS | {name: each.kind for name, each in _REGISTERED.items()}


def registration(name: str) -> Registration | None:
    """Returns what `register` was called with; None for a name of `ENCODINGS` and for an unknown one."""
    if name not in ENCODINGS and name not in _REGISTERED:
        _import_registering_modules()
    return _REGISTERED.get(name)


def name_of(kind: type[nn.Module]) -> str | None:
    """Returns the name of the encoding that is of exactly this class; None if there is none."""
    known = ENCODINGS | {name: each.kind for name, each in _REGISTERED.items()}
    return next((name for name, each in known.items() if each is kind), None)


@cache
def _import_registering_modules() -> None:
    """Imports the rivals, and the modules that installed packages name. An error in one of them says whose it is."""
    importlib.import_module("comrope.rivals")
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:  # whatever a package of somebody else raises
            raise ConfigurationError(
                f"the entry point {point.name!r} of the package {point.dist.name if point.dist else '?'}, {point.value}, "
                f"cannot be loaded ({type(error).__name__}: {error}): repair or uninstall that package."
            ) from error


def accepted_settings(kind: type) -> dict[str, bool]:
    """Returns the arguments of a class, its own and those it passes on as **keywords, and whether each is required."""
    accepted: dict[str, bool] = {}
    for ancestor in kind.__mro__:
        if "__init__" not in vars(ancestor):
            continue
        parameters = inspect.signature(vars(ancestor)["__init__"]).parameters.values()
        for p in parameters:
            if p.name != "self" and p.kind is not p.VAR_KEYWORD:
                accepted.setdefault(p.name, p.default is p.empty)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return accepted


def did_you_mean(word: str, known: Any) -> str:
    """Returns ": did you mean …?" with the known word nearest to `word`, or "." if none is near."""
    lower = str(word).lower()
    close = difflib.get_close_matches(lower, list(known), n=1, cutoff=0.5)
    close = close or [k for k in known if lower in k.split("-") or k in lower]
    return f": did you mean {close[0]!r}?" if close else "."
