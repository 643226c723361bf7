"""The settings that decide the weights of a language model, and what it can be evaluated under."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from comrope.lab.experiment import ExperimentConfig, require

if TYPE_CHECKING:
    from comrope.lab.problem import Problem
    from comrope.lab.text.corpus import EvalText, TrainText
    from comrope.lab.text.problem import Condition


@dataclass(frozen=True)
class TextOptions:
    """The measurements of a language model: at every combination of lengths and scalings."""

    lengths: tuple[int, ...] = ()
    """Lengths of windows of text, in bytes; that of training by default."""
    scalings: tuple[Literal["none", "linear", "ntk", "yarn"], ...] = ()
    """How frequencies are scaled for windows that are longer than in training."""


@dataclass(frozen=True)
class TextConfig(ExperimentConfig):
    """All that decides the weights of a causal language model on bytes."""

    kind = "text"
    about = "Train a language model on bytes: of any folder of texts, or of Python's own standard library."
    Options = TextOptions

    data: str = "stdlib"
    """"stdlib", the standard library of the Python that runs, or a folder of text files."""
    suffixes: tuple[str, ...] = (".md", ".py", ".rst", ".txt")
    """Suffixes of the files in a folder that are text; with "stdlib" it is .py."""
    num_train: int | None = None
    """Number of windows in an epoch, spread over all training text; as many as cover it once if None."""
    num_test: int | None = None
    """Largest number of stretches of test text, spread over all of it; all if None."""
    length: int = 256
    """Bytes in a training window: the context length."""
    test_length: int = 2048
    """Bytes in a stretch of test text. Every length that is evaluated divides it, so that all predict the same bytes."""
    model: str = "small"
    """"tiny", "small" or "medium", of transformers' Llama architecture."""
    encoding: str = "comrope-ld"
    """Name of the encoding. "rope" leaves the model with the RoPE of its library, untouched."""
    init: str | None = None
    """How the angles start: "normal", "identity" or "rope", the model's own RoPE, if None too."""
    start: str | None = None
    """Name of a run beside this one, of the same model with encoding="rope", whose weights training starts from."""

    def __post_init__(self):
        lengths = {name: ("1 byte or more", getattr(self, name) >= 1) for name in ("length", "test_length")}
        require(self, {**lengths, "data": ("'stdlib', or a folder", bool(self.data))})

    @property
    def problem(self) -> "Problem[TextConfig, TextOptions, TrainText, EvalText, Condition]":
        from comrope.lab.text import problem

        return problem

    def _title(self) -> str:
        return f"{self.kind}-{super()._title()}"
