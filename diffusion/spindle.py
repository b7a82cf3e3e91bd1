"""DiffusionBERT (He et al. 2022, arXiv:2211.15029): masks come sooner to rare tokens, so that writing starts easily.

T steps, t = k / T. A token survives to t with chance alpha = 1 - t + lambda sin(pi t) d, where its deviation d says how
much more frequent it is than the mean: than that of all text (a valid likelihood), or of its own sentence, which the
reverse step must then guess. Legend: B batch, L positions, V vocabulary with the mask; move chance m = 1 - alpha.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from diffusion.categorical import sample_categorical, widened, without
from diffusion.masked import carried_over, nats
from diffusion.process import DiffusionError, Predict, check_choices
from diffusion.randomness import Randomness, uniform
from diffusion.schedules import step_times, time_grid

STEEPEST = 1 / math.pi  # |lambda d| beyond which alpha would rise somewhere: its slope is -1 + lambda d pi cos(pi t)


@dataclass
class SpindleOptions:
    """Command-line options of DiffusionBERT; DiffusionError on a value that cannot work."""

    _argument_group_name: ClassVar[str] = "DiffusionBERT"

    spindle: Literal["none", "type", "frequency", "information"] = field(
        default="type",
        metadata={
            "help": "which tokens are masked sooner: rare ones compared with all text (type), with their sentence by "
            "log-frequency (frequency, as released) or by information (as published), or none. Only none and type "
            "have a likelihood"
        },
    )
    spindle_lambda: float = field(
        default=0.3, metadata={"help": "how much sooner: 0 not at all, at most 1 / pi, or alpha might rise"}
    )
    hybrid_weight: float = field(
        default=0.01, metadata={"help": "weight of cross-entropy at all positions beside the divergence of one step"}
    )

    def __post_init__(self):
        check_choices(self)
        if not 0 <= self.spindle_lambda <= STEEPEST:
            raise DiffusionError(
                f"--spindle_lambda {self.spindle_lambda}: expected 0 to {STEEPEST:.4f} (1 / pi), or tokens might come "
                "back while noise grows"
            )
        if not 0 <= self.hybrid_weight < math.inf:
            raise DiffusionError(f"--hybrid_weight {self.hybrid_weight}: expected 0 or more")


# Deviations from the mean, above 0 for tokens that should survive longer.


def frequency_scores(counts: Tensor) -> Tensor:
    """log(n + 1) / max log(n + 1) in [0, 1] of counts n [V], as the released code has it; ValueError if all are 0."""
    if not counts.any():
        raise ValueError("no token was counted: frequencies need the token counts of the training texts")
    scores = torch.log1p(counts.double())
    return scores / scores.max()


def information(counts: Tensor) -> Tensor:
    """Information H [V] in nats, -log of the add-one frequency (n + 1) / (N + V), of counts n [V]; finite if unseen."""
    return -torch.log((counts.double() + 1) / (counts.sum() + len(counts)))


def type_deviation(counts: Tensor, pad_id: int) -> Tensor:
    """Frequency score minus its mean over all counted tokens, [V]: E[alpha] of a token of the corpus is 1 - t.

    A PAD that is not counted has 0, as in `SentenceDeviation`: among the symbols of filled texts it is not a rare one.
    """
    scores = frequency_scores(counts)
    deviation = scores - (counts * scores).sum() / counts.sum()
    if counts[pad_id] == 0:  # else it is the end of text too, counted wherever it stands
        deviation[pad_id] = 0
    return deviation


def frequency_deviation(scores: Tensor, real: Tensor) -> Tensor:
    """Scores [B, L] minus their mean over the `real` ones of the sentence, whose mean alpha is then 1 - t; else 0."""
    return torch.where(real, scores - _mean(scores, real), 0.0)


def information_deviation(H: Tensor, real: Tensor) -> Tensor:
    """mean(H) / H - 1 [B, L], as published: the information left, sum alpha H, falls as 1 - t; 0 where not `real`."""
    return torch.where(real, _mean(H, real) / H - 1, 0.0)


def _mean(values: Tensor, real: Tensor) -> Tensor:
    return torch.where(real, values, 0.0).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)


class Deviation(Protocol):
    """d of every token that could stand at each position of a text [B, L]: broadcasts to [B, L, V]."""

    has_likelihood: bool  # whether d needs nothing that the reverse step does not know

    def __call__(self, text: Tensor) -> Tensor: ...


class TypeDeviation:
    """One d [V] for every token type, whatever the text."""

    has_likelihood = True

    def __init__(self, table: Tensor):
        self.table = table

    def __call__(self, text: Tensor) -> Tensor:
        self.table = self.table.to(text.device)  # follows the texts to their device; nothing is copied the next time
        return self.table


class SentenceDeviation:
    """d [B, L, 1] from the scores [V] of the sentence's own tokens, those with `pad_id` left out."""

    has_likelihood = False

    def __init__(self, scores: Tensor, deviation: Callable[[Tensor, Tensor], Tensor], pad_id: int):
        self.scores = scores
        self.deviation = deviation
        self.pad_id = pad_id

    def __call__(self, text: Tensor) -> Tensor:
        self.scores = self.scores.to(text.device)
        return self.deviation(self.scores[text], text != self.pad_id)[..., None]


