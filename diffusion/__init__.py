"""x0 <-> noise: processes, samplers, the denoiser and its training. Knows nothing of texts, files or metrics."""
