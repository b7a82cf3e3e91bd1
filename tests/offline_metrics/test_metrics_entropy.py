"""Unigram entropy; the checks against figures are from public libraries, on real sentences."""

import json
from math import isnan, log

import pytest

from offline_metrics.entropy import unigram_entropy


def test_entropy_by_hand():
    found = unigram_entropy(["a a b b", "a b  c\nd", "e"])
    assert found["unigram_entropy"] == pytest.approx((log(2) + log(4)) / 3, rel=1e-15)
    pooled = [3 / 9, 3 / 9, 1 / 9, 1 / 9, 1 / 9]
    assert found["pooled_unigram_entropy"] == pytest.approx(-sum(p * log(p) for p in pooled), rel=1e-15)


def test_texts_that_are_all_alike_show_in_the_pool_alone():
    once = unigram_entropy(["the red kite"])
    assert unigram_entropy(["kite the red kite the red"]) == pytest.approx(once)
    assert unigram_entropy(["the red kite"] * 5) == pytest.approx(once)
    varied = unigram_entropy(["the red kite", "a blue boat"])
    assert varied["unigram_entropy"] == pytest.approx(log(3))
    assert varied["pooled_unigram_entropy"] == pytest.approx(log(6))


def test_one_word_has_no_entropy_and_case_counts():
    found = unigram_entropy(["no no no"])
    assert {str(value) for value in found.values()} == {"0.0"}
    assert unigram_entropy(["No no"])["unigram_entropy"] == pytest.approx(log(2))


def test_empty_texts_count_as_zero_and_none_at_all_as_undefined():
    assert unigram_entropy(["a b", "", " "])["unigram_entropy"] == pytest.approx(log(2) / 3)
    blank = unigram_entropy([" "])
    assert blank["unigram_entropy"] == 0 and isnan(blank["pooled_unigram_entropy"])
    assert all(map(isnan, unigram_entropy([]).values()))


@pytest.mark.parametrize("name", ["e2e", "roc", "degenerate", "identical"])
def test_entropy_of_real_sentences(golden_dir, name):
    golden = json.loads((golden_dir / "metrics.json").read_text())["text_sets"][name]
    found, expected = unigram_entropy(golden["texts"]), golden["public_libraries"]
    for key, source in (
        ("unigram_entropy", "unigram_entropy_per_text_mean_nats"),
        ("pooled_unigram_entropy", "unigram_entropy_pooled_nats"),
    ):
        assert found[key] == pytest.approx(expected[source], rel=0, abs=1e-9)
