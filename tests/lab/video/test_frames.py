"""Real files of all kinds: which frames are read, and what is said of those that cannot be."""

import av
import numpy as np
import pytest
import torch

from comrope.lab.video import frames
from tests.lab.video.helpers import at_times, numbered, numbers

MIDDLES = [(i + 0.5) / 8 for i in range(8)]
KINDS = {
    "a.mp4": {"codec": "mpeg4", "g": "1"},
    "b.mp4": {"codec": "mpeg4", "g": "12", "bf": "2"},  # frames are stored in another order than shown
    "c.avi": {"codec": "mpeg4", "g": "12", "bf": "2"},  # UCF-101's container
    "d.avi": {"codec": "mjpeg"},
    "e.mkv": {"codec": "mpeg4", "g": "6"},  # says neither how many frames nor how long
}


@pytest.mark.parametrize(("name", "options"), KINDS.items())
def test_frames_in_the_middle_of_equal_parts(tmp_path, name, options):
    if options["codec"] == "mjpeg":
        options = options | {"strict": "unofficial"}
    clip = frames.read(numbered(tmp_path / name, 24, **options), MIDDLES)
    assert clip.shape == (8, 3, 32, 48) and clip.dtype == torch.uint8
    assert numbers(clip) == [1, 4, 7, 10, 13, 16, 19, 22]


@pytest.mark.parametrize("count", [1, 2, 5, 8, 13, 24])
def test_any_share_of_any_length(tmp_path, count):
    path = numbered(tmp_path / "a.mp4", count, g="4", bf="0")
    shares = np.sort(np.random.default_rng(0).random(9))
    assert numbers(frames.read(path, shares)) == [int(share * count) for share in shares]
    assert numbers(frames.read(path, [0.0])) == [0]


def test_short_videos_repeat_their_frames(tmp_path):
    clip = frames.read(numbered(tmp_path / "a.mp4", 3), MIDDLES)
    assert numbers(clip) == [0, 0, 0, 1, 1, 2, 2, 2]


def test_variable_rate_goes_by_time_not_by_number(tmp_path):
    """Twenty frames in the first tenth of the time, then three that stay long."""
    path = at_times(tmp_path / "a.mp4", [*range(20), 50, 100, 150, 199])
    assert numbers(frames.read(path, MIDDLES)) == [12, 19, 20, 20, 21, 21, 22, 22]


def test_a_late_start_is_no_part_of_the_video(tmp_path):
    first, late = (at_times(tmp_path / f"{t}.mkv", [t + 10 * n for n in range(8)]) for t in (0, 300))
    found = numbers(frames.read(late, MIDDLES))
    assert found == numbers(frames.read(first, MIDDLES)) and found[0] == 0 and found[-1] >= 6


def test_only_what_is_needed_is_decoded(tmp_path, monkeypatch):
    path, decoded = numbered(tmp_path / "a.mp4", 24, g="4", bf="0"), []
    timed = frames._timed

    def counted(*arguments):
        for found in timed(*arguments):
            decoded.append(found)
            yield found

    monkeypatch.setattr(frames, "_timed", counted)
    assert numbers(frames.read(path, [0.0, 0.99])) == [0, 23]
    assert len(decoded) < 8


def _unreadable(folder):
    whole = numbered(folder / "whole.mp4", 24, g="4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mp4").write_text("no video at all")
    (folder / "empty.mp4").write_bytes(b"")
    avi = numbered(folder / "whole.avi", 24, size=(64, 96), codec="mjpeg", strict="unofficial").read_bytes()
    (folder / "truncated.avi").write_bytes(avi[: avi.index(b"movi") + (len(avi) - avi.index(b"movi")) // 2])
    return [folder / n for n in ("truncated.mp4", "text.mp4", "empty.mp4", "truncated.avi", "missing.mp4", "sound.mp4")]


def test_what_is_no_whole_video_is_refused(tmp_path):
    paths = _unreadable(tmp_path)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for path in paths:
        with pytest.raises(frames.DAMAGE):
            frames.read(path, MIDDLES)
    with pytest.raises(ValueError, match="no video stream"):
        frames.read(tmp_path / "sound.mp4", MIDDLES)
    with pytest.raises(ValueError, match="of 24 frames are there"):
        frames.read(tmp_path / "truncated.avi", MIDDLES)
