"""The whole suite on tiny models: one pipeline for generated and human text, nothing computed twice or dropped."""

from math import inf, isfinite, isnan, nan

import numpy as np
import pytest
from transformers import HfArgumentParser

from offline_metrics import suite as suite_module
from offline_metrics.distances import bigram_js, length_ks
from offline_metrics.diversity import diversity
from offline_metrics.entropy import unigram_entropy
from offline_metrics.errors import MetricError
from offline_metrics.language_model import LanguageModel
from offline_metrics.mauve_score import mauve_score
from offline_metrics.metric_info import COUNTS, METRICS, PARTS
from offline_metrics.perplexity import perplexity
from offline_metrics.repetition import repetition
from offline_metrics.report import table
from offline_metrics.result_store import ResultStore
from offline_metrics.scores import Scores
from offline_metrics.self_bleu import distinct_n, self_bleu4
from offline_metrics.suite import MetricOptions, MetricSuite

# Built-in columns that others enter: what needs the model, what needs paired references, what is asked for apart.
NOT_IN_A_ROW = {
    "likelihood_texts", "likelihood_tokens", "draws", "nats_per_token_draws",
    "nats_per_token", "nats_per_word", "nats_per_sequence", "bits_per_character",
    "bleu", "sentence_bleu4", "rouge_l", "dist_1_per_text", "div_4", "candidate_self_bleu4",
    "seconds_per_sample", "parameters", "runs", *PARTS, "first_step", "first_log_snr",
}


def distances_of(texts: list[str], references: list[str]) -> tuple[float, float]:
    return length_ks(texts, references), bigram_js(texts, references)


def ends_well(texts: list[str]) -> float:
    """A metric from outside, undefined where there is no text."""
    return sum(text.endswith(".") for text in texts) / len(texts) if texts else nan


class CountingModel:
    """Passes features and likelihoods through and remembers which texts were read."""

    def __init__(self, model, fingerprint: str | None = None):
        self.model = model
        self.fingerprint = fingerprint or model.fingerprint
        self.positions = model.positions
        self.read: list[str] = []

    def features(self, texts, batch_size):
        self.read += texts
        return self.model.features(texts, batch_size)

    def nll(self, texts, batch_size):
        self.read += texts
        return self.model.nll(texts, batch_size)


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
    assert (row["rep_4_per_text"], row["self_bleu4"]) == (0, self_bleu4(generated))
    assert row.items() >= (repetition(generated) | distinct_n(generated)).items()
    assert (row["length_ks"], row["bigram_js"]) == distances_of(generated, references[:30])
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
    assert (row["length_ks"], row["bigram_js"]) == distances_of(suite._train.texts[:30], references[:30])
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
    assert (row["length_ks"], row["bigram_js"]) == distances_of(sentences[:40], suite.reference_texts)
    human = suite.human_row(60)
    assert (human["texts"], human["mauve_texts"], human["mauve_train_texts"]) == (40, 40, 40)
    assert human is suite.human_row(40)


def test_few_training_texts_are_halved_for_the_human_row(model, split):
    row = MetricSuite(MetricOptions(), None, model, split[0][:50], split[1]).human_row(40)
    assert (row["mauve_texts"], row["mauve_train_texts"]) == (40, 25)


@pytest.mark.parametrize("texts", [[], [""], ["", "  "] * 10])
@pytest.mark.filterwarnings("error")
def test_empty_generations_give_notes_not_crashes(suite, texts):
    row = suite.score(texts)
    assert row["texts"] == len(texts) and row["empty_texts"] == len(texts) and row["unique_words"] == 0
    for name in ("diversity", "rep_4", "memorization"):
        assert isnan(row[name]) and row.notes[name]
    assert {name for name, value in row.items() if isnan(value)} == set(row.notes)
    assert all(row.notes.values())


@pytest.mark.parametrize(
    "texts",
    [
        ["A box ."],
        ["A young sailor sold it ."] * 40,
        [" ", "\n\n", "\t", "\u2003\r\n"] * 5,
        ["\U0001f600\U0001f389", "\U0001f469\u200d\U0001f467", "\u202e\u200b", "\ufffd\x00"] * 5,
        ["word " * 100, "x" * 500] * 8,
        ["", "Our teacher sold a box and two kites ."] * 8,
    ],
    ids=["one", "all the same", "blanks", "symbols", "long", "half empty"],
)
@pytest.mark.filterwarnings("error")
def test_what_a_bad_model_writes_is_scored_in_silence_or_has_a_note(model, split, texts):
    """Also against one training text, one reference and no models; no warning is given and the table can be printed."""
    for train, references, reader in (*((each, split[1], model) for each in (split[0], split[0][:1], [])),
                                      (split[0], split[1][:1], model), (split[0], split[1], None)):  # fmt: skip
        suite = MetricSuite(MetricOptions(), reader, reader, train, references)
        rows = {"human": suite.human_row(len(texts)), "own": suite.score(texts)}
        for row in rows.values():
            without = {name for name, value in row.items() if not isfinite(value)}
            assert without == row.notes.keys() and all(row.notes.values())
            kept = row.as_record()
            assert {name for name, value in kept.items() if value is None} == without
        assert table(rows).count("–") == table(rows).count("– [")
        assert not isnan(rows["own"]["mean_words"])


class Broken(CountingModel):
    """A model whose numbers overflowed: nothing is known of any text."""

    def features(self, texts, batch_size):
        return np.full((len(texts), 4), nan, dtype=np.float32)

    def nll(self, texts, batch_size):
        return np.full(len(texts), self.value), self.model.nll(texts, batch_size)[1]


