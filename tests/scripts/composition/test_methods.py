"""A whole life of every method on tokens, small: training, resuming, evaluation, likelihood, synthetic data, texts."""

import csv
import json
import math
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from diffusion.schedules import linear_T_schedule
from diffusion.spindle import type_deviation
from latent_models.corpora import DataOptions, load_corpus
from scripts import export_run
from scripts import sample as sample_script
from scripts.composition.build import build, fit_space
from scripts.composition.methods import METHODS
from scripts.composition.options import Options
from scripts.composition.token_space import TokenSpace
from scripts.sampling.samples_file import read_samples, read_texts
from scripts.sampling.sampling import Given, sample
from train_text_diffusion import main

TOKEN_METHODS = [name for name, method in METHODS.items() if method.on_tokens]
CHECKPOINT = "step_00000004"


@pytest.fixture(params=TOKEN_METHODS)
def method(request) -> str:
    return request.param


@pytest.fixture
def run_dir(small_run, method):
    """A run of four steps, its range of times growing where there is one."""
    return small_run(method, "" if METHODS[method].causal else "--T_schedule linear")


@pytest.fixture
def talkative(loaded):
    """talkative(run_dir, flags) is its system with a network whose output depends on all of its input."""

    def load(run_dir, *more):
        system, generator = loaded(run_dir, *more), torch.Generator().manual_seed(0)
        chosen = [system.denoiser.write.weight]
        if system.denoiser.label is not None:
            chosen.append(system.denoiser.label.weight)
        for parameter in chosen:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        system.denoiser.double()  # in float32 a batch of another shape rounds otherwise: one draw in 100,000 changes
        return system

    return load


@pytest.fixture
def resumed(call, tmp_path):
    """resumed(run_dir) is a copy of a run that was stopped after step 2 and continued."""

    def resume(run_dir):
        copy = tmp_path / "copy"
        shutil.copytree(run_dir, copy)
        shutil.rmtree(copy / "checkpoints" / CHECKPOINT)
        outcome = call(main, f"--resume_training --resume_dir {copy}")
        assert outcome.status == 0, outcome.err
        assert "steps 2 to 4" in outcome.err
        return copy

    return resume


def assert_same_weights(one, other):
    for name in ("model", "ema"):
        first, second = (load_file(run / "checkpoints" / CHECKPOINT / f"{name}.safetensors") for run in (one, other))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name


def padded(rows):
    """x0 and valid of some ids."""
    longest = max(map(len, rows))
    x0 = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return x0, torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]


# A life


def test_a_run_folder_holds_what_a_run_needs(run_dir):
    assert {path.name for path in run_dir.iterdir()} == {
        "args.json", "tokenizer", "length_counts.safetensors", "token_counts.safetensors", "metrics.jsonl",
        "checkpoints", "evaluation", "space.json",
    }  # fmt: skip
    assert not list(run_dir.rglob("*.bin")) + list(run_dir.rglob("*.pt")) + list(run_dir.rglob("*.pkl"))


def test_the_range_of_times_follows_its_schedule(run_dir, method, rows_of):
    found = [row["T"] for row in rows_of(run_dir) if "loss" in row]
    assert found == [1] * 4 if METHODS[method].causal else [linear_T_schedule(4, 20, step) for step in range(4)]


def test_methods_differ_in_nothing_but_what_suits_them(run_dir, method, loaded):
    """Times spread over a batch, a mean over tokens, and the time told to the networks whose best answer needs it."""
    system = loaded(run_dir)
    mean_length = system.data("train").lengths.mean()
    for sampling, stratified in (("default", True), ("iid", False)):
        training = replace(system.options.training, time_sampling=sampling)
        objective = replace(system, options=replace(system.options, training=training)).objective
        assert (objective.stratified_times, objective.mean_length) == (stratified, pytest.approx(mean_length))
    assert system.denoiser.time_input == ("none" if method in ("ar", "mdlm", "diffusion_bert") else "input")
    if method == "diffusion_bert":  # rare words of the training texts are masked first
        counts = system.space.token_counts
        assert counts.sum() == sum(system.data("train").lengths)
        assert torch.equal(system.process.deviation.table, type_deviation(counts, system.space.codec.pad_id))


def test_training_changes_the_weights_at_a_finite_loss(run_dir, rows_of):
    before, after = (
        load_file(run_dir / "checkpoints" / step / "model.safetensors") for step in ("step_00000002", CHECKPOINT)
    )
    assert not torch.equal(before["write.weight"], after["write.weight"])
    assert all(math.isfinite(row[key]) for row in rows_of(run_dir) if "loss" in row for key in ("loss", "grad_norm"))


