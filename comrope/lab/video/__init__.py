"""Video classification (paper, Table 3): clips from files, the model of frames and patches, and what decides a run."""
