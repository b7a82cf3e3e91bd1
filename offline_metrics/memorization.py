"""Memorization: how much of the generated text is copied, four tokens at a time, from the training texts.

N-grams are told apart by 64 bits of a hash, so that those of a whole corpus are one small array. Even with ten million
of them the chance that an n-gram is taken for another one is below 1e-12.
"""

from collections.abc import Sequence
from hashlib import blake2b
from math import nan

import datasets
import evaluate
import numpy as np

from offline_metrics.tokens import ngrams, tokenise

ORDER = 4


def training_ngrams(train_texts: Sequence[str]) -> np.ndarray:
    """Hashes of the distinct 4-grams of the training texts [M] uint64, sorted; made once, for `memorization`."""
    return np.unique(_ngrams(train_texts))


def memorization(texts: Sequence[str], training: np.ndarray) -> dict[str, float]:
    """Share of the 4-gram occurrences of `texts` found in `training`, with both counts; NaN if there are no 4-grams."""
    occurrences = _ngrams(texts)
    before, after = (np.searchsorted(training, occurrences, side) for side in ("left", "right"))
    found = int((after > before).sum())
    return {
        "memorization": found / len(occurrences) if len(occurrences) else nan,
        "found_4grams": found,
        "total_4grams": len(occurrences),
    }


def _ngrams(texts: Sequence[str]) -> np.ndarray:
    """The hash of every 4-gram of every text, repeats included, uint64."""
    return np.fromiter((_hash(ngram) for text in tokenise(texts) for ngram in ngrams(text, ORDER)), dtype=np.uint64)


def _hash(ngram: tuple[str, ...]) -> int:
    # The representation, because tokens merely joined could be those of another n-gram.
    return int.from_bytes(blake2b(repr(ngram).encode(), digest_size=8).digest())


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
