"""The laboratory's ViT with its parameters shared out by FSDP2 among two real processes: the steps of one.

`accelerate launch --use_fsdp` wraps the model in this way on accelerators; on the CPU Accelerate has no FSDP, so that here the
wrapping is written out.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import comrope
from comrope.lab.images import problem
from comrope.lab.images.in_memory import digits
from tests.lab.helpers import QUICK
from tests.processes import in_two_processes

pytestmark = pytest.mark.slow


def _steps(encoding: str, rank: int = 0, world: int = 1, mesh=None) -> dict[str, torch.Tensor]:
    """Weights after three steps of AdamW on 24 images, of which this process sees its share."""
    images = digits()[0].take(range(24))
    model = problem.build(replace(QUICK, encoding=encoding), images)
    if mesh is not None:
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(comrope.param_groups(model, weight_decay=0.01), lr=1e-2)
    for _ in range(3):
        loss = F.cross_entropy(model(images.pixels[rank::world]), images.labels[rank::world])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {n: p.full_tensor() if isinstance(p, DTensor) else p.detach() for n, p in model.named_parameters()}


def _sharded_steps(rank: int, encoding: str) -> dict[str, torch.Tensor]:
    return _steps(encoding, rank, 2, init_device_mesh("cpu", (2,)))


@pytest.mark.parametrize("encoding", ["comrope-ld", "comrope-mt", "ape"])
def test_two_shards_take_the_steps_of_one_process(encoding, tmp_path):
    found = in_two_processes(_sharded_steps, tmp_path, encoding)
    expected = _steps(encoding)
    assert found.keys() == expected.keys()
    for name, weights in found.items():
        assert torch.allclose(weights, expected[name], rtol=1e-3, atol=1e-4), name
