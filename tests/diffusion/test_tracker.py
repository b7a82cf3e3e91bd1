"""Trackers: metrics.jsonl survives resuming and crashes; W&B writes its files without a network."""

import importlib
import importlib.util
import json
import resource
import socket
import sys

import pytest

from diffusion.process import DiffusionError
from diffusion.training.tracker import JsonlTracker, Trackers, WandbTracker, has_scores


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path, *steps: int) -> None:
    tracker = JsonlTracker(path)
    for step in steps:
        tracker.log(step, {"loss": step / 10})
    tracker.close()


def test_a_row_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log(50, {"loss": 0.25, "T": 200})
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 50, "loss": 0.25, "T": 200}]
    tracker.log_texts(50, "beam", ["a text"])
    tracker.close()
    assert len(rows(tmp_path / "metrics.jsonl")) == 1


def test_rows_are_valid_json_even_where_a_number_is_not_finite(tmp_path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    tracker.log(1, {"loss": float("nan"), "grad_norm": float("inf"), "mauve": None})
    tracker.close()

    def refuse(constant):
        raise AssertionError(constant)

    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "loss": None, "grad_norm": None, "mauve": None}


def test_resuming_takes_back_the_rows_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 50, 100, 100, 150, 200)  # a row of training and one of evaluation at 100
    tracker = JsonlTracker(path, last_step=100)
    tracker.log(150, {"loss": 9.0})
    tracker.close()
    assert [row["step"] for row in rows(path)] == [50, 100, 100, 150]
    assert rows(path)[-1]["loss"] == 9.0
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("torn", ['{"step": 150, "lo', "\0\0\0\0", "{"])
def test_a_line_torn_by_a_crash_is_dropped_when_the_run_goes_on(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write(path, 50, 100)
    with path.open("a") as file:
        file.write(torn)
    tracker = JsonlTracker(path, last_step=1000)
    tracker.log(150, {"loss": 1.0})
    tracker.close()
    assert [row["step"] for row in rows(path)] == [50, 100, 150]


@pytest.mark.parametrize("after", ["", '{"step": 100, "beam/mau', "\0\0\0\n", "[1]\n"])
def test_an_evaluation_is_done_when_its_row_is_there(tmp_path, after):
    path = tmp_path / "metrics.jsonl"
    assert not has_scores(path, 50)
    tracker = JsonlTracker(path)
    tracker.log(50, {"loss": 0.5})
    assert not has_scores(path, 50)
    tracker.log(50, {"beam/mauve": 0.5})
    tracker.log(100, {"loss": 0.5})
    tracker.close()
    with path.open("a") as file:
        file.write(after)
    assert has_scores(path, 50) and not has_scores(path, 100)


def test_a_row_that_the_disk_does_not_take_leaves_the_file_as_it_was_and_names_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log(50, {"loss": 0.5})
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OSError) as refusal:
            tracker.log(100, {"loss": 0.25})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert refusal.value.filename == str(path)
    tracker.log(100, {"loss": 0.125})
    tracker.close()
    assert rows(path) == [{"step": 50, "loss": 0.5}, {"step": 100, "loss": 0.125}]


def test_several_trackers_get_everything():
    class Recorder:
        def __init__(self):
            self.calls = []

        def log(self, step, scalars):
            self.calls.append((step, scalars))

        def log_texts(self, step, name, texts):
            self.calls.append((step, name, texts))

        def close(self):
            self.calls.append("closed")

    recorders = Recorder(), Recorder()
    trackers = Trackers(*recorders)
    trackers.log(1, {"loss": 2.0})
    trackers.log_texts(1, "beam", ["a"])
    trackers.close()
    for recorder in recorders:
        assert recorder.calls == [(1, {"loss": 2.0}), (1, "beam", ["a"]), "closed"]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_writes_under_the_run_folder_with_the_network_refused(tmp_path, monkeypatch):
    connect, resolve = socket.socket.connect, socket.getaddrinfo
    local = ("127.0.0.1", "::1", "localhost")
    refused = []

    def only_local(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in local:
            refused.append(address)
            raise OSError("no network")
        return connect(self, address)

    def resolve_local(host, *args, **kwargs):
        if host not in local:
            refused.append(host)
            raise OSError("no network")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", only_local)
    monkeypatch.setattr(socket, "getaddrinfo", resolve_local)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    monkeypatch.setenv("WANDB_MODE", "online")  # the tracker is offline whatever the shell says
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    tracker = WandbTracker("a name", run_dir, {"tx_dim": 64})
    tracker.log(1, {"loss": 0.5, "mauve": None})
    tracker.log(1, {"beam/mauve": 0.25})
    tracker.log_texts(1, "beam", ["a text", "another"])
    tracker.close()
    importlib.import_module("wandb").teardown()  # waits for the process that writes the files
    (offline,) = (run_dir / "wandb").glob("offline-run-*")
    (record,) = offline.glob("run-*.wandb")
    content = record.read_bytes()
    assert all(word in content for word in (b"a name", b"tx_dim", b"loss", b"beam/mauve"))
    assert refused == []


def test_wandb_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it now fails
    with pytest.raises(DiffusionError, match="--wandb_name.*pip install wandb") as refusal:
        WandbTracker("a name", tmp_path, {})
    assert "\n" not in str(refusal.value)