class SpindleProcess:
    """DiffusionBERT as a `TokenProcess`.

    Frequencies enter by `deviation`. Where they are those of the sentence, training and `divergence` use the true ones
    and sampling those of the likeliest tokens, as the released code does; such a process bounds no likelihood.
    """

    loss_reads = None  # the hybrid loss is of seen tokens too

    def __init__(
        self,
        vocab_size: int,
        mask_id: int,
        deviation: Deviation,
        *,
        spindle_lambda: float = 0.3,
        hybrid_weight: float = 0.01,
        timesteps: int = 1000,
    ):
        self.vocab_size = vocab_size
        self.mask_id = mask_id
        self.step_reads = mask_id if deviation.has_likelihood else None  # else a step guesses the whole sentence
        self.deviation = deviation
        self.spindle_lambda = spindle_lambda
        self.hybrid_weight = hybrid_weight
        self.timesteps = timesteps

    @classmethod
    def from_options(
        cls,
        options: SpindleOptions,
        *,
        vocab_size: int,
        mask_id: int,
        pad_id: int,
        token_counts: Tensor,
        timesteps: int,
    ) -> "SpindleProcess":
        """The process the options describe; token_counts [V] says how often each id occurs in the training texts."""
        if token_counts.shape != (vocab_size,):
            raise ValueError(f"token counts of shape {tuple(token_counts.shape)} for a vocabulary of {vocab_size}")
        deviation = {
            "none": lambda: TypeDeviation(torch.zeros(vocab_size, dtype=torch.float64)),
            "type": lambda: TypeDeviation(type_deviation(token_counts, pad_id)),
            "frequency": lambda: SentenceDeviation(frequency_scores(token_counts), frequency_deviation, pad_id),
            "information": lambda: SentenceDeviation(information(token_counts), information_deviation, pad_id),
        }[options.spindle]
        return cls(
            vocab_size,
            mask_id,
            deviation(),
            spindle_lambda=options.spindle_lambda,
            hybrid_weight=options.hybrid_weight,
            timesteps=timesteps,
        )

    def times(self, u: Tensor, steps: range) -> Tensor:
        """Training times [B] among the given steps."""
        return step_times(u, self.timesteps, steps)

    def grid(self, sampling_timesteps: int) -> list[float]:
        """S + 1 of the T steps' times, from 1 to 0."""
        return time_grid(self.timesteps, sampling_timesteps)

    def prior(self, shape: tuple[int, ...], generator: Randomness, device: Any = None) -> Tensor:
        """All masks; draws nothing."""
        return torch.full(tuple(shape), self.mask_id, device=device)

    def alpha(self, x0: Tensor, t: Tensor) -> Tensor:
        """Chance [B, L] that each token of x0 is still itself at t; never rises with t."""
        return 1 - _move_chance(_of(x0, self._bend(x0), self.vocab_size), t[:, None])

    def corrupt(self, x0: Tensor, t: Tensor, generator: Randomness) -> Tensor:
        """x0 [B, L] with each token masked at chance 1 - alpha(t)."""
        u = uniform(x0.shape, generator, x0.device, torch.float64)
        return torch.where(u < self.alpha(x0, t), x0, self.mask_id)

    def denoised(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """log p(x0) [B, L, V], never the mask; at seen tokens too, where only the hybrid loss asks for it."""
        return without(self.mask_id, widened(output)).log_softmax(-1)

    def reverse(self, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """p(x_s | x_t) [B, L, V] for any s < t: from a mask to v with chance p_v times that v leaves the mask."""
        p = x0_hat.double().softmax(-1)
        stays = _stays(self._bend(self._guess(x0_hat, xt)), t[:, None, None], s[:, None, None])
        probs = p * (1 - stays)
        probs[..., self.mask_id] = (p * stays).sum(-1)
        return carried_over(probs, xt, self.mask_id)

    def step(self, x0_hat: Tensor, xt: Tensor, t: Tensor, s: Tensor, generator: Randomness) -> Tensor:
        """x_s [B, L] drawn from `reverse`: a token first, then whether it shows; no mask is left at s = 0."""
        leave, token = (uniform(xt.shape, generator, xt.device, torch.float64) for _ in range(2))
        bend, t, s = self._bend(self._guess(x0_hat, xt)), t[:, None], s[:, None]
        # None is drawn where none would show, not even that of the largest bend, which is least likely to stay hidden.
        may_leave = (xt == self.mask_id) & (leave >= _stays(bend.amax(-1), t, s))
        drawn = xt.masked_scatter(may_leave, sample_categorical(x0_hat[may_leave].double().exp(), token[may_leave]))
        return torch.where(may_leave & (leave >= _stays(_of(drawn, bend, self.vocab_size), t, s)), drawn, xt)

    def divergence(self, x0_hat: Tensor, x0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) [B, L] in nats for s < t; at s = 0 it is -log p(x0) at masks.

        With r_v the chance that a mask hiding v leaves: -r_v log p_v + (1 - r_v) log[(1 - r_v) / sum_u p_u (1 - r_u)].
        """
        all_stay = _stays(self._bend(x0), t[:, None, None], s[:, None, None])
        stays = _of(x0, all_stay, self.vocab_size)
        # The sum is 1 - r_v plus this difference of small numbers, which single precision would lose against 1.
        more = (1 - stays) - (x0_hat.exp() * (1 - all_stay).to(x0_hat.dtype)).sum(-1)
        hidden = -stays * torch.log1p(more / torch.where(stays > 0, stays, 1.0))  # nothing stays hidden at s = 0
        is_masked = xt == self.mask_id
        return (1 - stays) * nats(x0_hat, x0, is_masked) + torch.where(is_masked, hidden, 0.0)

    def integrand(self, x0_hat: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """T KL_k [B, L] in nats at t = k / T, KL_1 being the reconstruction: their mean over k is the bound."""
        k = (t.double() * self.timesteps).round()
        return self.timesteps * self.divergence(x0_hat, x0, xt, k / self.timesteps, (k - 1) / self.timesteps)

    def loss(self, output: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Mean [B, L] of the integrand and, with weight hybrid_weight T, of -log p(x0) at masks and tokens alike.

        The released code adds hybrid_weight cross-entropy to one KL_k. This is the same up to a constant factor, which
        makes it nats per token for every T.
        """
        x0_hat = self.denoised(output, xt, t)
        weight = self.hybrid_weight * self.timesteps
        everywhere = nats(x0_hat, x0, torch.ones_like(x0, dtype=torch.bool))
        return (self.integrand(x0_hat, x0, xt, t) + weight * everywhere) / (1 + weight)

    def bound(self, predict: Predict, x0: Tensor, free: Tensor, u: Tensor, generator: Randomness) -> Tensor:
        """One draw [B, L] of -log p(x0) <= sum_k E[KL_k]: u chooses k. The prior is exact, since alpha(1) = 0."""
        if not self.deviation.has_likelihood:
            raise DiffusionError(
                "--spindle frequency and information have no likelihood, since their reverse step depends on the "
                "sentence to be made: use --spindle type or none"
            )
        t = self.times(u, range(self.timesteps))
        xt = torch.where(free, self.corrupt(x0, t, generator), x0)
        return torch.where(free, self.integrand(predict(xt, t), x0, xt, t), 0.0)

    def _guess(self, x0_hat: Tensor, xt: Tensor) -> Tensor:
        """x_t [B, L] with the likeliest token at each mask."""
        return torch.where(xt == self.mask_id, x0_hat.argmax(-1), xt)

    def _bend(self, text: Tensor) -> Tensor:
        """lambda d of every token at every position of a text: broadcasts to [B, L, V]."""
        # Information has no bound for frequent tokens among rare ones: they get the steepest alpha that never rises.
        return (self.spindle_lambda * self.deviation(text)).clamp(-STEEPEST, STEEPEST)


# Of tokens by their bend, lambda d, in float64; t and s are shaped to go with it.


def _move_chance(bend: Tensor, t: Tensor) -> Tensor:
    """1 - alpha(t)."""
    t = t.double()
    return t - bend * torch.sin(math.pi * t)


def _stays(bend: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Chance that a mask at t is still one at s; falls as the bend grows, and is 0 at s = 0."""
    return (_move_chance(bend, s) / _move_chance(bend, t)).clamp(max=1)  # where alpha is level: rounding


def _of(ids: Tensor, values: Tensor, vocab_size: int) -> Tensor:
    """The values [B, L] of the tokens at hand, out of values that broadcast to [B, L, V]."""
    return values.expand(*ids.shape, vocab_size).gather(-1, ids[..., None]).squeeze(-1)
