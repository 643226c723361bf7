"""`load_official`: angles from checkpoints of the paper's released code."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comrope._values import is_floating, is_number, shape_of
from comrope.encodings import ComRoPEAP, ComRoPELD, LieRE
from comrope.errors import ConfigurationError, DataError
from comrope.hosts._attachment import Model
from comrope.hosts._weight_files import read_tensors


def load_official(model: Model, source: Path | str | Mapping[str, Tensor], *, scale_factor: float = 1.0) -> Model:
    """Copies angles from a state dict with the names of the paper's released code into a model, layer by layer, in order.

    Args:
        model: has as many ComRoPE-AP, ComRoPE-LD or LieRE layers as the state dict.
        source: a state dict, or a file with one (read with weights_only=True). Each layer has `freqs`, (H, 1, m, b, b),
            or (H, N, m, b, b) for LieRE; for LD also `multiplier`, (1, N, m, 1, 1), which all heads share.
        scale_factor: for LieRE, from the release's configuration.
    Returns:
        The model. Only the angles have changed.
    Raises:
        DataError: a key is missing or of another shape (the message names it), or the file cannot be read. The model is
            unchanged.
        ConfigurationError: the model is not a module, or the factor is not a number that can be used.
    Examples:
        >>> import comrope
        >>> pe = comrope.encoding("comrope-ap", num_heads=2, head_dim=16, num_axes=2)
        >>> freqs = torch.randn(2, 1, 2, 8, 8)  # heads, 1, blocks, rows, columns
        >>> bool((load_official(pe, {"blocks.0.freqs": freqs}).base_matrices == freqs[:, 0]).all())
        True
    """
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"model: got {type(model).__name__}, expected a torch module.")
    if not is_number(scale_factor, 1e-15):
        raise ConfigurationError(f"scale_factor={scale_factor!r}: expected a finite number above 0, 1e-15 or more.")
    state = source if isinstance(source, Mapping) else _read_state_dict(source)
    layers = [m for m in model.modules() if isinstance(m, (ComRoPEAP, ComRoPELD, LieRE))]
    keys = sorted(
        (key for key in state if isinstance(key, str) and re.search(r"(^|\.)freqs$", key)), key=_natural_order
    )
    if not layers or len(keys) != len(layers):
        raise DataError(
            f"{len(keys)} keys end in 'freqs', and the model has {len(layers)} layers of comrope-ap, comrope-ld or liere: "
            "attach one to as many layers as the state dict has."
        )
    changes: list[tuple[Tensor, Tensor]] = []
    for key, layer in zip(keys, layers, strict=True):
        base = layer.base_matrices
        if isinstance(layer, LieRE):
            changes.append((base, _checked_tensor(state, key, base.transpose(0, 1)).transpose(0, 1) / scale_factor))
            continue
        changes.append((base, _checked_tensor(state, key, base.unsqueeze(1)).squeeze(1)))
        if isinstance(layer, ComRoPELD):
            scale = layer.axis_scale  # (N, H, m)
            shared = _checked_tensor(state, key[: -len("freqs")] + "multiplier", scale[None, :, 0, :, None, None])
            changes.append((scale, shared.view(len(scale), 1, -1).expand_as(scale)))
    with torch.no_grad():
        for parameter, value in changes:
            parameter.copy_(value)
    return model


def _checked_tensor(state: Mapping[str, Tensor], key: str, like: Tensor) -> Tensor:
    """Returns the tensor of a key; DataError unless it is finite and has the shape of `like`."""
    if key not in state:
        raise DataError(f"the state dict has no {key!r}, which this encoding needs. Is it of another encoding?")
    value = state[key]
    if not isinstance(value, Tensor) or value.is_nested or value.shape != like.shape:
        raise DataError(
            f"{key!r}: got {shape_of(value)}, expected {tuple(like.shape)}: is it of an encoding of the same sizes?"
        )
    if not is_floating(value) or value.is_meta or not value.to(like.dtype).isfinite().all():
        raise DataError(f"{key!r}: got {value.dtype}, {value.layout}; expected finite numbers in a dense tensor.")
    return value


def _read_state_dict(source: Any) -> Mapping[str, Tensor]:
    try:
        path = Path(source)
        state = read_tensors(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:  # whatever zip, pickle and torch raise for a wrong file
        raise DataError(
            f"{source!r} cannot be read as a state dict: {error}. Give the file that was released."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, Mapping):
        raise DataError(f"{source!r} holds a {type(state).__name__}, expected a state dict.")
    return state


def _natural_order(key: str) -> list[int | str]:
    """Sorts numbers in keys by value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]
