"""Hooks of MkDocs: what the site has beyond docs/, which is made from other files when it is built.

- Pages of examples/*.py, CONTRIBUTING.md and CHANGELOG.md, and the files of benchmarks/.
- `<!-- comrope … --help -->` becomes what that command prints, `<!-- gallery -->` the figures that results.json files describe.
- Equations between dollar signs, which arithmatex finds, become MathML.
- `DocstringSections`, an extension of griffe, finds sections of docstrings without an empty line before them.
"""

import contextlib
import html
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import griffe
import jupytext
import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FIGURES = ("results/*", "demo")
"""The folders of docs/ with the output of recipes."""


class DocstringSections(griffe.Extension):
    """Puts an empty line before each section of a docstring, without which griffe takes it for prose."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"\n+(?=(Args|Returns|Raises|Examples):\n)", "\n\n", obj.docstring.value)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages and files that are not in docs/."""
    for path in sorted((ROOT / "benchmarks").rglob("*.*")):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for path in sorted((ROOT / "examples").glob("*.py")):
        files.append(File.generated(config, f"examples/{path.stem}.md", content=example_page(path)))
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        text = (
            (ROOT / name)
            .read_text(encoding="utf-8")
            .replace("](docs/", "](")
            .replace("](CONTRIBUTING.md", "](contributing.md")
        )
        files.append(File.generated(config, name.lower(), content=text))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in what is made from other files."""
    if page.file.src_uri.endswith("tables.md"):
        page.meta["search"] = {"exclude": True}  # thousands of numbers
    markdown = markdown.replace("](../benchmarks/", "](benchmarks/")
    markdown = re.sub(r"<!-- comrope (.*?)--help -->", lambda found: command_help(found[1].split()), markdown)
    return markdown.replace("<!-- gallery -->", "\n\n".join(gallery()))


def on_page_content(html_text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns the equations of a page into MathML."""
    html_text = re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda m: mathml(m[1], "inline"), html_text, flags=re.S
    )
    return re.sub(
        r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', lambda m: mathml(m[1], "block"), html_text, flags=re.S
    )


def mathml(latex: str, display: str) -> str:
    """Returns an equation as MathML, which browsers draw without scripts.

    Without a font for mathematics parentheses do not grow, so those of matrices are drawn by site.css.
    """
    drawn = latex2mathml.converter.convert(html.unescape(latex), display=display)
    return re.sub(
        r"<mo>&#x00028;</mo><mtable>(.*?)</mtable><mo>&#x00029;</mo>", r'<mtable class="matrix">\1</mtable>', drawn
    )


def example_page(path: Path) -> str:
    """Returns the page of an example: its cells, and how to run it."""
    notebook = jupytext.read(path)
    title, _, about = notebook.cells[0].source.partition("\n")
    run = f"\n\nRun it with `python examples/{path.name}`, or open the file as a notebook with jupytext.\n"
    notebook.cells[0].source = f"{title}\n{about}{run}"
    notebook.metadata = {"jupytext": {"notebook_metadata_filter": "-all", "cell_metadata_filter": "-all"}}
    return jupytext.writes(notebook, "md")


def command_help(arguments: list[str]) -> str:
    """Returns what `comrope … --help` prints, in a fence, made by the parser itself."""
    from comrope.cli import main

    printed = io.StringIO()
    plain = mock.patch.dict(os.environ, {"COLUMNS": "96", "NO_COLOR": "1", "TERM": "dumb"})
    typed = mock.patch.object(sys, "argv", ["comrope", *arguments, "--help"])
    with plain, typed, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main()
    return f"```text\n{printed.getvalue().strip()}\n```"


def gallery() -> Iterator[str]:
    """Yields for each folder of results its title, its command and its figures."""
    for folder in sorted(path for pattern in FIGURES for path in DOCS.glob(pattern)):
        figures = sorted(folder.glob("*.svg"))
        if figures:
            found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            where = folder.relative_to(DOCS).as_posix()
            yield f"## {found['title']}\n\n```sh\n{found['command']}\n```\n\n[Tables]({where}/tables.md)"
            yield from (f"![{found['title']}: {figure.stem}]({where}/{figure.name})" for figure in figures)
