"""Object detection: COCO data or generated scenes, a ViT with a feature pyramid under torchvision's heads, COCO's metric."""
