"""What a folder or a configuration says of the encoding that is attached to a model, so that it can be attached again."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from comrope.errors import ConfigurationError, DataError
from comrope.hosts._bounds import read_json
from comrope.hosts._own import OwnTrunk
from comrope.hosts._surgery import Attachment
from comrope.hosts._tensors import FOLDED

SETTINGS = "comrope.json"
FORMAT = 1


def record(model: nn.Module) -> None:
    """Notes in the configuration of a model of transformers or diffusers what is attached to it, as `config.comrope`.

    `save_pretrained` writes that into config.json, from where `load` knows how to attach; and once weights are folded, writes
    those as `save` does, so that nobody else reads them. Only the configuration of the model itself is changed, never one of
    its parts. Does nothing to a model without such a configuration, and where JSON cannot hold what `attach` was given.
    """
    forget(model)
    attachment = Attachment.of(model)
    library = library_of(model)
    if library not in ("transformers", "diffusers") or not_json(attachment.settings):
        return
    noted = json.loads(json.dumps(described(model, attachment)))
    owner: Any = model
    if attachment.folded:
        owner.save_pretrained = functools.partial(type(owner).save_pretrained, owner, variant=FOLDED)
    if library == "transformers":
        owner.config.comrope = noted
    else:
        owner.register_to_config(comrope=noted)


def forget(model: nn.Module) -> None:
    """Takes out of a model's configuration what `record` noted there."""
    owner: Any = model
    vars(model).pop("save_pretrained", None)
    library = library_of(model)
    if library == "transformers" and "comrope" in vars(owner.config):
        del owner.config.comrope
    elif library == "diffusers" and "comrope" in owner.config:
        owner._internal_dict = type(owner.config)({k: v for k, v in owner.config.items() if k != "comrope"})


def library_of(model: nn.Module) -> str | None:
    """Which library reads and writes the model: "transformers", "diffusers", "timm" or none."""
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(model).__mro__}
    for library, kind in (("transformers", "PreTrainedModel"), ("diffusers", "ModelMixin")):
        if (library, kind) in kinds:
            return library
    of_timm = any(library == "timm" for library, _ in kinds)
    return "timm" if of_timm or "architecture" in (getattr(model, "pretrained_cfg", None) or {}) else None


def described(model: nn.Module, attachment: Attachment) -> dict[str, Any]:
    """What is needed to attach again, to a model of the same class."""
    library = library_of(model)
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


def not_json(arguments: Mapping[str, Any]) -> list[str]:
    """Which arguments JSON cannot hold, each with its name."""
    found = []
    for name, value in arguments.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            found.append(f"{name}={value!r}")
    return found


def settings_of(folder: Path) -> dict[str, Any]:
    """What `save` wrote, or else what `record` noted."""
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
    }
    for name, kind in expected.items():
        if not isinstance(settings.get(name, kind()), kind):
            raise DataError(f"{path}: {name} is {settings[name]!r}, expected a {kind.__name__}.")
    missing = [name for name in ("attach", "folded", "class") if name not in settings]
    if missing:
        raise DataError(f"{path} is damaged: it does not say {', '.join(missing)}.")
    return settings
