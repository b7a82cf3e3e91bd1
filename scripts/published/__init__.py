"""Weights and settings that others published, as those of this project."""
