"""`save` and `load`: attached models on disk, as safetensors and JSON, without pickles.

transformers saves and loads its models itself, with the names of its hub, which differ from those in the class. Encodings
are in the same file, under names that follow from `save_pretrained`. timm and diffusers use the names in the class.
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
from comrope.encodings.fixed import FixedEncoding, constant, replace_encodings
from comrope.errors import ConfigurationError, DataError
from comrope.hosts._atomic_folder import finish_update, update_atomically
from comrope.hosts._attachment import Attachment
from comrope.hosts._safe_loading import (
    check_own_parts,
    configuration_errors,
    limit_model_size,
    read_json,
    timm_arguments,
)
from comrope.hosts._saved_settings import (
    SETTINGS,
    attachment_settings,
    not_serialisable,
    read_settings,
    restore_scalings,
)
from comrope.hosts._weight_files import (
    FOLDED_VARIANT,
    WEIGHTS,
    cast_tensor,
    check_dtypes,
    check_keys,
    encoding_state,
    load_encoding_tensors,
    load_tensors,
    read_encoding_tensors,
    read_tensors,
    saved_weights_path,
    shard_paths,
    weight_file_names,
)


def save(model: nn.Module, folder: Path | str) -> None:
    """Writes an attached model, folded, frozen or rescaled too, to a folder: config.json, one file of weights, comrope.json.

    `load` restores all of it. The first two files are in the library's own format: `from_pretrained(folder)` of the
    model's class in transformers or diffusers gives the model without the encoding, to which `attach` can be applied
    again, and reports the weights that it does not use.

    Folded weights are wrong without their frequencies, which no class of another library has. They are written so that
    only `load` can read them: for transformers and diffusers as `….comrope-folded.safetensors`, so that
    `from_pretrained(folder)` raises OSError as it finds no weights; for timm under an architecture that
    `timm.create_model` does not know.

    Args:
        model: one that `attach` has returned.
        folder: made if it is missing; the files of an earlier model there are replaced, and others are kept.
    Raises:
        ConfigurationError: nothing is attached; the model is of none of these libraries; a timm model was not made by
            `timm.create_model`, or with an argument that JSON cannot hold. Nothing is written then.
        DataError: the folder cannot be written, or is a file. A model that was there before is unchanged, also if the
            process is killed.
    Examples:
        >>> import tempfile, timm, comrope
        >>> model = comrope.attach(timm.create_model("vit_tiny_patch16_224", depth=1), "comrope-ld")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     comrope.save(model, folder)
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['comrope.json', 'config.json', 'model.safetensors']
    """
    attachment, folder = Attachment.of(model), _folder_path(folder)
    frozen = not attachment.folded and any(isinstance(m, FixedEncoding) for m in model.modules())
    settings: dict[str, Any] = attachment_settings(model, attachment) | {"frozen": frozen}
    for attached in attachment.backbones:
        if len({getattr(layer.attention.encoding, "scaling", None) for layer in attached.layers}) > 1:
            raise ConfigurationError(
                "some layers are rescaled differently than others: comrope.rescale the whole model."
            )
    for argument in not_serialisable(attachment.settings):
        raise ConfigurationError(
            f"attach was given {argument}, which cannot be written to JSON: give a number or a string."
        )
    if settings["library"] == "timm":
        settings["architecture"] = _timm_architecture(model)
    elif settings["library"] == "transformers":
        settings |= _dtypes(model)
    else:
        settings["buffers"] = _buffer_dtypes(model)
    with update_atomically(folder, stale=weight_file_names(settings["library"])) as new:
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
            save_pretrained(folder, max_shard_size="1000GB", variant=FOLDED_VARIANT if settings["folded"] else None)
    except SafetensorError as error:  # such as a full disk
        raise OSError(str(error)) from error
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def load(
    folder: Path | str,
    *,
    kind: type[nn.Module] | None = None,
    positions: Tensor | Callable[..., Tensor] | None = None,
    example: Any = None,
) -> nn.Module:
    """Returns the model that `save` wrote, with its encodings, in eval mode.

    Also reads what `save_pretrained` of an attached model of transformers or diffusers wrote, such as a checkpoint of
    `Trainer`, in one file or in shards, since `attach` describes the encoding in the configuration.

    Args:
        folder: has config.json, weights in safetensors and, if `save` wrote it, comrope.json.
        kind: the class of the model, if it derives from a class of transformers or diffusers but is not in that library.
        positions: as for `attach`, if the model was attached with positions, since no file can hold a function.
        example: as for `attach`, if it was needed there.
    Raises:
        DataError: files are missing, damaged or of another model; the message names a tensor that is missing or does not
            fit.
        ConfigurationError: the model was attached with positions=…, and these are missing; and whatever `attach` raises.
    Examples:
        >>> import tempfile, timm, comrope
        >>> model = comrope.attach(timm.create_model("vit_tiny_patch16_224", depth=1), "comrope-ld", init="normal")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     comrope.save(model, folder)
        ...     again = comrope.load(folder)
        >>> all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
        True
    """
    folder = _folder_path(folder)
    if kind is not None and not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ConfigurationError(f"kind={kind!r}: expected the class of a model, or None for the one that was saved.")
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: give one that comrope.save wrote, with {SETTINGS} in it.")
    finish_update(folder)
    settings = read_settings(folder)
    if settings.get("positions") and positions is None:
        raise ConfigurationError(
            f"{folder}: this model was attached with positions=…, which no file holds: give them, comrope.load(folder, "
            "positions=…, example=…)."
        )
    if kind is not None and settings["library"] == "timm":
        raise ConfigurationError(f"kind={kind.__name__}: timm.create_model makes this model; leave kind out.")
    attach_arguments = settings["attach"] | {"positions": positions, "example": example}
    if settings["library"] == "transformers":
        return _load_transformers(folder, settings, attach_arguments, kind).eval()
    timm = settings["library"] == "timm"
    model = _make_timm_model(folder, settings) if timm else _make_diffusers_model(folder, settings, kind)
    return _load_by_name(model, saved_weights_path(folder, settings), settings, attach_arguments).eval()


def _folder_path(folder: Any) -> Path:
    """Returns a path, whether it exists or not; ConfigurationError if nothing can have that name."""
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
    """Returns the name by which `timm.create_model` makes the model; ConfigurationError if its arguments cannot be written."""
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
    for argument in not_serialisable(get_model_args(model)):
        raise ConfigurationError(
            f"timm.create_model was given {argument}, which cannot be written to JSON. Give a string where timm takes one "
            "(norm_layer='layernorm'), or register an entry that sets it, with timm.models.register_model, and make the model "
            "from that; or save the state_dict() with safetensors, make the model, attach, and load_state_dict()."
        )
    return architecture


def _make_timm_model(folder: Path, settings: dict[str, Any]) -> nn.Module:
    import timm

    path = folder / "config.json"
    config = read_json(path)
    architecture, arguments = timm_arguments(path, config, settings.get("architecture", config.get("architecture")))
    with configuration_errors(path), limit_model_size(shard_paths(saved_weights_path(folder, settings))):
        return timm.create_model(architecture, **arguments)


# diffusers


def _make_diffusers_model(folder: Path, settings: dict[str, Any], kind: Any) -> nn.Module:
    kind = _model_class(folder, settings) if kind is None else kind
    path = folder / "config.json"
    config = {key: value for key, value in read_json(path).items() if key != "comrope"}
    with configuration_errors(path), limit_model_size(shard_paths(saved_weights_path(folder, settings))):
        return kind.from_config(config)


# timm and diffusers


def _load_by_name(
    model: nn.Module, path: Path, settings: dict[str, Any], attach_arguments: dict[str, Any]
) -> nn.Module:
    """Loads weights and encodings into a model with the same names as the file."""
    from comrope.hosts import fold

    tensors = {name: tensor for shard in shard_paths(path) for name, tensor in read_tensors(shard).items()}
    check_dtypes(path, model.state_dict(), tensors)
    with torch.no_grad():  # so that the proof in `attach` runs with the saved weights
        for name, tensor in model.state_dict().items():
            if name in tensors and tensors[name].shape == tensor.shape:
                tensor.copy_(tensors[name])
    _reattach(model, attach_arguments)
    if _is_frozen(settings, {key: tensor for key, tensor in tensors.items() if ".encoding." in key}, model):
        _make_constant(model)
    if settings["folded"]:
        fold(model)
    load_tensors(model, tensors, path)
    restore_scalings(model, settings)
    buffers = dict(model.named_buffers())
    for name, dtype in settings.get("buffers", {}).items():
        if name in buffers:
            cast_tensor(model, name, _dtype(dtype))
    return model


def _reattach(model: nn.Module, attach_arguments: dict[str, Any]) -> None:
    """Calls `attach`. If the proof fails with the model's weights, all zeros for example, it uses random weights meanwhile."""
    from comrope.hosts import attach

    try:
        attach(model, **attach_arguments)
    except ConfigurationError:
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                draws = torch.randn(parameter.shape, generator=generator, dtype=torch.float32) / 5
                parameter.copy_(draws)
        try:
            attach(model, **attach_arguments)
        finally:
            model.load_state_dict(state, strict=False)


