"""Lists of UCF-101, right, otherwise and wrong."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from comrope.errors import DataError
from comrope.lab.video import clips
from comrope.lab.video.clips import Clips, video_folder

pytestmark = pytest.mark.area("lists of UCF-101")


@pytest.fixture
def root(tmp_path) -> Path:
    """Two classes of two videos each, one to train and one to test on; nobody reads them here."""
    for name in ("Archery", "Biking"):
        (tmp_path / "UCF-101" / name).mkdir(parents=True)
        for i in (1, 2):
            (tmp_path / "UCF-101" / name / f"v{i}.avi").touch()
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 Biking\n")
    (lists / "trainlist01.txt").write_text("Archery/v1.avi 1\nBiking/v1.avi 2\n")
    (lists / "testlist01.txt").write_text("Archery/v2.avi\nBiking/v2.avi\n")
    return tmp_path


def _files(part: Clips) -> list[tuple[str, str]]:
    return [(Path(part.name(i)).name, part.classes[int(part.labels[i])]) for i in range(len(part))]


def _add(root: Path, name: str) -> None:
    (root / "UCF-101" / name).parent.mkdir(exist_ok=True)
    (root / "UCF-101" / name).touch()


TRAIN = [("v1.avi", "Archery"), ("v1.avi", "Biking")]
RIGHT = {
    "line ends of Windows": ("trainlist01", lambda root: b"Archery/v1.avi 1\r\nBiking/v1.avi 2\r\n"),
    "line ends of old Macs": ("trainlist01", lambda root: b"Archery/v1.avi 1\rBiking/v1.avi 2"),
    "a mark of byte order": ("trainlist01", lambda root: b"\xef\xbb\xbfArchery/v1.avi 1\nBiking/v1.avi 2\n"),
    "a mark before classes": ("classInd", lambda root: b"\xef\xbb\xbf1 Archery\r\n2 Biking\r\n"),
    "tabs": ("trainlist01", lambda root: b"Archery/v1.avi\t1\nBiking/v1.avi\t2\n"),
    "tabs before classes": ("classInd", lambda root: b"1\tArchery\n2\tBiking\n"),
    "blanks": ("trainlist01", lambda root: b"\n  Archery/v1.avi   1  \n\n\nBiking/v1.avi 2\n \n"),
    "no numbers": ("trainlist01", lambda root: b"Archery/v1.avi\nBiking/v1.avi\n"),
    "numbers to test": ("testlist01", lambda root: b"Archery/v2.avi 1\nBiking/v2.avi 2\n"),
    "no last line end": ("trainlist01", lambda root: b"Archery/v1.avi 1\nBiking/v1.avi 2"),
    "a dot before": ("trainlist01", lambda root: b"./Archery/v1.avi 1\n./Biking/v1.avi 2\n"),
    "absolute": (
        "trainlist01",
        lambda root: os.fsencode(f"{root}/UCF-101/Archery/v1.avi 1\n{root}/UCF-101/Biking/v1.avi 2\n"),
    ),
}


@pytest.mark.parametrize(("name", "content"), RIGHT.values(), ids=RIGHT)
def test_lists_that_are_written_otherwise_say_the_same(name, content, root):
    (root / "ucfTrainTestlist" / f"{name}.txt").write_bytes(content(root))
    train, test = video_folder(root)
    assert _files(train) == TRAIN
    assert _files(test) == [("v2.avi", "Archery"), ("v2.avi", "Biking")]
    assert train.classes == ("Archery", "Biking")


@pytest.mark.parametrize("name", ["a b.avi", "a  1.avi", "v 2 3.AVI", "ä 動.avi"])
def test_names_with_blanks(name, root):
    _add(root, f"Biking/{name}")
    (root / "ucfTrainTestlist" / "trainlist01.txt").write_text(f"Archery/v1.avi 1\nBiking/{name} 2\n", encoding="utf-8")
    assert _files(video_folder(root)[0]) == [("v1.avi", "Archery"), (name, "Biking")]


def test_classes_with_blanks(root):
    for number in (1, 2):
        _add(root, f"Long Jump/v{number}.avi")
    (root / "ucfTrainTestlist" / "classInd.txt").write_text("1 Archery\n2 Biking\n3 Long Jump\n")
    for part, number in (("train", 1), ("test", 2)):
        file = root / "ucfTrainTestlist" / f"{part}list01.txt"
        file.write_text(f"{file.read_text()}Long Jump/v{number}.avi 3\n")
    assert [_files(part)[-1] for part in video_folder(root)] == [("v1.avi", "Long Jump"), ("v2.avi", "Long Jump")]


def test_of_two_lists_the_one_with_the_name_of_ucf_is_read(root):
    (root / "ucfTrainTestlist" / "trainlist01.TXT").write_text("Archery/no.avi 1\n")
    assert _files(video_folder(root)[0]) == TRAIN


FIT, READ, EMPTY, GONE, TWICE = "does not fit", "cannot be read", "is empty", "are missing", "listed twice"
NUMBERED = "numbered from 1 on"
LISTED = {
    "another class": ("trainlist01", b"Archery/v1.avi 2\n", FIT),
    "class 0": ("trainlist01", b"Archery/v1.avi 0\n", FIT),
    "a class too many": ("trainlist01", b"Biking/v1.avi 3\n", FIT),
    "a huge class": ("trainlist01", b"Biking/v1.avi 99999999999999999999\n", FIT),
    "a number with a zero": ("trainlist01", b"Biking/v1.avi 02\n", FIT),
    "a negative class": ("trainlist01", b"Archery/v1.avi -1\n", GONE),
    "a class in words": ("trainlist01", b"Archery/v1.avi one\n", GONE),
    "a number alone": ("trainlist01", b"1\n", FIT),
    "an unknown class": ("trainlist01", b"Swimming/v1.avi 1\n", FIT),
    "a class in small letters": ("trainlist01", b"archery/v1.avi 1\n", FIT),
    "no folder": ("trainlist01", b"v1.avi 1\n", FIT),
    "backslashes": ("trainlist01", b"Archery\\v1.avi 1\n", FIT),
    "a comment": ("trainlist01", b"# Archery/v1.avi 1\n", FIT),
    "nothing": ("trainlist01", b"", EMPTY),
    "blank": ("testlist01", b" \r\n\n", EMPTY),
    "no classes": ("classInd", b"", EMPTY),
    "another encoding": ("trainlist01", "Archery/v1.avi 1\n".encode("utf-16"), READ),
    "Latin letters": ("trainlist01", "Archery/vä.avi 1\n".encode("latin-1"), READ),
    "bytes": ("classInd", bytes(range(256)), READ),
    "NUL": ("trainlist01", b"Archery/v1\0.avi 1\n", GONE),
    "too long a name": ("trainlist01", b"Archery/" + 5000 * b"v" + b".avi 1\n", GONE),
    "a missing video": ("trainlist01", b"Archery/v3.avi 1\n", GONE),
    "a folder": ("trainlist01", b"UCF-101/Archery/ 1\n", FIT),
    "twice": ("trainlist01", b"Archery/v1.avi 1\nArchery/v1.avi 1\n", TWICE),
    "to train and to test": ("trainlist01", b"Archery/v1.avi 1\nBiking/v2.avi 2\n", TWICE),
    "twice to test": ("testlist01", b"Biking/v2.avi\nBiking/v2.avi\n", TWICE),
    "a class without its number": ("classInd", b"Archery\nBiking\n", NUMBERED),
    "a number without its class": ("classInd", b"1 Archery\n2\n", NUMBERED),
    "a class twice": ("classInd", b"1 Archery\n2 Archery\n", NUMBERED),
    "a number twice": ("classInd", b"1 Archery\n1 Biking\n", NUMBERED),
    "classes from 0 on": ("classInd", b"0 Archery\n1 Biking\n", NUMBERED),
    "classes in another order": ("classInd", b"2 Biking\n1 Archery\n", NUMBERED),
    "a class that is left out": ("classInd", b"1 Archery\n3 Biking\n", NUMBERED),
}


@pytest.mark.parametrize(("name", "content", "match"), LISTED.values(), ids=LISTED)
def test_lists_that_do_not_fit(name, content, match, root):
    (root / "ucfTrainTestlist" / f"{name}.txt").write_bytes(content)
    with pytest.raises(DataError, match=match) as caught:
        video_folder(root)
    assert clips.LAYOUT in str(caught.value)


def _in_its_place(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


INSTEAD: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "a folder": _in_its_place(Path.mkdir),
    "a pipe": _in_its_place(os.mkfifo),
    "a link to nowhere": _in_its_place(lambda path: path.symlink_to("nowhere")),
    "a link to itself": _in_its_place(lambda path: path.symlink_to(path.name)),
    "in capitals": lambda path: path.rename(path.with_suffix(path.suffix.upper())),
}


@pytest.mark.parametrize("make", INSTEAD.values(), ids=INSTEAD)
@pytest.mark.parametrize("name", ["trainlist01.txt", "testlist01.txt", "classInd.txt"])
def test_what_is_in_the_place_of_a_list(name, make, root):
    make(root / "ucfTrainTestlist" / name)
    with pytest.raises(DataError) as caught:
        video_folder(root)
    assert clips.LAYOUT in str(caught.value)


@pytest.mark.parametrize("make", list(INSTEAD.values())[:-1], ids=list(INSTEAD)[:-1])
def test_what_is_in_the_place_of_a_video(make, root):
    make(root / "UCF-101" / "Biking" / "v1.avi")
    with pytest.raises(DataError, match=r"1 of 4 videos of UCF-101 are missing \(the first: .*Biking/v1\.avi"):
        video_folder(root)


@pytest.mark.parametrize("split", [0, 4, -1, 10**9])
def test_a_split_that_is_none(split, root):
    with pytest.raises(DataError, match=r"trainlist.*cannot be read"):
        video_folder(root, split=split)
