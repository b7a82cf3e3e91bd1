"""What a decoder reads: the same as by hand, less of it in more noise, and estimates as sampling would make them."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from diffusion.gaussian import GaussianOptions, GaussianProcess
from diffusion.training.objective import Batch
from latent_models.frozen_encoder import IGNORED
from scripts import interface_audit
from scripts.evaluation.interface import READINGS, estimated, noised, readings
from scripts.interface_audit import row_of, sampled_row, text_rows

RATIO = torch.tensor([0.7, 3.0])


class Halving(nn.Module):
    """Says half of what it sees, and what it said before."""

    def __init__(self, self_condition: bool):
        super().__init__()
        self.self_condition, self.factor = self_condition, nn.Parameter(torch.tensor(0.5))

    def forward(self, xt, t, valid, x0_prev=None, label=None, at=None):
        return self.factor * xt + (0 if x0_prev is None else x0_prev)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(2, 5, 3, generator=generator), torch.ones(2, 5, dtype=torch.bool))


@pytest.mark.parametrize(("self_condition", "share"), [(False, 0.5), (True, 1.0)])
def test_estimates_are_made_twice_from_the_same_z_and_are_detached(batch, self_condition, share):
    process = GaussianProcess.from_options(GaussianOptions())
    noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(1))
    system = SimpleNamespace(process=process, denoiser=Halving(self_condition))
    x0_hat = estimated(system)(batch, RATIO, noise)
    t = process.schedule.time_at(RATIO)
    alpha = process.alpha_bar(t).sqrt()[:, None, None].float()
    assert torch.allclose(process.schedule.noise_ratio(t), RATIO.double(), rtol=0.01)
    assert torch.allclose(x0_hat / alpha, share * noised(batch, process.schedule.noise_ratio(t), noise), atol=1e-5)
    assert not x0_hat.requires_grad


def test_readings_are_those_of_the_decoders_logits(small_run, loaded):
    system = loaded(small_run("latent"))
    texts, codec = system.corpus.test.texts[:3], system.space.codec
    encoded = codec.encode(texts)
    logits, ids = codec.logits_of(texts, encoded.x0, encoded.valid)
    found = dict(zip(READINGS, readings(codec, texts, encoded.x0, encoded.valid).T, strict=True))
    assert found["tokens"].tolist() == (ids != IGNORED).sum(1).tolist()
    for i in range(3):
        own = logits[i][ids[i] != IGNORED].double()
        ordered = own.sort(descending=True).values
        wanted = {
            "nats": cross_entropy(own, ids[i][ids[i] != IGNORED], reduction="sum"),
            "right": (own.argmax(1) == ids[i][ids[i] != IGNORED]).sum(),
            "entropy": torch.distributions.Categorical(logits=own).entropy().sum(),
            "margin": (ordered[:, 0] - ordered[:, 1]).sum(),
        }
        for name, value in wanted.items():
            assert found[name][i].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5), name


def test_clean_latents_cost_what_the_codec_says_and_noise_costs_more(small_run, loaded):
    system = loaded(small_run("latent"))
    rows, texts = text_rows(system, 1000), system.corpus.test.texts  # all of them
    encoded = system.space.codec.encode(texts)
    logits, ids = system.space.codec.logits_of(texts, encoded.x0, encoded.valid)
    assert rows["clean"]["nats"] == pytest.approx(cross_entropy(logits.transpose(1, 2), ids).item(), rel=1e-3)
    assert (rows["clean"]["texts"], rows["clean"]["tokens"]) == (len(texts), (ids != IGNORED).sum().item())
    noisy = [title for title in rows if title.startswith("noised")]
    assert len(noisy) == 5
    for name, ascending in (("nats", True), ("right", False), ("margin", False)):
        found = [rows[title][name] for title in ("clean", *noisy[2:])]  # less is nothing to this codec
        assert found == sorted(found, reverse=not ascending), name
    system.options.training.eval_batch_size = 7
    again = text_rows(system, 1000)
    assert again[noisy[-1]] == pytest.approx(rows[noisy[-1]], rel=1e-4)


def test_a_network_that_says_zero_estimates_alike_at_every_level(small_run, altered, loaded):
    silent = altered(small_run("latent"), lambda weight, bias: (weight.zero_(), bias.zero_()))
    rows = text_rows(loaded(silent), 5)
    nats = [row["nats"] for title, row in rows.items() if title.startswith("estimated")]
    assert nats == [nats[0]] * 5 and nats[0] > rows["clean"]["nats"]


def test_samples_have_no_true_text(small_run, loaded):
    row = sampled_row(loaded(small_run("latent")), 4)
    assert row.keys() == {"texts", "tokens", "entropy", "entropy_std", "margin", "margin_std"} and row["texts"] == 4


def test_errors_are_those_of_a_mean_where_texts_are_of_one_length():
    sums = torch.tensor([[2.0, 1.0, 2.0, 0.0, 4.0], [2.0, 3.0, 0.0, 0.0, 4.0], [2.0, 5.0, 1.0, 0.0, 4.0]]).double()
    row = row_of(sums)
    assert row["nats"] == pytest.approx(1.5) and row["nats_std"] == pytest.approx(1 / 3**0.5)  # of .5, 1.5 and 2.5
    assert (row["margin"], row["margin_std"]) == (2.0, 0.0)


def test_a_run_is_audited_under_each_decoder_and_twice_alike(small_run, small_decoder, call, tmp_path):
    line = f"--resume_dir {small_run('latent')} --output_dir {tmp_path} --num_samples 4"
    first, second = call(interface_audit.main, line), call(interface_audit.main, line)
    assert first.status == 0, first.err
    assert first.out == second.out and "| estimated 1" in first.out and "| sampled " in first.out
    assert call(interface_audit.main, f"{line} --decoder {small_decoder}").status == 0
    (folder,) = (tmp_path / "evaluation").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{name}.{kind}" for name in ("bart-demo", "bart-demo-noised") for kind in ("json", "md")
    )
    own, other = (json.loads((folder / f"{name}.json").read_text()) for name in ("bart-demo", "bart-demo-noised"))
    assert own.keys() == other.keys()
    (noisy,) = (title for title in own if title.startswith("noised 4"))
    assert own[noisy]["nats"] > other[noisy]["nats"]
    assert call(interface_audit.main, f"{line} --dry_run").status == 0


def test_a_run_on_tokens_has_no_interface(small_run, complaint):
    assert "a run of --method mdlm" in complaint(interface_audit.main, f"--resume_dir {small_run('mdlm')}")
    assert "--resume_dir" in complaint(interface_audit.main, "--num_samples 4")
