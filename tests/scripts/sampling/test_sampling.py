"""Texts of which something is given, texts shown while they are made, and texts longer than the model."""

import re

import pytest
import torch

from diffusion.training.options import TrainingOptions
from diffusion.training.progress import progress_bar
from latent_models.codec import MODELS_DIR
from scripts import sample as sample_script
from scripts.composition.latent_space import LatentSpace
from scripts.composition.methods import METHODS
from scripts.evaluation.latent_likelihood import latent_likelihood
from scripts.evaluation.likelihood import split_likelihood
from scripts.sampling.samples_file import read_samples
from scripts.sampling.sampling import Given, Piece, sample
from scripts.sampling.semi_autoregressive import extended, sample_long

TOKEN_METHODS = [name for name, method in METHODS.items() if method.on_tokens]
PREFIX, SUFFIX, PIECE = "The Red Door is", "by the river.", "8:pub"


@pytest.fixture(params=TOKEN_METHODS)
def run_dir(request, small_run):
    return small_run(request.param)


@pytest.mark.parametrize("method", ["latent", "mdlm", "ar"])
def test_samples_are_made_in_the_precision_of_training_on_a_gpu_and_likelihoods_never(
    small_run, loaded, monkeypatch, method
):
    system, seen = loaded(small_run(method), "--likelihood_draws", "1"), []
    asked = lambda self, device: torch.bfloat16 if device == torch.device("cpu") else None  # noqa: E731
    monkeypatch.setattr(TrainingOptions, "sampling_precision", asked)  # as if this were a GPU
    system.denoiser.trunk.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    sample(system, 2, 42)
    assert seen and all(seen)
    seen.clear()
    (split_likelihood if system.method.on_tokens else latent_likelihood)(system, "test")
    assert seen and not any(seen)


# Pieces that are given


def test_prefix_suffix_and_pieces_stand_where_they_were_put(run_dir, call, loaded, tmp_path):
    file = tmp_path / "found.jsonl"
    line = f"--resume_dir {run_dir} --num_samples 8 --output_file {file}"
    outcome = call(sample_script.main, f"{line} --prefix '{PREFIX}' --suffix '{SUFFIX}' --clamp {PIECE}")
    assert outcome.status == 0, outcome.err
    codec, rows = loaded(run_dir).space.codec, read_samples(file)
    prefix, piece, suffix = (codec.encode_piece(text) for text in (PREFIX, " pub", f" {SUFFIX}"))
    for row in rows:
        assert row["ids"][: len(prefix)] == prefix
        assert row["ids"][8 : 8 + len(piece)] == piece
        assert row["ids"][-len(suffix) - 1 :] == [*suffix, codec.eos_id]
        assert 8 + len(piece) + len(suffix) < row["tokens"] == len(row["ids"]) <= 24
    free = [ids[len(prefix) : 8] for ids in (row["ids"] for row in rows)]
    assert len(set(map(tuple, free))) > 1


def test_pieces_may_stand_anywhere_and_in_any_number(small_run, loaded):
    system = loaded(small_run("mdlm"))
    pieces = tuple(Piece(system.space.piece(text), position) for text, position in (("pub", 3), ("river", 7)))
    for ids in sample(system, 4, 42, given=Given(pieces=pieces)).ids:
        for piece in pieces:
            assert ids[piece.position : piece.position + len(piece.ids)] == piece.ids.tolist()


def test_a_prefix_that_leaves_no_room_to_write_is_the_text(small_run, loaded):
    system = loaded(small_run("mdlm"))
    whole = system.space.piece(PREFIX + " a pub " + SUFFIX, first=True, last=True)
    system.space.lengths.counts[len(whole) + 1 :] = 0  # no text is longer
    found = sample(system, 2, 42, given=Given(pieces=(Piece(whole, 0),)))
    assert found.ids == [whole.tolist()] * 2
    assert found.first == [PREFIX + " a pub " + SUFFIX] * 2


@pytest.mark.parametrize(
    ("method", "more", "given"),
    [("ar", "", "suffix"), ("mdlm", "", "suffix"), ("mdlm", "--lengths modelled", "clamp"), ("ar", "", "clamp")],
)
def test_words_behind_the_end_that_a_model_writes_are_told_of(small_run, altered, call, loaded, method, more, given):
    """The last layer of the model is made to write the end of the text everywhere."""
    run_dir = small_run(method, more)
    eos = loaded(run_dir).space.codec.eos_id
    ends = altered(run_dir, lambda weight, bias: bias.index_fill_(0, torch.tensor([eos]), 99.0))
    words = {"suffix": f"'{SUFFIX}'", "clamp": PIECE}[given]
    told = "warning: 3 of 3 texts end before words given to them, which they have lost"
    lost = call(sample_script.main, f"--resume_dir {ends} --num_samples 3 --{given} {words}")
    assert (lost.status, lost.out.split()) == (0, []) and told in lost.err
    assert "warning" not in call(sample_script.main, f"--resume_dir {ends} --num_samples 3 --prefix '{PREFIX}'").err


