"""What a rotation costs, side by side in one run: the paper's algorithm, plain RoPE as three libraries write it, and ours.

Opponents take turns, round after round, so that a machine that slows down slows all of them; what counts is the ratio to
plain RoPE in the same round.
"""

import gc
import multiprocessing
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import comrope
from comrope import reference
from comrope.encodings import Encoding, SpectralEncoding
from comrope.lab.vit import ViT

Rotate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
BASELINE = "RoPE, transformers"


@dataclass(frozen=True)
class Shape:
    """Queries and keys of one attention layer."""

    name: str
    batch: int
    num_heads: int
    num_tokens: int
    head_dim: int
    num_axes: int

    def positions(self) -> Tensor:
        """Uniform in the canvas, or a sequence; shared by the batch, as in training."""
        if self.num_axes == 1:
            return comrope.positions.sequence(self.num_tokens)
        return torch.rand(self.num_tokens, self.num_axes, generator=torch.Generator().manual_seed(0))

    def tokens(self) -> Tensor:
        """Something to turn, or to send back: (B, H, L, D)."""
        return torch.randn(self.batch, self.num_heads, self.num_tokens, self.head_dim)


SHAPES = (
    Shape("ViT-B/16 at 224", 8, 12, 197, 64, 2),
    Shape("ViT-B/16 at 512", 2, 12, 1025, 64, 2),
    Shape("the paper's video model", 2, 8, 1569, 48, 3),
    Shape("language, 1k tokens", 1, 8, 1024, 128, 1),
    Shape("language, 4k tokens", 1, 8, 4096, 128, 1),
    Shape("language, 32k tokens", 1, 8, 32768, 128, 1),
)


def opponents(shape: Shape) -> dict[str, Rotate]:
    """Each way of turning q and k of `shape`, ready to call; those too large for the shape are left out."""
    x = shape.positions()
    found: dict[str, Rotate] = {}
    if shape.num_tokens < 300:  # these take minutes and gigabytes beyond
        found["LD as published, a dense rotation a sample"] = _published(_encoding("comrope-ld", shape), x, shape.batch)
        found["LD as published, positions shared"] = _shared(_encoding("comrope-ld", shape), x)
        found["LieRE, ours"] = _ours(_encoding("liere", shape), x)
    found.update(_plain_ropes(shape))
    for label, name, settings in (
        ("RoPE, ours", "rope", {}),
        ("RoPE-Mixed, ours", "rope-mixed", {}),
        ("AP, ours", "comrope-ap", {"block_size": 8}),
        ("LD, ours", "comrope-ld", {"block_size": 8}),
        ("LD, ours, block 2", "comrope-ld", {"block_size": 2}),
        ("LD, ours, one block a head", "comrope-ld", {"block_size": shape.head_dim}),
        ("MT, ours", "comrope-mt", {"block_size": 8}),
    ):
        found[label] = _ours(_encoding(name, shape, **settings), x)
    for label, name in (
        ("LD, ours, basis in the weights", "comrope-ld"),
        ("MT, ours, basis in the weights", "comrope-mt"),
    ):
        found[label] = _ours_in_basis(_encoding(name, shape), x)
    return found


def rotations(shape: Shape, rounds: int, progress: Callable[[str], None]) -> list[dict]:
    """A row for each opponent, forward alone and with backward down to q, k and the parameters."""
    q, k, grad = shape.tokens().requires_grad_(), shape.tokens().requires_grad_(), shape.tokens()
    rows = []
    for backward in (False, True):
        steps = {name: _step(rotate, q, k, grad, backward) for name, rotate in opponents(shape).items()}
        bounds = {"least_bytes": _least_bytes(shape, backward), "least_operations": _least_operations(shape, backward)}
        for row in _compared(in_turn(steps, rounds, progress), BASELINE):
            rows.append({"shape": shape.name, "mode": "forward + backward" if backward else "forward", **row, **bounds})
    return rows


