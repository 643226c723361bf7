"""Data sets of clips for a DataLoader: augmented clips to train on, and plain ones to evaluate on.

The augmentation of a clip is random and depends on its key (epoch, index, copy) alone, not on the batch, process or
worker that reads it. It is the same for all frames of the clip.
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

    A clip has one frame from each of `num_frames` equal parts of the video, at a random time within the part. Frames
    are resized to the smallest size that covers `resize_ratio` times `size`, cropped at random and, with `flip`,
    mirrored half of the time.
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
            clips: the clips to augment.
            num_frames: the number of frames in a clip.
            size: (height, width) of the crops in pixels.
            resize_ratio: the size of the resized frames over `size`; 1 or more.
            flip: whether clips are mirrored at random.
            seed: the seed that, with a clip's key, determines its augmentation.
        Raises:
            ConfigurationError: a setting is out of range.
        """
        if resize_ratio < 1:
            raise ConfigurationError(
                f"resize_ratio={resize_ratio}: expected 1 or more, or there is nothing to crop from."
            )
        self.clips, self.num_frames, self.size, self.flip, self.seed = clips, num_frames, size, flip, seed
        _check(num_frames, size)
        self._resized_size = (round(resize_ratio * size[0]), round(resize_ratio * size[1]))

    def __len__(self) -> int:
        return len(self.clips)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """Returns the batch of `keys`, with pixels (n, 3, frames, height, width), float32 in [−1, 1]."""
        uniform = torch.stack([self._uniform(key) for key in keys])  # (n, frames + 3), in [0, 1)
        down, right, mirror = uniform[:, -3:].unbind(1)

        def crop_clip(at: int, frames: Tensor) -> Tensor:
            clip = crop(cover(frames, self._resized_size), self.size, float(down[at]), float(right[at]))
            return clip.flip(-1) if self.flip and mirror[at] < 0.5 else clip

        indices = [index for _, index, _ in keys]
        return _gather(self.clips, self.size, indices, uniform[:, : self.num_frames], crop_clip)

    def _uniform(self, key: Key) -> Tensor:
        return torch.rand(
            self.num_frames + 3, generator=generator(self.seed, Stream.AUGMENTATION, *key), dtype=torch.float64
        )


class EvalClips(Dataset):
    """Plain clips: `dataset[[index, …]]`, through a DataLoader, is a `Batch` of centre crops of each part's middle frame."""

    def __init__(self, clips: Clips, num_frames: int, size: tuple[int, int]):
        _check(num_frames, size)
        self.clips, self.num_frames, self.size = clips, num_frames, size

    def __len__(self) -> int:
        return len(self.clips)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Returns the batch of the clips at `indices`."""
        middle = torch.full((len(indices), self.num_frames), 0.5, dtype=torch.float64)
        crop_clip: Callable = lambda at, frames: crop(cover(frames, self.size), self.size)  # noqa: E731
        return _gather(self.clips, self.size, indices, middle, crop_clip)


def _gather(
    clips: Clips,
    size: tuple[int, int],
    indices: Sequence[int],
    within: Tensor,
    crop_clip: Callable[[int, Tensor], Tensor],
) -> Batch:
    """Returns the batch of the videos that can be read, each cropped by `crop_clip(index in the batch, frames)`.

    `within`, (n, frames) in [0, 1), says at which share of its part each frame is taken.
    """
    num_frames = within.shape[1]
    shares = (torch.arange(num_frames) + within) / num_frames
    found, kept, skipped = [], [], []
    for at, index in enumerate(indices):
        frames = clips.frames(index, shares[at].tolist())
        if frames is None:
            skipped.append(clips.name(index))
        else:
            found.append(crop_clip(at, frames).transpose(0, 1))
            kept.append(index)
    pixels = torch.stack(found).float() / 127.5 - 1 if found else torch.empty(0, 3, num_frames, *size)
    return Batch(pixels, clips.labels[kept], tuple(skipped))


def _check(num_frames: int, size: tuple[int, int]) -> None:
    if num_frames < 1 or min(size) < 1:
        raise ConfigurationError(f"num_frames={num_frames}, size={size}: expected at least one frame of one pixel.")
