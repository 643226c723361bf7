"""The pages of the documentation, and the fenced code in them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if p.name != "tables.md")]
"""Written by hand; a tables.md is output of a recipe."""


class Fence(NamedTuple):
    """A fenced block of a page."""

    language: str
    code: str


def fences(page: Path) -> list[Fence]:
    """Returns the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", text, flags=re.DOTALL | re.MULTILINE)
    return [Fence(language, code) for _, language, code in found]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()
