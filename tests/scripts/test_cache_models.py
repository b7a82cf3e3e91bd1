"""Caching models from a hub on loopback, by the real client: what lands where, what breaks off and goes on."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load, load_file

from diffusion.training.files import sha256
from latent_models.codec import find_model
from latent_models.seq2seq_codec import Seq2SeqCodec
from scripts.cache_models import DEFAULTS, main
from tests.scripts.hostile import Hostile
from tests.scripts.hub import revision_of

ROOT = Path(__file__).parents[2]
CODEC = ROOT / "pre_trained_models" / "bart-demo"
NAME = "some/model"
WEIGHTS = "model.safetensors"
SAFE = {
    "config.json": b'{"model_type": "bart"}',
    "vocab.txt": b"one\ntwo\n",
    "empty.txt": b"",
    "1_Pooling/config.json": b"{}",
    WEIGHTS: bytes(range(256)) * 40,
}
UNWANTED = {"README.md": b"# A card", "model.py": b"import os", "pytorch_model.bin": b"pickle", "onnx/a.json": b"{}"}


@pytest.fixture
def models(hub, tmp_path) -> Path:
    """The folder that models are cached in; the hub has `some/model`."""
    hub.repositories[NAME] = SAFE | UNWANTED
    return tmp_path / "models"


@pytest.fixture
def cached(call, models):
    """cached("names and flags") caches models and gives what the command printed."""

    def done(line: str = NAME) -> str:
        outcome = call(main, f"{line} --output_dir {models}")
        assert outcome.status == 0, outcome.err
        return outcome.out

    return done


@pytest.fixture
def refused(complaint, models):
    """refused("names and flags") is the one line in which the command complained."""
    return lambda line=NAME: complaint(main, f"{line} --output_dir {models}")


@pytest.fixture
def checked(call, models):
    """checked("names") is what --check made of the cached models."""
    return lambda names="": call(main, f"--check {names} --output_dir {models}")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# What lands where


def test_a_model_is_all_that_a_run_needs_and_nothing_more(cached, models):
    assert "some/model: fetched, revision" in cached()
    found = contents(models)
    record = json.loads(found.pop(f"{NAME}/cached.json"))
    assert found == {f"{NAME}/{path}": content for path, content in SAFE.items()}
    assert (record["repository"], record["revision"]) == (NAME, revision_of(SAFE | UNWANTED))
    assert record["files"] == {
        path: {"bytes": len(content), "sha256": sha256(models / NAME / path)} for path, content in SAFE.items()
    }


def test_a_second_call_asks_nothing(cached, hub):
    cached()
    hub.asked.clear()
    assert "is there, revision" in cached()
    assert hub.asked == []


def test_the_defaults_are_found_by_the_names_of_the_options(cached, hub, models, monkeypatch):
    for name in ("facebook/bart-base", "openai-community/gpt2-large", "sentence-transformers/all-mpnet-base-v2"):
        hub.repositories[name] = SAFE
    cached("")
    monkeypatch.chdir(models.parent)
    models.rename("pre_trained_models")
    for name in (*DEFAULTS, "openai-community/gpt2-large", "sentence-transformers/all-mpnet-base-v2"):
        assert (find_model(name) / WEIGHTS).is_file()


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("mdlm-owt", "kuleshov-group/mdlm-owt"),
        ("sedd-medium", "louaaron/sedd-medium"),
        ("gidd-small-p_unif-0.1", "dvruette/gidd-small-p_unif-0.1"),
    ],
)
def test_published_diffusion_models_have_short_names_and_come_without_their_code(
    cached, hub, models, name, repository
):
    code = {"modeling.py": b"raise SystemExit", "configuration.py": b"raise SystemExit"}
    hub.repositories[repository] = {"config.json": SAFE["config.json"], WEIGHTS: SAFE[WEIGHTS]} | code
    cached(repository)
    assert {path.name for path in (models / name).iterdir()} == {"config.json", WEIGHTS, "cached.json"}
    hub.asked.clear()
    assert "is there" in cached(name) and hub.asked == []


def test_a_renamed_model_is_followed(cached, hub, models):
    hub.renamed["distilgpt2"] = NAME
    assert f"of {NAME}" in cached("distilgpt2")
    assert (models / "distilgpt2" / WEIGHTS).is_file()


# Breaking off and going on

HALF = len(SAFE[WEIGHTS]) // 2


def test_what_is_cut_off_goes_on_by_itself(cached, hub, models):
    hub.faults = {WEIGHTS: ["truncate"], "vocab.txt": ["truncate"]}
    cached()
    assert contents(models / NAME)[WEIGHTS] == SAFE[WEIGHTS]
    assert hub.starts(WEIGHTS) == [0, HALF // 1000 * 1000]  # whole pieces of what came
    assert hub.starts("vocab.txt") == [0, 0]  # no whole piece


@pytest.mark.parametrize(
    ("fault", "wanted", "ranges"),
    [
        ("truncate", f"some/model/{WEIGHTS}: broke off (peer closed connection", True),
        ("truncate", f"some/model/{WEIGHTS}: broke off (peer closed connection", False),
        ("stall", f"some/model/{WEIGHTS}: the connection stalls", True),
    ],
)
def test_what_breaks_off_for_good_is_told_and_the_next_call_goes_on(
    refused, cached, checked, hub, models, monkeypatch, fault, wanted, ranges
):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.faults = {WEIGHTS: [fault] * 6}
    assert wanted in refused()
    assert not (models / NAME).exists()
    assert "some/model: was not fetched to the end" in checked().err
    hub.asked.clear()
    hub.faults = {} if ranges else {WEIGHTS: ["no_range"]}
    cached()
    assert contents(models / NAME)[WEIGHTS] == SAFE[WEIGHTS]
    assert hub.starts(WEIGHTS) == [HALF // 1000 * 1000]
    assert hub.starts("vocab.txt") == []  # which was there
    assert [path.name for path in models.iterdir()] == ["some"]


def test_a_killed_call_goes_on(cached, hub, models):
    hub.repositories[NAME] = SAFE | {WEIGHTS: bytes(25 * 2**20)}  # the client writes 10 MB at a time
    hub.faults = {WEIGHTS: ["stall"]}
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(models.parent / "home")}
    command = [sys.executable, "-m", "scripts.cache_models", NAME, "--output_dir", str(models)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size for path in models.glob(f".unfinished/*/.{WEIGHTS}.*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (part,) = models.glob(f".unfinished/*/.{WEIGHTS}.*")
    kept = part.stat().st_size
    assert kept and not (models / NAME).exists()
    cached()
    assert hub.starts(WEIGHTS) == [0, kept]
    assert (models / NAME / WEIGHTS).read_bytes() == bytes(25 * 2**20)


def test_of_two_calls_at_once_one_fetches_and_the_other_waits(cached, hub, models):
    hub.repositories[NAME] = SAFE | {WEIGHTS: bytes(25 * 2**20)}
    hub.faults = {WEIGHTS: ["stall"]}  # once, long enough for the second
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DOWNLOAD_TIMEOUT": "3"}
    command = [sys.executable, "-m", "scripts.cache_models", NAME, "--output_dir", str(models)]
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("another process is fetching into" in each for each in said) <= 1  # 0 where one began very late
    assert [path for path, _ in hub.asked if path.endswith("vocab.txt")] and len(hub.starts("vocab.txt")) == 1
    assert (models / NAME / WEIGHTS).read_bytes() == bytes(25 * 2**20)
    assert [path.name for path in models.iterdir()] == ["some"]


def test_an_interrupted_file_of_another_revision_is_not_gone_on_with(refused, cached, hub, models):
    hub.faults = {WEIGHTS: ["truncate"] * 6}
    refused()
    hub.repositories[NAME] = SAFE | {WEIGHTS: SAFE[WEIGHTS][::-1]}
    hub.asked.clear()
    cached()
    assert hub.starts(WEIGHTS) == [0]
    assert contents(models / NAME)[WEIGHTS] == SAFE[WEIGHTS][::-1]
    assert contents(models / NAME).keys() == {*SAFE, "cached.json"}


# What is refused


@pytest.mark.parametrize(
    ("faults", "wanted"),
    [
        ({NAME: [401]}, "some/model: HTTP 401, no permission; check HF_TOKEN"),
        ({NAME: [403]}, "some/model: HTTP 403, no permission"),
        ({NAME: [404]}, "some/model: HTTP 404, not there or private"),
        ({NAME: [503]}, "some/model: HTTP 503"),
        ({WEIGHTS: [404]}, f"some/model/{WEIGHTS}: HTTP 404, not there"),
        ({WEIGHTS: [403]}, f"some/model/{WEIGHTS}: HTTP 403, no permission"),
        ({WEIGHTS: ["corrupt"]}, f"some/model/{WEIGHTS}: what came is not what the hub announced (checksum)"),
        ({"vocab.txt": ["corrupt"]}, "some/model/vocab.txt: what came is not what the hub announced (checksum)"),
    ],
)
def test_what_cannot_be_fetched_is_told_in_one_line_and_leaves_no_model(refused, cached, hub, models, faults, wanted):
    hub.faults = faults
    assert wanted in refused()
    assert not (models / NAME).exists()
    cached()
    assert contents(models / NAME)[WEIGHTS] == SAFE[WEIGHTS]


def test_a_model_that_is_not_there(refused):
    assert "no/such: HTTP 401, not there or private" in refused("no/such")


@pytest.mark.parametrize("name", ["a/b/c", "../up", "/etc", "some model", "some--model"])
def test_a_name_that_is_none(refused, models, hub, name):
    assert f"{name!r} is no model name" in refused(f"'{name}'")
    assert hub.asked == [] and not models.exists()


def test_a_hub_that_is_not_reached(refused, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert "some/model: broke off ([Errno 111] Connection refused); check the connection" in refused()


def test_a_page_that_is_no_hub(refused, hub):
    hub.info = lambda name: "Please log in"
    assert "answers unlike a model hub" in refused()


def test_a_repository_whose_files_would_lie_elsewhere(refused, hub, models):
    hub.repositories[NAME] = SAFE | {"../elsewhere.json": b"{}"}
    assert "'../elsewhere.json', which would lie outside of its folder" in refused()
    assert not models.exists()


def test_offline_mode(refused, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE=1 is set" in refused()


def test_a_full_disk_is_told_before_anything_is_fetched(refused, hub, monkeypatch):
    usage = type("Usage", (), {"free": 5})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert "0 MB are free" in refused()
    assert len(hub.asked) == 1


def test_a_model_that_this_command_did_not_fetch_is_left_alone(refused, hub, models):
    (models / NAME).mkdir(parents=True)
    (models / NAME / "config.json").write_text("mine")
    assert "is there, but not by this command" in refused()
    assert (models / NAME / "config.json").read_text() == "mine"


def test_a_wrong_flag(refused):
    assert "unrecognized arguments: --chek" in refused("--chek")


# Damage


def test_sound_models_are_found_sound_offline(cached, checked, hub):
    cached()
    hub.asked.clear()
    outcome = checked()
    assert outcome.status == 0
    assert "some/model: whole, revision" in outcome.err
    assert checked(NAME).status == 0
    assert hub.asked == []


def test_every_damaged_file_has_its_line_and_is_fetched_anew(cached, checked, hub, models):
    cached()
    place = models / NAME
    (place / WEIGHTS).write_bytes(SAFE[WEIGHTS][:-1])
    (place / "vocab.txt").write_bytes(SAFE["vocab.txt"].upper())
    (place / "config.json").unlink()
    outcome = checked()
    assert outcome.status == 2
    *lines, last = outcome.err.splitlines()
    assert sorted(lines) == sorted(
        [
            f"{place}/config.json: missing",
            f"{place}/{WEIGHTS}: has 10,239 bytes; expected 10,240",
            f"{place}/vocab.txt: SHA-256 is not {hashlib.sha256(SAFE['vocab.txt']).hexdigest()}",
        ]
    )
    assert last.startswith("error: 3 found wrong; python -m scripts.cache_models some/model fetches it anew")
    hub.asked.clear()
    cached()
    assert contents(place).items() >= SAFE.items()
    assert hub.starts("1_Pooling/config.json") == [] and hub.starts(WEIGHTS) == [0]  # what was sound stays
    assert checked().status == 0


def test_a_damaged_model_stays_at_its_revision(cached, hub, models, refused):
    cached()
    (models / NAME / "vocab.txt").unlink()
    hub.repositories[NAME] = SAFE | {WEIGHTS: b"newer"}
    assert "some/model: HTTP 404" in refused()  # this hub forgets old revisions
    assert contents(models / NAME)[WEIGHTS] == SAFE[WEIGHTS]


@pytest.mark.parametrize("names", ["", "no/such"])
def test_checking_what_was_never_fetched(checked, names):
    assert checked(names).status == 2


@pytest.mark.parametrize("record", ["", "[]", '{"files": {"config.json": 3}}', '{"files": {}}'])
def test_a_damaged_record(cached, refused, models, record):
    cached()
    (models / NAME / "cached.json").write_text(record)
    assert "expected a record of files" in refused()


# Pickled weights


@pytest.fixture
def pickled(hub) -> Callable[[object], None]:
    """pickled(state) makes of `some/model` the demo's codec with nothing but this pickle as weights."""

    def publish(state: object) -> None:
        file = io.BytesIO()
        torch.save(state, file)
        names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
        files = {name: (CODEC / name).read_bytes() for name in names}
        hub.repositories[NAME] = files | {"pytorch_model.bin": file.getvalue()}

    return publish


