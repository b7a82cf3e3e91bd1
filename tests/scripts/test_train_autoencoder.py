"""Codecs of a frozen encoder and a parallel decoder: trained, used by a run like others, refused where unfit."""

import json
import math
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion.training.files import sums
from latent_models.autoencoder_codec import RECORD, AutoencoderCodec
from latent_models.codec import ModelError, find_model
from latent_models.codec_kinds import codec_type
from latent_models.corpora import DataOptions, load_corpus
from latent_models.frozen_encoder import IGNORED, FrozenEncoder
from latent_models.latent_cache import encoded
from latent_models.seq2seq_codec import Seq2SeqCodec, token_accuracy
from scripts import codec_audit, sample, train_autoencoder, train_decoder
from scripts.evaluation.interface import LatentTexts
from scripts.measure_window import measure
from scripts.pretraining.autoencoder_loss import CorruptionOptions
from scripts.sampling.sampling import sample as sampled
from scripts.train_autoencoder import AutoencoderOptions, Lessons, fitted
from tests.scripts.conftest import places
from train_text_diffusion import main

SMALL = "--dataset_name plain --max_length 24 --width 32 --depth 1 --latent_dim 16 --steps 8 --batch_size 16"
CODECS = [("bart-demo", 0), ("bert", 4)]
EASY = CorruptionOptions(token_mask=0, state_noise=0, latent_dropout=0, noise_ratio=0.2)


@pytest.fixture(scope="module")
def made(call, data_dir, bert_dir, tmp_path_factory) -> Callable[[str, int], Path]:
    """made(encoder, latents) is the folder of a codec trained for a few steps: no test may change it."""
    place = tmp_path_factory.mktemp("autoencoders")

    @cache
    def train(encoder: str, latents: int, name: str = "") -> Path:
        name = name or f"{encoder}-{latents}"
        where = bert_dir if encoder == "bert" else encoder
        line = f"{SMALL} --encoder {where} --latents {latents} --name {name} {places(data_dir, place)}"
        outcome = call(train_autoencoder.main, line)
        assert outcome.status == 0, outcome.err
        return place / name

    return train


def flags(folder: Path) -> str:
    return f"--enc_dec_model {folder} --tx_dim 64 --tx_depth 1"


@pytest.mark.parametrize(("encoder", "latents"), CODECS)
def test_a_run_trains_resumes_and_samples_on_it_as_on_any_codec(
    made, small_run, loaded, call, rows_of, tmp_path, encoder, latents
):
    run_dir = Path(shutil.copytree(small_run("latent", trunk=flags(made(encoder, latents))), tmp_path / "run"))
    outcome = call(main, f"--resume_training --resume_dir {run_dir} --num_train_steps 6 --save_and_sample_every 6")
    assert outcome.status == 0, outcome.err
    assert rows_of(run_dir)[-1]["step"] == 6
    evaluation = json.loads((run_dir / "evaluation" / "step_00000004" / "scores.json").read_text())
    assert list(evaluation) == ["human", "argmax"]
    system = loaded(run_dir)
    samples = sampled(system, 5, 1)
    assert list(samples.texts) == ["argmax"] and samples.texts == sampled(system, 5, 1).texts
    assert set(samples.lengths) == {latents} if latents else len(set(samples.lengths)) > 1
    outcome = call(main, f"--ppl_eval --resume_dir {run_dir}")
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize(("encoder", "latents"), CODECS)
def test_the_window_is_measured_by_tokens_and_not_by_latents(
    made, small_run, loaded, monkeypatch, encoder, latents
):
    system = loaded(small_run("latent", trunk=flags(made(encoder, latents))))
    codec = system.space.codec
    vocabulary = len(codec.tokenizer)
    undecided = lambda x0, valid, length: (None, torch.zeros(len(x0), length, vocabulary))  # noqa: E731
    monkeypatch.setattr(codec.autoencoder.decoder, "forward", undecided)
    for level in measure(system, 5, 8):
        assert level.cross_entropy == pytest.approx(math.log(vocabulary), rel=1e-5) and level.accuracy <= 1


