"""Likelihood of texts: from nats of each text to nats per text, token and word, with standard errors.

N texts, K draws of a bound.
"""

from collections.abc import Mapping, Sequence
from math import isfinite, log, nan, sqrt

import numpy as np

from offline_metrics.errors import MetricError
from offline_metrics.scores import Scores

NO_SPREAD = "one {0}, or one that is not finite, has no spread"


def likelihood(
    nats: np.ndarray,
    tokens: Sequence[int],
    words: Sequence[int],
    characters: Sequence[int] | None = None,
    parts: Mapping[str, np.ndarray] | None = None,
) -> Scores:
    """Nats per sequence, token and word of nats [N, K] (K draws of a bound on each text), each sum over sum.

    `_std` is the standard error over texts, which contains that of the draws; `nats_per_token_draws` is the part that
    more draws would remove. With `characters`, bits per character too; with `parts`, the nats [N] of each for every
    text, `nats_per_token_<part>`. MetricError for counts that do not fit.
    """
    nats = np.asarray(nats, dtype=np.float64)
    counts = {"nats_per_sequence": np.ones(len(nats)), "nats_per_token": np.asarray(tokens, dtype=np.float64)}
    counts["nats_per_word"] = np.asarray(words, dtype=np.float64)
    if characters is not None:
        counts["bits_per_character"] = np.asarray(characters, dtype=np.float64) * log(2)
    if nats.ndim != 2 or not len(nats) or any(len(count) != len(nats) for count in counts.values()):
        raise MetricError(f"likelihood: nats of shape {nats.shape}; expected [N, K] and as many counts, N at least 1")
    ratios = {name: (nats.mean(1), count) for name, count in counts.items()}
    ratios |= {f"nats_per_token_{part}": (each, counts["nats_per_token"]) for part, each in (parts or {}).items()}
    row = Scores()
    for name, (per_text, count) in ratios.items():
        value, error = ratio(per_text, count)
        reason = "the likelihood of a text is not a number" if count.sum() else f"there are no {name.split('_')[-1]}s"
        row.add({name: value}, reason)
        row.add({f"{name}_std": error}, NO_SPREAD.format("text"))
    draws, noise = nats.shape[1], nan
    if draws > 1 and np.isfinite(nats).all() and np.sum(tokens):
        noise = sqrt((nats.var(1, ddof=1) / draws).sum()) / counts["nats_per_token"].sum()
    row.add({"nats_per_token_draws": noise}, NO_SPREAD.format("draw"))
    row |= {"likelihood_texts": float(len(nats)), "likelihood_tokens": float(np.sum(tokens)), "draws": float(draws)}
    return row


def ratio(totals: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Sum over sum of what N texts have [N] and its standard error over texts (the linearised variance of a ratio)."""
    if not counts.sum():
        return nan, nan
    value, n = totals.sum() / counts.sum(), len(totals)
    if n < 2 or not isfinite(value):
        return float(value), nan
    residual = totals - value * counts
    return float(value), float(sqrt(n / (n - 1) * (residual**2).sum()) / counts.sum())
