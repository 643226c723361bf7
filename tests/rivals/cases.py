"""Shared by the tests of rivals: the numbers of axes that each takes, and how to make one."""

import torch
from torch import Tensor

import comrope
from comrope.encodings import Encoding

ANY = (1, 2, 3)
AXES = {
    "golden-gate": ANY,
    "nd-rope": ANY,
    "spiral-rope": (2,),
    "mochi-rope": ANY,
    "dinov3-rope": ANY,
    "m-rope": ANY,
    "video-rope": ANY,
    "partial-rope": ANY,
    "p-rope": ANY,
    "harope": ANY,
    "grape-m": ANY,
    "spherical-rope": (2,),
    "geope": ANY,
    "selective-rope": (1, 2),
    "rope-vit-axial": ANY,
    "rope-vit-mixed": ANY,
}
"""Numbers of axes to test with, by name."""
DENSE = ("grape-m", "spherical-rope", "geope")
SETTINGS = {
    "golden-gate": {"zero_fraction": 0.25, "min_frequency": 0.5},
    "nd-rope": {"block_size": 4},
    "spiral-rope": {"num_directions": 2},
    "mochi-rope": {"init": "rope"},
    "dinov3-rope": {"min_frequency": 0.1, "rescale": 2.0},
    "m-rope": {"layout": "interleaved", "sections": (4, 2, 2)},
    "video-rope": {"temporal_planes": 3, "time_scale": 1.5},
    "p-rope": {"fraction": 0.3},
    "harope": {"same_map": True},
    "spherical-rope": {"learn_frequencies": True},
    "selective-rope": {"init": "rope"},
    "rope-vit-mixed": {"init": "identity"},
}
"""Settings other than the defaults, for 16 features in a head."""


def make(name: str, seed: int = 0, **settings) -> Encoding:
    """Returns the encoding: two heads of 16 features, two axes (one if it has no more), unless `settings` say otherwise."""
    sizes = {"num_heads": 2, "head_dim": 16, "num_axes": 2 if 2 in AXES[name] else 1, "dtype": torch.float64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = comrope.encoding(name, **(sizes | settings))
    assert isinstance(made, Encoding)
    return made


def frequencies(name: str, seed: int = 0, **settings) -> Tensor:
    """Returns ω (N, H, D/2) of an encoding with a spectrum, or with maps."""
    return make(name, seed, **settings).folded().frequencies.detach().flatten(2)
