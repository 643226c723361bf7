"""Settings that every test runs under."""

import pytest
import torch


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
