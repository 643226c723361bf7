"""Loads the text that a configuration names."""

from functools import lru_cache

from comrope.lab.data.hugging_face import PREFIX, Source
from comrope.lab.experiment import Recipe
from comrope.lab.text.config import TextConfig
from comrope.lab.text.corpus import EvalText, TrainText, documents
from comrope.lab.text.rows import TextStream, text_rows


def datasets(config: TextConfig, unreadable: str = "fail") -> tuple[TrainText | TextStream, EvalText]:
    """Returns the windows to train on and the segments to evaluate on; the sets read last are cached."""
    names = ("data", "suffixes", "num_train", "num_test", "length", "test_length")
    settings = {name: getattr(config, name) for name in names}
    return _cached(TextConfig(**settings, recipe=Recipe(seed=config.recipe.seed)), unreadable)


@lru_cache(maxsize=2)
def _cached(config: TextConfig, unreadable: str) -> tuple[TrainText | TextStream, EvalText]:
    if config.data.startswith(PREFIX):
        train, test = text_rows(Source.parse(config.data), config)
    else:
        train, test = documents(config.data, config.suffixes, unreadable)
    if not isinstance(train, TextStream):
        train = TrainText(train, config.length, config.num_train, seed=config.recipe.seed)
    return train, EvalText.of(test, config.test_length, config.num_test)
