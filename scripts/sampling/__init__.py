"""Texts from a built system, and the files that keep them."""
