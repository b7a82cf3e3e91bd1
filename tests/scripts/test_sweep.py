"""Sweeps: what a file means, what runs, what is left alone, and what becomes of runs that break."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_text_diffusion
from diffusion.training.checkpoint import checkpoints, find_checkpoint
from diffusion.training.signals import Stopped
from scripts.sweep import __main__ as sweep
from scripts.sweep.file import read_sweep
from tests.scripts.conftest import SWEEP_HEAD

Usage = namedtuple("Usage", "total used free")
OPTIONS = f"""{SWEEP_HEAD}
timesteps = 20
num_train_steps = 4
train_batch_size = 16
save_and_sample_every = 2
keep_checkpoints = 0
likelihood_draws = 2
"""
GRID = """
[grid]
T_schedule = ["normal", "linear"]
[groups.method.mdlm]
method = "mdlm"
[groups.method.latent]
method = "latent"
self_condition = true
"""
ONE = '[grid]\nmethod = ["mdlm"]\n'


@pytest.fixture
def write(tmp_path, data_dir):
    """write(text) is a sweep file of the small options and `text`."""

    def written(text: str) -> Path:
        path = tmp_path / "own.toml"
        path.write_text(OPTIONS.format(out=tmp_path / "out", data=data_dir) + text)
        return path

    return written


@pytest.fixture
def lines(call, monkeypatch) -> list[str]:
    """The command lines of the entry script, which is called in this process."""
    called = []

    def in_process(line, run, lock, stop):
        called.append(shlex.join(line))
        outcome = call(train_text_diffusion.main, shlex.join(line))
        (run.folder / sweep.LOG).write_text(outcome.err)
        return outcome.status

    monkeypatch.setattr(sweep, "call", in_process)
    return called


# What a file means


def test_every_combination_is_a_run_in_a_folder_named_by_what_varies(write, tmp_path):
    plan = read_sweep(write(GRID + "[eval_test]\nnum_samples = 3\n[ppl_eval]\n"))
    assert [(run.name, tuple(run.evaluations)) for run in plan.runs] == [
        ("method=mdlm,T_schedule=normal", ("eval_test", "ppl_eval")),
        ("method=mdlm,T_schedule=linear", ("eval_test", "ppl_eval")),
        ("method=latent,T_schedule=normal", ("eval_test", "ppl_eval")),
        ("method=latent,T_schedule=linear", ("eval_test", "ppl_eval")),
    ]
    assert all(run.folder == tmp_path / "out" / run.name for run in plan.runs)
    last = plan.runs[-1].options
    assert (last.method.method, last.denoiser.self_condition, last.training.T_schedule) == ("latent", True, "linear")
    assert (last.run.save_dir, last.training.num_train_steps) == (str(tmp_path / "out"), 4)
    assert not plan.runs[0].options.denoiser.self_condition
    assert plan.evaluations == {"eval_test": {"num_samples": 3}, "ppl_eval": {}}


def test_a_run_without_a_likelihood_is_passed_over_among_others(write):
    grid = "[grid]\nmethod = ['diffusion_bert']\nspindle = ['type', 'frequency']\n[ppl_eval]\n"
    assert [list(run.evaluations) for run in read_sweep(write(grid)).runs] == [["ppl_eval"], []]


def test_a_file_without_a_grid_is_one_run(write):
    assert [run.name for run in read_sweep(write("")).runs] == ["run"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    {
        "[grid]\nT_shedule = ['linear']": r"\[grid\] T_shedule: unknown option; did you mean T_schedule\?",
        "[grid]\nT_schedule = ['lineal']": r"\[grid\] T_schedule: 'lineal'; expected 'normal' or 'linear'",
        "[grid]\nT_schedule = 'linear'": r"\[grid\] T_schedule: expected a list of values",
        "[grid]\nrandom_seed = []": r"\[grid\] random_seed: expected a list of values",
        "[grid]\nrandom_seed = [1, '2']": r"\[grid\] random_seed: '2'; expected a whole number",
        "[grid]\nrandom_seed = [1, 2, 1]": r"\[grid\] random_seed: two values are called 1, .* give each value once",
        "[grid]\ntx_dim = [128]": r"tx_dim: set by \[options\] and by tx_dim; set it once",
        "[grid]\nlearning_rate = [0.1, -1.0]": r"learning_rate=-1.0: --learning_rate -1.0: expected a number above 0",
        "[grid]\nmethod = ['latent', 'ar']\nT_schedule = ['linear']": "method=ar,T_schedule=linear: --method ar has no",
        "[grid]\noutput_dir = ['a']": r"\[grid\] output_dir: the sweep sets it itself",
        "[groups.method]\nname = 'mdlm'": r"\[groups.method\]: expected tables such as \[groups.method.NAME\]",
        "[groups.m.a]\nmethod = 'ar'\n[grid]\nmethod = ['mdlm']": "method: set by m and by method; set it once",
        "[groups.m.'a b']\ntx_depth = 1": r"tx_depth: set by \[options\] and by m",
        "[groups.m.'a b']\nmethod = 'ar'\n[groups.m.a-b]\nmethod = 'ar'": r"\[groups.m\]: two .* called a-b",
        "[evaluate]": "evaluate: unknown key",
        "[eval_test]\ntx_dim = 128": r"\[eval_test\] tx_dim: says what the model is",
        "[eval_test]\nnum_samples = 0": "--num_samples 0: expected at least 1",
        "[ppl_eval]\n[grid]\nmethod = ['diffusion_bert']\nspindle = ['frequency']": "spindle frequency has no",
        "[grid\n": "own.toml: cannot be read .*expected a sweep file in TOML",
        f"[grid]\nrandom_seed = {'[' * 9000}": "own.toml: cannot be read .*recursion",
        f"[grid]\nrandom_seed = [0x{'f' * 5000}]": r"\[grid\] random_seed: a number that cannot be held; expected",
        "[grid]\nlearning_rate = [18446744073709551616]": r"\[grid\] learning_rate: 18446744073709551616; expected a",
        "[grid]\nwandb_name = ['a', \"b\\u0000\"]": r"\[grid\] wandb_name: 'b\\x00'; expected a string",
    }.items(),
)
def test_a_wrong_file_is_told_in_one_line_that_names_it_and_the_key(write, complaint, text, wanted, tmp_path):
    message = complaint(sweep.main, str(write(text)))
    assert str(tmp_path / "own.toml") in message and re.search(wanted, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("--task 5", "--task 5: expected 1 to 4"),
        ("--run 5/4", "--run 5/4: expected i/n with i from 1 to n"),
        ("--run half", "--run half: expected i/n"),
        ("--runs 1/2", "unrecognized arguments: --runs"),
    ],
)
def test_a_wrong_command_line(write, complaint, flags, wanted):
    assert wanted in complaint(sweep.main, f"{write(GRID)} {flags}")


def test_a_missing_file(complaint, tmp_path):
    assert "none.toml: cannot be read (No such file" in complaint(sweep.main, f"{tmp_path}/none.toml")


def test_shares_hold_every_run_once(write):
    runs = read_sweep(write("[grid]\nrandom_seed = [1, 2, 3, 4, 5]")).runs
    shares = [sweep.choose(runs, f"{i}/3", None) for i in (1, 2, 3)]
    assert sorted(len(share) for share in shares) == [1, 2, 2]
    assert {run for share in shares for run in share} == set(runs)
    assert sweep.choose(runs, None, 2) == runs[1:2]


# What runs


def test_a_sweep_runs_what_is_missing_and_continues_what_broke(write, call, lines, tmp_path):
    path = write(GRID + "[eval_test]\nnum_samples = 2\n[ppl_eval]\n")
    listed = lambda: [line.split("  ")[-1] for line in call(sweep.main, f"{path} --list").out.splitlines()]  # noqa: E731
    assert listed() == ["to come"] * 4
    first = call(sweep.main, f"{path} --task 1")
    assert first.status == 0, first.err
    assert [line.split()[0] for line in lines] == ["--save_dir=" + str(tmp_path / "out"), "--eval_test", "--ppl_eval"]
    assert listed() == ["done"] + ["to come"] * 3

    whole = tmp_path / "out" / "method=mdlm,T_schedule=normal"
    broken = tmp_path / "out" / "method=mdlm,T_schedule=linear"
    assert call(sweep.main, f"{path} --task 2").status == 0
    weights = load_file(find_checkpoint(broken) / "model.safetensors")
    shutil.rmtree(broken / "evaluation" / "likelihood_step_00000004")
    lines.clear()
    outcome = call(sweep.main, str(path))
    assert outcome.status == 0, outcome.err
    assert [line.split()[0].split("=")[0] for line in lines] == [
        "--ppl_eval", *["--save_dir", "--eval_test", "--ppl_eval"] * 2
    ]  # fmt: skip
    assert "4 runs under" in outcome.err and "1 done, 3 to do" in outcome.err and "left" in outcome.err
    assert listed() == ["done"] * 4
    after = load_file(find_checkpoint(broken) / "model.safetensors")
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    lines.clear()
    assert call(sweep.main, str(path)).status == 0 and lines == []
    assert len(list((tmp_path / "out" / "latents").iterdir())) == 3  # which both runs on latents read
    assert (whole / "evaluation" / "test_step_00000004" / "scores.json").is_file()


def test_a_run_that_stopped_between_two_checkpoints_is_resumed(write, call, lines, tmp_path):
    path = write('[grid]\nmethod = ["mdlm", "gidd"]\n')
    assert call(sweep.main, f"{path} --run 1/2").status == 0
    (run, _) = read_sweep(path).runs
    shutil.rmtree(checkpoints(run.folder)[-1])
    assert str(sweep.state_of(run)) == "step 2 of 4"
    assert [line for _, line in sweep.commands(run, read_sweep(path))] == [
        ["--resume_training", f"--resume_dir={run.folder}"]
    ]


def test_a_run_that_broke_before_its_first_step_goes_on_and_one_without_checkpoints_is_not_begun_anew(
    write, call, lines
):
    path = write(ONE)
    assert call(sweep.main, str(path)).status == 0
    plan = read_sweep(path)
    (run,) = plan.runs
    resumed = [["--resume_training", f"--resume_dir={run.folder}"]]
    first, *later = checkpoints(run.folder)
    assert first.name == "step_00000000"
    for each in later:
        shutil.rmtree(each)
    assert str(sweep.state_of(run)) == "to come"
    assert [line for _, line in sweep.commands(run, plan)] == resumed
    shutil.rmtree(first)
    assert [line for _, line in sweep.commands(run, plan)] == resumed
    outcome = call(sweep.main, str(path))
    assert outcome.status == 1 and "expected a checkpoint (found: none)" in outcome.err


def test_a_run_whose_last_checkpoint_is_damaged_trains_again_before_it_is_evaluated(write, call, lines):
    path = write(ONE + "[eval_test]\nnum_samples = 2\n")
    assert call(sweep.main, str(path)).status == 0
    plan = read_sweep(path)
    (run,) = plan.runs
    shutil.rmtree(run.folder / "evaluation" / "test_step_00000004")
    (find_checkpoint(run.folder) / "model.safetensors").unlink()
    lines.clear()
    assert call(sweep.main, str(path)).status == 0
    assert [line.split()[0] for line in lines] == ["--resume_training", "--eval_test"]
    assert sweep.state_of(run).is_done


def test_a_failed_run_does_not_stop_the_others_and_the_status_says_so(write, call, lines, tmp_path, monkeypatch):
    path = write('[grid]\nmethod = ["mdlm", "gidd"]\n')
    in_process = sweep.call

    def failing(line, run, lock, stop):
        if "mdlm" not in run.name:
            return in_process(line, run, lock, stop)
        (run.folder / sweep.LOG).write_text("train: 3%\nerror: the disk is full\n")
        return 2

    monkeypatch.setattr(sweep, "call", failing)
    outcome = call(sweep.main, str(path))
    assert outcome.status == 1
    assert "method=mdlm: training failed with status 2: error: the disk is full" in outcome.err
    assert outcome.err.splitlines()[-1] == "1 done, 1 failed"
    assert [str(sweep.state_of(run)) for run in read_sweep(path).runs] == ["to come", "done"]


def test_of_a_log_the_words_of_the_last_command_count(write, monkeypatch, tmp_path):
    (run,) = read_sweep(write(ONE)).runs
    run.folder.mkdir(parents=True)
    (tmp_path / "train_text_diffusion.py").write_text("import sys\nprint(*sys.argv[1:])")
    monkeypatch.setattr(sweep, "ENTRY", tmp_path / "train_text_diffusion.py")
    log = run.folder / sweep.LOG
    for said in ("error: the disk is full", "train: 3%", ""):
        with sweep.locked(run.folder / sweep.LOCK) as lock, sweep.listening() as stop:
            assert sweep.call([said], run, lock, stop) == 0
        assert sweep._last_words(log) == f"{said or 'it said nothing'} ({log})"


def test_a_file_that_no_longer_says_what_was_run_is_refused(write, call, lines, complaint):
    path = write(ONE)
    assert call(sweep.main, str(path)).status == 0
    path.write_text(path.read_text().replace("tx_depth = 1", "tx_depth = 2"))
    message = complaint(sweep.main, str(path))
    assert "method=mdlm: was begun with tx_depth 1, the file has 2; choose another output_dir" in message
    path.write_text(path.read_text().replace("tx_depth = 2", ""))
    message = complaint(sweep.main, str(path))
    assert "method=mdlm: was begun with tx_depth 1, the file, without it, means 6; choose" in message
    path.write_text(path.read_text().replace("tx_dim = 64", "tx_dim = 64\ntx_depth = 1"))
    (run,) = read_sweep(path).runs
    saved = json.loads((run.folder / "args.json").read_text())
    del saved["early_stop"]
    (run.folder / "args.json").write_text(json.dumps(saved))  # of a run that is older than the option
    assert call(sweep.main, f"{path} --dry_run").status == 0


def test_an_evaluation_counts_as_the_file_asks_for_it(write, call, lines, complaint):
    path = write(ONE + "[eval_test]\nnum_samples = 2\n[ppl_eval]\n")
    assert call(sweep.main, str(path)).status == 0
    text = path.read_text()

    def state(changed: str) -> str:
        path.write_text(changed)
        return str(sweep.state_of(*read_sweep(path).runs))

    for changed, still, words in (
        (text.replace("num_samples = 2", "num_samples = 3"), "eval_test", "--num_samples 2, and asked is 3"),
        (text.replace("num_samples = 2", ""), "eval_test", "--num_samples 2, and asked is 4"),  # of [options]
        (text.replace("num_samples = 2", "num_samples = 2\ntop_p = 0.5"), "eval_test", "--top_p 1.0, and asked is 0.5"),
        (text + "likelihood_draws = 3\n", "ppl_eval", "--likelihood_draws 2, and asked is 3"),
    ):
        assert state(changed) == f"trained, {still} to come"
        assert f"{words} by [{still}]; put that back" in complaint(sweep.main, str(path))
    assert state(text.replace("num_samples = 2", "num_samples = 2\nmetric_batch_size = 8")) == "done"
    (run,) = read_sweep(path).runs
    for record in run.folder.rglob("asked.json"):
        record.unlink()
    assert state(text.replace("num_samples = 2", "num_samples = 3")) == "done"  # of before: nobody knows


def test_a_dry_run_tells_what_is_wrong_with_any_run_and_leaves_nothing(write, call, tmp_path):
    path = write('[grid]\nmethod = ["mdlm", "latent"]\n')
    found = call(sweep.main, f"{path} --dry_run")
    assert found.status == 0 and found.out.startswith("runs     2 under"), found
    path.write_text(path.read_text().replace('"bart-demo"', '"no/bart"').replace('"gpt2-demo"', '"no/gpt"'))
    found = call(sweep.main, f"{path} --dry_run")
    assert (found.status, len(found.errors)) == (2, 3)  # the codec, and the model of two flags
    assert not (tmp_path / "out").exists()


def test_models_that_only_an_evaluation_needs_are_looked_at_before_anything_is_trained(
    write, call, complaint, lines, tmp_path, monkeypatch
):
    path = write(ONE + '[eval_test]\nmauve_model = "no/mauve"\n')
    for asked in ("", "--dry_run"):
        assert "--mauve_model: " in complaint(sweep.main, f"{path} {asked}") and lines == []
    head = path.read_text().replace('perplexity_model = "gpt2-demo"\n', "").replace("no/mauve", "gpt2-demo")
    path.write_text(head)  # a default scorer, which is left out in training but not in the evaluation
    monkeypatch.setattr("latent_models.codec._hub_snapshot", lambda name: None)
    for asked in ("", "--dry_run"):
        assert "scripts.cache_models gpt2-large" in complaint(sweep.main, f"{path} {asked}") and lines == []
    path.write_text(head.replace("[eval_test]", "[ppl_eval]").replace('mauve_model = "gpt2-demo"\n', ""))
    assert call(sweep.main, f"{path} --dry_run").status == 0  # likelihoods are scored by no other model
    assert not (tmp_path / "out").exists()


def test_a_dry_run_counts_what_is_still_to_come_and_the_room_for_all_of_it(write, call, lines, monkeypatch):
    path = write('[grid]\nmethod = ["mdlm", "gidd"]\n')

    def megabytes() -> int:
        found = call(sweep.main, f"{path} --dry_run")
        assert found.status == 0, found.err
        return int(re.search(r"disk +(\d+) MB for checkpoints", found.out).group(1))

    both = megabytes()
    assert call(sweep.main, f"{path} --run 1/2").status == 0
    assert megabytes() == pytest.approx(both / 2, abs=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**9, 10**9, int((both - 2) * 1e6 / 2)))
    assert call(sweep.main, f"{path} --dry_run").status == 2
    assert call(sweep.main, f"{path} --run 2/2").status == 0
    done = call(sweep.main, f"{path} --dry_run")
    assert (done.status, done.out) == (0, f"runs  2 under {path.parent}/out: 0 to do\n")


def test_a_dry_run_looks_at_what_broke_as_the_run_will_find_it(write, call, lines):
    path = write(ONE + "[eval_test]\nnum_samples = 2\n")
    assert call(sweep.main, str(path)).status == 0
    (run,) = read_sweep(path).runs
    for each in checkpoints(run.folder)[1:]:
        (each / "ema.safetensors").unlink()
    shutil.rmtree(run.folder / "evaluation")
    assert call(sweep.main, f"{path} --dry_run").status == 0  # goes on from the first one
    (checkpoints(run.folder)[0] / "ema.safetensors").unlink()
    assert "no checkpoint is intact" in call(sweep.main, f"{path} --dry_run").err
    path.write_text(path.read_text().replace("tx_depth = 1", "tx_depth = 2"))
    assert "was begun with tx_depth 1, the file has 2" in call(sweep.main, f"{path} --dry_run").err


# Several processes and signals: with a stand-in for the entry script, which needs seconds to start


STAND_IN = """
import signal, sys, time
from pathlib import Path
folder = Path(next(a for a in sys.argv if a.startswith("--output_dir=")).split("=", 1)[1])
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
(folder / "started").open("a").write("x")
while not (folder / "go").exists():
    time.sleep(0.02)
