"""Image classification: configuration, images in memory and in files, the models, training and evaluation."""
