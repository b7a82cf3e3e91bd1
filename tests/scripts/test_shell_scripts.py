"""Shell scripts: they parse, and what they call is a command line that is understood."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.composition.flag_checks import check_flags
from scripts.composition.options import Options
from scripts.sweep.file import read_sweep

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    path
    for folder in ("diffusion", "slurm")
    for suffix in (".sh", ".sbatch")
    for path in sorted((ROOT / "scripts" / folder).glob(f"*{suffix}"))
]


def test_there_are_scripts():
    assert {path.suffix for path in SCRIPTS} == {".sh", ".sbatch"} and len(SCRIPTS) >= 12


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_it_parses(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert path.suffix == ".sbatch" or path.name == "job.sh" or os.access(path, os.X_OK)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", "--external-sources", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["e2e", "roc"])
def test_a_recipe_is_a_command_line(name):
    line = [ROOT / "scripts" / "diffusion" / f"{name}.sh", "--random_seed", "41", "--T_schedule", "linear"]
    done = subprocess.run(line, env=os.environ | {"PYTHON": "echo"}, capture_output=True, text=True, check=True)
    script, *flags = done.stdout.split()
    options = Options.from_argv(flags)
    check_flags(options)
    assert script == "train_text_diffusion.py" and options.data.dataset_name == name
    assert (options.training.random_seed, options.training.T_schedule) == (41, "linear")


@pytest.mark.parametrize(("name", "mode"), [("eval", "--eval"), ("test_eval", "--eval_test")])
def test_each_run_is_evaluated(name, mode):
    line = [ROOT / "scripts" / "diffusion" / f"{name}.sh", "a", "b"]
    done = subprocess.run(
        line, env=os.environ | {"PYTHON": "echo", "SAMPLES": "7"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[:2] == [
        f"train_text_diffusion.py {mode} --resume_dir {run} --num_samples 7" for run in ("a", "b")
    ]


def test_the_example_of_a_sweep_is_one():
    runs = read_sweep(ROOT / "scripts" / "diffusion" / "annealing.toml").runs
    assert len(runs) == 18 and {tuple(run.evaluations) for run in runs} == {("eval_test",)}


@pytest.mark.parametrize("path", sorted((ROOT / "scripts" / "diffusion").glob("*.toml")), ids=lambda path: path.stem)
def test_a_sweep_of_the_docs_can_be_read_and_has_three_seeds(path):
    runs = read_sweep(path).runs
    seeds = {run.options.training.random_seed for run in runs}
    assert seeds == ({41} if path.stem == "annealing_small_rate" else {41, 42, 43})
    assert all("eval_test" in run.evaluations for run in runs)


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.suffix == ".sbatch"], ids=lambda path: path.name)
def test_jobs_ask_for_a_signal_and_may_be_queued_again(path):
    text = path.read_text()
    assert "#SBATCH --signal=B:USR1@120\n#SBATCH --requeue\n" in text and "requeued " in text
