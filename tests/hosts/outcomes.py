"""What `comrope.attach` makes of every model of the zoo: the table of models in docs/hosts.md is written from here.

    python -m tests.hosts.outcomes

runs it on the installed versions and writes docs/models/<library>-<version>.json and the table. Where other versions than those
of constraints.txt lie in front (`make test-versions`), theirs are written.
"""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

import comrope
from comrope.errors import ComropeError
from tests.hosts.zoo import LENGTH, ZOO, Entry, names

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "hosts.md"
BEGIN, END = "<!-- models: written by python -m tests.hosts.outcomes -->", "<!-- /models -->"


def told(*_, **__) -> torch.Tensor:
    """Positions as a user says them: of a sequence, one after the other."""
    return torch.arange(LENGTH, dtype=torch.float32).unsqueeze(1)


OWN = {"positions": told}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "vjepa2": {"init": "normal"},
    "t5 encoder": OWN,
    "bloom": OWN,
    "latte": {"layers": "transformer_blocks.*.attn1"},
    "sd3.5": {"layers": "transformer_blocks.*.attn2"},
    "torch encoder": OWN,
    "torch own": OWN | {"layers": "layers.*"},
}
"""What has to be said beside the name of the encoding."""
SHAPED = ("timm hiera", "timm volo", "timm mvitv2", "latte", "cogvideox")
"""Whose sizes, as small as they are here, their configurations do not tell."""


def attached(entry: Entry, name: str = "rope-mixed", model: nn.Module | None = None, **settings) -> nn.Module:
    """The model of an entry with an encoding."""
    more = dict(ARGUMENTS.get(entry.name, {}))
    if "positions" in more or entry.name in SHAPED:
        more["example"] = entry.keywords()
    return comrope.attach(entry.build() if model is None else model, name, **(more | settings))


def outcome(entry: Entry) -> str | None:
    """Nothing where an encoding attaches; else the reason why not; None where this version lacks the model."""
    try:
        model = entry.build()
    except (ImportError, AttributeError):
        return None
    try:
        attached(entry, model=model)
    except ComropeError as error:
        return re.sub(r"\s+", " ", str(error))
    return ""


def roughly(reason: str) -> str:
    """A reason without its numbers, which rounding changes."""
    return re.sub(r"\d[\d.e×+-]*", "#", reason)


def version(library: str) -> str:
    return importlib.import_module(library).__version__.split("+")[0]


def outcomes(library: str) -> dict[str, str]:
    """Of all models of a library that the installed version has."""
    found = {name: outcome(ZOO[name]) for name in names(library)}
    return {name: reason for name, reason in found.items() if reason is not None}


def recorded() -> dict[str, dict[str, dict[str, str]]]:
    """By library and version."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for path in sorted((DOCS / "models").glob("*.json")):
        library, _, number = path.stem.rpartition("-")
        found.setdefault(library, {})[number] = json.loads(path.read_text(encoding="utf-8"))
    return found


def in_order(versions) -> list[str]:
    return sorted(versions, key=lambda version: [int(part) for part in version.split(".")[:3]])


def table() -> str:
    """As the page has it: for each library its models, and what became of them in each version."""
    lines = []
    for library, versions in recorded().items():
        numbers = in_order(versions)
        lines += [f"| {library} | " + " | ".join(numbers) + " | |", "|---|" + "---|" * (len(numbers) + 1)]
        for name in names(library):
            found = [versions[number].get(name) for number in numbers]
            if all(each is None for each in found):
                continue
            marks = ["–" if each is None else "yes" if not each else "no" for each in found]
            lines.append(f"| {_title(name)} | " + " | ".join(marks) + f" | {_remark(name, found)} |")
        lines.append("")
    return "\n".join(lines)


def _title(name: str) -> str:
    return name.removeprefix("timm ").removeprefix("torch ")


def _remark(name: str, found: list[str | None]) -> str:
    said = ARGUMENTS.get(name, {})
    remarks = [f"with `{key}=…`" for key in said] if said else []
    reason = next((each for each in reversed(found) if each), "")
    if reason:
        said_why = reason.partition(": ")[2] or reason
        if "is no model of" in reason:
            said_why = "no attention layers and positions that comrope can find"
        for beginning in ("an encoding cannot be proved in this ", "an encoding cannot be put into this "):
            said_why = said_why.removeprefix(beginning)
        said_why = said_why.replace(
            "give one, comrope.attach(model, name, example={…})", "no input that could be made up"
        )
        remarks.append(re.split(r": say where|; give one|; its features|\. ", said_why)[0].rstrip("."))
    return "; ".join(remarks)


def page_with(models: str) -> str:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{models}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    (DOCS / "models").mkdir(exist_ok=True)
    for library in ("timm", "transformers", "diffusers", "torch"):
        try:
            number = version(library)
        except ImportError:
            continue
        found = outcomes(library)
        path = DOCS / "models" / f"{library}-{number}.json"
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path.name}: {sum(not reason for reason in found.values())} of {len(found)} attach")
    PAGE.write_text(page_with(table()), encoding="utf-8")


if __name__ == "__main__":
    main()
