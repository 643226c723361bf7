"""The part of a run's result that describes the trained model."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

import comrope
from comrope.encodings import Encoding, LearnedEncoding, SpectralEncoding
from comrope.hosts import angle_parameters


def summary(model: nn.Module) -> dict[str, Any]:
    """Returns a model's numbers of parameters, what `comrope.check` finds, its frequencies and its angles' distribution."""
    encodings = [module for module in model.modules() if isinstance(module, Encoding)]
    learned = [pe for pe in encodings if isinstance(pe, SpectralEncoding) and isinstance(pe, LearnedEncoding)]
    own = angle_parameters(model)
    return {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_encoding_parameters": sum(p.numel() for p in own.values()),
        "check": [{**asdict(c), "holds": c.holds} for c in comrope.check(model) if c.applies] if encodings else [],
        "frequencies": [_rounded(pe.spectrum().frequencies) for pe in learned] or None,
        "elements": _elements(encodings),
    }


def _rounded(values: torch.Tensor) -> Any:
    """Returns nested lists of numbers with six digits."""
    return np.vectorize(lambda x: float(f"{x:.6g}"))(values.detach().cpu().double().numpy()).tolist()


def _elements(encodings: Sequence[Encoding], bins: int = 121) -> dict[str, Any] | None:
    """Returns standard deviation and histogram of the angles above the diagonal, without AP's fixed zeros (Table 8)."""
    learned = [pe for pe in encodings if isinstance(pe, LearnedEncoding)]
    if not learned:
        return None
    matrices = [pe.angle_matrices().detach().cpu().double() for pe in learned]
    above = torch.cat([m[..., *torch.triu_indices(*m.shape[-2:], offset=1)].flatten() for m in matrices])
    above = above[above != 0]
    if not len(above):
        return None
    bound = above.abs().max().item()
    counts = torch.histc(above, bins, -bound, bound)
    return {"std": above.std(correction=0).item(), "bound": bound, "counts": [int(n) for n in counts]}
