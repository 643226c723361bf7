"""Gradients of models of the zoo in two processes, under DDP and FSDP2, against those in one process."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from comrope.hosts._attention_layer import find_attention_layers
from tests.hosts.helpers import attached_model, loss
from tests.hosts.zoo import ZOO

WRAPPERS = ("ddp", "fsdp2")


def gradient_differences(rank: int, names: Sequence[str]) -> dict[str, str]:
    """Returns by wrapper and name: "" if gradients are the same, or what differs, and whether it does in the plain model
    too.
    """
    warnings.simplefilter("ignore")
    mesh, found = init_device_mesh("cpu", (2,)), {}
    for name in names:
        model = attached_model(name)
        expected = _gradients(name, copy.deepcopy(model), ZOO[name].keywords())
        for wrapper in WRAPPERS:
            difference, plain = _difference(name, wrapper, rank, mesh, copy.deepcopy(model), expected), ""
            if _any_process(difference):
                bare = ZOO[name].build()
                without = _gradients(name, copy.deepcopy(bare), ZOO[name].keywords())
                plain = _difference(name, wrapper, rank, mesh, bare, without)
            found[f"{wrapper} {name}"] = f"nor does the plain model: {plain}" if plain else difference
    return found


def _any_process(difference: str) -> bool:
    """Returns whether there is a difference in any process, since all processes must take the same branch."""
    count = torch.tensor(int(bool(difference)))
    dist.all_reduce(count)
    return count.item() > 0


def _difference(
    name: str, wrapper: str, rank: int, mesh: DeviceMesh, model: nn.Module, expected: dict[str, Tensor]
) -> str:
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in expected)  # which DDP asks for
    try:
        wrapped = DistributedDataParallel(model) if wrapper == "ddp" else _sharded(model, mesh)
        found = _gradients(name, wrapped, _half(ZOO[name].keywords(), rank))
    except Exception as error:  # whatever the wrapper makes of such a model
        return f"{type(error).__name__}: {error}".splitlines()[0]
    found = {key.removeprefix("module."): 2 * gradient for key, gradient in found.items()}  # the mean of both halves
    if found.keys() != expected.keys():
        return f"other gradients: {sorted(found.keys() ^ expected.keys())}"
    errors = {key: (found[key] - each).abs().max() / (each.abs().max() + 1e-2) for key, each in expected.items()}
    worst = max(errors, key=lambda key: errors[key])
    return "" if errors[worst] <= 1e-4 else f"the gradient of {worst} is off by {errors[worst]:.1e}"


def _gradients(name: str, model: nn.Module, keywords: dict[str, Any]) -> dict[str, Tensor]:
    loss(ZOO[name].tensor(model(**keywords))).backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    return {key: each.full_tensor() if isinstance(each, DTensor) else each for key, each in found.items()}


def _sharded(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shards each block with attention, the outermost one in a list of modules, and then the rest."""
    blocks = {}
    for layer in find_attention_layers(model):
        path = layer.name.split(".")
        lists = [i for i in range(len(path)) if isinstance(model.get_submodule(".".join(path[:i])), BLOCKS)]
        if lists:
            block = model.get_submodule(".".join(path[: lists[0] + 1]))
            blocks[block] = None
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


BLOCKS = (nn.ModuleList, nn.Sequential)


def _half(keywords: dict[str, Any], rank: int) -> dict[str, Any]:
    """Returns the first or second sample of an example with two."""
    halves = {key: each[rank : rank + 1] if isinstance(each, Tensor) else each for key, each in keywords.items()}
    if "grid_thw" in keywords:  # of which the patches are in one row
        counts = keywords["grid_thw"].prod(1).tolist()
        halves["hidden_states"] = keywords["hidden_states"].split(counts)[rank]
    return halves
