"""The bound of the latent model on a split: its parts, what is counted, what it says of models that know nothing."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion.gaussian import GaussianOptions, GaussianProcess
from diffusion.gaussian_bound import log_snr
from latent_models.lengths import LengthModel
from latent_models.token_codec import TokenCodec
from scripts.composition.build import System, build
from scripts.evaluation import latent_likelihood
from train_text_diffusion import main

DEMO = Path("pre_trained_models/diffusion-demo")
PARTS = ("reconstruction", "diffusion", "prior", "length")


def rows_of(system: System) -> dict[str, dict]:
    return latent_likelihood.latent_likelihood(system, "test")


def untrained(system: System) -> System:
    """Its denoiser is as before training: every estimate is 0."""
    fresh = build(system.options, system.corpus, system.space)
    fresh.denoiser.eval()
    return fresh


@pytest.fixture(scope="module", autouse=True)
def short_pilot():
    """Fewer texts and levels, to save time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_likelihood, "LEVELS", 16)
        patch.setattr(latent_likelihood, "PILOT_TEXTS", 8)
        yield


@pytest.fixture(scope="module")
def demo(loaded, data_dir):
    """The trained demo model on the small corpus."""
    return loaded(DEMO, "--data_dir", str(data_dir), "--save_dir", str(data_dir), "--likelihood_draws", "2")


@pytest.fixture(scope="module")
def demo_rows(demo):
    return rows_of(demo)


def test_a_trained_model_has_its_texts_in_its_latents(demo_rows):
    row, least = demo_rows["latent"], demo_rows["latent, least bound"]
    assert row["nats_per_token_reconstruction"] < 0.15 * row["nats_per_token"]
    assert row["nats_per_token_shuffled"] > 20 * row["nats_per_token_reconstruction"]
    assert least["nats_per_token"] <= row["nats_per_token"] + 2 * row["nats_per_token_std"]
    for each in (row, least):
        assert sum(each[f"nats_per_token_{part}"] for part in PARTS) == pytest.approx(each["nats_per_token"])
        assert each["nats_per_token_std"] > 0 and each["nats_per_token_diffusion_std"] > 0
        assert 1 <= each["first_step"] <= 1000 and (each["likelihood_texts"], each["draws"]) == (30, 2)


def test_an_untrained_one_costs_far_more_and_what_theory_says(demo, demo_rows):
    """Its estimate is the mean of all latents: the decoder knows the length and no more, whichever text is read."""
    system = untrained(demo)
    row = rows_of(system)["latent"]
    assert row["nats_per_token"] > 2 * demo_rows["latent"]["nats_per_token"]
    data = system.data("test")
    batch = data.batch(torch.arange(30).numpy())
    snr = log_snr(system.process).exp()
    lost = (snr[int(row["first_step"]) - 1] - snr[-1]).item() / 2
    tokens = row["likelihood_tokens"]
    # Of draws whose steps are in proportion to what they cost, but for a tenth of them.
    assert row["nats_per_token_diffusion"] * tokens == pytest.approx(lost * batch.x0.square().sum().item(), rel=0.1)
    assert row["nats_per_token_length"] * tokens == pytest.approx(
        system.space.lengths.nll(batch.valid.sum(1)).sum().item()
    )
    nothing = system.space.statistics.unnormalise(torch.zeros_like(batch.x0))
    written = system.space.codec.nats_of(system.corpus.test.texts, nothing, batch.valid).sum().item()
    assert row["nats_per_token_reconstruction"] * tokens == pytest.approx(written, rel=1e-4)
    assert row["nats_per_token_shuffled"] == pytest.approx(row["nats_per_token_reconstruction"], rel=0.05)


