"""Video files of all sorts, and files that are none."""

import json
import os
import random
import wave
from collections.abc import Callable
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
from tests.faults.videos import (
    ASKED,
    COUNT,
    FINE,
    KINDS,
    MIDDLES,
    SEED,
    SHOWN,
    SIZE,
    clip,
    grey,
    refused,
    shown,
    written,
    wrong,
)

pytestmark = pytest.mark.area("video files")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: written(folder / name, name) for name in KINDS}


# Files as they should be.


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_that_can_be_written_is_read(name, whole):
    assert shown(whole[name]) == SHOWN


@pytest.mark.parametrize("name", ["mpeg4.mp4", "mpeg4.mkv"])
@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(30000, 1001), 1, Fraction(1, 10), 240, 1000])
def test_any_frame_rate(name, rate, tmp_path):
    assert shown(written(tmp_path / name, name, rate=rate)) == SHOWN


@pytest.mark.parametrize("name", KINDS)
def test_one_frame_is_repeated(name, tmp_path):
    assert shown(written(tmp_path / name, name, images=grey(count=1))) == [0] * ASKED


def _of_pixels(path: Path, codec: str, pixels: str, size: tuple[int, int] = SIZE) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        for image in grey(size):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    return path


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
    assert shown(_of_pixels(tmp_path / "a.avi", codec, pixels)) == SHOWN


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (15, 17), (2, 300)])
def test_any_size(size, tmp_path):
    path = _of_pixels(tmp_path / "a.mkv", "ffv1", "yuv444p", size)
    assert shown(path) == SHOWN
    assert wrong(path) is None


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_what_was_taken_with_a_turned_camera_is_upright(angle, tmp_path):
    scene = np.zeros((*SIZE, 3), dtype=np.uint8)
    scene[:16, :24] = 240  # the upper left quarter
    path = written(tmp_path / "a.mp4", images=[np.rot90(scene, angle // 90)] * COUNT)  # as the camera holds it
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[angle]  # and is to be turned clockwise by as much
    plain, turned = ([a, b, 0, c, d, 0, 0, 0, 0x4000] for a, b, c, d in ((1, 0, 0, 1), (cosine, sine, -sine, cosine)))
    content = path.read_bytes()
    at = content.index(b"tkhd") + 4 + 40
    as_bytes = [b"".join((n << 16).to_bytes(4, "big", signed=True) for n in matrix) for matrix in (plain, turned)]
    assert content[at : at + 36] == as_bytes[0]
    path.write_bytes(content[:at] + as_bytes[1] + content[at + 36 :])
    upright = clip(path).frames(0, MIDDLES)
    assert upright is not None
    assert (upright.float() - torch.from_numpy(scene).permute(2, 0, 1)).abs().mean() < 5


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
    assert shown(name) == SHOWN
    Path(name).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        clip(name).frames(0, MIDDLES)
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
            container.mux(picture.encode(av.VideoFrame.from_ndarray(grey()[0], "rgb24")))
            container.mux(picture.encode())
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _as_image(kind: str) -> Callable[[Path], Any]:
    return lambda path: Image.fromarray(grey()[0]).save(path, format=kind)


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


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_what_is_no_video_is_refused(make, tmp_path, whole):
    (tmp_path / "other.mp4").write_bytes(whole["mpeg4.mp4"].read_bytes())  # never to be read in its place
    path = tmp_path / "a.mp4"
    make(path)
    refused(path)
    assert wrong(path) is None


def test_a_cover_is_no_frame(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover: Any = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 48, 32, "rgb24"
        cover.disposition = Disposition.attached_pic
        stream: Any = container.add_stream("mpeg4", rate=25, options=FINE)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        container.mux(cover.encode(av.VideoFrame.from_ndarray(grey()[-1], "rgb24")))
        container.mux(cover.encode())
        for image in grey():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    assert shown(path) == SHOWN


CODECS = {
    "h264.mp4": b"avc1",
    "mpeg4.avi": b"FMP4",
    "mjpeg.avi": b"MJPG",
    "mpeg4.mkv": b"V_MPEG4",
    "vp9.webm": b"V_VP9",
}
CODECS = {name: codec for name, codec in CODECS.items() if name in KINDS}


@pytest.mark.parametrize(("name", "codec"), CODECS.items())
def test_a_codec_that_nobody_knows(name, codec, tmp_path, whole):
    path = tmp_path / name
    content = whole[name].read_bytes()
    assert codec in content
    path.write_bytes(content.replace(codec, codec[:2] + b"ZZZZZ"[: len(codec) - 2]))
    refused(path)


def test_frames_that_take_no_time(tmp_path, whole):
    """All are shown at once: any of them may be taken for all."""
    content = bytearray(whole["mpeg4.mp4"].read_bytes())
    at = content.index(b"stts") + 4
    for entry in range(int.from_bytes(content[at + 4 : at + 8], "big")):
        content[at + 12 + 8 * entry : at + 16 + 8 * entry] = bytes(4)
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert wrong(path) is None


@pytest.mark.parametrize("name", KINDS)
def test_two_videos_of_other_sizes_in_one_file(name, tmp_path):
    first, second = written(tmp_path / f"1{name}", name), written(tmp_path / f"2{name}", name, images=grey((48, 32)))
    path = tmp_path / name
    path.write_bytes(first.read_bytes() + second.read_bytes())
    assert wrong(path) is None
