"""Attached models on disk: safetensors and JSON, nothing pickled.

A model of transformers is written and read by transformers itself, in the names of its hub, which are not those that the
class has: its own reader finds the weights, in this version and in others. Encodings are in the same file, under the names
that `save_pretrained` makes of theirs; what these are is asked of `save_pretrained`. timm and diffusers write the names that
the class has.
"""

import importlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comrope.encodings import Encoding
from comrope.encodings.fixed import FixedFrequencies, freeze
from comrope.errors import ConfigurationError, DataError
from comrope.hosts._bounds import made_as_said, no_larger_than, read_json, timm_arguments
from comrope.hosts._description import SETTINGS, described, not_json, settings_of
from comrope.hosts._replaced import replaced, settle
from comrope.hosts._surgery import Attachment
from comrope.hosts._tensors import (
    FOLDED,
    WEIGHTS,
    all_weights,
    angles_in,
    cast,
    check_dtypes,
    check_keys,
    encodings_of,
    fill,
    fill_angles,
    read_tensors,
    shards,
    weights_of,
)


def save(model: nn.Module, folder: Path | str) -> None:
    """Writes an attached model, folded or frozen or not: config.json, one file of weights and comrope.json.

    `load` gives back all of it. The other two files are the library's own: `from_pretrained(folder)` of the model's class gives
    the model of transformers or diffusers without the encoding, to which `attach` can be applied again, and says which weights
    it leaves.

    Folded weights mean nothing without their frequencies, which no class of another library has. They are written so that
    `load` alone can read them: for transformers as `model.comrope-folded.safetensors`, for diffusers likewise, so that
    `from_pretrained(folder)` raises OSError as it finds no weights; for timm under an architecture that `timm.create_model`
    does not know.

    Raises:
        ConfigurationError: nothing is attached; a model of none of these libraries; a timm model that was not made by
            `timm.create_model`, or was with an argument that JSON cannot hold. Nothing is written then.
        DataError: the folder cannot be written, or is a file. A model that was there before is as it was, and so it is where
            this is killed.
    """
    attachment, folder = Attachment.of(model), _named(folder)
    frozen = not attachment.folded and any(isinstance(m, FixedFrequencies) for m in model.modules())
    settings: dict[str, Any] = described(model, attachment) | {"frozen": frozen}
    for argument in not_json(attachment.settings):
        raise ConfigurationError(
            f"attach was given {argument}, which cannot be written to JSON: give a number or a string."
        )
    if settings["library"] == "timm":
        settings["architecture"] = _timm_architecture(model)
    elif settings["library"] == "transformers":
        settings |= _dtypes(model)
    else:
        settings["buffers"] = _buffer_dtypes(model)
    with replaced(folder, stale=all_weights(settings["library"])) as new:
        _write(model, settings, new)


def _write(model: nn.Module, settings: dict[str, Any], folder: Path) -> None:
    from safetensors import SafetensorError

    try:
        if settings["library"] == "timm":
            import timm.models

            refused = f"{settings['architecture']}, folded: comrope.load reads it, and timm cannot"
            config = {"architecture": refused} if settings["folded"] else {}
            timm.models.save_for_hf(model, str(folder), model_config=config, safe_serialization=True)
        else:
            save_pretrained: Any = model.save_pretrained
            save_pretrained(folder, max_shard_size="1000GB", variant=FOLDED if settings["folded"] else None)
    except SafetensorError as error:  # a full disk, for one
        raise OSError(str(error)) from error
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def load(
    folder: Path | str,
    *,
    kind: type[nn.Module] | None = None,
    positions: Tensor | Callable[..., Tensor] | None = None,
    example: Any = None,
) -> nn.Module:
    """The model that `save` wrote, with its encodings, in evaluation mode.

    It reads what `save_pretrained` of an attached model of transformers or diffusers wrote as well, a checkpoint of `Trainer`
    for example, in one file or in many: `attach` notes in the configuration what was attached.

    Args:
        folder: with config.json, weights in safetensors and, where `save` wrote it, comrope.json.
        kind: the class of the model, where it is of transformers' or diffusers' kind but not in that library.
        positions: as for `attach`: what the model was attached with, where it was, as no file holds a function.
        example: as for `attach`, where it was needed there.
    Raises:
        DataError: files that are missing, damaged or of another model; a tensor that is missing, or does not fit, is named.
        ConfigurationError: the model was attached with positions=…, and is to be loaded without; what `attach` raises.
    """
    folder = _named(folder)
    if kind is not None and not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ConfigurationError(f"kind={kind!r}: expected the class of a model, or None for the one that was saved.")
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: give one that comrope.save wrote, with {SETTINGS} in it.")
    settle(folder)
    settings = settings_of(folder)
    if settings.get("positions") and positions is None:
        raise ConfigurationError(
            f"{folder}: this model was attached with positions=…, which no file holds: give them, comrope.load(folder, "
            "positions=…, example=…)."
        )
    if kind is not None and settings["library"] == "timm":
        raise ConfigurationError(f"kind={kind.__name__}: timm.create_model makes this model; leave kind out.")
    again = settings["attach"] | {"positions": positions, "example": example}
    if settings["library"] == "transformers":
        return _load_transformers(folder, settings, again, kind).eval()
    timm = settings["library"] == "timm"
    model = _made_by_timm(folder, settings) if timm else _made_by_diffusers(folder, settings, kind)
    return _load_by_name(model, weights_of(folder, settings), settings, again).eval()


