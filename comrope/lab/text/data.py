"""Loads the text that a configuration names."""

from functools import lru_cache

from comrope.lab.text.config import TextConfig
from comrope.lab.text.corpus import EvalText, TrainText, documents


def datasets(config: TextConfig, unreadable: str = "fail") -> tuple[TrainText, EvalText]:
    """Returns the windows to train on and the segments to evaluate on; the sets read last are cached."""
    names = ("data", "suffixes", "num_train", "num_test", "length", "test_length")
    return _cached((*(getattr(config, name) for name in names), config.recipe.seed), unreadable)


@lru_cache(maxsize=2)
def _cached(settings: tuple, unreadable: str) -> tuple[TrainText, EvalText]:
    source, suffixes, num_train, num_test, length, test_length, seed = settings
    train, test = documents(source, suffixes, unreadable)
    return TrainText(train, length, num_train, seed=seed), EvalText.of(test, test_length, num_test)
