"""Text <-> x0: corpora and codecs. Knows nothing of diffusion."""
