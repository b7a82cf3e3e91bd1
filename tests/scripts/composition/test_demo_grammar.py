"""The grammar of the demo corpus reads all that it writes and nothing else, and the committed files are its own."""

import random
from itertools import chain
from pathlib import Path

import pytest

from latent_models.corpora import DataOptions, load_corpus
from scripts import make_demo_corpus
from scripts.composition.demo_grammar import (
    ATTRIBUTES,
    FIRST,
    SECOND,
    WORDINGS,
    acceptance,
    attributes_of,
    parse,
    write,
)

COMMITTED = Path(__file__).parents[3] / "datasets" / "demo"
FILES = tuple(f"src1_{split}.txt" for split in ("train", "valid", "test"))
FRAMES = frozenset(chain(*FIRST.values(), *SECOND.values()))


def as_meaning(values: dict[str, str]) -> str:
    return " | ".join(f"{name} : {values[name]}" for name in ATTRIBUTES if name in values)


def written(count: int, seed: int = 1) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    return [write(rng) for _ in range(count)]


def sentences(text: str) -> list[str]:
    return [f"{sentence}." for sentence in text.removesuffix(".").split(". ")]


# Writing and reading


def test_all_that_is_written_is_read_back_to_its_meaning():
    for meaning, text in written(3000):
        values = parse(text)
        assert values is not None, text
        assert as_meaning(values) == meaning, text


def test_texts_have_one_or_two_sentences_about_different_things():
    counts = [len(sentences(text)) for _, text in written(1000)]
    assert set(counts) == {1, 2}
    assert 100 < counts.count(2) < 500


def test_no_frame_speaks_of_an_attribute_twice():
    assert len(FRAMES) > 100
    for frame in FRAMES:
        assert frame.count("{") == len(attributes_of(frame)) >= 1
        assert not set("<>") & set(frame)
        assert frame.endswith(".")


def test_no_phrase_stands_for_two_values():
    """Else a text would have two meanings."""
    for attribute, wordings in WORDINGS.items():
        for slot, table in wordings.items():
            phrases = list(chain(*table.values()))
            assert len(phrases) == len(set(phrases)), (attribute, slot)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Juniper",
        "Juniper.",
        "Juniper is a Thai pub by the river",  # no full stop
        "Juniper is a Thai pub by the river..",
        "Juniper is a  Thai pub by the river.",  # a space too many
        " Juniper is a Thai pub by the river.",
        "Juniper is a Thai pub by the river. ",
        "Juniper is a Thai pub by the river.\n",
        "Juniper is a Thai pub by the river.It has poor reviews.",  # a space too few
        "Juniper is an Thai pub by the river.",  # the wrong article
        "Juniper is a Indian pub by the river.",
        "juniper is a Thai pub by the river.",  # no capital
        "Juniper is a thai pub by the river.",
        "Juniper is a purple pub by the river.",  # no such word
        "Juniper is a pub Thai by the river.",  # the wrong order
        "It has poor reviews.",  # a second sentence alone
        "It has poor reviews. Juniper is a Thai pub by the river.",
        "Juniper is a Thai pub by the river. Juniper is a Thai pub by the river.",
        "Juniper is a Thai pub by the river. It is in the suburbs.",  # the area twice
        "Juniper is a Thai pub by the river. It is by the river.",
        "Juniper is a Thai pub by the river. It serves Greek food.",  # the food twice
        "Juniper is a Thai pub by the river. It has poor reviews. It has low prices.",  # three sentences
    ],
)
def test_what_the_grammar_could_not_have_written_is_refused(text):
    assert parse("Juniper is a Thai pub by the river.")
    assert parse("Juniper is a Thai pub by the river. It has poor reviews.")
    assert parse(text) is None


def test_any_word_changed_doubled_or_left_out_is_noticed():
    for meaning, text in written(40, seed=2):
        words = text.split(" ")
        for i, word in enumerate(words):
            other = "purple" + word[len(word.rstrip(".,")) :]
            assert parse(" ".join([*words[:i], other, *words[i + 1 :]])) is None
            assert parse(" ".join([*words[:i], word, word, *words[i + 1 :]])) is None
            # Without a word it may be another text of the grammar, which then says something else.
            shorter = parse(" ".join([*words[:i], *words[i + 1 :]]))
            assert shorter is None or as_meaning(shorter) != meaning


def test_acceptance_is_a_share():
    good = [text for _, text in written(6)]
    assert acceptance(good) == 1
    assert acceptance([*good, "", "Juniper."]) == 0.75
    assert acceptance([""]) == 0


# The committed corpus


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(DataOptions("demo"))


def test_the_committed_files_are_rebuilt_byte_for_byte(tmp_path, monkeypatch):
    drawn = set()

    class Recording(random.Random):
        def choice(self, items):
            picked = super().choice(items)
            drawn.add(picked)
            return picked

    monkeypatch.setattr(make_demo_corpus.random, "Random", Recording)
    make_demo_corpus.main(["--output_dir", str(tmp_path)])
    for file in FILES:
        assert (tmp_path / file).read_bytes() == (COMMITTED / file).read_bytes(), file
    assert drawn & FRAMES == FRAMES  # every structure occurs in the corpus


def test_another_seed_gives_another_corpus():
    assert make_demo_corpus.draw(1, 50) == make_demo_corpus.draw(1, 50)
    assert not set(make_demo_corpus.draw(1, 50)) & set(make_demo_corpus.draw(2, 50))


def test_there_are_enough_texts_and_none_twice(corpus):
    texts = [*corpus.train.texts, *corpus.valid.texts, *corpus.test.texts]
    assert len(set(corpus.train.texts)) >= 40_000
    assert len(set(texts)) == len(texts)
    assert {len(corpus.valid), len(corpus.test)} == {2000}


def test_reading_the_files_changes_no_text(corpus):
    """The reader joins what a tokeniser split off, of which there is nothing here."""
    lines = (COMMITTED / "src1_train.txt").read_text(encoding="utf-8").splitlines()
    assert corpus.train.texts == [line.split("||")[1] for line in lines]


def test_every_text_has_the_meaning_that_stands_before_it(corpus):
    for text, source in zip(corpus.valid.texts, corpus.valid.sources, strict=True):
        assert as_meaning(parse(text)) == source


def test_every_name_food_and_landmark_is_in_the_training_split(corpus):
    meanings = "\n".join(corpus.train.sources) + "\n"
    for attribute, wordings in WORDINGS.items():
        for value in next(iter(wordings.values())):
            assert any(f"{attribute} : {value}{end}" in meanings for end in (" |", "\n")), (attribute, value)
