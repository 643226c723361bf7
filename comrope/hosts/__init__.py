"""Encodings in models that people already have: attach, detach, fold.

What is particular to a library is in a module of its name, imported once the library is: a model of it cannot exist before.
"""

from typing import Any

from torch import Tensor, nn

from comrope._values import is_number
from comrope.encodings import Encoding
from comrope.encodings.ape import AbsoluteEncoding
from comrope.errors import ConfigurationError
from comrope.hosts._attach import attach as attach
from comrope.hosts._description import forget
from comrope.hosts._surgery import Attachment as Attachment
from comrope.hosts.fold import fold as fold


def detach(model: nn.Module) -> nn.Module:
    """Undoes `attach`: classes, attributes, names and outputs are those of before; what was trained stays trained.

    Raises:
        ConfigurationError: nothing is attached, or it has been folded into the weights.
    """
    attachment = Attachment.of(model)
    if attachment.folded:
        raise ConfigurationError(
            f"The encoding of this {type(model).__name__} is folded into its weights and cannot be taken out: detach before "
            "folding, or detach a copy."
        )
    attachment.undo()
    forget(model)
    del model._comrope
    return model


def export_timm(model: nn.Module) -> nn.Module:
    """A stock timm model with the weights and positions of an attached one, folded; the attached one stays as it is.

    The result is made by `timm.create_model`, in the dtype of the attached one, frequencies in float32 where that is coarser.
    It has the same logits, to that rounding, at the model's own image size. Save it with
    `timm.models.save_for_hf(exported, folder, safe_serialization=True)`, load it with
    `timm.create_model(f"local-dir:{folder}", pretrained=True)`. Its positions are patch indices: at another image size they go
    on counting, where relative positions would be rescaled. Dropout and stochastic depth are not carried over.

    Args:
        model: a `VisionTransformer` of timm with an encoding, or an `Eva` made by `timm.create_model` with one.
    Raises:
        NoSpectrumError, ConfigurationError: what cannot be folded; what an Eva cannot express. An Eva leaves class and register
            tokens unrotated and counts patches from 0, so that these tokens sit at the first patch: a model with such tokens
            must have been attached with prefix="first", or have a RoPE with index positions itself.
    """
    from comrope.hosts.timm_export import to_eva

    return to_eva(model)


def angle_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that belong to encodings, by their name in the model."""
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"model: got {type(model).__name__}, expected a torch module.")
    owners = [(n, m) for n, m in model.named_modules() if isinstance(m, (Encoding, AbsoluteEncoding))]
    return {f"{n}.{p}" if n else p: parameter for n, m in owners for p, parameter in m.named_parameters()}


def param_groups(
    model: nn.Module, *, lr: float | None = None, weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """Groups for an optimizer of torch: weights, then what does not decay, then angles.

    Args:
        model: any model with encodings in it.
        lr: learning rate of the angles; the optimizer's if None.
        weight_decay: of the weights; the optimizer's if None. Biases, norms, angles and what the model's own
            `no_weight_decay()` names have none: decay would pull angles towards no positions at all.
    Returns:
        One to three groups, of the parameters that require a gradient. `torch.optim.AdamW(param_groups(model, lr=1e-2), 1e-3)`.
    Raises:
        ConfigurationError: no model, or a number that is none: an optimizer asks nothing of those of a group.
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
