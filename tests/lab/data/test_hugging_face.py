"""What `hf:…` names: paths, splits and columns; nothing is asked of the network for what is on this machine."""

import socket
import sys
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest

from comrope.errors import ConfigurationError, DataError
from comrope.lab.data.hugging_face import Source, chosen, column, load
from tests.lab.data.helpers import TEXTS, write_image_splits, write_images, write_rows

ASKED: list[str] = []
"""What this process asked of the network."""


def _hear(event: str, arguments: tuple) -> None:
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        ASKED.append(f"{event} {arguments}")


sys.addaudithook(_hear)


# The name


def test_settings_follow_the_path(tmp_path):
    source = Source.parse(f"hf:{tmp_path},config=en,train=a,test=b,image=i,label=l,text=t,streaming,buffer_size=7")
    assert source == Source(str(tmp_path), "en", None, "a", "b", "i", "l", "t", True, 7) and source.local
    hub = Source.parse("hf:user/some.data-set,revision=1a2b")
    assert (hub.path, hub.revision, hub.local, hub.streaming) == ("user/some.data-set", "1a2b", False, False)


def test_a_path_may_look_like_settings(tmp_path):
    folder = tmp_path / "a,label=b"
    folder.mkdir()
    assert Source.parse(f"hf:{folder}") == Source(str(folder))
    assert Source.parse(f"hf:{folder},label=c") == Source(str(folder), label="c")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (",lable=x", "',lable=x' is no setting: expected config, revision"),
        (",label=a,label=b", "',label=a' is no setting.* once"),
        (",label", "',label' is no setting.*name=value"),
        (",label=", "',label=' is no setting"),
        (",streaming=yes", "`streaming` alone"),
        (",streaming,buffer_size=0", "a number of rows, 1 or more"),
        (",streaming,buffer_size=many", "a number of rows, 1 or more"),
        (",buffer_size=9", "buffer_size is for streaming"),
        (",revision=main", "revision is for data sets of the hub"),
        ("/nowhere", "expected a folder or a file that exists, and .*/nowhere does not"),
    ],
)
def test_a_name_that_says_nothing_is_refused(tmp_path, settings, said):
    with pytest.raises(ConfigurationError, match=said):
        Source.parse(f"hf:{tmp_path}{settings}")


# Splits and columns


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "validation", "test"), ("train", "validation")),
        (("test", "train"), ("train", "test")),
        (("train", "val"), ("train", "val")),
        (("train", "extra", "dev"), ("train", "dev")),
        (("train",), ("train", None)),
        (("all",), ("all", None)),
    ],
)
def test_splits_are_told_by_their_usual_names(names, expected):
    assert chosen(Source("x"), names) == expected


