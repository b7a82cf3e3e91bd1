"""Jobs and composition: the only place, beside the entry script, where the three packages meet."""
