"""Object detection: COCO data or composed scenes, a ViT with a feature pyramid under torchvision's heads, COCO's metric."""
