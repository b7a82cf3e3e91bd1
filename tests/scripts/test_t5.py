"""T5 as codec: an encoder-decoder with relative positions, no token that begins a text and no mask."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from latent_models.codec import MODELS_DIR
from latent_models.corpora import DataOptions, load_corpus
from latent_models.frozen_encoder import IGNORED
from latent_models.seq2seq_codec import Seq2SeqCodec
from scripts import sample, train_autoencoder, train_decoder
from scripts.pretrain_models import train_bpe
from tests.scripts.conftest import places
from train_text_diffusion import main

TEXTS = ["Saffron is a pub in the suburbs.", "A cheap pub."]


@pytest.fixture(scope="module")
def t5_dir(data_dir, random_model) -> Path:
    """The folder of a random T5 of one layer."""
    texts = load_corpus(DataOptions("plain", str(data_dir))).train.texts
    bpe = train_bpe(texts, 400, ["<pad>", "</s>", "<unk>"])
    bpe.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = T5Config(
        vocab_size=len(bpe.get_vocab()), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    return random_model(T5ForConditionalGeneration, config, tokenizer)


def test_a_t5_is_a_codec(t5_dir):
    codec = Seq2SeqCodec.load(t5_dir, 24)
    read = codec.encode(TEXTS)
    assert read.x0.shape == (*read.valid.shape, 32) and codec.width == 32 and codec.ends == (0, 1)
    alone = codec.encode(TEXTS[1:])
    assert torch.allclose(alone.x0[0], read.x0[1][read.valid[1]], atol=1e-5)
    assert codec.positions(np.array(codec.token_lengths(TEXTS))).tolist() == read.valid.sum(1).tolist()
    for strategy in codec.strategies:
        assert len(codec.decode(read.x0, read.valid, strategy, [1, 2])) == 2
    logits, ids = codec.logits_of(TEXTS, read.x0, read.valid)
    assert logits.shape[:2] == ids.shape
    assert [row[row != IGNORED][-1] for row in ids] == [codec.tokenizer.eos_token_id] * 2
    assert codec.nats_of(TEXTS, read.x0, read.valid).isfinite().all()


@pytest.mark.parametrize("built_on", [False, True])
def test_a_run_trains_and_samples_on_a_t5_and_on_its_encoder(
    t5_dir, built_on, small_run, call, complaint, data_dir, tmp_path
):
    folder = t5_dir
    if built_on:
        line = f"--dataset_name plain --encoder {t5_dir} --latents 4 --latent_dim 8 --width 32 --depth 1 --name own"
        line = f"{line} --max_length 24 --steps 4 {places(data_dir, tmp_path)}"
        assert (outcome := call(train_autoencoder.main, line)).status == 0, outcome.err
        folder = tmp_path / "own"
    run_dir = small_run("latent", trunk=f"--enc_dec_model {folder} --tx_dim 64 --tx_depth 1")
    line = f"--resume_dir {run_dir} --num_samples 2"
    assert len(call(sample.main, line).out.splitlines()) <= 2
    assert call(main, f"--ppl_eval --resume_dir {run_dir}").status == 0


def test_pieces_of_a_text_lose_the_ends_that_their_tokenizer_gives_them(t5_dir, small_run, loaded):
    for folder in (t5_dir, MODELS_DIR / "bart-demo"):
        space = loaded(small_run("latent", trunk=f"--enc_dec_model {folder} --tx_dim 64 --tx_depth 1")).space
        ids = space.codec.encoder.ids_of(["A cheap pub", "a A cheap pub", "a"])
        whole, behind, word = ([i for i in row.tolist() if i != IGNORED] for row in ids)
        behind = behind[len(word) - 1 :]  # words within a text may have other tokens than those that begin it
        assert space.piece("A cheap pub").tolist() == behind[:-1]
        assert space.piece("A cheap pub", last=True).tolist() == behind
        assert space.piece("A cheap pub", first=True).tolist() == whole[:-1]
        assert space.piece("A cheap pub", first=True, last=True).tolist() == whole
        alone = space.statistics.normalise(space.codec.encode(["A cheap pub"]).x0[0])
        assert torch.allclose(space.among(torch.tensor(whole), 0, len(whole)), alone, atol=1e-5)


def test_a_decoder_that_cannot_be_parted_from_its_encoder_is_not_trained(t5_dir, complaint, data_dir, tmp_path):
    line = f"--dataset_name plain --enc_dec_model {t5_dir} --max_length 24 --steps 2 {places(data_dir, tmp_path)}"
    assert "always shares its embeddings between encoder and decoder" in complaint(train_decoder.main, line)