@pytest.mark.parametrize(("tokenizer", "kept"), [("bart-demo", 1), ("gpt2-demo", 2)])
def test_ids_end_where_the_text_does(small_run, altered, loaded, tokenizer, kept):
    """GPT-2 begins texts with the token that ends them, so that one at the first place is no end."""
    run_dir = small_run("mdlm", f"--lengths modelled --tokenizer {tokenizer}")
    eos = loaded(run_dir).space.codec.eos_id
    ends = altered(run_dir, lambda weight, bias: bias.index_fill_(0, torch.tensor([eos]), 99.0))
    found = sample(loaded(ends), 2, 42)
    assert found.ids == [[eos] * kept] * 2 and found.first == ["", ""]


def test_given_latents_are_held(small_run, call, loaded, monkeypatch):
    run_dir = small_run("latent")
    line = f"--resume_dir {run_dir} --num_samples 3 --prefix '{PREFIX}' --suffix '{SUFFIX}' --clamp {PIECE}"
    seen, decode = [], LatentSpace.decode
    monkeypatch.setattr(LatentSpace, "decode", lambda self, *args: seen.append(args[:2]) or decode(self, *args))
    outcome = call(sample_script.main, line)
    assert outcome.status == 0, outcome.err
    assert len(outcome.out.splitlines()) == 3
    space = loaded(run_dir).space
    given = (
        (space.piece(PREFIX, first=True), 0), (space.piece("pub"), 8), (ending := space.piece(SUFFIX, last=True), None)
    )  # fmt: skip
    ((x0, shown),) = seen
    for states, keep in zip(x0, shown, strict=True):
        own = states[keep]
        for ids, position in given:
            start = len(own) - len(ending) if position is None else position
            assert torch.equal(own[start : start + len(ids)], space.among(ids, start, len(own)))
        assert not torch.equal(own[len(given[0][0])], own[len(given[0][0]) - 1])


def test_given_words_stand_in_the_texts_of_a_latent_model(loaded):
    """The committed model writes most of them; of states read by themselves, at other positions, it wrote none."""
    system = loaded(MODELS_DIR / "diffusion-demo", "--sampling_timesteps", "20")
    suffix, words = "near the library.", "expensive pub"
    ends = Piece(system.space.piece(suffix, last=True), None)
    texts = sample(system, 20, 42, strategies=["beam"], given=Given(pieces=(ends,))).first
    assert sum(text.endswith(suffix) for text in texts) > 10
    within = Piece(system.space.piece(words), 5)
    texts = sample(system, 20, 42, strategies=["beam"], given=Given(pieces=(within,))).first
    assert sum(words in text for text in texts) > 10


# Texts shown while they are made


@pytest.mark.parametrize("flags", ["", "--sampling_timesteps 5 --eval_batch_size 2"])
def test_every_step_is_shown_with_its_masks(run_dir, flags, call, loaded):
    outcome = call(sample_script.main, f"--resume_dir {run_dir} --num_samples 3 --show_intermediate {flags}")
    assert outcome.status == 0, outcome.err
    shown = {}
    for step, steps, number, text in re.findall(r"^step +(\d+)/(\d+)  sample (\d+): (.*)$", outcome.out, re.M):
        shown.setdefault(int(number), []).append((int(step), int(steps), text))
    assert shown.keys() == {0, 1, 2}
    system = loaded(run_dir)
    made = sample(loaded(run_dir, *flags.split()), 3, system.options.training.random_seed)
    for number, lines in shown.items():
        steps = lines[0][1]
        assert [step for step, *_ in lines][: steps - 1] == list(range(1, len(lines) + 1))[: steps - 1]
        assert lines[-1][2] == repr(system.space.codec.show(made.ids[number]))  # no padding
        assert "<mask>" not in lines[-1][2]
        if system.method.causal:
            assert len(lines[0][2]) < len(lines[-1][2])
        else:
            assert steps == len(lines) == (5 if flags else 3)
            assert "<mask>" in lines[0][2]
    assert outcome.out.endswith("\n".join(["", *made.first, ""]))
    assert re.search(r"\| \[.*\]\r +\r", outcome.err)  # the bar makes way for them


