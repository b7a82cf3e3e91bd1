"""Every sampler of every method with the network that knows the toy: its texts follow p, also where a token is given.

N reverse steps, S states x_t, X texts, V vocabulary; x is [B, L] ids, L = 2.
"""

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from diffusion.guidance import Clamped
from diffusion.randomness import SampleGenerators, sample_seeds
from diffusion.samplers import sample_ancestral
from diffusion.token_samplers import sample_ddpm_cache, sample_euler, sample_first_hitting, sample_left_to_right

WITH_STEPS = (
    "d3pm", "mdlm", "sedd_absorb", "sedd_uniform", "gidd_masks_only", "gidd", "diffusion_bert",
    "diffusion_bert_no_spindle",
)  # fmt: skip
SAMPLED = {
    **{(name, "ancestral"): sample_ancestral for name in ("ar", *WITH_STEPS)},
    ("ar", "left_to_right"): sample_left_to_right,
    ("mdlm", "ddpm_cache"): sample_ddpm_cache,
    ("mdlm", "first_hitting"): sample_first_hitting,
    ("sedd_absorb", "euler"): sample_euler,
    ("sedd_uniform", "euler"): sample_euler,
}
GIVEN = {"nothing": (False, False), "prefix": (True, False), "suffix": (False, True)}


# The law of a chain of reverse steps, by its transition matrices


def law(toy, exact, N: int, held: tuple[bool, bool], euler: bool = False) -> Tensor:
    """Distribution [X] of what N steps make, the held positions being drawn from p."""
    process, V = exact.process, exact.process.vocab_size
    states = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    prior = torch.full((3,), 1 / 3).double() if V == 3 else torch.tensor([0, 0, 0, 1]).double()
    known = [pad(marginal, (0, V - 3)) for marginal in (toy.p.sum(1), toy.p.sum(0))]
    first, second = (own if is_held else prior for own, is_held in zip(known, held, strict=True))
    now = torch.outer(first, second).flatten()
    for t, s in pairwise(process.grid(N)):
        reverse = process.euler if euler and s > 0 else process.reverse
        t, s = (torch.full((len(states),), time).double() for time in (t, s))
        moves = torch.where(torch.tensor(held)[:, None], one_hot(states, V), reverse(exact(states, t), states, t, s))
        moves = (moves[:, 0, :, None] * moves[:, 1, None, :]).flatten(1)  # [S, S]
        now = torch.where(now[:, None] > 0, now[:, None] * moves, 0.0).sum(0)
    table = now.view(V, V)
    assert table[3:].sum() + table[:, 3:].sum() == 0, "a mask is left"
    return table[:3, :3].flatten()


@pytest.mark.parametrize(("name", "euler"), [*product(WITH_STEPS, [False]), *product(WITH_STEPS[2:4], [True])])
def test_the_law_of_many_steps_is_the_distribution(toy, ideal, name, euler):
    exact = ideal(name, timesteps=256)
    off = [(law(toy, exact, N, GIVEN["nothing"], euler) - toy.p.flatten()).abs().sum().item() for N in (16, 64, 256)]
    # What goes in one step is drawn apart: the chance of that is about 1 / N.
    assert 3 < off[0] / off[1] < 6 and 3 < off[1] / off[2] < 6 and off[2] < 5e-3


@pytest.mark.parametrize("given", ["prefix", "suffix"])
@pytest.mark.parametrize("name", WITH_STEPS)
def test_where_one_token_is_given_any_number_of_steps_makes_the_other_exactly(toy, ideal, name, given):
    for N in (1, 3, 8):
        ours = law(toy, ideal(name, clamped=GIVEN[given]), N, GIVEN[given])
        torch.testing.assert_close(ours, toy.p.flatten(), rtol=0, atol=1e-7)


# Samples


def steps(name: str, sampler: str, given: str) -> int:
    """N so large that drawing both positions apart in one step, and Euler's straight lines, do not show."""
    if name == "ar":
        return 2
    return 128 if sampler == "euler" else 64 if given == "nothing" else 8


# What is written from left to right does not know what follows.
CASES = [(*case, given) for case, given in product(SAMPLED, GIVEN) if (case[0], given) != ("ar", "suffix")]


@pytest.mark.parametrize(("name", "sampler", "given"), CASES)
def test_samples_follow_the_distribution_given_what_is_known(toy, ideal, generator, name, sampler, given):
    count, held, draws = 5000, torch.tensor(GIVEN[given]), generator(2)
    truth = toy.texts[torch.multinomial(toy.p.flatten(), count, replacement=True, generator=generator(1))]
    exact = ideal(name, timesteps=64, clamped=GIVEN[given])
    predict_x0 = Clamped(exact, truth, ~held.expand(count, 2))
    x = predict_x0.hold(exact.process.prior((count, 2), draws))
    times = exact.process.grid(steps(name, sampler, given))
    x = predict_x0.hold(SAMPLED[name, sampler](exact.process, predict_x0, x, times, generator=draws))
    assert torch.equal(x[:, held], truth[:, held])
    assert toy.p_value(x) > 1e-3


# Draws


class Watched(SampleGenerators):
    """Keeps the shape and precision of every draw."""

    def __init__(self, seeds):
        super().__init__(seeds)
        self.draws = []

    def draw(self, random, shape, device, dtype):
        self.draws.append((tuple(shape), dtype))
        return super().draw(random, shape, device, dtype)


@pytest.mark.parametrize(("name", "sampler"), SAMPLED)
def test_every_draw_is_one_uniform_a_position_in_double_precision(toy, ideal, name, sampler):
    """Nothing races V noises against each other, and no draw is as coarse as those of single precision."""
    exact, x0, t = ideal(name, timesteps=8), toy.texts, torch.full((9,), 0.5).double()
    in_sampling, in_bound = (Watched(sample_seeds(0, 0, 9)) for _ in range(2))
    process, times = exact.process, exact.process.grid(2 if name == "ar" else 8)
    SAMPLED[name, sampler](process, exact, process.prior((9, 2), in_sampling), times, generator=in_sampling)
    process.bound(exact, x0, toy.free, torch.linspace(0, 0.99, 9), in_bound)
    process.corrupt(x0, t, in_bound)
    assert in_sampling.draws and (in_bound.draws or name == "ar")
    assert {*in_sampling.draws, *in_bound.draws} <= set(product([(9,), (9, 2)], [torch.float64]))
