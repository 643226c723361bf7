"""Tests that hold for every encoding of a kind, for encodings of one's own: `from comrope.testing import laws`."""

from comrope.testing import laws as laws
