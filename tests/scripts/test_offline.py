"""The life of an experiment on a cluster, command by command as docs/cluster.md has it, and a little more.

Models and data are fetched (here from loopback). The rest is done by processes that are refused every connection and
every look-up of a name, and none is tried; neither their working folder nor their Hugging Face cache holds anything but
what was fetched, and a small sweep in place of the page's.
"""

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from latent_models.corpora import DataOptions, load_corpus
from scripts import cache_models, prepare_datasets
from scripts.sampling.samples_file import read_texts

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").partition("\n## ")[0]
COMMANDS = re.findall(r"(?m)^    (\S.*)", PAGE)
OFFICIAL_DATA = "https://raw.githubusercontent.com/tuetschek/e2e-dataset/master"
MODELS = {"facebook/bart-base": "bart-demo", "openai-community/gpt2-large": "gpt2-demo"}  # hub name -> what it serves
SENTENCE_MODEL = "sentence-transformers/all-mpnet-base-v2"
SWEEP = """
output_dir = "saved_models/annealing"
[options]
dataset_name = "e2e"
tx_dim = 64
tx_depth = 1
timesteps = 20
sampling_timesteps = 3
num_train_steps = 2
train_batch_size = 16
save_and_sample_every = 2
log_every = 1
num_samples = 16
[grid]
T_schedule = ["linear"]
[eval_test]
num_samples = 16
"""
RUN = "saved_models/annealing/T_schedule=linear"
MORE = [
    f"python -m scripts.sample --resume_dir {RUN} --num_samples 16 --strategy nucleus --output_file samples.jsonl",
    "python -m scripts.evaluate_samples --samples samples.jsonl --dataset_name e2e --output_dir scores "
    "--mauve_model all-mpnet-base-v2",
]
RUN_JOBS = """
import runpy, sys
for name, *argv in [job.removeprefix("python -m ").split() for job in sys.argv[1:]]:
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
def sentence_model(tmp_path) -> Path:
    """A random sentence encoder of one layer, as its library saves them."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    with torch.random.fork_rng():
        sizes = {"vocab_size": 1024, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        BertModel(BertConfig(**sizes, intermediate_size=16)).save_pretrained(tmp_path / "bert")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "pre_trained_models" / "gpt2-demo")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "bert")
    layers = [modules.Transformer(str(tmp_path / "bert")), modules.Pooling(16)]
    SentenceTransformer(modules=layers, device="cpu").save(str(tmp_path / "sentence"))
    return tmp_path / "sentence"


@pytest.fixture
def official(hub, sentence_model):
    """The hub with the models that a run needs, and the server of the E2E files, in one."""
    folders = {name: ROOT / "pre_trained_models" / folder for name, folder in MODELS.items()}
    for name, folder in (folders | {SENTENCE_MODEL: sentence_model}).items():
        files = (path for path in folder.rglob("*") if path.is_file())
        hub.repositories[name] = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    corpus = load_corpus(DataOptions("demo"))
    for file, split, count in zip(
        prepare_datasets.OFFICIAL_NAMES["e2e"], (corpus.train, corpus.valid, corpus.test), (60, 20, 20), strict=True
    ):
        hub.files[f"/{file}"] = e2e_table(split.sources[:count], split.texts[:count])
    return hub


def test_the_page_of_the_workflow(official, call, offline, tmp_path, monkeypatch):
    fetching, rest = COMMANDS[:2], COMMANDS[2:]
    monkeypatch.chdir(tmp_path)
    for command, module in zip(fetching, (cache_models, prepare_datasets), strict=True):
        name, _, flags = command.removeprefix("python -m ").partition(" ")
        assert name == module.__name__
        outcome = call(module.main, flags.replace(OFFICIAL_DATA, official.url))
        assert outcome.status == 0, outcome.err
    official.close()

    (submit,) = (command for command in rest if command.startswith("sbatch "))  # for which see test_slurm.py
    file = shlex.split(submit)[-1]
    assert {part for command in rest for part in command.split() if part.endswith(".toml")} == {file}
    monkeypatch.chdir("/")
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(SWEEP)
    jobs = [f"python -m scripts.sweep {file}" if command == submit else command for command in rest]
    done, attempts = offline(RUN_JOBS, *jobs, *MORE)
    assert done.returncode == 0, done.stderr
    assert attempts == []

    asked = json.loads((tmp_path / RUN / "args.json").read_text())
    assert asked["enc_dec_model"] == "facebook/bart-base"
    page = (tmp_path / "saved_models" / "annealing" / "report.html").read_text()
    assert "T_schedule=linear" in page and "human text" in page
    assert len(read_texts(tmp_path / "samples.jsonl")) == 16
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["samples.jsonl"]["perplexity"] > 0 and scores["human"]["mauve"] > 0
