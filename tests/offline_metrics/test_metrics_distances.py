"""Distances of lengths and of word pairs, against scipy and by hand."""

from collections import Counter
from math import isnan, log

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp

from offline_metrics.distances import bigram_js, length_ks
from offline_metrics.tokens import ngrams


def random_texts(seed: int, words: str) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(list(words), rng.integers(0, 9))) for _ in range(rng.integers(5, 40))]


def test_lengths_by_hand():
    # Words: 1, 2, 3 against 2, 2: farthest at 2, where two thirds and all are no longer
    assert length_ks(["a", "a b", "a b c"], ["d  e", "f\ng"]) == pytest.approx(1 / 3)
    assert length_ks(["a"] * 3, ["a b"] * 2) == 1 and length_ks(["", "a"], ["b", ""]) == 0


def test_the_same_mean_length_is_not_the_same_lengths(sentences):
    flat, spread = ["a b c d"] * 10, ["a", "a b c d e f g"] * 5
    assert length_ks(flat, spread) == 0.5
    assert length_ks(sentences, sentences[::-1]) == 0


@pytest.mark.parametrize("seed", range(10))
def test_distances_are_those_of_scipy(seed):
    texts, references = random_texts(seed, "aaabc"), random_texts(100 + seed, "abbcd")
    lengths = [[len(text.split()) for text in each] for each in (texts, references)]
    assert length_ks(texts, references) == pytest.approx(ks_2samp(*lengths).statistic, abs=1e-12)
    pairs = [Counter(pair for text in each for pair in ngrams(text.split(), 2)) for each in (texts, references)]
    known = sorted(pairs[0] | pairs[1])
    p, q = ([each[pair] for pair in known] for each in pairs)
    assert bigram_js(texts, references) == pytest.approx(jensenshannon(p, q) ** 2, abs=1e-12)


def test_word_pairs_by_hand():
    # a b, b a against a b: KL(p | m) = ln(2/3) / 2 + ln 2 / 2 and KL(q | m) = ln(4/3)
    expected = (0.5 * log(2 / 3) + 0.5 * log(2) + log(4 / 3)) / 2
    assert bigram_js(["a b a"], ["a b", "c"]) == pytest.approx(expected, rel=1e-14)
    assert bigram_js(["a b"], ["b a"]) == pytest.approx(log(2)) == bigram_js(["a b", "c d"], ["b c"])


def test_word_pairs_neither_cross_texts_nor_see_their_order(sentences):
    assert bigram_js(sentences, sentences[::-1]) == 0
    near, far = bigram_js(sentences[::5], sentences[1::5]), bigram_js(sentences[:90], sentences[90:])
    assert 0 < near < far < log(2)
    assert bigram_js(sentences[:90], sentences[90:]) == pytest.approx(bigram_js(sentences[90:], sentences[:90]))


@pytest.mark.parametrize("texts", [[], [""], ["one"]])
def test_without_words_there_is_no_number(texts):
    assert isnan(bigram_js(texts, ["a b"])) and isnan(bigram_js(["a b"], texts))
    assert isnan(length_ks([], texts)) and isnan(length_ks(texts, []))
