"""Fixtures that every test uses."""

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from comrope import cli


def pytest_configure(config: pytest.Config) -> None:
    """Ctrl-C interrupts tests and their processes, also where pytest was started with it ignored, as in the background.

    What `datasets` writes goes to a folder that is removed at the end, not to the user's cache.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        cache = tempfile.TemporaryDirectory(prefix="comrope-datasets-")
        os.environ["HF_DATASETS_CACHE"] = cache.name
        config.add_cleanup(cache.cleanup)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Says which tests stay in one process (--dist loadgroup): those of a file if they share runs or what is slow to import
    and compile, else those of a function."""
    for item in items:
        file, _, function = item.nodeid.partition("::")
        shared = file.startswith(("tests/lab/", "tests/faults/")) or item.get_closest_marker("slow")
        item.add_marker(pytest.mark.xdist_group(file if shared else f"{file}::{function.partition('[')[0]}"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Runs on one thread: small matrices gain nothing from more, and sums are then always in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded():
    """Seeds torch's generator, so that a test does not depend on those that ran before."""
    torch.manual_seed(0)


@pytest.fixture
def comrope(monkeypatch, capsys):
    """Calls the entry point as the console script does: (exit code, stdout, stderr)."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["comrope", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    yield call
    signal.signal(signal.SIGTERM, before)
