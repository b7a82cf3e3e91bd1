"""How far a set of texts is from a set of references in length and in wording, which their means do not tell.

Words are those between blanks. Both distances fall as the sets grow, in other proportions for other texts: compare
rows of equally many texts, and with the human row.
"""

from collections import Counter
from collections.abc import Sequence
from math import fsum, log, nan

import datasets
import evaluate
import numpy as np

from offline_metrics.tokens import ngrams


def length_ks(texts: Sequence[str], references: Sequence[str]) -> float:
    """Kolmogorov-Smirnov distance in [0, 1] of the numbers of words in a text; NaN if either set is empty."""
    if not (texts and references):
        return nan
    ours, theirs = (np.sort([len(text.split()) for text in each]) for each in (texts, references))
    lengths = np.concatenate([ours, theirs])
    below = [np.searchsorted(each, lengths, side="right") / len(each) for each in (ours, theirs)]
    return float(np.abs(below[0] - below[1]).max())


def bigram_js(texts: Sequence[str], references: Sequence[str]) -> float:
    """Jensen-Shannon divergence (Lin 1991) in nats, at most ln 2, of all word pairs; NaN if either set has none.

    The mean of KL(p | m) and KL(q | m), m = (p + q) / 2.
    """
    p, q = (Counter(pair for text in each for pair in ngrams(text.split(), 2)) for each in (texts, references))
    if not (p and q):
        return nan
    total_p, total_q = p.total(), q.total()
    terms = []
    for pair in p.keys() | q.keys():
        one, two = p[pair] / total_p, q[pair] / total_q
        terms += [each * log(2 * each / (one + two)) for each in (one, two) if each]
    return max(0.0, fsum(terms) / 2)


class Distances(evaluate.Metric):
    """`compute(predictions=texts, references=texts)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Distances between the lengths, and between the word pairs, of texts and of references.",
            citation="Lin 1991, Divergence Measures Based on the Shannon Entropy",
            inputs_description="predictions, references: equally many texts.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"length_ks": length_ks(predictions, references), "bigram_js": bigram_js(predictions, references)}
