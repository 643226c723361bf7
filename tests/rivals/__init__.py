"""Encodings of others: comrope/rivals."""
