"""A whole life of a run, small: training, resuming, evaluation, test, synthetic data; all of it without network.

L positions, D latent width.
"""

import csv
import json
import re
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion.training import checkpoint
from latent_models.codec import MODELS_DIR
from latent_models.corpora import DataOptions, load_corpus
from latent_models.lengths import LengthModel
from latent_models.seq2seq_codec import CodecOptions
from latent_models.statistics import LatentStatistics
from offline_metrics.language_model import LanguageModel
from scripts import evaluate_samples, export_run
from scripts import sample as sample_script
from scripts.composition.build import build, device
from scripts.composition.checks import check
from scripts.composition.demo_grammar import parse
from scripts.composition.latent_space import LatentData, LatentSpace, encode_split, load_codec
from scripts.composition.options import Options
from scripts.sampling.samples_file import read_texts
from scripts.sampling.sampling import sample
from train_text_diffusion import main, make_run_dir

ROOT = Path(__file__).parents[2]
METRICS = "--perplexity_model gpt2-demo --mauve_model gpt2-demo"
RECIPE = (
    "--enc_dec_model bart-demo --tx_dim 64 --tx_depth 1 --timesteps 50 --sampling_timesteps 3 --num_train_steps 4 "
    "--train_batch_size 16 --learning_rate 1e-2 --lr_warmup_steps 1 --save_and_sample_every 2 --log_every 1 "
    "--keep_checkpoints 0 --num_samples 20"
)


