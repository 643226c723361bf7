"""The documentation is true: each fenced block of README and docs/ runs, or is a command that the parser takes."""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from comrope import cli
from tests.docs.pages import DOCS, PAGES, ROOT, fences, name

RUN = [page for page in PAGES if any(fence.language in ("python", "console") for fence in fences(page))]
LANGUAGES = {"python", "console", "sh", "text"}
"""Python and console blocks run; commands that take hours, or other machines, are sh; text is output."""


def _command(line: str, monkeypatch, call) -> None:
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    call()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # timm and transformers about themselves
@pytest.mark.parametrize("page", RUN, ids=name)
def test_its_blocks_run(page, capsys, tmp_path, monkeypatch):
    """In order, in one interpreter and one empty folder, as a reader would who copies them."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for language, code in fences(page):
        if language == "python":
            exec(compile(code, name(page), "exec"), names)
        for line in code.splitlines() if language == "console" else ():
            _command(line, monkeypatch, cli.main)
    if "print(comrope.check" in page.read_text(encoding="utf-8"):
        assert "yes" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_says_what_it_is(page):
    found = {fence.language for fence in fences(page)}
    assert found <= LANGUAGES
    assert page.read_text(encoding="utf-8").count("```") == 2 * len(fences(page))


@pytest.mark.parametrize("page", [page for page in PAGES if any(f.language == "sh" for f in fences(page))], ids=name)
def test_its_commands_are_known(page, monkeypatch):
    """Each is one of comrope's, which parses, one of make's targets, or installs an extra that there is."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for code in (fence.code for fence in fences(page) if fence.language == "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[0] in ("torchrun", "accelerate"):
                words = ["comrope", *words[words.index("comrope") + 1 :]]
            if words[0] == "comrope":
                _command(shlex.join(words), monkeypatch, cli._parsed)
            elif words[0] == "make":
                assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), line
            else:
                assert words[:3] == ["pip", "install", "-e"], line
                (wanted,) = re.findall(r"^\.(?:\[(\w+)\])?$", words[3])
                assert not wanted or wanted in extras, line


def test_the_choice_has_the_numbers_of_the_results():
    """docs/choose.md says nothing that docs/results.md does not."""
    text, results = ((DOCS / f"{page}.md").read_text(encoding="utf-8") for page in ("choose", "results"))
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    numbers = set(re.findall(r"\d+\.\d+", prose))
    assert len(numbers) > 30
    assert not [n for n in numbers if not re.search(rf"(?<![\d.]){re.escape(n)}(?![\d.])", results)]


@pytest.mark.slow
def test_the_figures_of_the_idea_are_what_its_script_draws(tmp_path):
    import runpy

    names = runpy.run_path(str(DOCS / "figures/idea.py"))
    names["draw"](tmp_path)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in (DOCS / "figures").glob("*.svg")}


def test_every_figure_and_table_is_somewhere_on_a_page():
    """Figures of recipes are in the gallery, which the build makes; others are on a page by hand."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [path for path in Path(DOCS / "figures").glob("*.svg") if f"figures/{path.name})" not in text]
    assert not missing
