"""Text as bytes: files split into training and test text, packed into windows, cut into stretches.

A document is one token BOS and then the bytes of a file. Training text is packed: all documents in a row, windows cut out of
it anywhere. Nothing is padded and no byte is lost, and where a window runs over the end of a document, positions start again
at 0, from which transformers makes a block-diagonal mask, so that no token sees another document. Test text is not packed: a
stretch lies within one document, so that a byte's place in a window is the context it has.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from comrope.errors import ConfigurationError, DataError
from comrope.lab.data.labelled import files_below, leave_out
from comrope.lab.rng import Stream, generator

BOS = 256
"""The token that a document begins with; a byte is its own token."""
VOCABULARY = 257
TEST_SHARE = 0.1
"""Of the files."""
_NOT_TEXT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
"""Folders of the standard library that are left out: tests, and what was installed beside it."""


@dataclass(frozen=True)
class TextBatch:
    """A batch to train on."""

    tokens: Tensor
    """(B, L + 1)."""
    positions: Tensor
    """(B, L), of all but the last token: 0 where the window or a document begins. (1, L) where all rows are alike."""


class TrainText:
    """Windows of packed documents: `dataset[[(epoch, index, copy), …]]` is a `TextBatch`.

    Window `index` begins at random within the index-th of `num_windows` equal parts of the text: an epoch covers all of it
    evenly, and each one cuts it elsewhere.
    """

    def __init__(self, documents: Sequence[bytes], length: int, num_windows: int | None = None, *, seed: int = 0):
        self.tokens, self.starts = _packed(documents)
        self.length, self.seed = length, seed
        self.num_windows = len(self.tokens) // length if num_windows is None else num_windows
        if len(self.tokens) <= length or not 1 <= self.num_windows <= len(self.tokens):
            raise ConfigurationError(
                f"length={length}, num_train={num_windows}: expected windows shorter than the {len(self.tokens)} tokens of "
                "training text, one at least, and no more than tokens."
            )

    def __len__(self) -> int:
        return self.num_windows

    def __getitems__(self, keys: list[tuple[int, int, int]]) -> TextBatch:
        part = (len(self.tokens) - self.length) / self.num_windows
        begins = torch.tensor([int((key[1] + self._draw(key)) * part) for key in keys])
        places = begins.unsqueeze(1) + torch.arange(self.length + 1)  # (B, L + 1), in the packed text
        document = torch.searchsorted(self.starts, places[:, :-1].contiguous(), right=True) - 1
        positions = places[:, :-1] - torch.maximum(self.starts[document], begins.unsqueeze(1))
        alike = bool((positions == positions[:1]).all())
        return TextBatch(self.tokens[places].long(), positions[:1] if alike else positions)

    def _draw(self, key: tuple[int, int, int]) -> float:
        return torch.rand((), dtype=torch.float64, generator=generator(self.seed, Stream.AUGMENTATION, *key)).item()


@dataclass(frozen=True)
class EvalText:
    """Stretches of test documents."""

    tokens: Tensor
    """(num_stretches, test_length + 1), int16: each a piece of one document, the last token also the next one's first."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        """Bytes in a stretch that are predicted: all but its first token."""
        return self.tokens.shape[1] - 1

    @classmethod
    def of(cls, documents: Sequence[bytes], length: int, num: int | None = None) -> "EvalText":
        """At most `num` stretches, spread evenly over all that there are."""
        pieces = [
            tokens[at : at + length + 1]
            for tokens in map(_tokens, documents)
            for at in range(0, len(tokens) - length, length)
        ]
        if not pieces:
            raise DataError(f"no test document has {length} bytes: choose a shorter test_length, or give longer texts.")
        if num is not None and num < 1:
            raise ConfigurationError(f"num_test={num}: expected 1 stretch or more.")
        count = len(pieces) if num is None else min(num, len(pieces))
        chosen = np.linspace(0, len(pieces) - 1, count).round().astype(int)
        return cls(torch.from_numpy(np.stack([pieces[i] for i in chosen])))


@lru_cache(maxsize=2)
def documents(source: str, suffixes: tuple[str, ...], unreadable: str = "fail") -> tuple[list[bytes], list[bytes]]:
    """The texts to train on and to test on, in the order of their paths.

    The tenth of the files whose paths have the smallest hashes are for testing, one at least. Of files with the same bytes
    only the first is read, so that no text is on both sides. Empty files are left out, and hidden ones.

    Args:
        source: "stdlib", or a folder.
        suffixes: of the files in a folder that are text, in any case.
        unreadable: whether a file that cannot be read is to "fail", or be left out ("skip").
    Raises:
        DataError: there is no such folder, too little in it, or a file that cannot be read.
    """
    root = Path(sysconfig.get_path("stdlib") if source == "stdlib" else source)
    if not source or not os.path.isdir(root):
        raise DataError(
            f"data={source!r}: expected 'stdlib', or a folder of text files, and {root} is none: --data says where it is."
        )
    wanted = (".py",) if source == "stdlib" else suffixes
    try:
        found = [Path(path) for path in files_below(str(root))]
    except OSError as error:
        raise DataError(
            f"{root} cannot be read ({error}): make its folders readable, or name another folder."
        ) from error
    endings = {suffix.lower() for suffix in wanted}
    paths = sorted(path.relative_to(root).as_posix() for path in found if path.suffix.lower() in endings)
    if source == "stdlib":
        paths = [path for path in paths if _NOT_TEXT.isdisjoint(path.split("/"))]
    texts: dict[str, bytes] = {}
    seen: set[bytes] = set()
    for path in paths:
        text = _read(root / path, unreadable)
        digest = hashlib.sha256(text).digest()
        if text and digest not in seen:
            texts[path] = text
            seen.add(digest)
    if len(texts) < 2:
        raise DataError(
            f"{root} holds {len(texts)} different texts with the suffixes {', '.join(wanted)}: expected two at least, one to "
            "train on and one to test on; --suffixes says what is text."
        )
    test = held_out(texts)
    return [texts[path] for path in texts if path not in test], [texts[path] for path in texts if path in test]


def held_out(paths: Iterable[str]) -> set[str]:
    """The paths that are for testing; those that stay keep their side, but for a few at the margin, when files are added.

    >>> sorted(held_out(f"{i}.txt" for i in range(20)))
    ['1.txt', '18.txt']
    """
    order = sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path)).digest())
    return set(order[: max(1, round(TEST_SHARE * len(order)))])


def _read(path: Path, unreadable: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        leave_out(str(path), error, unreadable)
        return b""


def _tokens(text: bytes) -> np.ndarray:
    return np.concatenate(([BOS], np.frombuffer(text, np.uint8))).astype(np.int16)


def _packed(texts: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """All tokens in a row, and where each document begins."""
    pieces = [_tokens(text) for text in texts]
    lengths = torch.tensor([0, *(len(piece) for piece in pieces[:-1])])
    return torch.from_numpy(np.concatenate(pieces)), lengths.cumsum(0)
