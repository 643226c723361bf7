"""The laboratory: the paper's experiments on real models and real data. Needs `pip install comrope[lab]`."""
