"""Self-BLEU (Zhu et al. 2018) and distinct-n (Li et al. 2016): how alike the texts of a set are. Words between blanks.

Self-BLEU is the BLEU-4 of each text with all others as references, zero matches counted as 0.1 (smoothing method 1 of
Chen and Cherry 2014). The others differ from the whole set by one text only, so two counts per n-gram serve every text
and the time grows with the number of texts, not with its square.
"""

from collections import Counter
from collections.abc import Sequence
from math import exp, fsum, log, nan
from statistics import fmean

import datasets
import evaluate

from offline_metrics.tokens import ngrams

BLEU_ORDERS = (1, 2, 3, 4)
ZERO_MATCHES = 0.1


def self_bleu4_per_text(texts: Sequence[str]) -> list[float]:
    """BLEU-4 in [0, 1] of each text against all others, its repeats included; 0 for an empty one, NaN if alone."""
    if len(texts) < 2:
        return [nan] * len(texts)
    tokens = [text.split() for text in texts]
    counts = [Counter(ngram for n in BLEU_ORDERS for ngram in ngrams(text, n)) for text in tokens]
    # An n-gram counts as often as it is in the text, but no more often than in any other text. That is the smaller of
    # its count and the second highest count of all texts, whichever text holds the highest.
    highest, second = Counter(), Counter()
    for text in counts:
        for ngram, count in text.items():
            second[ngram] = max(second[ngram], min(count, highest[ngram]))
            highest[ngram] = max(highest[ngram], count)
    references = _closest_lengths([len(text) for text in tokens])
    return [
        _bleu4({ngram: min(count, second[ngram]) for ngram, count in own.items()}, len(text), reference)
        for text, own, reference in zip(tokens, counts, references, strict=True)
    ]


def self_bleu4(texts: Sequence[str]) -> float:
    """Mean of `self_bleu4_per_text`; NaN for fewer than two texts."""
    return fmean(self_bleu4_per_text(texts)) if texts else nan


def distinct_n(texts: Sequence[str]) -> dict[str, float]:
    """dist_1, dist_2: distinct / all n-grams, pooled over the texts, n-grams never crossing them. NaN if none."""
    result = {}
    for n in (1, 2):
        occurrences = [ngram for text in texts for ngram in ngrams(text.split(), n)]
        result[f"dist_{n}"] = len(set(occurrences)) / len(occurrences) if occurrences else nan
    return result


def _closest_lengths(lengths: Sequence[int]) -> list[int]:
    """For each length the nearest among all others, the shorter of two equally near."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    closest = [0] * len(lengths)
    for place, index in enumerate(order):
        neighbours = [lengths[other] for other in order[max(0, place - 1) : place] + order[place + 1 : place + 2]]
        closest[index] = min(neighbours, key=lambda length, own=lengths[index]: abs(length - own))
    return closest


def _bleu4(matches: dict[tuple[str, ...], int], length: int, reference_length: int) -> float:
    found = Counter()
    for ngram, count in matches.items():
        found[len(ngram)] += count
    if not found[1]:
        return 0.0
    precisions = [(found[n] or ZERO_MATCHES) / max(1, length - n + 1) for n in BLEU_ORDERS]
    brevity = min(0.0, 1 - reference_length / length)
    return exp(brevity + fsum(map(log, precisions)) / len(precisions))


class SelfBleu(evaluate.Metric):
    """`compute(predictions=texts)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="BLEU-4 of each text against all others, and the shares of distinct words and word pairs.",
            citation="Zhu et al. 2018, Texygen: A Benchmarking Platform for Text Generation Models",
            inputs_description="predictions: list of texts.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str]) -> dict[str, float]:
        return {"self_bleu4": self_bleu4(predictions), **distinct_n(predictions)}
