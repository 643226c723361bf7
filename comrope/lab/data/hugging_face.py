"""Data sets that Hugging Face's library `datasets` reads: files and folders on this machine, and data sets of the hub.

Rows are read by their index from Arrow files, which the operating system maps into memory, so that a data set may be
larger than memory. The library writes these files into its cache, unless the data are Arrow already.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from comrope.errors import ComropeError, ConfigurationError, DataError

PREFIX = "hf:"
TEST_SPLITS = ("validation", "val", "valid", "dev", "test")
"""Usual names of the split to test on, the first of which is taken."""
FORMATS = {
    ".arrow": "arrow",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".tar": "webdataset",
    ".txt": "text",
}
"""The library's readers of single files, by suffix."""


@dataclass(frozen=True)
class Source:
    """What `hf:PATH[,KEY=VALUE…]` names: a path on this machine, or a data set of the hub, and what is read of it."""

    path: str
    config: str | None = None
    """Name of the configuration, where there are several."""
    revision: str | None = None
    """Commit, tag or branch of a data set of the hub."""
    train: str | None = None
    """Name of the split to train on."""
    test: str | None = None
    """Name of the split to test on."""
    image: str | None = None
    """Name of the column of images."""
    label: str | None = None
    """Name of the column of labels."""
    text: str | None = None
    """Name of the column of texts."""
    streaming: bool = False
    """Whether training data are read from beginning to end, without Arrow files of them on disk."""
    buffer_size: int = 1000
    """Number of rows that are shuffled together when streaming."""

    @classmethod
    def parse(cls, data: str) -> Self:
        """Returns the source that `data` names. If it is all a path that exists, commas and all, it is that.

        >>> Source.parse("hf:user/photos,label=species,streaming").label
        'species'
        """
        path = os.path.expanduser(data.removeprefix(PREFIX))
        found: dict[str, Any] = {}
        while not os.path.exists(path) and (last := re.fullmatch(r"(.*),(\w+)(?:=([^,]*))?", path, re.DOTALL)):
            path, key, value = last.groups()
            if key not in _KEYS or key in found or (value is None) != (key == "streaming") or value == "":
                raise ConfigurationError(
                    f"data={data!r}: {last[0].removeprefix(path)!r} is no setting: expected {', '.join(_KEYS)}, each as "
                    "name=value and once, or `streaming` alone."
                )
            found[key] = True if value is None else value
        if "buffer_size" in found:
            if not found["buffer_size"].isdecimal() or int(found["buffer_size"]) < 1:
                raise ConfigurationError(f"data={data!r}: buffer_size is a number of rows, 1 or more.")
            found["buffer_size"] = int(found["buffer_size"])
        source = cls(path, **found)
        if not path or (not source.local and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path)):
            raise ConfigurationError(
                f"data={data!r}: expected a folder or a file that exists, and {Path(path).absolute()} does not; or a data "
                "set of the hub, user/name."
            )
        if source.local and source.revision is not None:
            raise ConfigurationError(
                f"data={data!r}: revision is for data sets of the hub, and {path} is a local path."
            )
        if "buffer_size" in found and not source.streaming:
            raise ConfigurationError(f"data={data!r}: buffer_size is for streaming: give both, or leave it out.")
        return source

    @property
    def local(self) -> bool:
        return os.path.exists(self.path)

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.path}"

    def refuse(self, *keys: str) -> None:
        """Raises ConfigurationError if one of the settings is given, which are for other data."""
        given = [key for key in keys if getattr(self, key) is not None]
        if given:
            raise ConfigurationError(f"{self.name}: {', '.join(given)} is for other data than these: leave it out.")


_KEYS = tuple(field.name for field in fields(Source))[1:]


@dataclass(frozen=True)
class Splits:
    """The rows to train on and those to test on."""

    source: Source
    names: tuple[str, str | None]
    train: Any
    """A `datasets.Dataset`; when streaming, a `datasets.IterableDataset`."""
    test: Any
    """A `datasets.Dataset`; None if there is one split only."""
    checksum: str | None = None
    """When streaming, what identifies the training data: the names and sizes of files, or their addresses and commit."""

    @property
    def train_title(self) -> str:
        """What the rows to train on are called in messages."""
        return f"{self.source.name} {self.names[0]}"

    @property
    def test_title(self) -> str:
        return f"{self.source.name} {self.names[1] or self.names[0]}"

    @property
    def indexed(self) -> Any:
        """The rows that are read by their index: all to train on, or all to test on when streaming."""
        return self.test if self.source.streaming else self.train

    def settings(self, num_samples: int | None) -> dict[str, Any]:
        """Returns what a `comrope.lab.data.streams.SampleStream` is told of the rows to train on.

        Raises:
            ConfigurationError: the number of samples in an epoch is not given.
        """
        if num_samples is None:
            raise ConfigurationError(
                f"{self.source.name}: what is streamed is not counted before: --num-train says how many samples are an epoch."
            )
        settings = {"buffer_size": self.source.buffer_size, "num_samples": num_samples, "local": self.source.local}
        return {**settings, "title": self.train_title, "checksum": self.checksum}


