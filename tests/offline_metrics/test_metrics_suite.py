"""The whole suite on tiny models: one pipeline for generated and human text, nothing computed twice or dropped."""

from math import isnan, nan

import numpy as np
import pytest
from transformers import HfArgumentParser

from offline_metrics.diversity import diversity
from offline_metrics.entropy import unigram_entropy
from offline_metrics.errors import MetricError
from offline_metrics.language_model import LanguageModel
from offline_metrics.mauve_score import mauve_score
from offline_metrics.metric_info import COUNTS, METRICS
from offline_metrics.perplexity import perplexity
from offline_metrics.suite import MetricOptions, MetricSuite

# Built-in columns that others enter: what needs the model, what needs paired references, what is asked for apart.
NOT_IN_A_ROW = {
    "likelihood_texts", "likelihood_tokens", "draws", "nats_per_token_draws",
    "nats_per_token", "nats_per_word", "nats_per_sequence", "bits_per_character",
    "bleu", "sentence_bleu4", "rouge_l", "dist_1_per_text", "div_4", "candidate_self_bleu4",
    "pooled_unigram_entropy", "dist_1", "dist_2", "self_bleu4",
    "seconds_per_sample", "parameters", "runs",
}


def ends_well(texts: list[str]) -> float:
    """A metric from outside, undefined where there is no text."""
    return sum(text.endswith(".") for text in texts) / len(texts) if texts else nan


class CountingModel:
    """Passes features through and remembers which texts were read."""

    def __init__(self, model):
        self.model = model
        self.read: list[str] = []

    def features(self, texts, batch_size):
        self.read += texts
        return self.model.features(texts, batch_size)


@pytest.fixture(scope="module")
def model(gpt2_folder) -> LanguageModel:
    return LanguageModel(gpt2_folder)


@pytest.fixture(scope="module")
def split(sentences) -> tuple[list[str], list[str], list[str]]:
    """Training, reference and generated texts, shuffled alike."""
    shuffled = [sentences[index] for index in np.random.default_rng(3).permutation(len(sentences))]
    return shuffled[:100], shuffled[100:140], shuffled[140:170]


@pytest.fixture(scope="module")
def suite(model, split) -> MetricSuite:
    train, references, _ = split
    return MetricSuite(MetricOptions(), model, model, train, references, {"ends_well": ends_well})


def test_a_row_holds_what_the_single_metrics_say(suite, model, split):
    train, references, generated = split
    row = suite.score(generated)
    assert row["perplexity"] == pytest.approx(perplexity(generated, model)["mean_perplexity"])
    assert row["corpus_perplexity"] == pytest.approx(perplexity(generated, model)["corpus_perplexity"])
    assert row["diversity"] == diversity(generated)["diversity"]
    assert row["unigram_entropy"] == unigram_entropy(generated)["unigram_entropy"] > 1
    assert row["ends_well"] == ends_well(generated) > 0
    expected = mauve_score(model.features(generated), model.features(references[:30]))
    assert (row["mauve"], row["mauve_std"]) == pytest.approx((expected["mauve"], expected["mauve_std"]), abs=1e-6)
    assert row["mauve_texts"] == row["mauve_train_texts"] == row["texts"] == 30
    assert row["mean_words"] == row["total_words"] / 30
    assert all(type(value) is float for value in row.values()) and row.notes == {}
    known = METRICS.keys() | COUNTS | {"mauve_std", "mauve_train_std", "ends_well"}
    assert set(row) == known - NOT_IN_A_ROW


def test_the_human_row_has_the_same_keys_and_is_human_text(suite, model, split):
    train, references, generated = split
    row = suite.human_row(30)
    assert row.keys() == suite.score(generated).keys() and row.notes == {}
    assert row["perplexity"] == pytest.approx(perplexity(references[:30], model)["mean_perplexity"])
    assert row["mauve_texts"] == row["mauve_train_texts"] == 30
    # Halves of one set of texts, against one sentence over and over.
    assert row["mauve"] > 0.8 and row["mauve_train"] > 0.8
    collapsed = suite.score(["The old miller mended a box"] * 30)
    assert collapsed["mauve"] < 0.2 and collapsed["diversity"] < 1e-3


