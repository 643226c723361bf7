"""Image classification: images in memory and in files, the models, and what decides a run."""
