"""Finds which token of an image or video comes from which patch, from derivatives and not from names."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from comrope.errors import ConfigurationError
from comrope.hosts._attention_layer import find_attention_layers
from comrope.hosts._backbone import ModuleHook
from comrope.hosts._coordinate_grid import CoordinateGrid
from comrope.hosts._position_context import PositionContext


def find_patch_embedding(run: Callable[[], Any], model: nn.Module) -> tuple[nn.Module, int, int]:
    """Returns the convolution that makes the patches, and the numbers of other tokens before and after them.

    If the model has no convolution, it is a group norm, whose pixels are the tokens. The tokens of patches are found by the
    derivative of the first attention layer's input in the output of the convolution.

    Raises:
        ConfigurationError: the tokens are not the patches in row-major order.
    """
    modules = list(model.modules())
    convs = [m for m in modules if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    with torch.enable_grad():
        seen = _trace(run, model, convs or [m for m in modules if isinstance(m, nn.GroupNorm)])
        if "embedding" not in seen or seen.get("tokens") is None:
            raise ConfigurationError(f"{type(model).__name__}: no convolution runs before its attention layers.")
        return seen["embedding"], *_num_other_tokens(type(model).__name__, seen["patches"], seen["tokens"])


def check_patch_positions(
    run: Callable[[], Any],
    model: nn.Module,
    position_context: PositionContext,
    hooks: Sequence[ModuleHook],
    coordinate_grid: CoordinateGrid,
) -> None:
    """Raises ConfigurationError unless `hooks` give every token that depends on one patch the position of that patch."""
    with torch.enable_grad():
        seen = _trace(run, model, [hooks[0].module], hooks, position_context)
        expected = coordinate_grid.positions(seen["patches"].shape[2:], 0, like=seen["patches"])
        positions = seen["positions"] if seen["positions"].ndim == 2 else seen["positions"][0]
        for token in range(min(len(positions), 16)):
            source = _source_patches(token, seen["tokens"], seen["patches"])
            if len(source) == 1 and not torch.allclose(positions[token], expected[source[0]]):
                raise ConfigurationError(
                    f"{type(model).__name__}: token {token} comes of patch {source[0]} and would be placed elsewhere: say "
                    "where its tokens are, comrope.attach(model, name, positions=…, example=…)."
                )


def _trace(
    run: Callable[[], Any],
    model: nn.Module,
    embeddings: Sequence[nn.Module],
    hooks: Sequence[ModuleHook] = (),
    position_context: PositionContext | None = None,
) -> dict[str, Any]:
    """Runs the model, and returns what happens before its first attention layer.

    Returns:
        "embedding": the last of `embeddings` that runs; "patches": its output; "tokens": the input of the first attention
        layer; "positions": those set by then, if there is a `position_context`.
    """
    seen: dict[str, Any] = {}

    def record_patches(module, args, output):
        if "tokens" not in seen:
            seen["embedding"], seen["patches"] = module, output.detach().requires_grad_()
            return seen["patches"]
        return None

    def record_tokens(module, args, kwargs):
        if "tokens" not in seen:
            seen["tokens"] = _first_float_tensor(args, kwargs)
            seen["positions"] = None if position_context is None else position_context.latest().positions

    handles = [module.register_forward_hook(record_patches) for module in embeddings]
    handles += [hook.register() for hook in hooks]
    for layer in find_attention_layers(model):
        handles.append(layer.attention.register_forward_pre_hook(record_tokens, with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _first_float_tensor(args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)


def _source_patches(token: int, tokens: Tensor, patches: Tensor) -> list[int]:
    """Returns the indices of the patches that a token of the first sample depends on."""
    weights = torch.linspace(0.5, 1.5, tokens.shape[-1], device=tokens.device, dtype=tokens.dtype)
    value = ((tokens if tokens.ndim == 2 else tokens[0])[token] * weights).sum()
    if not value.requires_grad:
        return []
    (gradient,) = torch.autograd.grad(value, patches, retain_graph=True, allow_unused=True)
    return [] if gradient is None else gradient[0].abs().sum(0).flatten().nonzero().flatten().tolist()


def _num_other_tokens(name: str, patches: Tensor, tokens: Tensor) -> tuple[int, int]:
    """Returns the numbers of tokens before and after the patches; ConfigurationError if patches are not in row-major order."""
    shape = patches.shape[2:]
    count = shape.numel()
    length = tokens.shape[-2]
    for before in range(max(length - count, 0) + 1):
        if length >= count and _source_patches(before, tokens, patches) == [0]:
            samples = {0, 1, count // 2, count - 1, shape[-1]} & set(range(count))
            if all(_source_patches(before + patch, tokens, patches) == [patch] for patch in samples):
                return before, length - count - before
    raise ConfigurationError(
        f"{name}: its {length} tokens are not the {'×'.join(map(str, shape))} patches of its image row by row, with others "
        "before or after them: say where they are, comrope.attach(model, name, positions=…, example=…)."
    )
