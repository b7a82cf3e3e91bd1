"""The published network of MDLM, SEDD and GIDD beside the shared trunk, at its published size: what a call takes.

    python -m scripts.bench.trunks [--tx_dim 1024 --tx_depth 24] [--length 1024] [--batch_size 1]

Both are MDLM of random weights, told no time. They take turns at a forward pass with the logits of all positions, at
sampling a few steps of many, and at a draw of the likelihood bound; the ratios are those of one turn. On a CPU the
seconds of OMP_NUM_THREADS=1 are the processor's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from time import perf_counter, process_time
from typing import ClassVar

import torch
from torch import nn

from diffusion.denoiser import DenoiserOptions, TokenDenoiser
from diffusion.dit import DiT
from diffusion.guidance import Prediction
from diffusion.masked import MaskedProcess
from diffusion.survival import loglinear
from scripts.bench.measure import Column, MemoryGrowth, Output, Row, spread, table
from scripts.job.command_line import parse
from scripts.job.console import note
from scripts.job.errors import UsageError, run
from scripts.job.hardware import device

OURS, PUBLISHED = "x_transformers", "dit"
WORK = ("forward", "step", "draw")
COLUMNS = (
    Column("trunk", "trunk"),
    Column("parameters", "M parameters", ",.1f", 1e-6),
    Column("forward_seconds", "forward, s", ".2f", with_spread=True),
    Column("memory", "its memory, MB", ",.0f", 1e-6),
    Column("step_seconds", "sampling step, s", ".2f", with_spread=True),
    Column("draw_seconds", "likelihood draw, s", ".2f", with_spread=True),
    *(Column(f"times_{work}", f"x {work}", ".2f", with_spread=True) for work in WORK),
)


@dataclass
class TrunkBench:
    """How large the networks are, what they read and how often."""

    _argument_group_name: ClassVar[str] = "benchmark"

    tx_dim: int = field(default=768, metadata={"help": "width, in heads of 64"})
    tx_depth: int = field(default=12, metadata={"help": "layers"})
    vocab_size: int = field(default=50_258, metadata={"help": "ids, the mask (the last) among them"})
    length: int = field(default=1024, metadata={"help": "tokens of a text"})
    batch_size: int = field(default=1, metadata={"help": "texts in a batch"})
    steps: int = field(default=2, metadata={"help": "sampling steps of a turn, the first of --of_steps"})
    of_steps: int = field(default=128, metadata={"help": "sampling steps that a text is made in"})
    repetitions: int = field(default=2, metadata={"help": "turns of each; the medians are given"})

    def __post_init__(self):
        _ = self.options(OURS)  # refuses a width or depth that cannot be
        for flag in ("length", "batch_size", "steps", "repetitions"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected at least 1")
        if self.vocab_size < 2:
            raise UsageError(f"--vocab_size {self.vocab_size}: expected at least 2, a token and the mask")
        if self.steps > self.of_steps:
            raise UsageError(f"--steps {self.steps}: expected no more than --of_steps {self.of_steps}")

    def options(self, trunk: str) -> DenoiserOptions:
        return DenoiserOptions(self.tx_dim, self.tx_depth, disable_dropout=True, trunk=trunk)


def network(bench: TrunkBench, trunk: str) -> nn.Module:
    """One of the two, with weights in every layer."""
    torch.manual_seed(0)
    options = bench.options(trunk)
    made = (
        DiT(bench.vocab_size, options, None)
        if trunk == PUBLISHED
        else TokenDenoiser(bench.vocab_size, options, time_input="none")
    )
    for parameter in made.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return made.to(device()).eval()


@torch.no_grad()
def works(bench: TrunkBench, denoiser: nn.Module) -> dict[str, Callable[[], int]]:
    """What is timed, by name: calls that give how many times they did it."""
    process = MaskedProcess(bench.vocab_size, bench.vocab_size - 1, loglinear())
    shape = (bench.batch_size, bench.length)
    valid = torch.ones(shape, dtype=torch.bool, device=device())
    predict = Prediction(process, denoiser, valid)
    generator = torch.Generator(device()).manual_seed(0)
    x0 = torch.randint(bench.vocab_size - 1, shape, generator=generator, device=device())
    at = partial(torch.full, (bench.batch_size,), dtype=torch.float64, device=device())

    def forward() -> int:
        denoiser(x0, at(0.5), valid)
        return 1

    def step() -> int:
        x = process.prior(shape, generator, device())
        for t, s in list(pairwise(process.grid(bench.of_steps)))[: bench.steps]:
            x = process.step(predict(x, at(t)), x, at(t), at(s), generator)
        return bench.steps

    def draw() -> int:
        process.bound(predict, x0, valid, at(0.5), generator)
        return 1

    return {"forward": forward, "step": step, "draw": draw}


@torch.no_grad()
def timed(call: Callable[[], int]) -> float:
    """Seconds of one of what `call` does."""
    on_gpu = device().type == "cuda"
    # The processor's clock of a single thread stands still while other jobs have the core.
    clock = process_time if not on_gpu and torch.get_num_threads() == 1 else perf_counter
    started = clock()
    count = call()
    if on_gpu:
        torch.cuda.synchronize()
    return (clock() - started) / count


def measured(bench: TrunkBench) -> list[Row]:
    """A row for each network."""
    rows, calls = {}, {}
    for trunk in (OURS, PUBLISHED):
        note(f"{trunk}: first turn")
        made = network(bench, trunk)
        calls[trunk] = works(bench, made)
        with MemoryGrowth(device()) as growth:
            timed(calls[trunk]["forward"])  # what comes first is slower
        rows[trunk] = {"trunk": trunk, "parameters": sum(p.numel() for p in made.parameters()), "memory": growth.bytes}
    seconds = {(trunk, work): [] for trunk in calls for work in WORK}
    for repetition in range(bench.repetitions):
        note(f"turn {repetition + 1} of {bench.repetitions}")
        for work in WORK:
            for trunk in calls:
                seconds[trunk, work].append(timed(calls[trunk][work]))
    for trunk, row in rows.items():
        for work in WORK:
            own, ours = seconds[trunk, work], seconds[OURS, work]
            row |= spread(f"{work}_seconds", own)
            row |= spread(f"times_{work}", [a / b for a, b in zip(own, ours, strict=True)])
    return list(rows.values())


def main() -> None:
    bench, output = parse([TrunkBench, Output], description=__doc__)
    output.make()
    rows = measured(bench)
    output.publish("trunks", vars(bench), rows, [table(rows, COLUMNS)])


if __name__ == "__main__":
    run(main)