def _named(folder: Any) -> Path:
    """The path of a folder that may be there or not; ConfigurationError where none can have that name."""
    try:
        path = Path(folder)
        with suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)
    except (TypeError, ValueError, OSError) as error:
        raise ConfigurationError(f"folder: got {folder!r}, expected the name of a folder ({error}).") from error
    if not str(folder):
        raise ConfigurationError("folder: got an empty name, expected the name of a folder; '.' is the one you are in.")
    return path


# timm


def _timm_architecture(model: nn.Module) -> str:
    """The entry of timm that makes the model; ConfigurationError where its arguments cannot be written."""
    import timm

    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if architecture is None:
        raise ConfigurationError(
            f"This {type(model).__name__} does not know its own arguments: make it with timm.create_model, then attach."
        )
    get_model_args = getattr(timm.models, "get_model_args", None)
    if get_model_args is None:
        raise ConfigurationError(
            f"timm {timm.__version__} does not keep the arguments of timm.create_model, and the model could not be made again: "
            "timm 1.0.31 does. Or save its state_dict() with safetensors, make the model, attach, and load_state_dict()."
        )
    for argument in not_json(get_model_args(model)):
        raise ConfigurationError(
            f"timm.create_model was given {argument}, which cannot be written to JSON. Give a string where timm takes one "
            "(norm_layer='layernorm'), or register an entry that sets it, with timm.models.register_model, and make the model "
            "from that; or save the state_dict() with safetensors, make the model, attach, and load_state_dict()."
        )
    return architecture


def _made_by_timm(folder: Path, settings: dict[str, Any]) -> nn.Module:
    import timm

    path = folder / "config.json"
    config = read_json(path)
    architecture, arguments = timm_arguments(path, config, settings.get("architecture", config.get("architecture")))
    with made_as_said(path), no_larger_than(shards(weights_of(folder, settings))):
        return timm.create_model(architecture, **arguments)


# diffusers


def _made_by_diffusers(folder: Path, settings: dict[str, Any], kind: Any) -> nn.Module:
    kind = _class(folder, settings) if kind is None else kind
    path = folder / "config.json"
    config = {key: value for key, value in read_json(path).items() if key != "comrope"}
    with made_as_said(path), no_larger_than(shards(weights_of(folder, settings))):
        return kind.from_config(config)


# timm and diffusers


def _load_by_name(model: nn.Module, path: Path, settings: dict[str, Any], again: dict[str, Any]) -> nn.Module:
    """Weights and encodings into a model that has the names that the file has."""
    from comrope.hosts import fold

    tensors = {name: tensor for shard in shards(path) for name, tensor in read_tensors(shard).items()}
    check_dtypes(path, model.state_dict(), tensors)
    with torch.no_grad():  # the proof is one of these weights
        for name, tensor in model.state_dict().items():
            if name in tensors and tensors[name].shape == tensor.shape:
                tensor.copy_(tensors[name])
    _attach_again(model, again)
    if _is_frozen(settings, {key: tensor for key, tensor in tensors.items() if ".encoding." in key}, model):
        freeze(model)
    if settings["folded"]:
        fold(model)
    fill(model, tensors, path)
    made = dict(model.named_buffers())
    for name, dtype in settings.get("buffers", {}).items():
        if name in made:
            cast(model, name, _dtype(dtype))
    return model