def load(source: Source) -> Splits:
    """Returns the splits of a source. A local path is read without asking the network.

    Raises:
        ConfigurationError: `datasets` is not installed; a split is unknown, or cannot be chosen; there is nothing to
            stream.
        DataError: the data are missing or damaged, or a local path leads elsewhere.
    """
    datasets = library()
    if source.local:
        _refuse_links(source)
    with errors_of(source.name, local=source.local), _offline(datasets, source.local):
        if not _is_saved(source.path):
            return _built(datasets, source)
        source.refuse("config")
        found = datasets.load_from_disk(source.path, keep_in_memory=False)
        whole: Any = found if isinstance(found, dict) else {str(found.split or "train"): found}
        if source.streaming:
            raise ConfigurationError(_NOTHING_TO_STREAM.format(source.name))
        names = chosen(source, tuple(whole))
        return Splits(source, names, *map(whole.get, names))


_NOTHING_TO_STREAM = (
    "{}: there is nothing to stream, since these rows are read one by one where they are: leave out streaming."
)


def _built(datasets: Any, source: Source) -> Splits:
    """Returns the splits of data that have to be put into Arrow first, or that are streamed.

    When streaming, the rows to test on are put into Arrow all the same: they are read by their index.
    """
    builder = datasets.load_dataset_builder(**_arguments(source))
    more: dict[str, Any] = {}
    if hasattr(builder.config, "sample_by"):  # texts: a file is a document
        more = {"sample_by": "document"}
        builder = datasets.load_dataset_builder(**_arguments(source), **more)
    if not source.streaming:
        builder.download_and_prepare()
        whole: Any = builder.as_dataset(in_memory=False)
        names = chosen(source, tuple(whole))
        return Splits(source, names, *map(whole.get, names))
    if builder.name == "imagefolder":
        raise ConfigurationError(_NOTHING_TO_STREAM.format(source.name))
    files = {str(split): list(map(str, paths)) for split, paths in builder.config.data_files.items()}
    train, test = chosen(source, tuple(files))
    streamed, tested = builder.as_streaming_dataset(split=train), None
    if test is not None:
        only = {"data_files": {test: [_literal(path) for path in files[test]]}, "features": builder.info.features}
        tested = datasets.load_dataset(builder.name, split=test, keep_in_memory=False, **only, **more)
    return Splits(source, (train, test), streamed, tested, _sum_of_files(source, files[train]))


