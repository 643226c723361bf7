"""The problems of the laboratory, by name. A new problem needs a folder beside `images`, and a line here."""

from comrope.lab.detection.config import DetectionConfig
from comrope.lab.experiment import ExperimentConfig
from comrope.lab.images.config import ImageConfig
from comrope.lab.text.config import TextConfig
from comrope.lab.video.config import VideoConfig

KINDS: dict[str, type[ExperimentConfig]] = {
    config.kind: config for config in (ImageConfig, VideoConfig, DetectionConfig, TextConfig)
}
