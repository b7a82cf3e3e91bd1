"""What a stranger's file might do and cannot: run code, reach out of its folder, steer the terminal, learn a secret."""

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train_text_diffusion
from latent_models.latent_cache import cache_folder, encoded
from latent_models.seq2seq_codec import Seq2SeqCodec
from latent_models.token_codec import TokenCodec
from offline_metrics.language_model import LanguageModel, load_feature_model
from offline_metrics.result_store import ResultStore
from scripts import prepare_datasets, sample
from scripts.composition.bert import load_bert
from scripts.composition.options import read_args
from scripts.evaluation.run_folder import scores
from scripts.fetching.checksums import read_record
from scripts.fetching.download import without_secrets
from scripts.job.console import note, shown
from scripts.job.errors import USER_ERRORS, UsageError
from scripts.sweep.file import read_sweep
from tests.scripts.hostile import Hostile, copied

MODELS, RUN = Path("pre_trained_models"), Path("pre_trained_models/diffusion-demo")
TEXTS = ["The Mill is a pub.", "A second text."]
STATE = "checkpoints/step_00003000"


@pytest.fixture
def marker(tmp_path) -> Path:
    """What comes to be there when a stranger's code has run."""
    return tmp_path / "ran"


@pytest.fixture
def model(request, tmp_path, bert_dir, sentence_folder) -> Callable[[str], tuple[Path, Callable[[], object]]]:
    """model(kind) is a copy of a model folder, and a call that loads it as runs do."""

    def make(kind: str) -> tuple[Path, Callable[[], object]]:
        known = {
            "encoder-decoder": (MODELS / "bart-demo", Seq2SeqCodec.load),
            "tokenizer": (MODELS / "bart-demo", TokenCodec.load),
            "scorer": (MODELS / "gpt2-demo", LanguageModel),
            "features": (MODELS / "gpt2-demo", load_feature_model),
            "sentence model": (sentence_folder, load_feature_model),
            "BERT": (bert_dir, lambda folder: load_bert(folder, codec, SimpleNamespace(timesteps=8), "none")),
        }
        codec = TokenCodec.load(bert_dir, 24)
        source, load = known[kind]
        folder = copied(source, tmp_path)
        return folder, lambda: load(folder)

    return make


WITH_WEIGHTS = ["encoder-decoder", "scorer", "features", "sentence model", "BERT"]
kinds = pytest.mark.parametrize("kind", [*WITH_WEIGHTS, "tokenizer"])


def refused(load: Callable[[], object], place: Path) -> str:
    """The one line in which a user is told that this is not to be had."""
    with pytest.raises(USER_ERRORS) as caught:
        load()
    message = str(caught.value)
    assert str(place) in message and len(message.splitlines()) == 1
    return message


# Pickles


@pytest.mark.parametrize("kind", WITH_WEIGHTS)
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_model_of_nothing_but_pickles_is_refused(model, marker, kind, how):
    folder, load = model(kind)
    content = {"weight": torch.ones(2), "more": Hostile(marker)}
    for weights in sorted(folder.rglob("*.safetensors")):
        weights.unlink()
        path = weights.with_name("pytorch_model.bin")
        torch.save(content, path) if how == "torch" else path.write_bytes(pickle.dumps(content))
    refused(load, folder)
    assert not marker.exists()


@kinds
def test_pickles_beside_a_model_are_left_alone(model, marker, kind):
    folder, load = model(kind)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.pkl",
                 "adapter_model.bin", "tokenizer.pkl", "vocab.pkl"):  # fmt: skip
        for place in {folder, *(path.parent for path in folder.rglob("config.json"))}:
            torch.save(Hostile(marker), place / name)
    load()
    assert not marker.exists()


@kinds
def test_weights_that_are_a_pickle_by_another_name_are_refused(model, marker, kind):
    folder, load = model(kind)
    for path in [*folder.rglob("*.safetensors"), folder / "tokenizer.json"]:
        torch.save(Hostile(marker), path)
    refused(load, folder)
    assert not marker.exists()


