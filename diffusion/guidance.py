"""Wrappers that turn a denoiser into predict_x0(xt, t), the only thing a sampler sees.

Each has `rows(index)`, the same for some of its samples. B batch, L positions, D latent width, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffusion.categorical import without
from diffusion.positions import Positions
from diffusion.process import Predict, Process


class Predictor(Protocol):
    """predict_x0 of a batch of samples."""

    def __call__(self, xt: Tensor, t: Tensor, at: Positions | None = None) -> Tensor:
        """What `process.denoised` makes of the network's output for xt at t [B], everywhere or at some positions."""

    def rows(self, index: Tensor) -> Predictor:
        """The predictor of some samples [b]."""

    def next(self, written: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """log p [B, V] of the position after the `written` ids [B, i], for a causal denoiser; and its cache."""


@dataclass
class Prediction:
    """predict_x0 of a denoiser for one batch of samples: feeds each estimate back in where the denoiser wants it."""

    process: Process
    denoiser: nn.Module
    valid: Tensor  # [B, L] bool
    label: Tensor | None = None  # [B] int, -1 for none
    x0_prev: Tensor | None = None  # [B, L, D] the estimate of the call before, if the denoiser wants it
    forgets: bool = False  # feeds nothing back
    precision: torch.dtype | None = None  # of the denoiser's products; None: that of its weights

    def __call__(self, xt: Tensor, t: Tensor, at: Positions | None = None) -> Tensor:
        """x0_hat [B, L, D] for xt [B, L, D] at t [B]; for tokens [B, L, V], or [n, 1, V] at n positions."""
        with self._autocast():
            output = self.denoiser(xt, t, self.valid, x0_prev=self.x0_prev, label=self.label, at=at)
        if at is not None:
            xt, t = at.of(xt), at.times(t)
        x0_hat = self.process.denoised(output.to(xt.dtype) if xt.is_floating_point() else output, xt, t)
        self.feed(x0_hat)
        return x0_hat

    def feed(self, x0_hat: Tensor) -> None:
        """Makes an estimate the one that the next call is conditioned on."""
        self.x0_prev = x0_hat if self.denoiser.self_condition and not self.forgets else None

    def rows(self, index: Tensor) -> Prediction:
        """The same for some samples, going on from their estimates."""
        label, x0_prev = (None if each is None else each[index] for each in (self.label, self.x0_prev))
        return replace(self, valid=self.valid[index], label=label, x0_prev=x0_prev)

    def next(self, written: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """log p [B, V] of the position after the `written` ids [B, i], and the denoiser's cache."""
        with self._autocast():
            logits, cache = self.denoiser.next(written, cache, self.label)
        return self.process.denoised(logits, written, logits.new_zeros(len(logits))), cache

    def _autocast(self) -> AbstractContextManager:
        return nullcontext() if self.precision is None else torch.autocast(self.valid.device.type, self.precision)


def own_estimate(process: Process, denoiser: nn.Module, valid: Tensor, label: Tensor | None = None) -> Predict:
    """predict_x0(xt, t), conditioned on the network's own estimate from the same x_t where it wants one.

    Two passes then, as in training. An estimate from a noisier x, as sampling has, would not be a function of x_t.
    """

    def predict(xt: Tensor, t: Tensor) -> Tensor:
        predict_x0 = Prediction(process, denoiser, valid, label)
        x0_hat = predict_x0(xt, t)
        return predict_x0(xt, t) if denoiser.self_condition else x0_hat

    return predict


@dataclass
class Guided:
    """Away from what is predicted when less is told: less + weight (told - less); 1 is no guidance.

    Without its label (Ho & Salimans 2022, arXiv:2207.12598), or, `less.forgets`, without its own last estimate, where
    more than 1 trusts that estimate more. Of tokens log-probabilities are mixed and `normalised`, or SEDD's log-scores
    (the mixed rates of Nisonoff et al. 2024, arXiv:2406.01572). The guided estimate is what both are told next.
    """

    told: Prediction
    less: Prediction
    weight: float
    normalised: bool = False

    def __call__(self, xt: Tensor, t: Tensor, at: Positions | None = None) -> Tensor:
        x0_hat = self._mixed(self.told(xt, t, at), self.less(xt, t, at))
        self.told.feed(x0_hat)
        self.less.feed(x0_hat)
        return x0_hat

    def rows(self, index: Tensor) -> Guided:
        return replace(self, told=self.told.rows(index), less=self.less.rows(index))

    def next(self, written: Tensor, cache: Any) -> tuple[Tensor, Any]:
        caches = cache or (None, None)
        pairs = [each.next(written, own) for each, own in zip((self.told, self.less), caches, strict=True)]
        return self._mixed(pairs[0][0], pairs[1][0]), (pairs[0][1], pairs[1][1])

    def _mixed(self, told: Tensor, less: Tensor) -> Tensor:
        if self.weight == 1:
            return told
        # What cannot be has log-probability -inf in both, whose difference is nan.
        mixed = torch.where(told == -torch.inf, told, less + self.weight * (told - less))
        return mixed.log_softmax(-1) if self.normalised else mixed


@dataclass
class Tempered:
    """p(x0) sharpened position by position: to the power 1 / temperature, then cut to its likeliest part.

    top_p keeps the smallest set of tokens with that probability (Holtzman et al. 2020, arXiv:1904.09751), top_k a
    number of tokens. For predictions that are log-probabilities. Where these give the mask some, as D3PM does, it keeps
    its share: how many tokens show at a time is not what is to be sharpened, and the mask alone could not be drawn.
    """

    predict_x0: Predictor
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    mask_id: int | None = None

    def __call__(self, xt: Tensor, t: Tensor, at: Positions | None = None) -> Tensor:
        return self._sharpened(self.predict_x0(xt, t, at))

    def rows(self, index: Tensor) -> Tempered:
        return replace(self, predict_x0=self.predict_x0.rows(index))

    def next(self, written: Tensor, cache: Any) -> tuple[Tensor, Any]:
        log_p, cache = self.predict_x0.next(written, cache)
        return self._sharpened(log_p), cache

    def _sharpened(self, log_p: Tensor) -> Tensor:
        if self.mask_id is None:
            return self._cut(log_p)
        tokens = without(self.mask_id, log_p)
        sharpened = self._cut(tokens) + tokens.logsumexp(-1, keepdim=True)
        sharpened[..., self.mask_id] = log_p[..., self.mask_id]
        return sharpened

    def _cut(self, log_p: Tensor) -> Tensor:
        likeliest = log_p.amax(-1, keepdim=True)  # stays finite at any temperature
        log_p = ((log_p - likeliest) / self.temperature).log_softmax(-1)
        if self.top_k:
            least = log_p.topk(min(self.top_k, log_p.shape[-1])).values[..., -1:]
            log_p = log_p.masked_fill(log_p < least, -torch.inf).log_softmax(-1)
        if self.top_p < 1:
            ordered, order = log_p.sort(descending=True, dim=-1)
            before = ordered.exp().cumsum(-1) - ordered.exp()  # probability of what is likelier
            dropped = (before >= self.top_p).scatter(-1, order, before >= self.top_p)
            log_p = log_p.masked_fill(dropped, -torch.inf).log_softmax(-1)
        return log_p


@dataclass
class Clamped:
    """Holds the positions that are not `free` [B, L] at `known`, whatever the method: infilling, prefix, source.

    Tokens: the denoiser always sees the known ones. Latents: the estimate of x0 is put right, so that the position
    follows the path on which its known value is noised, as the denoiser saw it in training.
    """

    predict_x0: Predictor
    known: Tensor  # [B, L] ids or [B, L, D]
    free: Tensor

    def hold(self, x: Tensor) -> Tensor:
        """x with the known positions put back."""
        return torch.where(self.free.view(*self.free.shape, *[1] * (x.ndim - 2)), x, self.known)

    def __call__(self, xt: Tensor, t: Tensor, at: Positions | None = None) -> Tensor:
        if self.known.is_floating_point():
            return self.hold(self.predict_x0(xt, t))
        return self.predict_x0(self.hold(xt), t, at)

    def rows(self, index: Tensor) -> Clamped:
        return Clamped(self.predict_x0.rows(index), self.known[index], self.free[index])

    def next(self, written: Tensor, cache: Any) -> tuple[Tensor, Any]:
        return self.predict_x0.next(written, cache)
