"""Language models on bytes: other lengths than the one trained on, and very long ones."""
