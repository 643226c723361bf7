"""What a DataLoader reads: batches of clips, cut at random to train on, and plain to test on.

How a clip is cut is drawn from its key (epoch, index, copy) alone, whatever batch, process or worker it comes in, and is the
same for all of its frames.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from comrope.errors import ConfigurationError
from comrope.lab.data.batches import Batch
from comrope.lab.data.geometry import cover, crop
from comrope.lab.rng import Stream, generator
from comrope.lab.video.clips import Clips

Key = tuple[int, int, int]
"""(epoch, index, copy)"""


class TrainClips(Dataset):
    """Augmented clips: `dataset[[(epoch, index, copy), …]]`, through a DataLoader, is a `Batch`.

    A clip is one frame of each of `num_frames` equal parts of the video, at a random time within its part; resized so that
    `resize_ratio` times the size just fits into it, cropped at random and, with `flip`, mirrored half of the time.
    """

    def __init__(
        self,
        clips: Clips,
        num_frames: int,
        size: tuple[int, int],
        *,
        resize_ratio: float = 1.1,
        flip: bool = False,
        seed: int,
    ):
        """
        Args:
            clips: what is augmented.
            num_frames: of a clip.
            size: (height, width) in pixels, of what comes out.
            resize_ratio: frames are resized to so many times `size`; 1 or more.
            flip: whether to mirror.
            seed: of all draws, together with a clip's key.
        Raises:
            ConfigurationError: settings that are none of these.
        """
        if resize_ratio < 1:
            raise ConfigurationError(
                f"resize_ratio={resize_ratio}: expected 1 or more, or there is nothing to crop from."
            )
        self.clips, self.num_frames, self.size, self.flip, self.seed = clips, num_frames, size, flip, seed
        _check(num_frames, size)
        self._enlarged = (round(resize_ratio * size[0]), round(resize_ratio * size[1]))

    def __len__(self) -> int:
        return len(self.clips)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """The clips of `keys`; pixels (n, 3, frames, height, width), float32 in [−1, 1]."""
        draws = torch.stack([self._draws(key) for key in keys])  # (n, frames + 3), in [0, 1)
        down, right, mirror = draws[:, -3:].unbind(1)

        def cut(at: int, frames: Tensor) -> Tensor:
            clip = crop(cover(frames, self._enlarged), self.size, float(down[at]), float(right[at]))
            return clip.flip(-1) if self.flip and mirror[at] < 0.5 else clip

        indices = [index for _, index, _ in keys]
        return _gather(self.clips, self.size, indices, draws[:, : self.num_frames], cut)

    def _draws(self, key: Key) -> Tensor:
        return torch.rand(
            self.num_frames + 3, generator=generator(self.seed, Stream.AUGMENTATION, *key), dtype=torch.float64
        )


class EvalClips(Dataset):
    """Plain clips: `dataset[[index, …]]` is a `Batch` of the middle frame of each part, cut to its middle."""

    def __init__(self, clips: Clips, num_frames: int, size: tuple[int, int]):
        _check(num_frames, size)
        self.clips, self.num_frames, self.size = clips, num_frames, size

    def __len__(self) -> int:
        return len(self.clips)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The clips at `indices`."""
        middle = torch.full((len(indices), self.num_frames), 0.5, dtype=torch.float64)
        cut: Callable = lambda at, frames: crop(cover(frames, self.size), self.size)  # noqa: E731
        return _gather(self.clips, self.size, indices, middle, cut)


def _gather(
    clips: Clips, size: tuple[int, int], indices: Sequence[int], within: Tensor, cut: Callable[[int, Tensor], Tensor]
) -> Batch:
    """The batch of what is `cut` of each video that can be read, its frames at `within`, (n, frames), of their parts."""
    num_frames = within.shape[1]
    shares = (torch.arange(num_frames) + within) / num_frames
    found, kept, skipped = [], [], []
    for at, index in enumerate(indices):
        frames = clips.frames(index, shares[at].tolist())
        if frames is None:
            skipped.append(clips.name(index))
        else:
            found.append(cut(at, frames).transpose(0, 1))
            kept.append(index)
    pixels = torch.stack(found).float() / 127.5 - 1 if found else torch.empty(0, 3, num_frames, *size)
    return Batch(pixels, clips.labels[kept], tuple(skipped))


def _check(num_frames: int, size: tuple[int, int]) -> None:
    if num_frames < 1 or min(size) < 1:
        raise ConfigurationError(f"num_frames={num_frames}, size={size}: expected at least one frame of one pixel.")
