"""Encodings in existing models: attach, detach, fold, rescale, export.

What is specific to a library is in the module of its name, which is imported only if the library is.
"""

from typing import Any

from torch import Tensor, nn

from comrope._values import is_number
from comrope.encodings import Encoding
from comrope.encodings.ape import AbsoluteEncoding
from comrope.errors import ConfigurationError
from comrope.hosts._attach import attach as attach
from comrope.hosts._attachment import Attachment as Attachment
from comrope.hosts._attachment import Model
from comrope.hosts._saved_settings import remove_from_config
from comrope.hosts.fold import fold as fold
from comrope.hosts.rescale import rescale as rescale


def detach(model: Model) -> Model:
    """Undoes `attach`: classes, attributes, names and outputs are as before. Weights trained since keep their values.

    Args:
        model: one that `attach` has returned, also if it has been trained.
    Returns:
        The model.
    Raises:
        ConfigurationError: nothing is attached, or it has been folded into the weights.
    Examples:
        >>> import timm, comrope
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=1)
        >>> names = set(model.state_dict())
        >>> set(comrope.detach(comrope.attach(model, "rope-mixed")).state_dict()) == names
        True
    """
    attachment = Attachment.of(model)
    if attachment.folded:
        raise ConfigurationError(
            f"The encoding of this {type(model).__name__} is folded into its weights and cannot be taken out: detach before "
            "folding, or detach a copy."
        )
    attachment.undo()
    remove_from_config(model)
    del model._comrope
    return model


def export_timm(model: nn.Module) -> nn.Module:
    """Returns a stock timm model with the weights and the folded encoding of an attached one, which is not changed.

    It is made by `timm.create_model`, in the dtype of the attached model; frequencies are float32 if that dtype is
    coarser. Its logits are the same, to that rounding, at the model's own image size. Save it with
    `timm.models.save_for_hf(exported, folder, safe_serialization=True)`, load it with
    `timm.create_model(f"local-dir:{folder}", pretrained=True)`. Its positions are patch indices: at another image size
    they continue, where relative positions would be rescaled. A model that `rescale` has changed is exported for the size
    that it is rescaled for. Dropout and stochastic depth are not copied.

    Args:
        model: a timm `VisionTransformer` with an encoding, or an `Eva` made by `timm.create_model` with one.
    Raises:
        NoSpectrumError: the encoding cannot be folded.
        ConfigurationError: the encoding cannot be folded, timm is too old (1.0.31 is not), or the model cannot be expressed
            as an Eva. An Eva does not rotate class and register tokens and counts patches from 0, which places these
            tokens at the first patch: a model with such tokens must have been attached with prefix="first", or have a
            RoPE with index positions itself.
    Examples:
        >>> import timm, comrope
        >>> model = timm.create_model("vit_tiny_patch16_224", depth=1)
        >>> stock = comrope.export_timm(comrope.attach(model, "comrope-ld", prefix="first"))
        >>> type(stock).__module__
        'timm.models.eva'
    """
    from comrope.hosts.timm_export import to_eva

    return to_eva(model)


def angle_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the parameters of all encodings, by their name in the model."""
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"model: got {type(model).__name__}, expected a torch module.")
    owners = [(n, m) for n, m in model.named_modules() if isinstance(m, (Encoding, AbsoluteEncoding))]
    return {f"{n}.{p}" if n else p: parameter for n, m in owners for p, parameter in m.named_parameters()}


def param_groups(
    model: nn.Module, *, lr: float | None = None, weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """Returns parameter groups for an optimizer of torch: weights, then parameters without weight decay, then angles.

    Args:
        model: any model with encodings in it.
        lr: learning rate of the angles; the optimizer's if None.
        weight_decay: weight decay of the weights; the optimizer's if None. Biases, norms, angles, and those that the
            model's own `no_weight_decay()` names have none: it would pull angles towards no position information.
    Returns:
        One to three groups with the parameters that require a gradient, as in `torch.optim.AdamW(param_groups(model,
        lr=1e-2), 1e-3)`.
    Raises:
        ConfigurationError: not a module, or not a valid number; an optimizer does not check the numbers of a group.
    Examples:
        >>> import comrope
        >>> pe = comrope.encoding("comrope-ld", num_heads=2, head_dim=16, num_axes=2)
        >>> [(group["lr"], group["weight_decay"]) for group in comrope.param_groups(pe, lr=1e-2)]
        [(0.01, 0.0)]
    """
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if value is not None and not is_number(value):
            raise ConfigurationError(
                f"{name}={value!r}: expected a finite number, 0 or more, or None for the optimizer's."
            )
    angles = set(angle_parameters(model))
    exempt = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()  # pyright: ignore
    groups: dict[str, list[Tensor]] = {"weights": [], "no decay": [], "angles": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name in exempt
            groups["angles" if name in angles else "no decay" if plain else "weights"].append(parameter)
    options: dict[str, dict[str, Any]] = {
        "weights": {} if weight_decay is None else {"weight_decay": weight_decay},
        "no decay": {"weight_decay": 0.0},
        "angles": {"weight_decay": 0.0} | ({} if lr is None else {"lr": lr}),
    }
    return [{"params": params, **options[kind]} for kind, params in groups.items() if params]
