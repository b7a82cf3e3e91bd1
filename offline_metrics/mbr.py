"""Minimum Bayes risk: of several candidates for one source, the one most like all of them (Kumar and Byrne 2004)."""

from collections.abc import Sequence
from math import fsum

from offline_metrics.bleu import sentence_bleu4


def mbr_choice(candidates: Sequence[str]) -> int:
    """Index of argmax_i sum_j BLEU-4(candidate i, candidate j), j = i included; the first of equals.

    Raises ValueError for no candidates.
    """
    # Summed exactly, so that the order of the candidates decides nothing but ties.
    gains = [fsum(sentence_bleu4(candidate, other) for other in candidates) for candidate in candidates]
    return gains.index(max(gains))