@pytest.fixture(scope="module", autouse=True)
def requests():
    """What is asked of the network while this file runs; every request fails."""
    asked = []

    def refuse(*args, **settings):
        asked.append(args)
        raise OSError("no network in this test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket.socket, "connect_ex", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        with pytest.raises(OSError, match="no network in this test"):
            socket.create_connection(("localhost", 80))
        asked.clear()
        yield asked


@pytest.fixture(autouse=True)
def nothing_is_asked_of_the_network(requests):
    """Holds for every test of this file and for what its fixtures do."""
    yield
    assert requests == []


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def train(call, data_dir, place):
    """train(name, corpus, more flags) -> the run folder and what the command printed."""

    def trained(name: str, corpus: str, more: str = METRICS):
        line = f"--dataset_name {corpus} --data_dir {data_dir} --save_dir {place} --output_dir {place / name} {RECIPE} "
        outcome = call(main, line + more)
        assert outcome.status == 0, outcome.err
        return place / name, outcome

    return trained


@pytest.fixture(scope="module")
def labelled(train):
    """A class-conditional run with self-conditioning."""
    return train("labelled", "demo", f"{METRICS} --class_conditional --self_condition")


@pytest.fixture(scope="module")
def plain(train):
    """An unconditional run; no file of it changes once it is there."""
    return train("plain", "plain")


@pytest.fixture
def talkative(request, labelled, loaded):
    """The class-conditional system with a denoiser whose output depends on everything, as after long training.

    Parametrized by further flags.
    """
    system = loaded(labelled[0], *getattr(request, "param", "").split())
    generator = torch.Generator().manual_seed(0)
    for parameter in (system.denoiser.write.weight, system.denoiser.label.weight):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return system


@pytest.fixture
def latents(monkeypatch) -> dict[int, torch.Tensor]:
    """x0 [L, D] of what is sampled, by seed, none of it decoded."""
    found = {}

    def decode(self, x0, valid, strategy, seeds):
        found.update({seed: states[keep] for states, keep, seed in zip(x0, valid, seeds, strict=True)})
        return [""] * len(x0)

    monkeypatch.setattr(LatentSpace, "decode", decode)
    return found


def copied(run_dir: Path, place: Path) -> Path:
    return Path(shutil.copytree(run_dir, place / "copy"))


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# Training


def test_a_run_folder_holds_what_a_run_needs(labelled, place):
    run_dir, outcome = labelled
    assert {path.name for path in run_dir.iterdir()} == {
        "args.json", "latent_statistics.safetensors", "space.json", "metrics.jsonl", "checkpoints", "evaluation"
    }  # fmt: skip
    first, *evaluated = ["step_00000000", "step_00000002", "step_00000004"]
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [first, *evaluated]
    assert sorted(path.name for path in (run_dir / "evaluation").iterdir()) == evaluated
    for step in evaluated:
        folder = run_dir / "evaluation" / step
        assert {path.name for path in folder.iterdir()} == {
            "beam.jsonl", "nucleus.jsonl", "scores.json", "table.md", "timing.json"
        }  # fmt: skip
        assert len(read_texts(folder / "beam.jsonl")) == len(read_texts(folder / "nucleus.jsonl")) == 20
    assert not list(run_dir.rglob("*.bin")) + list(run_dir.rglob("*.pt")) + list(run_dir.rglob("*.pkl"))
    latents = [path.name.rsplit("-", 1)[0] for path in (place / "latents").iterdir()]
    assert {"demo-train", "demo-valid"} <= set(latents)
    assert {path.name.split("-")[0] for path in (place / "features").iterdir()} == {"features", "human_row", "ngrams"}
    assert "steps 0 to 4" in outcome.err
    assert (run_dir / "evaluation" / "step_00000004" / "table.md").read_text() in outcome.err


def test_metrics_hold_every_logged_step_and_the_scores(labelled, rows_of):
    rows = rows_of(labelled[0])
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    scored = [row for row in rows if "beam/mauve" in row]
    assert [row["step"] for row in scored] == [2, 4]
    for name in ("human/perplexity", "beam/perplexity", "nucleus/diversity", "human/mauve", "beam/memorization"):
        assert np.isfinite(scored[-1][name]), name


def test_the_demo_corpus_is_judged_by_its_grammar_too(labelled, plain):
    scores = json.loads((labelled[0] / "evaluation" / "step_00000004" / "scores.json").read_text())
    assert scores["human"]["acceptance"] == 1
    assert scores["beam"]["acceptance"] < 1  # four steps teach nobody to write
    scores = json.loads((plain[0] / "evaluation" / "step_00000004" / "scores.json").read_text())
    assert "acceptance" not in scores["beam"]


def test_samples_on_disk_say_what_they_were_made_of(labelled, plain):
    row = json.loads((labelled[0] / "evaluation" / "step_00000004" / "beam.jsonl").read_text().splitlines()[0])
    assert row.keys() == {"text", "label", "tokens", "seed"}
    row = json.loads((plain[0] / "evaluation" / "step_00000004" / "beam.jsonl").read_text().splitlines()[0])
    assert row.keys() == {"text", "tokens", "seed"}


def test_a_second_run_reads_the_encoded_splits_of_the_first(labelled, train, monkeypatch):
    monkeypatch.setattr("latent_models.seq2seq_codec.Seq2SeqCodec.encode", lambda *_: pytest.fail("encoded again"))
    train("again", "demo", f"{METRICS} --num_train_steps 1")


def test_what_was_cut_is_told_once(train):
    _, outcome = train("cut", "plain", "--num_train_steps 1 --max_length 12")
    assert [line.split(":")[0] for line in outcome.err.splitlines() if "were cut" in line] == ["train", "valid"]


def test_training_gets_normalised_latents(labelled, data_dir, place):
    options = Options.from_argv(["--eval", "--resume_dir", str(labelled[0])])
    corpus = check(options).corpus
    cache = encode_split(load_codec(options.codec, device()), corpus, "train", place / "latents", "float32")
    statistics = LatentStatistics.load(labelled[0] / "latent_statistics.safetensors")
    assert np.array_equal(statistics.lengths.counts, np.bincount(cache.lengths))
    label_ids = np.arange(len(cache.lengths)) % 3 - 1
    batch = LatentData(cache, statistics, label_ids).batch(np.arange(len(cache.lengths)))
    assert (batch.x0[~batch.valid] == 0).all()
    tokens = batch.x0[batch.valid]  # [tokens, D]
    assert len(tokens) == len(cache.states)
    assert tokens.mean(0).abs().max() < 1e-4
    assert tokens.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert batch.label.tolist() == label_ids.tolist()
    assert LatentData(cache, statistics, None).batch(np.array([0])).label is None


def test_splits_kept_as_bf16_are_what_a_run_trains_on(train, loaded, place):
    run_dir, _ = train("halved", "plain", "--num_train_steps 1 --latent_dtype bf16")
    system = loaded(run_dir)
    stored = system.space.data(system.corpus, "train", None).cache
    exact = encode_split(system.space.codec, system.corpus, "train", place / "latents", "float32")
    assert stored.states.nbytes * 2 == exact.states.nbytes
    mean = torch.cat(list(stored.pieces())).double().mean(0)
    assert torch.allclose(system.space.statistics.mean.double(), mean, rtol=1e-6)
    assert not torch.allclose(torch.cat(list(exact.pieces())).double().mean(0), mean, rtol=1e-6)


def test_runs_without_a_name_get_a_folder_each(tmp_path, monkeypatch):
    """Even where they start in the same second, as the jobs of an array do."""
    now = time.localtime()
    monkeypatch.setattr("time.localtime", lambda *_: now)
    options = Options.from_argv(["--save_dir", str(tmp_path)])
    folders = [make_run_dir(options, "demo") for _ in range(3)]
    assert len(set(folders)) == 3
    assert all(folder.is_dir() and folder.parent == tmp_path / "demo" for folder in folders)


def test_a_run_without_a_name_is_trained_and_resumed(call, data_dir, tmp_path):
    line = f"--dataset_name plain --data_dir {data_dir} --save_dir {tmp_path} {RECIPE} {METRICS} --num_train_steps 2"
    outcome = call(main, line)
    assert outcome.status == 0, outcome.err
    (run_dir,) = (tmp_path / "plain").iterdir()
    assert f"done: {run_dir}" in outcome.err
    assert call(main, f"--resume_training --resume_dir {run_dir} --num_train_steps 3").status == 0
    assert [path.name for path in (run_dir / "checkpoints").iterdir() if path.name.endswith("3")]


@pytest.fixture
def without_default_models(tmp_path, monkeypatch):
    """A machine that has the demo models only, whatever this one has."""
    (tmp_path / "pre_trained_models").mkdir()
    for name in ("bart-demo", "gpt2-demo"):
        (tmp_path / "pre_trained_models" / name).symlink_to(ROOT / "pre_trained_models" / name)
    monkeypatch.setattr("latent_models.codec._hub_snapshot", lambda name: None)
    monkeypatch.chdir(tmp_path)


def test_default_metric_models_may_be_missing_in_training(train, call, without_default_models):
    run_dir, outcome = train("unscored", "plain", "--perplexity_model gpt2-demo --num_train_steps 2")
    (warning,) = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert "gpt2-large not on this machine" in warning and "gpt2-demo" not in warning
    assert warning.endswith("python -m scripts.cache_models gpt2-large")
    table = (run_dir / "evaluation" / "step_00000002" / "table.md").read_text()
    assert "–" in table and "no model was given to compute MAUVE's features" in table
    scores = json.loads((run_dir / "evaluation" / "step_00000002" / "scores.json").read_text())
    assert scores["beam"]["mauve"] is None and scores["beam"]["perplexity"] > 0

    refused = call(main, f"--eval --resume_dir {run_dir}")  # whoever asks for scores shall get them
    assert refused.status == 2
    assert refused.errors[0].startswith("error: --mauve_model: not on this machine: gpt2-large ")
    assert "scripts.cache_models gpt2-large" in refused.errors[0]
    silent = call(main, f"--gen_data --resume_dir {run_dir} --num_samples 1")  # which needs no scores
    assert silent.status == 0
    assert "gpt2-large" not in silent.err


# Resuming


def test_resuming_gives_the_run_that_was_never_interrupted(plain, call, tmp_path, rows_of):
    run_dir = copied(plain[0], tmp_path)
    shutil.rmtree(run_dir / "checkpoints" / "step_00000004")
    outcome = call(main, f"--resume_training --resume_dir {run_dir}")
    assert outcome.status == 0, outcome.err
    assert "steps 2 to 4" in outcome.err
    before, whole, resumed = (
        load_file(folder / "model.safetensors")
        for folder in (
            run_dir / "checkpoints" / "step_00000002",
            plain[0] / "checkpoints" / "step_00000004",
            run_dir / "checkpoints" / "step_00000004",
        )
    )
    assert any(not torch.equal(before[name], resumed[name]) for name in before)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    scores = [folder / "evaluation" / "step_00000004" / "scores.json" for folder in (plain[0], run_dir)]
    assert scores[0].read_text() == scores[1].read_text()
    steps = [(row["step"], "loss" in row) for row in rows_of(run_dir)]
    assert steps == [(row["step"], "loss" in row) for row in rows_of(plain[0])]


def test_a_run_resumed_for_longer_remembers_it(plain, call, tmp_path, rows_of):
    run_dir = copied(plain[0], tmp_path)
    line = f"--resume_training --resume_dir {run_dir} --num_train_steps 6 --num_samples 3 --save_and_sample_every 6"
    assert call(main, line).status == 0
    assert (run_dir / "checkpoints" / "step_00000006").is_dir()
    assert [row["step"] for row in rows_of(run_dir) if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert len(read_texts(run_dir / "evaluation" / "step_00000006" / "beam.jsonl")) == 3
    assert json.loads((run_dir / "args.json").read_text())["num_train_steps"] == 6
    assert "steps 6 to 6" in call(main, f"--resume_training --resume_dir {run_dir}").err


def test_a_run_is_not_resumed_to_an_earlier_step(plain, complaint, tmp_path):
    run_dir = copied(plain[0], tmp_path)
    before = (run_dir / "args.json").read_bytes()
    for mode in ("", "--dry_run "):
        wrong = complaint(main, f"{mode}--resume_training --resume_dir {run_dir} --num_train_steps 3")
        assert wrong.startswith("error: --num_train_steps 3: ") and "step_00000004" in wrong
    assert (run_dir / "args.json").read_bytes() == before


@pytest.mark.parametrize(
    "given", ["T_schedule linear", "lr_schedule constant", "train_batch_size 8", "random_seed 1", "optimizer lion"]
)
def test_a_run_goes_on_as_it_began(plain, complaint, tmp_path, given):
    run_dir = copied(plain[0], tmp_path)
    before = (run_dir / "args.json").read_bytes()
    for mode in ("--resume_training", "--dry_run --resume_training"):
        wrong = complaint(main, f"{mode} --resume_dir {run_dir} --num_train_steps 6 --{given}")
        assert wrong.startswith(f"error: --{given}: ") and "step_00000004 was trained with" in wrong
    assert (run_dir / "args.json").read_bytes() == before


def test_what_decides_an_optimisation_is_open_before_its_first_step(plain, call, tmp_path):
    run_dir = copied(plain[0], tmp_path)
    same = "--T_schedule normal --optimizer AdamW --lr_schedule cosine"
    from_the_start = "--milestone 0 --T_schedule linear --optimizer Lion"
    for line in (same, "--learning_rate 1e-3 --num_train_steps 6", from_the_start):
        outcome = call(main, f"--dry_run --resume_training --resume_dir {run_dir} {line}")
        assert outcome.status == 0, outcome.err


def test_resuming_with_a_codec_of_another_width_changes_nothing(plain, call, tmp_path):
    run_dir = copied(plain[0], tmp_path)
    statistics = LatentStatistics(torch.zeros(7), torch.ones(()), LengthModel(torch.tensor([0, 1, 1])))
    statistics.save(run_dir / "latent_statistics.safetensors")
    (run_dir / "space.json").unlink()
    before = (run_dir / "args.json").read_bytes()
    for mode in ("resume_training --save_and_sample_every 4", "eval"):
        outcome = call(main, f"--{mode} --resume_dir {run_dir}")
        assert outcome.status == 2
        assert "--enc_dec_model bart-demo: has width 64" in outcome.errors[0] and "with 7" in outcome.errors[0]
    assert (run_dir / "args.json").read_bytes() == before


def test_a_bit_that_flips_in_the_statistics_is_told(plain, call, tmp_path):
    run_dir = copied(plain[0], tmp_path)
    path = run_dir / "latent_statistics.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for mode in ("gen_data", "resume_training"):
        outcome = call(main, f"--{mode} --resume_dir {run_dir}")
        assert outcome.status == 2 and f"{path}: SHA-256 is not" in outcome.errors[0]


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(plain, call, tmp_path, rows_of):
    """The damaged one is named and kept, its rows are taken back, and the end is that of the run it never had."""
    run_dir = copied(plain[0], tmp_path)
    flip_bit(run_dir / "checkpoints" / "step_00000004" / "optimizer.safetensors")
    outcome = call(main, f"--resume_training --resume_dir {run_dir}")
    assert outcome.status == 0, outcome.err
    place = run_dir / "checkpoints" / "step_00000004"
    assert f"warning: {place}: damaged (optimizer.safetensors: SHA-256" in outcome.err
    assert f"{place}: kept as step_00000004.damaged" in outcome.err and "steps 2 to 4" in outcome.err
    names = {f"step_0000000{step}" for step in (0, 2, 4)} | {"step_00000004.damaged"}
    assert {path.name for path in place.parent.iterdir()} == names
    timeless = lambda rows: [{k: v for k, v in row.items() if k != "steps_per_second"} for row in rows]  # noqa: E731
    assert timeless(rows_of(run_dir)) == timeless(rows_of(plain[0]))
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"):
        assert (place / file).read_bytes() == (plain[0] / place.relative_to(run_dir) / file).read_bytes()


@pytest.mark.parametrize("mode", ["eval", "gen_data", "sample"])
def test_what_only_reads_uses_the_checkpoint_before_a_damaged_one(plain, call, tmp_path, mode):
    run_dir = copied(plain[0], tmp_path)
    place = run_dir / "checkpoints" / "step_00000004"
    (place / "ema.safetensors").unlink()
    line = f"--resume_dir {run_dir} --num_samples 2 --strategy beam" if mode == "sample" else (
        f"--{mode} --resume_dir {run_dir} --num_samples 2"
    )
    script = sample_script.main if mode == "sample" else main
    outcome = call(script, line)
    assert outcome.status == 0, outcome.err
    named = f"warning: {place}: damaged (ema.safetensors: missing); step_00000002 is used instead"
    assert outcome.err.splitlines().count(named) == 1
    assert place.is_dir()  # reading changes nothing
    assert (run_dir / "evaluation" / "valid_step_00000002").is_dir() == (mode == "eval")
    asked = call(script, f"{line} --milestone 4")
    assert (asked.status, len(asked.errors)) == (2, 1) and f"{place}: damaged" in asked.errors[0]


def test_with_no_checkpoint_intact_nothing_is_begun(plain, call, tmp_path):
    run_dir = copied(plain[0], tmp_path)
    for place in (run_dir / "checkpoints").iterdir():
        flip_bit(place / "ema.safetensors")
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    for mode in ("gen_data", "resume_training", "dry_run --eval"):
        outcome = call(main, f"--{mode} --resume_dir {run_dir}")
        assert (outcome.status, len(outcome.errors)) == (2, 1)
        assert all(f"step_0000000{step}: damaged (ema.safetensors: SHA-256" in outcome.errors[0] for step in (0, 2, 4))
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_another_codec_of_the_same_width_is_refused(plain, call, tmp_path):
    """By its weights, wherever it lies; a copy of the own one is welcome."""
    own, other = (Path(shutil.copytree(ROOT / "pre_trained_models/bart-demo", tmp_path / name)) for name in "ab")
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values())).add_(1)
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    line = f"--gen_data --resume_dir {plain[0]} --output_dir {tmp_path} --num_samples 1"
    assert call(main, f"{line} --enc_dec_model {own}").status == 0
    for mode in ("", "--dry_run"):
        outcome = call(main, f"{line} --enc_dec_model {other} {mode}")
        assert (outcome.status, len(outcome.errors)) == (2, 1)
        assert re.search(rf"--enc_dec_model {other}: .* were those of bart-demo \([0-9a-f]{{12}}\)", outcome.errors[0])


