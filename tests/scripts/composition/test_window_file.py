"""Training by a measured window: the run keeps its own copy, and a file that is none is refused."""

import json
import shutil

import pytest
import torch

from scripts import export_run, sample
from scripts.composition.window_file import WINDOW, read_levels
from tests.scripts.conftest import SMALL_RECIPE, TRUNK
from train_text_diffusion import main


def window(**changes) -> dict:
    levels = [{"gamma": float(g), "squared_error": float(g + 10)} for g in range(-8, 13)]
    return {"window": {"start": 0.5}, "levels": levels} | changes


@pytest.fixture
def measured(tmp_path):
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(window()))
    return path


@pytest.mark.parametrize("kind", ["loss", "information"])
def test_a_run_draws_its_times_by_the_window_wherever_that_has_gone(call, data_dir, measured, tmp_path, loaded, kind):
    line = f"{SMALL_RECIPE} {TRUNK} --data_dir {data_dir} --save_dir {tmp_path} --time_density {kind}"
    run_dir = tmp_path / "run"
    outcome = call(main, f"{line} --window {measured} --output_dir {run_dir}")
    assert outcome.status == 0, outcome.err
    measured.unlink()
    assert read_levels(run_dir / WINDOW).start == 0.5
    density = loaded(run_dir).process.density
    assert not torch.allclose(density.probability, torch.full((20,), 0.05).double(), atol=0.01)
    shutil.rmtree(run_dir / "checkpoints" / "step_00000004")
    assert call(main, f"--resume_training --resume_dir {run_dir}").status == 0
    assert call(main, f"--dry_run --eval_test --resume_dir {run_dir}").status == 0
    export = tmp_path / "export"
    assert call(export_run.main, f"--run {run_dir} --output_dir {export}").status == 0
    texts = [call(sample.main, f"--resume_dir {place} --num_samples 2 --strategy beam") for place in (run_dir, export)]
    assert all(outcome.status == 0 for outcome in texts)
    (run_dir / WINDOW).write_text(json.dumps(window(window={"start": 0.0})))
    assert f"{WINDOW}" in call(sample.main, f"--resume_dir {run_dir} --num_samples 2").errors[0]


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", "{}", json.dumps(window(window={})), json.dumps(window(window={"start": "low"})),
        json.dumps(window(window={"start": 11.5})), json.dumps(window(levels=[])),
        json.dumps(window(levels=window()["levels"][::-1])), json.dumps(window(levels=[{"gamma": 0.0}])),
        json.dumps(window(levels=[{"gamma": float(g), "squared_error": 1.0} for g in range(3)])),
    ],
)  # fmt: skip
def test_a_file_that_is_no_window_is_refused(complaint, data_dir, measured, tmp_path, content):
    measured.write_text(content)
    line = f"{SMALL_RECIPE} {TRUNK} --data_dir {data_dir} --save_dir {tmp_path} --time_density loss --window {measured}"
    line = complaint(main, line)
    assert str(measured) in line and "expected a window.json that scripts.measure_window wrote" in line


def test_a_window_that_the_schedule_never_meets_is_refused_before_anything_is_encoded(
    complaint, data_dir, measured, tmp_path
):
    measured.write_text(json.dumps(window(levels=[{"gamma": g, "squared_error": g} for g in (50.0, 60.0)])))
    line = f"{SMALL_RECIPE} {TRUNK} --data_dir {data_dir} --save_dir {tmp_path}/runs --time_density loss"
    assert "--noise_shift" in complaint(main, f"{line} --window {measured}")
    assert not (tmp_path / "runs").exists()
