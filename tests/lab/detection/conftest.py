"""Scenes that are composed once."""

import pytest


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> str:
    """What an experiment's `data` is: a dozen and five scenes, composed when they are first asked for."""
    return f"scenes:{tmp_path_factory.mktemp('scenes')}"
