"""Attached models on disk: safetensors and JSON, nothing pickled.

A model of transformers is written and read by transformers itself, in the names of its hub, which are not those that the
class has: its own reader finds the weights, in this version and in others. Encodings are in the same file, under the names
that `save_pretrained` makes of theirs; what these are is asked of `save_pretrained`. timm and diffusers write the names that
the class has.
"""

import functools
import importlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comrope.encodings import Encoding
from comrope.encodings.fixed import FixedFrequencies, freeze
from comrope.errors import ConfigurationError, DataError
from comrope.hosts._bounds import made_as_said, no_larger_than, read_json, timm_arguments
from comrope.hosts._own import OwnTrunk
from comrope.hosts._replaced import replaced, settle
from comrope.hosts._surgery import Attachment

SETTINGS, WEIGHTS = "comrope.json", "model.safetensors"
DIFFUSION_WEIGHTS = "diffusion_pytorch_model.safetensors"
FOLDED = "comrope-folded"
"""The variant, in the words of transformers, as which folded weights are written: `model.comrope-folded.safetensors`."""
FORMAT = 1


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
    attachment, folder = Attachment.of(model), Path(folder)
    frozen = not attachment.folded and any(isinstance(m, FixedFrequencies) for m in model.modules())
    settings: dict[str, Any] = _described(model, attachment) | {"frozen": frozen}
    for argument in _not_json(attachment.settings):
        raise ConfigurationError(
            f"attach was given {argument}, which cannot be written to JSON: give a number or a string."
        )
    if settings["library"] == "timm":
        settings["architecture"] = _timm_architecture(model)
    elif settings["library"] == "transformers":
        settings |= _dtypes(model)
    else:
        settings["buffers"] = _buffer_dtypes(model)
    with replaced(folder, stale=_all_weights(settings["library"])) as new:
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
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: comrope.save writes one, with {SETTINGS} in it.")
    settle(folder)
    settings = _settings(folder)
    if settings.get("positions") and positions is None:
        raise ConfigurationError(
            f"{folder}: this model was attached with positions=…, which no file holds: give them, comrope.load(folder, "
            "positions=…, example=…)."
        )
    again = settings["attach"] | {"positions": positions, "example": example}
    if settings["library"] == "transformers":
        return _load_transformers(folder, settings, again, kind).eval()
    timm = settings["library"] == "timm"
    model = _made_by_timm(folder, settings) if timm else _made_by_diffusers(folder, settings, kind)
    return _load_by_name(model, _weights_of(folder, settings), settings, again).eval()


def record(model: nn.Module) -> None:
    """Notes in the configuration of a model of transformers or diffusers what is attached to it, as `config.comrope`.

    `save_pretrained` writes that into config.json, from where `load` knows how to attach; and once weights are folded, writes
    those as `save` does, so that nobody else reads them. Only the configuration of the model itself is changed, never one of
    its parts. Does nothing to a model without such a configuration, and where JSON cannot hold what `attach` was given.
    """
    forget(model)
    attachment = Attachment.of(model)
    library = _library(model)
    if library not in ("transformers", "diffusers") or _not_json(attachment.settings):
        return
    described = json.loads(json.dumps(_described(model, attachment)))
    owner: Any = model
    if attachment.folded:
        owner.save_pretrained = functools.partial(type(owner).save_pretrained, owner, variant=FOLDED)
    if library == "transformers":
        owner.config.comrope = described
    else:
        owner.register_to_config(comrope=described)


def forget(model: nn.Module) -> None:
    """Takes out of a model's configuration what `record` noted there."""
    owner: Any = model
    vars(model).pop("save_pretrained", None)
    library = _library(model)
    if library == "transformers" and "comrope" in vars(owner.config):
        del owner.config.comrope
    elif library == "diffusers" and "comrope" in owner.config:
        owner._internal_dict = type(owner.config)({k: v for k, v in owner.config.items() if k != "comrope"})


def _library(model: nn.Module) -> str | None:
    """Which library reads and writes the model: "transformers", "diffusers", "timm" or none."""
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(model).__mro__}
    for library, kind in (("transformers", "PreTrainedModel"), ("diffusers", "ModelMixin")):
        if (library, kind) in kinds:
            return library
    of_timm = any(library == "timm" for library, _ in kinds)
    return "timm" if of_timm or "architecture" in (getattr(model, "pretrained_cfg", None) or {}) else None


def _described(model: nn.Module, attachment: Attachment) -> dict[str, Any]:
    """What is needed to attach again, to a model of the same class."""
    library = _library(model)
    if library is None:
        raise ConfigurationError(
            f"{type(model).__name__} is no model of timm, transformers or diffusers, and no file would say how to make it "
            "again: save its state_dict() with safetensors; later make the model, attach as you did, and load_state_dict()."
        )
    return {
        "format": FORMAT,
        "library": library,
        "class": type(model).__name__,
        "module": type(model).__module__,
        "attach": attachment.settings,
        "folded": attachment.folded,
        "positions": any(isinstance(graft.trunk, OwnTrunk) for graft in attachment.grafts),
    }


