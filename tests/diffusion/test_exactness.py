"""All methods side by side: with the network that knows the toy's distribution each gives every text its likelihood.

Nothing is drawn: each bound is summed over all x_t and integrated over t. S states x_t, X texts, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion.autoregressive import AutoregressiveProcess
from diffusion.masked import D3PMProcess
from diffusion.score_entropy import TIME_MIN, ScoreEntropyProcess
from diffusion.spindle import SpindleProcess

# What may be missing to the likelihood: rounding, quadrature and, for SEDD, its last step, which takes all positions at
# once. Methods of T steps come near it as T grows.
TOLERANCE = {
    "ar": 1e-12,
    "mdlm": 1e-9,
    "gidd_masks_only": 1e-9,
    "gidd": 1e-6,
    "sedd_absorb": 1e-6,
    "sedd_uniform": 1e-6,
}
STEPPED = {"d3pm": 1e-9, "diffusion_bert_no_spindle": 1e-9, "diffusion_bert": 1e-7}


def bounds(method, predict=None) -> Tensor:
    """The mean of the bound on -log p of each text [X], with the ideal network of a method or another."""
    process, predict, texts = method.process, predict or method, method.toy.texts
    if isinstance(process, AutoregressiveProcess):
        return process.bound(predict, texts, method.toy.free, torch.zeros(9), None).sum(1)
    ids = torch.arange(process.vocab_size)
    states = torch.cartesian_prod(ids, ids)

    def expected(nats: Callable[..., Tensor], t: Tensor) -> Tensor:
        """E over x_t of nats(x0_hat, x_0, x_t, t), summed over positions: [times, X]."""
        x0 = texts.repeat_interleave(len(states), 0).repeat(len(t), 1)
        xt, every_t = states.repeat(len(t) * len(texts), 1), t.repeat_interleave(len(texts) * len(states))
        chance = method.chance(x0, xt, every_t).prod(1)
        each = torch.where(chance > 0, chance * nats(predict(xt, every_t), x0, xt, every_t).sum(1), 0.0)
        return each.view(len(t), len(texts), -1).sum(-1)

    if isinstance(process, D3PMProcess | SpindleProcess):
        return expected(process.integrand, torch.arange(1, process.timesteps + 1).double() / process.timesteps).mean(0)
    start = TIME_MIN if isinstance(process, ScoreEntropyProcess) else 0.0
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.legendre.leggauss(200))
    u = (1 + nodes) / 2  # t is dense at both ends, where GIDD's integrand is steep
    t, dt = u**3 * (10 - 15 * u + 6 * u**2), 15 * (u * (1 - u)) ** 2 * weights
    total = (1 - start) * dt @ expected(process.integrand, start + (1 - start) * t)
    if isinstance(process, ScoreEntropyProcess):

        def last_step(x0_hat: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
            probabilities = process.reverse(x0_hat, xt, t, torch.zeros_like(t))
            return -probabilities.gather(-1, x0[..., None]).squeeze(-1).log()

        total += expected(last_step, torch.tensor([start]).double())[0] + 2 * process.graph.prior_kl(process.sigma_1)
    return total


def limit(of_steps: Callable[[int], Tensor], T: int = 128) -> Tensor:
    """Bounds of T steps carried on to T = infinity, their excess being proportional to 1 / T."""
    return 2 * of_steps(2 * T) - of_steps(T)


def nats(ideal, name: str) -> Tensor:
    """What a method's ideal network gives each text [X], in the limit of many steps where there are steps."""
    if name in STEPPED:
        return limit(lambda T: bounds(ideal(name, timesteps=T)))
    return bounds(ideal(name))


@pytest.mark.parametrize(("name", "tolerance"), (TOLERANCE | STEPPED).items())
def test_the_ideal_network_gives_each_text_its_likelihood(toy, ideal, name, tolerance):
    torch.testing.assert_close(nats(ideal, name), toy.nll, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", STEPPED)
def test_more_steps_only_help(toy, ideal, name):
    gaps = [(toy.p.flatten() @ (bounds(ideal(name, timesteps=T)) - toy.nll)).item() for T in (1, 2, 8, 32, 128)]
    assert gaps == sorted(gaps, reverse=True) and 0 < gaps[-1] < gaps[0] / 100


def test_all_methods_give_the_same_nats_to_one_corpus(toy, ideal, method, generator):
    corpus = torch.multinomial(toy.p.flatten(), 1000, replacement=True, generator=generator())
    total = nats(ideal, method)[corpus].sum().item()
    assert total == pytest.approx(toy.nll[corpus].sum().item(), rel=1e-6)
    assert total / len(corpus) == pytest.approx(toy.golden["entropy"], rel=0.05)


@pytest.mark.parametrize(("name", "is_right"), [("gidd_masks_only", True), ("gidd", False)])
def test_the_ordinary_posterior_fails_where_there_is_uniform_noise(toy, ideal, name, is_right):
    method = ideal(name)
    wrong = bounds(replace(method, answer=type(method).posterior))
    assert ((wrong - toy.nll).abs().max() < 1e-8) if is_right else ((wrong - toy.nll) > 0.1).any()


@pytest.mark.parametrize("name", [*TOLERANCE, "d3pm", "diffusion_bert_no_spindle"])
def test_a_network_that_knows_nothing_spends_log_v_a_token(ideal, name):
    """In any number of steps: positions that have nothing to tell may go together."""
    method = ideal(name, timesteps=5)

    def predict(xt: Tensor, t: Tensor) -> Tensor:
        output = torch.zeros(len(xt), 2, method.process.vocab_size).double()
        output[..., 3:] = -1e3  # the mask
        return method.process.denoised(output, xt, t)

    expected = torch.full((9,), 2 * math.log(3), dtype=torch.float64)
    torch.testing.assert_close(bounds(method, predict), expected, rtol=0, atol=TOLERANCE.get(name, 1e-9))


def test_any_network_has_the_same_nats_under_every_process_of_masks_only(ideal, randn):
    """Also a network that knows little: what it says behind masks is weighed alike by all."""
    log_p = torch.nn.functional.pad(randn(16, 2, 3, dtype=torch.float64).log_softmax(-1), (0, 1), value=-50.0)

    def given(name: str, **options) -> Tensor:
        method = ideal(name, **options)
        # SEDD's network says how much likelier a token is than under a uniform guess.
        output = log_p + (math.log(3) if name == "sedd_absorb" else 0.0)
        return bounds(method, lambda xt, t: method.process.denoised(output[4 * xt[:, 0] + xt[:, 1]], xt, t))

    mdlm = given("mdlm")
    assert mdlm.std() > 0.1
    torch.testing.assert_close(given("gidd_masks_only"), mdlm, rtol=0, atol=1e-9)
    torch.testing.assert_close(given("sedd_absorb"), mdlm, rtol=0, atol=1e-5)
    for name in ("d3pm", "diffusion_bert_no_spindle"):
        torch.testing.assert_close(limit(lambda T, name=name: given(name, timesteps=T)), mdlm, rtol=0, atol=1e-9)
