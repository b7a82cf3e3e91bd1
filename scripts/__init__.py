"""Jobs and composition: the only place, beside the entry script, where the three packages meet.

What stands at the top is run: `python -m scripts.NAME`. What jobs share lies in folders that each rest on those before
alone: job, fetching, composition, sampling, evaluation. Beside them is what a few jobs are made of: bench, pretraining,
published, report, sweep.
"""

import os

# Threads of one computation wait for each other by turning in circles, for milliseconds, and where other jobs have the
# cores that starves the very thread they wait for. So they soon sleep; read when torch is loaded (docs/performance.md).
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
