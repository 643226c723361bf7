"""The tensors of a model in files of safetensors: where they are, what they are called there, and how they come back."""

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
from comrope.hosts._bounds import read_json

WEIGHTS, DIFFUSION_WEIGHTS = "model.safetensors", "diffusion_pytorch_model.safetensors"
FOLDED = "comrope-folded"
"""The variant, in the words of transformers, as which folded weights are written: `model.comrope-folded.safetensors`."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def weights_file(folder: Path, library: str, variant: str | None = None) -> Path:
    """The file that a library calls its weights."""
    name = DIFFUSION_WEIGHTS if library == "diffusers" else WEIGHTS
    return folder / (name if variant is None else name.replace(".", f".{variant}."))


def all_weights(library: str) -> list[str]:
    """Names of files in which a model may have been written before."""
    names = [weights_file(Path(), library, variant).name for variant in (None, FOLDED)]
    return names + [f"{name}.index.json" for name in names]


def weights_of(folder: Path, settings: dict[str, Any]) -> Path:
    folded = weights_file(folder, settings["library"], FOLDED)
    return folded if settings["folded"] and folded.exists() else weights_file(folder, settings["library"])


def shards(path: Path) -> list[Path]:
    """A file of weights, or those that its index names in place of it."""
    index = path.with_name(f"{path.name}.index.json")
    if path.exists() or not index.exists():
        return [path]
    try:
        return [path.with_name(name) for name in sorted(set(read_json(index)["weight_map"].values()))]
    except (KeyError, AttributeError, TypeError, ValueError) as error:  # ValueError: a name with folders in it
        raise DataError(f"{index} is damaged: it names no files beside it ({error}).") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file; DataError where there is none, or a damaged one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged or no safetensors file: {error}.") from error


def angles_in(path: Path) -> dict[str, Tensor]:
    """The tensors of encodings, by their names in the file or the files."""
    from safetensors import SafetensorError, safe_open

    angles: dict[str, Tensor] = {}
    for shard in shards(path):
        try:
            with safe_open(shard, "pt") as file:
                angles |= {key: file.get_tensor(key) for key in file.keys() if ".encoding." in key}  # noqa: SIM118
        except FileNotFoundError:
            raise DataError(f"{shard} does not exist.") from None
        except (SafetensorError, OSError) as error:
            raise DataError(f"{shard} is damaged or no safetensors file: {error}.") from error
    return angles


def encodings_of(model: nn.Module) -> dict[str, Tensor]:
    """The state of all encodings, by names in the model."""
    encodings = {name: module for name, module in model.named_modules() if isinstance(module, Encoding)}
    return {
        f"{name}.{leaf}": tensor for name, module in encodings.items() for leaf, tensor in module.state_dict().items()
    }


def fill(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
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
    check_keys(path, missing, unknown, wrong)
    check_dtypes(path, own, tensors)
    for name, tensor in tensors.items():
        cast(model, name, tensor.dtype)  # as it was saved
    model.load_state_dict(tensors, strict=False)


def fill_angles(model: nn.Module, angles: dict[str, Tensor], path: Path) -> None:
    own = encodings_of(model)
    # Frozen RoPE-Mixed was written with the identity for a basis before it had none.
    former = [f"{name}.basis" for name, module in model.named_modules() if type(module) is FixedFrequencies]
    names = _names_in_file(model, [*own, *former], angles)
    missing = [key for key in own if names[key] not in angles]
    unknown = sorted(angles.keys() - names.values())
    wrong = [key for key in own if key not in missing and angles[names[key]].shape != own[key].shape]
    check_keys(path, missing, unknown, wrong)
    check_dtypes(path, own, {key: angles[names[key]] for key in own})
    for key in own:
        tensor = angles[names[key]]
        cast(model, key, tensor.dtype)
        owner, _, leaf = key.rpartition(".")
        getattr(model.get_submodule(owner), leaf).data.copy_(tensor)


def _names_in_file(model: nn.Module, keys: list[str], found: Mapping[str, Tensor]) -> dict[str, str]:
    """What `save_pretrained` calls each tensor of an encoding: in this version or, where that is not in the file, in another.

    Versions differ in how they call the parts of a layer, and agree on the layers.
    """
    if found.keys() <= set(keys):
        return {key: key for key in keys}
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained: Any = model.save_pretrained
        numbered = {key: torch.tensor([i]) for i, key in enumerate(keys)}
        save_pretrained(folder, state_dict=numbered, variant=None)  # that of weights which are not folded
        names = {keys[int(label)]: name for name, label in read_tensors(Path(folder) / WEIGHTS).items()}
    in_layer: dict[str, list[str]] = {}
    for name in found:
        in_layer.setdefault(_layer_and_leaf(name), []).append(name)
    for key, name in names.items():
        alike = in_layer.get(_layer_and_leaf(name), [])
        if name not in found and len(alike) == 1:
            names[key] = alike[0]
    return names


def _layer_and_leaf(key: str) -> str:
    return re.sub(r"(\.\d+)\.[^\d]*(\.encoding\.\w+)$", r"\1\2", key)


def check_keys(path: Path, missing: list[str], unknown: list[str], wrong: list[str]) -> None:
    for what, keys in (("is missing", missing), ("is not in this model", unknown), ("has another shape", wrong)):
        if keys:
            raise DataError(
                f"{path}: {keys[0]!r} {what} ({len(keys)} such keys). Is it the file that comrope.save wrote?"
            )


def check_dtypes(path: Path, own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Numbers of a model are floating-point ones of 16 bits or more, and others are as they are."""
    for name in own.keys() & found.keys():
        dtypes = {own[name].dtype, found[name].dtype}
        if len(dtypes) > 1 and not dtypes <= set(FLOATS):
            raise DataError(f"{path}: {name!r} has dtype {found[name].dtype}, which comrope.save does not write there.")


def cast(model: nn.Module, name: str, dtype: torch.dtype) -> None:
    """One tensor of a model; an encoding keeps to the dtypes that it can have, constant angles to float64."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if not isinstance(owner, Encoding) or dtype in owner._allowed_dtypes:
        held = getattr(owner, leaf)
        held.data = held.data.to(dtype)