@pytest.mark.parametrize(("encoder", "latents"), CODECS)
def test_latents_are_standard_and_do_not_depend_on_the_batch(made, data_dir, encoder, latents):
    folder = made(encoder, latents)
    codec = codec_type(folder).load(folder, 24)
    assert isinstance(codec, AutoencoderCodec)
    texts = load_corpus(DataOptions("plain", str(data_dir))).train.texts
    read = codec.encode(texts)
    states = read.x0.flatten(1) if latents else read.x0[read.valid]
    assert states.mean(0).abs().max() < 0.02 and (states.std(0) - 1).abs().max() < 0.1
    shortest = min(texts, key=len)
    alone, i = codec.encode([shortest]), texts.index(shortest)
    assert torch.allclose(alone.x0[0], read.x0[i][read.valid[i]], atol=1e-4)
    assert codec.decode(alone.x0, alone.valid) == [codec.decode(read.x0, read.valid)[i]]
    many = np.array(codec.token_lengths(texts))
    assert codec.positions(many).tolist() == read.valid.sum(1).tolist() and codec.most_positions == (latents or 24)
    nats = codec.nats_of(texts, read.x0, read.valid)
    logits, ids = codec.logits_of(texts, read.x0, read.valid)
    log_p, known = logits.log_softmax(-1), ids != IGNORED
    wanted = -log_p.gather(-1, ids.clamp(min=0)[..., None])[..., 0].masked_fill(~known, 0).sum(1)
    assert nats.tolist() == pytest.approx(wanted.tolist(), rel=1e-5)
    longer = [f"{texts[0]} {texts[1]}"]  # has more tokens than the latents that it is guessed from
    assert codec.nats_of(longer, alone.x0, alone.valid).isfinite().all()


@pytest.mark.parametrize("latents", [0, 4])
def test_texts_that_were_learned_by_heart_are_written_again(latents, tmp_path):
    texts = sorted(dict.fromkeys(load_corpus(DataOptions("demo")).train.texts[:200]), key=len)[:32]
    encoder = FrozenEncoder.load(find_model("bart-demo"), 24)
    lessons = Lessons(encoder, encoded(encoder, texts, tmp_path, "few"), texts)
    options = AutoencoderOptions(
        latents=latents, latent_dim=32, width=96, depth=1, max_length=24, steps=200 if latents else 70, batch_size=16,
        learning_rate=5e-3,
    )  # fmt: skip
    codec, log = fitted(lessons, options, EASY)
    read = codec.encode(texts)
    again = codec.decode(read.x0, read.valid)
    assert token_accuracy(codec.tokenizer, texts, again) > 0.95
    assert sum(a == b for a, b in zip(texts, again, strict=True)) > 20
    assert log[-1]["loss"] < 0.6 * log[0]["loss"]


def test_a_text_ends_where_its_end_is_written(made, monkeypatch):
    codec = AutoencoderCodec.load(made("bart-demo", 0), 24)
    ids = torch.tensor([codec.tokenizer("A cheap pub. More of it")["input_ids"]])
    logits = torch.nn.functional.one_hot(ids, len(codec.tokenizer)).float()
    monkeypatch.setattr(codec.autoencoder.decoder, "forward", lambda *_: (None, logits))
    x0, valid = torch.zeros(*ids.shape, codec.width), torch.ones(ids.shape, dtype=torch.bool)
    assert codec.decode(x0, valid) == ["A cheap pub. More of it"]
    shown = codec.tokenizer("A cheap pub.")["input_ids"]
    logits[:, len(shown) - 1, codec.end_id] = 2
    assert codec.decode(x0, valid) == ["A cheap pub."]
    logits[:, 1, codec.end_id] = 2
    assert codec.decode(x0, valid) == [""]


def test_the_same_command_gives_the_same_bytes(made):
    first, second = made("bert", 4), made("bert", 4, "again")
    names = [path.name for path in first.iterdir()]
    assert "model.safetensors" in names and not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    alike = [name for name in names if name.startswith(("model", RECORD))]
    assert sums(first, alike) == sums(second, alike)
    codecs = [AutoencoderCodec.load(each, 24) for each in (first, second)]
    assert codecs[0].fingerprint == codecs[1].fingerprint != AutoencoderCodec.load(first, 20).fingerprint


def test_the_card_tells_content_from_what_follows_it(made):
    record = json.loads((made("bert", 4) / "training.json").read_text())
    assert record["held_out_nats_per_token"] > 0 and record["held_out_nats_per_position_behind_the_end"] > 0
    assert record["options"]["noise_ratio"] == 1 and record["log"]
    assert "4 latents of width 16 a text" in (made("bert", 4) / "README.md").read_text()


@pytest.fixture
def own(made, tmp_path) -> Path:
    """A copy of a codec, to be damaged."""
    return Path(shutil.copytree(made("bert", 4), tmp_path / "own"))


def record_of(folder: Path, **change) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | change))


@pytest.mark.parametrize("dry", ["", "--dry_run"])
def test_a_codec_on_another_encoder_is_refused(own, complaint, data_dir, tmp_path, dry):
    line = f"--dataset_name plain --data_dir {data_dir} --save_dir {tmp_path} --max_length 24 {flags(own)} {dry}"
    record_of(own, encoder="bart-demo")
    assert f"{own}: was trained on another encoder than bart-demo is here (SHA-256 " in complaint(main, line)
    record_of(own, encoder="no/encoder")
    assert "not on this machine: no/encoder" in complaint(main, line)


