"""What the data of several problems have in common: files with labels, image files, batches."""