def test_training_texts_as_output_are_all_memory(suite, split):
    row = suite.score(split[0][:30])
    assert row["memorization"] == 1 and row["found_4grams"] == row["total_4grams"] > 0
    assert suite.score(["Quite other words are here ."])["memorization"] == 0


def test_the_draws_of_training_texts_are_disjoint_and_follow_the_seed(model, split):
    def draws(seed):
        counting = CountingModel(model)
        suite = MetricSuite(MetricOptions(), None, counting, split[0], split[1], seed=seed)
        suite.human_row(40)
        return [text for text in counting.read if text in set(split[0])]

    first = draws(0)
    assert len(first) == len(set(first)) == 80
    assert draws(0) == first and draws(1) != first


def test_human_features_are_computed_once(model, split):
    counting = CountingModel(model)
    suite = MetricSuite(MetricOptions(), None, counting, split[0], split[1])
    generated = split[2]
    suite.score(generated[:20])
    suite.score(generated)
    suite.human_row(30)
    suite.human_row(30)
    human = [text for text in counting.read if text not in set(generated)]
    assert len(human) == len(set(human)) == 30 + 30 + 30


def test_more_texts_than_references_use_the_smaller_count_and_say_so(suite, sentences, split):
    row = suite.score(sentences[:60])
    assert (row["texts"], row["mauve_texts"], row["mauve_train_texts"]) == (60, 40, 60)
    human = suite.human_row(60)
    assert (human["texts"], human["mauve_texts"], human["mauve_train_texts"]) == (40, 40, 40)
    assert human is suite.human_row(40)


def test_few_training_texts_are_halved_for_the_human_row(model, split):
    row = MetricSuite(MetricOptions(), None, model, split[0][:50], split[1]).human_row(40)
    assert (row["mauve_texts"], row["mauve_train_texts"]) == (40, 25)


@pytest.mark.parametrize("texts", [[], [""], ["", "  "] * 10])
def test_empty_generations_give_notes_not_crashes(suite, texts):
    row = suite.score(texts)
    assert row["texts"] == len(texts) and row["empty_texts"] == len(texts) and row["unique_words"] == 0
    for name in ("diversity", "rep_4", "memorization"):
        assert isnan(row[name]) and row.notes[name]
    assert {name for name, value in row.items() if isnan(value)} == set(row.notes)
    assert all(row.notes.values())


def test_empty_texts_among_others_stay_in_the_count(suite, split):
    row = suite.score(["", *split[2], " "])
    assert (row["texts"], row["empty_texts"], row["texts_without_tokens"], row["mauve_texts"]) == (32, 2, 1, 32)


def test_without_models_or_training_texts_the_numbers_are_nan_with_a_reason(split):
    row = MetricSuite(MetricOptions(), None, None, [], split[1]).score(split[2])
    for name in ("perplexity", "mauve", "mauve_train", "memorization"):
        assert isnan(row[name]) and row.notes[name]
    assert not isnan(row["diversity"])


def test_an_extra_metric_cannot_take_a_built_in_name(split):
    with pytest.raises(MetricError, match="'mauve'"):
        MetricSuite(MetricOptions(), None, None, split[0], split[1], {"mauve": len})


def test_options_parse_as_flags_and_refuse_nonsense():
    parser = HfArgumentParser(MetricOptions)
    assert "metrics:" in parser.format_help()
    (options,) = parser.parse_args_into_dataclasses(["--mauve_seeds", "4", "--mauve_scaling_factor", "8"])
    assert (options.mauve_seeds, options.mauve_scaling_factor, options.metric_batch_size) == (4, 8.0, 32)
    for wrong in ({"mauve_seeds": 2}, {"mauve_scaling_factor": 0.0}, {"metric_batch_size": 0}):
        with pytest.raises(MetricError, match=f"--{next(iter(wrong))}"):
            MetricOptions(**wrong)
