"""Likelihood of a split: what is counted, with models that know nothing and so cost log V nats a token, exactly."""

import math

import pytest
import torch

from scripts.composition.build import build
from scripts.composition.methods import METHODS
from scripts.evaluation.likelihood import split_likelihood

DIFFUSION = [name for name, method in METHODS.items() if method.on_tokens and not method.causal]


@pytest.fixture
def ignorant(loaded):
    """ignorant(run_dir, flags) is the system of a run before training: all tokens are alike to it."""

    def load(run_dir, *more):
        system = loaded(run_dir, *more)
        fresh = build(system.options, system.corpus, system.space)
        fresh.denoiser.eval()
        return fresh

    return load


def log_tokens(system) -> float:
    """Nats of a token of which nothing is known but that it is none of the tokenizer's mask."""
    codec = system.space.codec
    return math.log(codec.clean_vocab_size - (codec.mask_id < codec.clean_vocab_size))


def length_nats(system) -> float:
    """Nats of the lengths of all test texts."""
    return system.space.lengths.nll(torch.from_numpy(system.data("test").split.target_lengths)).sum().item()


@pytest.mark.parametrize("tokenizer", ["bart-demo", "gpt2-demo"])  # with a mask of its own, and without
def test_ar_pays_for_tokens_and_not_for_lengths(small_run, ignorant, tokenizer):
    system = ignorant(small_run("ar", f"--tokenizer {tokenizer}"))
    row = split_likelihood(system, "test")
    assert row["nats_per_token"] == pytest.approx(log_tokens(system), abs=1e-6)
    assert row["nats_per_token_std"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("tokenizer", ["bart-demo", "gpt2-demo"])
def test_mdlm_pays_for_tokens_and_once_for_each_length(small_run, ignorant, tokenizer):
    system = ignorant(small_run("mdlm", f"--tokenizer {tokenizer}"))
    row = split_likelihood(system, "test")
    expected = log_tokens(system) + length_nats(system) / row["likelihood_tokens"]
    assert row["nats_per_token"] == pytest.approx(expected, abs=1e-6)
    assert row["nats_per_token_draws"] == pytest.approx(0, abs=1e-6)  # however many are masked
    tokens = [min(length, 24) for length in system.space.codec.token_lengths(system.corpus.test.texts)]
    assert row["likelihood_tokens"] == sum(tokens) and min(tokens) < max(tokens)
    codec = system.space.codec
    read = codec.encode(system.corpus.test.texts)
    words = sum(len(text.split()) for text in codec.decode(read.x0, read.valid))
    assert row["nats_per_word"] * words == pytest.approx(row["nats_per_sequence"] * 30)


FLAGS = {
    "d3pm": "--zero_mask_prob",
    "gidd": "--p_uniform 0.2",  # a uniform guess is right however much a token has been replaced
    "diffusion_bert": "--spindle none",
}


@pytest.mark.parametrize(
    ("method", "flags"), [*((name, FLAGS.get(name, "")) for name in DIFFUSION), ("sedd", "--graph uniform")]
)
def test_bounds_of_a_uniform_guess_are_those_of_mdlm_on_average(small_run, ignorant, method, flags):
    """The data might as well be uniform, so every bound is tight up to the noise of its draws."""
    system = ignorant(small_run(method, flags), "--likelihood_draws", "150")
    row = split_likelihood(system, "test")
    clean = math.log(system.space.codec.clean_vocab_size) if "uniform" in flags.split() else log_tokens(system)
    expected = clean + length_nats(system) / row["likelihood_tokens"]
    assert length_nats(system) / row["likelihood_tokens"] > 0.1  # so that lengths forgotten or paid twice are seen
    assert row["nats_per_token"] == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("tokenizer", ["bart-demo", "gpt2-demo"])  # the PAD of the second is its EOS
def test_written_padding_costs_nats_and_counts_for_nothing(small_run, ignorant, tokenizer):
    system = ignorant(small_run("mdlm", f"--tokenizer {tokenizer} --lengths modelled"))
    row = split_likelihood(system, "test")
    drawn = ignorant(small_run("mdlm", f"--tokenizer {tokenizer}"))
    assert row["likelihood_tokens"] == split_likelihood(drawn, "test")["likelihood_tokens"]
    assert row["nats_per_sequence"] == pytest.approx(24 * log_tokens(system), abs=1e-5)


def test_what_is_cut_off_counts_for_nothing(small_run, ignorant):
    """Neither as a word nor as a character, as it is not scored either."""
    system = ignorant(small_run("mdlm", "--max_length 12", trunk="--tokenizer char --tx_dim 64 --tx_depth 1"))
    row, texts = split_likelihood(system, "test"), system.corpus.test.texts
    assert min(map(len, texts)) > 11
    total = row["nats_per_sequence"] * len(texts)
    assert row["likelihood_tokens"] == 12 * len(texts)
    assert row["bits_per_character"] == pytest.approx(total / math.log(2) / (11 * len(texts)))
    assert row["nats_per_word"] == pytest.approx(total / sum(len(text[:11].split()) for text in texts))


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.on_tokens])
def test_a_text_costs_the_same_in_any_batch(small_run, loaded, method):
    """However long its neighbours are: padding is not seen, and every text has random numbers of its own."""
    system = loaded(small_run(method))
    row = split_likelihood(system, "test")
    system.options.training.eval_batch_size = 7
    assert split_likelihood(system, "test") == pytest.approx(dict(row), rel=1e-6, nan_ok=True)


def test_more_draws_change_the_bound_by_their_noise_alone(small_run, loaded):
    run_dir = small_run("mdlm")
    few, many = (
        split_likelihood(system, "test")
        for system in (loaded(run_dir, "--likelihood_draws", draws) for draws in ("4", "64"))
    )
    assert (few["draws"], many["draws"]) == (4, 64)
    assert many["nats_per_token_draws"] < few["nats_per_token_draws"] / 2
    assert abs(few["nats_per_token"] - many["nats_per_token"]) < 4 * few["nats_per_token_draws"]


def test_a_temperature_of_the_samples_does_not_change_the_model(small_run, loaded):
    run_dir = small_run("ar")
    plain, sharp = (loaded(run_dir, *flags) for flags in ((), ("--temperature", "0.5")))
    assert split_likelihood(plain, "test") == split_likelihood(sharp, "test")
