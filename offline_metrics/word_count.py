"""Word counts: the size of the vocabulary a set of texts uses."""

from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate
from sklearn.feature_extraction.text import CountVectorizer


def word_count(texts: Sequence[str]) -> dict[str, int]:
    """Distinct and all lower-cased words of two or more word characters (scikit-learn's CountVectorizer defaults)."""
    # The analyser alone, because fitting a CountVectorizer fails where there is no word at all.
    words_of = CountVectorizer().build_analyzer()
    words = Counter(word for text in texts for word in words_of(text))
    return {"unique_words": len(words), "total_words": words.total()}


class WordCount(evaluate.Metric):
    """`compute(predictions=texts)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Number of distinct words, and of all words, in a set of texts.",
            citation="",
            inputs_description="predictions: list of texts.",
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str]) -> dict[str, int]:
        return word_count(predictions)
