"""The autoregressive baseline: a likelihood that is one, and texts written with a cache as without."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from diffusion.autoregressive import ERASED, AutoregressiveProcess
from diffusion.denoiser import CausalDenoiser
from diffusion.guidance import Prediction
from diffusion.process import DiffusionError, TokenProcess
from diffusion.randomness import SampleGenerators, sample_seeds
from diffusion.samplers import sample_ancestral
from diffusion.token_samplers import sample_left_to_right

V, MASK = 5, 4  # where there is a mask
NO_TIME = torch.zeros(3, dtype=torch.float64)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "scale_shift"])
def denoiser(request, tiny) -> CausalDenoiser:
    """A network of V ids and 3 classes that has learnt something."""
    return tiny(CausalDenoiser, V, 3, scale_shift=request.param)


def everything(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def nll(process, denoiser, x0, valid, free=None, label=None):
    predict, u = Prediction(process, denoiser, valid, label), torch.zeros(len(x0)).double()
    return process.bound(predict, x0, valid if free is None else free, u, None)


# Likelihood


@pytest.mark.parametrize("changed", range(6))
def test_a_token_changes_only_what_is_predicted_of_later_ones(denoiser, changed):
    x0, valid = torch.tensor([[0, 3, 1, 1, 2, 0]]), everything(1, 6)
    other = x0.clone()
    other[0, changed] = 4
    difference = (denoiser(other, NO_TIME[:1], valid) - denoiser(x0, NO_TIME[:1], valid))[0].abs().amax(-1)
    assert (difference[: changed + 1] == 0).all() and (difference[changed + 1 :] > 1e-3).all()


@pytest.mark.parametrize("mask_id", [None, MASK, 1])
def test_the_likelihoods_of_all_texts_sum_to_one(denoiser, mask_id):
    process = AutoregressiveProcess(V, mask_id)
    ids = torch.tensor([v for v in range(V) if v != mask_id])
    texts = torch.cartesian_prod(ids, ids, ids)
    p = torch.exp(-nll(process, denoiser, texts, everything(*texts.shape)).sum(1))
    assert p.std() > 0.5 * p.mean()  # far from uniform
    assert p.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("mask_id", "ids"), [(None, V), (MASK, V - 1)])
def test_an_untrained_network_spends_log_v_a_token(tiny, mask_id, ids):
    untrained = tiny(CausalDenoiser, V, spoken=False)
    nats = nll(AutoregressiveProcess(V, mask_id), untrained, torch.tensor([[0, 2, 3]]), everything(1, 3))
    torch.testing.assert_close(nats, torch.full((1, 3), math.log(ids)).double(), rtol=1e-6, atol=0)


def test_the_mask_is_never_predicted_and_everything_else_is_as_likely_as_it_was(randn):
    output = randn(2, 3, V)
    output[..., MASK] = 30.0
    log_p = AutoregressiveProcess(V, MASK).denoised(output, torch.zeros(2, 3).long(), NO_TIME[:2])
    assert (log_p[..., MASK] == -torch.inf).all()
    torch.testing.assert_close(log_p[..., :MASK], output[..., :MASK].log_softmax(-1))
    torch.testing.assert_close(AutoregressiveProcess(V).denoised(output, None, None), output.log_softmax(-1))
    assert AutoregressiveProcess(V, MASK).denoised(output.bfloat16(), None, None).dtype == torch.float32


def test_padding_costs_nothing_and_changes_nothing(denoiser):
    process, lengths, label = AutoregressiveProcess(V, MASK), [4, 2, 3], torch.tensor([0, -1, 2])
    x0 = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 0], [1, 0, 2, 0]])
    valid = torch.arange(4) < torch.tensor(lengths)[:, None]
    nats = nll(process, denoiser, x0, valid, label=label)
    wider = nll(process, denoiser, F.pad(x0, (0, 3), value=2), F.pad(valid, (0, 3)), label=label)
    torch.testing.assert_close(wider[:, :4], nats, rtol=1e-5, atol=1e-6)
    assert (wider[:, 4:] == 0).all() and (nats[~valid] == 0).all() and (nats[valid] > 0).all()
    for i, length in enumerate(lengths):
        row = slice(i, i + 1)
        alone = nll(process, denoiser, x0[row, :length], valid[row, :length], label=label[row])
        torch.testing.assert_close(nats[row, :length], alone, rtol=1e-5, atol=1e-6)


def test_given_tokens_cost_nothing_and_tell_what_follows(denoiser):
    process, x0, valid = AutoregressiveProcess(V, MASK), torch.tensor([[0, 1, 2, 3]]), everything(1, 4)
    free = torch.tensor([[False, False, True, True]])
    together, given = nll(process, denoiser, x0, valid), nll(process, denoiser, x0, valid, free)
    assert torch.equal(given, torch.where(free, together, 0.0))


def test_the_loss_is_what_the_bound_counts(denoiser):
    x0, valid, t = torch.tensor([[0, 1, 2], [3, 3, 0]]), everything(2, 3), NO_TIME[:2]
    for process in (AutoregressiveProcess(V), AutoregressiveProcess(V, MASK)):
        assert torch.equal(process.corrupt(x0, t), x0)
        loss = process.loss(denoiser(x0, t, valid), x0, x0, t)
        torch.testing.assert_close(loss.double(), nll(process, denoiser, x0, valid), rtol=1e-5, atol=0)


# Writing


@pytest.mark.parametrize("label", [None, torch.tensor([2, -1, 0])])
def test_logits_with_a_cache_are_those_without(denoiser, label):
    x0, cache = torch.tensor([[0, 1, 2, 3, 1, 1], [3, 3, 0, 2, 0, 1], [1, 1, 1, 1, 1, 1]]), None
    whole = denoiser(x0, NO_TIME, everything(3, 6), label=label)
    for i in range(6):
        logits, cache = denoiser.next(x0[:, :i], cache, label)
        torch.testing.assert_close(logits, whole[:, i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask_id", [None, MASK])
def test_a_cache_changes_no_token(denoiser, mask_id):
    process, L = AutoregressiveProcess(V, mask_id), 40
    predict_x0 = Prediction(process, denoiser, everything(3, L), torch.tensor([0, 1, -1]))
    x = process.prior((3, L), None)
    x[1, 5], x[1, 20] = 2, 0  # tokens that stand there already are kept
    with_cache, without = (
        sampler(process, predict_x0, x, process.grid(L), generator=SampleGenerators(sample_seeds(0, 0, 3)))
        for sampler in (sample_left_to_right, sample_ancestral)
    )
    assert torch.equal(with_cache, without) and with_cache[1, [5, 20]].tolist() == [2, 0]
    assert len(set(with_cache.flatten().tolist())) == (V if mask_id is None else V - 1)


@pytest.mark.parametrize("sampler", [sample_left_to_right, sample_ancestral])
def test_texts_follow_their_distribution(toy, ideal, sampler, generator):
    method = ideal("ar")
    x = method.process.prior((20_000, 2), None)
    x = sampler(method.process, method, x, method.process.grid(2), generator=generator())
    assert toy.p_value(x) > 1e-3


def test_texts_are_written_as_often_as_their_likelihood_says(tiny, generator):
    """By a network with its cache, not one that is known beforehand."""
    process, denoiser, n = AutoregressiveProcess(4, 2), tiny(CausalDenoiser, 4), 10_000
    texts = torch.cartesian_prod(*[torch.tensor([0, 1, 3])] * 3)
    p = torch.exp(-nll(process, denoiser, texts, everything(27, 3)).sum(1)).detach()
    predict_x0, x = Prediction(process, denoiser, everything(n, 3)), process.prior((n, 3), None)
    written = sample_left_to_right(process, predict_x0, x, [], generator=generator())
    counts = (written[:, None] == texts).all(-1).sum(0)
    assert counts.sum() == n and p.max() > 3 * p.min()
    assert stats.chisquare(counts.numpy(), (n * p / p.sum()).numpy()).pvalue > 1e-3


def test_each_step_writes_the_next_position(generator):
    """Of a long text too, where times are not quite multiples of 1 / L."""
    process, L = AutoregressiveProcess(3), 250
    x, times = process.prior((2, L), None), process.grid(L)
    assert (x == ERASED).all() and x.dtype == torch.int64
    log_p = torch.zeros(2, L, 3).log_softmax(-1)
    for i in range(L):
        t, s = (torch.full((2,), time).double() for time in times[i : i + 2])
        x = process.step(log_p, x, t, s, generator(i))
        assert (x[:, : i + 1] >= 0).all() and (x[:, i + 1 :] == ERASED).all()


@pytest.mark.parametrize("steps", [1, 4, 6, 10])
def test_a_step_that_is_not_one_position_is_refused(steps, generator):
    process = AutoregressiveProcess(3)
    with pytest.raises(ValueError, match="one at a time"):
        sample_ancestral(
            process, lambda xt, t: torch.zeros(1, 5, 3), process.prior((1, 5), None), process.grid(steps),
            generator=generator(),
        )  # fmt: skip


def test_it_is_a_token_process_without_noise():
    process = AutoregressiveProcess(3)
    assert isinstance(process, TokenProcess) and process.grid(2) == [1.0, 0.5, 0.0]
    assert process.times(torch.tensor([0.2, 0.7]), range(1)).tolist() == [0, 0]
    with pytest.raises(DiffusionError, match="--sampling_timesteps 0"):
        process.grid(0)
