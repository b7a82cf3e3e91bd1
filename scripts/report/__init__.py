"""One page and one table of what runs gave: `python -m scripts.report RUN_OR_SWEEP`."""