def _make_constant(model: nn.Module) -> None:
    """Replaces all encodings by constants, as `freeze` does with learned ones, and `rescale` with any."""
    replace_encodings(model, {m: constant(m) for m in model.modules() if isinstance(m, Encoding)})


def _buffer_dtypes(model: nn.Module) -> dict[str, str]:
    """Returns the dtypes of buffers outside of the state dict, which are computed when a model is made, and cast with it."""
    kept = model.state_dict().keys()
    buffers = {
        name: buffer for name, buffer in model.named_buffers() if name not in kept and buffer.is_floating_point()
    }
    return {name: str(buffer.dtype).removeprefix("torch.") for name, buffer in buffers.items()}


# transformers


def _load_transformers(
    folder: Path, settings: dict[str, Any], attach_arguments: dict[str, Any], kind: type[nn.Module] | None
) -> nn.Module:
    from comrope.hosts import fold

    path = saved_weights_path(folder, settings)
    angles = read_encoding_tensors(path)
    model = _load_without_encoding(path, settings, _model_class(folder, settings) if kind is None else kind)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()} if settings["folded"] else {}
    _reattach(model, attach_arguments)
    if _is_frozen(settings, angles, model):
        _make_constant(model)
    if settings["folded"]:
        fold(model)
        model.load_state_dict(weights, strict=False)
    load_encoding_tensors(model, angles, path)
    restore_scalings(model, settings)
    if other_dtypes := settings.get("dtypes"):
        for name in model.state_dict().keys() - encoding_state(model).keys():
            if model.state_dict()[name].is_floating_point():
                cast_tensor(model, name, _dtype(other_dtypes.get(name, settings["dtype"])))
    return model


