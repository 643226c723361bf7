"""Text as bytes: files are split into training and test text; training text is packed, test text is cut into segments.

A document is the token BOS followed by the bytes of a file. Training text is packed: all documents are concatenated,
and windows start anywhere. Nothing is padded, and no byte is lost. Where a document begins within a window, positions
restart at 0. From that transformers makes a block-diagonal mask, so that no token attends to another document. Test
text is not packed: a segment lies within one document, so that the position of a byte in a window is the length of its
context.
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
"""Share of the files that are held out for testing."""
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
"""Folders of the standard library that are left out: tests and installed packages."""


@dataclass(frozen=True)
class TextBatch:
    """A batch of training windows."""

    tokens: Tensor
    """(B, L + 1)."""
    positions: Tensor
    """(B, L), for all but the last token: 0 where the window or a document begins. (1, L) if all rows are the same."""


class TrainText:
    """Windows of packed documents: `dataset[[(epoch, index, copy), …]]` is a `TextBatch`.

    Window `index` begins at a random position in the index-th of `num_windows` equal parts of the text. So an epoch
    covers the text evenly, and the windows of different epochs begin at different positions.
    """

    def __init__(self, documents: Sequence[bytes], length: int, num_windows: int | None = None, *, seed: int = 0):
        self.text = PackedText(documents)
        self.length, self.seed = length, seed
        self.num_windows = len(self.text) // length if num_windows is None else num_windows
        if len(self.text) <= length or not 1 <= self.num_windows <= len(self.text):
            raise ConfigurationError(
                f"length={length}, num_train={num_windows}: expected windows shorter than the {len(self.text)} tokens of "
                "training text, one at least, and no more than tokens."
            )

    def __len__(self) -> int:
        return self.num_windows

    def __getitems__(self, keys: list[tuple[int, int, int]]) -> TextBatch:
        """Returns the batch of `keys`, each of which is (epoch, index, copy)."""
        part = (len(self.text) - self.length) / self.num_windows
        return batch_of([self.text.window(int((key[1] + self._uniform(key)) * part), self.length) for key in keys])

    def _uniform(self, key: tuple[int, int, int]) -> float:
        return torch.rand((), dtype=torch.float64, generator=generator(self.seed, Stream.AUGMENTATION, *key)).item()

    def checksum(self) -> str:
        return self.text.checksum()


class PackedText:
    """Documents as one sequence of tokens, of which only the windows that are asked for are made."""

    def __init__(self, documents: Sequence[bytes]):
        self.documents = documents
        self.ends = np.cumsum(_sizes(documents) + 1)
        """(num_documents,), the index of the token after each document."""

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def window(self, begin: int, length: int) -> np.ndarray:
        """Returns the tokens [begin, begin + length], (length + 1,), int16."""
        pieces, end = [], begin + length + 1
        document = int(np.searchsorted(self.ends, begin, side="right"))
        while begin < end:
            text = self.documents[document]
            first = begin - (int(self.ends[document]) - len(text) - 1)
            pieces.append(_tokens(text, first, first + end - begin))
            begin += len(pieces[-1])
            document += 1
        return np.concatenate(pieces)

    def checksum(self) -> str:
        """Returns the checksum of all tokens."""
        found = hashlib.sha256()
        for document in self.documents:
            found.update(_tokens(document).data)
        return found.hexdigest()


def batch_of(windows: Sequence[np.ndarray]) -> TextBatch:
    """Returns the batch of windows of packed text, each (L + 1,): positions begin again at each document."""
    tokens = torch.from_numpy(np.stack(windows)).long()
    indices = torch.arange(tokens.shape[1] - 1)
    positions = indices - (indices * (tokens[:, :-1] == BOS)).cummax(1).values
    alike = bool((positions == positions[:1]).all())
    return TextBatch(tokens, positions[:1] if alike else positions)


@dataclass(frozen=True)
class EvalText:
    """Segments of test documents, all of the same length."""

    tokens: Tensor
    """(num_segments, test_length + 1), int16. A segment's last token is also the first of the next segment."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        """The number of bytes that are predicted in a segment: all but its first token."""
        return self.tokens.shape[1] - 1

    def checksum(self) -> str:
        return hashlib.sha256(self.tokens.numpy().tobytes()).hexdigest()

    @classmethod
    def of(cls, documents: Sequence[bytes], length: int, num: int | None = None) -> "EvalText":
        """Returns at most `num` segments, spread evenly over all that there are."""
        ends = np.cumsum(_sizes(documents) // length)  # in segments
        total = int(ends[-1]) if len(ends) else 0
        if not total:
            raise DataError(f"no test document has {length} bytes: choose a shorter test_length, or give longer texts.")
        if num is not None and num < 1:
            raise ConfigurationError(f"num_test={num}: expected 1 segment or more.")
        count = total if num is None else min(num, total)
        pieces = []
        for segment in np.linspace(0, total - 1, count).round().astype(int):
            document = int(np.searchsorted(ends, segment, side="right"))
            text = documents[document]
            begin = (segment - (int(ends[document]) - len(text) // length)) * length
            pieces.append(_tokens(text, begin, begin + length + 1))
        return cls(torch.from_numpy(np.stack(pieces)))


@lru_cache(maxsize=2)
def documents(source: str, suffixes: tuple[str, ...], unreadable: str = "fail") -> tuple[list[bytes], list[bytes]]:
    """Returns the texts to train on and those to test on, in the order of their paths.

    The tenth of the files whose paths have the smallest hashes, one file at least, are test text. Of files with the
    same bytes only the first is read, so that no text is in both parts. Empty and hidden files are left out.

    Args:
        source: "stdlib", or a folder.
        suffixes: the suffixes of text files in a folder; upper and lower case count as the same.
        unreadable: whether a file that cannot be read raises an error ("fail") or is skipped ("skip").
    Raises:
        DataError: the folder does not exist or holds less than two texts, or a file cannot be read.
    """
    root = Path(sysconfig.get_path("stdlib") if source == "stdlib" else source)
    if not source or not os.path.isdir(root):
        raise DataError(
            f"data={source!r}: expected 'stdlib', or a folder of text files, and {root} is none: --data says where it is. "
            "Before what `datasets` reads comes hf:"
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
        paths = [path for path in paths if _LEFT_OUT.isdisjoint(path.split("/"))]
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
    """Returns the paths that are held out for testing. When files are added, nearly all others stay where they were.

    >>> sorted(held_out(f"{i}.txt" for i in range(20)))
    ['1.txt', '18.txt']
    """
    order = sorted(paths, key=lambda path: hashlib.sha256(os.fsencode(path)).digest())
    return set(order[: max(1, round(TEST_SHARE * len(order)))])


def _read(path: Path, unreadable: str) -> bytes:
    """Returns the bytes of a file, or none if it cannot be read and unreadable="skip"."""
    try:
        return path.read_bytes()
    except OSError as error:
        leave_out(str(path), error, unreadable)
        return b""


def _tokens(text: bytes, begin: int = 0, end: int | None = None) -> np.ndarray:
    """Returns the tokens of a document, or those from `begin` to before `end`, int16."""
    read = np.frombuffer(text[max(0, begin - 1) : None if end is None else end - 1], np.uint8).astype(np.int16)
    return read if begin else np.concatenate(([BOS], read)).astype(np.int16)


def _sizes(documents: Sequence[bytes]) -> np.ndarray:
    """Returns the number of bytes of each document, (num_documents,), int64."""
    if hasattr(documents, "sizes"):
        return documents.sizes  # pyright: ignore[reportAttributeAccessIssue]
    return np.fromiter(map(len, documents), np.int64, len(documents))