# Evaluation


def test_eval_scores_against_the_validation_split(plain, call, tmp_path):
    outcome = call(main, f"--eval --resume_dir {plain[0]} --output_dir {tmp_path} --milestone 2 --num_samples 16")
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "evaluation" / "valid_step_00000002"
    assert {path.name for path in folder.iterdir()} == {"seed_42", "scores.json", "table.md"}
    assert len(read_texts(folder / "seed_42" / "nucleus.jsonl")) == 16
    assert (folder / "table.md").read_text() in outcome.out
    assert not (plain[0] / "evaluation" / folder.name).exists()


def test_eval_test_gives_mean_and_spread_over_five_seeds(plain, call, tmp_path):
    run_dir = copied(plain[0], tmp_path)
    outcome = call(main, f"--eval_test --resume_dir {run_dir}")
    assert outcome.status == 0, outcome.err
    folder = run_dir / "evaluation" / "test_step_00000004"
    seeds = [folder / f"seed_{seed}" for seed in (42, 43, 44, 45, 46)]
    assert {path.name for path in folder.iterdir()} == {*(path.name for path in seeds), "scores.json", "table.md"}
    for file in ("beam.jsonl", "nucleus.jsonl", "scores.json"):
        assert len({(path / file).read_bytes() for path in seeds}) == 5, file
    per_seed = [json.loads((path / "scores.json").read_text())["nucleus"]["perplexity"] for path in seeds]
    scores = json.loads((folder / "scores.json").read_text())["nucleus"]
    assert scores["perplexity"] == pytest.approx(np.mean(per_seed))
    assert scores["perplexity_std"] == pytest.approx(np.std(per_seed, ddof=1))
    assert scores["runs"] == 5
    assert "±" in (folder / "table.md").read_text()
    assert (folder / "table.md").read_text() in outcome.out


