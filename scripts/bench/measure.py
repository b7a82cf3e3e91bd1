"""What all benchmarks measure with: seconds, the matmul peak beside them, memory, and the machine they were taken on.

Machines are shared, so the peak is taken in the same process right before and after the work that is compared with it.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, ClassVar, NamedTuple

import torch

from offline_metrics import report
from scripts.job.hardware import device, wait_for

MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}  # large enough that the matrix units, not the memory, are what is measured
MATMULS = 10  # between two looks at the clock
PROBE_SECONDS = 0.2
LOW, HIGH = "_low", "_high"  # ends of the spread of a figure, in a row


# --- time -------------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Seconds by stage; a stage within another is counted by itself. Waits for the device at both ends of a stage."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._count()
        self._open.append(stage)
        try:
            yield
        finally:
            self._count()
            self._open.pop()

    def _count(self) -> None:
        wait_for(self.device)
        now = perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of large matrix products over the next fifth of a second, on all threads."""
    n = MATMUL_SIZE[device.type]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    product = torch.mm(a, b)
    wait_for(device)
    done, started, elapsed = 0, perf_counter(), 0.0
    while elapsed < PROBE_SECONDS:
        for _ in range(MATMULS):
            torch.mm(a, b, out=product)
        wait_for(device)
        done, elapsed = done + MATMULS, perf_counter() - started
    return 2 * n**3 * done / elapsed


# --- memory -----------------------------------------------------------------------------------------------------------


def status_bytes(field_name: str) -> int:
    """A field of /proc/self/status: VmRSS, VmHWM (its highest) or RssAnon (what is not the content of a file)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field_name:
            return 1024 * int(value.split()[0])
    raise ValueError(f"/proc/self/status has no {field_name}")


def give_back_memory() -> None:
    """Returns freed memory to the system, so that what comes next does not find it there."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc's own
        libc.malloc_trim(0)


class MemoryGrowth:
    """Bytes by which memory rose at most within a `with`: that of the device, on a CPU that of the process."""

    def __init__(self, device: torch.device):
        self.on_gpu = device.type == "cuda"
        self.bytes = 0

    def __enter__(self) -> MemoryGrowth:
        give_back_memory()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
            self._before = status_bytes("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        highest = torch.cuda.max_memory_allocated() if self.on_gpu else status_bytes("VmHWM")
        self.bytes = max(0, highest - self._before)


# --- tables -----------------------------------------------------------------------------------------------------------

Row = dict[str, Any]


class Column(NamedTuple):
    """A figure of a row: how it is headed and printed, multiplied by what, and whether its spread is printed too."""

    key: str
    label: str
    format: str = ""
    scale: float | None = None
    with_spread: bool = False


def spread(key: str, values: Sequence[float]) -> Row:
    """The median of repeated measurements, with the lowest and the highest beside it."""
    return {key: median(values), key + LOW: min(values), key + HIGH: max(values)}


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """Rows as Markdown."""
    return report.markdown([[c.label for c in columns], *[[_cell(row, c) for c in columns] for row in rows]])


def _cell(row: Mapping[str, Any], column: Column) -> str:
    if row.get(column.key) is None:
        return "–"

    def printed(key: str) -> str:
        return format(row[key] if column.scale is None else row[key] * column.scale, column.format)

    if not column.with_spread or row[column.key + LOW] == row[column.key + HIGH]:
        return printed(column.key)
    return f"{printed(column.key)} ({printed(column.key + LOW)} to {printed(column.key + HIGH)})"


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on; the float32 matmul peak in FLOP/s is that of the moment."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "float32_matmul_peak": matmul_peak(device, torch.float32),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


@dataclass
class Output:
    """Where the figures go."""

    _argument_group_name: ClassVar[str] = "output"

    output_dir: str = field(default="saved_models/bench", metadata={"help": "<part>.json is written there"})

    def make(self) -> None:
        """Makes the folder: better refused before the work than after it."""
        Path(self.output_dir).mkdir(parents=True, exist_ok=True)

    def publish(
        self, part: str, settings: Mapping[str, Any], rows: Sequence[Row], tables: Sequence[str]
    ) -> None:
        """Prints the machine and the tables; writes <part>.json with machine, settings and rows."""
        place, described = Path(self.output_dir) / f"{part}.json", machine(device())
        report.write_json(place, {"part": part, "machine": described, "settings": settings, "rows": rows})
        name = described["gpu"] or f"{described['processor']}, {described['threads']} threads"
        peak = f"{described['float32_matmul_peak'] / 1e9:,.0f} GFLOP/s in float32"
        print(f"## {part}: {name}, {peak}, torch {described['torch']}\n")
        print("\n\n".join(tables) + f"\n\n{place}\n", flush=True)