def test_resuming_gives_the_run_that_was_never_interrupted(run_dir, resumed, rows_of):
    copy = resumed(run_dir)
    assert_same_weights(run_dir, copy)
    whole, again = (
        [{key: value for key, value in row.items() if key != "steps_per_second"} for row in rows_of(run)]
        for run in (run_dir, copy)
    )
    assert json.dumps(whole) == json.dumps(again)  # as text, in which NaN equals itself
    scores = [run / "evaluation" / CHECKPOINT / "scores.json" for run in (run_dir, copy)]
    assert scores[0].read_text() == scores[1].read_text()


def test_eval(run_dir, call, tmp_path):
    outcome = call(main, f"--eval --resume_dir {run_dir} --output_dir {tmp_path}")
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "evaluation" / "valid_step_00000004"
    assert (folder / "table.md").read_text() in outcome.out
    assert len(read_texts(folder / "seed_42" / "sample.jsonl")) == 4
    scores = json.loads((folder / "scores.json").read_text())
    assert scores.keys() == {"human", "sample"} and scores["human"]["perplexity"] > 0


def test_likelihood_counts_the_same_tokens_for_every_method(run_dir, method, call, tmp_path, loaded):
    outcome = call(main, f"--ppl_eval --resume_dir {run_dir} --output_dir {tmp_path}")
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "evaluation" / "likelihood_step_00000004"
    assert (folder / "table.md").read_text() in outcome.out
    (row,) = json.loads((folder / "scores.json").read_text()).values()
    system = loaded(run_dir)
    lengths = [min(length, 24) for length in system.space.codec.token_lengths(system.corpus.test.texts)]
    assert (row["likelihood_texts"], row["likelihood_tokens"]) == (30, sum(lengths))
    assert row["draws"] == (1 if METHODS[method].causal else 2)
    for name in ("nats_per_sequence", "nats_per_token", "nats_per_word"):
        assert 0 < row[f"{name}_std"] < row[name] < math.inf
    assert row["nats_per_token"] < 3 * math.log(system.process.vocab_size)


def test_gen_data(run_dir, call, tmp_path):
    outcome = call(main, f"--gen_data --resume_dir {run_dir} --output_dir {tmp_path} --num_samples 2")
    assert outcome.status == 0, outcome.err
    for line in outcome.out.splitlines():
        with open(line, newline="") as file:
            header, *rows = list(csv.reader(file))
        assert header == ["text", "label"] and len(rows) == 2


def test_samples_in_a_file_say_what_they_were_made_of(run_dir, call, tmp_path, loaded):
    common = f"--resume_dir {run_dir} --num_samples 3"
    shown = call(sample_script.main, common)
    assert shown.status == 0, shown.err
    file = tmp_path / "new" / "3.jsonl"
    assert call(sample_script.main, f"{common} --output_file {file}").status == 0
    assert shown.out == "\n".join(read_texts(file)) + "\n"
    codec = loaded(run_dir).space.codec
    for row in read_samples(file):
        assert row.keys() == {"text", "tokens", "seed", "ids", "tokenizer"}
        assert len(row["ids"]) == row["tokens"] <= 24
        assert codec.mask_id not in row["ids"]
        assert codec.decode(*padded([row["ids"]])) == [row["text"]]
        assert codec.fingerprint.startswith(row["tokenizer"])


def test_an_exported_run_samples_like_the_run(run_dir, call, tmp_path, loaded):
    outcome = call(export_run.main, f"--run {run_dir} --output_dir {tmp_path / 'shared'}")
    assert outcome.status == 0, outcome.err
    own, exported = loaded(run_dir), loaded(tmp_path / "shared")
    assert own.space.fingerprint == exported.space.fingerprint
    assert torch.equal(own.space.lengths.counts, exported.space.lengths.counts)
    for ours, theirs in zip(own.denoiser.parameters(), exported.denoiser.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6)  # half precision
    assert call(sample_script.main, f"--resume_dir {tmp_path / 'shared'} --num_samples 1").status == 0


# Samples