def test_more_samples_than_references_are_told(plain, call, tmp_path):
    line = f"--eval --resume_dir {plain[0]} --output_dir {tmp_path}"
    enough, many = call(main, f"{line}/enough --num_samples 24"), call(main, f"{line} --num_samples 26")
    assert "samples asked" not in enough.err
    assert "26 samples asked but the references hold 24 texts: MAUVE compares 24 with 24" in many.err
    scores = json.loads((tmp_path / "evaluation" / "valid_step_00000004" / "scores.json").read_text())
    assert (scores["beam"]["texts"], scores["beam"]["mauve_texts"], scores["human"]["texts"]) == (26, 24, 24)


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The texts that the metrics' models read."""
    texts = []
    for method in (LanguageModel.nll, LanguageModel.features):

        def reading(self, given, *args, method=method):
            texts.extend(given)
            return method(self, given, *args)

        monkeypatch.setattr(LanguageModel, method.__name__, reading)
    return texts


def test_a_second_evaluation_reads_generated_texts_only_and_says_the_same(plain, call, tmp_path, read):
    said = []
    for name in ("first", "second"):
        read.clear()
        place = f"--save_dir {tmp_path / 'saved'} --output_dir {tmp_path / name}"
        assert call(main, f"--eval --resume_dir {plain[0]} --num_samples 16 {place}").status == 0
        folder = tmp_path / name / "evaluation" / "valid_step_00000004"
        said.append([(folder / file).read_bytes() for file in ("scores.json", "table.md", "seed_42/scores.json")])
    generated = [text for way in ("beam", "nucleus") for text in read_texts(folder / "seed_42" / f"{way}.jsonl")]
    tried, *read = read  # a text that is read when the model is loaded
    assert sorted(read) == sorted([*generated, *generated])  # for perplexity and for MAUVE
    assert said[0] == said[1]


