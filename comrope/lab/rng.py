"""Random numbers that depend on what they are for, and on nothing else.

A draw is named by whole numbers, such as (seed, stream, epoch, image): it comes out the same in whatever order, process or
worker it is made, and after a restart. No state of a generator has to be kept.
"""

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """The uses of a run's seed. No two of them draw the same numbers; a number that was given stays with its use."""

    ORDER = 0
    """The order of an epoch: (epoch)."""
    DROPOUT = 1
    """Python's, numpy's and torch's global generators in a training step: (step, part, rank)."""
    PERTURBATION = 2
    """The perturbed positions of a training step: (step)."""
    AUGMENTATION = 3
    """How a sample is cropped or cut: (epoch, index, copy)."""
    EVALUATED_PERTURBATION = 4
    """The perturbed positions of evaluation."""
    MIRRORING = 5
    """Whether an image with boxes is mirrored: (epoch, index, copy)."""
    EVALUATED_OFFSET = 6
    """The offsets of evaluation."""
    SCENES = 7
    """The composed scenes of detection, with the seed 0: (split, number)."""
    EXAMPLE = 8
    """Inputs for measurements of time, and other examples."""


def seed_for(seed: int, stream: Stream, *key: int) -> int:
    """A seed below 2³² for the draws of `stream` that `key`, whole numbers from 0 on, names.

    Keys of one stream are of one length: numpy reads a shorter key as if zeros followed.

    >>> seed_for(0, Stream.ORDER, 1) == seed_for(0, Stream.ORDER, 1), seed_for(0, Stream.ORDER) == seed_for(0, Stream.DROPOUT)
    (True, False)
    """
    return int(np.random.SeedSequence((seed, stream, *key)).generate_state(1)[0])


def generator(seed: int, stream: Stream, *key: int) -> torch.Generator:
    """A fresh generator of torch, on the CPU, for the draws that `seed_for` names."""
    return torch.Generator().manual_seed(seed_for(seed, stream, *key))