def library() -> Any:
    """Returns the library `datasets`; raises ConfigurationError if it is not installed."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{error.name} is not installed, which data={PREFIX}… needs: get it by pip install -e '.[hf]' in the "
            "repository, or by pip install datasets."
        ) from error
    return datasets


def compute() -> Any:
    """Returns the functions of Arrow, which type checkers do not know."""
    import pyarrow.compute

    return pyarrow.compute


def chosen(source: Source, names: Sequence[str]) -> tuple[str, str | None]:
    """Returns the names of the splits to train on and to test on; None for the second if there is only one split.

    Raises:
        ConfigurationError: a split that is not there, or the names do not tell.
    """
    there = f"{source.name} has the splits {', '.join(names)}"
    for name in (source.train, source.test):
        if name is not None and name not in names:
            raise ConfigurationError(f"{there}: none is called {name}.")
    train = source.train or ("train" if "train" in names else names[0] if len(names) == 1 else None)
    if train is None:
        raise ConfigurationError(f"{there}, none of them train: say which to train on by train=NAME after a comma.")
    others = [name for name in names if name != train]
    test = source.test or next((name for name in TEST_SPLITS if name in others), None)
    if test == train or (test is None and others):
        raise ConfigurationError(
            f"{there}: to train on {train}, and to test on none of {', '.join(TEST_SPLITS)}, or on the same: say which by "
            "test=NAME after a comma."
        )
    return train, test


def column(source: Source, features: dict[str, Any], what: str, *kinds: Sequence[str]) -> str:
    """Returns the name of the column of images, labels or texts.

    Args:
        source: the source, whose field `what` may name the column.
        features: the columns' types by their names.
        what: "image", "label" or "text".
        kinds: lists of names, those of columns of the wanted type, then of other types that will do. The first list
            that has any decides: of several the one whose name is `what`.
    Raises:
        ConfigurationError: there is no such column, or there are several.
    """
    named = getattr(source, what)
    there = "; ".join(f"{name}: {_described(feature)}" for name, feature in features.items())
    usable = [name for kind in kinds for name in kind]
    if named is not None:
        if named not in usable:
            raise ConfigurationError(f"{source.name}: {what}={named} is no column of {what}s. There are {there}.")
        return named
    candidates = next((list(kind) for kind in kinds if kind), [])
    if len(candidates) == 1 or what in candidates:
        return what if what in candidates else candidates[0]
    which = f"several columns may be the {what}s, {', '.join(candidates)}" if candidates else f"no column has {what}s"
    raise ConfigurationError(f"{source.name}: {which}: say which by {what}=NAME after a comma. There are {there}.")


def features_of(source: Source, rows: Any) -> dict[str, Any]:
    """Returns the types of the columns by their names; those of a stream may have to be read off its first row."""
    if rows.features is not None:
        return dict(rows.features)
    with errors_of(source.name, local=source.local):
        return dict(library().Dataset.from_list([next(iter(rows))]).features)


def _described(feature: Any) -> str:
    text = str(feature)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _is_saved(path: str) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any(os.path.isfile(os.path.join(path, name)) for name in ("dataset_dict.json", "state.json"))


def _arguments(source: Source) -> dict[str, Any]:
    """Returns the arguments of `datasets.load_dataset_builder`."""
    if not os.path.isfile(source.path):  # absolute, or a folder named as a format would be taken for that
        path = os.path.abspath(source.path) if source.local else source.path
        return {"path": path, "name": source.config, "revision": source.revision}
    file_format = FORMATS.get(Path(source.path).suffix.lower())
    if file_format is None:
        raise ConfigurationError(
            f"{source.path}: expected a file that ends in {', '.join(FORMATS)}, or a folder: put other files into one."
        )
    source.refuse("config")
    return {"path": file_format, "data_files": [_literal(source.path)]}


def _literal(path: str) -> str:
    """Returns a pattern that matches this path alone."""
    return re.sub(r"([*?[])", r"[\1]", path)


def _refuse_links(source: Source) -> None:
    """Raises DataError if the settings of a local folder name data on the network."""
    import huggingface_hub
    import yaml

    readme, settings = (Path(source.path, name) for name in ("README.md", ".huggingface.yaml"))
    with errors_of(source.name):
        cards: list[Any] = []
        if readme.is_file():
            cards.append(huggingface_hub.DatasetCard.load(readme).data.to_dict())
        if settings.is_file():
            cards.append(yaml.safe_load(settings.read_text(encoding="utf-8")) or {})
        configs = json.dumps([card.get("configs") for card in cards])
    if "://" in configs:
        raise DataError(
            f"{source.path}: its README.md or .huggingface.yaml names data elsewhere, and a local path is read without the "
            "network: download these data into the folder, and name them there."
        )


def _sum_of_files(source: Source, files: Sequence[str]) -> str:
    """Returns the checksum of the names and sizes of local files, or of addresses on the hub, which contain the commit."""
    root = source.path if os.path.isdir(source.path) else os.path.dirname(source.path)
    lines = [f"{os.path.relpath(f, root)} {os.path.getsize(f)}" if os.path.isfile(f) else f for f in map(str, files)]
    return hashlib.sha256(os.fsencode("\n".join(sorted(lines)))).hexdigest()


@contextmanager
def errors_of(name: str, *, local: bool = True) -> Iterator[None]:
    """Raises DataError for any error of the library, which has no class of its own for missing or damaged data.

    Args:
        name: what the data are called in the message.
        local: whether they are on this machine.
    """
    try:
        yield
    except ComropeError:
        raise
    except Exception as error:
        why = error.__cause__ or error
        advice = "what is there" if local else "the name, and at whether the hub can be reached"
        raise DataError(f"{name} cannot be read ({type(why).__name__}: {why}): look at {advice}.") from error


@contextmanager
def _offline(datasets: Any, offline: bool) -> Iterator[None]:
    """Keeps the library from the network, which it would otherwise tell of every data set that it reads, local or not."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
