"""Video files of all sorts, some hundreds of damaged ones, and lists of UCF-101 that do not fit.

A damaged file may be read all the same, for decoders conceal damage. Then there are as many frames as were asked for, of the
size that was asked for; otherwise there is an error that names the file. The same seed damages files in the same way.
"""

import json
import os
import random
import time
import wave
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from PIL import Image

from comrope.errors import DataError
from comrope.lab.video import clips, frames
from comrope.lab.video.clips import Clips, video_folder
from comrope.lab.video.feed import TestingClips
from tests.lab.video.helpers import STEP, numbers

FILES, DAMAGED, LISTS = "video files", "damaged video files", "lists of UCF-101"
SEED = 0
COUNT, SIZE = 10, (32, 48)
"""Frames of a video, and their (height, width)."""
ASKED, FEED = 4, (16, 16)
MIDDLES = [(i + 0.5) / ASKED for i in range(ASKED)]
SHOWN = [1, 3, 6, 8]
"""The frames that are shown at these shares of the duration."""
FINE = {"qmin": "1", "qmax": "2"}  # so that a frame's grey tells its number
KINDS: dict[str, dict[str, Any]] = {
    "mpeg4.mp4": {"codec": "mpeg4", "g": "4", "bf": "1", **FINE},
    "mpeg4.avi": {"codec": "mpeg4", "g": "4", "bf": "1", **FINE},
    "mpeg4.mkv": {"codec": "mpeg4", "g": "4", **FINE},
    "mjpeg.avi": {"codec": "mjpeg", "strict": "unofficial", **FINE},
    "mpeg2.mpg": {"codec": "mpeg2video", "g": "4", **FINE},
    "h264.mp4": {"codec": "libx264", "g": "4", "crf": "1"},
    "h264.mkv": {"codec": "libx264", "g": "4", "crf": "1"},
    "h264.mov": {"codec": "libx264", "g": "4", "bf": "0", "crf": "1"},
    "vp8.webm": {"codec": "libvpx", "g": "4", "crf": "4", "b": "1000000"},
    "vp9.webm": {"codec": "libvpx-vp9", "g": "4", "lossless": "1", "cpu-used": "8"},
}
KINDS = {name: settings for name, settings in KINDS.items() if settings["codec"] in av.codecs_available}
"""What the FFmpeg at hand can write; the first five it always can."""


def _grey(size: tuple[int, int] = SIZE, count: int = COUNT) -> list[np.ndarray]:
    """Frame n is grey of level STEP · (n + 1), and rough."""
    rough = np.random.default_rng(SEED).integers(-8, 9, (*size, 1))
    rough -= round(rough.mean())
    return [(STEP * (n + 1) + rough).clip(0, 255).repeat(3, -1).astype(np.uint8) for n in range(count)]


def _written(path: Path, name: str = "mpeg4.mp4", **changes: Any) -> Path:
    settings = {"rate": 25, "images": _grey(), **KINDS[name], **changes}
    frames.write(path, **settings)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: _written(folder / name, name) for name in KINDS}


def _clip(path: str | Path, unreadable: str = "fail") -> Clips:
    return Clips(np.array([os.fsencode(path)]), torch.tensor([0]), ("a",), unreadable=unreadable)


def _shown(path: str | Path) -> list[int]:
    clip = _clip(path).frames(0, MIDDLES)
    assert clip is not None
    return numbers(clip)


def _wrong(path: Path) -> str | None:
    """What is wrong with how a file is read; None where it is right, be it read or refused."""
    begun = time.monotonic()
    try:
        batch = TestingClips(_clip(path), ASKED, FEED).__getitems__([0])
    except DataError as error:
        if not str(error).startswith(f"{path} cannot be read (") or 'unreadable="skip"' not in str(error):
            return f"does not say what to do: {error}"
        left = TestingClips(_clip(path, "skip"), ASKED, FEED).__getitems__([0])
        return None if left.skipped == (str(path),) and len(left.labels) == 0 else f"not left out: {left}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if batch.pixels.shape != (1, 3, ASKED, *FEED) or batch.pixels.dtype != torch.float32 or batch.skipped:
        return f"{batch.pixels.shape}, {batch.pixels.dtype}, skipped {batch.skipped}"
    if not (batch.pixels.isfinite().all() and batch.pixels.abs().max() <= 1):
        return "pixels that are no colours"
    return None if time.monotonic() - begun < 5 else "took longer than five seconds"


