"""How each metric is printed and which direction is better; read by the report and open to further metrics."""

from typing import NamedTuple


class MetricInfo(NamedTuple):
    """Printed name, whether higher is better (None: neither), and format specification."""

    label: str
    higher_is_better: bool | None
    format: str


# The columns of a report, in order.
METRICS: dict[str, MetricInfo] = {
    "perplexity": MetricInfo("PPL", False, ".1f"),
    "corpus_perplexity": MetricInfo("corpus PPL", False, ".1f"),
    "median_perplexity": MetricInfo("median PPL", False, ".1f"),
    "mauve": MetricInfo("MAUVE", True, ".3f"),
    # Closeness to the training texts is fidelity and copying at once, so neither direction is better.
    "mauve_train": MetricInfo("MAUVE train", None, ".3f"),
    "rep_2": MetricInfo("rep-2", False, ".3f"),
    "rep_3": MetricInfo("rep-3", False, ".3f"),
    "rep_4": MetricInfo("rep-4", False, ".3f"),
    "diversity": MetricInfo("diversity", True, ".3f"),
    "memorization": MetricInfo("memorization", False, ".3f"),
    "unique_words": MetricInfo("unique words", None, ",.0f"),
    "mean_words": MetricInfo("words per text", None, ".1f"),
    "texts": MetricInfo("texts", None, ",.0f"),
    "empty_texts": MetricInfo("empty texts", False, ",.0f"),
    "mauve_texts": MetricInfo("MAUVE texts", None, ",.0f"),
    "runs": MetricInfo("runs", None, ".0f"),
}

# Numbers that the metrics rest on: kept in every row, not printed as columns.
COUNTS: frozenset[str] = frozenset(
    {
        "texts_without_tokens",
        "texts_over_context",
        "tokens",
        "mauve_train_texts",
        "mauve_buckets",
        "mauve_train_buckets",
        "distinct_2",
        "distinct_3",
        "distinct_4",
        "ngrams_2",
        "ngrams_3",
        "ngrams_4",
        "found_4grams",
        "total_4grams",
        "total_words",
    }
)


def info_of(name: str) -> MetricInfo:
    """How to print a metric; one that is not in the table is printed under its own name."""
    return METRICS.get(name, MetricInfo(name, None, ".3f"))
