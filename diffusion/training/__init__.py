"""One trainer for every process."""
