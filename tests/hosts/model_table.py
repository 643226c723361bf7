"""The outcome of `comrope.attach` for every model of the zoo, and the table of models in docs/hosts.md.

    python -m tests.hosts.model_table

writes docs/models/<library>-<version>.json for the installed versions, and the table. `python -m tests.versions oldest
earlier --record` does so with other versions than those of constraints.txt.
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
from tests.hosts.zoo import LIBRARIES, NUM_TOKENS, ZOO, Entry, names

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "hosts.md"
BEGIN, END = "<!-- models: written by python -m tests.hosts.model_table -->", "<!-- /models -->"


def sequence_positions(*_, **__) -> torch.Tensor:
    """Positions of a sequence, as given by a user."""
    return torch.arange(NUM_TOKENS, dtype=torch.float32).unsqueeze(1)


SEQUENCE = {"positions": sequence_positions}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "vjepa2": {"init": "normal"},
    "t5 encoder": SEQUENCE,
    "bloom": SEQUENCE,
    "latte": {"layers": "transformer_blocks.*.attn1"},
    "sd3.5": {"layers": "transformer_blocks.*.attn2"},
    "torch encoder": SEQUENCE,
    "torch own": SEQUENCE | {"layers": "layers.*"},
}
"""Arguments of `attach` that a model needs, except for the name of the encoding."""
NEEDING_EXAMPLE = ("timm hiera", "timm volo", "timm mvitv2", "latte", "cogvideox")
"""Models that need an example, since their configurations do not have the small sizes used here."""


def attach_to(entry: Entry, name: str = "rope-mixed", model: nn.Module | None = None, **settings) -> nn.Module:
    """Attaches an encoding to the model of an entry, and returns it."""
    more = dict(ARGUMENTS.get(entry.name, {}))
    if "positions" in more or entry.name in NEEDING_EXAMPLE:
        more["example"] = entry.keywords()
    return comrope.attach(entry.build() if model is None else model, name, **(more | settings))


def attach_error(entry: Entry) -> str | None:
    """Returns the reason why an encoding cannot be attached, "" if it can, and None if this version lacks the model."""
    try:
        model = entry.build()
    except (ImportError, AttributeError):
        return None
    try:
        attach_to(entry, model=model)
    except ComropeError as error:
        return re.sub(r"\s+", " ", str(error))
    return ""


def without_numbers(reason: str) -> str:
    """Returns a reason without its numbers, which depend on rounding."""
    return re.sub(r"\d[\d.e×+-]*", "#", reason)


def version(library: str) -> str:
    return importlib.import_module(library).__version__.split("+")[0]


def outcomes(library: str) -> dict[str, str]:
    """Returns the outcome for all models of a library that the installed version has."""
    found = {name: attach_error(ZOO[name]) for name in names(library)}
    return {name: reason for name, reason in found.items() if reason is not None}


def recorded_outcomes() -> dict[str, dict[str, dict[str, str]]]:
    """Returns the recorded outcomes, by library, version and model."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for path in sorted((DOCS / "models").glob("*.json")):
        library, _, number = path.stem.rpartition("-")
        found.setdefault(library, {})[number] = json.loads(path.read_text(encoding="utf-8"))
    return found


def in_order(versions) -> list[str]:
    return sorted(versions, key=lambda version: [int(part) for part in version.split(".")[:3]])


def table() -> str:
    """Returns the table in docs/hosts.md: for each library its models, and the outcome in each version."""
    lines = []
    for library, versions in recorded_outcomes().items():
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
    arguments = ARGUMENTS.get(name, {})
    remarks = [f"with `{key}=…`" for key in arguments]
    reason = next((each for each in reversed(found) if each), "")
    if reason:
        summary = reason.partition(": ")[2] or reason
        if "is no model of" in reason:
            summary = "no attention layers and positions that comrope can find"
        for prefix in ("an encoding cannot be proved in this ", "an encoding cannot be put into this "):
            summary = summary.removeprefix(prefix)
        summary = summary.replace(
            "give one, comrope.attach(model, name, example={…})", "no input that could be made up"
        )
        remarks.append(re.split(r": say where|; give one|; its features|\. ", summary)[0].rstrip("."))
    return "; ".join(remarks)


def page_with(models: str) -> str:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{models}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    (DOCS / "models").mkdir(exist_ok=True)
    for library in LIBRARIES:
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
