"""Some hundreds of damaged video files; the same seed damages them in the same way.

A damaged file may be read all the same, for decoders conceal damage. Then there are as many frames as were asked for, of the
size that was asked for; otherwise there is an error that names the file.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.videos import KINDS, MIDDLES, SEED, clip, refused, written, wrong

AREA = "damaged video files"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: written(folder / name, name) for name in KINDS}


def _damages(whole: bytes, draws: random.Random) -> Iterator[tuple[str, bytes]]:
    """The file, damaged in one way after another."""
    size = len(whole)

    def put(at: int, new: bytes) -> bytes:
        return (whole[:at] + new + whole[at + len(new) :])[:size]

    for share in (0.01, 0.03, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.99):
        yield f"cut at {share}", whole[: int(share * size)]
    for most, count in ((size, 10), (min(size, 256), 5)):
        for _ in range(count):
            at = draws.randrange(most)
            yield f"a bit flipped at {at}", put(at, bytes([whole[at] ^ 1 << draws.randrange(8)]))
    for length in (1, 4, 16, 64, 256):
        at = draws.randrange(size)
        yield f"{length} zeros at {at}", put(at, bytes(length))
        at = draws.randrange(size)
        yield f"{length} bytes of noise at {at}", put(at, draws.randbytes(length))
    for length in (8, 64):
        yield f"the first {length} overwritten", put(0, bytes(length))
        yield f"the last {length} overwritten", put(size - length, bytes(length))
    yield "a quarter missing", whole[: size // 4] + whole[size // 2 :]
    yield "a quarter twice", whole[: size // 2] + whole[size // 4 :]


NUM_DAMAGES = sum(1 for _ in _damages(bytes(1000), random.Random(SEED)))


@pytest.mark.slow
@pytest.mark.area(AREA, tries=NUM_DAMAGES)
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_or_named(name, tmp_path, whole):
    found, outcomes = {}, set()
    for damage, content in _damages(whole[name].read_bytes(), random.Random(f"{SEED} {name}")):
        path = tmp_path / name
        path.write_bytes(content)
        problem = wrong(path)
        if problem is not None:
            found[damage] = problem
        outcomes.add(clip(path, "skip").frames(0, MIDDLES) is None)
    assert not found
    assert outcomes == {True, False}  # some are read and some refused, or the damage is none


@pytest.mark.area(AREA)
@pytest.mark.parametrize("name", [name for name in KINDS if not name.endswith("mpg")])
def test_half_a_file_is_missed(name, tmp_path, whole):
    """Of MPEG program streams, which say nothing of their length, half is a whole one."""
    content = whole[name].read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    refused(tmp_path / name)


INDEX = {"mpeg4.mp4": b"stco", "h264.mp4": b"stsz", "h264.mov": b"stsc", "mpeg4.avi": b"idx1", "mjpeg.avi": b"idx1"}
INDEX = {name: tag for name, tag in INDEX.items() if name in KINDS}


@pytest.mark.area(AREA, tries=3)
@pytest.mark.parametrize(("name", "tag"), INDEX.items())
def test_a_damaged_index(name, tag, tmp_path, whole):
    content = whole[name].read_bytes()
    at = content.index(tag)
    noise = random.Random(f"{SEED} {name}").randbytes(40)
    damages = {
        "nameless": content[:at] + b"free" + content[at + 4 :],
        "zeros": content[: at + 8] + bytes(40) + content[at + 48 :],
        "noise": content[: at + 8] + noise + content[at + 48 :],
    }
    found = {}
    for damage, damaged in damages.items():
        (tmp_path / name).write_bytes(damaged)
        found[damage] = wrong(tmp_path / name)
    assert set(found.values()) == {None}, found
