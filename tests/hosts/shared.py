"""What two processes make of models of the zoo: gradients under DDP and FSDP2 beside those of one process."""

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

from comrope.hosts._attention import find_layers
from tests.hosts.helpers import loss, with_encoding
from tests.hosts.zoo import ZOO

WAYS = ("ddp", "fsdp2")


def reports(rank: int, names: Sequence[str]) -> dict[str, str]:
    """By way and name: nothing where the gradients are the same; else what is wrong, for whom the plain model holds."""
    warnings.simplefilter("ignore")
    mesh, found = init_device_mesh("cpu", (2,)), {}
    for name in names:
        model = with_encoding(name)
        expected = _gradients(name, copy.deepcopy(model), ZOO[name].keywords())
        for way in WAYS:
            wrong, plain = _wrong(name, way, rank, mesh, copy.deepcopy(model), expected), ""
            if _anywhere(wrong):
                bare = ZOO[name].build()
                without = _gradients(name, copy.deepcopy(bare), ZOO[name].keywords())
                plain = _wrong(name, way, rank, mesh, bare, without)
            found[f"{way} {name}"] = f"nor does the plain model: {plain}" if plain else wrong
    return found


def _anywhere(wrong: str) -> bool:
    """Whether something is wrong in one of the processes, which both must know to go on alike."""
    count = torch.tensor(int(bool(wrong)))
    dist.all_reduce(count)
    return count.item() > 0


def _wrong(name: str, way: str, rank: int, mesh: DeviceMesh, model: nn.Module, expected: dict[str, Tensor]) -> str:
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in expected)  # which DDP asks for
    try:
        wrapped = DistributedDataParallel(model) if way == "ddp" else _sharded(model, mesh)
        found = _gradients(name, wrapped, _half(ZOO[name].keywords(), rank))
    except Exception as error:  # whatever the wrapper makes of such a model
        return f"{type(error).__name__}: {error}".splitlines()[0]
    found = {key.removeprefix("module."): 2 * gradient for key, gradient in found.items()}  # the mean of both halves
    if found.keys() != expected.keys():
        return f"other gradients: {sorted(found.keys() ^ expected.keys())}"
    off = {key: (found[key] - each).abs().max() / (each.abs().max() + 1e-2) for key, each in expected.items()}
    worst = max(off, key=lambda key: off[key])
    return "" if off[worst] <= 1e-4 else f"the gradient of {worst} is off by {off[worst]:.1e}"


def _gradients(name: str, model: nn.Module, keywords: dict[str, Any]) -> dict[str, Tensor]:
    loss(ZOO[name].tensor(model(**keywords))).backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    return {key: each.full_tensor() if isinstance(each, DTensor) else each for key, each in found.items()}


def _sharded(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Each block with attention, the outermost in a list of modules, and then the rest."""
    blocks = {}
    for layer in find_layers(model):
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
    """The first or second sample of an example with two."""
    halves = {key: each[rank : rank + 1] if isinstance(each, Tensor) else each for key, each in keywords.items()}
    if "grid_thw" in keywords:  # of which the patches are in one row
        counts = keywords["grid_thw"].prod(1).tolist()
        halves["hidden_states"] = keywords["hidden_states"].split(counts)[rank]
    return halves