def test_splits_may_be_named():
    assert chosen(Source("x", train="a", test="train"), ("train", "a", "test")) == ("a", "train")
    for source, said in (
        (Source("x"), "has the splits a, b, none of them train: .*train=NAME"),
        (
            Source("x", train="a"),
            "has the splits a, b: to train on a, and to test on none of validation, val.*test=NAME",
        ),
        (Source("x", train="a", test="a"), "or on the same"),
        (Source("x", train="c"), "has the splits a, b: none is called c"),
        (Source("x", train="a", test="c"), "none is called c"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            chosen(source, ("a", "b"))


def test_a_column_is_told_by_its_type_then_by_its_name():
    features = {"fine": "F", "coarse": "C", "label": "string", "n": "int64"}
    assert column(Source("x"), features, "label", ["fine"], ["label", "n"]) == "fine"
    assert column(Source("x"), features, "label", [], ["n", "label"]) == "label"
    assert column(Source("x", label="n"), features, "label", ["fine", "coarse"], ["label", "n"]) == "n"
    with pytest.raises(
        ConfigurationError, match=r"several columns may be the labels, fine, coarse: say which by label="
    ):
        column(Source("x"), features, "label", ["fine", "coarse"], ["label"])
    with pytest.raises(ConfigurationError, match=r"no column has images.*There are fine: F; coarse: C"):
        column(Source("x"), features, "image", [], [])
    with pytest.raises(ConfigurationError, match=r"label=image is no column of labels"):
        column(Source("x", label="image"), features, "label", ["fine"], [])


# What is read


def test_a_folder_a_file_and_a_saved_data_set_are_the_same_rows(tmp_path):
    folder = write_image_splits(tmp_path / "parquet")
    whole = load(Source(str(folder)))
    assert (whole.train.num_rows, whole.test.num_rows, whole.names) == (30, 9, ("train", "test"))
    datasets.DatasetDict({"train": whole.train, "test": whole.test}).save_to_disk(tmp_path / "saved")
    whole.train.save_to_disk(tmp_path / "alone")
    for name in ("saved", "alone"):
        again = load(Source(str(tmp_path / name)))
        assert again.train.data.table.equals(whole.train.data.table)
        assert (again.test is None) == (name == "alone")
    file = load(Source(str(folder / "test.parquet")))
    assert file.train.data.table.equals(whole.test.data.table) and file.test is None


@pytest.mark.parametrize("path", ["json", "json/json.parquet", "a[1]*?.parquet"])
def test_names_of_formats_and_patterns_are_paths(tmp_path, monkeypatch, path):
    """datasets would take the first for its own reader of JSON, and the last for a pattern."""
    monkeypatch.chdir(tmp_path)
    write_images(Path(path) if path.endswith("parquet") else Path(path, "rows.parquet"), 3)
    write_images(Path("a1bc.parquet"), 4)
    assert load(Source(path)).train.num_rows == 3


DAMAGED = {
    "a.parquet": b"PAR1 and nothing more",
    "a.jsonl": b'{"text": "one"}\n{"text": \n',
    "a.txt": b"\xff\xfe\xfd",
    "a.tar": b"no archive",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(DAMAGED[name])
    with pytest.raises(DataError, match=rf"{name} cannot be read \(\w+: .+\): look at what is there"):
        load(Source(str(tmp_path / name)))


def test_what_is_no_data_is_refused(tmp_path):
    (tmp_path / "a.bmp3").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"a\.bmp3: expected a file that ends in \.arrow, \.csv"):
        load(Source(str(tmp_path / "a.bmp3")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty cannot be read .*doesn't contain any data files"):
        load(Source(str(tmp_path / "empty")))


# The network


def test_a_local_path_asks_nothing_of_the_network(tmp_path):
    folder = write_image_splits(tmp_path / "images")
    write_rows(tmp_path / "texts.parquet", {"text": TEXTS})
    rows = {"image": [{"bytes": None, "path": "https://example.com/a.png"}], "label": [0]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "away.parquet")
    ASKED.clear()
    for path in (folder, tmp_path / "texts.parquet", tmp_path / "away.parquet"):
        load(Source(str(path)))
    next(iter(load(Source(str(folder), streaming=True)).train))
    assert not ASKED
    assert not datasets.config.HF_HUB_OFFLINE
    with pytest.raises(OSError), socket.socket() as door:  # the test hears what there is to hear
        door.connect(("127.0.0.1", 9))
    assert len(ASKED) == 1


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("url", ["https://example.com/a.parquet", "hf://datasets/user/name/a.parquet"])
def test_a_local_folder_that_names_data_elsewhere_is_refused(tmp_path, name, url):
    settings = f"license_link: https://example.com\nconfigs:\n- config_name: x\n  data_files: {url}\n"
    (tmp_path / name).write_text(f"---\n{settings}---\n" if name == "README.md" else settings, encoding="utf-8")
    ASKED.clear()
    with pytest.raises(DataError, match="names data elsewhere, and a local path is read without the network"):
        load(Source(str(tmp_path)))
    assert not ASKED


def test_a_local_folder_may_say_which_files_are_which_split(tmp_path):
    write_images(tmp_path / "some.parquet", 3)
    write_images(tmp_path / "other.parquet", 6)
    card = "configs:\n- config_name: {}\n  data_files:\n  - split: train\n    path: {}\n  - split: dev\n    path: {}\n"
    both = card.format("one", "some.parquet", "other.parquet") + card.format("two", "other.parquet", "some.parquet")[9:]
    (tmp_path / "README.md").write_text(f"---\nhomepage: https://example.com\n{both}---\n", encoding="utf-8")
    splits = load(Source(str(tmp_path), config="two"))
    assert (splits.train.num_rows, splits.test.num_rows, splits.names) == (6, 3, ("train", "dev"))
    with pytest.raises(DataError, match=r"pick one among the available configs: \['one', 'two'\]"):
        load(Source(str(tmp_path)))


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # as by the variable of that name
    with pytest.raises(DataError, match=r"hf:user/nothing cannot be read \(ConnectionError.*whether the hub can be"):
        load(Source("user/nothing"))


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(ConfigurationError, match=r"datasets is not installed.*pip install -e '\.\[hf\]'"):
        load(Source(str(tmp_path)))


def test_home_is_understood():
    assert Source.parse("hf:~").path == str(Path.home())
