"""Draws of the bound: their mean is the likelihood, or the bound, whatever the batch and its padding."""

import pytest
import torch

from diffusion.denoiser import CausalDenoiser, TokenDenoiser
from diffusion.guidance import Prediction
from diffusion.likelihood import draws_of_bound
from diffusion.randomness import SampleGenerators, sample_seeds

COPIES, DRAWS = 2000, 16


def assert_mean(draws: torch.Tensor, expected: torch.Tensor):
    """Draws [COPIES * X, DRAWS] of X texts: copies are independent, the draws of one are not."""
    off = draws.mean(1).view(COPIES, -1) - expected
    for values, least in ((off, 1.0), (off.mean(1, keepdim=True), 0.1)):  # of each text, and of all
        error = 4 * values.std(0) / COPIES**0.5 + 1e-9
        assert (values.mean(0).abs() <= error).all() and (error < least).all()


def test_the_mean_is_the_likelihood_or_the_known_bound(toy, ideal, method, generator):
    figures = {
        "d3pm": toy.golden["d3pm_absorbing_T_step_elbo"]["T64"]["per_x"],
        "diffusion_bert": toy.golden["diffusionbert_type_level_T_step_elbo"]["lambda_0.3"]["T64"],
        "diffusion_bert_no_spindle": toy.golden["diffusionbert_type_level_T_step_elbo"]["lambda_0"]["T64"],
    }
    expected = torch.tensor(figures[method]).flatten() if method in figures else toy.nll
    exact = ideal(method, timesteps=64)
    x0, free = toy.texts.repeat(COPIES, 1), toy.free.repeat(COPIES, 1)
    draws = draws_of_bound(exact.process, exact, x0, free, DRAWS, generator())
    assert draws.shape == (9 * COPIES, DRAWS) and draws.dtype == torch.float64
    assert_mean(draws, expected)


@pytest.mark.parametrize("place", [0, 1])
def test_what_is_given_costs_nothing_and_the_rest_its_conditional_likelihood(toy, ideal, method, generator, place):
    """One free position: a bound of few steps is tight as well."""
    exact = ideal(method, timesteps=8, clamped=(place == 0, place == 1))
    x0, free = toy.texts.repeat(COPIES, 1), (torch.arange(2) != place).expand(9 * COPIES, 2)
    draws = draws_of_bound(exact.process, exact, x0, free, DRAWS, generator())
    given = toy.p.sum(1 - place, keepdim=True)
    if (method, place) == ("ar", 1):  # does not look at what follows
        given = toy.p / toy.p.sum(1, keepdim=True)
    assert_mean(draws, -(toy.p / given).log().flatten())


def test_the_draws_of_a_text_are_spread_evenly_from_an_offset_of_its_own(generator):
    class Recorder:
        seen = []

        def bound(self, predict, x0, free, u, generator):
            self.seen.append(u)
            return u[:, None] * torch.tensor([1.0, 10.0, 100.0])

    draws = draws_of_bound(Recorder(), None, torch.zeros(2000, 3), None, 8, generator())
    u = torch.stack(Recorder.seen, 1)
    torch.testing.assert_close(draws, 111 * u)
    assert u.dtype == torch.float64 and u.min() >= 0 and u.max() < 1
    torch.testing.assert_close(u.sort(1).values.diff(dim=1), torch.full((2000, 7), 1 / 8).double())
    offset = u.amin(1)
    assert len(offset.unique()) == 2000 and offset.mean().item() == pytest.approx(1 / 16, abs=4e-3)


def test_no_text_depends_on_its_batch_or_padding(ideal, method, tiny, generator):
    process, lengths = ideal(method).process, torch.tensor([6, 2, 4])
    denoiser = tiny(CausalDenoiser if method == "ar" else TokenDenoiser, process.vocab_size)
    x0, place, seeds = torch.randint(3, (3, 11), generator=generator()), torch.arange(11), sample_seeds(0, 0, 3)

    def draws(rows: list[int], width: int) -> torch.Tensor:
        valid = (place < lengths[rows][:, None])[:, :width]
        free = valid & (place > 0)[:width]  # the first token is given
        random = SampleGenerators([seeds[i] for i in rows], lengths[rows].tolist())
        return draws_of_bound(process, Prediction(process, denoiser, valid), x0[rows, :width], free, 5, random)

    with torch.no_grad():
        together = draws([0, 1, 2], 6)
        torch.testing.assert_close(draws([0, 1, 2], 11), together, rtol=1e-4, atol=1e-5)
        for i in range(3):
            torch.testing.assert_close(draws([i], int(lengths[i])), together[[i]], rtol=1e-4, atol=1e-5)
    assert together.std() > 0.01
