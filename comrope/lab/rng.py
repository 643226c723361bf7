"""Random numbers that depend on a seed, their use and a key, such as (epoch, index), and on nothing else.

They are the same in whatever order, process or worker they are drawn, and after a restart. No generator's state is
saved.
"""

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """The uses of a run's seed, which get different random numbers. Values never change, so that runs can be repeated."""

    ORDER = 0
    """The order of samples in an epoch; the key is (epoch)."""
    DROPOUT = 1
    """Python's, numpy's and torch's global generators in a training step; the key is (step, part, rank)."""
    PERTURBATION = 2
    """The perturbed positions of a training step; the key is (step)."""
    AUGMENTATION = 3
    """The augmentation of a sample; the key is (epoch, index, copy)."""
    EVALUATED_PERTURBATION = 4
    """The perturbed positions of evaluation."""
    MIRRORING = 5
    """Whether an image with boxes is mirrored; the key is (epoch, index, copy)."""
    EVALUATED_OFFSET = 6
    """The offsets of evaluation."""
    SCENES = 7
    """The generated scenes of detection, with seed 0; the key is (split, number)."""
    EXAMPLE = 8
    """Inputs for measurements of time, and other examples."""
    BUFFER = 9
    """The order of samples in a buffer of streamed data; the key is (epoch, buffer)."""


def seed_for(seed: int, stream: Stream, *key: int) -> int:
    """Returns a seed below 2³² for `stream` and `key`, whole numbers from 0 on.

    All keys of a stream must have the same length: numpy reads a shorter key as if zeros followed.

    >>> seed_for(0, Stream.ORDER, 1) == seed_for(0, Stream.ORDER, 1), seed_for(0, Stream.ORDER) == seed_for(0, Stream.DROPOUT)
    (True, False)
    """
    return int(np.random.SeedSequence((seed, stream, *key)).generate_state(1)[0])


def generator(seed: int, stream: Stream, *key: int) -> torch.Generator:
    """Returns a new CPU generator of torch with the seed `seed_for(seed, stream, *key)`."""
    return torch.Generator().manual_seed(seed_for(seed, stream, *key))
