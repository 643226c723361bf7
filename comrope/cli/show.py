"""The command `show`: a page on what the rotary encodings of a model do. What the model is, is found out from its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from comrope.errors import ConfigurationError, DataError
from comrope.lab.experiment import ENCODING_SETTINGS

SIZES = ("num_heads", "head_dim", "axes")


@dataclass(frozen=True)
class Show:
    """Write a page on which to look into what a model's rotary encodings do: kernels, spectra, commutators, drift, attention.

    It is one HTML file that works offline in any browser.
    """

    model: tyro.conf.Positional[str]
    """Folder that comrope.save wrote, folder of a run, or the name of an encoding."""
    against: str | None = None
    """Another one, to compare: of the same kinds."""
    out: Path = Path("show.html")
    """The file to write."""
    image: Path | None = None
    """Image file on which to show the attention of a token."""
    sample: int | None = None
    """Number of a test image of the run, from 0 on, in place of an image file."""
    grid: tuple[int, ...] = ()
    """Patches along each axis: for an encoding of two axes or more, and to look at another image size than the model's own.
    An encoding that is shown against a model has the model's."""
    data: str | None = None
    """Where the data of a run are now, if they were moved."""
    num_heads: int | None = None
    """Of an encoding: its heads."""
    head_dim: int | None = None
    """Of an encoding: the features of a head."""
    axes: int | None = None
    """Of an encoding: the axes of its positions, 1 for text, 2 for images, 3 for video."""
    block_size: int | None = None
    """Of an encoding: the size of its blocks."""
    init: str | None = None
    """Of an encoding: how its angles start, "normal", "identity" or "rope"."""
    std: float | None = None
    """Of an encoding with init "normal": the standard deviation of its angles."""
    max_frequency: float | None = None
    """Of "rope", or an encoding with init "rope": the fastest frequency, in radians per unit of position."""
    base: float | None = None
    """Of the same: the ratio of the fastest to the slowest frequencies."""
    directions: str | None = None
    """Of the same: "axes" or "spread"."""
    seed: int = 0
    """Of an encoding: the seed of its angles."""

    def run(self) -> None:
        from comrope.explorer import page
        from comrope.explorer.exploration import explore

        page.check_path(self.out)
        names = [self.model] if self.against is None else [self.model, self.against]
        kinds = [_kind(name) for name in names]
        self._refuse_unused(kinds)
        found = []
        for name, kind in zip(names, kinds, strict=True):
            model, grid, image = getattr(self, f"_{kind}")(name)
            if kind == "encoding" and found and self.axes == len(found[0]["grid"]):
                grid = found[0]["grid"]
            found.append(explore(model, name=name, grid=self.grid or grid, image=image))
        page.write(page.render(found), self.out)
        print(f"wrote {self.out}")

    def _refuse_unused(self, kinds: list[str]) -> None:
        """Raises ConfigurationError for an option that nothing given has a use for."""
        of_kind = {"encoding": (*SIZES, *ENCODING_SETTINGS), "run": ("sample", "data")}
        for kind, options in of_kind.items():
            given = [option for option in options if getattr(self, option) is not None]
            if given and kind not in kinds:
                option = f"--{given[0].replace('_', '-')}"
                raise ConfigurationError(
                    f"{option} is for {'an' if kind == 'encoding' else 'a'} {kind}, and none is given: leave it out."
                )
        if self.image is not None and self.sample is not None:
            raise ConfigurationError("--image and --sample are given: leave one out.")
        if self.image is not None and not self.image.is_file():
            raise DataError(f"--image {self.image}: there is no file of that name.")

    def _encoding(self, name: str) -> tuple[Any, Any, Any]:
        import torch

        import comrope

        missing = [f"--{size.replace('_', '-')}" for size in SIZES if getattr(self, size) is None]
        if missing:
            raise ConfigurationError(f"{name} is the name of an encoding, which needs {', '.join(missing)} as well.")
        settings = {setting: value for setting in ENCODING_SETTINGS if (value := getattr(self, setting)) is not None}
        extra = {"grid": (1,) * (self.axes or 1)} if name == "ape" else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            made = comrope.encoding(
                name, num_heads=self.num_heads, head_dim=self.head_dim, num_axes=self.axes, **extra, **settings
            )
        return made, None, self.image

    def _saved(self, name: str) -> tuple[Any, Any, Any]:
        import comrope

        return comrope.load(name), None, self.image

    def _run(self, name: str) -> tuple[Any, Any, Any]:
        from comrope.lab import explored

        return explored.of_run(Path(name), where=self.data, image=self.image, sample=self.sample)


def _kind(name: str) -> str:
    """Returns what is of that name: "run", "saved" or "encoding"."""
    from comrope.encodings import kind_of

    folder = Path(name)
    if (folder / "run.json").is_file():
        return "run"
    if folder.is_dir():
        return "saved"
    if folder.exists() or "/" in name:
        what = "a file" if folder.exists() else "not there"
        raise DataError(f"{name} is {what}: expected a folder of comrope.save or of a run, or the name of an encoding.")
    try:
        kind_of(name)
    except ConfigurationError as error:
        raise ConfigurationError(f"{name} is no folder, and {error}") from error
    return "encoding"
