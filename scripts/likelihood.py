"""Likelihood of a split under a method on tokens, counted alike for all: every text and its EOS, and its length.

A text's nats are the bound on its tokens given how many there are, and those of that number, unless the model writes
the end of a text itself. Sources are given and cost nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion.likelihood import draws_of_bound
from diffusion.randomness import SampleGenerators, sample_seeds
from latent_models.corpora import Split
from latent_models.token_codec import word_counts
from offline_metrics.likelihood import likelihood
from offline_metrics.scores import Scores
from scripts.build import System
from scripts.errors import UsageError
from scripts.evaluation import write_rows
from scripts.sampling import prediction

SEED = 42


def evaluate_likelihood(system: System, split: Split, folder: Path) -> Scores:
    """Writes and prints nats per text, token and word of the split."""
    if not system.method.on_tokens:
        raise UsageError(
            "--ppl_eval needs a method on tokens; this run is latent, whose samples --eval and --eval_test score"
        )
    row = split_likelihood(system, split)
    print(f"{folder}\n\n{write_rows(folder, {system.options.method.method: row})}", flush=True)
    return row


@torch.no_grad()
def split_likelihood(system: System, split: Split) -> Scores:
    """Nats per text, token and word of a split: `--likelihood_draws` draws of the bound for each text."""
    device, options = next(system.denoiser.parameters()).device, system.options
    data = system.data(next(name for name in ("train", "valid", "test") if getattr(system.corpus, name) is split))
    draws = 1 if system.method.causal else options.training.likelihood_draws
    seeds = sample_seeds(SEED, 0, len(split))
    nats = torch.zeros(len(split), draws, dtype=torch.float64)
    order = torch.tensor(data.lengths).argsort(stable=True)
    for group in tqdm(order.split(options.training.eval_batch_size), desc="likelihood", file=sys.stderr, mininterval=1):
        rows = group.tolist()
        batch = data.batch(group.numpy())
        x0, valid, free = (each.to(device) for each in (batch.x0, batch.valid, batch.free))
        predict_x0 = prediction(system, valid, None if batch.label is None else batch.label.to(device))
        generator = SampleGenerators([seeds[i] for i in rows], valid.sum(1).tolist())
        nats[group] = draws_of_bound(system.process, predict_x0, x0, free, draws, generator).cpu()
    targets = torch.tensor(data.split.target_lengths)
    if not system.writes_length:
        nats += system.space.lengths.nll(targets)[:, None]
    tokens = _tokens_of(system, data.split, targets)
    characters = [len(text) for text in split.texts] if system.space.codec.is_characters else None
    return likelihood(nats.numpy(), tokens.tolist(), word_counts(split.texts), characters)


def _tokens_of(system: System, split, targets: Tensor) -> Tensor:
    """Tokens of each text with its EOS: PAD that fills a text up is modelled, but not counted."""
    if system.options.tokens.lengths == "drawn":
        return targets
    pad = torch.from_numpy(split.ids) == system.space.codec.pad_id
    ends = torch.from_numpy(split.offsets)
    padded = torch.cat([torch.zeros(1, dtype=torch.long), pad.long().cumsum(0)])
    padding = padded[ends[1:]] - padded[ends[:-1]]
    return targets - padding