def _refused(path: str | Path, match: str = "") -> None:
    with pytest.raises(DataError, match=rf"cannot be read \((?s:.*){match}(?s:.*)mend or remove the file.*skip"):
        _clip(path).frames(0, MIDDLES)


# Files as they should be.


@pytest.mark.area(FILES)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_that_can_be_written_is_read(name, whole):
    assert _shown(whole[name]) == SHOWN


@pytest.mark.area(FILES)
@pytest.mark.parametrize("name", ["mpeg4.mp4", "mpeg4.mkv"])
@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(30000, 1001), 1, Fraction(1, 10), 240, 1000])
def test_any_frame_rate(name, rate, tmp_path):
    assert _shown(_written(tmp_path / name, name, rate=rate)) == SHOWN


@pytest.mark.area(FILES)
@pytest.mark.parametrize("name", KINDS)
def test_one_frame_is_repeated(name, tmp_path):
    assert _shown(_written(tmp_path / name, name, images=_grey(count=1))) == [0] * ASKED


def _of_pixels(path: Path, codec: str, pixels: str, size: tuple[int, int] = SIZE) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        for image in _grey(size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.area(FILES)
@pytest.mark.parametrize(
    ("codec", "pixels"),
    [
        ("ffv1", "gray"),
        ("ffv1", "gray16le"),
        ("ffv1", "yuv444p10le"),
        ("ffv1", "bgra"),
        ("ffvhuff", "yuv422p"),
        ("mjpeg", "yuvj420p"),
        ("png", "rgb24"),
        ("png", "rgba"),
        ("rawvideo", "bgr24"),
        ("rawvideo", "yuv420p"),
    ],
)
def test_any_pixel_format(codec, pixels, tmp_path):
    assert _shown(_of_pixels(tmp_path / "a.avi", codec, pixels)) == SHOWN


@pytest.mark.area(FILES)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (15, 17), (2, 300)])
def test_any_size(size, tmp_path):
    path = _of_pixels(tmp_path / "a.mkv", "ffv1", "yuv444p", size)
    assert _shown(path) == SHOWN
    assert _wrong(path) is None


