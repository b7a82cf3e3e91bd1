"""Minimum Bayes risk and the BLEU it is made of."""

import itertools
import warnings
from math import exp, log

import numpy as np
import pytest

from offline_metrics.bleu import sentence_bleu4
from offline_metrics.mbr import mbr_choice


def test_bleu_by_hand_is_the_right_way_round():
    short, long = "a b c d e", "a b c d e f g h i j"
    assert sentence_bleu4(short, long) == pytest.approx(exp(1 - 10 / 5))
    assert sentence_bleu4(long, short) == pytest.approx((5 / 10 * 4 / 9 * 3 / 8 * 2 / 7) ** 0.25)


def test_bleu_smooths_zero_matches_by_the_length_of_the_hypothesis():
    # The k-th order without a match counts as ln(length) / (5 * 2^k) matches.
    expected = (3 / 4 * 1 / 3 * (log(4) / 10) / 2 * (log(4) / 20) / 1) ** 0.25
    assert sentence_bleu4("a b x c", "a b y c") == pytest.approx(expected)


def test_bleu_of_odd_texts_is_a_silent_number():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sentence_bleu4("", "a b") == sentence_bleu4("a b", "") == sentence_bleu4(" ", "\n") == 0
        assert sentence_bleu4("x y", "a b") == 0 and sentence_bleu4("yes", "yes") == 1
        assert sentence_bleu4("we saw two red kites", "we  saw two\nred kites") == 1
        assert 0 < sentence_bleu4("two red", "two red") < 1


@pytest.mark.parametrize("place", range(3))
def test_the_candidate_that_comes_twice_is_chosen(place):
    candidates = ["we saw two red kites"] * 3
    candidates[place] = "nobody sold a boat"
    assert mbr_choice(candidates) == (1 if place == 0 else 0)


def test_an_outlier_is_never_chosen():
    texts = ["the cat sat on the mat", "the cat sat on a mat", "zebra"]
    for candidates in itertools.permutations(texts):
        assert candidates[mbr_choice(candidates)] != "zebra"


def test_the_choice_follows_a_permutation_of_the_candidates(sentences):
    rng = np.random.default_rng(0)
    candidates = [sentences[index] for index in rng.choice(len(sentences), 6, replace=False)]
    chosen = candidates[mbr_choice(candidates)]
    for _ in range(10):
        order = rng.permutation(6)
        assert candidates[order[mbr_choice([candidates[index] for index in order])]] == chosen


def test_each_candidate_is_the_hypothesis_and_counts_for_itself():
    short, long = "a b c d e", "a b c d e f g h i j"
    assert sentence_bleu4(long, short) > sentence_bleu4(short, long)
    assert mbr_choice([short, long]) == 1
    # Two words alone fall short of 1 even against themselves; without j = i both sums were 0 and the first were taken.
    assert mbr_choice(["two red", "three kites sold by nobody"]) == 1


def test_one_candidate_is_chosen_and_of_equals_the_first():
    assert mbr_choice(["a box"]) == 0 and mbr_choice([""]) == 0
    assert mbr_choice(["", "a box", "a  box"]) == 1 and mbr_choice(["", " "]) == 0
    with pytest.raises(ValueError):
        mbr_choice([])
