"""The public names of `import comrope`, and what importing it costs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import comrope
from comrope.encodings import ENCODINGS, Encoding, LearnedEncoding, SpectralEncoding
from tests import helpers

PUBLIC = {
    *("checks", "encodings", "errors", "hosts", "positions", "reference", "rivals", "rotation", "scaling", "testing"),
    *("attach", "check", "detach", "encoding", "export_timm", "fold", "freeze", "register"),
    *("load", "load_official", "param_groups", "rescale", "save", "show"),
}
"""Every public name of the package. Changing this set changes the public API."""

OTHERS = {"__version__", "cli", "explorer", "lab", "importlib", "Any", "TYPE_CHECKING"}
"""Other names in the package: the version, what needs an extra, and what its own code imports."""

CHANGES = (Path(__file__).parents[1] / "CHANGELOG.md").read_text("utf-8")

OPTIONAL = (
    "timm",
    "transformers",
    "diffusers",
    "torchvision",
    "sklearn",
    "matplotlib",
    "accelerate",
    "tyro",
    "jinja2",
    "rich",
    "datasets",
)

_MEASURE = """
import json, sys
import torch
before = set(sys.modules)
import comrope
names = sorted(name for name in dir(comrope) if name == "__version__" or not name.startswith("_"))
for name in names:
    getattr(comrope, name)
json.dump({"modules": sorted(sys.modules), "more": sorted(set(sys.modules) - before), "names": names}, sys.stdout)
"""


def _measure_import() -> dict:
    done = subprocess.run([sys.executable, "-c", _MEASURE], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def imports():
    """What a fresh interpreter imports with comrope."""
    return _measure_import()


@pytest.mark.slow
def test_the_public_names_are_these(imports):
    assert set(imports["names"]) - OTHERS == PUBLIC == set(comrope.__all__)
    assert all(hasattr(comrope, name) for name in PUBLIC)
    assert not hasattr(comrope, "encodding")


@pytest.mark.slow
def test_importing_it_needs_torch_alone(imports):
    top = {module.partition(".")[0] for module in imports["modules"]}
    assert "comrope" in top
    assert top.isdisjoint(OPTIONAL)


@pytest.mark.slow
def test_it_imports_torch_on_first_use():
    loaded = "'torch' in sys.modules"
    code = f"import sys, comrope, comrope.cli; assert not {loaded}; comrope.encoding; assert {loaded}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_it_imports_nothing_of_torch_that_takes_long(imports):
    """torch.distributed.tensor took 1.3 seconds, torch._inductor two. Seconds themselves depend on the machine."""
    others = [module for module in imports["more"] if not module.startswith("comrope")]
    heavy = ("torch.distributed.tensor", "torch._inductor", "torch._dynamo", "sympy", "numpy.testing")
    assert not [module for module in others if module.startswith(heavy)]
    assert len(others) < 30, others


def test_the_lists_of_the_tests_hold_every_encoding():
    rotary = {name for name, kind in ENCODINGS.items() if issubclass(kind, Encoding)}
    assert set(helpers.EVERY) == set(ENCODINGS)
    assert set(helpers.ROTARY) == rotary
    assert set(helpers.SPECTRAL) == {name for name in rotary if issubclass(ENCODINGS[name], SpectralEncoding)}
    assert set(helpers.LEARNED) == {name for name in rotary if issubclass(ENCODINGS[name], LearnedEncoding)}


def test_encodings_are_built_by_name():
    for name, kind in ENCODINGS.items():
        assert type(helpers.build(name)) is kind


def test_the_version_is_three_numbers_and_dev_between_releases():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev0|rc\d+)?", comrope.__version__)


def test_the_change_log_begins_with_this_version():
    """A version that is not released has no date yet."""
    version, date = re.search(r"^## (\S+) \((.*)\)$", CHANGES, re.MULTILINE).groups()
    assert comrope.__version__.removesuffix(".dev0") == version
    assert (date == "unreleased") == comrope.__version__.endswith(".dev0")
    assert date == "unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", date)
