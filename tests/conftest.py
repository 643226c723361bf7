"""Settings that every test runs under."""

import signal

import pytest
import torch


def pytest_configure() -> None:
    """Ctrl-C interrupts tests and their processes, also where pytest was started with it ignored, as in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small matrices gain nothing from threads, and sums then come in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeded():
    """The same draws in each test, whatever ran before it."""
    torch.manual_seed(0)
