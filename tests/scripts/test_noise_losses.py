"""Losses by level of noise: exact for a network that says nothing, the same draws for every run, tables of settings."""

import json
import shutil

import pytest
import torch

from scripts import noise_losses
from scripts.noise_losses import band_losses, bands_of
from tests.scripts.conftest import TRUNK

SEEDS = (1, 2)


@pytest.fixture
def runs(small_run, tmp_path):
    """Two schedules, each trained with two seeds."""
    for seed in SEEDS:
        for name in ("normal", "linear"):
            made = small_run("latent", f"--T_schedule {name} --random_seed {seed}", TRUNK)
            shutil.copytree(made, tmp_path / f"{name}{seed}", ignore=shutil.ignore_patterns("evaluation"))
    return tmp_path


@pytest.mark.parametrize("count", [1, 3, 20])
def test_bands_hold_every_step_once(count):
    bands = bands_of(20, count)
    assert [i for band in bands for i in band] == list(range(20)) and len(bands) == count
    assert max(map(len, bands)) - min(map(len, bands)) <= 1


def test_a_network_that_says_zero_loses_the_data_at_every_level(small_run, altered, loaded):
    silent = altered(small_run("latent"), lambda weight, bias: (weight.zero_(), bias.zero_()))
    system = loaded(silent)
    data = system.data("test")
    batch = data.batch(torch.arange(len(data.lengths)).numpy())
    per_text = (batch.x0**2).mean(2).sum(1) / batch.valid.sum(1)  # x0 is zero where padded
    assert band_losses(system, 4) == pytest.approx([per_text.mean().item()] * 4, rel=1e-5)


def test_noisier_texts_are_harder_and_draws_do_not_depend_on_the_run(small_run, loaded, altered):
    system = loaded(small_run("latent"))
    losses = band_losses(system, 4)
    assert losses == band_losses(loaded(altered(small_run("latent"), lambda weight, bias: None)), 4)
    assert losses == sorted(losses) and losses[3] > losses[0]
    tokens = band_losses(loaded(small_run("mdlm")), 2)
    assert all(loss > 0 for loss in tokens)


def test_settings_are_compared_seed_by_seed(runs, call):
    outcome = call(noise_losses.main, f"{runs} --bands 2")
    assert outcome.status == 0, outcome.err
    found = {}
    for name in ("normal", "linear"):
        for seed in SEEDS:
            (path,) = (runs / f"{name}{seed}").glob("evaluation/noise_losses_step_*/losses.json")
            found[name, seed] = json.loads(path.read_text())["losses"][0]
            path.write_text(json.dumps({"losses": [found[name, seed], 9.0]}))
    rows = {cells[0]: cells for line in outcome.out.splitlines() if len(cells := line.strip("| ").split(" | ")) > 3}
    rows = {name.strip(): [cell.strip() for cell in cells] for name, cells in rows.items()}
    mean = sum(found["linear", seed] for seed in SEEDS) / 2
    assert rows["linear"][1] == "2" and rows["linear"][2].startswith(f"{mean:.4f} ± ")
    difference = sum(found["linear", seed] - found["normal", seed] for seed in SEEDS) / 2
    assert rows["linear − normal"][1] == "2" and rows["linear − normal"][2].startswith(f"{difference:+.4f} [")
    assert "9.0000" in call(noise_losses.main, f"{runs} --bands 2").out  # read, not measured again


@pytest.mark.parametrize("content", ["{", '{"losses": 1}', '{"losses": ["a", 2.0]}', "[]"])
def test_a_damaged_record_is_named(runs, call, complaint, content):
    assert call(noise_losses.main, f"{runs} --bands 2").status == 0
    (path,) = (runs / "linear1").glob("evaluation/noise_losses_step_*/losses.json")
    path.write_text(content)
    assert f"{path}: cannot be read" in complaint(noise_losses.main, f"{runs} --bands 2")


@pytest.mark.parametrize(
    ("line", "wanted"),
    {
        "{runs} --bands 0": "--bands 0: expected 1 to 20",
        "{runs} --bands 21": "--bands 21: expected 1 to 20",
        "{runs} {mdlm}": "the runs differ in method, so that their losses are of different things",
        "{runs} {shifted}": "the runs differ in noise_shift, so",
        "nowhere": "nowhere is no folder",
    }.items(),
)
def test_what_cannot_be_compared_is_refused(runs, small_run, complaint, line, wanted):
    others = {"mdlm": small_run("mdlm"), "shifted": small_run("latent", "--noise_shift 2")}
    assert wanted in complaint(noise_losses.main, line.format(runs=runs, **others))


def test_no_model_of_the_metrics_is_needed(small_run, call, tmp_path):
    run_dir = shutil.copytree(small_run("mdlm"), tmp_path / "run")
    saved = json.loads((run_dir / "args.json").read_text())
    (run_dir / "args.json").write_text(json.dumps(saved | {"perplexity_model": "no/gpt", "mauve_model": "no/mauve"}))
    outcome = call(noise_losses.main, f"{run_dir} --bands 2")
    assert outcome.status == 0, outcome.err
