"""The life of an experiment on a cluster: models and data are fetched (here from loopback), the rest is done offline.

The rest is done by a process of its own that is refused every connection and every look-up of a name, and none is
tried; neither its working folder nor its Hugging Face cache holds anything but what was fetched.
"""

import csv
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from latent_models.corpora import DataOptions, load_corpus
from scripts import cache_models, prepare_datasets
from scripts.samples_file import read_texts

ROOT = Path(__file__).parents[2]
MODELS = {"facebook/bart-base": "bart-demo", "openai-community/gpt2-large": "gpt2-demo"}  # hub name -> what it serves
JOBS = [
    "train_text_diffusion --dataset_name e2e --output_dir run --tx_dim 64 --tx_depth 1 --timesteps 20 "
    "--sampling_timesteps 3 --num_train_steps 2 --train_batch_size 16 --save_and_sample_every 2 --log_every 1 "
    "--num_samples 16",
    "scripts.sample --resume_dir run --num_samples 16 --strategy nucleus --output_file samples.jsonl",
    "scripts.evaluate_samples --samples samples.jsonl --dataset_name e2e --output_dir scores",
]
if importlib.util.find_spec("scripts.report"):
    JOBS.append("scripts.report run")
RUN_JOBS = """
import runpy, sys
for name, *argv in [job.split() for job in sys.argv[1:]]:
    sys.argv = [name, *argv]
    runpy.run_module(name, run_name="__main__", alter_sys=True)
"""
ATTEMPTS = """
import socket, subprocess, sys, urllib.request
def attempt(call, *args):
    try:
        call(*args)
    except OSError as error:
        print(error)
attempt(socket.create_connection, ("192.0.2.1", 80), 1)
attempt(socket.socket().connect_ex, ("192.0.2.2", 80))
attempt(socket.socket(type=socket.SOCK_DGRAM).sendto, b"", ("192.0.2.3", 80))
attempt(socket.gethostbyname, "four.invalid")
attempt(urllib.request.urlopen, "http://five.invalid/")
attempt(socket.create_connection, ("127.0.0.1", 1))
subprocess.run([sys.executable, "-c", "import socket; socket.gethostbyname('six.invalid')"], stderr=subprocess.PIPE)
"""


@pytest.fixture
def offline(tmp_path):
    """offline(code, arguments) runs Python in `tmp_path` without network -> what it did, and what it asked for."""

    def run(code: str, *arguments: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        attempts = tmp_path / "attempts"
        environment = {name: value for name, value in os.environ.items() if not name.endswith("OFFLINE")}
        environment |= {
            "PYTHONPATH": f"{Path(__file__).parent / 'no_network'}:{ROOT}", "NETWORK_ATTEMPTS": str(attempts),
            "HF_HOME": str(tmp_path / "home"),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return done, attempts.read_text().splitlines() if attempts.exists() else []

    return run


def test_the_guard_sees_and_refuses_every_attempt(offline):
    done, attempts = offline(ATTEMPTS)
    assert done.returncode == 0, done.stderr
    hosts = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "four.invalid", "five.invalid", "six.invalid"]
    assert [line.split()[1] for line in attempts] == hosts
    assert done.stdout.count("no network in this test") == 5
    assert "Connection refused" in done.stdout  # loopback is open


def e2e_table(sources: list[str], texts: list[str]) -> bytes:
    """An E2E file in the official format."""
    file = io.StringIO()
    pairs = [[pair.partition(" : ") for pair in source.split(" | ")] for source in sources]
    meanings = [", ".join(f"{name}[{value}]" for name, _, value in each) for each in pairs]
    csv.writer(file).writerows([["mr", "ref"], *zip(meanings, texts, strict=True)])
    return file.getvalue().encode()


@pytest.fixture
def fetched(call, hub, tmp_path):
    """`tmp_path` with models and data as the two commands fetch them; the server is gone then."""
    for name, folder in MODELS.items():
        files = (ROOT / "pre_trained_models" / folder).iterdir()
        hub.repositories[name] = {path.name: path.read_bytes() for path in files}
    corpus = load_corpus(DataOptions("demo"))
    for file, split, count in zip(
        prepare_datasets.OFFICIAL_NAMES["e2e"], (corpus.train, corpus.valid, corpus.test), (60, 20, 20), strict=True
    ):
        hub.files[f"/{file}"] = e2e_table(split.sources[:count], split.texts[:count])
    models, data = tmp_path / "pre_trained_models", tmp_path / "datasets"
    for main, line in (
        (cache_models.main, f"facebook/bart-base gpt2-large --output_dir {models}"),
        (prepare_datasets.main, f"e2e --from {hub.url} --output_dir {data}"),
    ):
        outcome = call(main, line)
        assert outcome.status == 0, outcome.err
    hub.close()


def test_after_fetching_nothing_is_asked_of_the_network(fetched, offline, tmp_path):
    """Train, sample, score, report, with the models that the options name where no others are named."""
    done, attempts = offline(RUN_JOBS, *JOBS)
    assert done.returncode == 0, done.stderr
    assert attempts == []
    assert len(read_texts(tmp_path / "samples.jsonl")) == 16
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["samples.jsonl"]["perplexity"] > 0 and scores["human"]["mauve"] > 0
    assert json.loads((tmp_path / "run" / "args.json").read_text())["enc_dec_model"] == "facebook/bart-base"