@pytest.mark.parametrize(
    ("method", "sampler"), [(name, sampler) for name in TOKEN_METHODS for sampler in METHODS[name].samplers]
)
def test_a_sample_depends_on_its_seed_and_number_alone(run_dir, sampler, talkative):
    """Neither on the batch size nor on how many there are, whatever the sampler."""
    system = talkative(run_dir, "--sampler", sampler, "--sampling_timesteps", "4")
    first = sample(system, 7, 42)
    assert len({tuple(ids) for ids in first.ids}) == 7 and len(set(first.lengths)) > (not system.writes_length)
    system.options.training.eval_batch_size = 3
    assert sample(system, 7, 42) == first
    assert sample(system, 4, 42).ids == first.ids[:4]
    assert sample(system, 4, 43).ids != first.ids[:4]


def test_the_cached_sampler_gives_the_ancestral_samples(small_run, talkative):
    run_dir = small_run("mdlm", "--T_schedule linear")
    ids = [sample(talkative(run_dir, "--sampler", name), 4, 1).ids for name in ("ancestral", "ddpm_cache")]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("method", [name for name in TOKEN_METHODS if METHODS[name].is_tempered])
def test_a_low_temperature_takes_the_likeliest(run_dir, method, talkative):
    """All noise that is left is in what is drawn before: for AR, nothing."""
    warm, cold = (talkative(run_dir, *flags) for flags in ((), ("--temperature", "1e-6")))
    assert sample(cold, 3, 0).ids != sample(warm, 3, 0).ids
    if METHODS[method].causal:
        assert len({tuple(ids) for ids in sample(cold, 3, 0).ids}) == 1
        assert sample(talkative(run_dir, "--top_k", "1"), 3, 0) == sample(cold, 3, 0)


@pytest.mark.parametrize("flag", ["--temperature 0.01", "--top_p 0.5", "--top_k 1"])
def test_a_network_that_would_rather_keep_its_masks_still_writes(small_run, loaded, flag):
    """D3PM alone gives the mask a probability, which sharpening must not make the only one."""
    system = loaded(small_run("d3pm"), *flag.split())
    system.denoiser.write.bias.data[system.space.codec.mask_id] = 20.0
    assert system.space.codec.mask_id not in {i for ids in sample(system, 3, 0).ids for i in ids}


def test_averaged_weights_make_the_samples(run_dir, loaded):
    averaged = load_file(run_dir / "checkpoints" / CHECKPOINT / "ema.safetensors")
    assert torch.equal(loaded(run_dir).denoiser.write.weight, averaged["ema_model.write.weight"])


@pytest.mark.parametrize("method", ["ar", "mdlm"])
def test_a_label_changes_the_sample_and_nothing_else(small_run, method, talkative, call, tmp_path):
    run_dir = small_run(method, "--dataset_name demo --class_conditional")
    system = talkative(run_dir)
    zeros, ones = (sample(system, 6, 42, labels=[label] * 6) for label in (0, 1))
    assert zeros.labels == [system.classes[0]] * 6 and ones.labels == [system.classes[1]] * 6
    assert zeros.ids != ones.ids
    assert (zeros.lengths, zeros.seeds) == (ones.lengths, ones.seeds)
    assert len(set(sample(system, 12, 42).labels)) > 1
    assert call(main, f"--ppl_eval --resume_dir {run_dir} --output_dir {tmp_path}").status == 0


@pytest.mark.parametrize("T", [1, 2, 10])
@pytest.mark.parametrize("method", [name for name in TOKEN_METHODS if not METHODS[name].causal])
def test_any_number_of_steps_is_finite(small_run, method, T, rows_of, call, tmp_path):
    """Also one, in training, sampling and bound; a rate of 0 leaves the network silent, and logits of 0 are uniform."""
    flags = f"--timesteps {T} --sampling_timesteps 1 --num_train_steps 1 --save_and_sample_every 9"
    run_dir = small_run(method, flags)
    assert all(math.isfinite(row["loss"]) for row in rows_of(run_dir))
    outcome = call(main, f"--ppl_eval --resume_dir {run_dir} --output_dir {tmp_path} --likelihood_draws 1")
    assert outcome.status == 0, outcome.err
    (row,) = json.loads(next(tmp_path.rglob("scores.json")).read_text()).values()
    assert 0 < row["nats_per_token"] < math.inf
    assert call(sample_script.main, f"--resume_dir {run_dir} --num_samples 1").status == 0


# Other texts


@pytest.fixture(scope="module")
def characters(tmp_path_factory):
    """A folder with the corpus `letters`, one running text in each split."""
    place, corpus = tmp_path_factory.mktemp("running"), load_corpus(DataOptions("demo"))
    (place / "letters").mkdir()
    for split, count in (("train", 40), ("valid", 6), ("test", 6)):
        texts = getattr(corpus, split).texts[:count]
        (place / "letters" / f"{split}.txt").write_text("\n".join(texts), encoding="utf-8")
    return place


