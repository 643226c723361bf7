"""Two real processes: gradients of an attached model under DDP and FSDP2 are those of one process."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import comrope
from tests.hosts.tiny_transformers import build, forward, images, perturb_angles, token_ids
from tests.processes import in_two_processes

pytestmark = pytest.mark.slow

HOSTS = {"vit": images, "llama": token_ids}


def _model(host: str, name: str) -> nn.Module:
    return perturb_angles(comrope.attach(build(host), name)).train()


def _loss(model: nn.Module, host: str, x: torch.Tensor) -> torch.Tensor:
    return forward(model, x).square().mean()


def _gradients(rank: int, host: str, name: str, wrapper: str) -> dict[str, torch.Tensor]:
    model = _model(host, name)
    if wrapper == "ddp":
        wrapped: nn.Module = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (2,))
        for block in (m for m in model.modules() if type(m).__name__.endswith("Layer")):
            fully_shard(block, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
    _loss(wrapped, host, HOSTS[host]()[rank::2]).backward()
    grads = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    return {key: grad.full_tensor() if isinstance(grad, DTensor) else grad for key, grad in grads.items()}


@pytest.mark.parametrize(
    ("host", "name", "wrapper"),
    [
        ("vit", "comrope-ld", "ddp"),
        ("llama", "comrope-mt", "ddp"),
        ("vit", "comrope-mt", "fsdp2"),
        ("llama", "comrope-ld", "fsdp2"),
    ],
)
def test_two_processes_have_the_gradients_of_one(host, name, wrapper, tmp_path):
    found = in_two_processes(_gradients, tmp_path, host, name, wrapper)
    model = _model(host, name)
    _loss(model, host, HOSTS[host]()).backward()
    expected = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert any(".encoding." in key for key in found)
    for key, gradient in found.items():
        error = (gradient - expected[key]).abs().max()
        assert error <= 1e-5 * max(expected[key].abs().max().item(), 1e-3), key
