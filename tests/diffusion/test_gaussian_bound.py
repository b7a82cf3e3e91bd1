"""The Gaussian bound: on atoms whose exact denoiser and decoder are known it is their likelihood, else above it.

A atoms, K draws.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from diffusion.denoiser import LatentDenoiser
from diffusion.gaussian import GaussianProcess
from diffusion.gaussian_bound import (
    at_all_steps,
    costs_after,
    draws_of_diffusion,
    log_snr,
    prior_nats,
    spread_steps,
    squared_error,
    step_weights,
)
from diffusion.guidance import own_estimate
from diffusion.randomness import SampleGenerators, sample_seeds
from diffusion.time_density import proposal

ATOMS, COPIES, DRAWS = 16, 400, 16


@dataclass(frozen=True)
class Atoms:
    """x0 [A, L, D] that occur with chances p [A], and all that follows from a process exactly."""

    process: GaussianProcess
    x0: Tensor
    p: Tensor

    @property
    def valid(self) -> Tensor:
        return torch.ones(self.x0.shape[:2], dtype=torch.bool)

    def log_posterior(self, xt: Tensor, t: Tensor) -> Tensor:
        """log p(atom | x_t) [B, A]."""
        bar, flat = self.process.alpha_bar(t)[:, None], self.x0.flatten(1)
        match = bar.sqrt() * (xt.flatten(1) @ flat.T) - bar * flat.square().sum(1) / 2
        return (self.p.log() + match / (1 - bar)).log_softmax(1)

    def mean(self, xt: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t] [B, L, D], the best there is."""
        return (self.log_posterior(xt, t).exp() @ self.x0.flatten(1)).view_as(xt)

    def chances(self, first: int) -> Tensor:
        """The proposal for the steps after the first, from costs measured as for a real model."""
        generator, steps, T = torch.Generator().manual_seed(1), spread_steps(self.process, 24), self.process.timesteps
        x0, valid, errors = self.x0.repeat(20, 1, 1), self.valid.repeat(20, 1), []
        for step in steps:
            t = torch.full((len(x0),), step / T)
            errors.append(squared_error(self.mean(self.process.corrupt(x0, t, generator), t), x0, valid).mean().item())
        return proposal((step_weights(self.process) * at_all_steps(self.process, steps, errors))[first:])

    def bound(self, predict, first: int, chances: Tensor, draws: int = DRAWS, copies: int = COPIES) -> Tensor:
        """The bound [copies, A], each of so many draws, that the exact decoder gives with some network."""
        generator, T = torch.Generator().manual_seed(0), self.process.timesteps
        x0, valid = self.x0.repeat(copies, 1, 1), self.valid.repeat(copies, 1)
        t, atom = torch.full((len(x0),), first / T), torch.arange(len(self.x0)).repeat(copies)
        nats = prior_nats(self.process, x0, valid)
        nats = nats + draws_of_diffusion(self.process, predict, x0, valid, first, chances, draws, generator).mean(1)
        for _ in range(draws):
            read = self.log_posterior(self.process.corrupt(x0, t, generator), t)
            nats = nats - read.gather(1, atom[:, None]).squeeze(1) / draws
        return nats.view(copies, -1)


@pytest.fixture(scope="module")
def atoms(gaussian):
    """Sixteen atoms in R^8 by the shape [L, D] of one; `rare` makes some far rarer than others."""

    def make(timesteps: int = 1000, shape: tuple[int, int] = (2, 4), rare: bool = False, schedule: str = "cosine"):
        random = torch.Generator().manual_seed(0)
        x0 = torch.randn(ATOMS, *shape, generator=random, dtype=torch.float64)
        p = (torch.randn(ATOMS, generator=random, dtype=torch.float64) * rare).softmax(0)
        return Atoms(gaussian(beta_schedule=schedule, timesteps=timesteps), x0, p)

    return make


def first_of(process: GaussianProcess, log_snr_of_first: float = 0.0) -> int:
    """The step of about this log SNR."""
    return int((log_snr(process) - log_snr_of_first).abs().argmin()) + 1


def even(process: GaussianProcess, first: int) -> Tensor:
    n = process.timesteps - first
    return torch.full((n,), 1 / max(n, 1), dtype=torch.float64)


def gap(toy: Atoms, found: Tensor) -> tuple[float, float]:
    """How far bounds [copies, A] are above the likelihood on average, and the standard error of that."""
    off = (found + toy.p.log()) @ toy.p
    return off.mean().item(), off.std().item() / len(off) ** 0.5