def test_the_command_writes_both_rows_the_same_each_time(small_run, call, tmp_path):
    folders = []
    for name in ("one", "two"):
        outcome = call(main, f"--ppl_eval --resume_dir {small_run('latent')} --output_dir {tmp_path / name}")
        assert outcome.status == 0, outcome.err
        folders.append(tmp_path / name / "evaluation" / "likelihood_step_00000004")
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == two and one.keys() == {"scores.json", "table.md", "asked.json"}
    rows = json.loads(one["scores.json"])
    assert next(iter(rows)) == "latent" and set(rows) <= {"latent", "latent, least bound"}
    for title, row in rows.items():
        assert sum(row[f"nats_per_token_{part}"] for part in PARTS) == pytest.approx(row["nats_per_token"])
        assert f"{title}: the decoder reads step {row['first_step']:.0f} of 20 (log SNR" in outcome.err
    assert "reconstruction, shuffled" in outcome.out and "standard error over texts" in outcome.out


def test_tokens_and_words_are_counted_as_for_methods_on_tokens(small_run, loaded):
    """Of long texts one token less is left: the encoder-decoder's own first one takes its place."""
    system = loaded(small_run("latent"))
    row, texts = rows_of(system)["latent"], system.corpus.test.texts
    codec = TokenCodec(system.space.codec.tokenizer, 23)
    lengths = codec.token_lengths(texts)
    assert max(lengths) > 24 > min(lengths)
    assert row["likelihood_tokens"] == sum(min(length, 23) for length in lengths)
    read = codec.encode(texts)
    words = sum(len(text.split()) for text in codec.decode(read.x0, read.valid))
    assert row["nats_per_word"] * words == pytest.approx(row["nats_per_sequence"] * 30)
    written = system.space.codec.tokenizer(texts, truncation=True, max_length=24)["input_ids"]
    assert sum(map(len, written)) == row["likelihood_tokens"] + 30


def test_a_text_costs_the_same_in_any_batch(small_run, loaded):
    system = loaded(small_run("latent", "--self_condition"))
    rows = rows_of(system)
    system.options.training.eval_batch_size = 7
    again = rows_of(system)
    assert rows.keys() == again.keys()
    for title, row in rows.items():
        assert again[title] == pytest.approx(dict(row), rel=1e-4)


def test_labels_are_given_to_the_network(small_run, loaded, monkeypatch):
    system = loaded(small_run("latent", "--dataset_name demo --class_conditional"))
    told = rows_of(system)["latent"]
    monkeypatch.setattr(System, "label_ids", lambda self, labels: torch.full((len(labels),), -1).numpy())
    assert rows_of(system)["latent"]["nats_per_token_diffusion"] != told["nats_per_token_diffusion"]


def test_one_step_has_nothing_but_a_decoder_and_a_prior(small_run, loaded):
    system = loaded(small_run("latent"))
    system.process = GaussianProcess.from_options(GaussianOptions(timesteps=1))
    (row,) = rows_of(system).values()
    assert row["first_step"] == 1 and row["nats_per_token_diffusion"] == 0


def test_a_text_longer_than_any_of_training_costs_the_nats_of_a_length_not_seen(small_run, loaded):
    system = loaded(small_run("latent"))
    seen = LengthModel(system.space.statistics.lengths.counts[:15])
    assert max(system.data("test").lengths) > seen.max_length
    space = replace(system.space, statistics=replace(system.space.statistics, lengths=seen))
    assert space.lengths.nll(torch.tensor([24])).item() == pytest.approx(math.log(seen.counts.sum().item() + 24))
    system.space = space
    assert math.isfinite(rows_of(system)["latent"]["nats_per_token"])


def test_every_text_is_read_from_another_of_about_its_length():
    lengths = torch.randint(5, 20, (200,), generator=torch.Generator().manual_seed(0))
    partners = latent_likelihood._partners(lengths.numpy())
    assert partners.sort().values.tolist() == list(range(200)) and (partners != torch.arange(200)).all()
    off = (lengths[partners] - lengths).abs()
    assert (off > 1).sum() <= 1 and off.float().mean() < 0.3
    assert (partners - torch.arange(200)).abs().float().mean() > 40  # not its neighbour in the file, often its like
