"""Two real processes: gradients of an attached model under DDP and FSDP2 are those of one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import comrope
from tests.hosts.tiny_transformers import build, images, see, stir_angles, words

HOSTS = {"vit": images, "llama": words}


def _model(host: str, name: str) -> nn.Module:
    return stir_angles(comrope.attach(build(host), name)).train()


def _loss(model: nn.Module, host: str, x: torch.Tensor) -> torch.Tensor:
    return see(model, x).square().mean()


def _process(rank: int, folder: str, host: str, name: str, way: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        model = _model(host, name)
        if way == "ddp":
            wrapped: nn.Module = DistributedDataParallel(model)
        else:
            mesh = init_device_mesh("cpu", (2,))
            for block in (m for m in model.modules() if type(m).__name__.endswith("Layer")):
                fully_shard(block, mesh=mesh)
            wrapped = fully_shard(model, mesh=mesh)
        _loss(wrapped, host, HOSTS[host]()[rank::2]).backward()
        gradients = {}
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                grad = parameter.grad
                gradients[key] = grad.full_tensor() if isinstance(grad, DTensor) else grad
        if rank == 0:
            torch.save(gradients, Path(folder) / "gradients.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("host", "name", "way"),
    [
        ("vit", "comrope-ld", "ddp"),
        ("llama", "comrope-mt", "ddp"),
        ("vit", "comrope-mt", "fsdp2"),
        ("llama", "comrope-ld", "fsdp2"),
    ],
)
def test_two_processes_have_the_gradients_of_one(host, name, way, tmp_path):
    torch.multiprocessing.spawn(_process, (str(tmp_path), host, name, way), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    model = _model(host, name)
    _loss(model, host, HOSTS[host]()).backward()
    expected = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert any(".encoding." in key for key in found)
    for key, gradient in found.items():
        error = (gradient - expected[key]).abs().max()
        assert error <= 1e-5 * max(expected[key].abs().max().item(), 1e-3), key
