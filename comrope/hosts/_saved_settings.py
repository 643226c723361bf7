"""The description of an attached encoding, in comrope.json or the model's configuration, by which `load` attaches again."""

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from comrope.errors import ConfigurationError, DataError
from comrope.hosts._attachment import Attachment
from comrope.hosts._custom_model import CustomBackbone
from comrope.hosts._safe_loading import read_json
from comrope.hosts._weight_files import FOLDED_VARIANT
from comrope.scaling import Scaling

SETTINGS = "comrope.json"
FORMAT = 1


def write_to_config(model: nn.Module) -> None:
    """Writes what is attached to a model of transformers or diffusers into its configuration, as `config.comrope`.

    `save_pretrained` then writes it to config.json, from which `load` reads it. Once the weights are folded,
    `save_pretrained` also writes them under the name that `save` uses, so that only comrope reads them. The
    configurations of submodels are not changed. Does nothing for a model without such a configuration, or if JSON cannot
    hold the arguments of `attach`.
    """
    remove_from_config(model)
    attachment = Attachment.of(model)
    library = library_name(model)
    if library not in ("transformers", "diffusers") or not_serialisable(attachment.settings):
        return
    settings = json.loads(json.dumps(attachment_settings(model, attachment)))
    owner: Any = model
    if attachment.folded:
        owner.save_pretrained = functools.partial(type(owner).save_pretrained, owner, variant=FOLDED_VARIANT)
    if library == "transformers":
        owner.config.comrope = settings
    else:
        owner.register_to_config(comrope=settings)


def remove_from_config(model: nn.Module) -> None:
    """Removes from a model's configuration what `write_to_config` wrote."""
    owner: Any = model
    vars(model).pop("save_pretrained", None)
    library = library_name(model)
    if library == "transformers" and "comrope" in vars(owner.config):
        del owner.config.comrope
    elif library == "diffusers" and "comrope" in owner.config:
        owner._internal_dict = type(owner.config)({k: v for k, v in owner.config.items() if k != "comrope"})


def library_name(model: nn.Module) -> str | None:
    """Returns the library that saves and loads the model: "transformers", "diffusers", "timm", or None."""
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(model).__mro__}
    for library, kind in (("transformers", "PreTrainedModel"), ("diffusers", "ModelMixin")):
        if (library, kind) in kinds:
            return library
    of_timm = any(library == "timm" for library, _ in kinds)
    return "timm" if of_timm or "architecture" in (getattr(model, "pretrained_cfg", None) or {}) else None


def attachment_settings(model: nn.Module, attachment: Attachment) -> dict[str, Any]:
    """Returns what is needed to attach again, to a model of the same class."""
    library = library_name(model)
    if library is None:
        raise ConfigurationError(
            f"{type(model).__name__} is no model of timm, transformers or diffusers, and no file would say how to make it "
            "again: save its state_dict() with safetensors; later make the model, attach as you did, and load_state_dict()."
        )
    scalings = saved_scalings(attachment)
    rescaled = {} if not any(scalings) else {"rescaled": [None if s is None else asdict(s) for s in scalings]}
    return rescaled | {
        "format": FORMAT,
        "library": library,
        "class": type(model).__name__,
        "module": type(model).__module__,
        "attach": attachment.settings,
        "folded": attachment.folded,
        "positions": any(isinstance(attached.backbone, CustomBackbone) for attached in attachment.backbones),
    }


def saved_scalings(attachment: Attachment) -> list[Scaling | None]:
    """Returns the scaling of each backbone that `rescale` has set; None where there is none, or layers have different ones."""
    encodings: list[list[Any]] = [[a.attention.encoding for a in each.layers] for each in attachment.backbones]
    scalings = [{getattr(encoding, "scaling", None) for encoding in each} for each in encodings]
    return [next(iter(each)) if len(each) == 1 else None for each in scalings]


def restore_scalings(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Sets the scalings that `attachment_settings` described on the encodings of a model; DataError if they do not fit."""
    if not settings.get("rescaled"):
        return
    try:
        backbones = Attachment.of(model).backbones
        for attached, values in zip(backbones, settings["rescaled"], strict=True):
            scaling = None if values is None else Scaling.from_json(values)
            for layer in attached.layers:
                encoding: Any = layer.attention.encoding
                encoding.set_scaling(scaling)
    except (
        ValueError,
        AttributeError,
    ) as error:  # errors of ours, another number of backbones, angles that are learned
        raise DataError(f"{SETTINGS}: 'rescaled' is not what comrope.save writes there: {error}") from error
    write_to_config(model)


def not_serialisable(arguments: Mapping[str, Any]) -> list[str]:
    """Returns the arguments that JSON cannot hold, each as "name=value"."""
    found = []
    for name, value in arguments.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            found.append(f"{name}={value!r}")
    return found


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns the settings that `save` wrote, or those that `write_to_config` did."""
    path = folder / SETTINGS
    if not path.exists() and (folder / "run.json").exists():
        raise DataError(
            f"{folder} is a run of the laboratory, and no folder that comrope.save wrote: get its model by "
            f"comrope.lab.runs.load_run(Path({str(folder)!r}))."
        )
    if not path.exists() and (folder / "config.json").exists():
        path = folder / "config.json"
        settings = read_json(path).get("comrope")
        if not isinstance(settings, dict):
            raise DataError(
                f"{folder / SETTINGS} does not exist, and {path} does not say what was attached: comrope.save writes the one, "
                "and save_pretrained of an attached model the other. Where you know what it was, make the model, attach, and "
                "load the weights into it."
            )
    else:
        settings = read_json(path)
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
        "rescaled": list,
    }
    for name, kind in expected.items():
        if not isinstance(settings.get(name, kind()), kind):
            raise DataError(f"{path}: {name} is {settings[name]!r}, expected a {kind.__name__}.")
    missing = [name for name in ("attach", "folded", "class") if name not in settings]
    if missing:
        raise DataError(f"{path} is damaged: it does not say {', '.join(missing)}.")
    return settings
