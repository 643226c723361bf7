"""The laboratory: the paper's experiments on real models and real data. Needs the extra `lab`."""
