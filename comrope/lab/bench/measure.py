"""The measurements: rotations alone, whole training steps and inference of ViT-B/16, decompositions, peak memory."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import comrope
from comrope._linalg import block_diagonalise, skew
from comrope.lab.bench.clock import Progress, Step, compared, in_turn, peak_memory, summary
from comrope.lab.bench.opponents import BASELINE, Rotate, Shape, opponents
from comrope.lab.vit import ViT

IMAGE = (224, 224)
ROPE = "RoPE, ours"
TURN = 0.2
"""Seconds for which a rotation is repeated in each round."""
MODELS = {
    ROPE: ("rope", {}),
    "RoPE-Mixed": ("rope-mixed", {}),
    "LieRE, block 8": ("liere", {}),
    "AP, block 8": ("comrope-ap", {}),
    "LD, block 8": ("comrope-ld", {}),
    "MT, block 8": ("comrope-mt", {}),
    "LD, block 2": ("comrope-ld", {"block_size": 2}),
    "LD, block 64": ("comrope-ld", {"block_size": 64}),
}
"""Name and settings of the encoding of a whole model, by the name of the row."""
MEASURED_IN_MEMORY = (ROPE, "AP, block 8", "LD, block 8", "MT, block 8")


def rotations(shape: Shape, rounds: int, progress: Progress) -> list[dict]:
    """Returns rows for each implementation: forward alone, and with backward to q, k and the parameters."""
    ways = opponents(shape)
    rows = []
    for backward in (False, True):
        steps = {name: rotation_step(rotate, shape, backward) for name, rotate in ways.items()}
        bounds = {"least_bytes": _least_bytes(shape, backward), "least_operations": _least_operations(shape, backward)}
        mode = "forward + backward" if backward else "forward"
        seconds = in_turn(steps, rounds, lambda name: progress(f"{shape.name}, {mode}: {name}"), TURN)  # noqa: B023
        rows += [{"shape": shape.name, "mode": mode, **row, **bounds} for row in compared(seconds, BASELINE)]
    return rows


def rotation_step(rotate: Rotate, shape: Shape, backward: bool) -> Step:
    """Returns a step: one forward, or one forward and backward.

    The gradients are dense tensors, since an expanded one, such as that of a sum, makes torch's batched products forty
    times slower.
    """
    q, k, grad = shape.tokens().requires_grad_(), shape.tokens().requires_grad_(), shape.tokens()
    others: list[Tensor] = []

    def step():
        q.grad = k.grad = None
        with torch.set_grad_enabled(backward):
            results = rotate(q, k)
        if backward:
            if not others:
                others.extend(torch.randn_like(t) for t in results[2:])
            torch.autograd.backward(results, (grad, grad, *others))

    return step


def training_steps(rounds: int, batch: int, depth: int, progress: Progress) -> list[dict]:
    """Returns a row for each encoding in ViT-B/16 at 224, timed over forward, backward and AdamW."""
    steps = {label: training_step(label, batch, depth) for label in MODELS}
    return list(compared(in_turn(steps, rounds, lambda name: progress(f"training step: {name}")), ROPE))


def training_step(label: str, batch: int, depth: int) -> Step:
    """Returns a training step of a model of MODELS."""
    model = vit(label, depth)
    optimizer = torch.optim.AdamW(model.parameters())
    pixels, labels = torch.randn(batch, 3, *IMAGE), torch.randint(1000, (batch,))

    def step():
        F.cross_entropy(model(pixels), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference(rounds: int, batch: int, depth: int, progress: Progress) -> list[dict]:
    """Returns rows for RoPE, LD as trained and LD folded into the weights, timed over forward without gradients."""
    pixels = torch.randn(batch, 3, *IMAGE)
    learned = vit("LD, block 8", depth).eval()
    models = {
        ROPE: vit(ROPE, depth).eval(),
        "LD, not folded": learned,
        "LD, folded": comrope.fold(vit("LD, block 8", depth)).eval(),
    }

    def forward(model: ViT) -> Step:
        @torch.no_grad()
        def step():
            model(pixels)

        return step

    steps = {name: forward(model) for name, model in models.items()}
    return list(compared(in_turn(steps, rounds, lambda name: progress(f"inference: {name}")), ROPE))


def vit(label: str, depth: int) -> ViT:
    """Returns ViT-B/16 with this number of layers and an encoding of MODELS."""
    torch.manual_seed(0)
    name, settings = MODELS[label]
    return ViT(name, IMAGE, settings, patch_size=16, embed_dim=768, depth=depth, num_heads=12, qkv_bias=True)


def decompositions(rounds: int, depth: int) -> dict:
    """Returns the seconds of the decompositions in all LD layers of ViT-B/16 (12 heads of 8 blocks, 8 × 8), with backward."""
    base = torch.randn(depth * 12, 8, 8, 8, dtype=torch.float64).requires_grad_()
    grad = torch.randn_like(base)

    def step():
        base.grad = None
        block_diagonalise(skew(base))[1].backward(grad)

    return summary(in_turn({"": step}, rounds, lambda _: None, TURN)[""])


def memory_of_rotations(shape: Shape, progress: Progress, only: Callable[[str], bool] = lambda _: True) -> list[dict]:
    """Returns, for each implementation, the peak memory of one forward and backward in a new process."""
    rows = []
    for name in filter(only, opponents(shape)):
        progress(f"memory, {shape.name}: {name}")
        rows.append(
            {
                "shape": shape.name,
                "opponent": name,
                "peak_bytes": peak_memory(_warm_rotation, shape, name, above_start=True),
            }
        )
    return rows


def memory_of_training(batch: int, depth: int, progress: Progress) -> list[dict]:
    """Returns the peak memory of a process in whole training steps, with weights and optimiser."""
    rows = []
    for label in MEASURED_IN_MEMORY:
        progress(f"memory of training: {label}")
        peak = peak_memory(training_step, label, batch, depth, above_start=False)
        rows.append({"opponent": label, "peak_bytes": peak})
    return rows


def _warm_rotation(shape: Shape, name: str) -> Step:
    """Returns the step of an implementation; a small step of another has run before, so that torch is fully loaded."""
    small = Shape("", 1, shape.num_heads, 2, shape.head_dim, shape.num_axes)
    rotation_step(opponents(small)["RoPE-Mixed, ours"], small, True)()
    return rotation_step(opponents(shape)[name], shape, True)


def _least_bytes(shape: Shape, backward: bool) -> int:
    """Returns the least memory traffic in bytes, in float32.

    Forward reads and writes q and k once. Backward reads two gradients and the saved results, and writes two gradients.
    """
    one = 4 * shape.batch * shape.num_heads * shape.num_tokens * shape.head_dim
    return 4 * one + (6 * one if backward else 0)


def _least_operations(shape: Shape, backward: bool, block_size: int = 8) -> int:
    """Returns the least number of floating-point operations.

    Forward takes 6 for the rotation of a plane, and 2b per coordinate for the basis. Backward takes the same again, and
    2b per coordinate for the gradient of the angles.
    """
    coordinates = 2 * shape.batch * shape.num_heads * shape.num_tokens * shape.head_dim
    forward = coordinates * (3 + 2 * block_size)
    return forward + (forward + coordinates * 2 * block_size if backward else 0)