@pytest.mark.parametrize("file", [f"{STATE}/ema.safetensors", f"{STATE}/state.json", "latent_statistics.safetensors"])
def test_a_run_with_a_pickle_in_it_is_refused(complaint, marker, tmp_path, file):
    run_dir = copied(RUN, tmp_path)
    torch.save(Hostile(marker), run_dir / file)
    torch.save(Hostile(marker), run_dir / STATE / "optimizer.pt")
    message = complaint(sample.main, f"--resume_dir {run_dir} --num_samples 1")
    assert str(run_dir) in message and not marker.exists()


@pytest.mark.parametrize("file", ["offsets.npy", "states.npy"])
def test_arrays_that_hold_pickles_are_refused(tmp_path, marker, file):
    codec = Seq2SeqCodec.load(MODELS / "bart-demo", 12)
    encoded(codec, TEXTS, tmp_path, "own")
    place = cache_folder(codec, TEXTS, tmp_path, "own", "float32")
    np.save(place / file, np.array([Hostile(marker)] * 3, dtype=object), allow_pickle=True)
    assert "damaged" in refused(lambda: encoded(codec, TEXTS, tmp_path, "own"), place)
    assert not marker.exists()


def test_kept_results_that_hold_a_pickle_are_made_anew(tmp_path, marker):
    notes = []
    store = ResultStore(tmp_path, notes.append)
    made = {"a": np.arange(3)}
    store.arrays("kind", "x", lambda: made)
    (path,) = tmp_path.glob("*.arrays")
    store._write(path, {"a": np.array([Hostile(marker)], dtype=object)})  # with the checksum that belongs to it
    assert store.arrays("kind", "x", lambda: made)["a"].tolist() == [0, 1, 2]
    assert len(notes) == 1 and str(path) in notes[0] and not marker.exists()


# Code beside a model


def put_code(folder: Path, marker: Path) -> None:
    """Code that makes the marker, under every name by which a library may look for some."""
    code = f"open({str(marker)!r}, 'w')\nclass Own:\n    pass\n"
    for name in ("own.py", "modeling_own.py", "configuration_own.py", "tokenization_own.py", "__init__.py",
                 "custom_generate/generate.py", "sitecustomize.py"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)


CLASSES = ("AutoConfig", "AutoModel", "AutoModelForSeq2SeqLM", "AutoModelForCausalLM", "AutoModelForMaskedLM")
AUTO = dict.fromkeys(CLASSES, "own.Own") | {"AutoTokenizer": ["own.Own", "own.Own"]}