@pytest.mark.parametrize(("nll", "note"), [(nan, "not a number"), (inf, "infinite")])
@pytest.mark.filterwarnings("error")
def test_what_the_models_cannot_say_is_not_put_down_to_the_texts(model, split, nll, note):
    broken = Broken(model)
    broken.value = nll
    row = MetricSuite(MetricOptions(), broken, broken, split[0], split[1]).score(split[2]).as_record()
    for name in ("perplexity", "corpus_perplexity", "median_perplexity"):
        assert row[name] is None and note in row["notes"][name]
    assert row["mauve"] is None and "not finite" in row["notes"]["mauve"]
    assert row["tokens"] > 0 and row["diversity"] is not None


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
    for flag, wrong in (("mauve_seeds", 2), ("mauve_scaling_factor", 0.0), ("mauve_scaling_factor", inf),
                        ("metric_batch_size", 0)):  # fmt: skip
        with pytest.raises(MetricError, match=f"--{flag} {wrong}"):
            MetricOptions(**{flag: wrong})


# The store


def exactly(row: Scores) -> tuple:
    """All of a row, in order and bit for bit."""
    return [(name, np.float64(value).tobytes()) for name, value in row.items()], row.notes


@pytest.fixture
def store(tmp_path) -> ResultStore:
    return ResultStore(tmp_path / "features", pytest.fail)


@pytest.fixture
def scored(model, split, store):
    """scored(generated, ...) scores the human row and texts as a new job would; both rows, and all that was read."""

    def score(generated, *, train=split[0], references=split[1], options=None, fingerprint=None, seed=0, store=store):
        counting = CountingModel(model, fingerprint)
        options = options or MetricOptions()
        suite = MetricSuite(options, counting, counting, train, references, seed=seed, store=store)
        return suite.human_row(len(generated)), suite.score(generated), counting.read

    return score


@pytest.mark.parametrize("count", [30, 50, 120], ids=["usual", "more than references", "more than training texts"])
def test_a_second_job_reads_generated_texts_only_and_finds_the_same_numbers(scored, sentences, count):
    generated = ["", *sentences[:count], " "]
    expected_human, expected, _ = scored(generated, store=ResultStore())
    for job in (1, 2, 3):
        human, row, read = scored(generated)
        assert exactly(human) == exactly(expected_human) and exactly(row) == exactly(expected)
        if job > 1:
            assert read == [*generated, *generated[:100]]  # for perplexity; for MAUVE as many as training texts
        else:
            assert len(read) > 4 * min(count, 40)


def test_other_generated_texts_use_what_is_stored_for_the_same_references(scored, sentences, split):
    scored(split[2])
    others = sentences[:30]
    _, row, read = scored(others)
    assert read == [*others, *others]
    assert exactly(row) == exactly(scored(others, store=ResultStore())[1])


def test_training_ngrams_are_counted_once_for_all_seeds(split, store, monkeypatch):
    counted = []
    count = suite_module.training_ngrams
    monkeypatch.setattr(suite_module, "training_ngrams", lambda texts: counted.append(len(texts)) or count(texts))
    suites = [MetricSuite(MetricOptions(), None, None, *split[:2], seed=seed, store=store) for seed in range(3)]
    assert len({suite.score(split[2])["found_4grams"] for suite in suites}) == 1
    assert counted == [100]


def test_a_row_without_models_or_with_what_is_not_finite_is_stored_as_it_is(split, store, monkeypatch):
    def human(store):
        return MetricSuite(MetricOptions(), None, None, split[0], split[1], store=store).human_row(30)

    monkeypatch.setattr("offline_metrics.suite.word_count", lambda texts: {"unique_words": np.inf, "total_words": 1})
    expected = human(ResultStore())
    assert expected["unique_words"] == np.inf and isnan(expected["mauve"]) and expected.notes["mauve"]
    assert exactly(human(store)) == exactly(human(store)) == exactly(expected)


# Human texts that are read again: 30 for the perplexity of the human row, 30 for each of three lists of features.
@pytest.mark.parametrize(
    ("change", "read_again"),
    [("model", 120), ("references", 60), ("train", 30), ("seed", 90), ("batch", 120), ("scaling", 30)],
)
def test_what_changes_a_number_is_never_taken_from_the_store(scored, split, change, read_again):
    """The numbers are those of a job without a store."""
    scored(split[2])
    train, references, generated = split
    changed = {
        "model": {"fingerprint": "of another model"},
        "references": {"references": ["Something else .", *references[1:]]},
        "train": {"train": ["Something else .", *train[1:]]},  # a text that is not among those drawn
        "seed": {"seed": 1},
        "batch": {"options": MetricOptions(metric_batch_size=7)},
        "scaling": {"options": MetricOptions(mauve_scaling_factor=2.0)},
    }[change]
    human, row, read = scored(generated, **changed)
    expected_human, expected, _ = scored(generated, **changed, store=ResultStore())
    assert exactly(human) == exactly(expected_human) and exactly(row) == exactly(expected)
    assert len(read) == read_again + 2 * len(generated)


def test_metrics_from_outside_are_never_stored(split, store):
    def human(metric):
        return MetricSuite(MetricOptions(), None, None, *split[:2], {"own": metric}, store=store).human_row(30)

    assert human(len)["own"] == 30 and human(lambda texts: 7)["own"] == 7
    assert list(human(len))[-1] == "own"
    assert human(lambda texts: nan).notes["own"]