def drop_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("decoder.to_logits.bias")
    save_file(weights, folder / "model.safetensors")


def spoil_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["decoder.to_logits.bias"][0] = torch.nan
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "wanted"),
    [
        (lambda f: record_of(f, kind="other"), "codec.json: names no known kind of codec"),
        (lambda f: (f / RECORD).write_text("{"), "codec.json: names no known kind of codec"),
        (lambda f: record_of(f, shape={"width": 3}), "codec.json: cannot be read"),
        (lambda f: record_of(f, encoder=3), "codec.json: cannot be read (the encoder is not named)"),
        (drop_weight, "cannot be loaded (decoder.to_logits.bias is not of the shape that codec.json says)"),
        (spoil_weight, "some weights are NaN or infinite"),
        (lambda f: (f / "model.safetensors").write_bytes(b"0"), "model.safetensors: cannot be loaded"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(own, damage, wanted):
    damage(own)
    with pytest.raises(ModelError) as error:
        codec_type(own).load(own, 24)
    assert wanted in str(error.value) and str(own) in str(error.value) and "\n" not in str(error.value)


def test_what_does_not_suit_these_codecs_is_refused(made, small_run, small_decoder, complaint, data_dir, tmp_path):
    run_dir, folder = small_run("latent", trunk=flags(made("bert", 4))), made("bert", 4)
    wanted = complaint(main, f"--eval --resume_dir {run_dir} --decoder {small_decoder}")
    assert "cannot write for an autoencoder, whose decoder is its own; leave out --decoder" in wanted
    wanted = complaint(sample.main, f"--resume_dir {run_dir} --prefix Saffron")
    assert "no piece of a text has a place among them; leave them out" in wanted
    assert "is not one of: argmax" in complaint(sample.main, f"--resume_dir {run_dir} --strategy beam")
    line = f"--dataset_name plain --enc_dec_model {folder} --max_length 24 {places(data_dir, tmp_path)}"
    assert "writes by a decoder that is part of it" in complaint(train_decoder.main, line)
    with pytest.raises(ModelError, match="writes 24 tokens; expected --max_length of at most that"):
        AutoencoderCodec.load(folder, 25)


@pytest.mark.parametrize(
    ("line", "wanted"),
    {
        "--encoder bart-demo --width 40": "--width 40: is in heads of 32; expected a multiple of 32",
        "--encoder bart-demo --latents -1": "--latents -1: expected at least 0",
        "--encoder bart-demo --latent_dropout 1": "--latent_dropout 1.0: expected 0 to below 1",
        "--encoder bart-demo --random_seed -1": "--random_seed -1: expected 0 to 4294967295",
        "--encoder no/model": "not on this machine: no/model",
        "--encoder gpt2-demo": "gpt2-demo: ",
        "--encoder bart-demo --name {there}": "is there already; choose another --name",
        "--encoder bert --max_length 29": "has 28 positions; expected --max_length of at most that",
    }.items(),
)
def test_what_cannot_be_trained_is_refused(made, complaint, data_dir, bert_dir, tmp_path, line, wanted):
    there = made("bert", 4)
    line = line.replace("--encoder bert ", f"--encoder {bert_dir} ").format(there=there.name)
    line = f"--dataset_name plain {places(data_dir, tmp_path)} --output_dir {there.parent} {line}"
    assert wanted in complaint(train_autoencoder.main, line)


def test_noise_costs_the_demo_codec_its_texts_little_by_little(small_run, loaded):
    system = loaded(small_run("latent"))
    texts = LatentTexts.of(system, "test")
    rows = list(codec_audit.audit(texts, (0, 1, 2, 4), 12, 12).values())
    for name in ("token_accuracy", "bleu"):
        found = [row[name] for row in rows]
        assert found == sorted(found, reverse=True) and found[0] > 0.95 and found[-1] < 0.3


def test_the_audit_is_written_twice_alike(made, call, data_dir, tmp_path):
    line = f"--dataset_name plain --data_dir {data_dir} --save_dir {tmp_path} --max_length 24 --num_texts 6"
    line = f"{line} --enc_dec_model {made('bert', 4)}"
    first, second = call(codec_audit.main, line), call(codec_audit.main, line)
    assert first.status == 0 and first.out == second.out
    rows = json.loads((tmp_path / "codec_audit" / "plain-bert-4.json").read_text())
    assert list(rows) == [f"{ratio:g}" for ratio in codec_audit.RATIOS]


def test_kinds_of_codecs_are_told_apart_by_their_folders(made):
    assert codec_type(find_model("bart-demo")) is Seq2SeqCodec
    assert codec_type(find_model(str(made("bart-demo", 0)))) is AutoencoderCodec
