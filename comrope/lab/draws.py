"""Random numbers that depend on what they are for, and on nothing else.

A draw is named by whole numbers, such as (seed, epoch, image): it comes out the same in whatever order, process or worker it
is made, and after a restart. No state of a generator has to be kept.
"""

import numpy as np
import torch


def seed_for(*key: int) -> int:
    """A seed below 2³² for the draws named by `key`, whole numbers from 0 on.

    Different keys of one length give unrelated streams; numpy reads a shorter key as if zeros followed. So in a run the second
    number, after the run's seed, says what kind of draw it is: 0 the order of an epoch, 1 a step's dropout, 2 its
    perturbation, 3 how a sample is augmented.

    >>> seed_for(0, 1) == seed_for(0, 1), seed_for(0, 1) == seed_for(1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def generator(*key: int) -> torch.Generator:
    """A fresh generator of torch, on the CPU, for the draws named by `key`."""
    return torch.Generator().manual_seed(seed_for(*key))
