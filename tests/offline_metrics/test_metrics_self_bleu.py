"""Self-BLEU against nltk's leave-one-out BLEU, distinct-n; the checks against figures are from public libraries."""

import json
from math import exp, isnan

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from offline_metrics.self_bleu import distinct_n, self_bleu4, self_bleu4_per_text


def leave_one_out(texts: list[str]) -> list[float]:
    tokens = [text.split() for text in texts]
    method1 = SmoothingFunction().method1
    return [
        sentence_bleu(tokens[:index] + tokens[index + 1 :], text, smoothing_function=method1)
        for index, text in enumerate(tokens)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_self_bleu_is_the_leave_one_out_bleu_of_nltk(seed):
    # Few words and lengths from 0 to 9: ties of counts and of lengths, repeated texts, empty and one-word texts.
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(list("aabbcd"), rng.integers(0, 10))) for _ in range(rng.integers(2, 12))]
    assert self_bleu4_per_text(texts) == pytest.approx(leave_one_out(texts), rel=0, abs=1e-12)


def test_self_bleu_of_sentences(sentences):
    texts = sentences[::9]
    assert self_bleu4(texts) == pytest.approx(np.mean(leave_one_out(texts)), rel=0, abs=1e-12)
    assert 0.1 < self_bleu4(texts) < 1


def test_self_bleu_by_hand():
    assert self_bleu4(["we saw two red kites"] * 3) == 1
    assert self_bleu4(["we saw two red kites", "a box"]) == 0
    short, long = self_bleu4_per_text(["a b c d", "a b c d e f g h"])
    assert short == pytest.approx(exp(1 - 8 / 4)) and long == pytest.approx((4 / 8 * 3 / 7 * 2 / 6 * 1 / 5) ** 0.25)
    assert self_bleu4_per_text(["a b", "", "a b"]) == [pytest.approx((0.1 * 0.1) ** 0.25), 0, pytest.approx(0.1**0.5)]


def test_self_bleu_does_not_depend_on_the_order(sentences):
    texts = [*sentences[:12], sentences[3], ""]
    assert self_bleu4_per_text(texts[::-1])[::-1] == self_bleu4_per_text(texts)


def test_without_other_texts_there_is_no_self_bleu():
    assert isnan(self_bleu4([])) and isnan(self_bleu4(["a box"])) and self_bleu4_per_text([]) == []


def test_distinct_n_by_hand():
    assert distinct_n(["a b a b", "a b"]) == {"dist_1": 2 / 6, "dist_2": 2 / 4}
    assert distinct_n(["one two", "three four"]) == {"dist_1": 1, "dist_2": 1}
    found = distinct_n(["one", "", "one"])
    assert found["dist_1"] == 0.5 and isnan(found["dist_2"])


@pytest.mark.parametrize("name", ["e2e", "roc", "degenerate", "identical"])
def test_self_bleu_and_distinct_n_of_real_sentences(golden_dir, name):
    golden = json.loads((golden_dir / "metrics.json").read_text())["text_sets"][name]
    texts, expected = golden["texts"], golden["public_libraries"]
    assert self_bleu4(texts) == pytest.approx(expected["self_bleu4"], rel=0, abs=1e-9)
    assert self_bleu4_per_text(texts)[:10] == pytest.approx(expected["self_bleu4_first10"], rel=0, abs=1e-9)
    assert distinct_n(texts) == pytest.approx(
        {"dist_1": expected["distinct_1"], "dist_2": expected["distinct_2"]}, rel=0, abs=1e-9
    )
