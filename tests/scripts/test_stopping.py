"""A signal in every phase of every job: ended within seconds, with the documented status, whole and without left-overs.

Seconds from signal to end are printed (pytest -s).
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffusion.training import checkpoint
from scripts.job.errors import run
from scripts.sweep import __main__ as sweep
from train_text_diffusion import main

ROOT = Path(__file__).parents[2]
TRAINING = "train_text_diffusion"
WITHIN = 20.0  # seconds, on a machine that others use too; an idle one needs less than one, and two for a checkpoint
TRAIN = (
    "--dataset_name demo --enc_dec_model bart-demo --perplexity_model gpt2-demo --mauve_model gpt2-demo --tx_dim 64 "
    "--tx_depth 1 --num_train_steps 1000000 --train_batch_size 4 --log_every 1 --num_samples 20000 --eval_batch_size 8"
)
SWEEP = """
output_dir = "{out}"
[options]
dataset_name = "plain"
data_dir = "{data}"
method = "mdlm"
perplexity_model = "gpt2-demo"
mauve_model = "gpt2-demo"
enc_dec_model = "bart-demo"
tx_dim = 64
tx_depth = 1
num_train_steps = 1000000
log_every = 1
"""
each_signal = pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)


class Job:
    """A running command, a process made by `preloaded`; its words go to `words`."""

    def __init__(self, preloaded: subprocess.Popen, module: str, line: str, words: Path, slow_disk: bool):
        self.words, self.preloaded = words, preloaded
        print(json.dumps([module, line.split(), str(words), slow_disk]), file=preloaded.stdin, flush=True)
        self.pid = int(preloaded.stdout.readline())

    def wait_for(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end and Path(f"/proc/{self.pid}").exists(), self.said()
            time.sleep(0.01)

    def stop(self, number: int) -> tuple[int, float]:
        """Its exit status after the signal, and the seconds that it took."""
        os.kill(self.pid, number)
        started = time.monotonic()
        return int(self.preloaded.stdout.readline()), time.monotonic() - started

    def said(self) -> str:
        return self.words.read_text() if self.words.exists() else ""


def make_jobs() -> None:
    """Forks a process for each line of standard input, writes its id and, when it has ended, its exit status."""
    for asked in sys.stdin:
        module, line, words, slow_disk = json.loads(asked)
        pid = os.fork()
        if pid == 0:
            for stream in (1, 2):
                os.dup2(os.open(words, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            sys.argv = ["script.py", *line]
            if slow_disk:
                os.fsync = lambda handle, sync=os.fsync: (time.sleep(0.5), sync(handle))
            run(importlib.import_module(module).main)
            return
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


@pytest.fixture(scope="module", autouse=True)
def heard() -> Iterator[None]:
    """A suite started in the background of a shell ignores Ctrl-C, and so would what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def preloaded(heard) -> Iterator[subprocess.Popen]:
    """A process in which the libraries are loaded, and nothing else has happened that would not survive a fork."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=environment, text=True, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def job(preloaded, tmp_path) -> Iterator[Callable[..., Job]]:
    """job("module", "--flag value") is a running command, ended with the test."""
    jobs = []

    def begin(module: str, line: str, slow_disk: bool = False) -> Job:
        jobs.append(Job(preloaded, module, line, tmp_path / "words", slow_disk))
        return jobs[-1]

    yield begin
    for each in jobs:
        if Path(f"/proc/{each.pid}").exists():  # of a test that failed
            each.stop(signal.SIGKILL)


def hidden(folder: Path) -> list[Path]:
    """What is only there while something is being made."""
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


def ended_well(job: Job, number: int, status: int, phase: str, goes_on: bool = True) -> None:
    got, seconds = job.stop(number)
    print(f"{phase}: {signal.Signals(number).name}, ended after {seconds:.2f} s with status {got}")
    assert got == status, job.said()
    assert seconds < WITHIN
    left = "what was done is on disk" if goes_on else "the same command begins anew"
    assert "Traceback" not in job.said() and f"stopped by a signal; {left}" in job.said()
    assert not hidden(job.words.parent)


@each_signal
def test_while_the_libraries_load(number, status):
    """Nothing has been begun by then, so nothing is said."""
    job = subprocess.Popen([sys.executable, "train_text_diffusion.py"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{job.pid}/maps")
    while "numpy" not in maps.read_text():
        time.sleep(0.001)
    job.send_signal(number)
    started = time.monotonic()
    _, said = job.communicate(timeout=WITHIN)
    print(f"libraries: {signal.Signals(number).name}, ended after {time.monotonic() - started:.2f} s")
    assert (job.returncode, said) == (status, "")


@pytest.mark.slow
@each_signal
def test_while_texts_are_encoded(job, tmp_path, number, status):
    encoding = job(TRAINING, f"{TRAIN} --save_dir {tmp_path} --output_dir {tmp_path / 'run'}")
    encoding.wait_for(lambda: [path for path in tmp_path.rglob("states.npy") if path.stat().st_size > 10_000])
    ended_well(encoding, number, status, "encoding")
    assert not list((tmp_path / "latents").iterdir())


@each_signal
def test_in_a_training_step_and_resumed(job, call, tmp_path, rows_of, data_dir, number, status):
    line = f"{TRAIN} --data_dir {data_dir} --save_dir {tmp_path} --output_dir {tmp_path / 'run'}"
    training = job(TRAINING, line)
    metrics = tmp_path / "run" / "metrics.jsonl"
    training.wait_for(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 2)
    ended_well(training, number, status, "training")
    step = checkpoint.step_of(checkpoint.find_checkpoint(tmp_path / "run"))
    assert [row["step"] for row in rows_of(tmp_path / "run")] == list(range(1, step + 1))
    more = f"--num_train_steps {step + 1} --save_and_sample_every {step + 9}"
    assert call(main, f"--resume_training --resume_dir {tmp_path / 'run'} {more}").status == 0
    assert [row["step"] for row in rows_of(tmp_path / "run")] == list(range(1, step + 2))


@each_signal
def test_in_the_midst_of_writing_a_checkpoint(job, tmp_path, data_dir, number, status):
    line = f"{TRAIN} --data_dir {data_dir} --save_dir {tmp_path} --output_dir {tmp_path / 'run'}"
    saving = job(TRAINING, f"{line} --method mdlm --save_and_sample_every 2", slow_disk=True)
    saving.wait_for(lambda: list((tmp_path / "run").glob("checkpoints/.step_00000002.*")))
    ended_well(saving, number, status, "checkpoint")
    assert checkpoint.load(checkpoint.find_checkpoint(tmp_path / "run", 2), "model", "ema", "optimizer", "random")


@each_signal
def test_in_an_evaluation_of_training(job, tmp_path, data_dir, number, status):
    line = f"{TRAIN} --data_dir {data_dir} --save_dir {tmp_path} --output_dir {tmp_path / 'run'}"
    evaluating = job(TRAINING, f"{line} --save_and_sample_every 2")
    evaluating.wait_for(lambda: "sample 20000" in evaluating.said())
    ended_well(evaluating, number, status, "evaluation")
    assert checkpoint.find_checkpoint(tmp_path / "run").name == "step_00000002"


@each_signal
@pytest.mark.parametrize(
    ("module", "line", "begun", "goes_on"),
    [
        (TRAINING, "--eval_test --num_samples 20000 --output_dir", "sample 20000", True),
        pytest.param(
            TRAINING, "--gen_data --num_samples 20000 --output_dir", "sample 20000", False, marks=pytest.mark.slow
        ),
        (TRAINING, "--ppl_eval --likelihood_draws 100000 --output_dir", "likelihood", False),
        ("scripts.sample", "--num_samples 20000 --output_file", "sample 20000", False),
    ],
    ids=["eval_test", "gen_data", "ppl_eval", "scripts.sample"],
)
def test_in_a_job_on_a_trained_run(job, small_run, tmp_path, module, line, begun, goes_on, number, status):
    working = job(module, f"--resume_dir {small_run('mdlm')} {line} {tmp_path / 'own.jsonl'}")
    working.wait_for(lambda: begun in working.said())
    status = status if goes_on else 128 + number
    ended_well(working, number, status, f"{module} {line.split()[0]}", goes_on)
    assert not [path for path in tmp_path.rglob("own.jsonl/**/*") if path.is_file()]


@pytest.mark.slow
@each_signal
def test_in_a_sweep_which_tells_its_run(job, tmp_path, data_dir, number, status):
    (tmp_path / "own.toml").write_text(SWEEP.format(out=tmp_path / "out", data=data_dir))
    sweeping = job("scripts.sweep", str(tmp_path / "own.toml"))
    run_dir = tmp_path / "out" / "run"
    sweeping.wait_for(lambda: (run_dir / "metrics.jsonl").exists())
    ended_well(sweeping, number, status, "sweep")
    assert "stopped by a signal" in (run_dir / sweep.LOG).read_text()
    assert checkpoint.find_checkpoint(run_dir)


if __name__ == "__main__":
    make_jobs()
