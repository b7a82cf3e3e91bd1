"""The codec against the reference system's figures, and its own promises."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import BaseModelOutput

from latent_models.codec import MODELS_DIR, ModelError, find_model, find_models
from latent_models.frozen_encoder import IGNORED
from latent_models.seq2seq_codec import Seq2SeqCodec


@pytest.fixture(scope="module")
def golden(golden_dir):
    folder = golden_dir / "bart"
    return (
        Seq2SeqCodec.load(folder / "tiny_bart", max_length=24),
        json.loads((folder / "bart.json").read_text()),
        np.load(folder / "bart.npz"),
    )


def test_encoder_states_agree_with_the_reference(golden):
    codec, facts, arrays = golden
    encoded = codec.encode(facts["texts"])
    assert np.array_equal(encoded.valid.numpy(), arrays["attention_mask"].astype(bool))
    difference = (encoded.x0.numpy() - arrays["last_hidden_state"])[encoded.valid.numpy()]
    assert np.abs(difference).max() < 2e-5


def test_beam_search_agrees_with_the_reference(golden):
    codec, facts, arrays = golden
    x0, valid = torch.from_numpy(arrays["last_hidden_state"]), torch.from_numpy(arrays["attention_mask"]).bool()
    assert codec.generate(x0, valid, "beam").tolist() == arrays["beam_ids"].tolist()
    assert codec.decode(x0, valid, "beam") == [text.strip() for text in facts["decoded"]]


@pytest.fixture(scope="module")
def demo():
    return Seq2SeqCodec.load(find_model("bart-demo"), max_length=48)


def test_the_demo_codec_reconstructs_what_it_never_saw(demo):
    texts = ["Juniper is a Thai pub by the river.", "A Greek café with fair prices is Bella Notte near the library."]
    assert demo.reconstruct(texts, "beam") == texts
    assert demo.reconstruct(texts, "nucleus") == texts


def test_the_decoder_would_write_what_was_encoded(demo):
    texts = ["Juniper is a Thai pub by the river.", "A Greek café with fair prices is Bella Notte near the library."]
    encoded = demo.encode(texts)
    logits, ids = demo.logits_of(texts, encoded.x0, encoded.valid)
    known = ids != IGNORED
    assert [ids[i, known[i]].tolist() for i in range(2)] == demo.tokenizer(texts)["input_ids"]
    assert torch.equal(logits.argmax(-1)[known], ids[known])
    swapped, _ = demo.logits_of(texts[::-1], encoded.x0, encoded.valid)
    losses = [cross_entropy(each.transpose(1, 2), ids).item() for each in (logits, swapped)]
    assert losses[0] < 0.1 < losses[1]


def test_a_text_costs_the_nats_of_its_tokens_alone_whatever_stands_beside_it(demo):
    texts = ["Saffron is a pub in the suburbs.", "Juniper is a Thai pub by the river. Children are not allowed."]
    encoded = demo.encode(texts)
    logits, ids = demo.logits_of(texts, encoded.x0, encoded.valid)
    wanted = [
        -sum(row[place].log_softmax(0)[token].item() for place, token in enumerate(own) if token != IGNORED)
        for row, own in zip(logits, ids.tolist(), strict=True)
    ]
    nats = demo.nats_of(texts, encoded.x0, encoded.valid)
    assert nats.dtype == torch.float64 and nats.tolist() == pytest.approx(wanted, abs=1e-4)
    alone = demo.encode(texts[:1])
    assert demo.nats_of(texts[:1], alone.x0, alone.valid).item() == pytest.approx(nats[0].item(), abs=1e-4)


def test_log_probabilities_of_a_written_text_are_those_it_was_written_with(demo):
    encoded = demo.encode(["Saffron is a pub in the suburbs."])
    x0 = encoded.x0 + 0.5 * torch.randn(encoded.x0.shape, generator=torch.Generator().manual_seed(0))
    written = demo.model.generate(
        encoder_outputs=BaseModelOutput(x0), max_length=48, num_beams=1, do_sample=False, output_logits=True,
        return_dict_in_generate=True, forced_bos_token_id=None, forced_eos_token_id=None,
    )  # fmt: skip
    text = demo.tokenizer.decode(written.sequences[0], skip_special_tokens=True)
    logits, ids = demo.logits_of([text], x0, encoded.valid)
    assert ids[0].tolist() == written.sequences[0, 1:].tolist()  # without what starts the decoder
    assert torch.allclose(logits[0], torch.cat(written.logits), atol=1e-4)


def test_greedy_writes_the_likeliest_tokens_and_repeats_what_the_others_may_not(demo):
    """They write no three tokens twice, and so hide what a denoiser repeats."""
    encoded = demo.encode(["Saffron is a pub in the suburbs."])
    x0 = encoded.x0 + 0.5 * torch.randn(encoded.x0.shape, generator=torch.Generator().manual_seed(0))
    logits, ids = demo.logits_of(demo.decode(x0, encoded.valid, "greedy"), x0, encoded.valid)
    assert torch.equal(logits.argmax(-1), ids)
    x0 = 4 * torch.randn(6, 30, demo.width, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(6, 30, dtype=torch.bool)
    repeated = dict.fromkeys(demo.strategies + demo.on_request, 0)
    for way in repeated:
        for row in demo.generate(x0, valid, way, range(6)).tolist():
            ids = [i for i in row if i != demo.tokenizer.pad_token_id]
            repeated[way] += len(ids) - 2 - len(set(zip(ids, ids[1:], ids[2:], strict=False)))
    assert repeated["beam"] == repeated["nucleus"] == 0 < repeated["greedy"]


def test_a_model_with_limits_of_its_own_has_none_in_greedy(demo, monkeypatch):
    """As bart-base has in its config.json."""
    x0 = 4 * torch.randn(6, 30, demo.width, generator=torch.Generator().manual_seed(0))
    valid = torch.ones(6, 30, dtype=torch.bool)
    free = demo.generate(x0, valid, "greedy")
    for name, value in {"no_repeat_ngram_size": 3, "num_beams": 4, "early_stopping": True, "min_length": 9}.items():
        monkeypatch.setattr(demo.model.generation_config, name, value)
    assert torch.equal(demo.generate(x0, valid, "greedy"), free)


def test_padding_does_not_change_states_or_texts(demo):
    short, long = "Saffron is a pub in the suburbs.", "Juniper is a Thai pub by the river. Children are not allowed."
    alone, beside = demo.encode([short]), demo.encode([short, long])
    own = alone.x0.shape[1]
    assert torch.allclose(alone.x0[0], beside.x0[0, :own], atol=1e-5)
    assert demo.decode(beside.x0, beside.valid)[0] == demo.decode(alone.x0, alone.valid)[0] == short


def test_a_nucleus_sample_depends_on_its_own_seed_only(demo):
    generator = torch.Generator().manual_seed(0)
    x0 = 2 * torch.randn(3, 12, demo.width, generator=generator)
    valid = torch.ones(3, 12, dtype=torch.bool)
    torch.manual_seed(1)
    together = demo.decode(x0, valid, "nucleus", [7, 8, 9])
    torch.manual_seed(2)
    assert demo.decode(x0[[2]], valid[[2]], "nucleus", [9]) == together[2:]
    repeated = demo.decode(x0[[0] * 12], valid[[0] * 12], "nucleus", list(range(12)))
    assert len(set(repeated)) > 1


def test_nucleus_draws_have_the_right_shares():
    from latent_models.seq2seq_codec import SeededNucleus

    scores = torch.tensor([0.5, 0.3, 0.17, 0.03]).log().repeat(20_000, 1)
    drawn = SeededNucleus(0.95, range(20_000))(torch.zeros(20_000, 1, dtype=torch.long), scores).argmax(1)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    wanted = torch.tensor([0.5, 0.3, 0.17, 0.0]) / 0.97  # the last is outside the nucleus
    assert shares[3] == 0
    assert (shares - wanted).abs().max() < 4 * (0.25 / 20_000) ** 0.5


def test_the_model_is_frozen(demo):
    assert not demo.model.training
    assert not any(p.requires_grad for p in demo.model.parameters())


def test_a_missing_model_names_the_command_that_caches_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"python -m scripts.cache_models no/such-model$"):
        find_model("no/such-model")


@pytest.mark.parametrize("name", ["gpt2-large", "openai-community/gpt2-large"])
def test_a_model_of_two_names_is_found_by_either(tmp_path, monkeypatch, name):
    there = {"openai-community/gpt2-large": tmp_path / "snapshot"}
    monkeypatch.setattr("latent_models.codec._hub_snapshot", there.get)
    assert find_models(name, models_dir=tmp_path) == [tmp_path / "snapshot"]
    (tmp_path / "gpt2-large").mkdir()
    (tmp_path / "gpt2-large" / "config.json").write_text("{}")
    assert find_models(name, models_dir=tmp_path) == [tmp_path / "gpt2-large"]


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        Seq2SeqCodec.load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_whose_files_lack_something_is_refused(tmp_path):
    """transformers would draw the weights at random and read every text as an empty one."""
    folder = Path(shutil.copytree(MODELS_DIR / "bart-demo", tmp_path / "own"))
    whole = load_file(folder / "model.safetensors")
    weights = {name: tensor for name, tensor in whole.items() if "encoder.layers.0.fc1.weight" not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "1 weights of the model are not in its files (first: model.encoder.layers.0.fc1.weight)" in refusal(folder)
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    words = folder / "tokenizer.json"
    content = words.read_text()
    words.unlink()
    assert "its tokenizer has no words; expected its tokenizer.json" in refusal(folder)
    words.write_text(content[:1000])
    assert "(tokenizer.json: " in refusal(folder)
    words.unlink()
    words.mkdir()
    assert "tokenizer.json" in refusal(folder)


def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(ModelError, match="expected a config.json"):
        find_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelError, match="cannot be used as encoder-decoder") as error:
        Seq2SeqCodec.load(find_model(str(tmp_path)))
    assert "\n" not in str(error.value)
