"""Language models on bytes: training, evaluation at other lengths than trained at, and very long sequences."""
