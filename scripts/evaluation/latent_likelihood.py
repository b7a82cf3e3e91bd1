"""Likelihood of a split under the latent model: a bound in nats, the parts it is made of, and a control.

A text pays for its tokens as the codec's decoder writes them from noisy latents (`reconstruction`), for these latents
(`diffusion` and `prior`, see diffusion/gaussian_bound.py) and for its length. What the decoder reads is the network's
estimate of x0, as at the end of sampling. `shuffled` is the reconstruction from the latents of another text: where it
is no worse, the decoder writes texts by itself and the latents say nothing.

The bound holds wherever the decoder reads, but each level of noise makes another model. At little noise all is in the
latents, and details of them cost nats that no text needs; at much noise an autoregressive decoder goes without them,
which may well be cheaper but is not the model that samples are drawn from. So the level is that of the least bound of
which no more than a tenth is the decoder's; the least bound of all has a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

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
from diffusion.randomness import SampleGenerators
from diffusion.time_density import proposal
from diffusion.training.objective import Batch
from latent_models.token_codec import TokenCodec, word_counts
from offline_metrics.likelihood import likelihood
from offline_metrics.scores import Scores
from scripts.composition.build import System
from scripts.evaluation.interface import LatentTexts
from scripts.job.console import note
from scripts.job.processes import shared_groups

SEED = 42
LEVELS = 48  # of noise, measured on validation texts
PILOT_TEXTS = 64
DECODER_SHARE = 0.1  # of the bound, at most, where texts are to lie in their latents


@torch.no_grad()
def latent_likelihood(system: System, name: str) -> dict[str, Scores]:
    """Nats per text, token and word of a split: `--likelihood_draws` draws of each bound for each text."""
    split = LatentTexts.of(system, name)
    counts, rows = _counts(split), {}
    for title, (first, chances) in _starts(system).items():
        parts = _parts(system, split, first, chances)
        nats = sum(parts[part] for part in parts if part != "shuffled")
        rows[title] = likelihood(nats, *counts, parts={part: each.mean(1) for part, each in parts.items()})
        rows[title] |= {"first_step": float(first), "first_log_snr": log_snr(system.process)[first - 1].item()}
    return rows


def _parts(system: System, split: LatentTexts, first: int, chances: Tensor) -> dict[str, np.ndarray]:
    """Nats [N, K] or [N, 1] of each part where the decoder reads at step `first`, later steps having these chances."""
    process, space, options = system.process, system.space, system.options.training
    partners = _partners(split.data.lengths)

    def parts_of(group: Tensor) -> dict[str, Tensor]:
        """The same of some texts."""
        (batch, texts), generator = split.batch(group), split.draws(group, SEED)
        predict = own_estimate(process, system.denoiser, batch.valid, batch.label)
        written = [
            space.nats_of(texts, _estimate(system, batch, first, generator), batch.valid)
            for _ in range(options.likelihood_draws)
        ]
        (other, _), others_generator = split.batch(partners[group]), split.draws(partners[group], SEED)
        shuffled = space.nats_of(texts, _estimate(system, other, first, others_generator), other.valid)
        parts = {
            "reconstruction": torch.stack(written, 1),
            "diffusion": draws_of_diffusion(
                process, predict, batch.x0, batch.valid, first, chances, options.likelihood_draws, generator
            ),
            "prior": prior_nats(process, batch.x0, batch.valid)[:, None],
            "length": space.lengths.nll(batch.valid.sum(1))[:, None],
            "shuffled": shuffled[:, None],
        }
        return {part: nats.cpu() for part, nats in parts.items()}

    groups = shared_groups("likelihood", split.data.lengths, options.eval_batch_size, parts_of)
    place = torch.cat([group for group, _ in groups]).argsort()
    return {part: torch.cat([found[part] for _, found in groups])[place].numpy() for part in groups[0][1]}


def _starts(system: System) -> dict[str, tuple[int, Tensor]]:
    """By row, the step at which the decoder reads and the proposal for the steps after it, from validation texts."""
    process, split = system.process, LatentTexts.of(system, "valid")
    some = torch.linspace(0, len(split.texts) - 1, min(len(split.texts), PILOT_TEXTS)).long()
    steps = spread_steps(process, LEVELS)

    def measure(group: Tensor) -> Tensor:
        """Squared error and nats of the decoder of some texts at every level [b, levels, 2]."""
        rows, found = some[group], []
        (batch, texts), generator = split.batch(rows), split.draws(rows, SEED)
        for step in steps:
            x0_hat = _estimate(system, batch, step, generator)
            nats = system.space.nats_of(texts, x0_hat, batch.valid)
            found.append(torch.stack([squared_error(x0_hat, batch.x0, batch.valid), nats], 1).cpu())
        return torch.stack(found, 1)

    size = system.options.training.eval_batch_size
    groups = shared_groups("levels of noise", split.data.lengths[some.numpy()], size, measure)
    means = torch.cat([found for _, found in groups]).mean(0)
    errors, nats = (at_all_steps(process, steps, each) for each in means.T.tolist())
    costs = step_weights(process) * errors
    totals = nats + costs_after(costs)
    in_latents = torch.where(nats <= DECODER_SHARE * totals, totals, torch.inf)
    method = system.options.method.method
    starts = {}
    for title, candidates in ((method, in_latents), (f"{method}, least bound", totals)):
        first = int(candidates.argmin()) + 1
        if first not in (step for step, _ in starts.values()):
            starts[title] = first, proposal(costs[first:])
            note(
                f"{title}: the decoder reads step {first:,} of {process.timesteps:,} (log SNR "
                f"{log_snr(process)[first - 1]:.2f}), chosen on {len(some)} validation texts"
            )
    return starts


def _counts(split: LatentTexts) -> tuple[list[int], list[int]]:
    """Tokens of each text with its EOS, and words, as methods on tokens count them; nothing of what was cut off."""
    codec, texts = split.space.codec, split.texts
    others = codec.tokenizer.num_special_tokens_to_add() - 1  # which the decoder writes too, but nobody counts
    counted = TokenCodec(codec.tokenizer, codec.max_length - others)
    return counted.encode_split(texts).target_lengths.tolist(), word_counts(counted.cut(texts)).tolist()


def _partners(lengths: Sequence[int]) -> Tensor:
    """For each text [N] another of about its length: the one before it, texts of one length in random order."""
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(SEED))
    order = order[torch.as_tensor(lengths)[order].argsort(stable=True)]
    return torch.empty_like(order).scatter(0, order, order.roll(1))


def _estimate(system: System, batch: Batch, step: int, generator: SampleGenerators) -> Tensor:
    """x0_hat [B, L, D] from one draw of the latents at a step."""
    t = torch.full((len(batch.x0),), step / system.process.timesteps, dtype=torch.float64, device=batch.x0.device)
    predict = own_estimate(system.process, system.denoiser, batch.valid, batch.label)
    return predict(system.process.corrupt(batch.x0, t, generator), t)
