"""--dry_run: everything wrong is told at once, nothing is written, and what it foretells is what comes."""

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from scripts import sample
from scripts.composition.dry_run import look
from scripts.composition.options import Options
from train_text_diffusion import main

ROOT = Path(__file__).parents[3]
METRICS = "--perplexity_model gpt2-demo --mauve_model gpt2-demo"
MODEL = "--enc_dec_model bart-demo --tx_dim 64 --tx_depth 1"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def told(call, data_dir, tmp_path):
    """told("flags") is every line in which --dry_run complained; it must leave nothing behind."""

    def lines(flags: str, main=main) -> list[str]:
        before = sorted(tmp_path.rglob("*"))
        outcome = call(main, f"--dry_run --data_dir {data_dir} --save_dir {tmp_path / 'saved'} {flags}")
        assert (outcome.status, outcome.out) == (2, ""), outcome
        assert "Traceback" not in outcome.err and sorted(tmp_path.rglob("*")) == before
        return [line.removeprefix("error: ") for line in outcome.errors]

    return lines


def sizes(row: str) -> list[float]:
    """The bytes that a row names."""
    units = {"MB": 1e6, "GB": 1e9}
    return [float(size.replace(",", "")) * units[unit] for size, unit in re.findall(r"([\d,.]+) (MB|GB)", row)]


@pytest.fixture
def table(call, tmp_path):
    """table("flags") is what --dry_run printed, by row; it must leave nothing behind."""

    def rows(flags: str, main=main) -> dict[str, str]:
        before = sorted(tmp_path.rglob("*"))
        outcome = call(main, f"--dry_run {flags}")
        assert outcome.status == 0, outcome.err
        assert sorted(tmp_path.rglob("*")) == before
        return dict(re.split("  +", line, maxsplit=1) for line in outcome.out.splitlines())

    return rows


# What is wrong


def test_everything_is_told_at_once(told, tmp_path):
    (tmp_path / "file").write_text("no folder")
    found = told(
        "--dataset_name sst --enc_dec_model no/bart --perplexity_model no/gpt --mauve_model no/bert --tx_dim 100 "
        f"--learning_rate nan --ema_decay 2 --mauve_seeds 1 --sampler euler --output_dir {tmp_path}/file"
    )
    wanted = (
        "--tx_dim 100", "--learning_rate nan", "--ema_decay 2", "--mauve_seeds 1", "--sampler euler",
        "unknown dataset 'sst'", "scripts.cache_models no/bart$", "--output_dir .*is a file",
        "scripts.cache_models no/gpt$", "scripts.cache_models no/bert$",
    )  # fmt: skip
    assert len(found) == len(wanted) == len(set(found))
    for pattern in wanted:
        assert sum(bool(re.search(pattern, line)) for line in found) == 1, pattern


def test_a_flag_that_cannot_be_read_is_told_alone(told):
    (line,) = told("--tx_dim wide --learning_rate nan")
    assert re.search("--tx_dim.* invalid int value: 'wide'", line)


@pytest.mark.parametrize(
    ("model", "flag", "change", "wanted"),
    [
        ("bart-demo", "enc_dec_model", "cut", "cannot be used as encoder-decoder .*incomplete metadata"),
        ("gpt2-demo", "perplexity_model", "cut", "cannot load the model: .*incomplete metadata"),
        ("gpt2-demo", "mauve_model", "weight", "1 weights of the model are not in its files .*cache it again"),
        ("gpt2-demo", "mauve_model", "model.safetensors", "cannot load the model"),
    ],
)
def test_models_that_would_not_load(told, tmp_path, model, flag, change, wanted):
    folder = Path(shutil.copytree(ROOT / "pre_trained_models" / model, tmp_path / "own"))
    weights = folder / "model.safetensors"
    if change == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif change == "weight":
        tensors = load_file(weights)
        del tensors["transformer.ln_f.weight"]
        save_file(tensors, weights, {"format": "pt"})
    else:
        (folder / change).unlink()
    (line,) = told(f"--dataset_name plain {METRICS} {MODEL} --{flag} {folder}")
    assert re.search(wanted, line) and str(folder) in line


def test_a_codec_with_too_few_positions(told):
    (line,) = told(f"--dataset_name plain {METRICS} {MODEL} --max_length 1000")
    assert re.search(r"has \d+ positions; expected --max_length of at most that", line)


def test_a_disk_without_room(told, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 10**6 - 1000, 1000))
    (line,) = told(f"--dataset_name plain {METRICS} {MODEL}")
    assert re.search(r"saved.*: \d+ MB are needed \(checkpoints, encoded splits\) and 0 MB are free; make room", line)


def test_a_character_that_the_training_texts_do_not_have(told, call, tmp_path):
    (tmp_path / "own").mkdir()
    for split, text in (("train", "abc"), ("valid", "abß"), ("test", "ab")):
        (tmp_path / "own" / f"{split}.txt").write_text(f"{text}\n")
    (line,) = told(f"--method mdlm --tokenizer char --dataset_name {tmp_path}/own {METRICS}")
    assert "the valid split of 'own': text 1: holds the character" in line


def test_a_dry_run_that_is_none_does_the_job_or_says_the_first_that_is_wrong(call):
    found = call(main, "--dry_run=false --dataset_name sst --tx_dim 100 --learning_rate nan")
    assert found.status == 2 and [line.split()[1] for line in found.errors] == ["--tx_dim"]
    assert "unknown dataset 'sst'" in call(main, "--dry_run=false --dataset_name sst").errors[0]