@kinds
@pytest.mark.parametrize("known", [True, False], ids=["known type", "own type"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_a_configuration_names_is_not_run(model, marker, monkeypatch, kind, known, file):
    """Where the library has such a model itself it takes its own, else the folder is refused without a question."""
    questions = []
    monkeypatch.setattr("builtins.input", lambda *question: questions.append(question) or "y")
    folder, load = model(kind)
    for path in folder.rglob(file):
        put_code(path.parent, marker)
        content = json.loads(path.read_text()) | {"auto_map": AUTO, "trust_remote_code": True}
        own = {"model_type": "own", "tokenizer_class": "Own", "architectures": ["Own"]}
        path.write_text(json.dumps(content if known else content | own))
    try:
        load()
    except USER_ERRORS as error:
        assert str(folder) in str(error) and len(str(error).splitlines()) == 1
    assert not marker.exists() and not questions


@pytest.mark.parametrize(
    "change",
    [
        {"type": "own.Own"},
        {"type": "modeling_own.Own"},
        {"type": "os.system", "path": "touch ran"},
        {"type": "subprocess.getoutput"},
        {"type": "sentence_transformers.own.Own"},
        {"type": "sentence_transformers.util.import_from_string", "path": "own.Own"},
        {"type": "sentence_transformers.base.model.pickle"},
        {"type": "pickle.Unpickler"},
        {"path": "../elsewhere"},
        {"path": "/tmp"},
        {"path": None},
        {"type": None},
    ],
)
def test_a_sentence_model_names_no_code_and_no_other_folder(model, marker, tmp_path, monkeypatch, change):
    folder, load = model("sentence model")
    put_code(folder, marker)
    monkeypatch.syspath_prepend(str(folder))  # even where Python would find it
    shutil.copytree(folder, tmp_path / "elsewhere")
    modules = json.loads((folder / "modules.json").read_text())
    modules[-1] |= change
    (folder / "modules.json").write_text(json.dumps(modules))
    refused(load, folder)
    assert not marker.exists()


def test_a_sentence_model_cannot_trust_itself(model, marker):
    folder, load = model("sentence model")
    put_code(folder, marker)
    trust = {"trust_remote_code": True}
    (path,) = folder.glob("sentence_bert_config.json")
    given = json.loads(path.read_text())
    own = ("model_args", "config_args", "tokenizer_args", "model_kwargs", "config_kwargs", "processor_kwargs")
    path.write_text(json.dumps(given | trust | dict.fromkeys(own, trust)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": AUTO, "model_type": "own"}))
    refused(load, folder)
    assert not marker.exists()


# Paths that climb out


def sweep(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(f'output_dir = "{tmp_path}/runs"\n[options]\ndataset_name = "demo"\n{content}')
    return path


@pytest.mark.parametrize("name", ["../../out", "/out", "..", "a/../../..", "a\\u0000b", "\\u001b[2J", ".", " ", "x=/"])
def test_a_sweep_keeps_its_runs_in_its_folder(tmp_path, name):
    path = sweep(tmp_path, f'[groups."{name}"."{name}"]\nmethod = "latent"\n[grid]\nwandb_name = ["{name}", "b"]\n')
    try:
        runs = read_sweep(path).runs
    except UsageError as error:
        assert "\\u0000" in name and str(path) in str(error)
        return
    assert len(runs) == 2
    for run in runs:
        assert run.folder.parent == tmp_path / "runs"
        assert run.folder.name.isprintable() and run.folder.name not in ("", "..")


def test_a_sweep_whose_folders_could_not_be_made_is_refused(tmp_path):
    long = f'[grid]\nwandb_name = ["{"a" * 300}"]\n'
    assert "too long" in refused(lambda: read_sweep(sweep(tmp_path, long)), tmp_path)
    axes = "\n".join(f"{name} = {list(range(1, 101))}" for name in ("random_seed", "log_every", "num_samples"))
    assert "1,000,000 combinations" in refused(lambda: read_sweep(sweep(tmp_path, f"[grid]\n{axes}\n")), tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "a\0b"])
def test_a_row_of_scores_names_no_file_elsewhere(tmp_path, name):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"human": {}, name: {}}))
    assert "is no name of a row" in refused(lambda: scores(path), path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "a\0b"])
def test_a_record_of_files_names_none_elsewhere(tmp_path, name):
    path = tmp_path / "cached.json"
    path.write_text(json.dumps({"files": {name: {"bytes": 1, "sha256": "0"}}}))
    refused(lambda: read_record(path), path)


def test_a_run_of_a_stranger_is_read_from_its_own_folder(call, tmp_path, monkeypatch):
    """Whatever its options say, sampling writes nothing; its tokenizer and its weights are those beside the options."""
    run_dir, outside = copied(RUN, tmp_path), tmp_path / "outside"
    outside.mkdir()
    saved = json.loads((run_dir / "args.json").read_text())
    climbing = {"save_dir": str(outside), "tokenizer": "../../outside", "wandb_name": "../../outside/run"}
    (run_dir / "args.json").write_text(json.dumps(saved | climbing))
    before = sorted(path for path in tmp_path.rglob("*"))
    assert call(sample.main, f"--resume_dir {run_dir} --num_samples 1 --sampling_timesteps 2").status == 0
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("key", ["save_dir", "data_dir", "enc_dec_model", "wandb_name"])
def test_a_path_with_a_nul_is_refused(tmp_path, key):
    (tmp_path / "args.json").write_text(json.dumps({key: "a\0b"}))
    assert key in refused(lambda: read_args(tmp_path), tmp_path)


# The terminal

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\u202etxt\r"


def test_what_is_said_cannot_control_the_terminal(capsys, complaint, tmp_path):
    note(f"a{ESCAPES}b")
    told = capsys.readouterr().err
    assert told == "a\\x1b[2J\\x1b]0;title\\x07\\x9b31m\\u202etxt\\rb\n"
    assert shown("two\nlines\tand ünïcödé 漢字 🙂") == "two\nlines\tand ünïcödé 漢字 🙂"
    (tmp_path / "f").write_text("text")
    message = complaint(prepare_datasets.main, f"e2e --from '{tmp_path}/\x1b[31mnowhere'")
    assert "\x1b" not in message and "\\x1b[31mnowhere" in message


