"""The models behind perplexity and MAUVE, checked against a token-by-token computation and mauve-text's own reader."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mauve.utils import featurize_tokens_from_model, get_model, get_tokenizer
from transformers import BertConfig, BertModel, BertTokenizerFast

from offline_metrics.errors import MetricError
from offline_metrics.language_model import LanguageModel, SentenceModel, load_feature_model


@pytest.fixture(scope="module")
def model(gpt2_folder: Path) -> LanguageModel:
    return LanguageModel(gpt2_folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def texts(sentences: list[str]) -> list[str]:
    return ["", *sentences[:9], " ".join(sentences[:5]), "a", " ".join(sentences[:3])]


def nll_token_by_token(model: LanguageModel, text: str) -> float:
    """The definition: each token from the window it falls into, one forward pass per token, no padding."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    sequence, positions = [model.bos_id, *ids], model.positions
    total = 0.0
    for token in range(len(ids)):
        start = 0
        if token >= positions:
            window = (token - positions) // (positions // 2)
            start = min(positions + (window + 1) * (positions // 2), len(ids)) - positions
        logits = model.model(torch.tensor([sequence[start : token + 1]])).logits[0, -1]
        total -= logits.log_softmax(-1)[ids[token]].item()
    return total


@torch.no_grad()
def test_nll_is_the_sum_over_tokens_and_long_texts_are_scored_whole(model, texts):
    nll_sum, n_tokens = model.nll(texts, batch_size=4)
    assert (n_tokens > model.positions).sum() == 2 and n_tokens[0] == 0
    assert n_tokens.tolist() == [len(model.tokenizer(text)["input_ids"]) for text in texts]
    np.testing.assert_allclose(nll_sum, [nll_token_by_token(model, text) for text in texts], rtol=1e-10)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_nll_and_features_do_not_depend_on_batch_size_or_order(model, texts, batch_size):
    order = np.random.default_rng(0).permutation(len(texts))
    expected_nll, expected_tokens = model.nll(texts, 5)
    nll_sum, n_tokens = model.nll([texts[index] for index in order], batch_size)
    np.testing.assert_allclose(nll_sum, expected_nll[order], rtol=1e-12)
    np.testing.assert_array_equal(n_tokens, expected_tokens[order])
    features = model.features([texts[index] for index in order], batch_size)
    np.testing.assert_allclose(features, model.features(texts, 5)[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_length", [6, 24])
def test_features_are_those_of_mauve_text(gpt2_folder, sentences, max_length):
    texts = [*sentences[:7], "a", " ".join(sentences[:2])]
    tokenizer = get_tokenizer(str(gpt2_folder))
    ids = [tokenizer.encode(text, return_tensors="pt", truncation=True, max_length=max_length) for text in texts]
    expected = featurize_tokens_from_model(get_model(str(gpt2_folder), tokenizer, -1), ids, batch_size=3)
    found = LanguageModel(gpt2_folder).features(texts, batch_size=4, max_length=max_length)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_a_text_without_tokens_keeps_its_row_and_no_texts_give_no_rows(model):
    features = model.features(["", "a"], batch_size=2)
    bos = model.model.base_model(torch.tensor([[model.bos_id]])).last_hidden_state[0, 0].detach()
    np.testing.assert_allclose(features[0], bos.float().numpy(), rtol=1e-6)
    assert model.features([], 2).shape == (0, 16)
    assert [array.shape for array in model.nll([], 2)] == [(0,), (0,)]


def test_folders_that_are_no_complete_model_are_refused_in_one_line(gpt2_folder, tmp_path):
    def refusal(path):
        with pytest.raises(MetricError) as caught:
            LanguageModel(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such folder" in refusal(tmp_path / "absent")
    assert "no weights in safetensors" in refusal(tmp_path)
    broken = shutil.copytree(gpt2_folder, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"not weights")
    assert "cannot load" in refusal(broken)
    wordless = shutil.copytree(gpt2_folder, tmp_path / "wordless", ignore=shutil.ignore_patterns("tokenizer.json"))
    settings = json.loads((wordless / "tokenizer_config.json").read_text())
    (wordless / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "GPT2Tokenizer"}))
    assert "its tokenizer has no words" in refusal(wordless)
    (wordless / "tokenizer.json").write_text('{"version": ')
    assert "cannot load the model: tokenizer.json: Expecting value" in refusal(wordless)
    encoder = tmp_path / "bert"
    shutil.copytree(gpt2_folder, encoder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    BertModel(tiny_bert_config(50)).save_pretrained(encoder)
    assert "weights of the causal language model are not in this folder" in refusal(encoder)


def test_equal_fingerprints_mean_equal_models(gpt2_folder, tmp_path):
    folder = shutil.copytree(gpt2_folder, tmp_path / "copy")
    own = LanguageModel(gpt2_folder).fingerprint
    (folder / "README.md").write_text("Says nothing to the model.")
    assert LanguageModel(folder).fingerprint == own == LanguageModel(folder, "cpu", torch.float32).fingerprint
    others = {own, LanguageModel(folder, dtype=torch.float64).fingerprint}
    weights = folder / "model.safetensors"
    content, settings = bytearray(weights.read_bytes()), weights.stat()
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(settings.st_atime_ns, settings.st_mtime_ns))  # neither age nor size betrays it
    others.add(LanguageModel(folder).fingerprint)
    for name in ("tokenizer.json", "config.json"):
        path = folder / name
        path.write_text(path.read_text() + "\n")
        others.add(LanguageModel(folder).fingerprint)
    assert len(others) == 5


def test_the_fingerprint_of_a_sentence_model_covers_its_subfolders(sentence_folder, tmp_path):
    folder = shutil.copytree(sentence_folder, tmp_path / "copy")
    own = SentenceModel(folder).fingerprint
    assert own == SentenceModel(sentence_folder).fingerprint
    (pooling,) = folder.glob("*_Pooling/config.json")
    pooling.write_text(pooling.read_text() + "\n")
    assert SentenceModel(folder).fingerprint != own


def test_a_folder_with_its_own_code_is_refused_without_asking(gpt2_folder, tmp_path, monkeypatch):
    questions = []
    monkeypatch.setattr("builtins.input", lambda *question: questions.append(question) or "y")
    folder = shutil.copytree(gpt2_folder, tmp_path / "own-code")
    config = (folder / "config.json").read_text().replace('"gpt2"', '"own"', 1)
    own = '{"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},'
    (folder / "config.json").write_text(config.replace("{", own, 1))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(MetricError, match="custom code"):
        LanguageModel(folder)
    assert not questions and not (tmp_path / "ran").exists()


def test_a_tokenizer_without_bos_is_refused(gpt2_folder):
    model = LanguageModel(gpt2_folder)
    model.tokenizer.bos_token = None
    with pytest.raises(MetricError, match="no bos_token"):
        model.nll(["a"])


def tiny_bert_config(vocabulary: int) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )


@pytest.fixture(scope="module")
def sentence_folder(sentences, tmp_path_factory) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    root = tmp_path_factory.mktemp("sentence")
    words = sorted({word for text in sentences for word in text.lower().split()})
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = BertTokenizerFast(str(root / "vocab.txt"))
    tokenizer.save_pretrained(root / "bert")
    BertModel(tiny_bert_config(len(words) + 5)).save_pretrained(root / "bert")
    transformer = modules.Transformer(str(root / "bert"))
    SentenceTransformer(modules=[transformer, modules.Pooling(16)], device="cpu").save(str(root / "sentence"))
    return root / "sentence"


def test_the_folder_decides_which_feature_model_is_loaded(sentence_folder, gpt2_folder, sentences):
    assert isinstance(load_feature_model(gpt2_folder), LanguageModel)
    model = load_feature_model(sentence_folder)
    assert isinstance(model, SentenceModel)
    together = model.features([*sentences[:5], ""], batch_size=4)
    alone = np.concatenate([model.features([text], batch_size=1) for text in [*sentences[:5], ""]])
    assert together.shape == (6, 16) and together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3
    assert len(model.features([], 4)) == 0