def test_an_evaluation_goes_on_where_nothing_can_be_kept(plain, call, tmp_path):
    (tmp_path / "file").write_text("")
    line = f"--eval --resume_dir {plain[0]} --num_samples 2 --output_dir {tmp_path} --save_dir {tmp_path / 'file'}"
    outcome = call(main, line)
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("cannot be written to") == 1


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(("written", "count"), [("", 16), (" \n", 3), ("A pub.", 1)])
def test_what_cannot_be_computed_is_told_and_the_run_goes_on(train, monkeypatch, rows_of, written, count):
    """A model that writes nothing, or too little for MAUVE: no number is made up."""
    monkeypatch.setattr(LatentSpace, "decode", lambda self, x0, valid, strategy, seeds: [written] * len(x0))
    run_dir, outcome = train(f"mute{count}", "plain", f"{METRICS} --num_samples {count}")
    assert "Warning" not in outcome.err and "steps 0 to 4" in outcome.err
    folder = run_dir / "evaluation" / "step_00000004"
    scores = json.loads((folder / "scores.json").read_text())["beam"]
    missing = {"rep_4", "rep_4_per_text", "diversity"} | ({"memorization"} if not written.strip() else set())
    missing |= {"perplexity", "corpus_perplexity"} if not written else set()
    missing |= {"mauve", "mauve_train"} if count < 15 else set()
    assert missing <= {name for name, value in scores.items() if value is None} == scores["notes"].keys()
    assert (scores["texts"], scores["empty_texts"]) == (count, count * (not written.strip()))
    table = (folder / "table.md").read_text()
    assert "– [1]" in table and all(note in table for name, note in scores["notes"].items() if name in missing)
    logged = [row for row in rows_of(run_dir) if "beam/texts" in row]
    assert [row["step"] for row in logged] == [2, 4] and all(logged[-1][f"beam/{name}"] is None for name in missing)


