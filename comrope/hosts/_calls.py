"""How the attention layers of a model are called in a small forward pass, and which of them cannot have an encoding."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from comrope.hosts._attention import Layer
from comrope.hosts._scores import Catching
from comrope.hosts._surgery import Call, Hook
from comrope.hosts._tokens import Tokens


def calls(
    run: Callable[[], Any], layers: Sequence[Layer], tokens: Tokens, hooks: Sequence[Hook]
) -> dict[Layer, Call | str]:
    """How each layer is called when the model runs; a word on why it cannot have an encoding, in place of that."""
    found: dict[Layer, Call | str] = dict.fromkeys(layers, "it was not called")
    running: list[Layer] = []
    heard: dict[Layer, dict[str, Tensor]] = {layer: {} for layer in layers}
    handles = [hook.put() for hook in hooks]

    def listen(layer: Layer, name: str) -> None:
        def hear(module, args, output):
            if isinstance(output, Tensor):
                heard[layer][name] = output

        handles.append(layer.attention.get_submodule(name).register_forward_hook(hear))

    def before(layer: Layer) -> Callable:
        def start(module, args, kwargs):
            heard[layer].clear()
            running.append(layer)

        return start

    def after(layer: Layer) -> Callable:
        def end(module, args, kwargs, output):
            running.pop()
            found[layer] = _call(layer, args, kwargs, dict(heard[layer]), tokens)

        return end

    def watch(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if running:
            heard[running[-1]] |= {"scores q": q, "scores k": k}
        return q, k

    try:
        for layer in layers:
            handles.append(layer.attention.register_forward_pre_hook(before(layer), with_kwargs=True))
            for name in {part.name for part in (*layer.parts, *layer.projections)} if layer.way == "parts" else ():
                listen(layer, name)
            handles.append(layer.attention.register_forward_hook(after(layer), with_kwargs=True))
        with Catching(watch):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _call(layer: Layer, args: tuple, kwargs: dict, outputs: dict[str, Tensor], tokens: Tokens) -> Call | str:
    if layer.way == "multihead":
        given: tuple[Any, ...] = (*args, *(kwargs.get(name) for name in ("query", "key")[len(args) :]))
        query, key = given[:2]
        if key is not query:
            return "its queries and keys are of different tokens"
        batch, length = (1, len(query)) if query.ndim == 2 else (len(query), query.shape[1])
        if query.ndim == 3 and not layer.attention.batch_first:
            batch, length = length, batch
        lengths = {length}
    else:
        silent = [part.name for part in layer.parts if part.name not in outputs] or ["attention"] * (not layer.parts)
        if silent and "scores q" in outputs:
            q, k = outputs["scores q"], outputs["scores k"]
            heads = (layer.num_query_heads, layer.num_heads, layer.head_dim)
            found = (q.shape[1], k.shape[1], q.shape[-1]) if q.ndim == 4 else ()
            if not found or (heads != found and any(heads)):
                return f"its {silent[0]} is not called, and its scores are of {tuple(q.shape)} queries"
            sizes = dict(zip(("num_query_heads", "num_heads", "head_dim"), found, strict=True))
            layer, outputs = replace(layer, way="scores", **sizes), {"q": q, "k": k}
            batch, lengths = len(q), {q.shape[2], k.shape[2]}
        elif silent:
            return f"its {silent[0]} is not called, but passed by"
        else:
            batch = 1 if outputs[layer.parts[0].name].ndim == 2 else len(outputs[layer.parts[0].name])
            sizes = {
                outputs[p.name].numel() / (layer.head_dim * heads_of(layer, p.holds) + p.skip) for p in layer.parts
            }
            lengths = {size / batch for size in sizes}
    if len(lengths) > 1:
        return "its queries and keys are of different tokens"
    places = tokens.among(kwargs) or tokens.known()
    if places is None:
        return "no positions are known when it is called"
    (length,) = lengths
    if length != places.positions.shape[-2]:
        return f"it has {length:g} tokens, and positions are known of {places.positions.shape[-2]}"
    return Call(layer, args, kwargs, outputs, places.positions)


def without_idle_norms(call: Call) -> Call | None:
    """The same call of a layer whose norms do nothing, with its projections as what makes queries and keys."""
    norms = [call.layer.attention.get_submodule(norm.name) for norm in call.layer.norms]
    heard = all(part.name in call.outputs for part in call.layer.projections)
    if call.layer.way == "parts" and norms and heard and all(isinstance(norm, nn.Identity) for norm in norms):
        return replace(call, layer=replace(call.layer, norms=()))
    return None


def heads_of(layer: Layer, holds: str) -> int:
    """How many heads of features a part puts out."""
    return {"q": layer.num_query_heads, "k": layer.num_heads}.get(holds, layer.num_query_heads + 2 * layer.num_heads)