def training_steps(rounds: int, batch: int, depth: int, progress: Callable[[str], None]) -> list[dict]:
    """A row for each encoding in ViT-B/16 at 224: forward, backward and AdamW."""
    pixels, labels = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))
    steps = {}
    for label, name, settings in (
        ("RoPE, ours", "rope", {}),
        ("RoPE-Mixed", "rope-mixed", {}),
        ("AP, block 8", "comrope-ap", {}),
        ("LD, block 8", "comrope-ld", {}),
        ("MT, block 8", "comrope-mt", {}),
        ("LD, block 2", "comrope-ld", {"block_size": 2}),
        ("LD, block 64", "comrope-ld", {"block_size": 64}),
    ):
        model = ViT(name, (224, 224), settings, patch_size=16, embed_dim=768, depth=depth, num_heads=12, qkv_bias=True)
        steps[label] = _training_step(model, pixels, labels)
    return list(_compared(in_turn(steps, rounds, progress), "RoPE, ours"))


def decompositions(rounds: int) -> dict:
    """Seconds for the decompositions of one LD layer of ViT-B/16 (12 heads of 8 blocks of 8 × 8), with their backward."""
    pe = comrope.encoding("comrope-ld", num_heads=12, head_dim=64, num_axes=2, block_size=8)
    q, k = torch.randn(2, 1, 12, 1, 64)  # one token: what is left is the decomposition
    step = _step(lambda q, k: pe(q, k, torch.zeros(1, 2)), q.requires_grad_(), k.requires_grad_(), q.detach(), True)
    return _summary(in_turn({"": step}, rounds, lambda _: None)[""])


def peak_memory(shape: Shape, progress: Callable[[str], None]) -> list[dict]:
    """Bytes by which one forward and backward raises the high-water mark of a process of its own. Linux only."""
    rows = []
    context = multiprocessing.get_context("spawn")
    for name in opponents(shape):
        progress(f"memory: {name}")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_measure_memory, args=(shape, name, torch.get_num_threads(), sender))
        process.start()
        sender.close()
        rows.append({"shape": shape.name, "opponent": name, "peak_bytes": receiver.recv()})
        process.join()
    return rows


