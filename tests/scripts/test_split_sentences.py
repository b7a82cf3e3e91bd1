"""Sentences of a corpus as a corpus of their own: none lost, none over two splits."""

import pytest

from latent_models.corpora import DataOptions, load_corpus
from scripts import split_sentences

TEXTS = {
    "train": ["Ann ran. She won!", 'He asked: "Why?" Nobody knew. 3 of us left.', "no end"],
    "valid": ["It cost 3.50 dollars. ok then. Fine."],
    "test": ["One. Two? Three!"],
}


@pytest.fixture
def corpus(tmp_path):
    for name, texts in TEXTS.items():
        (tmp_path / "tales").mkdir(exist_ok=True)
        (tmp_path / "tales" / f"{name}.txt").write_text("\n".join(texts) + "\n")
    return tmp_path


def test_sentences_stay_in_order_and_in_their_split(corpus, call):
    outcome = call(split_sentences.main, f"--dataset_name tales --data_dir {corpus}")
    made = load_corpus(DataOptions(dataset_name="tales-sentences", data_dir=str(corpus)))
    assert made.train.texts == ["Ann ran.", "She won!", 'He asked: "Why?" Nobody knew.', "3 of us left.", "no end"]
    assert made.valid.texts == ["It cost 3.50 dollars. ok then.", "Fine."]
    assert made.test.texts == ["One.", "Two?", "Three!"]
    for name, texts in TEXTS.items():
        assert " ".join(getattr(made, name).texts) == " ".join(texts)
    assert f"{corpus / 'tales-sentences' / 'test'}.txt: 3 sentences of 1 texts" in outcome.out


@pytest.mark.parametrize(
    ("flags", "wanted"),
    {"": "-sentences: is there already; expected a new folder", "--dataset_name no": "unknown dataset 'no'"}.items(),
)
def test_what_cannot_be_made(corpus, complaint, flags, wanted):
    (corpus / "tales-sentences").mkdir()
    line = f"--dataset_name tales --data_dir {corpus} {flags}"
    assert wanted in complaint(split_sentences.main, line)
    assert not list((corpus / "tales-sentences").iterdir())
