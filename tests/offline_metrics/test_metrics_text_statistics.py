"""Diversity, memorization and word counts; the checks against figures are from running the reference system."""

import json
from math import isnan

import numpy as np
import pytest

from offline_metrics.diversity import diversity
from offline_metrics.memorization import memorization, training_ngrams
from offline_metrics.tokens import ngrams, tokenise
from offline_metrics.word_count import word_count

TEXT_SETS = ("e2e", "roc", "degenerate", "identical")


def test_one_sentence_many_times_has_no_diversity_and_is_all_memory():
    texts = ["The old miller mended a broken clock ."] * 50
    found = diversity(texts)
    assert found["rep_2"] == found["rep_3"] == found["rep_4"] == pytest.approx(0.98)
    assert found["diversity"] == pytest.approx(0.02**3)
    assert (found["distinct_4"], found["ngrams_4"]) == (5, 250)
    assert memorization(texts, training_ngrams(texts[:1])) == {
        "memorization": 1.0, "found_4grams": 250, "total_4grams": 250,
    }


def test_counts_by_hand():
    found = diversity(["a b a b", "a b"])
    assert (found["distinct_2"], found["ngrams_2"]) == (2, 4)
    assert found["rep_2"] == 0.5 and found["rep_3"] == 0 and found["rep_4"] == 0 and found["diversity"] == 0.5
    known = training_ngrams(["we saw two red kites", "nothing else"])
    found = memorization(["we saw two red foxes", "saw two red kites", "two words"], known)
    assert (found["found_4grams"], found["total_4grams"], found["memorization"]) == (2, 3, 2 / 3)
    assert word_count(["A cat, a CAT", "x dog's 22"]) == {"unique_words": 3, "total_words": 4}


def test_ngrams_never_cross_texts_and_case_and_blanks_are_tokens():
    assert list(ngrams(["a", "b", "c"], 2)) == [("a", "b"), ("b", "c")] and list(ngrams(["a"], 2)) == []
    assert tokenise(["Don't  go.", "", " "]) == [["Do", "n't", " ", "go", "."], [], [" "]]
    apart, joined = diversity(["one two", "three four"]), diversity(["one two three four"])
    assert (apart["ngrams_2"], joined["ngrams_2"]) == (2, 3)
    assert memorization(["THE old miller mended"], training_ngrams(["the old miller mended"]))["memorization"] == 0


def test_hashed_ngrams_count_as_the_ngrams_themselves_do(sentences):
    train, texts = sentences[::2], [*sentences, "Nobody sold it . Nobody sold it .", "a a a a a", "three red kites"]
    expected = {ngram for text in tokenise(train) for ngram in ngrams(text, 4)}
    known = training_ngrams([*train, "", "two words"])
    assert len(known) == len(expected) > 100 and known.dtype == np.uint64 and (np.diff(known) > 0).all()
    found = memorization(texts, known)
    occurrences = [ngram for text in tokenise(texts) for ngram in ngrams(text, 4)]
    assert found["total_4grams"] == len(occurrences)
    assert 0 < found["found_4grams"] == sum(ngram in expected for ngram in occurrences) < len(occurrences)


def test_ngrams_are_told_apart_however_their_tokens_could_be_joined(monkeypatch):
    odd = ["a b|c|d|e", "a|b c|d|e", "a', 'b|c|d|e", "a|b', 'c|d|e", "a\0b|c|d|e", "a|b\0c|d|e", "a|b|c|d", "b|a|c|d"]
    monkeypatch.setattr("offline_metrics.memorization.tokenise", lambda texts: [text.split("|") for text in texts])
    assert len(training_ngrams([*odd, *odd])) == len(odd)


@pytest.mark.parametrize("texts", [[], ["", " "], ["a", "!"]])
def test_texts_without_words_or_ngrams_do_not_crash(texts):
    assert word_count(texts) == {"unique_words": 0, "total_words": 0}
    found = diversity(texts)
    assert all(isnan(found[name]) for name in ("rep_2", "rep_3", "rep_4", "diversity"))
    assert found["ngrams_2"] == found["distinct_2"] == 0
    found = memorization(texts, training_ngrams(["the old miller mended it"]))
    assert isnan(found["memorization"]) and found["total_4grams"] == 0
    found = memorization(["the old miller mended it"], training_ngrams(texts))
    assert (found["memorization"], found["found_4grams"], found["total_4grams"]) == (0, 0, 2)


@pytest.mark.parametrize("name", TEXT_SETS)
def test_text_statistics_of_the_reference_system(golden_dir, name):
    golden = json.loads((golden_dir / "metrics.json").read_text())["text_sets"][name]
    expected, counts = golden["reference_implementation"], golden["counts"]
    found = diversity(golden["texts"])
    found |= memorization(golden["texts"], training_ngrams(golden["references"])) | word_count(golden["texts"])
    for key in ("rep_2", "rep_3", "rep_4", "diversity"):
        assert found[key] == pytest.approx(expected[key], rel=0, abs=1e-12)
    assert found["memorization"] == pytest.approx(expected["memorization_4gram"], rel=0, abs=1e-12)
    assert found["unique_words"] == expected["unique_wordcount"]
    assert found["total_words"] == expected["total_word_count"]
    for n in (2, 3, 4):
        assert [found[f"distinct_{n}"], found[f"ngrams_{n}"]] == counts[f"{n}gram_unique_total"]
    assert [found["found_4grams"], found["total_4grams"]] == counts["memorized_total"]


def test_tokens_of_the_reference_system(golden_dir):
    for case in json.loads((golden_dir / "metrics.json").read_text())["spacy_tokens"]:
        assert tokenise([case["text"]]) == [case["tokens"]]
