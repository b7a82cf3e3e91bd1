"""Shell scripts: they parse, and what they call is a command line that is understood."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.composition.flag_checks import check_flags
from scripts.composition.options import Options
from scripts.sweep.file import read_sweep
from tests.scripts.conftest import Outcome
from train_text_diffusion import main

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


def test_a_job_that_is_submitted_again_gives_the_run_its_flags(small_run, call, tmp_path):
    script = 'source scripts/slurm/job.sh; train_or_resume "$@"; printf "%s\\n" "${command[@]:2}"'

    def command(run_dir: Path, *flags: str) -> list[str]:
        line = ["bash", "-c", script, "job", run_dir, *flags]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert command(tmp_path / "new", "--tx_dim", "64") == ["--output_dir", f"{tmp_path}/new", "--tx_dim", "64"]
    run_dir = shutil.copytree(small_run("mdlm"), tmp_path / "run")
    saved = Options.from_argv(["--gen_data", "--resume_dir", str(run_dir)]).flat()
    keys = ("method", "dataset_name", "data_dir", "tx_dim", "random_seed", "num_train_steps", "learning_rate")
    again = [f"--{key}={saved[key]}" for key in keys]

    def looked_at(*more: str) -> Outcome:
        return call(main, shlex.join(["--dry_run", *command(run_dir, *again, *more)]))

    assert looked_at().status == 0
    assert looked_at("--num_train_steps=6").out.count("steps    4 to 6 of") == 1
    for flag in ("tx_dim=128", "random_seed=7"):
        (line,) = looked_at(f"--{flag}").errors
        assert flag.replace("=", " ") in line


def test_a_method_that_was_killed_before_its_options_were_saved_begins_anew(tmp_path):
    (tmp_path / "mdlm" / "checkpoints" / "step_00000000").mkdir(parents=True)
    line = [ROOT / "scripts" / "diffusion" / "e2e_methods.sh", "data", tmp_path, "--tx_depth", "2"]

    def training() -> str:
        environment = os.environ | {"PYTHON": "echo", "METHODS": "mdlm", "STEPS": "8"}
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[0]

    assert f"--output_dir {tmp_path}/mdlm --tx_depth 2" in training()
    (tmp_path / "mdlm" / "args.json").touch()
    assert f"--resume_training --resume_dir {tmp_path}/mdlm --tx_depth 2" in training()
    assert "--num_train_steps 8" in training()


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