def in_turn(
    steps: dict[str, Callable[[], None]], rounds: int, progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """Seconds of every step in every round, the steps taking turns; two rounds before that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            progress(name)
            begun = time.perf_counter()
            step()
            if number >= 2:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def environment() -> dict:
    """What the figures depend on."""
    packages = ("comrope", "torch", "timm", "transformers", "rotary-embedding-torch")
    return {
        "versions": {**{p: version(p) for p in packages}, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _compared(seconds: dict[str, list[float]], baseline: str) -> Iterator[dict]:
    for name, each in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(each, seconds[baseline], strict=True)]
        yield {"opponent": name, **_summary(each), "ratio": _quartiles(ratios)}


def _summary(seconds: list[float]) -> dict:
    return {"seconds": _quartiles(seconds), "rounds": len(seconds)}


def _quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


def _step(rotate: Rotate, q: Tensor, k: Tensor, grad: Tensor, backward: bool) -> Callable[[], None]:
    def step():
        q.grad = k.grad = None
        with torch.set_grad_enabled(backward):
            turned = rotate(q, k)
        if backward:
            torch.autograd.backward(turned, (grad, grad))

    return step


def _training_step(model: ViT, pixels: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        F.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _measure_memory(shape: Shape, name: str, threads: int, sender) -> None:
    torch.set_num_threads(threads)
    q, k, grad = shape.tokens().requires_grad_(), shape.tokens().requires_grad_(), shape.tokens()
    step = _step(opponents(shape)[name], q, k, grad, True)
    _step(_ours(_encoding("rope", shape), shape.positions()), q[:1, :, :1], k[:1, :, :1], grad[:1, :, :1], False)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew from what is in use now
    before = _high_water()
    step()
    sender.send(_high_water() - before)


def _high_water() -> int:
    """Bytes this process has held at most (VmHWM, Linux only)."""
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])  # pyright: ignore


def _least_bytes(shape: Shape, backward: bool) -> int:
    """q and k read and written once in float32; backward reads two gradients and the saved results and writes two more."""
    one = 4 * shape.batch * shape.num_heads * shape.num_tokens * shape.head_dim
    return 4 * one + (6 * one if backward else 0)


def _least_operations(shape: Shape, backward: bool, block_size: int = 8) -> int:
    """Turning a plane takes 6; the basis 2b for each coordinate; backward the same again, and 2b more for the angles."""
    coordinates = 2 * shape.batch * shape.num_heads * shape.num_tokens * shape.head_dim
    forward = coordinates * (3 + 2 * block_size)
    return forward + (forward + coordinates * 2 * block_size if backward else 0)


def _encoding(name: str, shape: Shape, **settings) -> Encoding:
    torch.manual_seed(0)
    sizes = {"num_heads": shape.num_heads, "head_dim": shape.head_dim, "num_axes": shape.num_axes}
    return comrope.encoding(name, **sizes, **settings)  # pyright: ignore[reportReturnType]


def _ours(pe: Encoding, x: Tensor) -> Rotate:
    return lambda q, k: pe(q, k, x)


def _ours_in_basis(pe: Encoding, x: Tensor) -> Rotate:
    assert isinstance(pe, SpectralEncoding)
    return lambda q, k: pe.rotation(x).turn(q, k, in_basis=True)


def _shared(pe: Encoding, x: Tensor) -> Rotate:
    return lambda q, k: reference.rotate(q, k, pe.angle_matrices(), x)


def _published(pe: Encoding, x: Tensor, batch: int) -> Rotate:
    """One rotation for each sample, token and head, as a dense D × D matrix (paper, Algorithm 1, as released)."""
    positions = x.expand(batch, -1, -1)

    def rotate(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        blocks = reference.rotation_matrices(pe.angle_matrices(), positions).transpose(1, 2)  # (B, H, L, m, b, b)
        num_blocks, b = blocks.shape[3:5]
        dense = blocks.new_zeros(*blocks.shape[:3], num_blocks, b, num_blocks, b)
        dense.diagonal(dim1=3, dim2=5).copy_(blocks.movedim(3, -1))
        dense = dense.flatten(3, 4).flatten(4, 5)  # (B, H, L, D, D)
        return (dense @ q.unsqueeze(-1)).squeeze(-1), (dense @ k.unsqueeze(-1)).squeeze(-1)

    return rotate


def _plain_ropes(shape: Shape) -> dict[str, Rotate]:
    """Fixed frequencies and ready-made tables: what other libraries do for each layer."""
    from rotary_embedding_torch import apply_rotary_emb
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    phases = torch.rand(shape.num_tokens, shape.head_dim // 2)
    cos, sin = (t.repeat(1, 2).unsqueeze(0) for t in (phases.cos(), phases.sin()))  # (1, L, D), halves
    pairs = phases.repeat_interleave(2, dim=-1)  # (L, D), neighbours
    table = torch.cat((pairs.sin(), pairs.cos()), dim=-1).expand(shape.num_heads, -1, -1)  # (H, L, 2D), one a head
    compiled = torch.compile(apply_rotary_pos_emb)
    return {
        BASELINE: lambda q, k: apply_rotary_pos_emb(q, k, cos, sin),
        "RoPE, transformers, compiled": lambda q, k: compiled(q, k, cos, sin),
        "RoPE, timm, a table a head": lambda q, k: (apply_rot_embed_cat(q, table), apply_rot_embed_cat(k, table)),
        "RoPE, rotary-embedding-torch": lambda q, k: (apply_rotary_emb(pairs, q), apply_rotary_emb(pairs, k)),
    }
