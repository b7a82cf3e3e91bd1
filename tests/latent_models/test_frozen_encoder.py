"""Encoders that are read and never trained, of the families that differ in how they are put together."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, RobertaConfig, RobertaForMaskedLM

from latent_models.codec import MODELS_DIR, ModelError, find_model
from latent_models.frozen_encoder import FrozenEncoder
from latent_models.seq2seq_codec import Seq2SeqCodec

TEXTS = ["Saffron is a pub in the suburbs.", "A cheap pub."]


@pytest.fixture(scope="module")
def roberta_dir(random_model) -> Path:
    """The folder of a random RoBERTa of 12 positions, which its table counts from behind that of padding."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS_DIR / "bart-demo")
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=14, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return random_model(RobertaForMaskedLM, config, tokenizer)


def test_a_roberta_reads_as_many_tokens_as_it_has_positions_for(roberta_dir):
    encoder = FrozenEncoder.load(roberta_dir, 12)
    assert encoder.encode(["pub " * 50]).x0.shape == (1, 12, 32)
    with pytest.raises(ModelError, match="has 12 positions; expected --max_length of at most that"):
        FrozenEncoder.load(roberta_dir, 13)


def test_the_encoder_of_an_encoder_decoder_has_the_states_of_its_codec():
    encoder, codec = (kind.load(find_model("bart-demo"), 24) for kind in (FrozenEncoder, Seq2SeqCodec))
    own, other = encoder.encode(TEXTS), codec.encode(TEXTS)
    assert torch.equal(own.valid, other.valid) and torch.allclose(own.x0, other.x0, atol=1e-6)
    assert (encoder.identity, encoder.fingerprint) == (codec.identity, codec.fingerprint)
    assert not any(p.requires_grad for p in encoder.model.parameters())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_folder_without_an_encoder_is_refused_in_one_line(tmp_path, device):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="cannot be used as encoder") as error:
        FrozenEncoder.load(tmp_path, 24, device)
    assert "\n" not in str(error.value)
