"""Protection against crafted files: limits on the size of a model, and on the arguments that it is made with."""

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
    """Returns the object in a JSON file; DataError if there is none."""
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
def limit_model_size(files: Sequence[Path]) -> Iterator[None]:
    """Limits models made in this context to about as many numbers and modules as the weights in `files` have.

    Raises:
        DataError: a model has far more. Raised when a tensor is registered, before it is filled.
    """
    shapes = [shape for file in files for shape in _tensor_shapes(file).values()]
    left = {"modules": 100 * len(shapes) + 1000, "numbers": 4 * sum(map(math.prod, shapes)) + 2**22}

    def count(what: str, number: int) -> None:
        left[what] -= number
        if left[what] < 0:
            raise DataError(
                f"{files[0].parent}: its configuration is of a model with far more {what} than the file of weights has: one of "
                "the two is damaged, or not of this model."
            )

    def count_module(module: nn.Module, name: str, child: Any) -> None:
        count("modules", 1)

    def count_tensor(module: nn.Module, name: str, tensor: Any) -> None:
        count("numbers", 0 if tensor is None else tensor.numel())

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
def configuration_errors(path: Path) -> Iterator[None]:
    """Turns any exception that a library raises for a configuration into a DataError that names the file."""
    try:
        yield
    except ComropeError:
        raise
    except Exception as error:
        raise DataError(f"{path} does not say how to make a model ({type(error).__name__}: {error}).") from error


def check_own_parts(folder: Path) -> None:
    """Raises DataError for a folder by which transformers would load more than it: the base model of an adapter, or kernels.

    transformers reads the base model from where the adapter says, and a kernel `owner/name` from its hub, to run it.
    """
    adapter, config = folder / "adapter_config.json", folder / "config.json"
    if adapter.exists():
        raise DataError(
            f"{adapter}: an adapter names another folder or a model of a hub as its base, which comrope.load does not read: "
            "merge it into the model, and comrope.save that."
        )
    for name, value in _implementations(read_json(config)):
        if "/" in value:
            raise DataError(
                f"{config}: {name} {value!r} is code of a hub, which comrope.load does not run: leave it out."
            )


def _implementations(config: Any, of: str = "") -> Iterator[tuple[str, str]]:
    """Yields the names of implementations, of attention and others, in a configuration and in those inside of it."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from _implementations(value, name if "_implementation" in name else of)
    elif of and isinstance(config, str):
        yield of, config


def _tensor_shapes(file: Path) -> dict[str, list[int]]:
    """Returns the shapes of the tensors in a safetensors file, by name."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(f"{file} does not exist.") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} is damaged or no safetensors file: {error}.") from error


def timm_arguments(path: Path, config: Mapping[str, Any], architecture: Any) -> tuple[str, dict[str, Any]]:
    """Returns the architecture and arguments for `timm.create_model`, from a configuration as `save` writes it.

    Raises:
        DataError: an unknown architecture, or arguments by which timm would read files or access the network.
    """
    import timm

    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise DataError(f"{path}: architecture {architecture!r} is none that timm {timm.__version__} has.")
    model_args = config.get("model_args", {})
    if not isinstance(model_args, dict):
        raise DataError(f"{path} is damaged: model_args are {model_args!r}.")
    # Arguments of create_model itself, which are not for the model, such as where to find weights.
    foreign = sorted(model_args.keys() & set(inspect.signature(timm.create_model).parameters))
    if foreign:
        raise DataError(f"{path}: model_args have {', '.join(foreign)}, which comrope.save never writes.")
    head = {name: config[name] for name in ("num_classes", "global_pool") if name in config}
    return architecture, model_args | head