@pytest.mark.area(FILES)
@pytest.mark.parametrize("angle", [90, 180, 270])
def test_what_was_taken_with_a_turned_camera_is_upright(angle, tmp_path):
    scene = np.zeros((*SIZE, 3), dtype=np.uint8)
    scene[:16, :24] = 240  # the upper left quarter
    path = _written(tmp_path / "a.mp4", images=[np.rot90(scene, angle // 90)] * COUNT)  # as the camera holds it
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[angle]  # and is to be turned clockwise by as much
    plain, turned = ([a, b, 0, c, d, 0, 0, 0, 0x4000] for a, b, c, d in ((1, 0, 0, 1), (cosine, sine, -sine, cosine)))
    content = path.read_bytes()
    at = content.index(b"tkhd") + 4 + 40
    as_bytes = [b"".join((n << 16).to_bytes(4, "big", signed=True) for n in matrix) for matrix in (plain, turned)]
    assert content[at : at + 36] == as_bytes[0]
    path.write_bytes(content[:at] + as_bytes[1] + content[at + 36 :])
    clip = _clip(path).frames(0, MIDDLES)
    assert clip is not None
    assert (clip.float() - torch.from_numpy(scene).permute(2, 0, 1)).abs().mean() < 5


@pytest.mark.area(FILES)
@pytest.mark.parametrize(
    "name",
    [
        "a b.mp4",
        " .mp4",
        "100%.mp4",
        "%03d.mp4",
        "a:b.mp4",
        "http:a.mp4",
        "concat:a.mp4|b.mp4",
        "pipe:0",
        "-",
        "-i.mp4",
        "a\nb.mp4",
        "'a'\".mp4",
        "?#&.mp4",
        "ä 動画.mp4",
        os.fsdecode(b"\xff\xfe.mp4"),
        "a" * 251 + ".mp4",
    ],
)
def test_a_name_is_a_name(name, tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(whole["mpeg4.mp4"].read_bytes())
    assert _shown(name) == SHOWN
    Path(name).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        _clip(name).frames(0, MIDDLES)
    assert str(caught.value).startswith(f"{name} cannot be read (")


# Files that are something else.


def _sound(path: Path, cover: bool = False) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=8000)
        stream.layout = "mono"
        picture: Any = None
        if cover:
            picture = container.add_stream("png", rate=1)
            picture.width, picture.height, picture.pix_fmt = 48, 32, "rgb24"
            picture.disposition = Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame.from_ndarray(_grey()[0], "rgb24")))
            container.mux(picture.encode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _as_image(kind: str) -> Callable[[Path], Any]:
    return lambda path: Image.fromarray(_grey()[0]).save(path, format=kind)


def _as_wave(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))


def _as_text(text: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(text)


DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>other.mp4</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>"
)
OTHERS: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(b"\0"),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "noise": lambda path: path.write_bytes(random.Random(SEED).randbytes(5000)),
    "text": _as_text("no video at all\n" * 50),
    "HTML": _as_text("<!doctype html><html><body>404 Not Found</body></html>"),
    "JSON": lambda path: path.write_text(json.dumps({"error": list(range(500))})),
    "subtitles": _as_text("1\n00:00:00,000 --> 00:00:01,000\nHello\n\n" * 9),
    "PNG": _as_image("png"),
    "JPEG": _as_image("jpeg"),
    "GIF": _as_image("gif"),
    "BMP": _as_image("bmp"),
    "WebP": _as_image("webp"),
    "WAV": _as_wave,
    "sound": _sound,
    "sound with a cover": lambda path: _sound(path, cover=True),
    "ZIP": lambda path: path.write_bytes(b"PK\3\4" + bytes(200)),
    "PDF": _as_text("%PDF-1.4\n1 0 obj\n<<>>\nendobj\n" * 20),
    "a list of FFmpeg's": _as_text("ffconcat version 1.0\nfile other.mp4\n"),
    "a playlist": _as_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n"),
    "a playlist of parts": _as_text(DASH),
    "a session": _as_text("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"),
    "a folder": Path.mkdir,
    "a link to nowhere": lambda path: path.symlink_to("nowhere.mp4"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "missing": lambda path: None,
}


@pytest.mark.area(FILES)
@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_what_is_no_video_is_refused(make, tmp_path, whole):
    (tmp_path / "other.mp4").write_bytes(whole["mpeg4.mp4"].read_bytes())  # never to be read in its place
    path = tmp_path / "a.mp4"
    make(path)
    _refused(path)
    assert _wrong(path) is None


@pytest.mark.area(FILES)
def test_a_cover_is_no_frame(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover: Any = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 48, 32, "rgb24"
        cover.disposition = Disposition.attached_pic
        stream: Any = container.add_stream("mpeg4", rate=25, options=FINE)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(_grey()[-1], "rgb24")))
        container.mux(cover.encode())
        for image in _grey():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    assert _shown(path) == SHOWN


CODECS = {
    "h264.mp4": b"avc1",
    "mpeg4.avi": b"FMP4",
    "mjpeg.avi": b"MJPG",
    "mpeg4.mkv": b"V_MPEG4",
    "vp9.webm": b"V_VP9",
}
CODECS = {name: codec for name, codec in CODECS.items() if name in KINDS}


@pytest.mark.area(FILES)
@pytest.mark.parametrize(("name", "codec"), CODECS.items())
def test_a_codec_that_nobody_knows(name, codec, tmp_path, whole):
    path = tmp_path / name
    content = whole[name].read_bytes()
    assert codec in content
    path.write_bytes(content.replace(codec, codec[:2] + b"ZZZZZ"[: len(codec) - 2]))
    _refused(path)


@pytest.mark.area(FILES)
def test_frames_that_take_no_time(tmp_path, whole):
    """All are shown at once: any of them may be taken for all."""
    content = bytearray(whole["mpeg4.mp4"].read_bytes())
    at = content.index(b"stts") + 4
    for entry in range(int.from_bytes(content[at + 4 : at + 8], "big")):
        content[at + 12 + 8 * entry : at + 16 + 8 * entry] = bytes(4)
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert _wrong(path) is None


@pytest.mark.area(FILES)
@pytest.mark.parametrize("name", KINDS)
def test_two_videos_of_other_sizes_in_one_file(name, tmp_path):
    first, second = _written(tmp_path / f"1{name}", name), _written(tmp_path / f"2{name}", name, images=_grey((48, 32)))
    path = tmp_path / name
    path.write_bytes(first.read_bytes() + second.read_bytes())
    assert _wrong(path) is None


# Damage.


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


