"""Perplexity of texts under a causal language model read from a local folder."""

from collections.abc import Sequence
from math import nan

import datasets
import evaluate
import numpy as np

from offline_metrics.language_model import LanguageModel


def perplexity(texts: Sequence[str], scorer: LanguageModel, batch_size: int = 32) -> dict[str, float | list[float]]:
    """Perplexity per text, their mean and median, and exp(total nll / total tokens) of the corpus.

    A text without tokens has no perplexity: it is NaN in `perplexities`, counted in `texts_without_tokens` and left
    out of the mean and the median. `texts_over_context` counts the texts longer than the model's positions.
    """
    nll_sum, n_tokens = scorer.nll(texts, batch_size)
    scored = n_tokens > 0
    with np.errstate(over="ignore"):
        perplexities = np.exp(np.divide(nll_sum, n_tokens, out=np.full(len(texts), nan), where=scored))
        corpus = np.exp(nll_sum.sum() / n_tokens.sum()) if scored.any() else nan
    return {
        "perplexities": perplexities.tolist(),
        "mean_perplexity": float(perplexities[scored].mean()) if scored.any() else nan,
        "median_perplexity": float(np.median(perplexities[scored])) if scored.any() else nan,
        "corpus_perplexity": float(corpus),
        "texts": len(texts),
        "texts_without_tokens": int((~scored).sum()),
        "texts_over_context": int((n_tokens > scorer.positions).sum()) if scorer.positions else 0,
        "tokens": int(n_tokens.sum()),
    }


class Perplexity(evaluate.Metric):
    """`compute(predictions=texts, model=<LanguageModel or its local folder>)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Perplexity of texts under a causal language model; BOS is context, no EOS is scored.",
            citation="",
            inputs_description="predictions: list of texts. model: a LanguageModel or the local folder of one.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(
        self, predictions: list[str], model: LanguageModel | str, device: str = "cpu", batch_size: int = 32
    ) -> dict[str, float | list[float]]:
        scorer = model if isinstance(model, LanguageModel) else LanguageModel(model, device)
        return perplexity(predictions, scorer, batch_size)
