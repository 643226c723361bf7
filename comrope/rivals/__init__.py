"""Rotary encodings of others, in the terms of this library. Importing this package registers all of them."""