@pytest.mark.area(DAMAGED, tries=NUM_DAMAGES)
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_or_named(name, tmp_path, whole):
    found, outcomes = {}, set()
    for damage, content in _damages(whole[name].read_bytes(), random.Random(f"{SEED} {name}")):
        path = tmp_path / name
        path.write_bytes(content)
        wrong = _wrong(path)
        if wrong is not None:
            found[damage] = wrong
        outcomes.add(_clip(path, "skip").frames(0, MIDDLES) is None)
    assert not found
    assert outcomes == {True, False}  # some are read and some refused, or the damage is none


@pytest.mark.area(DAMAGED)
@pytest.mark.parametrize("name", [name for name in KINDS if not name.endswith("mpg")])
def test_half_a_file_is_missed(name, tmp_path, whole):
    """Of MPEG program streams, which say nothing of their length, half is a whole one."""
    content = whole[name].read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    _refused(tmp_path / name)


INDEX = {"mpeg4.mp4": b"stco", "h264.mp4": b"stsz", "h264.mov": b"stsc", "mpeg4.avi": b"idx1", "mjpeg.avi": b"idx1"}
INDEX = {name: tag for name, tag in INDEX.items() if name in KINDS}


@pytest.mark.area(DAMAGED, tries=3)
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
        found[damage] = _wrong(tmp_path / name)
    assert set(found.values()) == {None}, found


# Lists of UCF-101.


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


@pytest.mark.area(LISTS)
@pytest.mark.parametrize(("name", "content"), RIGHT.values(), ids=RIGHT)
def test_lists_that_are_written_otherwise_say_the_same(name, content, root):
    (root / "ucfTrainTestlist" / f"{name}.txt").write_bytes(content(root))
    train, test = video_folder(root)
    assert _files(train) == TRAIN
    assert _files(test) == [("v2.avi", "Archery"), ("v2.avi", "Biking")]
    assert train.classes == ("Archery", "Biking")


@pytest.mark.area(LISTS)
@pytest.mark.parametrize("name", ["a b.avi", "a  1.avi", "v 2 3.AVI", "ä 動.avi"])
def test_names_with_blanks(name, root):
    _add(root, f"Biking/{name}")
    (root / "ucfTrainTestlist" / "trainlist01.txt").write_text(f"Archery/v1.avi 1\nBiking/{name} 2\n", encoding="utf-8")
    assert _files(video_folder(root)[0]) == [("v1.avi", "Archery"), (name, "Biking")]


@pytest.mark.area(LISTS)
def test_classes_with_blanks(root):
    for number in (1, 2):
        _add(root, f"Long Jump/v{number}.avi")
    (root / "ucfTrainTestlist" / "classInd.txt").write_text("1 Archery\n2 Biking\n3 Long Jump\n")
    for part, number in (("train", 1), ("test", 2)):
        file = root / "ucfTrainTestlist" / f"{part}list01.txt"
        file.write_text(f"{file.read_text()}Long Jump/v{number}.avi 3\n")
    assert [_files(part)[-1] for part in video_folder(root)] == [("v1.avi", "Long Jump"), ("v2.avi", "Long Jump")]


@pytest.mark.area(LISTS)
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


@pytest.mark.area(LISTS)
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


@pytest.mark.area(LISTS)
@pytest.mark.parametrize("make", INSTEAD.values(), ids=INSTEAD)
@pytest.mark.parametrize("name", ["trainlist01.txt", "testlist01.txt", "classInd.txt"])
def test_what_is_in_the_place_of_a_list(name, make, root):
    make(root / "ucfTrainTestlist" / name)
    with pytest.raises(DataError) as caught:
        video_folder(root)
    assert clips.LAYOUT in str(caught.value)


@pytest.mark.area(LISTS)
@pytest.mark.parametrize("make", list(INSTEAD.values())[:-1], ids=list(INSTEAD)[:-1])
def test_what_is_in_the_place_of_a_video(make, root):
    make(root / "UCF-101" / "Biking" / "v1.avi")
    with pytest.raises(DataError, match=r"1 of 4 videos of UCF-101 are missing \(the first: .*Biking/v1\.avi"):
        video_folder(root)


@pytest.mark.area(LISTS)
@pytest.mark.parametrize("split", [0, 4, -1, 10**9])
def test_a_split_that_is_none(split, root):
    with pytest.raises(DataError, match=r"trainlist.*cannot be read"):
        video_folder(root, split=split)