(folder / "checkpoints" / "step_00000004").mkdir(parents=True)
"""


@pytest.fixture
def begun(write, tmp_path, monkeypatch):
    """A sweep of one run whose entry script waits for the file `go`, and the process of it; ended with the test."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(sweep, "ENTRY", tmp_path / "stand_in.py")
    plan = read_sweep(write(ONE))
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(sweep.run_all(plan, plan.runs, wait=False))
        except Stopped:
            os._exit(75)
    (run,) = plan.runs
    wait_for((run.folder / "started").exists)
    yield run, pid
    (run.folder / "go").touch()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_of_two_sweeps_one_runs_a_run_and_a_signal_reaches_it(begun, write, call):
    run, pid = begun
    idle = call(sweep.main, str(write(ONE)))
    assert idle.status == 0 and idle.err.splitlines()[-1] == "1 with another process"
    assert (run.folder / "started").read_text() == "x"
    assert call(sweep.main, f"{write(ONE)} --list").out == "   1  method=mdlm  to come, running\n"
    os.kill(pid, signal.SIGUSR1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    assert call(sweep.main, f"{write(ONE)} --list").out == "   1  method=mdlm  to come\n"


def test_a_killed_sweep_leaves_its_run_locked_until_that_ends(begun):
    run, pid = begun
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert sweep.is_running(run)
    (run.folder / "go").touch()
    wait_for(lambda: not sweep.is_running(run))
    assert sweep.state_of(run).is_done


def test_a_task_waits_for_the_process_that_has_its_run(begun, write, call):
    run, _ = begun
    threading.Timer(0.3, (run.folder / "go").touch).start()
    outcome = call(sweep.main, f"{write(ONE)} --task 1")
    assert outcome.status == 0 and outcome.err.splitlines()[-1] == "1 done"
    assert (run.folder / "started").read_text() == "x"
