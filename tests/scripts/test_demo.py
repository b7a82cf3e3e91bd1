"""The demo, with a training of one step: it trains, scores both models and ends with samples and a table."""

from pathlib import Path

import pytest

from scripts import demo

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("recipe", ["", "--recipe reference", "--recipe frontier"])
def test_the_demo_trains_and_shows_both_models_and_human_text(call, data_dir, tmp_path, monkeypatch, recipe):
    for folder in ("datasets", "pre_trained_models"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "STEPS", 1)
    monkeypatch.setattr(demo, "MODELS", f"{demo.MODELS} --data_dir {data_dir}")
    load = demo.load

    def load_for_few(run_dir):
        system = load(run_dir)
        system.options.run.num_samples = 12
        system.options.sampling.sampling_timesteps = 2
        return system

    monkeypatch.setattr(demo, "load", load_for_few)
    outcome = call(demo.main, recipe)
    assert outcome.status == 0, outcome.err
    (run_dir,) = (tmp_path / "saved_models" / "demo").iterdir()
    table = [line for line in outcome.out.splitlines() if line.startswith("|")]
    titles = [line.split("|")[1].strip() for line in table[2:]]
    models = [f"{name} (2 sampling steps)" for name in ("this run", "trained for longer")]
    assert titles == ["human text", *(f"{model}, {way}" for model in models for way in ("beam", "nucleus"))]
    told = outcome.out.partition("Ten samples of the model just trained (1 steps):")[2].partition("|")[0]
    shown = [line for line in told.splitlines() if line.startswith("  ")]
    assert len(shown) == 10
    assert str(run_dir.relative_to(tmp_path)) in outcome.out.splitlines()[-1]