def _dtype(name: Any) -> torch.dtype:
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        raise DataError(f"{SETTINGS}: {name!r} is no dtype of torch.")
    return found


def _model_class(folder: Path, settings: dict[str, Any]) -> type[nn.Module]:
    library: str = settings["library"]
    of_library = importlib.import_module(library)
    name: str = settings["class"]
    module: str = settings.get("module", library)
    kind = getattr(of_library, name, None)
    if kind is None and module.startswith(f"{library}."):  # a file cannot name any other module to import
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
    """Returns the dtype in config.json, and the weights that have another one, with theirs."""
    main = str(model.dtype).removeprefix("torch.")
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Encoding))
    dtypes = {
        name: str(tensor.dtype).removeprefix("torch.")
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not name.startswith(inside)
    }
    return {"dtype": main, "dtypes": {name: dtype for name, dtype in dtypes.items() if dtype != main}}


def _load_without_encoding(path: Path, settings: dict[str, Any], kind: Any) -> nn.Module:
    """Returns the model without its encoding, loaded by its own class; weights of several dtypes in one that holds them all."""
    from transformers import logging

    dtype: Any = "auto"
    if other_dtypes := settings.get("dtypes"):  # a dtype that holds all of them
        dtype = torch.float64 if "float64" in {settings["dtype"], *other_dtypes.values()} else torch.float32
    check_own_parts(path.parent)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # no warning about the angles, which it does not know
    try:
        with configuration_errors(path.with_name("config.json")), limit_model_size(shard_paths(path)):
            model, found = kind.from_pretrained(
                path.parent,
                variant=None if path.name == WEIGHTS else FOLDED_VARIANT,
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
    return settings["frozen"] if "frozen" in settings else _angles_are_frozen(angles, model)


def _angles_are_frozen(angles: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Returns whether the angles are those of a frozen model: other tensors than the learned ones, or of another precision."""
    own = encoding_state(model)
    if {key.rpartition(".")[2] for key in angles} != {key.rpartition(".")[2] for key in own}:
        return True
    return {t.dtype for t in angles.values()} == {torch.float64} != {t.dtype for t in own.values()}