def test_running_text_is_not_shortened_in_silence(characters, complaint, tmp_path):
    line = f"--data_dir {characters} --dataset_name letters --tokenizer char --running_text 17 --max_length 16"
    wanted = r"--running_text: (\d+) of \1 pieces of the train split are longer than --max_length 16 tokens and would"
    assert re.search(wanted, complaint(main, f"--method mdlm {line} --output_dir {tmp_path / 'run'}"))


@pytest.mark.parametrize("method", ["ar", "mdlm", "sedd"])
def test_running_text_of_characters(small_run, characters, method, call, tmp_path, talkative):
    flags = f"--data_dir {characters} --dataset_name letters --running_text 16 --max_length 16"
    if method == "sedd":
        flags += " --graph uniform"
    run_dir = small_run(method, flags, "--tokenizer char --tx_dim 64 --tx_depth 1")
    outcome = call(main, f"--ppl_eval --resume_dir {run_dir} --output_dir {tmp_path}")
    assert outcome.status == 0, outcome.err
    (row,) = json.loads(next(tmp_path.rglob("scores.json")).read_text()).values()
    system = talkative(run_dir)
    text = (characters / "letters" / "test.txt").read_text(encoding="utf-8")
    assert "".join(system.corpus.test.texts) == text
    assert row["likelihood_tokens"] == len(text)  # no end of text where a text is a piece of one
    assert row["bits_per_character"] == pytest.approx(row["nats_per_token"] / math.log(2))
    assert "bits/character" in outcome.out
    found = sample(system, 6, 42)
    codec, special = system.space.codec, {"[EOS]", "[PAD]"}
    for ids, written in zip(found.ids, found.texts["sample"], strict=True):
        tokens = codec.tokenizer.convert_ids_to_tokens(ids)
        tokens = tokens[: tokens.index("[EOS]")] if "[EOS]" in tokens else tokens
        assert written == "".join(token for token in tokens if token not in special)


@pytest.mark.parametrize("method", ["ar", "gidd", "mdlm"])
def test_texts_made_from_sources(small_run, pairs, method, call, tmp_path, monkeypatch, talkative):
    flags = f"--data_dir {pairs} --dataset_name pairs --condition_on_source --max_length 40"
    run_dir = small_run(method, flags)
    system = talkative(run_dir)
    made = system.data("train").batch(range(len(system.corpus.train))).free.sum(1)
    assert system.objective.mean_length == pytest.approx(made.double().mean().item())
    seen, decode = [], TokenSpace.decode
    monkeypatch.setattr(TokenSpace, "decode", lambda self, *args: seen.append(args[:2]) or decode(self, *args))
    sources = system.corpus.test.sources[:5]
    found = sample(system, 5, 42, given=Given(sources))
    ((x0, shown),) = seen
    rows = {tuple(ids[keep].tolist()): ids.tolist() for ids, keep in zip(x0, shown, strict=True)}
    for ids, before, length in zip(found.ids, system.space.encode_sources(sources), found.lengths, strict=True):
        (whole,) = [row for target, row in rows.items() if target[:length] == tuple(ids)]
        assert whole[: len(before)] == before and before[-1] == system.space.codec.eos_id
        assert len(ids) == length <= system.space.limit == 20
    assert sample(system, 5, 42, given=Given(system.corpus.test.sources[5:10])).ids != found.ids
    assert found.first == system.space.codec.decode(*padded(found.ids))

    outcome = call(main, f"--ppl_eval --resume_dir {run_dir} --output_dir {tmp_path}")
    assert outcome.status == 0, outcome.err
    (row,) = json.loads(next(tmp_path.rglob("scores.json")).read_text()).values()
    lengths = system.space.codec.token_lengths(system.corpus.test.texts)
    assert row["likelihood_tokens"] == sum(min(length, 20) for length in lengths)  # sources cost nothing
    few = call(sample_script.main, f"--resume_dir {run_dir} --num_samples 13")
    assert few.status == 2 and "--num_samples 13: the test split has 12 sources" in few.errors[0]


