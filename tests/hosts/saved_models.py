"""Attached models to save, and comparisons of them with what was loaded."""

import pytest
import timm
import torch

import comrope
from comrope.errors import ConfigurationError
from comrope.hosts import angle_parameters

TIMM = {"img_size": (32, 48), "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}

keeps_arguments = pytest.mark.skipif(
    not hasattr(timm.models, "get_model_args"), reason="this timm does not keep the arguments of create_model"
)


def with_perturbed_angles(model):
    """Adds noise to all angles, always the same noise, and returns the model."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in angle_parameters(model).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
    return model


def attached(model, name, **settings):
    return with_perturbed_angles(comrope.attach(model, name, **settings))


def attached_from_zoo(entry, name):
    """Returns the model of an entry with an encoding, and its example; skips the test if none can be attached."""
    try:
        entry.build()
    except (ImportError, AttributeError) as missing:
        pytest.skip(str(missing))
    example = entry.keywords()
    for block_size in (8, 4, 2) if name.startswith("comrope") else (None,):
        try:
            return attached(entry.build(), name, block_size=block_size, example=example), example
        except ConfigurationError as refused:
            reason = str(refused)
    pytest.skip(f"attach refuses it: {reason}")


def assert_same_state(model, other):
    mine, yours = model.state_dict(), other.state_dict()
    assert list(mine) == list(yours)
    for key, value in mine.items():
        assert value.dtype == yours[key].dtype, key
        assert torch.equal(value, yours[key]), key