def _not_json(arguments: Mapping[str, Any]) -> list[str]:
    """Which arguments JSON cannot hold, each with its name."""
    found = []
    for name, value in arguments.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            found.append(f"{name}={value!r}")
    return found


def _settings(folder: Path) -> dict[str, Any]:
    """What `save` wrote, or else what `record` noted."""
    path = folder / SETTINGS
    if not path.exists() and (folder / "run.json").exists():
        raise DataError(
            f"{folder} is a run of the laboratory, and no folder that comrope.save wrote: its model is "
            f"comrope.lab.runs.load_run(Path({str(folder)!r}))."
        )
    if not path.exists() and (folder / "config.json").exists():
        path = folder / "config.json"
        settings = _json(path).get("comrope")
        if not isinstance(settings, dict):
            raise DataError(
                f"{folder / SETTINGS} does not exist, and {path} does not say what was attached: comrope.save writes the one, "
                "and save_pretrained of an attached model the other. Where you know what it was, make the model, attach, and "
                "load the weights into it."
            )
    else:
        settings = _json(path)
    if settings.get("format") != FORMAT:
        raise DataError(f"{path}: format {settings.get('format')!r}, expected {FORMAT}.")
    if settings.get("library") not in ("timm", "transformers", "diffusers"):
        raise DataError(f"{path}: library {settings.get('library')!r}, expected timm, transformers or diffusers.")
    expected = {
        "attach": dict,
        "folded": bool,
        "class": str,
        "module": str,
        "frozen": bool,
        "dtypes": dict,
        "buffers": dict,
    }
    for name, kind in expected.items():
        if not isinstance(settings.get(name, kind()), kind):
            raise DataError(f"{path}: {name} is {settings[name]!r}, expected a {kind.__name__}.")
    missing = [name for name in ("attach", "folded", "class") if name not in settings]
    if missing:
        raise DataError(f"{path} is damaged: it does not say {', '.join(missing)}.")
    return settings


def _weights(folder: Path, library: str, variant: str | None = None) -> Path:
    """The file that a library calls its weights."""
    name = DIFFUSION_WEIGHTS if library == "diffusers" else WEIGHTS
    return folder / (name if variant is None else name.replace(".", f".{variant}."))


def _all_weights(library: str) -> list[str]:
    """Names of files in which a model may have been written before."""
    names = [_weights(Path(), library, variant).name for variant in (None, FOLDED)]
    return names + [f"{name}.index.json" for name in names]


def _weights_of(folder: Path, settings: dict[str, Any]) -> Path:
    folded = _weights(folder, settings["library"], FOLDED)
    return folded if settings["folded"] and folded.exists() else _weights(folder, settings["library"])


def _shards(path: Path) -> list[Path]:
    """A file of weights, or those that its index names in place of it."""
    index = path.with_name(f"{path.name}.index.json")
    if path.exists() or not index.exists():
        return [path]
    try:
        return [path.with_name(name) for name in sorted(set(_json(index)["weight_map"].values()))]
    except (KeyError, AttributeError, TypeError, ValueError) as error:  # ValueError: a name with folders in it
        raise DataError(f"{index} is damaged: it names no files beside it ({error}).") from error


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
    for argument in _not_json(get_model_args(model)):
        raise ConfigurationError(
            f"timm.create_model was given {argument}, which cannot be written to JSON. Give a string where timm takes one "
            "(norm_layer='layernorm'), or register an entry that sets it, with timm.models.register_model, and make the model "
            "from that; or save the state_dict() with safetensors, make the model, attach, and load_state_dict()."
        )
    return architecture


def _made_by_timm(folder: Path, settings: dict[str, Any]) -> nn.Module:
    import timm

    path = folder / "config.json"
    config = _json(path)
    architecture, arguments = timm_arguments(path, config, settings.get("architecture", config.get("architecture")))
    with made_as_said(path), no_larger_than(_shards(_weights_of(folder, settings))):
        return timm.create_model(architecture, **arguments)


# diffusers


def _made_by_diffusers(folder: Path, settings: dict[str, Any], kind: Any) -> nn.Module:
    kind = _class(folder, settings) if kind is None else kind
    path = folder / "config.json"
    config = {key: value for key, value in _json(path).items() if key != "comrope"}
    with made_as_said(path), no_larger_than(_shards(_weights_of(folder, settings))):
        return kind.from_config(config)


# timm and diffusers


