"""An enumerable distribution of texts, with which every token process can be held against the truth.

X texts (all of them), B batch, L = 2 positions, N = 3 clean tokens with ids 0..2, mask id 3 where a process has one.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"


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
        known = torch.nn.functional.one_hot(xt.clamp(max=n - 1), n).double()
        return self.posterior(torch.where((xt == self.mask_id)[..., None], 1.0, known))

    def log_masked_posterior(self, xt: Tensor) -> Tensor:
        """log of `masked_posterior` with a column of -inf for the mask, [B, L, N + 1]: what `denoised` would give."""
        return torch.nn.functional.pad(self.masked_posterior(xt), (0, 1)).log()

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
