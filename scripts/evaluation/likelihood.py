"""Likelihood of a split, counted alike for all methods: every text and its EOS, and its length.

Here of methods on tokens: a text's nats are the bound on its tokens given how many there are, and those of that number,
unless the model writes the end of a text itself. Sources are given and cost nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from diffusion.guidance import Prediction
from diffusion.likelihood import draws_of_bound
from diffusion.randomness import SampleGenerators, sample_seeds
from latent_models.token_codec import word_counts
from offline_metrics.likelihood import likelihood
from offline_metrics.scores import Scores
from scripts.composition.build import System
from scripts.evaluation.asked import asked_of_system, check_alike, is_whole, mark_whole
from scripts.evaluation.evaluation import write_rows
from scripts.evaluation.latent_likelihood import latent_likelihood
from scripts.evaluation.run_folder import scores
from scripts.job.console import note
from scripts.job.processes import is_main, shared_groups, told_by_main

SEED = 42


def evaluate_likelihood(system: System, name: str, folder: Path) -> None:
    """Writes and prints nats per text, token and word of the split of that name; the first row is that of the run.

    What was evaluated before is kept; UsageError where it was asked otherwise.
    """
    asked = asked_of_system(system)

    def begin() -> bool:
        check_alike(folder, asked)
        return is_whole(folder)

    if told_by_main(begin):
        note(f"{folder}: evaluated before and kept; remove the folder to make it anew")
        rows = scores(folder / "scores.json")
    elif system.method.on_tokens:
        rows = {system.options.method.method: split_likelihood(system, name)}
    else:
        rows = latent_likelihood(system, name)
    if is_main():
        print(f"{folder}\n\n{write_rows(folder, rows)}", flush=True)
        mark_whole(folder, asked)


@torch.no_grad()
def split_likelihood(system: System, name: str) -> Scores:
    """Nats per text, token and word of a split: `--likelihood_draws` draws of the bound for each text."""
    device, options = next(system.denoiser.parameters()).device, system.options
    split, data = getattr(system.corpus, name), system.data(name)
    draws = 1 if system.method.causal else options.training.likelihood_draws
    seeds = sample_seeds(SEED, 0, len(split))
    nats = torch.zeros(len(split), draws, dtype=torch.float64)

    def draw(group: Tensor) -> Tensor:
        """The nats [b, draws] of some texts."""
        rows = group.tolist()
        batch = data.batch(group.numpy())
        x0, valid, free = (each.to(device) for each in (batch.x0, batch.valid, batch.free))
        label = None if batch.label is None else batch.label.to(device)
        predict_x0 = Prediction(system.process, system.denoiser, valid, label)  # not sharpened, as samples may be
        generator = SampleGenerators([seeds[i] for i in rows], valid.sum(1).tolist())
        return draws_of_bound(system.process, predict_x0, x0, free, draws, generator).cpu()

    for group, found in shared_groups("likelihood", data.lengths, options.training.eval_batch_size, draw):
        nats[group] = found
    if not system.writes_length:
        nats += system.space.lengths.nll(torch.from_numpy(data.split.target_lengths))[:, None]
    codec, is_paired = system.space.codec, options.tokens.condition_on_source
    # Without the PAD that may fill a text up: it is modelled, but not counted. Nor is what of a long text was cut off.
    tokens = codec.encode_split(split.texts, split.sources if is_paired else None).target_lengths
    texts = codec.cut(split.texts, is_paired)
    characters = [len(text) for text in texts] if codec.is_characters else None
    return likelihood(nats.numpy(), tokens.tolist(), word_counts(texts), characters)
