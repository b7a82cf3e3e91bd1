"""Training steps of the real Trainer, as users run it, against the same Trainer with every optimisation taken away.

    python -m scripts.bench.training [--compile] [--dropout] [--batch_sizes 32]
    python -m scripts.bench.training --paper [--compile]     # on a GPU: width 768, depth 12, batch 64 and 256, bf16

Texts are of 12 to 47 tokens, which the plain way pads to 64; --shortest 64 --longest 64 leaves it nothing to waste.
The ways take turns of the same batches, so that a disturbed machine disturbs all of them. A turn is timed as a whole
between two looks at the matmul peak of its own precision; the stages are timed in turns of their own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import ClassVar

from scripts.bench.arms import Setting, Texts, cache_folder, ours, plain
from scripts.bench.measure import Column, Output, Row, spread, table
from scripts.bench.trained import STAGES, Trained, figures
from scripts.job.command_line import given_flags, parse
from scripts.job.console import note
from scripts.job.errors import UsageError, run
from scripts.job.hardware import device

PLAIN, OURS, COMPILED = "plain", "ours", "ours, compiled"
PAPER = {"tx_dim": 768, "tx_depth": 12, "mixed_precision": "bf16", "batch_sizes": [64, 256]}
COLUMNS = (
    Column("arm", "training"),
    Column("batch_size", "batch"),
    Column("seconds_per_step", "s/step", ".3f"),
    Column("tokens_per_second", "valid tokens/s", ",.0f"),
    Column("times_plain", "x plain", ".2f", with_spread=True),
    Column("share_of_peak", "% of peak", ".0f", 100, with_spread=True),
    Column("matmul_peak", "peak, TFLOP/s", ".3g", 1e-12),
    Column("matmul_dtype", "in"),
    *(Column(stage, f"{stage}, ms", ".1f", 1e3) for stage in STAGES),
    Column("peak_memory", "memory, MB", ",.0f", 1e-6),
    Column("compile_seconds", "compiling, s", ".0f"),
)


@dataclass
class TrainingBench:
    """How much is measured."""

    _argument_group_name: ClassVar[str] = "benchmark"

    batch_sizes: list[int] = field(default_factory=lambda: [32], metadata={"help": "texts in a batch, one or several"})
    steps: int = field(default=8, metadata={"help": "steps of a turn, spread over the lengths of a window of batches"})
    repetitions: int = field(default=3, metadata={"help": "turns of each way; the medians are given"})
    compile: bool = field(default=False, metadata={"help": "also with a compiled trunk"})
    paper: bool = field(default=False, metadata={"help": "the paper's setting, for a GPU"})

    def __post_init__(self):
        for flag in ("steps", "repetitions"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected at least 1")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise UsageError(f"--batch_sizes {self.batch_sizes}: expected one or several of at least 1")


def in_turns(arms: dict[str, Trained], steps: int, repetitions: int, encoder_bytes: int) -> list[Row]:
    """A row for each arm; all go through the same batches in every turn."""
    first = {}
    for name, arm in arms.items():
        note(f"{name}: first turn")
        started = perf_counter()
        arm.stages(steps)
        first[name] = perf_counter() - started
    turns, stages = {name: [] for name in arms}, {name: [] for name in arms}
    for repetition in range(repetitions):
        for name, arm in arms.items():
            note(f"{name}: turn {repetition + 1} of {repetitions}")
            turns[name].append(arm.turn(steps))
            stages[name].append(arm.stages(steps))
    rows = []
    for name, arm in arms.items():
        row = {"arm": name, **figures(arm, turns[name], encoder_bytes if name == PLAIN else 0)}
        row |= spread("times_plain", [a.rate / b.rate for a, b in zip(turns[name], turns[PLAIN], strict=True)])
        row |= {stage: median(each[stage] for each in stages[name]) for stage in STAGES}
        if name == COMPILED:
            row["compile_seconds"] = first[name] - median(turn.seconds for turn in turns[name])
        rows.append(row)
    return rows


def measured(bench: TrainingBench, setting: Setting, batch_size: int) -> list[Row]:
    """The rows of one batch size."""
    texts = Texts(setting, batch_size, bench.steps, device())
    with cache_folder() as folder:
        arms = {PLAIN: plain(setting, texts, batch_size), OURS: ours(setting, texts, batch_size, Path(folder))}
        if bench.compile:
            arms[COMPILED] = ours(setting, texts, batch_size, Path(folder), compiled=True)
        encoder_bytes = sum(p.nbytes for p in texts.encoder.parameters())
        rows = in_turns(arms, bench.steps, bench.repetitions, encoder_bytes)
    return [{"batch_size": batch_size, **row} for row in rows]


def main() -> None:
    bench, setting, output = parse([TrainingBench, Setting, Output], description=__doc__)
    if bench.paper:
        if given := given_flags(sys.argv[1:]) & PAPER.keys():
            raise UsageError(f"--paper sets --{min(given)} itself; leave out one of the two")
        setting = replace(setting, **{key: value for key, value in PAPER.items() if key in vars(setting)})
        bench = replace(bench, batch_sizes=PAPER["batch_sizes"])
    output.make()
    rows = [row for batch_size in bench.batch_sizes for row in measured(bench, setting, batch_size)]
    columns = [column for column in COLUMNS if any(column.key in row for row in rows)]
    output.publish("training", vars(bench) | vars(setting), rows, [table(rows, columns)])


if __name__ == "__main__":
    run(main)