@pytest.mark.parametrize("spindle", ["frequency", "information"])
def test_the_frequencies_of_a_sentence_do_not_count_its_padding(small_run, talkative, spindle):
    system = talkative(small_run("diffusion_bert", f"--spindle {spindle}"), "--sampling_timesteps", "10")
    first = sample(system, 40, 42)
    system.options.training.eval_batch_size = 3
    assert sample(system, 40, 42) == first


@pytest.mark.parametrize(("method", "flags"), [("ar", ""), ("mdlm", "--lengths modelled"), ("mdlm", "")])
def test_a_text_ends_where_its_method_says(small_run, method, flags, loaded):
    system = loaded(small_run(method, flags))
    codec = system.space.codec
    system.denoiser.write.weight.data.zero_()
    system.denoiser.write.bias.data.zero_()[codec.eos_id] = math.log(100)  # a seventh or so of all tokens
    found = sample(system, 12, 42)
    assert found.lengths == [len(ids) for ids in found.ids] and max(found.lengths) <= 24
    ends = [ids.index(codec.eos_id) + 1 if codec.eos_id in ids else 24 for ids in found.ids]
    assert (found.lengths == ends) == system.writes_length  # the others have a length that was drawn
    assert found.first == codec.decode(*padded([ids[:end] for ids, end in zip(found.ids, ends, strict=True)]))


def test_modelled_lengths_are_trained_with_padding(small_run, loaded):
    system = loaded(small_run("mdlm", "--lengths modelled"))
    batch = system.data("train").batch(range(8))
    assert batch.valid.all() and batch.x0.shape == (8, 24)
    assert (batch.x0 == system.space.codec.pad_id).any()
    assert system.objective.mean_length == 24


@pytest.mark.parametrize("lengths", ["drawn", "modelled"])
@pytest.mark.parametrize("tokenizer", ["bart-demo", "gpt2-demo"])  # the PAD of the second is its EOS
def test_by_type_as_many_tokens_are_masked_as_without_a_spindle(tokenizer, lengths, data_dir):
    line = f"--method diffusion_bert --dataset_name plain --data_dir {data_dir} --max_length 24 --tokenizer {tokenizer}"
    options = Options.from_argv([*line.split(), "--lengths", lengths])
    corpus = load_corpus(options.data)
    space = fit_space(options, corpus)
    batch = space.data(corpus, "train", None).batch(range(len(corpus.train)))
    process = METHODS["diffusion_bert"].process(options, space)
    for t in (0.2, 0.5):
        alpha = process.alpha(batch.x0, torch.full((len(batch.x0),), t, dtype=torch.float64))[batch.free]
        assert alpha.mean().item() == pytest.approx(1 - t, abs=1e-12) and alpha.std() > 0.01


# BERT


@pytest.mark.parametrize("time_input", ["none", "token", "layerwise"])
def test_diffusion_bert_starts_from_a_cached_bert(small_run, bert_dir, time_input, resumed, loaded, call, tmp_path):
    run_dir = small_run("diffusion_bert", f"--time_input {time_input}", f"--bert_model {bert_dir}")
    assert_same_weights(run_dir, resumed(run_dir))
    system = loaded(run_dir)
    assert system.space.codec.mask_id == system.space.codec.tokenizer.mask_token_id < system.space.codec.vocab_size - 1
    pretrained = load_file(bert_dir / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    fresh, trained = (each.denoiser.model.get_input_embeddings().weight for each in
                      (build(system.options, system.corpus, system.space), system))  # fmt: skip
    assert torch.equal(fresh, pretrained) and not torch.equal(trained, pretrained)
    assert call(sample_script.main, f"--resume_dir {run_dir} --num_samples 2").status == 0
    assert call(main, f"--ppl_eval --resume_dir {run_dir} --output_dir {tmp_path}").status == 0


def test_a_run_of_a_bert_that_lies_elsewhere_now(small_run, bert_dir, call, complaint, tmp_path):
    here = small_run("diffusion_bert", "--time_input none", f"--bert_model {bert_dir}")
    run_dir = shutil.copytree(here, tmp_path / "run")
    saved = json.loads((run_dir / "args.json").read_text())
    (run_dir / "args.json").write_text(json.dumps(saved | {"bert_model": "/gone/bert"}))
    line = f"--resume_dir {run_dir} --num_samples 2"
    assert "/gone/bert" in complaint(sample_script.main, line)
    moved = call(sample_script.main, f"{line} --bert_model {shutil.copytree(bert_dir, tmp_path / 'bert')}")
    assert moved.status == 0, moved.err
    assert moved.out == call(sample_script.main, f"--resume_dir {here} --num_samples 2").out
