"""Which token of an image or video comes of which patch: seen in derivatives, not taken from names."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from comrope.errors import ConfigurationError
from comrope.hosts._attention import find_layers
from comrope.hosts._surgery import Hook
from comrope.hosts._tokens import Canvas, Tokens


def tokens_around(run: Callable[[], Any], model: nn.Module) -> tuple[nn.Module, int, int]:
    """The convolution that makes the tokens of an image or video, and how many others come before them, and after.

    Where there is none it is a norm of channels, whose pixels are the tokens. Which token comes of which patch is seen in
    derivatives: of what the first attention layer is given, in what the convolution puts out.

    Raises:
        ConfigurationError: tokens are no patches row by row.
    """
    modules = list(model.modules())
    convs = [m for m in modules if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    with torch.enable_grad():
        seen = _traced(run, model, convs or [m for m in modules if isinstance(m, nn.GroupNorm)])
        if "source" not in seen or seen.get("given") is None:
            raise ConfigurationError(f"{type(model).__name__}: no convolution runs before its attention layers.")
        return seen["source"], *_around(type(model).__name__, seen["patches"], seen["given"])


def tokens_follow(
    run: Callable[[], Any], model: nn.Module, tokens: Tokens, hooks: Sequence[Hook], canvas: Canvas
) -> None:
    """ConfigurationError unless each token that comes of one patch is where that patch is, as `hooks` tell positions."""
    with torch.enable_grad():
        seen = _traced(run, model, [hooks[0].module], hooks, tokens)
        everywhere = canvas.positions(seen["patches"].shape[2:], 0, like=seen["patches"])
        positions = seen["positions"] if seen["positions"].ndim == 2 else seen["positions"][0]
        for token in range(min(len(positions), 16)):
            source = _comes_from(token, seen["given"], seen["patches"])
            if len(source) == 1 and not torch.allclose(positions[token], everywhere[source[0]]):
                raise ConfigurationError(
                    f"{type(model).__name__}: token {token} comes of patch {source[0]} and would be placed elsewhere: say "
                    "where its tokens are, comrope.attach(model, name, positions=…, example=…)."
                )


def _traced(
    run: Callable[[], Any],
    model: nn.Module,
    sources: Sequence[nn.Module],
    hooks: Sequence[Hook] = (),
    tokens: Tokens | None = None,
) -> dict[str, Any]:
    """What happens before the first attention layer: which of `sources` is the last to run and what it puts out ("patches"),
    what the layer is given, and which "positions" `tokens` have by then."""
    seen: dict[str, Any] = {}

    def patch(module, args, output):
        if "given" not in seen:
            seen["source"], seen["patches"] = module, output.detach().requires_grad_()
            return seen["patches"]
        return None

    def given(module, args, kwargs):
        if "given" not in seen:
            seen["given"] = _first(args, kwargs)
            seen["positions"] = None if tokens is None else tokens.latest()

    handles = [source.register_forward_hook(patch) for source in sources] + [hook.put() for hook in hooks]
    handles += [layer.attention.register_forward_pre_hook(given, with_kwargs=True) for layer in find_layers(model)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _first(args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """The first argument that can be tokens."""
    tensors = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)


def _comes_from(token: int, tokens: Tensor, patches: Tensor) -> list[int]:
    """The patches that a token of the first sample depends on, by number."""
    weights = torch.linspace(0.5, 1.5, tokens.shape[-1], device=tokens.device, dtype=tokens.dtype)
    value = ((tokens if tokens.ndim == 2 else tokens[0])[token] * weights).sum()
    if not value.requires_grad:
        return []
    (slope,) = torch.autograd.grad(value, patches, retain_graph=True, allow_unused=True)
    return [] if slope is None else slope[0].abs().sum(0).flatten().nonzero().flatten().tolist()


def _around(name: str, patches: Tensor, tokens: Tensor) -> tuple[int, int]:
    grid = patches.shape[2:]
    count = grid.numel()
    length = tokens.shape[-2]
    for before in range(max(length - count, 0) + 1):
        if length >= count and _comes_from(before, tokens, patches) == [0]:
            some = {0, 1, count // 2, count - 1, grid[-1]} & set(range(count))
            if all(_comes_from(before + patch, tokens, patches) == [patch] for patch in some):
                return before, length - count - before
    raise ConfigurationError(
        f"{name}: its {length} tokens are not the {'×'.join(map(str, grid))} patches of its image row by row, with others "
        "before or after them: say where they are, comrope.attach(model, name, positions=…, example=…)."
    )