@pytest.mark.parametrize("on_a_terminal", [True, False])
def test_a_sampled_text_cannot_control_the_terminal(monkeypatch, on_a_terminal):
    """In a file it stays as it is."""
    out = io.StringIO()
    out.isatty = lambda: on_a_terminal
    monkeypatch.setattr(Seq2SeqCodec, "decode", lambda self, x0, *args: [f"a{ESCAPES}b"] * len(x0))
    monkeypatch.setattr("sys.argv", f"sample --resume_dir {RUN} --num_samples 1 --sampling_timesteps 2".split())
    monkeypatch.setattr("sys.stdout", out)
    sample.main()
    assert out.getvalue() == (f"a{shown(ESCAPES)}b\n" if on_a_terminal else f"a{ESCAPES}b\n")


# Secrets

SECRETS = {"HF_TOKEN": "hf_hush1", "WANDB_API_KEY": "hush2", "AWS_SECRET_ACCESS_KEY": "hush3"}


@pytest.mark.parametrize("wandb", ["", pytest.param("--wandb_name own", marks=pytest.mark.slow)])
def test_no_secret_lands_in_what_a_run_writes_and_says(call, tmp_path, monkeypatch, data_dir, wandb):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    run_dir = tmp_path / "run"
    outcome = call(
        train_text_diffusion.main,
        f"--dataset_name plain --data_dir {data_dir} --save_dir {tmp_path} --output_dir {run_dir} {wandb} "
        "--enc_dec_model bart-demo --perplexity_model gpt2-demo --mauve_model gpt2-demo --tx_dim 64 --tx_depth 1 "
        "--max_length 24 --timesteps 20 --sampling_timesteps 2 --num_train_steps 1 --train_batch_size 8 "
        "--num_samples 4 --save_and_sample_every 1 --log_every 1",
    )
    assert outcome.status == 0, outcome.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("wandb" in str(path) for path in files) == bool(wandb) and run_dir / "metrics.jsonl" in files
    assert call(train_text_diffusion.main, f"--eval --resume_dir {run_dir} --milestone 7").status == 2
    written = b"".join(path.read_bytes() for path in files) + f"{outcome.out}{outcome.err}".encode()
    assert not [value for value in SECRETS.values() if value.encode() in written]


@pytest.mark.parametrize("status", [None, 401, 404, "truncate"])
def test_no_secret_of_an_address_is_kept_or_said(call, hub, tmp_path, status):
    names = prepare_datasets.OFFICIAL_NAMES["e2e"]
    hub.files = {f"/{name}": b"mr,ref\nname[A],A text\n" for name in names}
    hub.faults = {} if status is None else {names[1]: [status] * 6}
    address = hub.url.replace("http://", "http://me:hush4@")
    urls = " ".join(f"'{address}/{name}?token=hush5#hush6'" for name in names)
    outcome = call(prepare_datasets.main, f"e2e --from {urls} --data_dir {tmp_path / 'data'}")
    assert outcome.status == (0 if status is None else 2)
    written = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    said = f"{outcome.out}{outcome.err}"
    assert b"hush" not in written and "hush" not in said
    if status is None:
        assert f'"{hub.url}/{names[0]}"'.encode() in written  # where it came from is known all the same
    else:
        assert f"{hub.url}/{names[1]}: " in said


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("https://example.org/a.csv", "https://example.org/a.csv"),
        ("https://me:hush@example.org:80/a%20b.csv?k=hush#hush", "https://example.org:80/a%20b.csv"),
        ("ftp://me:hush@example.org/", "ftp://example.org/"),
        ("http://me:hu/sh?hu#sh@example.org/a", "http://example.org/a"),
        ("http://[hush@", "http://"),
    ],
)
def test_addresses_without_their_secrets(complaint, url, wanted):
    assert without_secrets(url) == wanted
    if not url.startswith("http") or "[" in url:
        assert "hush" not in complaint(prepare_datasets.main, f"e2e --from '{url}'")
