"""How each metric is printed and which direction is better; read by the report and open to further metrics."""

from typing import NamedTuple


class MetricInfo(NamedTuple):
    """Printed name, whether higher is better (None: neither), and format specification."""

    label: str
    higher_is_better: bool | None
    format: str


# What a token owes to the parts of a bound; the last is what the first would be with the latents of other texts.
PARTS: dict[str, MetricInfo] = {
    "nats_per_token_reconstruction": MetricInfo("reconstruction", None, ".3f"),
    "nats_per_token_diffusion": MetricInfo("diffusion", None, ".3f"),
    "nats_per_token_prior": MetricInfo("prior", None, ".3f"),
    "nats_per_token_length": MetricInfo("length", None, ".3f"),
    "nats_per_token_shuffled": MetricInfo("reconstruction, shuffled", None, ".3f"),
}
LIKELIHOOD = ("nats_per_token", "nats_per_word", "nats_per_sequence", "bits_per_character", *PARTS)

# The columns of a report, in order.
METRICS: dict[str, MetricInfo] = {
    "nats_per_token": MetricInfo("nats/token", False, ".3f"),
    "nats_per_word": MetricInfo("nats/word", False, ".3f"),
    "nats_per_sequence": MetricInfo("nats/sequence", False, ".3f"),
    "bits_per_character": MetricInfo("bits/character", False, ".3f"),
    **PARTS,
    # Of the diffusion process: the noise at which a decoder takes over.
    "first_step": MetricInfo("first step", None, ",.0f"),
    "bleu": MetricInfo("BLEU", True, ".2f"),
    "sentence_bleu4": MetricInfo("sentence BLEU-4", True, ".3f"),
    "rouge_l": MetricInfo("ROUGE-L", True, ".3f"),
    "dist_1_per_text": MetricInfo("dist-1 per text", True, ".3f"),
    "div_4": MetricInfo("div-4", True, ".3f"),
    "candidate_self_bleu4": MetricInfo("candidate self-BLEU-4", False, ".3f"),
    "perplexity": MetricInfo("PPL", False, ".1f"),
    "corpus_perplexity": MetricInfo("corpus PPL", False, ".1f"),
    "median_perplexity": MetricInfo("median PPL", False, ".1f"),
    # Too low is repetition and too high is noise: human text is the mark.
    "unigram_entropy": MetricInfo("entropy", None, ".3f"),
    "pooled_unigram_entropy": MetricInfo("pooled entropy", None, ".3f"),
    "mauve": MetricInfo("MAUVE", True, ".3f"),
    # Closeness to the training texts is fidelity and copying at once, so neither direction is better.
    "mauve_train": MetricInfo("MAUVE train", None, ".3f"),
    # Like MAUVE they have a floor that sinks as texts grow in number: that of the human row.
    "length_ks": MetricInfo("length KS", False, ".3f"),
    "bigram_js": MetricInfo("bigram JS", False, ".3f"),
    "rep_2": MetricInfo("rep-2", False, ".3f"),
    "rep_3": MetricInfo("rep-3", False, ".3f"),
    "rep_4": MetricInfo("rep-4", False, ".3f"),
    "rep_4_per_text": MetricInfo("rep-4 per text", False, ".3f"),
    "rep_4_per_text_p95": MetricInfo("rep-4 per text, 95%", False, ".3f"),
    "diversity": MetricInfo("diversity", True, ".3f"),
    "dist_1": MetricInfo("dist-1", True, ".3f"),
    "dist_2": MetricInfo("dist-2", True, ".3f"),
    "self_bleu4": MetricInfo("self-BLEU-4", False, ".3f"),
    "memorization": MetricInfo("memorization", False, ".3f"),
    "unique_words": MetricInfo("unique words", None, ",.0f"),
    "mean_words": MetricInfo("words per text", None, ".1f"),
    "texts": MetricInfo("texts", None, ",.0f"),
    "empty_texts": MetricInfo("empty texts", False, ",.0f"),
    "mauve_texts": MetricInfo("MAUVE texts", None, ",.0f"),
    "seconds_per_sample": MetricInfo("s/sample", False, ".3f"),
    # In millions.
    "parameters": MetricInfo("M params", None, ".2f"),
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
        "likelihood_texts",
        "likelihood_tokens",
        "draws",
        "first_log_snr",
        "nats_per_token_draws",
    }
)


def info_of(name: str) -> MetricInfo:
    """How to print a metric; one that is not in the table is printed under its own name."""
    return METRICS.get(name, MetricInfo(name, None, ".3f"))
