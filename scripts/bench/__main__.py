"""All benchmarks at a small setting, each in a process of its own: about ten minutes on two CPU cores.

    python -m scripts.bench [--output_dir saved_models/bench]

Each can be run by itself, with options of its own: `python -m scripts.bench.training --help`.
"""

from __future__ import annotations

import subprocess
import sys

from scripts.bench.measure import Output
from scripts.job.command_line import parse
from scripts.job.errors import run

PARTS = ("training", "scaling", "corpus", "sampling", "scoring", "trunks")


def main() -> None:
    (output,) = parse([Output], description=__doc__)
    output.make()
    for part in PARTS:  # by itself, so that no part's memory or random state is another's
        command = [sys.executable, "-m", f"scripts.bench.{part}", "--output_dir", output.output_dir]
        if status := subprocess.run(command).returncode:
            raise SystemExit(status)


if __name__ == "__main__":
    run(main)
