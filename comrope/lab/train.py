"""The training loop of the experiments: the paper's basic recipe, on Accelerate."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.utils.data import DataLoader, TensorDataset

import comrope
from comrope.errors import ConfigurationError
from comrope.lab.data import Images, random_crops
from comrope.lab.vit import ViT


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: AdamW, cosine schedule with linear warm-up, random crops (paper, section 4)."""

    image_size: tuple[int, int] = (32, 32)
    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.02
    """Share of all steps."""
    enlargement: float = 1.1
    """Images are resized to so many times the size that is then cropped from them."""
    perturbation: float = 1.0
    """σ, in patches; drawn anew for every step (Eq. 11)."""
    seed: int = 0


def train(
    model: ViT, images: Images, recipe: Recipe, after_step: Callable[[int, int], None] | None = None
) -> list[dict]:
    """Trains `model` in place.

    Args:
        model: a classifier of `images`.
        images: what to train on.
        recipe: how.
        after_step: called after each optimiser step with (steps done, steps in all).
    Returns:
        A row an epoch: mean training loss and accuracy as they were met on the way.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    draws = torch.Generator().manual_seed(recipe.seed)
    enlarged = tuple(round(side * recipe.enlargement) for side in recipe.image_size)
    loader = DataLoader(
        TensorDataset(images.resized((enlarged[0], enlarged[1])), images.labels),
        batch_size=recipe.batch_size,
        shuffle=True,
        drop_last=True,
        generator=draws,
    )
    total = recipe.epochs * len(loader)
    if total < 1:
        raise ConfigurationError(
            f"epochs={recipe.epochs}, batch_size={recipe.batch_size} and {len(images)} images make no training step."
        )
    warmup = round(recipe.warmup * total)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    # With warmup_prefix timm counts the cosine's steps from the end of the warm-up.
    schedule = CosineLRScheduler(
        optimizer, t_initial=max(1, total - warmup), warmup_t=warmup, warmup_prefix=True, t_in_epochs=False
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    positions = model.positions(recipe.image_size)  # perturbed on the CPU: the same draws on every device
    patch_size = [1 / n for n in model.grid(recipe.image_size)]

    history, step = [], 0
    model.train()
    for epoch in range(1, recipe.epochs + 1):
        loss_sum = correct = seen = 0.0
        for pixels, labels in loader:
            schedule.step_update(step)
            pixels = random_crops(pixels, recipe.image_size, draws)
            moved = comrope.positions.perturb(
                positions, patch_size, recipe.perturbation, num_prefix_tokens=model.num_prefix_tokens, generator=draws
            )
            with accelerator.autocast():
                logits = model(pixels, moved.to(accelerator.device))
                loss = F.cross_entropy(logits, labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            loss_sum += loss.item() * len(labels)
            correct += (logits.argmax(-1) == labels).sum().item()
            seen += len(labels)
            if after_step is not None:
                after_step(step, total)
        history.append({"epoch": epoch, "loss": loss_sum / seen, "accuracy": correct / seen})
    model.eval()
    return history
