"""What `attach` changes in a model, and how it is undone: every change is recorded before it is made.

An attention layer gets the encoding as one more submodule, and hooks that rotate queries and keys. Classes, weights and
their names stay as they are, so that PEFT, FSDP, `isinstance` and the model's own code go on working.
"""

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from comrope.errors import ConfigurationError
from comrope.hosts._attached_layer import AttachedLayer
from comrope.hosts._backbone import Backbone, ModuleHook, ModuleOverride

Model = TypeVar("Model", bound=nn.Module)
"""A model that is changed in place and returned, for type checkers as of the class that it is."""


class _Missing:
    """Stands for an attribute that did not exist."""


def _own_attribute(module: nn.Module, name: str) -> Any:
    """Returns an attribute of the module itself, not of its class; `_Missing` if there is none."""
    stores = (vars(module), module._modules, module._parameters, module._buffers)
    return next((store[name] for store in stores if name in store), _Missing)


@dataclass
class ModuleBackup:
    """The class and attributes that a module had before an override."""

    module: nn.Module
    original_class: type[nn.Module]
    attributes: dict[str, Any] = field(default_factory=dict)

    def restore(self) -> None:
        self.module.__class__ = self.original_class
        for name, value in self.attributes.items():
            if value is not _Missing:
                setattr(self.module, name, value)
            elif _own_attribute(self.module, name) is not _Missing:
                delattr(self.module, name)

    def follow(self, weight: Tensor, before: tuple[torch.device, torch.dtype]) -> None:
        """Gives what was removed the training mode of the model and, if it has changed, the device and dtype of `weight`."""
        moved = (weight.device, weight.dtype) != before
        for value in self.attributes.values():
            if isinstance(value, nn.Module):
                value.train(self.module.training)
            if isinstance(value, (nn.Module, nn.Parameter)) and moved:
                (value if isinstance(value, nn.Module) else nn.ParameterList([value])).to(weight.device, weight.dtype)


@dataclass
class AttachedBackbone:
    """A backbone with encodings: what changes in it, and the backups to undo that."""

    backbone: Backbone
    """With only those layers that get an encoding."""
    hooks: list[ModuleHook]
    layers: list[AttachedLayer]
    overrides: list[ModuleOverride]
    backups: list[ModuleBackup] = field(default_factory=list)
    handles: list[Any] = field(default_factory=list)
    device_and_dtype: tuple[torch.device, torch.dtype] = field(init=False)
    """Of the weights when the changes were made."""

    def apply(self) -> None:
        """Makes the changes. If one fails, those made so far can be undone by `undo`."""
        self.device_and_dtype = self._weight.device, self._weight.dtype
        for override in self.overrides:
            backup = ModuleBackup(override.module, type(override.module))
            self.backups.append(backup)
            for name, value in override.attributes.items():
                backup.attributes[name] = _own_attribute(override.module, name)
                setattr(override.module, name, value)
            if override.new_class is not None:
                override.module.__class__ = override.new_class
        self.handles += [hook.register() for hook in self.hooks]
        self.backbone.position_context.layers = [layer.attention for layer in self.layers]
        for layer in self.layers:
            layer.install()

    def replace_overrides(self, overrides: list[ModuleOverride]) -> None:
        """Undoes all changes, and makes them again with other overrides."""
        self.undo()
        self.overrides = overrides
        self.apply()

    def undo(self) -> None:
        """Undoes all changes, the last one first."""
        self.backbone.position_context.layers = []
        for layer in self.layers:
            layer.uninstall()
        while self.handles:
            self.handles.pop().remove()
        while self.backups:
            backup = self.backups.pop()
            backup.follow(self._weight, self.device_and_dtype)
            backup.restore()
        self.backbone.refresh_rope()

    @property
    def _weight(self) -> Tensor:
        return self.backbone.layers[0].weight


@dataclass
class Attachment:
    """What `attach` did to a model, stored as `model._comrope`: enough to undo it, and to do the same to another model."""

    settings: dict[str, Any]
    """The arguments of `attach`, in types that JSON has."""
    backbones: list[AttachedBackbone]
    folded: bool = False

    @staticmethod
    def of(model: nn.Module) -> "Attachment":
        """Returns the attachment of a model; ConfigurationError if nothing is attached."""
        if not isinstance(model, nn.Module):
            raise ConfigurationError(f"model: got {type(model).__name__}, expected a torch module.")
        attachment = model.__dict__.get("_comrope")
        if isinstance(attachment, Attachment):
            return attachment
        inside = [name for name, module in model.named_modules() if "_comrope" in module.__dict__]
        hint = f": its part {inside[0]!r} has, pass that" if inside else ": comrope.attach one first"
        raise ConfigurationError(f"{type(model).__name__} has no encoding attached{hint}.")

    def apply(self) -> None:
        """Makes all changes or, if one fails, none."""
        try:
            for attached in self.backbones:
                attached.apply()
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        for attached in reversed(self.backbones):
            attached.undo()
