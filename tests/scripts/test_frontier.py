"""Curves of quality against diversity: read from cells, and compared where they pass the entropy of human text."""

import json
import shutil
from math import exp, log

import pytest

from offline_metrics.scores import Scores
from scripts import frontier, step_curves
from scripts.evaluation.cells import dial_of
from scripts.frontier import ENTROPY, Curve

METRICS = "--perplexity_model gpt2-demo --mauve_model gpt2-demo"


def row(entropy: float, perplexity: float, mauve: float) -> Scores:
    return Scores({ENTROPY: entropy, "corpus_perplexity": perplexity, "mauve": mauve})


def test_a_curve_is_read_off_between_the_cells_around_an_entropy():
    curve = Curve("run", "temperature", {0.9: row(5.0, 40.0, 0.9), 0.5: row(3.0, 10.0, 0.5), 0.7: row(4.0, 20.0, 0.7)})
    found = curve.at(4.25)
    assert found["corpus_perplexity"] == pytest.approx(exp(log(20) + 0.25 * log(2)))
    assert found["mauve"] == pytest.approx(0.75)
    assert curve.at(3.0)["corpus_perplexity"] == pytest.approx(10) and curve.at(5.0)["mauve"] == pytest.approx(0.9)
    assert curve.at(2.9) is None and curve.at(5.1) is None


@pytest.mark.parametrize(
    ("cell", "wanted"),
    {
        "temperature=0.8": ("", "temperature", 0.8),
        "sampler=churn,sampling_timesteps=25,churn=2": ("churn, sampling_timesteps 25", "churn", 2.0),
        "ddim:25": ("ddim", "sampling_timesteps", 25.0),
        "ddim:25:0.5": ("ddim, grid_power 0.5", "sampling_timesteps", 25.0),
        "sampler=ddim": ("", "sampler", None),
    }.items(),
)
def test_the_last_flag_of_a_cell_is_its_dial(cell, wanted):
    assert dial_of(cell) == wanted


@pytest.fixture(scope="module")
def runs(small_run, call, tmp_path_factory):
    """A folder of two runs, each with cells of its own dial."""
    place = tmp_path_factory.mktemp("frontier")
    for method, cells in (("mdlm", "temperature=0.5 temperature=1 temperature=2"), ("latent", "ddim:2 ddim:3")):
        run_dir = shutil.copytree(small_run(method), place / method)
        line = f"--resume_dir {run_dir} --num_samples 6 {METRICS} --seeds 1 2 --cells {cells}"
        outcome = call(step_curves.main, line)
        assert outcome.status == 0, outcome.err
    return place


def test_the_cells_of_several_runs_are_drawn_and_written(runs, call, tmp_path):
    outcome = call(frontier.main, f"{runs} --output_dir {tmp_path}")
    assert outcome.status == 0, outcome.err
    found = json.loads((tmp_path / "frontier.json").read_text())
    assert {name: sorted(rows) for name, rows in found["curves"].items()} == {
        "mdlm, temperature": ["0.5", "1", "2"], "latent, ddim, sampling_timesteps": ["2", "3"],
    }  # fmt: skip
    assert "warning" not in outcome.err
    assert f"{found['human'][ENTROPY]:.3f}" in outcome.out
    page = (tmp_path / "frontier.html").read_text()
    assert page.count("<svg") > 6 and "mdlm, temperature 0.5" in page
    assert "| mdlm, temperature 0.5 " in (tmp_path / "frontier.md").read_text()


def test_curves_without_a_cell_like_human_text_are_told_apart(runs, call, tmp_path):
    other = shutil.copytree(runs / "latent", tmp_path / "other")
    outcome = call(frontier.main, f"{runs / 'latent'} {other} --output_dir {tmp_path}")
    assert "beyond: latent, ddim, sampling_timesteps; other, ddim, sampling_timesteps." in outcome.out


