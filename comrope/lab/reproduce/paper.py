"""The paper's own numbers (CVPR 2025, arXiv 2506.03737), of one run each. It gives none for its figures 3 and 5 to 8."""

from collections.abc import Callable

SIZE = 224
"""Edge of the training images in pixels."""
SIZES = (112, 128, 192, 224, 256, 320, 384, 448, 512)
WHERE = "ImageNet-1K, ViT-B/16"


def _by_size(*accuracies: float, sizes: tuple[int, ...] = SIZES) -> dict[int, float]:
    return dict(zip(sizes, accuracies, strict=True))


TABLE1 = {
    ("ape", 1.0): _by_size(30.04, 38.69, 56.4, 58.76, 60.02, 59.27, 57.04, 54.10, 50.99),
    ("ape", 0.0): _by_size(19.71, 33.43, 55.97, 58.62, 55.31, 52.63, 49.68, 46.39, 42.66),
    ("rope", 1.0): _by_size(36.94, 45.48, 60.72, 63.09, 63.24, 62.12, 59.24, 55.51, 51.11),
    ("rope", 0.0): _by_size(36.41, 44.48, 59.97, 62.03, 62.54, 61.36, 58.56, 54.79, 50.58),
    ("liere", 1.0): _by_size(38.03, 46.97, 62.22, 64.36, 64.99, 63.78, 61.15, 57.92, 53.74),
    ("liere", 0.0): _by_size(38.22, 46.85, 62.01, 64.07, 64.54, 63.46, 60.74, 56.89, 52.51),
    ("comrope-ap", 1.0): _by_size(35.75, 46.18, 62.82, 65.32, 65.83, 64.78, 61.88, 58.21, 54.02),
    ("comrope-ap", 0.0): _by_size(37.17, 46.95, 62.63, 64.76, 65.11, 64.35, 61.62, 58.10, 53.81),
    ("comrope-ld", 1.0): _by_size(38.30, 47.28, 63.53, 65.49, 65.95, 65.27, 62.62, 59.11, 55.29),
    ("comrope-ld", 0.0): _by_size(36.88, 46.54, 62.89, 65.27, 65.66, 64.27, 61.83, 57.87, 53.64),
}
"""Top-1 % by (encoding, σ) and edge of the test images in pixels."""

TABLE2 = {
    "ape": (44.0, 66.6, 47.7, 28.2, 46.8, 58.4),
    "liere": (44.5, 67.3, 48.4, 29.0, 46.9, 58.7),
    "comrope-ld": (44.7, 67.6, 48.5, 29.2, 47.1, 60.0),
}
"""AP, AP50, AP75, APs, APm, APl on COCO in per cent."""

FIG4_SAVED = 29
"""The iterations, in per cent, that ComRoPE-LD saves to reach APE's final metric."""

_TABLE3 = (
    ("ape", 1.0, 48.10, 55.25, 76.50, 93.10, 76.70, 71.48, 74.36, 62.23, 53.18),
    ("ape", 0.0, 45.54, 55.18, 76.48, 92.87, 75.91, 70.70, 73.70, 60.43, 48.79),
    ("rope", 1.0, 47.28, 54.96, 75.69, 93.79, 77.66, 72.53, 74.72, 65.19, 57.34),
    ("rope", 0.0, 48.12, 55.21, 76.47, 94.12, 76.72, 71.59, 74.47, 62.28, 53.99),
    ("liere", 1.0, 48.97, 56.15, 77.33, 94.43, 78.35, 73.20, 77.33, 65.74, 58.23),
    ("liere", 0.0, 48.75, 55.46, 78.16, 94.24, 78.91, 72.92, 76.86, 65.35, 56.85),
    ("comrope-ap", 1.0, 50.14, 55.63, 77.47, 94.37, 79.27, 73.56, 76.66, 67.68, 59.34),
    ("comrope-ap", 0.0, 48.06, 55.63, 75.72, 94.26, 75.75, 70.93, 74.72, 64.91, 57.98),
    ("comrope-ld", 1.0, 49.89, 56.60, 79.21, 94.24, 80.27, 74.22, 78.60, 67.46, 60.39),
    ("comrope-ld", 0.0, 48.70, 56.46, 78.30, 94.48, 79.27, 74.58, 76.86, 66.02, 57.68),
)
TABLE3 = {(name, sigma): _by_size(*reached) for name, sigma, *reached in _TABLE3}
"""The paper's top-1 % by (encoding, σ) and edge of the test clips in pixels; one run each."""

TABLE4 = {"ape": 79.91, "rope": 79.82, "liere": 80.12, "comrope-ap": 80.11, "comrope-ld": 80.17}
"""Top-1 % after fine-tuning CLIP's ViT on ImageNet-1K."""

TABLE7: dict[str, tuple[str, Callable[[int, int, int, int, int], float]]] = {
    "ape": ("nd", lambda layers, width, tokens, axes, block: tokens * width),
    "rope": ("0", lambda layers, width, tokens, axes, block: 0),
    "liere": ("L·N·d·b", lambda layers, width, tokens, axes, block: layers * axes * width * block),
    "comrope-ap": ("L·d·b", lambda layers, width, tokens, axes, block: layers * width * block),
    "comrope-ld": ("L·d(b + N/b)", lambda layers, width, tokens, axes, block: layers * width * (block + axes / block)),
}
"""Extra parameters: the formula as printed, and as a function of L, d, n, N, b."""

TABLE8 = {
    ("liere", 2): 0.326,
    ("liere", 4): 0.246,
    ("liere", 8): 0.195,
    ("comrope-ap", 2): 0.271,
    ("comrope-ap", 4): 0.208,
    ("comrope-ap", 8): 0.171,
    ("comrope-ld", 2): 0.384,
    ("comrope-ld", 4): 0.278,
    ("comrope-ld", 8): 0.238,
}
"""Standard deviation of the trained angle matrices' elements above the diagonal, by (encoding, block size)."""

TABLE9 = {
    ("rope", None): (16, 32),
    ("liere", 8): (21, 36),
    ("comrope-ld", 4): (19, 35),
    ("comrope-ap", 4): (19, 34),  # this column is not labelled in our copy of the paper
    ("comrope-ld", 8): (20, 35),
    ("comrope-ap", 8): (20, 35),
}
"""(minutes of a training epoch, seconds of an evaluation), by (encoding, block size)."""

TABLE10 = {
    "rope-mixed": _by_size(68.99, 79.75, 81.42, 82.31, 82.75, 82.11, 80.61, 78.39, sizes=SIZES[1:]),
    "comrope-ap": _by_size(68.48, 80.94, 82.01, 82.59, 82.43, 81.65, 80.58, 79.75, sizes=SIZES[1:]),
    "comrope-ld": _by_size(69.88, 79.91, 81.78, 83.24, 83.36, 82.32, 80.79, 78.97, sizes=SIZES[1:]),
}
"""Top-1 % with DeiT's recipe, by edge of the test images."""
