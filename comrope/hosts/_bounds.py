"""Files may be crafted: a model is made no larger than its weights are, and from nothing but what `save` writes."""

import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from comrope.errors import ComropeError, DataError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a folder that `save` wrote; DataError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: comrope.save writes a folder with all that load needs.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged: it holds no settings.")
    return found


@contextmanager
def no_larger_than(files: Sequence[Path]) -> Iterator[None]:
    """Modules that are made meanwhile may have about as many numbers, in about as many modules, as weights in `files`.

    Raises:
        DataError: they have far more. It is raised when such a tensor is registered, before anything fills it.
    """
    shapes = [shape for file in files for shape in _shapes(file).values()]
    left = {"modules": 100 * len(shapes) + 1000, "numbers": 4 * sum(map(math.prod, shapes)) + 2**22}

    def take(what: str, count: int) -> None:
        left[what] -= count
        if left[what] < 0:
            raise DataError(
                f"{files[0].parent}: its configuration is of a model with far more {what} than the file of weights has: one of "
                "the two is damaged, or not of this model."
            )

    def count_module(module: nn.Module, name: str, child: Any) -> None:
        take("modules", 1)

    def count_tensor(module: nn.Module, name: str, tensor: Any) -> None:
        take("numbers", 0 if tensor is None else tensor.numel())

    handles = [
        register_module_module_registration_hook(count_module),
        register_module_parameter_registration_hook(count_tensor),
        register_module_buffer_registration_hook(count_tensor),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def made_as_said(path: Path) -> Iterator[None]:
    """Makes a DataError of whatever a library raises of a configuration that is none of its own."""
    try:
        yield
    except ComropeError:
        raise
    except Exception as error:
        raise DataError(f"{path} does not say how to make a model ({type(error).__name__}: {error}).") from error


def _shapes(file: Path) -> dict[str, list[int]]:
    """Of the tensors in a file of safetensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(f"{file} does not exist.") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} is damaged or no safetensors file: {error}.") from error


def timm_arguments(path: Path, config: Mapping[str, Any], architecture: Any) -> tuple[str, dict[str, Any]]:
    """What `timm.create_model` is to be given, of a configuration that `save` may have written.

    Raises:
        DataError: what timm would read from another place, or ask the network for, or does not know.
    """
    import timm

    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise DataError(f"{path}: architecture {architecture!r} is none that timm {timm.__version__} has.")
    own = config.get("model_args", {})
    if not isinstance(own, dict):
        raise DataError(f"{path} is damaged: model_args are {own!r}.")
    # All that timm takes for itself, and does not hand on to the model: where weights are, and what they are for.
    foreign = sorted(own.keys() & set(inspect.signature(timm.create_model).parameters))
    if foreign:
        raise DataError(f"{path}: model_args have {', '.join(foreign)}, which comrope.save never writes.")
    head = {name: config[name] for name in ("num_classes", "global_pool") if name in config}
    return architecture, own | head
