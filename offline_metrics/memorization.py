"""Memorization: how much of the generated text is copied, four tokens at a time, from the training texts."""

from collections.abc import Sequence, Set
from math import nan

import datasets
import evaluate

from offline_metrics.tokens import ngrams, tokenise

ORDER = 4
Ngrams = Set[tuple[str, ...]]


def training_ngrams(train_texts: Sequence[str]) -> Ngrams:
    """The set of 4-grams of the training texts, to be prepared once and handed to `memorization`."""
    return {ngram for text in tokenise(train_texts) for ngram in ngrams(text, ORDER)}


def memorization(texts: Sequence[str], training: Ngrams) -> dict[str, float]:
    """Share of the 4-gram occurrences of `texts` found in `training`, with both counts; NaN if there are no 4-grams."""
    occurrences = [ngram for text in tokenise(texts) for ngram in ngrams(text, ORDER)]
    found = sum(ngram in training for ngram in occurrences)
    return {
        "memorization": found / len(occurrences) if occurrences else nan,
        "found_4grams": found,
        "total_4grams": len(occurrences),
    }


class Memorization(evaluate.Metric):
    """`compute(predictions=texts, train_texts=texts)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the 4-grams of a set of texts that occur in the training texts.",
            citation="Lovelace et al. 2023, Latent Diffusion for Language Generation",
            inputs_description="predictions: list of texts. train_texts: list of training texts, of any length.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], train_texts: Sequence[str]) -> dict[str, float]:
        return memorization(predictions, training_ngrams(train_texts))
