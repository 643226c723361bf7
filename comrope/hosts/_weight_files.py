"""The tensors of a model in safetensors files: names of the files, names of the tensors in them, and how they are loaded."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comrope.encodings import Encoding
from comrope.encodings.fixed import FixedFrequencies
from comrope.errors import DataError
from comrope.hosts._safe_loading import read_json

WEIGHTS, DIFFUSION_WEIGHTS = "model.safetensors", "diffusion_pytorch_model.safetensors"
FOLDED_VARIANT = "comrope-folded"
"""The variant, in the sense of transformers, of folded weights: `model.comrope-folded.safetensors`."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def weights_path(folder: Path, library: str, variant: str | None = None) -> Path:
    """Returns the path that a library gives to the weights in a folder."""
    name = DIFFUSION_WEIGHTS if library == "diffusers" else WEIGHTS
    return folder / (name if variant is None else name.replace(".", f".{variant}."))


def weight_file_names(library: str) -> list[str]:
    """Returns the names of all files that a saved model may have had for its weights."""
    names = [weights_path(Path(), library, variant).name for variant in (None, FOLDED_VARIANT)]
    return names + [f"{name}.index.json" for name in names]


def saved_weights_path(folder: Path, settings: dict[str, Any]) -> Path:
    """Returns the path of the weights that were saved with these settings."""
    folded = weights_path(folder, settings["library"], FOLDED_VARIANT)
    return folded if settings["folded"] and folded.exists() else weights_path(folder, settings["library"])


def shard_paths(path: Path) -> list[Path]:
    """Returns the path itself or, if it does not exist, those of the shards in its index."""
    index = path.with_name(f"{path.name}.index.json")
    if path.exists() or not index.exists():
        return [path]
    try:
        return [path.with_name(name) for name in sorted(set(read_json(index)["weight_map"].values()))]
    except (KeyError, AttributeError, TypeError, ValueError) as error:  # ValueError: a name that contains a folder
        raise DataError(f"{index} is damaged: it names no files beside it ({error}).") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns all tensors of a file; DataError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged or no safetensors file: {error}.") from error


def read_encoding_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of encodings by their names in a file, or in its shards."""
    from safetensors import SafetensorError, safe_open

    angles: dict[str, Tensor] = {}
    for shard in shard_paths(path):
        try:
            with safe_open(shard, "pt") as file:
                angles |= {key: file.get_tensor(key) for key in file.keys() if ".encoding." in key}  # noqa: SIM118
        except FileNotFoundError:
            raise DataError(f"{shard} does not exist.") from None
        except (SafetensorError, OSError) as error:
            raise DataError(f"{shard} is damaged or no safetensors file: {error}.") from error
    return angles


def encoding_state(model: nn.Module) -> dict[str, Tensor]:
    """Returns the state of all encodings, by names in the model."""
    encodings = {name: module for name, module in model.named_modules() if isinstance(module, Encoding)}
    return {
        f"{name}.{leaf}": tensor for name, module in encodings.items() for leaf, tensor in module.state_dict().items()
    }


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    # Older files of a frozen RoPE-Mixed have the identity as its basis; now it has none.
    """Loads a complete state dict into a model, in its dtypes; DataError if names, shapes or dtypes do not fit."""
    without_basis = {f"{name}.basis" for name, m in model.named_modules() if type(m) is FixedFrequencies}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in without_basis}
    expected = model.state_dict()
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - {
        n for n, _ in model.named_parameters()
    }
    missing = sorted(expected.keys() - tensors.keys() - tied)
    unknown = sorted(tensors.keys() - expected.keys())
    wrong = [key for key in tensors.keys() & expected.keys() if tensors[key].shape != expected[key].shape]
    check_keys(path, missing, unknown, wrong)
    check_dtypes(path, expected, tensors)
    for name, tensor in tensors.items():
        cast_tensor(model, name, tensor.dtype)
    model.load_state_dict(tensors, strict=False)


def load_encoding_tensors(model: nn.Module, angles: dict[str, Tensor], path: Path) -> None:
    """Loads the tensors of encodings, by names as `save_pretrained` writes them, into a model; DataError if they do not fit."""
    expected = encoding_state(model)
    # Older files of a frozen RoPE-Mixed have the identity as its basis; now it has none.
    former = [f"{name}.basis" for name, module in model.named_modules() if type(module) is FixedFrequencies]
    names = _names_in_file(model, [*expected, *former], angles)
    missing = [key for key in expected if names[key] not in angles]
    unknown = sorted(angles.keys() - names.values())
    wrong = [key for key in expected if key not in missing and angles[names[key]].shape != expected[key].shape]
    check_keys(path, missing, unknown, wrong)
    check_dtypes(path, expected, {key: angles[names[key]] for key in expected})
    for key in expected:
        tensor = angles[names[key]]
        cast_tensor(model, key, tensor.dtype)
        owner, _, leaf = key.rpartition(".")
        getattr(model.get_submodule(owner), leaf).data.copy_(tensor)


def _names_in_file(model: nn.Module, keys: list[str], found: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns the name in the file of each tensor of an encoding.

    It is the name that `save_pretrained` writes in this version of transformers or, if the file does not have that, in
    another. Versions differ in the names inside a layer, and agree on those of layers.
    """
    if found.keys() <= set(keys):
        return {key: key for key in keys}
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained: Any = model.save_pretrained
        numbered = {key: torch.tensor([i]) for i, key in enumerate(keys)}
        save_pretrained(folder, state_dict=numbered, variant=None)  # not the variant of folded weights
        names = {keys[int(label)]: name for name, label in read_tensors(Path(folder) / WEIGHTS).items()}
    in_layer: dict[str, list[str]] = {}
    for name in found:
        in_layer.setdefault(_layer_and_leaf(name), []).append(name)
    for key, name in names.items():
        similar = in_layer.get(_layer_and_leaf(name), [])
        if name not in found and len(similar) == 1:
            names[key] = similar[0]
    return names


def _layer_and_leaf(key: str) -> str:
    return re.sub(r"(\.\d+)\.[^\d]*(\.encoding\.\w+)$", r"\1\2", key)


def check_keys(path: Path, missing: list[str], unknown: list[str], wrong: list[str]) -> None:
    """Raises a DataError that names the first tensor that is missing, unknown or of another shape."""
    for problem, keys in (("is missing", missing), ("is not in this model", unknown), ("has another shape", wrong)):
        if keys:
            raise DataError(
                f"{path}: {keys[0]!r} {problem} ({len(keys)} such keys). Is it the file that comrope.save wrote?"
            )


def check_dtypes(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises DataError unless all dtypes are equal or floating-point ones of 16 bits or more."""
    for name in expected.keys() & found.keys():
        dtypes = {expected[name].dtype, found[name].dtype}
        if len(dtypes) > 1 and not dtypes <= set(FLOATS):
            raise DataError(f"{path}: {name!r} has dtype {found[name].dtype}, which comrope.save does not write there.")


def cast_tensor(model: nn.Module, name: str, dtype: torch.dtype) -> None:
    """Casts one tensor of a model. A tensor of an encoding is cast only to dtypes that the encoding supports."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if not isinstance(owner, Encoding) or dtype in owner._allowed_dtypes:
        tensor = getattr(owner, leaf)
        tensor.data = tensor.data.to(dtype)