def test_pickled_weights_are_refused(refused, pickled, hub, models):
    pickled({"weight": torch.ones(3)})
    message = refused()
    assert "has pickled weights only (pytorch_model.bin), which may run code" in message
    assert "--convert_pickled" in message
    assert len(hub.asked) == 1 and not models.exists()


def test_pickled_weights_are_converted_on_request(cached, checked, pickled, models):
    state = load_file(CODEC / WEIGHTS)
    tied = {f"model.{part}.embed_tokens.weight": state["model.shared.weight"] for part in ("encoder", "decoder")}
    pickled(state | tied)
    cached(f"{NAME} --convert_pickled")
    found = contents(models / NAME)
    assert not any(path.endswith(".bin") for path in found)
    assert all(torch.equal(tensor, (state | tied)[name]) for name, tensor in load(found[WEIGHTS]).items())
    record = json.loads(found["cached.json"])
    assert record["converted_from"].keys() == {"pytorch_model.bin"} and WEIGHTS in record["files"]
    assert checked().status == 0
    texts = ["The Eagle is a pub.", "It is near the river."]
    ours, theirs = (Seq2SeqCodec.load(folder, max_length=24).encode(texts) for folder in (models / NAME, CODEC))
    assert torch.equal(ours.x0, theirs.x0)


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ({"epoch": 3, "state_dict": {"weight": torch.ones(3)}}, "expected a state dict"),
        ([torch.ones(3)], "expected a state dict"),
    ],
)
def test_a_pickle_of_something_else_is_refused(refused, pickled, models, state, wanted):
    pickled(state)
    assert wanted in refused(f"{NAME} --convert_pickled")
    assert not (models / NAME).exists()


def test_a_pickle_that_would_run_code_runs_none(refused, pickled, models, tmp_path):
    pickled({"weight": torch.ones(3), "more": Hostile(tmp_path / "ran")})
    assert "pytorch_model.bin: refused, not bare tensors" in refused(f"{NAME} --convert_pickled")
    assert not (tmp_path / "ran").exists() and not (models / NAME).exists()
    assert list(models.rglob("*.bin")) == []


def test_a_repository_without_weights(refused, hub):
    hub.repositories[NAME] = {"config.json": b"{}"}
    assert "has no weights" in refused(f"{NAME} --convert_pickled")