def test_the_longest_reading_of_a_training_is_watched(data_dir, tmp_path, capsys):
    corpus = load_corpus(DataOptions("plain", str(data_dir)))
    LatentSpace.fit(CodecOptions("bart-demo", max_length=24), corpus, tmp_path, torch.device("cpu"))
    assert "encode plain-train: 100%" in capsys.readouterr().err


def test_evaluating_with_another_sampler_setting(plain, call, tmp_path):
    line = f"--eval --resume_dir {plain[0]} --num_samples 2 --output_dir {tmp_path}"
    assert call(main, f"{line} --sampler ancestral --sampling_timesteps 50").status == 0
    assert "--sampling_timesteps 51" in call(main, f"{line} --sampling_timesteps 51").errors[0]


def test_the_averaged_weights_make_the_samples(plain, tmp_path, loaded):
    run_dir = copied(plain[0], tmp_path)
    path = run_dir / "checkpoints" / "step_00000004" / "ema.safetensors"
    averaged = load_file(path)
    averaged["ema_model.write.bias"] += 1
    save_file(averaged, path)
    checkpoint.seal(path.parent)
    trained = load_file(path.with_name("model.safetensors"))
    own = loaded(run_dir).denoiser.state_dict()
    assert torch.equal(own["write.bias"], averaged["ema_model.write.bias"])
    assert not torch.equal(own["write.bias"], trained["write.bias"])
    assert all(torch.equal(own[name], trained[name]) for name in own if name != "write.bias")


# Samples