@pytest.mark.parametrize(("method", "writing"), [("latent", [2, 4]), ("mdlm", [6])])  # of 6 texts, as each way begins
def test_the_bar_names_the_seed_and_is_full_when_texts_are_written(
    small_run, loaded, monkeypatch, method, writing
):
    bars, seen = [], []

    def shown(*args, **settings):
        bars.append(progress_bar(*args, **settings))
        return bars[-1]

    system = loaded(small_run(method), "--eval_batch_size", "6")
    decode = type(system.space).decode
    monkeypatch.setattr("scripts.sampling.sampling.progress_bar", shown)
    monkeypatch.setattr(
        type(system.space), "decode", lambda *args: seen.append(round(bars[-1].n, 6)) or decode(*args)
    )
    sample(system, 6, 43)
    assert bars[-1].desc == "sample 6, seed 43" and bars[-1].n == 6
    assert seen == writing


def test_each_way_of_writing_has_the_seconds_of_making_texts_and_its_own(small_run, loaded, monkeypatch):
    system, clock = loaded(small_run("latent"), "--eval_batch_size", "4"), [0.0]
    prior, decode, costs = system.process.prior, type(system.space).decode, {"beam": 5, "nucleus": 1}

    def passes(seconds, work, *args):
        clock[0] += seconds
        return work(*args)

    monkeypatch.setattr("scripts.sampling.sampling.perf_counter", lambda: clock[0])
    monkeypatch.setattr(system.process, "prior", lambda *args: passes(10, prior, *args))
    monkeypatch.setattr(
        type(system.space), "decode", lambda *args: passes(costs[args[3]], decode, *args)
    )
    made = sample(system, 8, 43)
    assert made.seconds == {"beam": 2 * 15, "nucleus": 2 * 11}  # of two batches
    assert sample(system, 8, 43, strategies=["nucleus"]).seconds == {"nucleus": 22}


# Texts longer than the model


def test_a_window_begins_with_the_end_of_the_text():
    calls = []

    def window(known, free):
        calls.append((known.clone(), free))
        return torch.full_like(known, 100 * len(calls)) + torch.arange(known.shape[1])  # whatever it did to the known

    first = torch.arange(12).view(2, 6)
    text = extended(window, first, stride=2, strides=3)
    assert torch.equal(text[:, :6], first)
    assert text[:, 6:].tolist() == [[104, 105, 204, 205, 304, 305]] * 2
    for i, (known, free) in enumerate(calls):
        assert torch.equal(known[:, :4], text[:, 2 * i + 2 : 2 * i + 6])
        assert free.tolist() == [[False] * 4 + [True] * 2] * 2


def test_longer_texts_begin_with_the_shorter_ones(run_dir, call, loaded, tmp_path):
    file = tmp_path / "long.jsonl"
    common = f"--resume_dir {run_dir} --num_samples 3 --semi_ar_stride 5"
    outcome = call(sample_script.main, f"{common} --semi_ar_strides 2 --output_file {file}")
    assert outcome.status == 0 and "sample 3, seed 42: 100%" in outcome.err, outcome.err
    rows = read_samples(file)
    assert [len(row["ids"]) for row in rows] == [row["tokens"] for row in rows] == [24 + 2 * 5] * 3
    system = loaded(run_dir)
    system.options.training.eval_batch_size = 2
    shorter = sample_long(system, 3, system.options.training.random_seed, 5, 1)
    assert [row["ids"][:29] for row in rows] == shorter.ids
    codec = system.space.codec
    assert [row["text"] for row in rows] == [codec.show(row["ids"]) for row in rows]
    assert len({tuple(row["ids"][29:]) for row in rows}) == 3
    assert codec.mask_id not in {i for row in rows for i in row["ids"]}


def test_every_window_is_written_in_sight_of_the_text_before_it(run_dir, loaded, monkeypatch):
    system, seen = loaded(run_dir), []
    if system.method.causal:
        written_next = system.denoiser.next
        monkeypatch.setattr(system.denoiser, "next", lambda x, *more: seen.append(x) or written_next(x, *more))
    else:
        system = loaded(run_dir, "--sampler", "ancestral")  # which shows every text to the network at every step
        system.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    text = torch.tensor(sample_long(system, 2, 42, stride=5, strides=2).ids)
    each, kept = len(seen) // 3, 24 - 5
    assert len(seen) == 3 * each == 3 * (24 if system.method.causal else 3)
    for i, xt in enumerate(seen[each:], each):
        window = text[:, 5 * (i // each) :]
        known = min(kept, xt.shape[1])
        assert torch.equal(xt[:, :known], window[:, :known])
