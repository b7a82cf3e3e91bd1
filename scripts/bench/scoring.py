"""Seconds that each metric takes for 1,000 texts: the first time, and again when what rests on references is stored.

    python -m scripts.bench.scoring [--texts 1000] [--perplexity_model gpt2-large --mauve_model gpt2-large]

Scored are texts of the validation split against those of the test split, with the human row beside them, as every
evaluation does. The second time is that of a new job: models are loaded again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import ClassVar

from latent_models.codec import find_models
from latent_models.corpora import Corpus, DataOptions, load_corpus
from offline_metrics.suite import MetricOptions, MetricSuite
from scripts.bench.measure import Column, Output, Row, Stopwatch, spread, table
from scripts.composition.build import EXTRA_METRICS, load_metric_models, result_store, shuffled
from scripts.evaluation.evaluation import VALID_SEED
from scripts.job.command_line import parse
from scripts.job.console import note
from scripts.job.errors import UsageError, run
from scripts.job.hardware import device

COLUMNS = (
    Column("stage", "seconds of"),
    Column("first_seconds", "first time", ".2f", with_spread=True),
    Column("second_seconds", "again", ".2f", with_spread=True),
    Column("times_first", "x first", ".1f"),
)
ALL = "all"
WARM_UP = 32  # texts


@dataclass
class ScoringBench:
    """What is scored with what."""

    _argument_group_name: ClassVar[str] = "benchmark"

    texts: int = field(default=1000, metadata={"help": "texts to score, and references"})
    dataset_name: str = field(default="demo", metadata={"help": "corpus"})
    data_dir: str = field(default="datasets", metadata={"help": "folder in which it lies"})
    perplexity_model: str = field(default="gpt2-demo", metadata={"help": "cached causal language model"})
    mauve_model: str = field(default="gpt2-demo", metadata={"help": "cached model whose features MAUVE compares"})
    repetitions: int = field(default=2, metadata={"help": "how often both are done; the medians are given"})

    def __post_init__(self):
        for flag in ("texts", "repetitions"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected at least 1")


def scored(corpus: Corpus, bench: ScoringBench, models: list[Path], count: int, folder: Path) -> dict[str, float]:
    """Seconds by stage of an evaluation of `count` texts that finds stored what `folder` holds."""
    options = MetricOptions(bench.perplexity_model, bench.mauve_model)
    texts = list(islice(cycle(corpus.valid.texts), count))
    watch = Stopwatch(device())
    with watch("everything else"):
        with watch("loading models"):
            loaded = load_metric_models(*models, device())
        suite = MetricSuite(
            options,
            *loaded,
            corpus.train.texts,
            shuffled(corpus.test.texts, VALID_SEED),
            EXTRA_METRICS.get(corpus.name),
            VALID_SEED,
            result_store(folder),
            watch,
        )
        suite.human_row(count)
        suite.score(texts)
    return dict(watch.seconds)


def measured(bench: ScoringBench, corpus: Corpus, models: list[Path]) -> list[Row]:
    """A row for each stage, the dearest first, and one for all of them."""
    first, second = [], []
    for repetition in range(-1, bench.repetitions):
        with TemporaryDirectory(prefix="bench-scoring-", ignore_cleanup_errors=True) as folder:
            if repetition < 0:  # what comes first is slower
                scored(corpus, bench, models, min(WARM_UP, bench.texts), Path(folder))
                continue
            note(f"scoring {bench.texts} texts: {repetition + 1} of {bench.repetitions}")
            for times in (first, second):
                times.append(scored(corpus, bench, models, bench.texts, Path(folder)))
    for times in (*first, *second):
        times[ALL] = sum(times.values())
    stages = sorted(first[0], key=lambda stage: (stage == ALL, -median(times[stage] for times in first)))
    rows = []
    for stage in stages:
        row = {"stage": stage}
        row |= spread("first_seconds", [times[stage] for times in first])
        row |= spread("second_seconds", [times[stage] for times in second])
        rows.append(row | {"times_first": row["first_seconds"] / row["second_seconds"]})
    return rows


def main() -> None:
    bench, output = parse([ScoringBench, Output], description=__doc__)
    models = find_models(bench.perplexity_model, bench.mauve_model)
    corpus = load_corpus(DataOptions(bench.dataset_name, bench.data_dir))
    output.make()
    rows = measured(bench, corpus, models)
    output.publish("scoring", vars(bench), rows, [table(rows, COLUMNS)])


if __name__ == "__main__":
    run(main)
