"""Sequence parallelism: each process has a part of the tokens and their positions; keys and values are gathered.

Keys are rotated by their own positions before they are gathered, as in a key cache, so nothing else is exchanged.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from comrope.errors import ConfigurationError
from comrope.lab.text.untrained import random_bytes, untrained_model

ATTENTION = "comrope_split"


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    *,
    scaling: float,
    position_ids: Tensor,
    **options,
) -> tuple[Tensor, None]:
    """Returns causal attention of this process's queries (B, H, L, D) to the keys of all processes, for inference.

    It is registered with transformers: `model.set_attn_implementation("comrope_split")`.
    """
    keys, values = _gathered(key, 2), _gathered(value, 2)
    visible = _gathered(position_ids, 1)[:, None, None] <= position_ids[:, None, :, None]  # (B or 1, 1, L, L of all)
    found = F.scaled_dot_product_attention(query, keys, values, visible, scale=scaling, enable_gqa=True)
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)


def _gathered(tensor: Tensor, dim: int) -> Tensor:
    """Returns the tensors of all processes, concatenated along `dim`."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, dim)


def split_logits(encoding: str, length: int, num_processes: int = 2) -> Tensor:
    """Returns logits (length, vocabulary) of an untrained model on random bytes, computed by several processes together."""
    if length % num_processes:
        raise ConfigurationError(f"length={length}: expected a multiple of num_processes={num_processes}.")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_part, (folder, encoding, length, num_processes), nprocs=num_processes)
        return torch.cat([torch.load(Path(folder) / f"{rank}.pt") for rank in range(num_processes)])


@torch.no_grad()
def _part(rank: int, folder: str, encoding: str, length: int, num_processes: int) -> None:
    """Writes the logits of the part of process `rank` into the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=num_processes)
    try:
        model = untrained_model(encoding, length)
        model.set_attn_implementation(ATTENTION)
        own = slice(rank * length // num_processes, (rank + 1) * length // num_processes)
        positions = torch.arange(length).unsqueeze(0)[:, own]
        logits = model(random_bytes(length)[:, own], position_ids=positions, use_cache=False).logits
        torch.save(logits[0], Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
