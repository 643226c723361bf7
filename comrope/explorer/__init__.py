"""`comrope.show`: one self-contained HTML page on which to look into what a model's rotary encodings do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from comrope.errors import ConfigurationError


def show(
    model: nn.Module,
    path: Path | str = "show.html",
    *,
    against: nn.Module | None = None,
    grid: Sequence[int] | int | None = None,
    image: Any = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Writes a page about the rotary encodings of a model. Open it in any browser; it works offline.

    For each layer and head it shows the positional kernel κ(Δ) = Σ_p Re(c_p e^{i w_pᵀΔ}) over displacements Δ in patches, the
    planes' frequencies w in radians per patch, commutators, drift under an offset, and reach. docs/show.md explains it.

    Args:
        model: a model with an encoding attached or folded, or an encoding alone.
        path: the file to write. It replaces an earlier one when it is complete.
        against: another model or encoding, which is shown beside the first.
        grid: patches along each axis. Necessary for an encoding alone with two axes or more, and for models of your own;
            other models know the grid of their image size. With one axis, the number of tokens.
        image: an image file, or a tensor (C, height, width) as the model takes it, whose attention to show.
        names: what to call the model, and the other if there is one.
    Returns:
        The path of the page.
    Raises:
        ConfigurationError: there is no rotary encoding; the grid is missing or does not fit; the model does not tell its
            queries and keys; the names are not as many as the models.
        DataError: the image cannot be read, or the file cannot be written.

    >>> import comrope, pathlib, tempfile
    >>> pe = comrope.encoding("comrope-ld", num_heads=2, head_dim=16, num_axes=2)
    >>> page = comrope.show(pe, pathlib.Path(tempfile.mkdtemp(), "show.html"), grid=(14, 14))
    >>> "Positional kernel" in page.read_text(encoding="utf-8")
    True
    """
    from comrope.explorer import page
    from comrope.explorer.exploration import explore

    models = [model] if against is None else [model, against]
    if names is not None and (isinstance(names, str) or len(names) != len(models)):
        raise ConfigurationError(f"names={names!r}: expected {len(models)}, one for each model.")
    path = page.check_path(path)
    called = names or [None] * len(models)
    found = [explore(m, name=n, grid=grid, image=image) for m, n in zip(models, called, strict=True)]
    return page.write(page.render(found), path)