def test_a_sample_depends_on_its_seed_and_number_alone(talkative):
    """Neither on the batch size nor on how many there are."""
    first = sample(talkative, 9, 42)
    assert len(set(first.texts["beam"])) > 5 and len(set(first.lengths)) > 3 and len(set(first.labels)) > 1
    talkative.options.training.eval_batch_size = 4
    others = sample(talkative, 9, 42)
    fewer = sample(talkative, 5, 42)
    for strategy in ("beam", "nucleus"):
        assert others.texts[strategy] == first.texts[strategy]
        assert fewer.texts[strategy] == first.texts[strategy][:5]
    assert (fewer.lengths, fewer.labels) == (first.lengths[:5], first.labels[:5])
    assert sample(talkative, 5, 43).texts != fewer.texts


@pytest.mark.parametrize(
    "talkative",
    ["--sampler dpmpp", "--sampler q --q_sampling_from 0.7", "--sampling_timesteps 10 --early_stop 0.3"],
    indirect=True,
)
def test_nor_does_it_with_another_sampler_or_an_early_stop(talkative, latents):
    made = []
    for batch_size in (32, 4):
        talkative.options.training.eval_batch_size = batch_size
        sample(talkative, 9, 42, strategies=["beam"])
        made.append(dict(latents))
    for seed, x0 in made[0].items():
        torch.testing.assert_close(x0, made[1][seed], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("talkative", "asked"),
    [
        ("--sampling_timesteps 10", 10),
        ("--sampling_timesteps 10 --early_stop 1e-9", 10),
        ("--sampling_timesteps 10 --early_stop 100", 7),  # till the first of 1, .9, ... where signal outweighs noise
    ],
    indirect=["talkative"],
)
def test_an_early_stop_saves_network_calls(talkative, asked, latents):
    rows = []
    talkative.denoiser.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    sample(talkative, 8, 42, strategies=["beam"])
    assert sum(rows) == 8 * asked


def test_a_label_changes_the_sample_and_nothing_else(talkative):
    zeros, ones = (sample(talkative, 6, 42, strategies=["beam"], labels=[label] * 6) for label in (0, 1))
    assert zeros.labels == [talkative.classes[0]] * 6 and ones.labels == [talkative.classes[1]] * 6
    assert zeros.texts != ones.texts
    assert (zeros.lengths, zeros.seeds) == (ones.lengths, ones.seeds)


def test_what_the_denoiser_writes_is_unnormalised_before_decoding(plain, monkeypatch, loaded):
    """A denoiser before training writes zeros, which are the mean of the training latents."""
    system = loaded(plain[0])
    fresh = build(system.options, system.corpus, system.space)
    fresh.denoiser.eval()
    seen = []
    monkeypatch.setattr(fresh.space.codec, "decode", lambda x0, valid, *_: seen.append((x0, valid)) or [""] * len(x0))
    lengths = sample(fresh, 5, 42, strategies=["beam"]).lengths
    ((states, valid),) = seen
    assert torch.allclose(states, fresh.space.statistics.mean.expand_as(states))
    assert sorted(valid.sum(1).tolist()) == sorted(lengths)
    assert all(fresh.space.lengths.counts[length] > 0 for length in lengths)


def test_initial_weights_come_from_the_seed_of_the_run(plain, loaded):
    system = loaded(plain[0])
    parts = system.corpus, system.space
    torch.manual_seed(1)
    first = build(system.options, *parts).denoiser.state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = build(system.options, *parts).denoiser.state_dict()
    assert torch.equal(torch.get_rng_state(), state)  # and leave the global generator alone
    assert all(torch.equal(first[name], again[name]) for name in first)
    system.options.training.random_seed += 1
    other = build(system.options, *parts).denoiser.state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def synthetic(run_dir: Path, count: int) -> dict[int, list[list[str]]]:
    """Rows of the CSV of each seed."""
    found = {}
    for seed in (42, 43, 44, 45, 46):
        with (run_dir / "synthetic" / f"synth_sample{count}_seed{seed}.csv").open(newline="") as file:
            header, *found[seed] = list(csv.reader(file))
            assert header == ["text", "label"]
    return found


def test_gen_data_of_a_class_conditional_run_shares_the_texts_out(labelled, call, tmp_path, loaded):
    outcome = call(main, f"--gen_data --resume_dir {labelled[0]} --output_dir {tmp_path} --num_samples 10")
    assert outcome.status == 0, outcome.err
    classes = loaded(labelled[0]).classes
    assert len(classes) == 4
    found = synthetic(tmp_path, 10)
    for rows in found.values():
        counts = [sum(label == name for _, label in rows) for name in classes]
        assert sum(counts) == len(rows) == 10 and max(counts) - min(counts) == 1
    assert len(outcome.out.splitlines()) == 5


