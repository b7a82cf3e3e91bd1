"""Two jobs at one folder: one works, the other is refused or waits, and the dead keep nobody out."""

import errno
import fcntl
import threading
import time
from pathlib import Path

import pytest

from diffusion.training.checkpoint import checkpoints, fault
from scripts.job.locks import TRAINING, locked, training_in
from tests.scripts.conftest import SMALL_RECIPE, TRUNK
from train_text_diffusion import main


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_lock_is_there_only_while_it_is_held_and_keeps_others_out(tmp_path, capsys):
    path = tmp_path / "new" / ".lock"
    with locked(path) as own:
        assert own is not None and path.exists()
        with locked(path) as other:
            assert other is None
        assert path.exists()
    assert not path.exists() and capsys.readouterr().err == ""


def test_who_waits_says_so_once_and_then_has_a_lock_of_its_own(tmp_path, capsys):
    path, order = tmp_path / ".lock", []

    def second():
        with locked(path, "waiting for it") as lock:
            order.append(("second", lock is not None, path.exists()))

    with locked(path):
        waiting = threading.Thread(target=second)
        waiting.start()
        said = ""
        while "waiting" not in said:
            said += capsys.readouterr().err
            time.sleep(0.01)
        order.append("first")
    waiting.join(60)
    assert order == ["first", ("second", True, True)] and said == "waiting for it\n" and not path.exists()


def test_without_locks_nobody_is_kept_from_anything(tmp_path, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path / ".lock") as one, locked(tmp_path / ".lock") as other:
        assert one is not None and other is not None


def test_an_error_of_the_disk_tells_what_is_left(tmp_path):
    with pytest.raises(OSError, match="No space left"), training_in(tmp_path / "run"):
        raise OSError(errno.ENOSPC, "No space left on device")  # before there is anything
    assert not (tmp_path / "run" / TRAINING).exists()


@pytest.mark.parametrize("mode", ["new", "resumed"])
def test_of_two_trainings_of_one_run_at_once_the_second_is_refused(
    warm, call, complaint, data_dir, small_run, tmp_path, mode
):
    """Reading is not; and when the first is killed, its lock is no hindrance."""
    run_dir = tmp_path / "run"
    line = f"--method mdlm --data_dir {data_dir} --save_dir {tmp_path} {SMALL_RECIPE} {TRUNK}"
    begin = f"{line} --output_dir {run_dir} --num_train_steps 5000 --save_and_sample_every 5000"
    go_on = f"--resume_training --resume_dir {run_dir}"
    first = warm.start(begin, tmp_path / "log.txt")
    try:
        until((run_dir / "args.json").exists)
        second = complaint(main, begin if mode == "new" else go_on)
        known = f"{run_dir}: holds a run already" if mode == "new" else f"{run_dir}: another process is training in it"
        assert known in second
        read = call(main, f"--gen_data --resume_dir {run_dir} --num_samples 1")
        assert read.status == 0, read.err
    finally:
        first.kill()
        assert first.wait() == -9
    assert (run_dir / TRAINING).exists()
    assert call(main, f"{go_on} --num_train_steps 1").status == 0
    assert not (run_dir / TRAINING).exists()


def test_of_two_new_runs_that_start_together_in_one_folder_one_is_whole(warm, data_dir, tmp_path):
    line = f"--data_dir {data_dir} --save_dir {tmp_path} --output_dir {tmp_path}/run {SMALL_RECIPE} {TRUNK}"
    logs = [tmp_path / name for name in ("one.txt", "other.txt")]
    children = [warm.start(line, log) for log in logs]
    ends = [child.wait() for child in children]
    assert sorted(ends) == [0, 2]
    refusal = logs[ends.index(2)].read_text().splitlines()[-1]
    assert refusal.startswith(f"error: {tmp_path}/run: ") and "Traceback" not in logs[ends.index(2)].read_text()
    assert [fault(path) for path in checkpoints(tmp_path / "run")] == [None] * 3
    assert (tmp_path / "run" / "evaluation" / "step_00000004" / "scores.json").is_file()
    assert not [path for path in Path(tmp_path).rglob(".*")]