def assert_likelihood(toy: Atoms, found: Tensor, error: float = 0.02) -> None:
    """Of each atom within its noise, and on average within 0.02 and noise that is no larger than `error`."""
    off = found + toy.p.log()
    assert (off.mean(0).abs() < 5 * off.std(0) / len(off) ** 0.5 + 0.02).all()
    mean, noise = gap(toy, found)
    assert noise < error and abs(mean) < 0.02 + 3 * noise


# With everything exact


@pytest.mark.parametrize(("shape", "rare"), [((1, 8), False), ((2, 4), True)])
def test_with_exact_parts_it_is_the_likelihood_of_every_atom(atoms, shape, rare):
    toy = atoms(shape=shape, rare=rare)
    first = first_of(toy.process)
    found = toy.bound(toy.mean, first, toy.chances(first), draws=64)
    assert_likelihood(toy, found, error=0.005)
    assert abs(gap(toy, found)[0]) < 0.02
    if not rare:
        assert (found @ toy.p).mean().item() == pytest.approx(math.log(ATOMS), abs=0.02)


@pytest.mark.parametrize("log_snr_of_first", [2.0, -2.0, -1000.0])
def test_wherever_the_decoder_takes_over(atoms, log_snr_of_first):
    """Where it reads pure noise too: then there is no other part, and it is a model of atoms by itself."""
    toy = atoms(rare=True)
    first = first_of(toy.process, log_snr_of_first)
    assert (first == 1000) == (log_snr_of_first == -1000)
    assert_likelihood(toy, toy.bound(toy.mean, first, toy.chances(first)))


def test_any_proposal_gives_the_same_mean_and_a_good_one_less_noise(atoms):
    toy = atoms(schedule="tan")  # whose steps are worth very unequal nats
    first = first_of(toy.process, 2.0)
    steep = torch.arange(1000 - first, 0, -1).double() ** 4
    mean, noise = gap(toy, toy.bound(toy.mean, first, toy.chances(first)))
    for chances in (even(toy.process, first), steep / steep.sum()):
        other, others_noise = gap(toy, toy.bound(toy.mean, first, chances))
        assert abs(mean - other) < 4 * math.hypot(noise, others_noise)
        assert noise < 0.02 and noise < others_noise


# With a network that is not exact


@dataclass
class Routed(nn.Module):
    """Half of what it puts out is the estimate it is given, zeros where it is given none and `honest` is False."""

    atoms: Atoms
    honest: bool
    self_condition = True

    def __call__(self, xt, t, valid, x0_prev=None, label=None, at=None):
        exact = self.atoms.mean(xt, t)
        if x0_prev is None:
            return exact if self.honest else exact / 2
        return (exact + x0_prev) / 2


@pytest.mark.parametrize("honest", [True, False])
def test_an_estimate_that_is_fed_back_brings_no_false_good_news(atoms, honest):
    """Its own estimate of the same x_t, never one of another x_t: the likelihood again, or a bound above it."""
    toy = atoms(rare=True)
    first = first_of(toy.process)
    predict = own_estimate(toy.process, Routed(toy, honest), toy.valid)
    found = toy.bound(predict, first, toy.chances(first))
    if honest:
        assert_likelihood(toy, found)
    else:  # three quarters of the exact estimate
        assert gap(toy, found)[0] > 0.1


def test_few_steps_only_make_it_looser(atoms):
    gaps = []
    for timesteps in (16, 32, 128, 1000):
        toy = atoms(timesteps, rare=True)
        first = first_of(toy.process, 2.0)
        gaps.append(gap(toy, toy.bound(toy.mean, first, toy.chances(first), draws=32)))
    for (coarse, noise), (fine, finer_noise) in pairwise(gaps):
        assert min(coarse + 3 * noise, fine + 3 * finer_noise) > 0 and fine < coarse + 3 * (noise + finer_noise)
    assert gaps[0][0] > 0.2 and abs(gaps[-1][0]) < 0.02 + 3 * gaps[-1][1]


