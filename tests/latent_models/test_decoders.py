"""What of an encoder-decoder is trained apart: the decoder and its head, and never what encodes."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM
from transformers.modeling_outputs import BaseModelOutput

from latent_models.codec import MODELS_DIR
from latent_models.decoders import check_encoder, trainable_decoder

STATES, IDS = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([[5, 6, 2], [7, 8, 2]])


@pytest.fixture(scope="module")
def model():
    """One whose encoder, decoder and head share their embeddings."""
    return AutoModelForSeq2SeqLM.from_pretrained(MODELS_DIR / "bart-demo")


def logits(model) -> torch.Tensor:
    return model(encoder_outputs=BaseModelOutput(STATES), labels=IDS).logits


def test_a_step_moves_what_decodes_and_nothing_that_encodes(model, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy = trainable_decoder(model)
    assert torch.equal(logits(copy), logits(model))
    logits(copy).logsumexp(-1).sum().backward()
    trained = [p for p in copy.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in trained:
            p -= 0.1 * p.grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    check_encoder(tmp_path, model, copy)
    moved = [part.get_input_embeddings().weight for part in (copy.get_encoder(), copy.get_decoder())]
    assert not torch.equal(*moved) and not torch.equal(moved[1], copy.get_output_embeddings().weight)
    copy.save_pretrained(tmp_path)
    read = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(logits(read), logits(copy)) and not torch.equal(logits(read), logits(model))
    check_encoder(tmp_path, model, read)
