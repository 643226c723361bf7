"""Reads frames of a video file by presentation time, not by index: this is right at any frame rate, also a variable one."""

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from torch import Tensor

DAMAGE = (av.FFmpegError, OSError, ValueError)
"""The errors that `read` raises for a file that is not a complete video."""
FORMATS = "asf,avi,flv,m4v,matroska,mov,mpeg,mpegts,mpegvideo,ogg"
"""FFmpeg's names of the container formats that are read. The others are images, text, audio, or playlists, which would
make FFmpeg open other files."""
_MIN_SHARE = 0.9  # a file must have this share of the frames or bytes that its header promises
_SEGMENT = b"\x18\x53\x80\x67"  # the ID of Matroska's Segment element: all of a file after its header


class _Index(NamedTuple):
    """The times of a video's frames, read from its packets without decoding."""

    times: np.ndarray
    """(n,), presentation times in ascending order; the indices of the frames if the file has no times."""
    end: int
    """The time at which the last frame ends."""
    keys: list[tuple[int, int]] | None
    """(presentation time, decoding time) of each key frame; None if the file has no times."""


def read(path: str | Path, shares: Sequence[float]) -> Tensor:
    """Returns the frames that are shown at these shares of a video's duration.

    If the video has fewer frames than are asked for, some are repeated. Only frames between a key frame and a wanted
    one are decoded.

    Args:
        path: the video file.
        shares: increasing numbers in [0, 1): 0 is the first frame, ½ the one shown half-way.
    Returns:
        (frames, 3, height, width), uint8, RGB, upright, all resized to the first one's size.
    Raises:
        av.FFmpegError, OSError, ValueError: the file is damaged, empty or no video, or more than a tenth of the frames,
            or of the bytes, that its header promises are missing.
    """
    with _opened(path) as container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise ValueError("it has no video stream")
        if "matroska" in container.format.name:
            _check_length(path)
        stream = streams[0]
        if stream.codec_context is None:
            raise ValueError("its codec is not known")
        stream.codec_context.thread_count = 1  # DataLoader workers run in parallel already
        index = _index(container, stream)
        begin = int(index.times[0])
        wanted = [begin + int(share * (index.end - begin)) for share in shares]  # integers: times may be huge
        at = np.searchsorted(index.times, wanted, side="right") - 1
        found = list(_decoded(container, stream, index, index.times[at]))
    reformatter, first = VideoReformatter(), found[0]
    images = [reformatter.reformat(f, first.width, first.height, "rgb24").to_ndarray() for f in found]
    upright = np.rot90(np.stack(images), round(first.rotation / 90), (1, 2))
    return torch.from_numpy(np.ascontiguousarray(upright)).permute(0, 3, 1, 2)


def _opened(path: str | Path) -> Any:
    # FFmpeg would read "a:b.mp4" as a URL with the protocol "a"; an absolute path is always a file.
    try:
        return av.open(os.path.abspath(path), container_options={"format_whitelist": FORMATS})
    except av.ArgumentError as error:
        raise ValueError(f"it is no video in any of the formats {FORMATS}") from error


def _check_length(path: str | Path) -> None:
    """Raises ValueError if a Matroska file is much shorter than its header says. FFmpeg reads a truncated file without error.

    The header of a file that was recorded live does not say how long it is.
    """
    with open(path, "rb") as file:
        before, _, after = file.read(4096).partition(_SEGMENT)
        size = os.fstat(file.fileno()).st_size
    if not after:
        return
    # EBML's numbers of `width` bytes begin with width − 1 zero bits and a one.
    width = 9 - after[0].bit_length()
    most = (1 << 7 * width) - 1
    follow = int.from_bytes(after[:width], "big") & most
    whole = len(before) + len(_SEGMENT) + width + follow
    if follow != most and size < _MIN_SHARE * whole:
        raise ValueError(f"{size} of {whole} bytes are there")


def _index(container: Any, stream: Any) -> _Index:
    """Returns the times of the frames; raises ValueError if too many frames are missing."""
    packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
    if not packets or len(packets) < _MIN_SHARE * stream.frames:
        promised = f" of {stream.frames}" if stream.frames else ""
        raise ValueError(f"{len(packets)}{promised} frames are there")
    if any(p.pts is None for p in packets):
        return _Index(np.arange(len(packets)), len(packets), None)
    packets.sort(key=lambda p: p.pts)
    times = np.array([p.pts for p in packets])
    last = max(0, packets[-1].duration or 0) or (int(np.median(np.diff(times))) if len(times) > 1 else 1)
    keys = [(p.pts, p.pts if p.dts is None else p.dts) for p in packets if p.is_keyframe]
    return _Index(times, int(times[-1]) + last, keys)


def _decoded(container: Any, stream: Any, index: _Index, wanted: np.ndarray) -> Iterator[Any]:
    """Yields the frame at each of the times `wanted`, in order; the last decoded frame where decoding ends early."""
    frames, now, shown = None, -np.inf, None
    for time in wanted:
        key = max((key for key in index.keys or () if key[0] <= time), default=None)
        if frames is None or (key is not None and now < key[0]):
            # seek takes a decoding time, which is never later than the presentation time.
            container.seek(0 if key is None else key[1], stream=stream)
            frames, now = _timed(container, stream, index), -np.inf
        while now < time and (found := next(frames, None)) is not None:
            now, shown = found
        if shown is None:
            raise ValueError("none of its frames can be decoded")
        yield shown


def _timed(container: Any, stream: Any, index: _Index) -> Iterator[tuple[float, Any]]:
    """Yields (presentation time, frame); the frame's index if the file has no times."""
    for number, frame in enumerate(container.decode(stream)):
        time = number if index.keys is None else frame.pts
        if time is not None:
            yield time, frame


def write(path: Path, images: Sequence[np.ndarray], *, rate: int | Fraction, codec: str, **options: str) -> None:
    """Writes RGB images, (height, width, 3) uint8, as a video file.

    Args:
        path: the video file.
        images: the frames.
        rate: frames per second.
        codec: one of FFmpeg's encoders, such as "mpeg4", which every build has.
        options: options of the encoder, such as g="1" for key frames only.
    """
    height, width, _ = images[0].shape
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
