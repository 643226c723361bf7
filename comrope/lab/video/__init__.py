"""Video classification (paper, Table 3): clips from files, the model, training and evaluation."""