@pytest.mark.parametrize("mode", ["eval_test", "gen_data", "resume_training"])
def test_a_run_that_is_damaged(call, small_run, tmp_path, mode):
    run_dir = Path(shutil.copytree(small_run("latent"), tmp_path / "run"))
    for path in run_dir.glob("checkpoints/*/ema.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    (run_dir / "latent_statistics.safetensors").unlink()
    outcome = call(main, f"--dry_run --{mode} --resume_dir {run_dir} --perplexity_model no/gpt")
    assert outcome.status == 2
    assert any("damaged (ema.safetensors: has" in line for line in outcome.errors)
    assert any("no/gpt" in line for line in outcome.errors) == (mode != "gen_data")


# What is right


@pytest.mark.parametrize("method", ["latent", "ar", "mdlm"])
def test_what_is_foretold_of_a_run_is_what_comes(table, small_run, loaded, method, tmp_path):
    run_dir = small_run(method)
    place = tmp_path / "saved"
    saved = json.loads((run_dir / "args.json").read_text())
    keys = ("method", "dataset_name", "data_dir", "enc_dec_model", "tx_dim", "tx_depth", "max_length", "timesteps",
            "sampling_timesteps", "num_train_steps", "save_and_sample_every", "keep_checkpoints", "num_samples",
            "train_batch_size", "perplexity_model", "mauve_model")  # fmt: skip
    flags = " ".join(f"--{key} {saved[key]}" for key in keys)
    rows = table(f"{flags} --save_dir {place}")
    network = sum(p.numel() for p in loaded(run_dir).denoiser.parameters())
    assert rows["job"] == f"train, {method}, plain (120 train, 24 valid, 30 test texts)"
    assert rows["network"] == f"{network / 1e6:.1f} M parameters"
    assert rows["steps"] == "4 of 16 texts, 0.5 epochs; 2 evaluations of 4 samples"
    needed = float(re.match(r"(\d+) MB for checkpoints", rows["disk"]).group(1))
    taken = sum(path.stat().st_size for path in (run_dir / "checkpoints").rglob("*.safetensors")) / 1e6
    assert needed == pytest.approx(taken, rel=0.1, abs=1)
    assert ("gpt2-demo" in rows["models"], "bart-demo" in rows["models"]) == (True, method == "latent")
    total, libraries, weights, activations = sizes(rows["memory"])
    assert libraries > 200e6  # torch and its kin
    assert weights > 5 * 4 * network and activations > 0
    assert total == pytest.approx(libraries + weights + activations, rel=0.1)


def test_encoded_splits_are_measured_until_they_are_there(small_run):
    run_dir = small_run("latent")
    saved = json.loads((run_dir / "args.json").read_text())
    flags = [f"--{key}={saved[key]}" for key in ("dataset_name", "data_dir", "enc_dec_model", "max_length")]
    flags += METRICS.split()
    rows = look(Options.from_argv([*flags, "--save_dir", str(run_dir / "nowhere")])).rows
    needed = float(re.search(r"(\d+) MB for encoded splits", rows["disk"]).group(1))
    caches = [path for name in ("train", "valid") for path in (run_dir.parent / "latents").glob(f"plain-{name}-*")]
    taken = sum((path / "states.npy").stat().st_size for path in caches) / 1e6
    assert needed == pytest.approx(taken, rel=0.2, abs=1) and needed > 0
    rows = look(Options.from_argv([*flags, "--save_dir", saved["save_dir"]])).rows
    assert ", 0 MB for encoded splits" in rows["disk"]


def test_a_pretrained_bert(table, bert_dir, data_dir, tmp_path):
    flags = f"--method diffusion_bert --bert_model {bert_dir} --max_length 20"
    data = f"--dataset_name plain --data_dir {data_dir}"
    assert table(f"{flags} {data} {METRICS} --save_dir {tmp_path}/saved")["models"].endswith("gpt2-demo (0.7 M)")


@pytest.mark.parametrize("mode", ["eval", "eval_test", "ppl_eval", "gen_data", "resume_training"])
def test_every_job_of_a_run(table, small_run, mode, tmp_path):
    rows = table(f"--{mode} --resume_dir {small_run('mdlm')} --eval_batch_size 3")
    assert rows["job"].startswith(f"{mode}, mdlm, plain")
    assert ("steps" in rows, "disk" in rows) == (mode == "resume_training",) * 2
    assert len(sizes(rows["memory"])) == (4 if mode == "resume_training" else 3)
    assert (rows["models"] == "none") == (mode in ("ppl_eval", "gen_data"))


def test_of_a_run_that_goes_on_the_steps_left_are_told(table, small_run):
    line = f"--resume_training --resume_dir {small_run('mdlm')} --num_train_steps 9 --milestone"
    assert table(f"{line} 0")["steps"] == "9 of 16 texts, 1.1 epochs; 4 evaluations of 4 samples"
    assert table(f"{line} 2")["steps"] == "2 to 9 of 16 texts, 0.9 epochs; 3 evaluations of 4 samples"
    assert table(f"{line} 4")["steps"] == "4 to 9 of 16 texts, 0.6 epochs; 2 evaluations of 4 samples"


def test_a_script_beside_the_entry_script(table, small_run):
    assert table(f"--resume_dir {small_run('mdlm')}", sample.main)["job"].startswith("gen_data, mdlm")


def test_default_metric_models_that_are_missing_are_left_out(table, data_dir, tmp_path, monkeypatch):
    (tmp_path / "pre_trained_models").mkdir()
    (tmp_path / "pre_trained_models" / "bart-demo").symlink_to(ROOT / "pre_trained_models" / "bart-demo")
    monkeypatch.setattr("latent_models.codec._hub_snapshot", lambda name: None)
    monkeypatch.chdir(tmp_path)
    rows = table(f"--dataset_name plain --data_dir {data_dir} {MODEL} --save_dir {tmp_path}/saved")
    assert rows["left out"] == "metrics of gpt2-large, not on this machine"
