"""What decides the weights of a language model."""

from dataclasses import dataclass

from comrope.lab.experiment import Trial, require


@dataclass(frozen=True)
class TextExperiment(Trial):
    """All that decides the weights of a causal language model on bytes."""

    kind = "text"
    module = "comrope.lab.text.problem"

    data: str = "stdlib"
    """"stdlib", the standard library of the Python that runs, or a folder of text files."""
    suffixes: tuple[str, ...] = (".md", ".py", ".rst", ".txt")
    """Which files of a folder are text; of "stdlib" it is .py."""
    num_train: int | None = None
    """Windows in an epoch, spread over all training text; as many as it takes to be as long as that if None."""
    num_test: int | None = None
    """Stretches of test text at most, spread over all of it; all if None."""
    length: int = 256
    """Bytes in a window: the context that is trained with."""
    test_length: int = 2048
    """Bytes in a stretch of test text; every length that is measured divides it, so that all predict the same bytes."""
    model: str = "small"
    """"tiny", "small" or "medium", of transformers' Llama architecture."""
    encoding: str = "comrope-ld"
    """Name of an encoding. "rope" leaves the model with the RoPE of its library, untouched."""
    init: str | None = None
    """How the angles start: "normal", "identity" or "rope". None is "rope": the model's own."""
    start: str | None = None
    """Name of a run beside this one, of the same model with encoding="rope", whose weights training starts from."""

    def __post_init__(self):
        lengths = {name: ("1 byte or more", getattr(self, name) >= 1) for name in ("length", "test_length")}
        require(self, {**lengths, "data": ("'stdlib', or a folder", bool(self.data))})

    def _title(self) -> str:
        return f"{self.kind}-{super()._title()}"
