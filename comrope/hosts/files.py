"""Attached models on disk: safetensors and JSON, nothing pickled; and parameters in the official release's naming."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comrope.encodings import ComRoPEAP, ComRoPELD, LieRE
from comrope.encodings.fixed import FixedFrequencies, freeze
from comrope.errors import ConfigurationError, DataError
from comrope.hosts import attach
from comrope.hosts._surgery import Attachment
from comrope.hosts.fold import fold

SETTINGS, WEIGHTS = "comrope.json", "model.safetensors"
FORMAT = 1


def save(model: nn.Module, folder: Path | str) -> None:
    """Writes an attached model, folded or frozen or not: config.json, model.safetensors and comrope.json.

    config.json is the library's own, so that it goes on loading what it knows: `from_pretrained(folder)` gives a model of
    transformers without the encoding, to which `attach` can be applied again. `load` gives back all of it.

    Raises:
        ConfigurationError: nothing is attached; a timm model that was not made by `timm.create_model`.
    """
    attachment, folder = Attachment.of(model), Path(folder)
    settings = {
        "format": FORMAT,
        "library": _library(model),
        "class": type(model).__name__,
        "attach": attachment.settings,
        "folded": attachment.folded,
        "frozen": not attachment.folded and any(isinstance(m, FixedFrequencies) for m in model.modules()),
    }
    in_transformers = settings["library"] == "transformers"
    if not in_transformers and "architecture" not in (getattr(model, "pretrained_cfg", None) or {}):
        raise ConfigurationError(
            f"This {type(model).__name__} does not know its own arguments: make it with timm.create_model, then attach."
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).unlink(missing_ok=True)  # written last: without it the folder is not whole
    if in_transformers:
        model.save_pretrained(folder, max_shard_size="1000GB")  # pyright: ignore[reportCallIssue]
    else:
        import timm.models

        timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def load(folder: Path | str) -> nn.Module:
    """The model that `save` wrote, with its encodings, in evaluation mode.

    Raises:
        DataError: files that are missing, damaged or not made by `save`; a tensor that is missing, or does not fit, is named.
    """
    folder = Path(folder)
    settings = _json(folder / SETTINGS)
    if settings.get("format") != FORMAT:
        raise DataError(f"{folder / SETTINGS}: format {settings.get('format')!r}, expected {FORMAT}.")
    tensors = _tensors(folder / WEIGHTS)
    model = _build(folder, settings)
    attach(model, **settings["attach"])
    if settings["frozen"]:
        freeze(model)
    if settings["folded"]:
        fold(model)
    _fill(model, tensors, folder / WEIGHTS)
    return model.eval()


def load_official(
    model: nn.Module, source: Path | str | Mapping[str, Tensor], *, scale_factor: float = 1.0
) -> nn.Module:
    """Takes angles from a state dict with the names of the paper's released code, layer by layer, in order.

    Args:
        model: has as many ComRoPE-AP, ComRoPE-LD or LieRE layers as the state dict.
        source: a state dict, or a file of one (read with weights_only=True). In each layer `freqs`, (H, 1, m, b, b), or
            (H, N, m, b, b) of LieRE, and with LD `multiplier`, (1, N, m, 1, 1), which all heads share.
        scale_factor: of LieRE, from the release's configuration.
    Returns:
        The model. Only the angles have changed.
    Raises:
        DataError: a key that is missing or of another shape, by name; a file that cannot be read. Nothing has changed then.
    """
    state = source if isinstance(source, Mapping) else _official_file(Path(source))
    layers = [m for m in model.modules() if isinstance(m, (ComRoPEAP, ComRoPELD, LieRE))]
    keys = sorted((key for key in state if re.search(r"(^|\.)freqs$", key)), key=_by_number)
    if not layers or len(keys) != len(layers):
        raise DataError(
            f"{len(keys)} keys end in 'freqs', and the model has {len(layers)} layers of comrope-ap, comrope-ld or liere: "
            "attach one to as many layers as the state dict has."
        )
    changes: list[tuple[Tensor, Tensor]] = []
    for key, layer in zip(keys, layers, strict=True):
        base = layer.base_matrices
        if isinstance(layer, LieRE):
            changes.append((base, _official(state, key, base.transpose(0, 1)).transpose(0, 1) / scale_factor))
            continue
        changes.append((base, _official(state, key, base.unsqueeze(1)).squeeze(1)))
        if isinstance(layer, ComRoPELD):
            scale = layer.axis_scale  # (N, H, m)
            shared = _official(state, key[: -len("freqs")] + "multiplier", scale[None, :, 0, :, None, None])
            changes.append((scale, shared.view(len(scale), 1, -1).expand_as(scale)))
    with torch.no_grad():
        for parameter, value in changes:
            parameter.copy_(value)
    return model


def _official(state: Mapping[str, Tensor], key: str, like: Tensor) -> Tensor:
    if key not in state:
        raise DataError(f"the state dict has no {key!r}, which this encoding needs. Is it of another encoding?")
    value = state[key]
    if not isinstance(value, Tensor) or value.shape != like.shape:
        came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"{key!r}: got {came}, expected {tuple(like.shape)}.")
    return value


def _official_file(path: Path) -> Mapping[str, Tensor]:
    try:
        state = _tensors(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:  # whatever zip, pickle and torch make of a wrong file
        raise DataError(f"{path} cannot be read as a state dict: {error}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, Mapping):
        raise DataError(f"{path} holds a {type(state).__name__}, expected a state dict.")
    return state


def _by_number(key: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]


def _library(model: nn.Module) -> str:
    transformers = sys.modules.get("transformers")
    return "transformers" if transformers and isinstance(model, transformers.PreTrainedModel) else "timm"


def _build(folder: Path, settings: dict[str, Any]) -> nn.Module:
    """The model without its encoding, and with any weights."""
    config = _json(folder / "config.json")
    if settings["library"] == "transformers":
        import transformers

        kind = getattr(transformers, settings["class"], None)
        if kind is None:
            raise DataError(
                f"{folder / SETTINGS}: transformers {transformers.__version__} has no {settings['class']!r}."
            )
        return kind._from_config(kind.config_class.from_pretrained(folder))
    import timm

    head = {"num_classes": config["num_classes"], "global_pool": config.get("global_pool", "")}
    return timm.create_model(config["architecture"], **config.get("model_args", {}) | head)


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    # Frozen RoPE-Mixed was written with the identity for a basis before it had none.
    without_basis = {f"{name}.basis" for name, m in model.named_modules() if type(m) is FixedFrequencies}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in without_basis}
    own = model.state_dict()
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
        n for n, _ in model.named_parameters()
    }
    missing = sorted(own.keys() - tensors.keys() - tied)
    unknown = sorted(tensors.keys() - own.keys())
    wrong = [key for key in tensors.keys() & own.keys() if tensors[key].shape != own[key].shape]
    for what, keys in (("is missing", missing), ("is not in this model", unknown), ("has another shape", wrong)):
        if keys:
            raise DataError(
                f"{path}: {keys[0]!r} {what} ({len(keys)} such keys). Is it the file that comrope.save wrote?"
            )
    for name, tensor in tensors.items():
        path_of_owner, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path_of_owner)
        if not isinstance(owner, FixedFrequencies):  # these are float64, whatever was saved
            held = getattr(owner, leaf)
            held.data = held.data.to(tensor.dtype)  # as it was saved
    model.load_state_dict(tensors, strict=False)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: comrope.save writes a folder with {SETTINGS} in it.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged: {error}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged: it holds no settings.")
    return found


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged or no safetensors file: {error}.") from error
