"""The information window of a codec and a corpus: found with a pilot or a run, drawn beside schedules."""

import json
import shutil

import pytest
import torch

from scripts import measure_window
from scripts.composition.build import System
from scripts.measure_window import Level, measure, spent, told_at
from tests.scripts.conftest import SMALL_RECIPE, TRUNK

FILES = ["window.html", "window.json", "window.md"]


def test_a_network_that_says_zero_errs_by_the_data_and_the_decoder_by_the_noise(small_run, altered, loaded):
    system = loaded(altered(small_run("latent"), lambda weight, bias: (weight.zero_(), bias.zero_())))
    levels = measure(system, 8, 24)
    data = system.data("valid")
    batch = data.batch(torch.arange(24).numpy())
    squares = (batch.x0**2).sum().item() / batch.valid.sum().item()
    assert [level.squared_error for level in levels] == pytest.approx([squares] * len(levels), rel=1e-4)
    assert levels[0].accuracy > 0.95 > 0.7 > levels[-1].accuracy
    assert levels[0].cross_entropy < 0.3 < 1 < levels[-1].cross_entropy
    assert measure(system, 8, 24) == levels


def test_labels_are_given_to_the_network(small_run, loaded, monkeypatch):
    system = loaded(small_run("latent", "--dataset_name demo --class_conditional"))
    told = measure(system, 5, 24)
    monkeypatch.setattr(System, "label_ids", lambda self, labels: torch.full((len(labels),), -1).numpy())
    assert all(with_it != without for with_it, without in zip(told, measure(system, 5, 24), strict=True))


def test_a_text_is_told_up_to_the_first_level_whose_decoder_errs():
    levels = [Level(g, 1.0, 1.0, accuracy, 0.0) for g, accuracy in ((-2.0, 0.9), (0.0, 0.895), (1.0, 0.5), (2.0, 0.9))]
    assert told_at(levels) == 1.0
    assert told_at(levels[:2]) == 0.0  # none errs: the last one


def test_a_run_is_measured(small_run, call, tmp_path):
    run_dir = shutil.copytree(small_run("latent"), tmp_path / "run")
    outcome = call(measure_window.main, f"--resume_dir {run_dir} --levels 6 --texts 8")
    assert outcome.status == 0, outcome.err
    (folder,) = run_dir.glob("evaluation/window_step_*")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    found = json.loads((folder / "window.json").read_text())
    window = found["window"]
    assert window["low"] < window["median"] < window["high"]
    assert f"tan, d = {window['tan_d']:.3g}" in found["schedules"] and "this run" in found["schedules"]
    assert f"--tan_d {window['tan_d']:.3g}" in outcome.out
    assert "<script>" in (folder / "window.html").read_text()


def test_a_pilot_is_trained_once_and_goes_on_where_it_was_cut_off(call, data_dir, tmp_path):
    flags = SMALL_RECIPE.replace("--timesteps 20", "--timesteps 50").replace("--save_and_sample_every 2 ", "")
    flags = flags.replace("--perplexity_model gpt2-demo --mauve_model gpt2-demo ", "")
    line = f"{flags} {TRUNK} --data_dir {data_dir} --save_dir {tmp_path} --levels 6 --texts 8"
    first = call(measure_window.main, line)
    assert first.status == 0, first.err
    assert "not on this machine" not in first.err  # of the models of metrics, which no pilot has
    folder = tmp_path / "window" / "plain-bart-demo"
    assert json.loads((folder / "args.json").read_text())["beta_schedule"] == "log_snr"
    assert not list(folder.glob("evaluation/step_*"))  # no samples, no scores
    rows = (folder / "metrics.jsonl").read_bytes()
    again = call(measure_window.main, line)
    assert again.out == first.out and (folder / "metrics.jsonl").read_bytes() == rows
    shutil.rmtree(folder / "checkpoints" / "step_00000004")
    assert call(measure_window.main, line).out == first.out


def test_a_dry_run_of_a_pilot_looks_at_what_would_be_done(small_run, call, tmp_path, data_dir):
    line = f"{SMALL_RECIPE} {TRUNK} --data_dir {data_dir} --save_dir {tmp_path} --dry_run"
    line = line.replace("--dataset_name plain", f"--dataset_name {data_dir}/plain")
    looked_at = lambda: call(measure_window.main, line)  # noqa: E731
    assert looked_at().out.startswith("job      train, latent, plain") and not list(tmp_path.iterdir())
    folder = tmp_path / "window" / "plain-bart-demo"
    shutil.copytree(small_run("latent"), folder)
    assert (found := looked_at()).out.startswith("job      gen_data, latent, plain"), found
    shutil.rmtree(folder / "checkpoints" / "step_00000004")
    assert "steps    2 to 4 of" in looked_at().out


def test_shares_of_a_schedule_are_those_of_its_stages():
    window = measure_window.Window(0.0, 1.0, 2.0, 1.0)
    schedule = measure_window.NoiseSchedule.from_betas(measure_window.BETA_SCHEDULES["linear"](1000))
    inside = [i for i, gamma in enumerate(schedule.gamma.tolist()) if 0 <= gamma <= 2]
    expected = [sum(i < 1000 * stage for i in inside) / (1000 * stage) for stage in measure_window.STAGES]
    assert spent(schedule, window).shares == pytest.approx(expected)


@pytest.mark.parametrize(
    ("line", "wanted"),
    {
        "--resume_dir {mdlm}": "expected latent",
        "--resume_dir {latent} --levels 4": "--levels 4: expected at least 5",
        "--resume_dir {latent} --texts 0": "--texts 0",
        "--method mdlm": "--method mdlm: has no noise on latents",
        "--resume_dir nowhere": "nowhere",
        "--eval_test --resume_dir {latent}": "--eval_test: is a mode of train_text_diffusion.py; leave it out",
        "--resume_training": "--resume_training: is a mode of train_text_diffusion.py; leave it out",
    }.items(),
)
def test_what_cannot_be_measured_is_refused(small_run, complaint, line, wanted):
    line = line.format(mdlm=small_run("mdlm"), latent=small_run("latent"))
    assert wanted in complaint(measure_window.main, line)
