"""All metrics of one set of generated texts, and the same for human texts, by one pipeline.

Models, training texts and reference texts are prepared once and serve every set of texts that follows; what rests on
them alone is stored and serves later jobs. A number that cannot be computed is NaN and `Scores.notes` says why; nothing
is dropped in silence.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, nan
from typing import ClassVar

import numpy as np
import torch

from offline_metrics.distances import bigram_js, length_ks
from offline_metrics.diversity import diversity
from offline_metrics.entropy import unigram_entropy
from offline_metrics.errors import MetricError
from offline_metrics.language_model import FeatureModel, LanguageModel
from offline_metrics.mauve_score import SEEDS, mauve_score
from offline_metrics.memorization import memorization, training_ngrams
from offline_metrics.metric_info import COUNTS, METRICS
from offline_metrics.perplexity import perplexity
from offline_metrics.repetition import repetition
from offline_metrics.result_store import ResultStore
from offline_metrics.scores import Scores
from offline_metrics.self_bleu import distinct_n, self_bleu4
from offline_metrics.word_count import word_count

# Key in a row -> key in the result of `perplexity`.
PERPLEXITY_KEYS = {
    "perplexity": "mean_perplexity",
    "corpus_perplexity": "corpus_perplexity",
    "median_perplexity": "median_perplexity",
    "texts_without_tokens": "texts_without_tokens",
    "texts_over_context": "texts_over_context",
    "tokens": "tokens",
}


# Entered around each part of scoring, with its name.
Stage = Callable[[str], AbstractContextManager]


@dataclass
class MetricOptions:
    """What the metrics read and how MAUVE is set up; raises MetricError on values that make no sense."""

    _argument_group_name: ClassVar[str] = "metrics"

    perplexity_model: str = field(
        default="gpt2-large",
        metadata={"help": "cached causal language model (name or folder) that perplexity is measured with"},
    )
    mauve_model: str = field(
        default="gpt2-large",
        metadata={
            "help": "cached model (name or folder) whose features MAUVE compares: a causal language model, or a "
            "sentence-transformers model such as all-mpnet-base-v2"
        },
    )
    mauve_scaling_factor: float = field(
        default=5.0,
        metadata={"help": "MAUVE's constant c: 5 with a language model's features, 8 with sentence embeddings"},
    )
    mauve_seeds: int = field(
        default=3,
        metadata={"help": "number of k-means seeds MAUVE is averaged over, 3 or more"},
    )
    metric_batch_size: int = field(
        default=32,
        metadata={"help": "texts per batch when the metrics' models read them; changes speed and memory only"},
    )

    def __post_init__(self) -> None:
        if self.mauve_seeds < 3:
            raise MetricError(f"--mauve_seeds {self.mauve_seeds}: expected 3 or more, fewer cannot show the spread")
        if not 0 < self.mauve_scaling_factor < inf:
            raise MetricError(f"--mauve_scaling_factor {self.mauve_scaling_factor}: expected a positive number")
        if self.metric_batch_size < 1:
            raise MetricError(f"--metric_batch_size {self.metric_batch_size}: expected 1 or more")


class TextFeatures:
    """Features of a fixed list of texts, computed as far as they are asked for and kept, in a store too."""

    def __init__(
        self, texts: Sequence[str], model: FeatureModel | None, batch_size: int, store: ResultStore
    ) -> None:
        self.texts = texts
        self.model = model
        self.batch_size = batch_size
        self.store = store
        self._known = np.zeros((0, 0), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int) -> np.ndarray:
        """Features [count, D] of the first `count` texts."""
        known = len(self._known)
        if known < count:
            fresh = self._read(self.texts[known:count])
            self._known = np.concatenate([self._known, fresh]) if known else fresh
        return self._known[:count]

    def _read(self, texts: Sequence[str]) -> np.ndarray:
        # As a list, not one by one: rounding depends on the texts that share a batch.
        return self.store.arrays(
            "features",
            [self.model.fingerprint, self.batch_size, texts],
            lambda: {"features": self.model.features(texts, self.batch_size)},
        )["features"]


class MetricSuite:
    """Scores sets of texts against the same training texts and reference texts.

    References are taken in the order given, the first as many as there are texts to score: hand them in shuffled
    where the file is sorted. Training texts are drawn with `seed`. `scorer` or `feature_model` may be None; the
    numbers that need them are then NaN. `extra` names further metrics, each a function of the texts. What is found in
    `store` is not computed again: features of references and training texts, training 4-grams, the human row.
    """

    def __init__(
        self,
        options: MetricOptions,
        scorer: LanguageModel | None,
        feature_model: FeatureModel | None,
        train_texts: Sequence[str],
        reference_texts: Sequence[str],
        extra: Mapping[str, Callable[[list[str]], float]] | None = None,
        seed: int = 0,
        store: ResultStore | None = None,
        stage: Stage = lambda name: nullcontext(),
    ) -> None:
        self.options = options
        self.scorer = scorer
        self.feature_model = feature_model
        self.train_texts = train_texts
        self.reference_texts = reference_texts
        self.extra = dict(extra or {})
        if taken := sorted(self.extra.keys() & (METRICS.keys() | COUNTS)):
            raise MetricError(f"extra metric {taken[0]!r}: the name is taken by a built-in metric; choose another")
        self.store, self.stage = store or ResultStore(), stage
        order = torch.randperm(len(train_texts), generator=torch.Generator().manual_seed(seed)).tolist()
        self._reference = self._features_of(reference_texts, self.store)
        # Two draws from the two ends of one permutation: disjoint up to half the training texts each.
        self._train = self._features_of([train_texts[index] for index in order], self.store)
        self._other_train = self._features_of([train_texts[index] for index in reversed(order)], self.store)
        self._human_rows: dict[int, Scores] = {}

    def score(self, texts: Sequence[str]) -> Scores:
        """All metrics of texts: MAUVE and distances against as many references, `mauve_train` training texts."""
        texts = list(texts)
        generated = self._features_of(texts, ResultStore())
        against_references = generated, self._reference, min(len(texts), len(self._reference))
        against_training = generated, self._train, min(len(texts), len(self._train))
        return self._with_extra(self._row(texts, against_references, against_training), texts)

    def human_row(self, n: int) -> Scores:
        """The same of the first n references; MAUVE and distances of training texts, against them or others."""
        texts = list(self.reference_texts[:n])
        if len(texts) not in self._human_rows:
            against_references = self._train, self._reference, min(len(texts), len(self._train))
            against_training = self._train, self._other_train, min(len(texts), len(self._train) // 2)
            if self.feature_model is not None:
                # Also for a row that is in the store: rounding depends on where an earlier reading of texts ended.
                with self.stage("MAUVE features"):
                    for features in (self._train, self._reference):
                        features.first(against_references[-1])
            models = [model and model.fingerprint for model in (self.scorer, self.feature_model)]
            row = self.store.arrays(
                "human_row",
                [models, vars(self.options), texts, self._train.texts],
                lambda: self._row(texts, against_references, against_training).as_arrays(),
            )
            self._human_rows[len(texts)] = self._with_extra(Scores.from_arrays(row), texts)
        return self._human_rows[len(texts)]

    @cached_property
    def _training_ngrams(self) -> np.ndarray:
        texts = list(self.train_texts)
        return self.store.arrays("ngrams", texts, lambda: {"ngrams": training_ngrams(texts)})["ngrams"]

    def _features_of(self, texts: Sequence[str], store: ResultStore) -> TextFeatures:
        return TextFeatures(texts, self.feature_model, self.options.metric_batch_size, store)

    def _row(
        self,
        texts: list[str],
        against_references: tuple[TextFeatures, TextFeatures, int],
        against_training: tuple[TextFeatures, TextFeatures, int],
    ) -> Scores:
        row = Scores()
        row.add({"texts": len(texts), "empty_texts": sum(not text.strip() for text in texts)}, "")
        with self.stage("perplexity"):
            self._add_perplexity(row, texts)
        with self.stage("entropy"):
            row.add(unigram_entropy(texts), "there is no word")
        self._add_mauve(row, "mauve", *against_references)
        self._add_mauve(row, "mauve_train", *against_training)
        with self.stage("distances"):
            self._add_distances(row, *against_references)
        with self.stage("diversity"):
            found = diversity(texts) | repetition(texts) | distinct_n(texts)
            row.add(found, "no text is long enough to hold such an n-gram")
        with self.stage("self-BLEU"):
            row.add({"self_bleu4": self_bleu4(texts)}, "there are no two texts")
        with self.stage("memorization"):
            self._add_memorization(row, texts)
        with self.stage("words"):
            words = word_count(texts)
        row.add(words | {"mean_words": words["total_words"] / len(texts) if texts else nan}, "there are no texts")
        return row

    def _with_extra(self, row: Scores, texts: list[str]) -> Scores:
        # Apart from the rest, because a function has no checksum to store its numbers by.
        for name, metric in self.extra.items():
            with self.stage(name):
                row.add({name: metric(texts)}, f"{name} is not defined for these texts")
        return row

    def _add_perplexity(self, row: Scores, texts: list[str]) -> None:
        if self.scorer is None:
            row.add(dict.fromkeys(PERPLEXITY_KEYS, nan), "no language model was given to score the texts")
        else:
            found = perplexity(texts, self.scorer, self.options.metric_batch_size)
            reason = "the language model gave a text a likelihood that is not a number"
            if not found["tokens"]:
                reason = "no text has a token to score"
            row.add({key: found[source] for key, source in PERPLEXITY_KEYS.items()}, reason)

    def _add_mauve(self, row: Scores, name: str, left: TextFeatures, right: TextFeatures, count: int) -> None:
        if self.feature_model is None:
            found = {"mauve": nan, "mauve_std": nan, "mauve_texts": nan, "mauve_buckets": nan}
            reason = "no model was given to compute MAUVE's features"
        else:
            seeds = range(SEEDS[0], SEEDS[0] + self.options.mauve_seeds)
            scaling_factor = self.options.mauve_scaling_factor
            with self.stage("MAUVE features"):
                p, q = left.first(count), right.first(count)
            with self.stage("MAUVE"):
                found = mauve_score(p, q, seeds, scaling_factor)
            reason = found["note"]
        kept = ("mauve", "mauve_std", "mauve_texts", "mauve_buckets")
        row.add({key.replace("mauve", name, 1): found[key] for key in kept}, reason)

    def _add_distances(self, row: Scores, left: TextFeatures, right: TextFeatures, count: int) -> None:
        texts, others = left.texts[:count], right.texts[:count]
        row.add({"length_ks": length_ks(texts, others)}, "there are no texts, or none to compare with")
        row.add({"bigram_js": bigram_js(texts, others)}, "no text, or none to compare with, holds two words")

    def _add_memorization(self, row: Scores, texts: list[str]) -> None:
        found = memorization(texts, self._training_ngrams)
        if not len(self.train_texts):
            # 0 would read as "copies nothing".
            row.add(found | {"memorization": nan, "found_4grams": nan}, "there are no training texts to compare with")
        else:
            row.add(found, "no text has four tokens")
