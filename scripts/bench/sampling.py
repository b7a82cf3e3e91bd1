"""Time to decoded samples of a trained run, against 250 DDIM steps with all texts as long as the longest.

    python -m scripts.bench.sampling [--resume_dir RUN] [--cells ddim:50 dpmpp:25] [--samples 1000]

The baseline pads every text to the longest the model knows and takes the texts as they come. Times to 1,000 samples
are scaled from those that were made, as are the baseline's; more samples in a call sort into tighter batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch

from diffusion.process import check_seed
from diffusion.randomness import sample_seeds, uniform
from scripts.bench.measure import Column, Output, Row, Stopwatch, spread, table
from scripts.composition.build import System, load_system, strategy_of
from scripts.composition.options import Options
from scripts.composition.spaces import Space
from scripts.evaluation.cells import check_cells, with_cell
from scripts.job.command_line import parse
from scripts.job.console import note
from scripts.job.errors import UsageError, run
from scripts.job.hardware import device
from scripts.sampling.sampling import prediction, sample

COLUMNS = (
    Column("cell", "sampled by"),
    Column("samples", "samples made", ","),
    Column("samples_per_second", "samples/s", ",.2f"),
    Column("network_seconds", "network, s for 1,000", ",.1f"),
    Column("decoding_seconds", "decoding, s for 1,000", ",.1f"),
    Column("seconds", "together", ",.1f", with_spread=True),
    Column("times_baseline", "x baseline", ".1f"),
)
COUNT = 1000  # what times are given for


@dataclass
class SamplingBench:
    """Which run is sampled, how, and how often."""

    _argument_group_name: ClassVar[str] = "benchmark"

    resume_dir: str = field(default="pre_trained_models/diffusion-demo", metadata={"help": "folder of the trained run"})
    cells: list[str] = field(
        default_factory=lambda: ["ddim:50", "dpmpp:25"],
        metadata={"help": "ways to sample, each SAMPLER:STEPS or SAMPLER:STEPS:GRID_POWER"},
    )
    baseline: str = field(default="ddim:250", metadata={"help": "what they are compared with, at full length"})
    samples: int = field(default=200, metadata={"help": "texts made by each cell"})
    baseline_samples: int = field(default=32, metadata={"help": "texts made by the baseline, in one batch or more"})
    strategy: str | None = field(
        default=None, metadata={"help": "how latents are decoded: beam (default), nucleus or greedy"}
    )
    repetitions: int = field(default=1, metadata={"help": "how often each is done, in turns; the medians are given"})
    random_seed: int = field(default=42, metadata={"help": "seed of the samples"})

    def __post_init__(self):
        check_cells([*self.cells, self.baseline])
        for flag in ("samples", "baseline_samples", "repetitions"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected at least 1")
        check_seed("random_seed", self.random_seed)


@dataclass(frozen=True)
class Watched:
    """A space whose decoding is timed."""

    space: Space
    watch: Stopwatch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.space, name)

    def decode(self, *args: Any) -> list[str]:
        with self.watch("decoding"):
            return self.space.decode(*args)


@torch.no_grad()
def sample_at_full_length(system: System, count: int, seed: int, strategy: str) -> None:
    """Texts in batches that are padded to the longest the model knows and sorted by nothing."""
    seeds, generator = sample_seeds(seed, 0, count), torch.Generator().manual_seed(seed)
    lengths = system.space.lengths.lengths_at(uniform((count,), generator, dtype=torch.float64))
    on = next(system.denoiser.parameters()).device
    for rows in torch.arange(count).split(system.options.training.eval_batch_size):
        valid = (torch.arange(system.space.limit) < lengths[rows][:, None]).to(on)
        x = system.process.prior(system.space.shape(*valid.shape), generator, on)
        x0 = system.sampler(system.process, prediction(system, valid), x, system.times, generator=generator)
        system.space.decode(x0, valid, strategy, [seeds[i] for i in rows])


@dataclass(frozen=True)
class Way:
    """make(system, count) is how samples are made, `count` how many of them to time."""

    system: System
    make: Callable[[System, int], object]
    count: int

    def timed(self, count: int) -> dict[str, float]:
        """Seconds for 1,000 samples, network and decoding told apart, from making `count`."""
        watch = Stopwatch(device())
        with watch("network"):
            self.make(replace(self.system, space=Watched(self.system.space, watch)), count)
        network, decoding = (watch.seconds[stage] * COUNT / count for stage in ("network", "decoding"))
        return {"network_seconds": network, "decoding_seconds": decoding, "seconds": network + decoding}


def measured(bench: SamplingBench, system: System, strategy: str) -> list[Row]:
    """The baseline's row and one for each cell; they take turns."""
    padded = partial(sample_at_full_length, seed=bench.random_seed, strategy=strategy)
    trimmed = partial(sample, seed=bench.random_seed, strategies=[strategy])
    ways = {f"{bench.baseline}, full length": Way(with_cell(system, bench.baseline), padded, bench.baseline_samples)}
    ways |= {cell: Way(with_cell(system, cell), trimmed, bench.samples) for cell in bench.cells}
    for way in ways.values():
        way.timed(1)  # what comes first is slower
    found = {name: [] for name in ways}
    for _ in range(bench.repetitions):
        for name, way in ways.items():
            note(f"{name}: {way.count} samples")
            found[name].append(way.timed(way.count))
    rows = []
    for name, way in ways.items():
        row = {"cell": name, "samples": way.count}
        for key in ("seconds", "network_seconds", "decoding_seconds"):
            row |= spread(key, [each[key] for each in found[name]])
        rows.append(row)
        row |= {"samples_per_second": COUNT / row["seconds"], "times_baseline": rows[0]["seconds"] / row["seconds"]}
    return rows


def main() -> None:
    bench, output = parse([SamplingBench, Output], description=__doc__)
    system, step = load_system(Options.from_argv(["--gen_data", "--resume_dir", bench.resume_dir]))
    if system.method.on_tokens:
        raise UsageError(f"--resume_dir {bench.resume_dir}: works on tokens; expected a run of --method latent")
    strategy = strategy_of(system.options, bench.strategy)
    output.make()
    rows = measured(bench, system, strategy)
    settings = vars(bench) | {"strategy": strategy, "step": step}
    output.publish("sampling", settings, rows, [table(rows, COLUMNS)])


if __name__ == "__main__":
    run(main)
