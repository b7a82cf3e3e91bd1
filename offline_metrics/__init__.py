"""Texts in, numbers out: every metric runs from files on disk and knows nothing of the models that wrote the texts."""
