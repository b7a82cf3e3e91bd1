"""A corpus of N and of 10 N texts: is the cache built in linear time, and are a step's time and memory the same?

    python -m scripts.bench.corpus [--texts 2000] [--times 10]

Texts are those of a corpus, over and over. A step's cost is given per valid token, since
the batches of two corpora differ in length. Memory is what the process holds that is not the content of a file
(RssAnon): the cache is read through the memory map, so that its pages do not count.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import ClassVar

from diffusion.denoiser import DenoiserOptions
from latent_models.corpora import Corpus, DataOptions, Split, load_corpus
from latent_models.seq2seq_codec import CodecOptions, LatentDtype, Seq2SeqCodec
from latent_models.statistics import LatentStatistics
from scripts.bench.measure import Column, Output, Row, give_back_memory, spread, status_bytes, table
from scripts.bench.trained import Trained, Turn
from scripts.composition.latent_space import LatentData, encode_split, load_codec
from scripts.job.command_line import parse
from scripts.job.console import note
from scripts.job.errors import UsageError, run
from scripts.job.hardware import device

COLUMNS = (
    Column("texts", "texts", ","),
    Column("cache_bytes", "cache, MB", ",.0f", 1e-6),
    Column("build_seconds", "cache built in, s", ",.1f"),
    Column("build_seconds_per_text", "ms a text", ".2f", 1e3),
    Column("seconds_per_token", "µs of training a token", ".1f", 1e6, with_spread=True),
    Column("share_of_peak", "% of peak", ".0f", 100, with_spread=True),
    Column("memory", "memory, MB", ",.0f", 1e-6),
    Column("times_build", "x building a text", ".2f"),
    Column("times_step", "x training a token", ".2f"),
    Column("times_memory", "x memory", ".2f"),
)


@dataclass
class CorpusBench:
    """How large the corpora are, and what is trained on them."""

    _argument_group_name: ClassVar[str] = "benchmark"

    texts: int = field(default=2000, metadata={"help": "texts of the smaller corpus"})
    times: int = field(default=10, metadata={"help": "the larger one has so many times more"})
    dataset_name: str = field(default="demo", metadata={"help": "corpus whose texts are taken"})
    data_dir: str = field(default="datasets", metadata={"help": "folder in which it lies"})
    enc_dec_model: str = field(default="bart-demo", metadata={"help": "codec"})
    latent_dtype: LatentDtype = field(default="float32", metadata={"help": "how latents are kept on disk"})
    tx_dim: int = field(default=192, metadata={"help": "trunk width"})
    tx_depth: int = field(default=4, metadata={"help": "trunk layers"})
    batch_size: int = field(default=32, metadata={"help": "texts in a batch"})
    steps: int = field(default=32, metadata={"help": "steps of a turn"})
    repetitions: int = field(default=3, metadata={"help": "turns on each corpus; the medians are given"})

    def __post_init__(self):
        _ = self.denoiser  # refuses a width or depth that cannot be
        for flag in ("texts", "batch_size", "steps", "repetitions"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected at least 1")
        if self.times < 2:
            raise UsageError(f"--times {self.times}: expected at least 2")

    @property
    def denoiser(self) -> DenoiserOptions:
        return DenoiserOptions(self.tx_dim, self.tx_depth, True, disable_dropout=True, self_condition=True)


def corpus_of(texts: list[str], count: int) -> Corpus:
    """`count` of the texts, over and over, to train on."""
    none, chosen = Split([], [], []), list(islice(cycle(texts), count))
    return Corpus(f"{count}-texts", Split(chosen, [None] * count, [None] * count), none, none)


def trained_on(corpus: Corpus, codec: Seq2SeqCodec, folder: Path, bench: CorpusBench) -> tuple[Turn, int]:
    """A turn of training on a corpus, alone in memory, and the bytes held while it goes on."""
    gc.collect()
    give_back_memory()
    cache = encode_split(codec, corpus, "train", folder, bench.latent_dtype)
    data = LatentData(cache, LatentStatistics.fit(cache.pieces(), cache.lengths), None)
    trained = Trained(bench.denoiser, codec.width, data, bench.batch_size)
    trained.stages(bench.steps)  # what comes first is slower
    return trained.turn(bench.steps), status_bytes("RssAnon")


def measured(bench: CorpusBench, corpora: list[Corpus], codec: Seq2SeqCodec, folder: Path) -> list[Row]:
    """A row for each corpus; they are trained on in turns."""
    rows, turns = [], {corpus.name: [] for corpus in corpora}
    for corpus in corpora:
        started = perf_counter()
        cache = encode_split(codec, corpus, "train", folder, bench.latent_dtype)
        seconds, count = perf_counter() - started, len(corpus.train)
        row = {"texts": count, "build_seconds": seconds, "build_seconds_per_text": seconds / count}
        rows.append(row | {"cache_bytes": cache.states.nbytes})
        del cache
    for repetition in range(bench.repetitions):
        for corpus in corpora:
            note(f"{corpus.name}: turn {repetition + 1} of {bench.repetitions}")
            turns[corpus.name].append(trained_on(corpus, codec, folder, bench))
    for row, corpus in zip(rows, corpora, strict=True):
        timed, held = zip(*turns[corpus.name], strict=True)
        row |= spread("seconds_per_token", [1 / turn.rate for turn in timed])
        row |= spread("share_of_peak", [turn.share for turn in timed]) | {"memory": median(held)}
    for ratio, key in (
        ("times_build", "build_seconds_per_text"),
        ("times_step", "seconds_per_token"),
        ("times_memory", "memory"),
    ):
        for row in rows:
            row[ratio] = row[key] / rows[0][key]
    return rows


def main() -> None:
    bench, output = parse([CorpusBench, Output], description=__doc__)
    codec = load_codec(CodecOptions(bench.enc_dec_model), device())
    texts = load_corpus(DataOptions(bench.dataset_name, bench.data_dir)).train.texts
    output.make()
    codec.encode(texts[: bench.batch_size])  # what comes first is slower
    with TemporaryDirectory(prefix="bench-corpus-", ignore_cleanup_errors=True) as folder:
        corpora = [corpus_of(texts, count) for count in (bench.texts, bench.times * bench.texts)]
        rows = measured(bench, corpora, codec, Path(folder))
    output.publish("corpus", vars(bench), rows, [table(rows, COLUMNS)])


if __name__ == "__main__":
    run(main)
