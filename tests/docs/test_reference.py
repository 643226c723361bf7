"""docs/reference has every public name, and each docstring says what its signature asks for."""

import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest

from comrope.encodings import ENCODINGS
from tests.docs.pages import DOCS
from tests.test_public_surface import PUBLIC

REFERENCE = "".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "reference").glob("*.md")))
LISTED = re.findall(r"^::: (comrope[\w.]*)$", REFERENCE, flags=re.MULTILINE)


def documented() -> Iterator[tuple[str, Any]]:
    """Yields every function and class of the core in the reference: those that are listed, and those of listed modules."""
    for path in LISTED:
        value = pkgutil.resolve_name(path)
        if inspect.ismodule(value):
            own = {
                n: v for n, v in vars(value).items() if getattr(v, "__module__", "") == value.__name__ and n[0] != "_"
            }
            yield from ((f"{path}.{n}", v) for n, v in own.items() if inspect.isroutine(v) or inspect.isclass(v))
        else:
            yield path, value


CORE = {path: value for path, value in documented() if not path.startswith("comrope.lab")}
FUNCTIONS = {path: value for path, value in CORE.items() if inspect.isroutine(value)}


def test_every_public_name_is_in_the_reference():
    functions = {"hosts"}  # a module whose functions are listed as those of comrope, which they are, too
    assert {path.split(".")[1] for path in LISTED} | functions >= PUBLIC
    kinds = [value for value in CORE.values() if inspect.isclass(value)]
    assert set(ENCODINGS.values()) <= set(kinds)


@pytest.mark.parametrize("path", CORE)
def test_it_says_what_it_is(path):
    doc = inspect.getdoc(CORE[path])
    assert doc and re.match(r"[^\n](?:.|\n(?!\n))*?[.:]", doc), f"{path} has no first sentence"


@pytest.mark.parametrize("path", FUNCTIONS)
def test_it_explains_its_signature(path):
    """Every parameter; what comes back, where that is not the first word; errors, where the code raises or checks."""
    function, doc = FUNCTIONS[path], inspect.getdoc(FUNCTIONS[path]) or ""
    parameters = list(inspect.signature(function).parameters)
    sections = re.split(r"^(Args|Returns|Raises|Examples):\n", doc, flags=re.MULTILINE)
    found = dict(zip(sections[1::2], sections[2::2], strict=True))
    named = re.findall(r"^    \**(\w+):", found.get("Args", ""), flags=re.MULTILINE)
    assert sorted(named) == sorted(parameters), path
    returns = inspect.signature(function).return_annotation
    assert returns in (None, "None") or "Returns" in found or re.match(r"(Returns|Undoes)\b", doc), path
    source = inspect.getsource(function)
    assert "Raises" in found or not re.search(r"\braise \w+Error|\b_?check_?\w*\(", source), path


def test_main_names_have_an_example():
    """Which the doctests run."""
    main = [path for path in FUNCTIONS if path.count(".") == 1 or path.startswith("comrope.positions")]
    assert len(main) >= 15
    assert not [path for path in main if ">>>" not in (inspect.getdoc(FUNCTIONS[path]) or "")]
