"""Repetition within a text: how often it says again what it has said itself (Welleck et al. 2020, section 6).

What a loop in sampling or decoding leaves; the share over a whole set (`diversity`) hides it behind stock phrases that
texts have in common.
"""

from collections.abc import Sequence
from math import nan
from statistics import fmean

import datasets
import evaluate
import numpy as np

from offline_metrics.tokens import ngrams, tokenise

ORDER = 4


def repetition(texts: Sequence[str]) -> dict[str, float]:
    """rep_4 = 1 - distinct / all 4-grams of each text (0 without one): mean and 95th percentile over the texts.

    NaN if no text holds a 4-gram. A sampler repeats itself where its mean is above the percentile of human text.
    """
    occurrences = [list(ngrams(text, ORDER)) for text in tokenise(texts)]
    shares = [1 - len(set(own)) / len(own) if own else 0.0 for own in occurrences]
    if not any(occurrences):
        return dict.fromkeys(("rep_4_per_text", "rep_4_per_text_p95"), nan)
    return {"rep_4_per_text": fmean(shares), "rep_4_per_text_p95": float(np.percentile(shares, 95))}


class Repetition(evaluate.Metric):
    """`compute(predictions=texts)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of repeated 4-grams within each text, mean and 95th percentile over a set of texts.",
            citation="Welleck et al. 2020, Neural Text Generation With Unlikelihood Training",
            inputs_description="predictions: list of texts.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str]) -> dict[str, float]:
        return repetition(predictions)