def test_what_a_silent_network_costs_is_known_in_closed_form(gaussian, randn):
    process, first = gaussian(), 200
    x0, valid = randn(3, 5, 4, dtype=torch.float64), torch.arange(5) < torch.tensor([[5], [1], [3]])
    chances = step_weights(process)[first:]
    chances = chances / chances.sum()
    nats = draws_of_diffusion(
        process, lambda xt, t: torch.zeros_like(xt), x0, valid, first, chances, 6, torch.Generator().manual_seed(0)
    )
    snr = log_snr(process).exp()
    squares = (x0.square().sum(2) * valid).sum(1)
    expected = (snr[first - 1] - snr[-1]) / 2 * squares
    torch.testing.assert_close(nats, expected[:, None].expand(3, 6), rtol=1e-12, atol=0)


# The parts


@pytest.mark.parametrize("schedule", ["linear", "cosine", "tan"])
def test_the_prior_costs_the_divergence_of_two_normal_distributions(gaussian, randn, schedule):
    process = gaussian(beta_schedule=schedule, timesteps=50)
    x0, valid = randn(2, 3, 4, dtype=torch.float64), torch.tensor([[True] * 3, [True, False, False]])
    bar = process.alpha_bar(torch.ones(1))
    q = torch.distributions.Normal(bar.sqrt() * x0, (1 - bar).sqrt())
    each = torch.distributions.kl_divergence(q, torch.distributions.Normal(0, 1)).sum(2) * valid
    torch.testing.assert_close(prior_nats(process, x0, valid), each.sum(1).double(), rtol=1e-5, atol=1e-12)


def test_dimensions_that_are_always_zero_cost_nothing(atoms):
    toy = atoms()
    wide = Atoms(toy.process, torch.cat([toy.x0, torch.zeros_like(toy.x0)], dim=2), toy.p)
    first = first_of(toy.process)
    assert_likelihood(wide, wide.bound(wide.mean, first, wide.chances(first)))
    torch.testing.assert_close(
        prior_nats(toy.process, wide.x0, wide.valid), prior_nats(toy.process, toy.x0, toy.valid), rtol=0, atol=1e-5
    )


def test_weights_add_up_to_the_signal_lost(gaussian):
    process = gaussian(timesteps=40)
    bar = process.schedule.table[1:]
    snr = bar / (1 - bar)
    torch.testing.assert_close(log_snr(process), snr.log())
    weights = step_weights(process)
    assert weights[0] == torch.inf and (weights > 0).all()
    torch.testing.assert_close(weights[1:].sum(), (snr[0] - snr[-1]) / 2)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "tan"])
def test_measured_steps_are_even_in_log_snr_and_their_costs_are_met(gaussian, schedule):
    process = gaussian(beta_schedule=schedule)
    steps = spread_steps(process, 24)
    assert steps[0] == 1 and steps[-1] == 1000 and steps == sorted(set(steps)) and len(steps) >= 18
    errors = [float(i + 1) for i in range(len(steps))]
    known = at_all_steps(process, steps, errors)
    assert known[torch.tensor(steps) - 1].tolist() == pytest.approx(errors) and known.diff().min() >= 0
    costs = step_weights(process) * known
    assert costs_after(costs).tolist() == pytest.approx([costs[i:].sum().item() for i in range(1, 1001)])
    chances = proposal(costs[7:])
    assert chances.sum().item() == pytest.approx(1) and (chances >= 0.1 / len(chances)).all()
    assert spread_steps(gaussian(timesteps=1), 24) == [1]


def test_no_text_depends_on_its_batch_or_padding(gaussian, tiny, randn):
    process, lengths, seeds = gaussian(beta_schedule="tan"), torch.tensor([6, 2, 4]), sample_seeds(0, 0, 3)
    denoiser, x0 = tiny(LatentDenoiser, 8, self_condition=True), randn(3, 11, 8)

    def draws(rows: list[int], width: int) -> Tensor:
        valid = (torch.arange(11) < lengths[rows][:, None])[:, :width]
        clean = (x0[rows, :width] * valid[..., None]).contiguous()
        random = SampleGenerators([seeds[i] for i in rows], lengths[rows].tolist())
        predict = own_estimate(process, denoiser, valid)
        return draws_of_diffusion(process, predict, clean, valid, 100, even(process, 100), 5, random)

    with torch.no_grad():
        together = draws([0, 1, 2], 6)
        torch.testing.assert_close(draws([0, 1, 2], 11), together, rtol=1e-4, atol=1e-4)
        for i in range(3):
            torch.testing.assert_close(draws([i], int(lengths[i])), together[[i]], rtol=1e-4, atol=1e-4)
    assert together.dtype == torch.float64 and together.std() > 0.01