def test_gen_data_gives_every_text_noise_of_its_own(labelled, loaded):
    """Also those of different classes."""
    seen = []
    system = loaded(labelled[0])
    prior = system.process.prior
    system.process.prior = lambda *args: seen.append(prior(*args)) or seen[-1]
    sample(system, 8, 42, strategies=["beam"], labels=[i % 4 for i in range(8)])
    (noise,) = seen
    assert len({tuple(row[0].tolist()) for row in noise}) == 8


def test_gen_data_of_an_unconditional_run(plain, call, tmp_path, monkeypatch):
    decode, ways = LatentSpace.decode, set()
    monkeypatch.setattr(LatentSpace, "decode", lambda *args: ways.add(args[3]) or decode(*args))
    outcome = call(main, f"--gen_data --resume_dir {plain[0]} --output_dir {tmp_path} --num_samples 3")
    assert outcome.status == 0, outcome.err
    assert ways == {"beam"}  # what is not kept is not written
    found = synthetic(tmp_path, 3)
    assert all(len(rows) == 3 and {label for _, label in rows} == {""} for rows in found.values())
    assert len({json.dumps(rows) for rows in found.values()}) > 1


# The scripts beside the entry script


def test_sampled_texts_can_be_scored_by_themselves(labelled, call, data_dir, tmp_path):
    common = f"--resume_dir {labelled[0]} --num_samples 16 --strategy nucleus"
    shown = call(sample_script.main, common)
    assert shown.status == 0, shown.err
    file = tmp_path / "new" / "16.jsonl"
    assert call(sample_script.main, f"{common} --output_file {file}").status == 0
    assert shown.out == "\n".join(read_texts(file)) + "\n"
    scored = call(
        evaluate_samples.main,
        f"--samples {file} --dataset_name demo --data_dir {data_dir} {METRICS} --output_dir {tmp_path / 'scores'} "
        f"--save_dir {tmp_path}",
    )
    assert scored.status == 0, scored.err
    assert (tmp_path / "scores" / "table.md").read_text() in scored.out
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores.keys() == {"human", "16.jsonl"}
    assert scores["16.jsonl"]["texts"] == 16
    assert list((tmp_path / "features").glob("human_row-*"))


def test_the_texts_of_an_evaluation_have_its_scores_by_themselves(plain, call, data_dir, tmp_path):
    outcome = call(main, f"--eval --resume_dir {plain[0]} --num_samples 16 --output_dir {tmp_path}")
    assert outcome.status == 0, outcome.err
    (folder,) = tmp_path.glob("evaluation/valid_*/seed_42")
    outcome = call(
        evaluate_samples.main,
        f"--samples {folder / 'beam.jsonl'} --split valid --dataset_name plain --data_dir {data_dir} {METRICS} "
        f"--output_dir {tmp_path} --save_dir {tmp_path}",
    )
    assert outcome.status == 0, outcome.err
    own, alone = (json.loads((place / "scores.json").read_text()) for place in (folder, tmp_path))
    assert own["human"] == alone["human"] and own["human"]["mauve_train"] is not None
    assert own["beam"] == alone["beam.jsonl"] and own["beam"]["mauve_train"] is not None


def test_an_exported_run_is_small_and_samples_like_the_run(plain, call, tmp_path, loaded):
    run_dir = plain[0]
    target = tmp_path / "shared"
    outcome = call(export_run.main, f"--run {run_dir} --output_dir {target}")
    assert outcome.status == 0, outcome.err
    folders = [folder / "checkpoints" for folder in (run_dir, target)]
    sizes = [sum(file.stat().st_size for file in folder.rglob("*.safetensors")) for folder in folders]
    assert sizes[1] < sizes[0] / 4
    own, exported = loaded(run_dir), loaded(target)
    for ours, theirs in zip(own.denoiser.parameters(), exported.denoiser.parameters(), strict=True):
        assert theirs.dtype == torch.float32
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6)
    assert call(export_run.main, f"--run {run_dir} --output_dir {target}").errors


def test_training_does_not_go_on_from_an_exported_run(complaint):
    for more in ("", "--dry_run", "--milestone 3000"):
        wrong = complaint(main, f"--resume_training --resume_dir {MODELS_DIR / 'diffusion-demo'} {more}")
        assert "diffusion-demo: an exported run" in wrong and "damaged" not in wrong


def test_the_slice_of_the_demo_corpus_has_the_labels_its_grammar_says(data_dir):
    corpus = load_corpus(DataOptions("demo", str(data_dir)))
    assert corpus.classes == sorted(corpus.classes) and len(corpus.classes) == 4
    assert all(parse(text)["type"] == label for text, label in zip(corpus.test.texts, corpus.test.labels, strict=True))
