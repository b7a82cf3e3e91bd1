"""The .sbatch files on a real SLURM of this machine alone: signalled and lost jobs end as if nothing had happened.

Needs root and Debian's slurm-wlm and munge, as scripts/slurm/one_node.sh says; skipped where they are not there.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusion.training.checkpoint import checkpoints, find_checkpoint
from scripts.sweep import __main__ as sweep
from scripts.sweep.file import read_sweep
from tests.scripts.conftest import SWEEP_HEAD
from train_text_diffusion import main

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "scripts" / "slurm"
NEEDED = ("sbatch", "scontrol", "slurmctld", "slurmd", "munged", "runuser")
MISSING = [tool for tool in NEEDED if shutil.which(tool) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (apt-get install slurm-wlm munge)"),
    pytest.mark.skipif(os.getuid() != 0, reason="a SLURM of one's own needs root"),
]

SWEEP = f"""{SWEEP_HEAD}
method = "mdlm"
num_train_steps = 1200
train_batch_size = 8
save_and_sample_every = 400
[grid]
T_schedule = ["normal", "linear"]
[eval_test]
num_samples = 4
"""


@pytest.fixture(scope="module")
def slurm():
    """slurm("sbatch", ...) is what the command printed; the cluster ends with the module."""
    folder = tempfile.mkdtemp(prefix="slurm-")  # where the user of munged may go, which pytest's folders are closed to
    try:
        started = subprocess.run([SLURM / "one_node.sh", "start", folder], capture_output=True, text=True, timeout=60)
        assert started.returncode == 0, started.stderr
        environment = os.environ | {
            "SLURM_CONF": re.search("SLURM_CONF=(.*)", started.stdout)[1], "PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip

        def run(*line: str | Path) -> str:
            done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            return done.stdout

        yield run
    finally:
        subprocess.run([SLURM / "one_node.sh", "stop", folder], timeout=60)
        shutil.rmtree(folder)


@pytest.fixture
def submit(slurm, tmp_path):
    """submit(file, *arguments, more=[options of sbatch]) is the number of the job."""

    def submitted(file: str, *arguments: str | Path, more: tuple[str, ...] = ()) -> str:
        line = ["sbatch", "--parsable", "--gres=none", "--mem=0", "--cpus-per-task=1", f"--output={tmp_path}/%j.out"]
        return slurm(*line, *more, SLURM / file, *arguments).strip()

    return submitted


def until(condition: Callable[[], object], what: str, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.1)


def of_job(slurm, job: str, what: str) -> str:
    return re.search(rf"{what}=(\w+)", slurm("scontrol", "show", "job", job))[1]


def signalled(slurm, job: str) -> None:
    """Sends what SLURM sends before the time limit, and waits for the job to be queued again."""
    slurm("scancel", "--signal=USR1", "--batch", job)
    until(lambda: of_job(slurm, job, "Restarts") == "1", f"{job} to be queued again")


def end_of(slurm, job: str) -> str:
    """The state in which a job ends; a requeued one is spared the two minutes that SLURM would let pass."""

    def has_ended() -> bool:
        if of_job(slurm, job, "Reason") == "BeginTime":
            slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
        return of_job(slurm, job, "JobState") in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")

    until(has_ended, f"{job} to end")
    return of_job(slurm, job, "JobState")


def has_begun(run_dir: Path) -> bool:
    return (run_dir / "metrics.jsonl").is_file() and (run_dir / "metrics.jsonl").stat().st_size > 0


def assert_same_weights(run_dir: Path, other: Path) -> None:
    for name in ("model", "ema"):
        one, two = (load_file(find_checkpoint(folder) / f"{name}.safetensors") for folder in (run_dir, other))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_an_array_that_is_signalled_and_loses_its_node_ends_as_if_it_had_not(slurm, submit, tmp_path, data_dir, call):
    path = tmp_path / "own.toml"
    path.write_text(SWEEP.format(out=tmp_path / "out", data=data_dir))
    first, lost = plan = read_sweep(path).runs
    job = submit("sweep.sbatch", path, more=("--array=1-2",))

    until(lambda: has_begun(first.folder), "the first run to begin")
    signalled(slurm, f"{job}_1")
    assert any("queued again to go on" in path.read_text() for path in tmp_path.glob("*.out"))

    until(lambda: checkpoints(lost.folder), "the second run to have a checkpoint")
    node = slurm("sinfo", "--noheader", "--format=%N").strip()
    slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
    until(lambda: not sweep.is_running(lost), "the run to be gone with its node")
    slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert [end_of(slurm, f"{job}_{number}") for number in (1, 2)] == ["COMPLETED"] * 2
    assert [str(sweep.state_of(run)) for run in plan] == ["done", "done"]

    for run in plan:
        whole = tmp_path / "whole" / run.name
        outcome = call(main, " ".join([*sweep.flags(run.values), f"--output_dir={whole}"]))
        assert outcome.status == 0, outcome.err
        assert_same_weights(run.folder, whole)
        steps = [folder / "metrics.jsonl" for folder in (run.folder, whole)]
        assert steps[0].read_text().count('"loss"') == steps[1].read_text().count('"loss"') == 1200 // 50


def test_several_tasks_train_one_run_save_on_the_signal_and_go_on(slurm, submit, tmp_path, data_dir):
    flags = sweep.flags(
        {"dataset_name": "plain", "data_dir": data_dir, "enc_dec_model": "bart-demo", "perplexity_model": "gpt2-demo",
         "mauve_model": "gpt2-demo", "method": "mdlm", "tx_dim": 64, "tx_depth": 1, "max_length": 24,
         "sampling_timesteps": 3, "num_train_steps": 400, "train_batch_size": 8, "save_and_sample_every": 200,
         "num_samples": 4, "disable_dropout": True, "save_dir": tmp_path / "saved"}
    )  # fmt: skip
    ends = []
    for name in ("whole", "parts"):
        job = submit(
            "several_gpus.sbatch", tmp_path / name, *flags, more=("--ntasks-per-node=2",)
        )
        if name == "parts":
            until(lambda: has_begun(tmp_path / "parts"), "the run to begin")
            signalled(slurm, job)
        ends.append(end_of(slurm, job))
    assert ends == ["COMPLETED"] * 2
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert metrics[0].count('"loss"') == metrics[1].count('"loss"') == 8


def test_the_test_evaluation_of_an_array_scores_each_run(slurm, submit, small_run, tmp_path):
    runs = [Path(shutil.copytree(small_run("mdlm"), tmp_path / name)) for name in ("a", "b")]
    job = submit("test_eval.sbatch", *runs, more=("--array=1-2", "--export=ALL,SAMPLES=3"))
    assert [end_of(slurm, f"{job}_{number}") for number in (1, 2)] == ["COMPLETED"] * 2
    for run_dir in runs:
        assert len(list((run_dir / "evaluation" / "test_step_00000004").glob("seed_*/scores.json"))) == 5


def test_a_cancelled_job_saves_and_is_not_queued_again(slurm, submit, tmp_path, data_dir):
    flags = sweep.flags(
        {"dataset_name": "plain", "data_dir": data_dir, "enc_dec_model": "bart-demo", "perplexity_model": "gpt2-demo",
         "mauve_model": "gpt2-demo", "method": "mdlm", "tx_dim": 64, "tx_depth": 1, "max_length": 24,
         "num_train_steps": 100000, "train_batch_size": 8, "save_and_sample_every": 100000,
         "save_dir": tmp_path / "saved"}
    )  # fmt: skip
    job = submit("one_gpu.sbatch", tmp_path / "run", *flags)
    until(lambda: has_begun(tmp_path / "run"), "the run to begin")
    slurm("scancel", job)
    until(lambda: checkpoints(tmp_path / "run"), "a checkpoint")
    assert end_of(slurm, job) == "CANCELLED"
