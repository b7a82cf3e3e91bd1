"""An enumerable distribution of texts, and every token process with the network that knows it; figures and draws.

X texts (all of them), B batch, L = 2 positions, N = 3 clean tokens with ids 0..2, mask id 3 where a process has one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import one_hot, pad

from diffusion.autoregressive import AutoregressiveProcess
from diffusion.denoiser import Denoiser, DenoiserOptions
from diffusion.gaussian import GaussianOptions, GaussianProcess
from diffusion.graphs import AbsorbingGraph, UniformGraph, transition_into
from diffusion.interpolating import InterpolatingProcess
from diffusion.masked import D3PMProcess, MaskedProcess
from diffusion.positions import Positions
from diffusion.process import Predict, TokenProcess
from diffusion.score_entropy import ScoreEntropyProcess
from diffusion.spindle import SpindleProcess, TypeDeviation
from diffusion.survival import geometric, loglinear

GOLDEN = Path(__file__).parents[1] / "golden"

# Draws


@pytest.fixture(scope="session")
def generator():
    """A generator by its seed."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def randn(generator):
    """Normal draws of a shape by their seed."""
    return lambda *shape, seed=0, dtype=torch.float32: torch.randn(*shape, generator=generator(seed), dtype=dtype)


# Networks


@pytest.fixture(scope="session")
def predictor():
    """A predictor for samplers and bounds out of a function (xt, t) that answers for all positions."""

    def make(function: Callable[[Tensor, Tensor], Tensor]) -> Predict:
        return lambda xt, t, at=None: function(xt, t) if at is None else at.of(function(xt, t))

    return make


@pytest.fixture(scope="session")
def tiny(randn):
    """A tiny denoiser of a class in evaluation mode; `spoken` gives every layer weights, as training would."""

    def make(kind: type, width: int, classes: int = 0, *, spoken: bool = True, **options) -> Denoiser:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            denoiser = kind(width, DenoiserOptions(tx_dim=64, tx_depth=2, **options), classes)
        with torch.no_grad():
            for i, parameter in enumerate(denoiser.parameters() if spoken else ()):
                parameter.add_(0.1 * randn(*parameter.shape, seed=i))
        return denoiser.eval()

    return make


# Gaussian


@pytest.fixture(scope="session")
def gaussian():
    """The Gaussian process of some options."""
    return lambda **options: GaussianProcess.from_options(GaussianOptions(**options))


@pytest.fixture(scope="session")
def golden_arrays():
    """Loads arrays of golden/ by name."""

    def load(name: str) -> dict[str, Tensor]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    return load


