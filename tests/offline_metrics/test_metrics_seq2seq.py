"""Scores of texts with references; the checks against figures are from public libraries, on real question pairs."""

import json
import logging
import warnings
from math import exp

import pytest

from offline_metrics.bleu import sentence_bleu4
from offline_metrics.errors import MetricError
from offline_metrics.seq2seq import candidate_diversity, seq2seq


def test_the_references_themselves_score_full_marks(sentences):
    found = seq2seq(sentences, sentences)
    assert found["bleu"] == pytest.approx(100) and found["rouge_l"] == pytest.approx(1)
    assert found["sentence_bleu4"] == pytest.approx(sum(sentence_bleu4(text, text) for text in sentences) / 180)
    assert found["dist_1_per_text"] == 1


def test_pairs_by_hand_are_the_right_way_round():
    short, long = "a b c d e", "a b c d e f g h i j"
    precision = (5 / 10 * 4 / 9 * 3 / 8 * 2 / 7) ** 0.25
    found = seq2seq([short], [long])
    assert found["bleu"] == pytest.approx(100 * exp(-1)) and found["sentence_bleu4"] == pytest.approx(exp(-1))
    found = seq2seq([long], [short])
    assert found["bleu"] == pytest.approx(100 * precision) and found["sentence_bleu4"] == pytest.approx(precision)
    assert found["rouge_l"] == pytest.approx(2 / 3)


def test_pairs_are_one_to_one(sentences):
    texts, references = sentences[:20], sentences[20:40]
    found = seq2seq(texts, references)
    singles = [seq2seq([text], [reference]) for text, reference in zip(texts, references, strict=True)]
    for name in ("sentence_bleu4", "rouge_l", "dist_1_per_text"):
        assert found[name] == pytest.approx(sum(single[name] for single in singles) / 20)
    assert found["bleu"] != pytest.approx(sum(single["bleu"] for single in singles) / 20, rel=0.01)  # of the corpus


def test_rouge_ignores_gaps_case_and_signs_and_keeps_order():
    def rouge_l(text, reference):
        return seq2seq([text], [reference])["rouge_l"]

    assert rouge_l("The boat, sold!", "the old boat was sold .") == pytest.approx(2 * 1 * (3 / 5) / (1 + 3 / 5))
    assert rouge_l("sold boat", "boat sold") == pytest.approx(0.5) and rouge_l("boats", "boat") == 0


def test_distinct_words_are_counted_within_each_text():
    assert seq2seq(["a a b b", "a b", ""], ["x", "x", "x"])["dist_1_per_text"] == pytest.approx((0.5 + 1 + 0) / 3)


def test_empty_texts_and_references_score_zero_in_silence(caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, "sacrebleu"):
        warnings.simplefilter("error")
        assert set(seq2seq(["", " "], ["a box", "it"]).values()) == {0}
        assert seq2seq(["a box"], [""])["sentence_bleu4"] == 0
        seq2seq(["She sold a boat ."] * 200, ["She sold a boat ."] * 200)
    assert not caplog.records


@pytest.mark.parametrize("texts, references", [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_texts_without_their_references_are_refused(texts, references):
    with pytest.raises(MetricError, match=f"{len(texts)} texts and {len(references)} references"):
        seq2seq(texts, references)


def test_candidates_are_compared_within_their_set():
    alike, apart = ["we saw two red kites"] * 3, ["we saw two red kites", "nobody sold a single boat"]
    assert candidate_diversity([alike]) == {"div_4": 2 / 6, "candidate_self_bleu4": 1}
    assert candidate_diversity([apart]) == {"div_4": 1, "candidate_self_bleu4": 0}
    assert candidate_diversity([alike, apart]) == {"div_4": pytest.approx(2 / 3), "candidate_self_bleu4": 0.5}
    assert candidate_diversity([apart, apart]) == {"div_4": 1, "candidate_self_bleu4": 0}
    assert candidate_diversity([["a", "b"]])["div_4"] == 0


def test_every_ordered_pair_of_candidates_counts():
    one, two, three = "a b c d e", "a b c d e f g h i j", "a b c d x"
    pairs = [(one, two), (two, one), (one, three), (three, one), (two, three), (three, two)]
    found = candidate_diversity([[one, two, three]])["candidate_self_bleu4"]
    assert found == pytest.approx(sum(sentence_bleu4(*pair) for pair in pairs) / 6)
    assert found == pytest.approx(candidate_diversity([[three, two, one]])["candidate_self_bleu4"])


@pytest.mark.parametrize("candidates", [[], [["a", "b"], ["a"]], [[]]])
def test_sets_that_cannot_be_compared_are_refused(candidates):
    with pytest.raises(MetricError, match="two candidates or more"):
        candidate_diversity(candidates)


def test_scores_of_real_question_pairs(golden_dir):
    golden = json.loads((golden_dir / "metrics.json").read_text())["seq2seq"]
    found = seq2seq(golden["hypotheses"], golden["references"])
    assert found["bleu"] == pytest.approx(golden["sacrebleu"]["score"], rel=0, abs=1e-6)
    assert found["rouge_l"] == pytest.approx(golden["rouge"]["rougeL"]["fmeasure"], rel=0, abs=1e-9)
    for text, reference, expected in zip(
        golden["hypotheses"], golden["references"], golden["rougeL_fmeasure_per_pair"], strict=True
    ):
        assert seq2seq([text], [reference])["rouge_l"] == pytest.approx(expected, rel=0, abs=1e-9)