def _attach_again(model: nn.Module, again: dict[str, Any]) -> None:
    """`attach`; where the model's weights are such that nothing can be proved of it, with others for as long as that takes."""
    from comrope.hosts import attach

    try:
        attach(model, **again)
    except ConfigurationError:
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                draws = torch.randn(parameter.shape, generator=generator, dtype=torch.float32) / 5
                parameter.copy_(draws)
        try:
            attach(model, **again)
        finally:
            model.load_state_dict(state, strict=False)


def _buffer_dtypes(model: nn.Module) -> dict[str, str]:
    """Of what the model works out anew when it is made, and was cast with it."""
    kept = model.state_dict().keys()
    buffers = {
        name: buffer for name, buffer in model.named_buffers() if name not in kept and buffer.is_floating_point()
    }
    return {name: str(buffer.dtype).removeprefix("torch.") for name, buffer in buffers.items()}


# transformers


def _load_transformers(
    folder: Path, settings: dict[str, Any], again: dict[str, Any], kind: type[nn.Module] | None
) -> nn.Module:
    from comrope.hosts import fold

    path = weights_of(folder, settings)
    angles = angles_in(path)
    model = _plain(path, settings, _class(folder, settings) if kind is None else kind)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()} if settings["folded"] else {}
    _attach_again(model, again)
    if _is_frozen(settings, angles, model):
        freeze(model)
    if settings["folded"]:
        fold(model)
        model.load_state_dict(weights, strict=False)
    fill_angles(model, angles, path)
    if exceptions := settings.get("dtypes"):
        for name in model.state_dict().keys() - encodings_of(model).keys():
            if model.state_dict()[name].is_floating_point():
                cast(model, name, _dtype(exceptions.get(name, settings["dtype"])))
    return model


def _dtype(name: Any) -> torch.dtype:
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        raise DataError(f"{SETTINGS}: {name!r} is no dtype of torch.")
    return found


def _class(folder: Path, settings: dict[str, Any]) -> type[nn.Module]:
    library: str = settings["library"]
    of_library = importlib.import_module(library)
    name: str = settings["class"]
    module: str = settings.get("module", library)
    kind = getattr(of_library, name, None)
    if kind is None and module.startswith(f"{library}."):  # no other module is imported because a file says so
        try:
            kind = getattr(importlib.import_module(module), name, None)
        except ImportError:
            kind = None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise DataError(
            f"{folder}: {library} {of_library.__version__} has no {name!r}, of {module}: give the class, "
            "comrope.load(folder, kind=…)."
        )
    return kind


def _dtypes(model: nn.Module) -> dict[str, Any]:
    """The dtype of the weights, as config.json has it, and of those that have another."""
    main = str(model.dtype).removeprefix("torch.")
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Encoding))
    dtypes = {
        name: str(tensor.dtype).removeprefix("torch.")
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not name.startswith(inside)
    }
    return {"dtype": main, "dtypes": {name: dtype for name, dtype in dtypes.items() if dtype != main}}


def _plain(path: Path, settings: dict[str, Any], kind: Any) -> nn.Module:
    """The model without its encoding, as its own class reads it; weights of several dtypes in one that holds them all."""
    from transformers import logging

    dtype: Any = "auto"
    if exceptions := settings.get("dtypes"):  # one that holds all of them
        dtype = torch.float64 if "float64" in {settings["dtype"], *exceptions.values()} else torch.float32
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # angles are no weights that it knows
    try:
        with made_as_said(path.with_name("config.json")), no_larger_than(shards(path)):
            model, found = kind.from_pretrained(
                path.parent,
                variant=None if path.name == WEIGHTS else FOLDED,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    finally:
        logging.set_verbosity(verbosity)
    wrong = [each if isinstance(each, str) else each[0] for each in found["mismatched_keys"]]
    unknown = [key for key in found["unexpected_keys"] if ".encoding." not in key]
    check_keys(path, sorted(found["missing_keys"]), sorted(unknown), sorted(wrong))
    return model


def _is_frozen(settings: dict[str, Any], angles: Mapping[str, Tensor], model: nn.Module) -> bool:
    return settings["frozen"] if "frozen" in settings else _are_constants(angles, model)


def _are_constants(angles: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Whether the angles are those of a frozen model: other tensors than the learned ones, or of another precision."""
    own = encodings_of(model)
    if {key.rpartition(".")[2] for key in angles} != {key.rpartition(".")[2] for key in own}:
        return True
    return {t.dtype for t in angles.values()} == {torch.float64} != {t.dtype for t in own.values()}