@pytest.fixture(scope="session")
def assert_close():
    """Compares arrays by their largest difference over the largest value."""

    def compare(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
        assert ((ours - theirs).abs().max() / theirs.abs().max()).item() <= tolerance

    return compare


# The toy


@dataclass(frozen=True)
class Toy:
    """p(x1, x2) [N, N] in float64, given explicitly, and what follows from it exactly."""

    p: Tensor
    golden: dict  # figures from independent evaluations: see golden/README.md

    mask_id = 3

    @property
    def texts(self) -> Tensor:
        """All texts [X, L], in the order of p.flatten()."""
        n = len(self.p)
        return torch.cartesian_prod(torch.arange(n), torch.arange(n))

    @cached_property
    def nll(self) -> Tensor:
        """-log p(x) of each text [X] in nats."""
        return -self.p.flatten().log()

    @property
    def free(self) -> Tensor:
        """Every position of every text [X, L]."""
        return torch.ones(self.texts.shape, dtype=torch.bool)

    def posterior(self, seen: Tensor) -> Tensor:
        """p(x_i = v | x_t) [B, L, N] where seen [B, L, N] is q(x_t at j | x_0 at j = v)."""
        joint = self.p * seen[:, 0, :, None] * seen[:, 1, None, :]
        return torch.stack([self._normalised(joint.sum(2)), self._normalised(joint.sum(1))], dim=1)

    def cavity(self, seen: Tensor) -> Tensor:
        """p(x_i = v | x_t at the other positions) [B, L, N]: the leave-one-out posterior."""
        first = (self.p * seen[:, 1, None, :]).sum(2)
        second = (self.p * seen[:, 0, :, None]).sum(1)
        return torch.stack([self._normalised(first), self._normalised(second)], dim=1)

    def masked_posterior(self, xt: Tensor) -> Tensor:
        """p(x_i = v | x_t) [B, L, N] where x_t [B, L] keeps some tokens and hides the others behind mask_id."""
        n = len(self.p)
        known = one_hot(xt.clamp(max=n - 1), n).double()
        return self.posterior(torch.where((xt == self.mask_id)[..., None], 1.0, known))

    def log_masked_posterior(self, xt: Tensor) -> Tensor:
        """log of `masked_posterior` with a column of -inf for the mask, [B, L, N + 1]: what `denoised` would give."""
        return pad(self.masked_posterior(xt), (0, 1)).log()

    def p_value(self, samples: Tensor) -> float:
        """How well samples [B, L] fit p: the p-value of Pearson's chi-squared test over all texts."""
        n = len(self.p)
        counts = torch.bincount(samples[:, 0] * n + samples[:, 1], minlength=n * n)
        assert counts.sum() == len(samples) and len(counts) == n * n, "a sample is not a text"
        return float(stats.chisquare(counts.numpy(), (self.p.flatten() * len(samples)).numpy()).pvalue)

    @staticmethod
    def _normalised(joint: Tensor) -> Tensor:
        return joint / joint.sum(-1, keepdim=True)


@pytest.fixture(scope="session")
def toy() -> Toy:
    figures = json.loads((GOLDEN / "discrete" / "toy_exact.json").read_text(encoding="utf-8"))
    return Toy(torch.tensor(figures["p"], dtype=torch.float64), figures)


@pytest.fixture(scope="session")
def discrete_golden():
    """Loads figures of golden/discrete by name."""
    return lambda name: json.loads((GOLDEN / "discrete" / f"{name}.json").read_text(encoding="utf-8"))


# Every token process with the network that knows the toy


@dataclass(frozen=True)
class Ideal:
    """A process and its ideal network, as samplers and bounds call it: where `clamped` [L], x_t is known to be x_0."""

    toy: Toy
    process: TokenProcess
    chance: Callable[[Tensor, Tensor, Tensor], Tensor]  # (x0, xt, t) -> q(x_t | x_0) [B, L] of each position
    answer: Callable[["Ideal", Tensor, Tensor, Tensor], Tensor]  # (self, seen, xt, t) -> what `denoised` would give
    clamped: tuple[bool, bool] = (False, False)

    def __call__(self, xt: Tensor, t: Tensor, at: Positions | None = None) -> Tensor:
        seen = torch.stack([self.chance(torch.full_like(xt, v), xt, t) for v in range(3)], dim=-1)
        known = one_hot(xt.clamp(0, 2), 3).double()
        answer = self.answer(self, torch.where(torch.tensor(self.clamped)[:, None], known, seen), xt, t)
        return answer if at is None else at.of(answer)

    def rows(self, index: Tensor) -> "Ideal":
        return self

    def next(self, written: Tensor, cache: Any) -> tuple[Tensor, Any]:
        x = pad(written, (0, 2 - written.shape[1]))
        return self(x, torch.zeros(len(x)))[:, written.shape[1]], cache

    def posterior(self, seen: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return pad(self.toy.posterior(seen), (0, 1)).log()

    def cavity(self, seen: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return pad(self.toy.cavity(seen), (0, 1)).log()

    def score(self, seen: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        every = torch.arange(self.process.vocab_size).expand(len(xt), -1)
        arrive = transition_into(self.process.graph, every, self.process.sigma(t))[..., :3]  # [B, x_t, x_0]
        q = self.toy.cavity(seen) @ arrive.mT
        return (q / q.gather(-1, xt[..., None])).log()

    def chain_rule(self, seen: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return self.toy.cavity(torch.where(torch.tensor([True, False])[:, None], seen, 1.0)).log()


def _masking(move: Callable[[Tensor, Tensor], Tensor]):
    """q(x_t | x_0) where tokens are masked with chance move(x0, t)."""
    return lambda x0, xt, t: torch.where(xt == Toy.mask_id, move(x0, t), (1 - move(x0, t)) * (xt == x0))


def _mdlm(toy: Toy, timesteps: int) -> Ideal:
    process = MaskedProcess(4, 3, loglinear(epsilon=0))
    return Ideal(toy, process, _masking(lambda x0, t: process.survival.move_chance(t)[:, None]), Ideal.posterior)


def _d3pm(toy: Toy, timesteps: int) -> Ideal:
    process = D3PMProcess(4, 3, timesteps=timesteps)
    return Ideal(toy, process, _masking(lambda x0, t: t.double()[:, None]), Ideal.posterior)


def _diffusion_bert(toy: Toy, timesteps: int, spindle_lambda: float = 0.3) -> Ideal:
    deviation = torch.tensor([*toy.golden["diffusionbert_type_level_T_step_elbo"]["deviation_d"], 0.0]).double()
    process = SpindleProcess(4, 3, TypeDeviation(deviation), spindle_lambda=spindle_lambda, timesteps=timesteps)
    return Ideal(toy, process, _masking(lambda x0, t: 1 - process.alpha(x0, t)), Ideal.posterior)


def _gidd(toy: Toy, p_uniform: float) -> Ideal:
    process = InterpolatingProcess(4, 3, p_uniform=p_uniform)

    def chance(x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        alpha, masked, replaced = process.marginal(t[:, None])
        return torch.where(xt == 3, masked, alpha * (xt == x0) + replaced / 3)

    return Ideal(toy, process, chance, Ideal.cavity)


def _sedd(toy: Toy, process: ScoreEntropyProcess) -> Ideal:
    def chance(x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return transition_into(process.graph, xt, process.sigma(t)).gather(-1, x0[..., None]).squeeze(-1)

    return Ideal(toy, process, chance, Ideal.score)


def _autoregressive(toy: Toy) -> Ideal:
    return Ideal(toy, AutoregressiveProcess(3), lambda x0, xt, t: (xt == x0).double(), Ideal.chain_rule)


IDEAL: dict[str, Callable[[Toy, int], Ideal]] = {
    "ar": lambda toy, T: _autoregressive(toy),
    "d3pm": _d3pm,
    "mdlm": _mdlm,
    "sedd_absorb": lambda toy, T: _sedd(toy, ScoreEntropyProcess(AbsorbingGraph(4, 3), loglinear(epsilon=1e-15))),
    "sedd_uniform": lambda toy, T: _sedd(toy, ScoreEntropyProcess(UniformGraph(3), geometric())),
    "gidd_masks_only": lambda toy, T: _gidd(toy, 0.0),
    "gidd": lambda toy, T: _gidd(toy, 0.2),
    "diffusion_bert": _diffusion_bert,
    "diffusion_bert_no_spindle": lambda toy, T: _diffusion_bert(toy, T, 0.0),
}


@pytest.fixture(params=IDEAL)
def method(request) -> str:
    """The name of each token process in turn."""
    return request.param


@pytest.fixture(scope="session")
def ideal(toy):
    """A token process by name with its ideal network for the toy: ideal(name, timesteps=64, clamped=(False, False))."""

    def make(name: str, timesteps: int = 64, clamped: tuple[bool, bool] = (False, False)) -> Ideal:
        return replace(IDEAL[name](toy, timesteps), clamped=clamped)

    return make
