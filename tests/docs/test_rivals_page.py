"""docs/rivals.md: its tables have every rival, and say of each what its class is."""

import re

import pytest

from comrope.encodings import DenseEncoding, MappedEncoding, SpectralEncoding, TokenEncoding, kind_of
from tests.docs.pages import DOCS
from tests.rivals.cases import AXES

PAGE = (DOCS / "rivals.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
FIRST = {cells[0].strip("`"): cells[1:] for cells in ROWS if len(cells) == 8}
CLAIMED = {name for cells in ROWS if len(cells) < 8 for name in re.findall(r"`([\w-]+)`", cells[0])}
KINDS = {"spectrum": SpectralEncoding, "maps": MappedEncoding, "matrices": DenseEncoding, "tokens": TokenEncoding}


def test_both_tables_have_all_of_them():
    assert set(FIRST) == CLAIMED == set(AXES)
    reference = (DOCS / "reference" / "rivals.md").read_text(encoding="utf-8")
    for name in AXES:
        assert f"| `{name}` | `{kind_of(name).__name__}` |" in reference
        assert f"::: comrope.rivals.{kind_of(name).__name__}\n" in reference


@pytest.mark.parametrize("name", FIRST)
def test_a_row_says_what_the_class_is(name):
    _, learned, kind, equation, folds, speed, _ = FIRST[name]
    cls = kind_of(name)
    assert issubclass(cls, KINDS[kind])
    assert (equation, folds) == (("yes", "yes") if kind in ("spectrum", "maps") else ("no", "no"))
    published = getattr(cls, "published_speed", None)  # a speed by position, which selective-rope has not
    shown = "–" if published is None else f"{published:.2f}".removesuffix(".00").removesuffix("0")
    assert shown == speed.removesuffix("0")
    made = cls(num_heads=2, head_dim=16, num_axes=AXES[name][len(AXES[name]) // 2])
    assert (learned in ("–", "ω, if asked")) == (not list(made.parameters()))
