"""Diversity: how seldom a set of texts repeats its own n-grams (Su et al. 2022, section 4.2)."""

from collections.abc import Sequence
from math import nan, prod

import datasets
import evaluate

from offline_metrics.tokens import ngrams, tokenise

ORDERS = (2, 3, 4)


def diversity(texts: Sequence[str]) -> dict[str, float]:
    """rep_n = 1 - distinct / all n-grams, pooled over the texts; diversity = prod(1 - rep_n); counts. NaN if none."""
    tokens = tokenise(texts)
    result = {}
    for n in ORDERS:
        total = sum(max(0, len(text) - n + 1) for text in tokens)
        distinct = len({ngram for text in tokens for ngram in ngrams(text, n)})
        result |= {f"rep_{n}": 1 - distinct / total if total else nan, f"distinct_{n}": distinct, f"ngrams_{n}": total}
    return result | {"diversity": prod(1 - result[f"rep_{n}"] for n in ORDERS)}


class Diversity(evaluate.Metric):
    """`compute(predictions=texts)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of distinct 2-, 3- and 4-grams in a set of texts, and their product.",
            citation="Su et al. 2022, A Contrastive Framework for Neural Text Generation",
            inputs_description="predictions: list of texts.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str]) -> dict[str, float]:
        return diversity(predictions)
