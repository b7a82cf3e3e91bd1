"""Repetition within each text."""

from math import isnan

import pytest

from offline_metrics.diversity import diversity
from offline_metrics.repetition import repetition


def test_repetition_by_hand():
    # 4-grams: a b a b, b a b a, a b a b | one | none
    found = repetition(["a b a b a b", "one two three four", "one"])
    assert found["rep_4_per_text"] == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert found["rep_4_per_text_p95"] == pytest.approx(0.9 * 1 / 3)  # between the second and the third of three


def test_what_texts_have_in_common_is_no_repetition_and_a_loop_is(sentences):
    alike = ["The old miller mended a broken clock ."] * 50
    assert repetition(alike) == {"rep_4_per_text": 0, "rep_4_per_text_p95": 0} and diversity(alike)["rep_4"] > 0.9
    loops = [f"{sentence} " * 5 for sentence in sentences]
    assert repetition(loops)["rep_4_per_text"] > 0.7


def test_a_set_of_one_text_has_its_pooled_repetition(sentences):
    text = " ".join(sentences[:20] + sentences[:5])
    found = repetition([text])
    assert found["rep_4_per_text"] == found["rep_4_per_text_p95"] == diversity([text])["rep_4"] > 0


def test_the_percentile_shows_the_few_texts_that_loop(sentences):
    texts = [*sentences[:90], *["a b " * 20] * 10]
    found = repetition(texts)
    assert found["rep_4_per_text_p95"] == pytest.approx(1 - 2 / 37)
    assert found["rep_4_per_text"] == pytest.approx(0.1 * (1 - 2 / 37))
    assert repetition(texts[:93])["rep_4_per_text_p95"] == 0
    assert repetition(texts[::-1]) == pytest.approx(found)


@pytest.mark.parametrize("texts", [[], [""], ["one two three", " "]])
def test_without_a_4gram_there_is_no_number(texts):
    assert all(map(isnan, repetition(texts).values()))
