"""Code that the data of several problems share: files with labels, image files, batches."""
