"""The training and evaluation text of a configuration."""

from functools import lru_cache

from comrope.lab.text.config import TextConfig
from comrope.lab.text.corpus import EvalText, TrainText, documents


def datasets(config: TextConfig, unreadable: str = "fail") -> tuple[TrainText, EvalText]:
    """The windows to train on and the stretches to evaluate on; what was read last is kept in memory."""
    names = ("data", "suffixes", "num_train", "num_test", "length", "test_length")
    return _kept((*(getattr(config, name) for name in names), config.recipe.seed), unreadable)


@lru_cache(maxsize=2)
def _kept(settings: tuple, unreadable: str) -> tuple[TrainText, EvalText]:
    source, suffixes, num_train, num_test, length, test_length, seed = settings
    train, test = documents(source, suffixes, unreadable)
    return TrainText(train, length, num_train, seed=seed), EvalText.of(test, test_length, num_test)
