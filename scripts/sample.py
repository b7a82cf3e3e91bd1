"""Samples texts from a trained run.

    python -m scripts.sample --resume_dir RUN --num_samples 20 [--random_seed 7] [--sampling_timesteps 50]
    python -m scripts.sample --resume_dir RUN --prefix "The Vaults" --suffix "near the river." --show_intermediate
    python -m scripts.sample --resume_dir RUN --mbr_candidates 10 --output_file FILE.jsonl   # a run with sources
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor
from tqdm import tqdm

from scripts.composition.build import System, load_system, strategy_of
from scripts.composition.checks import check_file
from scripts.composition.dry_run import dry_run
from scripts.composition.flag_checks import OF_SAMPLES
from scripts.composition.methods import METHODS
from scripts.composition.options import GROUPS, Options, parse, reading_a_run
from scripts.job.console import note, say
from scripts.job.errors import UsageError, run
from scripts.sampling.conditional import FIRST, chosen
from scripts.sampling.samples_file import Samples
from scripts.sampling.sampling import Given, Piece, Watch, sample
from scripts.sampling.semi_autoregressive import sample_long


@dataclass
class SampleOptions:
    """What to sample and how to show it."""

    _argument_group_name: ClassVar[str] = "output"

    strategy: str | None = field(
        default=None, metadata={"help": "how latents are decoded: beam (default), nucleus or greedy"}
    )
    output_file: str | None = field(default=None, metadata={"help": "write JSON lines there instead of printing"})
    prefix: str | None = field(default=None, metadata={"help": "how every text begins"})
    suffix: str | None = field(default=None, metadata={"help": "how every text ends"})
    clamp: list[str] = field(
        default_factory=list, metadata={"help": "pieces within every text, each POSITION:TEXT, in tokens from 0"}
    )
    show_intermediate: bool = field(default=False, metadata={"help": "print every text at every step (tokens only)"})
    semi_ar_stride: int | None = field(
        default=None, metadata={"help": "go on with each text by that many new tokens at a time, the rest as prefix"}
    )
    semi_ar_strides: int = field(default=1, metadata={"help": "how many times to go on"})
    split: str = field(default="test", metadata={"help": "split whose sources are used (--condition_on_source)"})

    def __post_init__(self):
        if self.split not in ("train", "valid", "test"):
            raise UsageError(f"--split {self.split!r} is not one of: train, valid, test")
        if self.semi_ar_strides < 1:
            raise UsageError(f"--semi_ar_strides {self.semi_ar_strides}: expected at least 1")
        for piece in self.clamp:
            if not piece.partition(":")[0].isdecimal():
                raise UsageError(f"--clamp {piece!r}: expected POSITION:TEXT, such as 5:near the river")


def given_by(system: System, options: SampleOptions, count: int) -> Given:
    """The sources and pieces that the options name; UsageError for too few sources."""
    sources, pieces, piece = None, [], system.space.piece
    if system.options.tokens.condition_on_source:
        sources = getattr(system.corpus, options.split).sources
        if count > len(sources):
            raise UsageError(f"--num_samples {count}: the {options.split} split has {len(sources):,} sources")
        sources = [source for source in sources[:count] for _ in range(system.options.run.mbr_candidates)]
    if options.prefix is not None:
        pieces.append(Piece(piece(options.prefix, first=True), 0))
    for each in options.clamp:
        position, _, text = each.partition(":")
        pieces.append(Piece(piece(text, first=int(position) == 0), int(position)))
    pieces.sort(key=lambda piece: piece.position)
    for one, other in itertools.pairwise(pieces):
        if other.position < one.position + len(one.ids):
            raise UsageError(
                f"--clamp {other.position}: the piece given before it reaches position "
                f"{one.position + len(one.ids) - 1}; expected pieces that do not overlap"
            )
    if options.suffix is not None:
        pieces.append(Piece(piece(options.suffix, last=True), None))
    return Given(sources, tuple(pieces))


def show_steps(system: System) -> Watch:
    """Prints the texts of a batch at every step, masks included."""

    def watch(i: int, n: int, rows: Sequence[int], x: Tensor) -> None:
        with tqdm.external_write_mode():  # above the bar
            for row, ids in zip(rows, x, strict=True):
                written = [each for each in ids.tolist() if each >= 0]  # ar has written none behind
                print(f"step {i:>4}/{n}  sample {row}: {system.space.codec.show(written)!r}", flush=True)

    return watch


def main() -> None:
    argv = reading_a_run(sys.argv[1:])
    *groups, output = parse([*GROUPS, SampleOptions], argv, __doc__)
    options = Options.from_groups(groups, argv, OF_SAMPLES | {"mbr_candidates", "random_seed"})
    if output.output_file is not None:
        check_file("output_file", output.output_file)
    strategy = strategy_of(options, output.strategy)
    check_sampling(options, output)
    if options.run.dry_run:
        return dry_run(options, [])
    system, step = load_system(options)
    note(f"{options.run.resume_dir}, step {step:,}")
    count, seed, given = options.run.num_samples, options.training.random_seed, Given()
    if output.semi_ar_stride is not None:
        samples = sample_long(system, count, seed, output.semi_ar_stride, output.semi_ar_strides)
    else:
        watch = show_steps(system) if output.show_intermediate else None
        given = given_by(system, output, count)
        count = count if given.sources is None else len(given.sources)
        samples = sample(system, count, seed, strategies=[strategy], given=given, watch=watch)
    if given.sources is not None:
        samples = keep_candidates(samples, options.run.mbr_candidates, output.output_file)
    if output.output_file is None:
        say("\n".join(samples.first))
    else:
        samples.write_strategy(next(iter(samples.texts)), Path(output.output_file))
        note(f"{output.output_file}: {len(samples.first):,} texts")


def keep_candidates(samples: Samples, candidates: int, output_file: str | None) -> Samples:
    """The text chosen for each source; where there were several they go to a file beside the output."""
    if candidates > 1 and output_file is not None:
        beside = Path(output_file).with_suffix(".candidates.jsonl")
        samples.write_strategy(FIRST, beside)
        note(f"{beside}: {len(samples.first):,} candidates")
    *_, best = chosen(samples, candidates).values()
    return best


def check_sampling(options: Options, output: SampleOptions) -> None:
    """Raises UsageError for what the method cannot do."""
    method = METHODS[options.method.method]
    if not method.on_tokens and (output.show_intermediate or output.semi_ar_stride is not None):
        raise UsageError("--show_intermediate and --semi_ar_stride need a method on tokens; this run is latent")
    if "split" in options.given and not options.tokens.condition_on_source:
        raise UsageError(f"--split {output.split}: is whose sources are used, and this run has none; leave it out")
    if output.suffix is not None and options.tokens.lengths == "modelled" and options.data.running_text is None:
        raise UsageError(
            "--suffix: the run was taught by --lengths modelled to end its texts itself, and what stands behind that "
            "is lost; give the words a place by --clamp POSITION:TEXT, or sample a run of --lengths drawn"
        )
    if output.semi_ar_stride is None:
        if "semi_ar_strides" in options.given:
            raise UsageError(f"--semi_ar_strides {output.semi_ar_strides}: of how many tokens? Give --semi_ar_stride")
        return
    for flag in ("prefix", "suffix", "clamp", "show_intermediate"):
        if getattr(output, flag):
            raise UsageError(f"--{flag} does not go with --semi_ar_stride, which has no place for it; leave it out")
    if options.tokens.condition_on_source:
        raise UsageError("--semi_ar_stride: texts made from sources have no continuation; leave it out")


if __name__ == "__main__":
    run(main)
