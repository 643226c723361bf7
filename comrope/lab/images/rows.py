"""Images with one label each in the rows of a data set of Hugging Face's `datasets`, on disk or streamed.

A row has the bytes of an image file, or the name of one. They are decoded here, as files in folders are.
"""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from comrope.errors import ConfigurationError, DataError
from comrope.lab.data.hugging_face import Source, column, compute, errors_of, features_of, library, load
from comrope.lab.data.image_files import DAMAGE, upright
from comrope.lab.data.labelled import leave_out, subset
from comrope.lab.data.streams import Sample, SampleStream

HELD_OUT = 0.1
"""Share of the images that are held out for testing if there is one split only."""


@dataclass(frozen=True)
class ImageRows:
    """Images in rows that are read by their index."""

    dataset: Any
    """A `datasets.Dataset`, whose Arrow files are mapped into memory."""
    column: str
    """The name of the column of images."""
    split: str
    """What the rows are called in messages."""
    rows: np.ndarray
    """(n,), the numbers of the rows."""
    labels: Tensor
    """(n,), int64."""
    classes: tuple[str, ...]
    unreadable: str = "fail"
    """Whether an image that cannot be read raises an error ("fail") or is left out ("skip")."""
    mirrors: bool = True
    channels: int = 3

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Returns the split, the number of the row and, if there is one, the name of the file."""
        return _named(f"{self.split}[{self.rows[index]}]", self._value(index))

    def take(self, indices: Sequence[int]) -> Self:
        return replace(self, rows=self.rows[indices], labels=self.labels[indices])

    def pil(self, index: int) -> Image.Image | None:
        """Returns an image as RGB; None if it cannot be read and unreadable="skip"."""
        value = self._value(index)
        return read_image(value, _named(f"{self.split}[{self.rows[index]}]", value), self.unreadable)

    def checksum(self) -> str:
        """Returns the checksum of labels, of names without their folders, and of the sizes of the images in rows."""
        arrow = compute()
        paths = arrow.struct_field(self._values(), "path").to_pylist()
        sizes = arrow.binary_length(arrow.struct_field(self._values(), "bytes")).to_pylist()
        lines = "\n".join(f"{sizes[row]} {os.path.basename(paths[row] or '')}" for row in self.rows.tolist())
        return hashlib.sha256(self.labels.numpy().tobytes() + os.fsencode(lines)).hexdigest()

    def _value(self, index: int) -> dict[str, Any] | None:
        return self._values()[int(self.rows[index])].as_py()

    def _values(self) -> Any:
        """Returns the column as Arrow has it: structures of bytes and path."""
        return self.dataset.data.column(self.column)


class ImageStream(SampleStream):
    """Images in rows that are read from beginning to end. The value of a sample is what the row has, and its class."""

    mirrors = True
    channels = 3

    def __init__(self, rows: Any, columns: "Columns", unreadable: str, **settings: Any):
        """
        Args:
            rows: see `SampleStream`, as `settings`.
            columns: the columns of images and labels.
            unreadable: as in `ImageRows`.
        """
        super().__init__(rows.select_columns([columns.image, columns.label]), **settings)
        self.classes, self.unreadable, self._columns = columns.classes, unreadable, columns
        self._numbers = {key: number for number, key in enumerate(columns.keys)}

    def samples(self, rows: list[dict[str, Any]]) -> list[Any]:
        label = self._columns.label
        for row in rows:
            if row[label] not in self._numbers:
                raise DataError(
                    f"{self.title}: a row has {row[label]!r} in the column {label}, which is none of the "
                    f"{len(self.classes)} classes: {_OTHERS}."
                )
        return [(row[self._columns.image], self._numbers[row[label]]) for row in rows]


@dataclass(frozen=True)
class StreamedImages:
    """Samples of a stream as a set of images."""

    stream: ImageStream
    samples: Sequence[Sample]

    @property
    def channels(self) -> int:
        return self.stream.channels

    @property
    def labels(self) -> Tensor:
        return torch.tensor([sample.value[1] for sample in self.samples])

    def name(self, index: int) -> str:
        sample = self.samples[index]
        return _named(f"{self.stream.title}, image {sample.index} of epoch {sample.epoch + 1}", sample.value[0])

    def pil(self, index: int) -> Image.Image | None:
        """Returns an image as RGB; None if it cannot be read and unreadable="skip"."""
        return read_image(self.samples[index].value[0], self.name(index), self.stream.unreadable)


@dataclass(frozen=True)
class Columns:
    """The columns of images and labels, and the classes."""

    image: str
    label: str
    keys: tuple[Any, ...]
    """What the column of labels has for each class."""
    classes: tuple[str, ...]

    def numbers(self, rows: Any, name: str) -> Tensor:
        """Returns the classes of rows, (n,), int64; raises DataError if a row has none of them."""
        import pyarrow

        values = rows.data.column(self.label)
        found = compute().index_in(values, value_set=pyarrow.array(self.keys, values.type))
        numbers = found.fill_null(-1).to_numpy().astype(np.int64)
        unknown = np.flatnonzero(numbers < 0)
        if len(unknown):
            raise DataError(
                f"{name}: {len(unknown)} of {len(numbers)} rows have no label of the {len(self.keys)} classes, such as row "
                f"{unknown[0]} with {values[int(unknown[0])].as_py()!r} in the column {self.label}: {_OTHERS}."
            )
        return torch.from_numpy(numbers)


_OTHERS = "name another split or column after a comma, as test=NAME or label=NAME, or mend the data"


def _named(name: str, value: dict[str, Any] | None) -> str:
    """Returns the name of a row with that of its file, if it has one."""
    return f"{name} ({value['path']})" if value and value["path"] else name


def read_image(value: dict[str, Any] | None, name: str, unreadable: str) -> Image.Image | None:
    """Returns the image of a row as RGB, upright; None if it cannot be read and unreadable="skip".

    Args:
        value: the bytes of an image file, or the path of one.
        name: what the image is called in messages.
        unreadable: "fail" or "skip".
    Raises:
        DataError: the image cannot be read and unreadable="fail".
    """
    data, path = (value["bytes"], value["path"]) if value else (None, None)
    try:
        if data is not None:
            return upright(io.BytesIO(data))
        if path is None:
            raise ValueError("the row has no image")
        return upright(path)
    except UnidentifiedImageError as error:
        what = error if data is None else ValueError(f"its {len(data)} bytes are no image")  # not the object's address
        return leave_out(name, what, unreadable)
    except DAMAGE as error:
        return leave_out(name, error, unreadable)


def image_rows(source: Source, num_train: int | None, unreadable: str) -> tuple[ImageRows | ImageStream, ImageRows]:
    """Returns the images of a source to train on, all or `num_train` in an epoch of a stream, and all to test on.

    Of a split alone a tenth of each class is held out, always the same images.

    Raises:
        ConfigurationError: columns or splits cannot be told; a stream without `num_train`.
        DataError: the data are missing or damaged, or rows have no label.
    """
    source.refuse("text")
    datasets, splits = library(), load(source)
    if source.streaming and splits.test is None:
        raise ConfigurationError(
            f"{splits.train_title} is the only split, of which no images of each class can be held out before all are read: "
            "leave out streaming, or put images to test on beside it as a split of their own."
        )
    features = features_of(source, splits.train)
    image, label = _columns(datasets, source, features)
    undecoded = datasets.Image(decode=False)
    if isinstance(features[label], datasets.ClassLabel):
        classes = tuple(features[label].names)
        keys: tuple[Any, ...] = tuple(range(len(classes)))
    else:
        keys = tuple(sorted(key for key in splits.indexed.unique(label) if key is not None))
        classes = tuple(map(str, keys))
    columns = Columns(image, label, keys, classes)

    def indexed(rows: Any, title: str) -> ImageRows:
        names = getattr(rows.features.get(label), "names", None)
        if not {image, label} <= set(rows.column_names) or (names and tuple(names) != classes):
            raise DataError(f"{title} has other columns or classes than the split to train on: name another split.")
        labels = columns.numbers(rows, title)
        with errors_of(title):
            rows = rows.cast_column(image, undecoded)
        return ImageRows(rows, image, title, np.arange(len(labels)), labels, classes, unreadable)

    if source.streaming:
        stream = ImageStream(
            splits.train.cast_column(image, undecoded), columns, unreadable, **splits.settings(num_train)
        )
        return stream, indexed(splits.test, splits.test_title)
    train = indexed(splits.train, splits.train_title)
    if splits.test is not None:
        return train, indexed(splits.test, splits.test_title)
    if len(train) < 2:
        raise DataError(f"{splits.train_title} has one image: expected some to train on and some to test on.")
    held_out = subset(train, max(1, round(HELD_OUT * len(train))), "num_test")
    return train.take(np.setdiff1d(train.rows, held_out.rows).tolist()), held_out


def _columns(datasets: Any, source: Source, features: dict[str, Any]) -> tuple[str, str]:
    """Returns the names of the columns of images and of labels."""

    def of(*types: str) -> list[str]:
        return [name for name, feature in features.items() if getattr(feature, "dtype", None) in types]

    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    files = [name for name, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]
    image = column(source, features, "image", images, [*files, *of("binary", "large_binary")])
    named = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [name for name in of(*_PLAIN) if name not in (*named, image)]
    return image, column(source, features, "label", named, plain)


_PLAIN = ("string", "large_string", "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
"""The types of columns that may be labels without names of classes."""
