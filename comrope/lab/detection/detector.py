"""Faster and Mask R-CNN of torchvision's parts on a ViT. An image's detections do not depend on the others in its batch."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from comrope.lab.detection.pyramid import Pyramid, inside
from comrope.lab.detection.vit import DetectionViT, Size

_RATIOS = (0.5, 1.0, 2.0)


class Anchors(AnchorGenerator):
    """Anchors with an edge of 8 strides around each cell. Those of a padded cell are empty, by which `Proposals` knows them."""

    def __init__(self, strides: Sequence[int]):
        super().__init__(tuple((8 * stride,) for stride in strides), (_RATIOS,) * len(strides))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        device = feature_maps[0].device
        self.set_cell_anchors(feature_maps[0].dtype, device)
        maps: list[Any] = [tuple(m.shape[-2:]) for m in feature_maps]
        steps: list[Any] = [[torch.tensor(stride, device=device)] * 2 for stride in self.strides]
        everywhere = self.grid_anchors(maps, steps)
        found = []
        for size in image_list.image_sizes:
            own = []
            for map_size, stride, anchors in zip(maps, self.strides, everywhere, strict=True):
                is_inside = inside(map_size, stride, size, device).flatten().repeat_interleave(len(_RATIOS))
                own.append(anchors.where(is_inside[:, None], 0.0))
            found.append(torch.cat(own))
        return found


class Proposals(RegionProposalNetwork):
    """torchvision's proposal network, except that empty anchors are not trained on, and rank below all others as proposals."""

    def assign_targets_to_anchors(self, anchors, targets):
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        labels = [own.where(_widths(a) > 0, -1.0) for own, a in zip(labels, anchors, strict=True)]  # −1 means ignored
        return labels, boxes

    def filter_proposals(self, proposals, objectness, image_shapes, num_anchors_per_level):
        scores = objectness.view(proposals.shape[:2]).where(_widths(proposals) > 0, -torch.inf)
        return super().filter_proposals(proposals, scores, image_shapes, num_anchors_per_level)


def _widths(boxes: Tensor) -> Tensor:
    """Returns the widths of boxes (..., 4): 0 for an empty one."""
    return boxes[..., 2] - boxes[..., 0]


class Pool(MultiScaleRoIAlign):
    """torchvision's RoI pooling with given strides, which it would otherwise infer from sizes.

    A row and a column of zeros are appended to each map. So an image that fills its map is interpolated at its lower
    and right border like one that is padded.
    """

    def __init__(self, output_size: int, patch: int):
        super().__init__(["0", "1", "2", "3"], output_size, sampling_ratio=2)
        self.scales = [4 / patch, 2 / patch, 1 / patch, 1 / (2 * patch)]
        self.map_levels = initLevelMapper(2, 5, canonical_scale=round(224 * patch / 16), canonical_level=4)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[Size]) -> Tensor:
        padded = {name: F.pad(maps, (0, 1, 0, 1)) for name, maps in x.items()}
        return super().forward(padded, boxes, image_shapes)


class Backbone(nn.Module):
    """A ViT with a feature pyramid."""

    def __init__(self, vit: DetectionViT, channels: int):
        super().__init__()
        self.trunk = vit  # the name is in saved weights
        self.pyramid = Pyramid(vit.vit.embed_dim, channels, vit.patch)

    def forward(self, images: Tensor, sizes: Sequence[Size]) -> dict[str, Tensor]:
        return self.pyramid(self.trunk(images, sizes), sizes)


class Detector(GeneralizedRCNN):
    """Faster R-CNN, or with masks Mask R-CNN, on a plain ViT.

    Args:
        backbone: the ViT and its pyramid.
        num_classes: the number of classes, without the background.
        masks: whether masks are predicted too.
        edges: (short edges, long edge) in pixels. The shorter side is resized to one of the short edges, at random in
            training and to the last one in evaluation; the longer side to the long edge at most.
        normal: means and standard deviations of the three channels, whose values are in [0, 1].
        hidden: the width of the box head's layers.
        proposals: the largest number of proposals per image in evaluation; twice as many in training.
        sampled: the number of proposals per image in the loss, and twice the number of anchors.
    """

    backbone: Backbone

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        masks: bool,
        edges: tuple[tuple[int, ...], int],
        normal: tuple[Sequence[float], Sequence[float]],
        hidden: int = 1024,
        proposals: int = 1000,
        sampled: int = 512,
    ):
        patch, channels = backbone.trunk.patch, backbone.pyramid.channels
        top = {"training": 2 * proposals, "testing": proposals}
        thresholds = (0.7, 0.3, sampled // 2, 0.5)  # foreground, background, anchors an image, share of foreground
        head = RPNHead(channels, len(_RATIOS))
        rpn = Proposals(Anchors(backbone.pyramid.strides), head, *thresholds, top, top, nms_thresh=0.7)
        classes = num_classes + 1
        mask_parts: dict[str, Any] = {}
        if masks:
            mask_parts = {
                "mask_roi_pool": Pool(14, patch),
                "mask_head": MaskRCNNHeads(channels, (channels,) * 4, 1),
                "mask_predictor": MaskRCNNPredictor(channels, channels, classes),
            }
        box_head = TwoMLPHead(channels * 7**2, hidden)
        settings = (0.5, 0.5, sampled, 0.25, None, 0.05, 0.5, 100)  # torchvision's own but for `sampled`
        roi = RoIHeads(Pool(7, patch), box_head, FastRCNNPredictor(hidden, classes), *settings, **mask_parts)
        super().__init__(backbone, rpn, roi, _resizing(edges, normal, patch))
        self._normal = normal

    def forward(self, images, targets=None, edges: tuple[int, int] | None = None):  # pyright: ignore
        """Returns losses by name in training, else each image's boxes (n, 4), labels (n,), scores (n,), masks (n, 1, h, w).

        Args:
            images: each (3, height, width) in [0, 1].
            targets: the targets that `CocoSet.target` returns, in training.
            edges: (short edge, long edge) to resize to, in place of the model's own.
        """
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        transform: Any = self.transform
        if edges is not None:
            transform = _resizing(((edges[0],), edges[1]), self._normal, self.backbone.trunk.patch)
            transform.train(self.training)
        found, targets = transform(images, targets)
        features = self.backbone(found.tensors, found.image_sizes)
        proposals, proposal_losses = self.rpn(found, features, targets)
        detections, losses = self.roi_heads(features, proposals, found.image_sizes, targets)
        if self.training:
            return losses | proposal_losses
        return transform.postprocess(detections, found.image_sizes, sizes)

    def no_weight_decay(self) -> set[str]:
        """Returns the names of the ViT's parameters without weight decay."""
        return {f"backbone.trunk.vit.{name}" for name in self.backbone.trunk.vit.no_weight_decay()}


def _resizing(edges, normal, patch: int) -> GeneralizedRCNNTransform:
    """Returns torchvision's transform that normalises, resizes and pads images."""
    means, deviations = (list(values) for values in normal)
    shorter: Any = edges[0]
    return GeneralizedRCNNTransform(shorter, edges[1], means, deviations, size_divisible=2 * patch)
