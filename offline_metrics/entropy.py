"""Unigram entropy: low where a model repeats itself, which a low generative perplexity would otherwise reward.

Tokens are words between blanks, not those of a model's tokenizer, so that models with different ones can be compared.
"""

from collections import Counter
from collections.abc import Sequence
from math import fsum, log, nan
from statistics import fmean

import datasets
import evaluate


def unigram_entropy(texts: Sequence[str]) -> dict[str, float]:
    """Entropy of the word frequencies in nats: mean over texts (an empty text has 0) and pooled. NaN if undefined."""
    frequencies = [Counter(text.split()) for text in texts]
    pooled = Counter(word for text in texts for word in text.split())
    return {
        "unigram_entropy": fmean(map(_entropy, frequencies)) if frequencies else nan,
        "pooled_unigram_entropy": _entropy(pooled) if pooled else nan,
    }


def _entropy(frequencies: Counter[str]) -> float:
    total = frequencies.total()
    return fsum(count / total * log(total / count) for count in frequencies.values())


class UnigramEntropy(evaluate.Metric):
    """`compute(predictions=texts)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Entropy in nats of the word frequencies, mean over texts and of all texts together.",
            citation="Shannon 1948, A Mathematical Theory of Communication",
            inputs_description="predictions: list of texts.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str]) -> dict[str, float]:
        return unigram_entropy(predictions)