def test_each_way_of_writing_has_a_curve_of_its_own(runs, call, tmp_path):
    both = shutil.copytree(runs / "latent", tmp_path / "both")
    line = f"--resume_dir {both} --num_samples 6 {METRICS} --seeds 1 --cells ddim:2 --strategy nucleus"
    assert call(step_curves.main, line).status == 0
    assert call(frontier.main, f"{both} --output_dir {tmp_path}").status == 0
    curves = json.loads((tmp_path / "frontier.json").read_text())["curves"]
    assert {name: sorted(rows) for name, rows in curves.items()} == {
        "both, beam, ddim, sampling_timesteps": ["2", "3"], "both, nucleus, ddim, sampling_timesteps": ["2"]
    }  # fmt: skip


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_cells_that_were_asked_otherwise_are_named_and_left_out(runs, call, tmp_path):
    mixed = shutil.copytree(runs / "mdlm", tmp_path / "mixed")
    (folder,) = mixed.glob("evaluation/curves_*")
    changed(folder / "temperature=1" / "seed_2" / "asked.json", num_samples=5)
    changed(folder / "temperature=2" / "seed_1" / "asked.json", top_k=5)
    outcome = call(frontier.main, f"{mixed} --output_dir {tmp_path}")
    (warning,) = [line for line in outcome.err.splitlines() if line.startswith("warning")]
    assert f"{folder}: temperature=1/seed_2, temperature=2/seed_1 were asked otherwise than the rest" in warning
    rows = json.loads((tmp_path / "frontier.json").read_text())["curves"]["mixed, temperature"]
    assert {value: row["runs"] for value, row in rows.items()} == {"0.5": 2, "1": 1, "2": 1}


def test_cells_of_before_are_read(runs, call, tmp_path):
    before = shutil.copytree(runs / "latent", tmp_path / "latent")
    for place in before.glob("evaluation/curves_*/*/seed_*"):
        asked, rows = (json.loads((place / name).read_text()) for name in ("asked.json", "scores.json"))
        kept = {"strategy": asked["strategy"], "samples": 6, "sampling": {"sampler": asked["sampler"]}, "metrics": {}}
        (place / "cell.json").write_text(json.dumps({"cell": asked["cell"], "asked": kept, "rows": rows}))
        (place / "asked.json").unlink()
    found = []
    for run_dir in (before, runs / "latent"):
        outcome = call(frontier.main, f"{run_dir} --output_dir {tmp_path / 'out'}")
        assert outcome.status == 0 and "warning" not in outcome.err
        found.append((tmp_path / "out" / "frontier.json").read_text())
    assert found[0] == found[1]


def test_runs_beside_other_human_texts_are_told(runs, call, tmp_path):
    other = shutil.copytree(runs / "mdlm", tmp_path / "other")
    for path in other.glob("evaluation/curves_*/*/seed_*/scores.json"):
        rows = json.loads(path.read_text())
        rows["human"]["total_words"] += 1
        path.write_text(json.dumps(rows))
    outcome = call(frontier.main, f"{runs / 'latent'} {other} --output_dir {tmp_path}")
    assert f"warning: {other}: scored beside other human texts" in outcome.err


def test_cells_that_are_not_there_are_told(small_run, runs, call, complaint, tmp_path):
    line = complaint(frontier.main, f"{small_run('ar')} --output_dir {tmp_path / 'none'}")
    assert "no run has cells; expected what scripts.step_curves writes" in line
    outcome = call(frontier.main, f"{small_run('ar')} {runs} --output_dir {tmp_path}")
    assert outcome.status == 0 and "no cells; run python -m scripts.step_curves" in outcome.err
    broken = shutil.copytree(runs / "mdlm", tmp_path / "broken")
    (path,) = broken.glob("evaluation/curves_*/temperature=1/seed_1/asked.json")
    path.write_text("{")
    assert f"{path}: cannot be read" in complaint(frontier.main, f"{broken} --output_dir {tmp_path}")
