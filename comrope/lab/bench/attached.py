"""The cost of an attached encoding in models of timm and transformers: whole steps, beside the model with its own RoPE."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import comrope
from comrope.lab.bench.clock import Progress, Step, compared, in_turn

OWN = "its own RoPE"
PLAIN, HOOKS = "no RoPE at all", "no RoPE at all, hooks alone"
WAYS: dict[str, str | None] = {
    OWN: None,
    "RoPE-Mixed, attached": "rope-mixed",
    "LD, attached": "comrope-ld",
    "MT, attached": "comrope-mt",
}
"""The encoding that is attached, by the name of the row; None if nothing is attached."""
FOLDED = "LD, attached and folded"


@dataclass(frozen=True)
class Host:
    """A model and its inputs."""

    name: str
    num_tokens: int
    make: Callable[[int], nn.Module]
    """Makes the model, given the number of layers."""
    inputs: Callable[[int], dict[str, Any]]
    """Makes inputs, given the number of images."""
    bare: Callable[[int], nn.Module] | None = None
    """Makes the same model without any RoPE, to measure the cost of hooks alone."""
    init: str | None = None
    """How learned angles start: see `comrope.attach`; from the model's own RoPE if None."""


def _vit(name: str) -> Callable[[int], nn.Module]:
    return lambda depth: timm.create_model(name, depth=depth)


def _llama(depth: int) -> nn.Module:
    """Returns a Llama with one layer for six of a ViT, which take about as long."""
    sizes: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=512, num_hidden_layers=max(1, depth // 6), use_cache=False, **sizes))


def _images(batch: int) -> dict[str, Any]:
    return {"x": torch.randn(batch, 3, 224, 224)}


def _random_tokens(length: int) -> Callable[[int], dict[str, Any]]:
    return lambda batch: {"input_ids": torch.randint(512, (1, length))}


HOSTS = (
    Host(
        "timm ViT-B/16 at 224, per-head RoPE",
        197,
        _vit("vit_base_patch16_rope_mixed_224"),
        _images,
        bare=_vit("vit_base_patch16_224"),
        init="normal",
    ),
    Host("Llama of width 1024, 1k tokens", 1024, _llama, _random_tokens(1024)),
    Host("Llama of width 1024, 4k tokens", 4096, lambda depth: _llama(depth // 2), _random_tokens(4096)),
)


def models(host: Host, depth: int) -> dict[str, nn.Module]:
    """Returns the host with its own RoPE and with each encoding, and, if it has a bare form, that without and with hooks."""
    found = {label: _made(host.make, depth, name, host.init) for label, name in WAYS.items()}
    if host.bare is not None:
        found |= {PLAIN: _made(host.bare, depth), HOOKS: _made(host.bare, depth, "none")}
    return found


def _made(make: Callable[[int], nn.Module], depth: int, name: str | None = None, init: str | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = make(depth)
    return model if name is None else comrope.attach(model, name, init=None if name == "none" else init)


def training(host: Host, rounds: int, batch: int, depth: int, progress: Progress) -> list[dict]:
    """Returns a row for each of WAYS, timed over forward, backward and AdamW."""
    inputs = host.inputs(batch)
    steps = {label: training_step(model, inputs) for label, model in models(host, depth).items()}
    seconds = in_turn(steps, rounds, lambda name: progress(f"{host.name}, training: {name}"))
    return [{"host": host.name, "mode": "training step", **row} for row in compared(seconds, OWN)]


def training_step(model: nn.Module, inputs: dict[str, Any]) -> Step:
    """Returns a training step, always on the same inputs."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        logits = _logits(model, inputs).flatten(0, -2)
        F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference(host: Host, rounds: int, batch: int, depth: int, progress: Progress) -> list[dict]:
    """Returns rows for the host's own RoPE, LD as trained and LD folded, timed over forward without gradients."""
    inputs = host.inputs(batch)
    ld = "LD, attached"
    found = {OWN: _made(host.make, depth), ld: _made(host.make, depth, WAYS[ld], host.init)}
    found[FOLDED] = comrope.fold(_made(host.make, depth, WAYS[ld], host.init))
    steps = {label: _forward(model.eval(), inputs) for label, model in found.items()}
    seconds = in_turn(steps, rounds, lambda name: progress(f"{host.name}, inference: {name}"))
    return [{"host": host.name, "mode": "inference", **row} for row in compared(seconds, OWN)]


def _forward(model: nn.Module, inputs: dict[str, Any]) -> Step:
    @torch.no_grad()
    def step() -> None:
        _logits(model, inputs)

    return step


def _logits(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    output = model(**inputs)
    return output if isinstance(output, torch.Tensor) else output.logits
