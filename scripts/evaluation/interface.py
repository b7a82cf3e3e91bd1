"""Where denoiser and decoder meet: latents of texts, clean, noised or estimated by a run, and what is read in them.

A noise ratio is sigma / alpha: the standard deviation of the noise on normalised latents, whatever the schedule.
Legend: B batch, L positions, D latent width, M tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.gaussian import like
from diffusion.guidance import own_estimate
from diffusion.randomness import SampleGenerators, normal, sample_seeds, uniform
from diffusion.training.objective import Batch
from diffusion.training.progress import progress_bar
from latent_models.codec import Codec
from latent_models.frozen_encoder import IGNORED
from scripts.composition.build import System
from scripts.composition.latent_space import LatentData, LatentSpace
from scripts.composition.methods import METHODS
from scripts.composition.options import Options
from scripts.job.errors import UsageError

# (batch, noise ratio [B], noise [B, L, D]) -> normalised latents [B, L, D]
Corruption = Callable[[Batch, Tensor, Tensor], Tensor]

READINGS = ("tokens", "nats", "right", "entropy", "margin")
TOKENS, NATS = 0, 1  # places among them


class Kind(NamedTuple):
    """A kind of latents to be read, at noise ratios drawn evenly from `least` to `greatest`."""

    corruption: Corruption
    least: float = 0.0
    greatest: float = 0.0

    def latents(self, batch: Batch, u: Tensor, noise: Tensor) -> Tensor:
        """Those of a batch [B, L, D], u [B] in [0, 1) choosing the ratio of each text."""
        return self.corruption(batch, self.least + (self.greatest - self.least) * u, noise)


@dataclass(frozen=True)
class LatentTexts:
    """The texts of a split and their latents."""

    space: LatentSpace
    data: LatentData
    texts: Sequence[str]

    @classmethod
    def of(cls, system: System, name: str) -> LatentTexts:
        """Those of a split of a latent run."""
        return cls(system.space, system.data(name), getattr(system.corpus, name).texts)

    def batch(self, indices: Tensor) -> tuple[Batch, list[str]]:
        """Some texts with their clean latents."""
        batch = self.data.batch(indices.numpy()).each(lambda part: part.to(self.space.codec.device))
        return batch, [self.texts[i] for i in indices.tolist()]

    def by_length(self, chosen: Tensor, size: int) -> Sequence[Tensor]:
        """Indices [n] of texts, the shortest first, in groups of `size`."""
        lengths = torch.from_numpy(self.data.lengths)
        return chosen[lengths[chosen].argsort(stable=True)].split(size)

    def draws(self, indices: Tensor, seed: int) -> SampleGenerators:
        """Random numbers of some texts: each has its own, whatever stands beside it."""
        seeds = [sample_seeds(seed, i, 1)[0] for i in indices.tolist()]
        return SampleGenerators(seeds, self.data.lengths[indices.numpy()])


def check_latent(options: Options) -> None:
    """Raises UsageError for a run whose texts no decoder writes."""
    if METHODS[options.method.method].on_tokens:
        raise UsageError(
            f"{options.run.resume_dir}: a run of --method {options.method.method}, whose texts no decoder writes; "
            "expected one of --method latent"
        )


def clean(batch: Batch, ratio: Tensor, noise: Tensor) -> Tensor:
    """x0 itself."""
    return batch.x0


def noised(batch: Batch, ratio: Tensor, noise: Tensor) -> Tensor:
    """x0 and noise: z / alpha."""
    return batch.x0 + like(ratio, batch.x0) * noise


def estimated(system: System) -> Corruption:
    """x0_hat of a run from z at the first time with at least that noise, detached.

    A run that conditions on itself is asked twice, the second time with its first answer, as in sampling.
    """
    process, denoiser = system.process, system.denoiser

    @torch.no_grad()
    def estimate(batch: Batch, ratio: Tensor, noise: Tensor) -> Tensor:
        t = process.schedule.time_at(ratio)
        z = process.corrupt(batch.x0, t, noise=noise)
        return own_estimate(process, denoiser, batch.valid, batch.label)(z, t)

    return estimate


@torch.no_grad()
def readings(codec: Codec, texts: Sequence[str], states: Tensor, valid: Tensor) -> Tensor:
    """Sums over the tokens of each text [B, 5], as READINGS names them, when states [B, L, D] are read for it.

    The tokens before are given. Nats of its tokens, how many are the likeliest one, the entropy of the decoder's
    distribution in nats, and the margin, the greatest logit less the second.
    """
    logits, ids = codec.logits_of(texts, states, valid)  # [B, M, V], [B, M]
    known, log_p = ids != IGNORED, logits.log_softmax(-1)
    greatest = logits.topk(2)
    each = (
        torch.ones_like(log_p[..., 0]),
        -log_p.gather(-1, ids.clamp(min=0)[..., None])[..., 0],
        greatest.indices[..., 0] == ids,
        -(log_p.exp() * log_p).sum(-1),
        greatest.values[..., 0] - greatest.values[..., 1],
    )
    return torch.stack([(reading * known).sum(1).double() for reading in each], 1).cpu()


def readings_by_kind(
    codec: Codec, texts: LatentTexts, kinds: Mapping[str, Kind], chosen: Tensor, seed: int, batch_size: int
) -> dict[str, Tensor]:
    """Readings [n, 5] of the `chosen` texts [n], the shortest first, when a codec reads each kind of their latents.

    A text has random numbers of its own, the same ones for every kind, codec and batch size.
    """
    found = {name: [] for name in kinds}
    for rows in progress_bar(texts.by_length(chosen, batch_size), "read"):
        (batch, own), generators = texts.batch(rows), texts.draws(rows, seed)
        u = uniform(rows.shape, generators, batch.x0.device, torch.float64)
        noise = normal(batch.x0.shape, generators, batch.x0.device)
        for name, kind in kinds.items():
            states = texts.space.statistics.unnormalise(kind.latents(batch, u, noise))
            found[name].append(readings(codec, own, states, batch.valid))
    return {name: torch.cat(parts) for name, parts in found.items()}
