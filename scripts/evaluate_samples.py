"""Scores any file of texts against a corpus, beside the human row, as an evaluation under seed 42 would.

    python -m scripts.evaluate_samples --samples FILE --dataset_name e2e [--split test]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from latent_models.codec import find_models
from latent_models.corpora import DataOptions, load_corpus
from offline_metrics import report
from offline_metrics.suite import MetricOptions, MetricSuite
from scripts.composition.build import EXTRA_METRICS, device, load_metric_models, result_store, shuffled
from scripts.composition.checks import check_writable
from scripts.composition.options import parse
from scripts.evaluation.evaluation import HUMAN, VALID_SEED, write_rows
from scripts.job.errors import run
from scripts.sampling.samples_file import check_format, read_texts


@dataclass
class ScoringOptions:
    _argument_group_name: ClassVar[str] = "samples"

    samples: str | None = field(default=None, metadata={"help": "texts to score: .jsonl or .csv with `text`, or .txt"})
    split: Literal["valid", "test"] = field(default="test", metadata={"help": "split whose texts are the references"})
    output_dir: str | None = field(default=None, metadata={"help": "also write scores.json and table.md there"})
    save_dir: str = field(
        default="saved_models", metadata={"help": "what rests on the corpus alone is kept in <save_dir>/features"}
    )

    def __post_init__(self):
        check_format(self.samples)


def main() -> None:
    scoring, data, metrics = parse([ScoringOptions, DataOptions, MetricOptions], description=__doc__)
    path = Path(scoring.samples)
    if scoring.output_dir is not None:
        check_writable("output_dir", scoring.output_dir)
    texts = read_texts(path)
    corpus = load_corpus(data)
    scorer_path, feature_path = find_models(metrics.perplexity_model, metrics.mauve_model)
    references = shuffled(getattr(corpus, scoring.split).texts, VALID_SEED)
    suite = MetricSuite(
        metrics,
        *load_metric_models(scorer_path, feature_path, device()),
        corpus.train.texts,
        references,
        EXTRA_METRICS.get(corpus.name),
        VALID_SEED,
        result_store(scoring.save_dir),
    )
    rows = {HUMAN: suite.human_row(len(texts)), path.name: suite.score(texts)}
    print(report.table(rows, human=HUMAN))
    if scoring.output_dir is not None:
        write_rows(Path(scoring.output_dir), rows)


if __name__ == "__main__":
    run(main)
