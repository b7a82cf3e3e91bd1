"""What a training step costs as texts get longer, batches larger and the trunk wider, one at a time.

    python -m scripts.bench.scaling [--lengths 16 32 64] [--batch_sizes 8 32 128] [--widths 128 256 512]

All texts of a setting are of one length, so that no position is wasted and a few steps tell. For the number of texts in
the corpus see scripts.bench.corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from scripts.bench.arms import Setting, Texts, cache_folder, ours
from scripts.bench.measure import Column, Output, Row, table
from scripts.bench.trained import figures
from scripts.job.command_line import parse
from scripts.job.console import note
from scripts.job.errors import UsageError, run
from scripts.job.hardware import device

COLUMNS = (
    Column("seconds_per_step", "s/step", ".3f"),
    Column("tokens_per_second", "valid tokens/s", ",.0f"),
    Column("useful_flops_per_step", "useful GFLOP/step", ".3g", 1e-9),
    Column("share_of_peak", "% of peak", ".0f", 100, with_spread=True),
    Column("peak_memory", "memory, MB", ",.0f", 1e-6),
    Column("times_first_cost", "x cost of a token in the first row", ".2f"),
)


@dataclass
class ScalingBench:
    """What is varied, and from where."""

    _argument_group_name: ClassVar[str] = "benchmark"

    lengths: list[int] = field(default_factory=lambda: [16, 32, 64], metadata={"help": "tokens of every text"})
    batch_sizes: list[int] = field(default_factory=lambda: [8, 32, 128], metadata={"help": "texts in a batch"})
    widths: list[int] = field(default_factory=lambda: [128, 256, 512], metadata={"help": "trunk and latents"})
    length: int = field(default=32, metadata={"help": "length where it is not varied"})
    batch_size: int = field(default=32, metadata={"help": "batch size where it is not varied"})
    steps: int = field(default=2, metadata={"help": "steps of a turn"})
    repetitions: int = field(default=3, metadata={"help": "turns of each setting; the medians are given"})

    def __post_init__(self):
        for flag in ("lengths", "batch_sizes", "widths"):
            if min(getattr(self, flag), default=1) < 1:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected numbers of at least 1")
        for flag in ("length", "batch_size", "steps", "repetitions"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected at least 1")


def of_length(setting: Setting, length: int) -> Setting:
    return replace(setting, shortest=length, longest=length, max_length=length)


def measured(bench: ScalingBench, setting: Setting, batch_size: int) -> Row:
    """The row of one setting."""
    with cache_folder() as folder:
        trained = ours(setting, Texts(setting, batch_size, bench.steps, device()), batch_size, Path(folder))
        trained.stages(bench.steps)  # what comes first is slower
        return figures(trained, [trained.turn(bench.steps) for _ in range(bench.repetitions)])


def varied(name: str, settings: dict[int, tuple[Setting, int]], bench: ScalingBench) -> list[Row]:
    """A row for each value of what is varied; settings are given with their batch size."""
    rows = []
    for value, (setting, batch_size) in settings.items():
        note(f"{name} {value}")
        rows.append({"varied": name, "value": value, **measured(bench, setting, batch_size)})
        rows[-1]["times_first_cost"] = rows[0]["tokens_per_second"] / rows[-1]["tokens_per_second"]
    return rows


def tables(rows: Sequence[Row]) -> list[str]:
    """A table for each thing that was varied."""
    names = dict.fromkeys(row["varied"] for row in rows)
    return [table([row for row in rows if row["varied"] == name], [Column("value", name), *COLUMNS]) for name in names]


def main() -> None:
    bench, setting, output = parse([ScalingBench, Setting, Output], description=__doc__)
    base = of_length(setting, bench.length)
    by_length = {length: (of_length(setting, length), bench.batch_size) for length in bench.lengths}
    by_batch = {batch_size: (base, batch_size) for batch_size in bench.batch_sizes}
    by_width = {width: (replace(base, tx_dim=width), bench.batch_size) for width in bench.widths}
    output.make()
    rows = [
        row
        for name, settings in (("length", by_length), ("batch", by_batch), ("width", by_width))
        for row in varied(name, settings, bench)
    ]
    output.publish("scaling", vars(bench) | vars(setting), rows, tables(rows))


if __name__ == "__main__":
    run(main)
