"""Records how the attention layers of a backbone are called in the example, and which of them cannot have an encoding."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from comrope.hosts._attention_forward import InterceptSDPA
from comrope.hosts._attention_layer import AttentionLayer, LayerCall
from comrope.hosts._backbone import ModuleHook
from comrope.hosts._position_context import PositionContext


def record_calls(
    run: Callable[[], Any],
    layers: Sequence[AttentionLayer],
    position_context: PositionContext,
    hooks: Sequence[ModuleHook],
) -> dict[AttentionLayer, LayerCall | str]:
    """Returns how each layer is called by `run`, or a string that says why it cannot have an encoding."""
    found: dict[AttentionLayer, LayerCall | str] = dict.fromkeys(layers, "it was not called")
    running: list[AttentionLayer] = []
    outputs: dict[AttentionLayer, dict[str, Tensor]] = {layer: {} for layer in layers}
    handles = [hook.register() for hook in hooks]

    def record_output(layer: AttentionLayer, name: str) -> None:
        def hook(module, args, output):
            if isinstance(output, Tensor):
                outputs[layer][name] = output

        handles.append(layer.attention.get_submodule(name).register_forward_hook(hook))

    def before(layer: AttentionLayer) -> Callable:
        def hook(module, args, kwargs):
            outputs[layer].clear()
            running.append(layer)

        return hook

    def after(layer: AttentionLayer) -> Callable:
        def hook(module, args, kwargs, output):
            running.pop()
            found[layer] = _layer_call(layer, args, kwargs, dict(outputs[layer]), position_context)

        return hook

    def record_sdpa(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if running:
            outputs[running[-1]] |= {"sdpa q": q, "sdpa k": k}
        return q, k

    try:
        for layer in layers:
            handles.append(layer.attention.register_forward_pre_hook(before(layer), with_kwargs=True))
            modules = (*layer.rotated_modules, *layer.projections) if layer.rotate_at == "modules" else ()
            for name in {module.name for module in modules}:
                record_output(layer, name)
            handles.append(layer.attention.register_forward_hook(after(layer), with_kwargs=True))
        with InterceptSDPA(record_sdpa):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _layer_call(
    layer: AttentionLayer, args: tuple, kwargs: dict, outputs: dict[str, Tensor], position_context: PositionContext
) -> LayerCall | str:
    modules = layer.rotated_modules
    if layer.rotate_at == "multihead":
        given: tuple[Any, ...] = (*args, *(kwargs.get(name) for name in ("query", "key")[len(args) :]))
        query, key = given[:2]
        if key is not query:
            return "its queries and keys are of different tokens"
        batch, length = (1, len(query)) if query.ndim == 2 else (len(query), query.shape[1])
        if query.ndim == 3 and not layer.attention.batch_first:
            batch, length = length, batch
        lengths = {length}
    else:
        not_called = [module.name for module in modules if module.name not in outputs] or ["attention"] * (not modules)
        if not_called and "sdpa q" in outputs:
            q, k = outputs["sdpa q"], outputs["sdpa k"]
            heads = (layer.num_query_heads, layer.num_key_heads, layer.head_dim)
            found = (q.shape[1], k.shape[1], q.shape[-1]) if q.ndim == 4 else ()
            if not found or (heads != found and any(heads)):
                return f"its {not_called[0]} is not called, and its scores are of {tuple(q.shape)} queries"
            sizes = dict(zip(("num_query_heads", "num_key_heads", "head_dim"), found, strict=True))
            layer, outputs = replace(layer, rotate_at="sdpa", **sizes), {"q": q, "k": k}
            batch, lengths = len(q), {q.shape[2], k.shape[2]}
        elif not_called:
            return f"its {not_called[0]} is not called, but passed by"
        else:
            first = outputs[modules[0].name]
            batch = 1 if first.ndim == 2 else len(first)
            sizes = {
                outputs[m.name].numel() / (layer.head_dim * num_heads_of(layer, m.output) + m.feature_offset)
                for m in modules
            }
            lengths = {size / batch for size in sizes}
    if len(lengths) > 1:
        return "its queries and keys are of different tokens"
    known = position_context.from_arguments(kwargs) or position_context.latest_or_none()
    if known is None:
        return "no positions are known when it is called"
    (length,) = lengths
    if length != known.positions.shape[-2]:
        return f"it has {length:g} tokens, and positions are known of {known.positions.shape[-2]}"
    return LayerCall(layer, args, kwargs, outputs, known.positions)


def without_identity_norms(call: LayerCall) -> LayerCall | None:
    """Returns the call with the output of the projections rotated in place of that of the norms, if all are `nn.Identity`."""
    norms = [call.layer.attention.get_submodule(norm.name) for norm in call.layer.norms]
    called = all(module.name in call.outputs for module in call.layer.projections)
    is_identity = norms and all(isinstance(norm, nn.Identity) for norm in norms)
    if call.layer.rotate_at == "modules" and called and is_identity:
        return replace(call, layer=replace(call.layer, norms=()))
    return None


def num_heads_of(layer: AttentionLayer, output: str) -> int:
    """Returns the number of heads in the output of a module: of queries ("q"), of keys ("k"), or of all three ("qkv")."""
    heads = {"q": layer.num_query_heads, "k": layer.num_key_heads}
    return heads.get(output, layer.num_query_heads + 2 * layer.num_key_heads)
