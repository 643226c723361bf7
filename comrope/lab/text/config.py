"""The configuration of a language model, and the options of its evaluation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from comrope.lab.experiment import ExperimentConfig, require
from comrope.lab.options import Scaling

if TYPE_CHECKING:
    from comrope.lab.problem import Problem
    from comrope.lab.text.corpus import EvalText, TrainText
    from comrope.lab.text.problem import Condition
    from comrope.lab.text.rows import TextStream


@dataclass(frozen=True)
class TextOptions:
    """A language model is evaluated at every combination of these lengths and scalings."""

    lengths: tuple[int, ...] = ()
    """Context lengths in bytes; the length trained at by default."""
    scalings: tuple[Scaling, ...] = ()
    """How frequencies are scaled at lengths beyond the trained one."""


@dataclass(frozen=True)
class TextConfig(ExperimentConfig):
    """All settings that determine the weights of a causal language model on bytes."""

    kind = "text"
    about = "Train a language model on bytes: of any folder of texts, or of Python's own standard library."
    Options = TextOptions

    data: str = "stdlib"
    """"stdlib" of the running Python, a folder of text files, or "hf:" and what `datasets` reads."""
    suffixes: tuple[str, ...] = (".md", ".py", ".rst", ".txt")
    """Suffixes of the files in a folder that are text; with "stdlib" it is .py, and "hf:" has columns instead."""
    num_train: int | None = None
    """Number of windows in an epoch, spread over all training text; as many as cover it once if None."""
    num_test: int | None = None
    """Largest number of test segments, spread over all test text; all if None."""
    length: int = 256
    """Bytes in a training window: the context length."""
    test_length: int = 2048
    """Bytes in a test segment. Every evaluated length divides it, so that the same bytes are predicted at each length."""
    model: str = "small"
    """"tiny", "small" or "medium", of transformers' Llama architecture."""
    encoding: str = "comrope-ld"
    """Name of the encoding. "rope" keeps the model's own RoPE, that of transformers."""
    init: str | None = None
    """How the angles start: "normal", "identity", or "rope" (also if None) for the frequencies of the model's own RoPE."""
    start: str | None = None
    """Name of a run beside this one, of the same model with encoding="rope", whose weights training starts from."""

    def __post_init__(self):
        lengths = {name: ("1 byte or more", getattr(self, name) >= 1) for name in ("length", "test_length")}
        require(self, {**lengths, "data": ("'stdlib', a folder, or 'hf:…'", bool(self.data))})

    @property
    def problem(self) -> "Problem[TextConfig, TextOptions, TrainText | TextStream, EvalText, Condition]":
        from comrope.lab.text import problem

        return problem

    def _title(self) -> str:
        return f"{self.kind}-{super()._title()}"