def _load_by_name(model: nn.Module, path: Path, settings: dict[str, Any], again: dict[str, Any]) -> nn.Module:
    """Weights and encodings into a model that has the names that the file has."""
    from comrope.hosts import fold

    tensors = {name: tensor for shard in _shards(path) for name, tensor in read_tensors(shard).items()}
    _check_dtypes(path, model.state_dict(), tensors)
    with torch.no_grad():  # the proof is one of these weights
        for name, tensor in model.state_dict().items():
            if name in tensors and tensors[name].shape == tensor.shape:
                tensor.copy_(tensors[name])
    _attach_again(model, again)
    if _is_frozen(settings, {key: tensor for key, tensor in tensors.items() if ".encoding." in key}, model):
        freeze(model)
    if settings["folded"]:
        fold(model)
    _fill(model, tensors, path)
    made = dict(model.named_buffers())
    for name, dtype in settings.get("buffers", {}).items():
        if name in made:
            _cast(model, name, _dtype(dtype))
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

    path = _weights_of(folder, settings)
    angles = _angles(path)
    model = _plain(path, settings, _class(folder, settings) if kind is None else kind)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()} if settings["folded"] else {}
    _attach_again(model, again)
    if _is_frozen(settings, angles, model):
        freeze(model)
    if settings["folded"]:
        fold(model)
        model.load_state_dict(weights, strict=False)
    _fill_angles(model, angles, path)
    if exceptions := settings.get("dtypes"):
        for name in model.state_dict().keys() - _encodings(model).keys():
            if model.state_dict()[name].is_floating_point():
                _cast(model, name, _dtype(exceptions.get(name, settings["dtype"])))
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
        with made_as_said(path.with_name("config.json")), no_larger_than(_shards(path)):
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
    _check_keys(path, sorted(found["missing_keys"]), sorted(unknown), sorted(wrong))
    return model


def _angles(path: Path) -> dict[str, Tensor]:
    """The tensors of encodings, by their names in the file or the files."""
    from safetensors import SafetensorError, safe_open

    angles: dict[str, Tensor] = {}
    for shard in _shards(path):
        try:
            with safe_open(shard, "pt") as file:
                angles |= {key: file.get_tensor(key) for key in file.keys() if ".encoding." in key}  # noqa: SIM118
        except FileNotFoundError:
            raise DataError(f"{shard} does not exist.") from None
        except (SafetensorError, OSError) as error:
            raise DataError(f"{shard} is damaged or no safetensors file: {error}.") from error
    return angles


def _encodings(model: nn.Module) -> dict[str, Tensor]:
    """The state of all encodings, by names in the model."""
    encodings = {name: module for name, module in model.named_modules() if isinstance(module, Encoding)}
    return {
        f"{name}.{leaf}": tensor for name, module in encodings.items() for leaf, tensor in module.state_dict().items()
    }


def _is_frozen(settings: dict[str, Any], angles: Mapping[str, Tensor], model: nn.Module) -> bool:
    return settings["frozen"] if "frozen" in settings else _are_constants(angles, model)


def _are_constants(angles: Mapping[str, Tensor], model: nn.Module) -> bool:
    """Whether the angles are those of a frozen model: other tensors than the learned ones, or of another precision."""
    own = _encodings(model)
    if {key.rpartition(".")[2] for key in angles} != {key.rpartition(".")[2] for key in own}:
        return True
    return {t.dtype for t in angles.values()} == {torch.float64} != {t.dtype for t in own.values()}


def _fill_angles(model: nn.Module, angles: dict[str, Tensor], path: Path) -> None:
    own = _encodings(model)
    # Frozen RoPE-Mixed was written with the identity for a basis before it had none.
    former = [f"{name}.basis" for name, module in model.named_modules() if type(module) is FixedFrequencies]
    names = _names_in_file(model, [*own, *former], angles)
    missing = [key for key in own if names[key] not in angles]
    unknown = sorted(angles.keys() - names.values())
    wrong = [key for key in own if key not in missing and angles[names[key]].shape != own[key].shape]
    _check_keys(path, missing, unknown, wrong)
    _check_dtypes(path, own, {key: angles[names[key]] for key in own})
    for key in own:
        tensor = angles[names[key]]
        _cast(model, key, tensor.dtype)
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
    _check_keys(path, missing, unknown, wrong)
    _check_dtypes(path, own, tensors)
    for name, tensor in tensors.items():
        _cast(model, name, tensor.dtype)  # as it was saved
    model.load_state_dict(tensors, strict=False)


def _check_keys(path: Path, missing: list[str], unknown: list[str], wrong: list[str]) -> None:
    for what, keys in (("is missing", missing), ("is not in this model", unknown), ("has another shape", wrong)):
        if keys:
            raise DataError(
                f"{path}: {keys[0]!r} {what} ({len(keys)} such keys). Is it the file that comrope.save wrote?"
            )


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _check_dtypes(path: Path, own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Numbers of a model are floating-point ones of 16 bits or more, and others are as they are."""
    for name in own.keys() & found.keys():
        dtypes = {own[name].dtype, found[name].dtype}
        if len(dtypes) > 1 and not dtypes <= set(FLOATS):
            raise DataError(f"{path}: {name!r} has dtype {found[name].dtype}, which comrope.save does not write there.")


def _cast(model: nn.Module, name: str, dtype: torch.dtype) -> None:
    """One tensor of a model; an encoding keeps to the dtypes that it can have, constant angles to float64."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if not isinstance(owner, Encoding) or dtype in owner._dtypes:
        held = getattr(owner, leaf)
        held.data = held.data.to(dtype)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, f"comrope.save writes a folder with {SETTINGS} in it")


def read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged or no safetensors file: {error}.") from error
