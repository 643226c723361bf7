"""One sequence over several processes: each has its part of the tokens, and their positions; keys and values are gathered.

Keys come turned by their own positions, as they lie in a cache, so that nothing else has to be known of other parts.
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
from comrope.lab.text.subjects import subject, words

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
    """Attention of this process's queries (B, H, L, D) to the keys of all processes, none to a later position.

    Registered with transformers: `model.set_attn_implementation("comrope_split")`. For inference.
    """
    keys, values = _gathered(key, 2), _gathered(value, 2)
    visible = _gathered(position_ids, 1)[:, None, None] <= position_ids[:, None, :, None]  # (B or 1, 1, L, L of all)
    found = F.scaled_dot_product_attention(query, keys, values, visible, scale=scaling, enable_gqa=True)
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)


def _gathered(tensor: Tensor, dim: int) -> Tensor:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts, dim)


def split_logits(encoding: str, length: int, num_processes: int = 2) -> Tensor:
    """Logits (length, vocabulary) of a subject on its words, computed by processes that have a part of the words each."""
    if length % num_processes:
        raise ConfigurationError(f"length={length}: expected a multiple of num_processes={num_processes}.")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_part, (folder, encoding, length, num_processes), nprocs=num_processes)
        return torch.cat([torch.load(Path(folder) / f"{rank}.pt") for rank in range(num_processes)])


@torch.no_grad()
def _part(rank: int, folder: str, encoding: str, length: int, num_processes: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=num_processes)
    try:
        model = subject(encoding, length)
        model.set_attn_implementation(ATTENTION)
        own = slice(rank * length // num_processes, (rank + 1) * length // num_processes)
        positions = torch.arange(length).unsqueeze(0)[:, own]
        logits = model(words(length)[:, own], position_ids=positions, use_cache=False).logits
        torch.save(logits[0], Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
