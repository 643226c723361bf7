"""The label, description and line style of each encoding, the same in every table, figure and page."""

from dataclasses import dataclass

from comrope.encodings import registration


@dataclass(frozen=True)
class Style:
    """Label, description and line style of an encoding, as plain strings, so that nothing here needs matplotlib."""

    label: str
    """The name in tables and figures."""
    about: str = "no description"
    """One line for readers who do not know the encoding."""
    colour: str = "#4d4d4d"
    marker: str = "o"
    """Marker and line are matplotlib's."""
    line: str = "-"
    width: float = 1.2
    """Width of the line in points."""
    no_planes: str = "it gave no frequencies"
    """The reason why there is no spectrum to draw, if there is none."""

    @property
    def ours(self) -> bool:
        """Whether it is drawn thick and named in bold, as the ComRoPE family is."""
        return self.width > 2


STYLES = {
    "none": Style(
        "No encoding",
        "no positions at all: the model sees a bag of patches and cannot know where any of them was",
        "#8c8c8c", ".", ":", no_planes="it rotates nothing",
    ),
    "ape": Style(
        "APE",
        "absolute position encoding: a learned vector for each place is added to the token, sampled in between",
        "#6b4c2a", "x", "--", no_planes="it adds a vector to the tokens",
    ),
    "rope": Style(
        "RoPE",
        "rotary encoding: each pair of channels is rotated by row or column times a fixed frequency",
        "#56b4e9", "v", no_planes="its frequencies are fixed",
    ),
    "rope-mixed": Style(
        "RoPE-Mixed", "RoPE with learned frequencies for both axes in every pair of channels", "#e69f00", "^"
    ),
    "string": Style("STRING", "Cayley-STRING: the same in a learned basis, common to a whole head", "#cc79a7", "p"),
    "liere": Style(
        "LieRE",
        "learned rotations, one free matrix an axis, which do not commute",
        "#000000", "X", "--", no_planes="its matrices do not commute, so no planes are common to both axes",
    ),
    "comrope-ap": Style(
        "ComRoPE-AP", "axial partition: learned rotations, each block serving one axis", "#0072b2", "o", width=2.4
    ),
    "comrope-ld": Style(
        "ComRoPE-LD",
        "linearly dependent: learned rotations, all axes of a block sharing one matrix, scaled",
        "#d55e00", "s", width=2.4,
    ),
    "comrope-mt": Style(
        "ComRoPE-MT", "maximal torus: a free basis and free frequencies, every family that commutes", "#009e73", "D",
        width=2.4,
    ),
}  # fmt: skip
"""By the name in `comrope.encodings.ENCODINGS`. Colours are Okabe and Ito's, which colour-blind readers can tell apart; markers
differ too. Lines of encodings that do not commute or do not rotate are dashed or dotted."""


FURTHER_COLOURS = ("#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499")
FURTHER_MARKERS = "<>P*hHd18"
"""For encodings that are registered, after Paul Tol's muted colours, by the letters of their names."""


def style(encoding: str) -> Style:
    """Returns the style of an encoding. Registered ones are thin; an unknown name is its own label, in grey."""
    if encoding in STYLES:
        return STYLES[encoding]
    found = registration(encoding) if encoding else None
    if found is None:
        return Style(encoding)
    row, column = divmod(sum(encoding.encode()), len(FURTHER_COLOURS))
    return Style(found.label, found.about, FURTHER_COLOURS[column], FURTHER_MARKERS[row % len(FURTHER_MARKERS)], "-.")


def label(encoding: str) -> str:
    """Returns the label of an encoding."""
    return style(encoding).label
