"""Self-correction: a finished text is given back to the network, which replaces the tokens it least expected.

For a network trained with uniform noise (GIDD), whose output at a visible token is what it would put there not knowing
it; networks trained on masks only get worse by it (von Ruette et al. 2025, arXiv:2503.04482).
Legend: B batch, L positions, V vocabulary, R rows still running.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.categorical import sample_categorical
from diffusion.process import mean_over_valid
from diffusion.randomness import Randomness, SampleGenerators, uniform

# (z [R, L], rows [R], which of the B texts these are) -> logits or log x_theta [R, L, V], -inf at the mask
Logits = Callable[[Tensor, Tensor], Tensor]

STOPS = ("budget", "converged", "patience")  # why a row ended: no steps left, nothing to change, no more progress
BUDGET, CONVERGED, PATIENCE = range(3)


@dataclass(frozen=True)
class Corrected:
    """Corrected texts, and per text what happened; accuracy: share of free tokens that are the network's first choice.

    Both accuracies are those of a text under the logits for that very text.
    """

    z: Tensor  # [B, L]
    init_acc: Tensor  # [B]
    final_acc: Tensor  # [B]
    num_changes: Tensor  # [B] positions where z differs from the text given
    steps: Tensor  # [B] replacements tried, the last one counted though it changed nothing or was dropped
    stop: list[str]  # of STOPS


@torch.no_grad()
def self_correct(
    logits_of: Logits,
    z: Tensor,
    free: Tensor,
    *,
    generator: Randomness,
    temperature: float = 0.1,
    tokens_per_step: int = 1,
    max_steps: int = 128,
    patience: int = 32,
) -> Corrected:
    """Replace `free` tokens of z [B, L] few at a time, each row until it is finished (the paper's algorithm).

    A row is finished when every draw is the token that stands there (converged); when its accuracy, of the new text
    under the logits for the old one, has failed to exceed its best for the (patience + 1)-th time in a row, where that
    last replacement is dropped (patience); or after max_steps (budget). Rows do not influence each other, and finished
    ones are not given to `logits_of` again.
    """
    given, z = z, z.clone()
    best, init_acc, final_acc = torch.zeros(3, len(z), dtype=torch.float64, device=z.device)
    failures, steps, stop = torch.zeros(3, len(z), dtype=torch.int64, device=z.device)
    rows = torch.arange(len(z), device=z.device)
    for step in range(max_steps + 1):
        logits = logits_of(z[rows], rows)
        final_acc[rows] = accuracy(logits, z[rows], free[rows])
        if step == 0:
            init_acc, best = final_acc.clone(), final_acc.clone()
        if step == max_steps:
            break
        u = uniform((len(rows), z.shape[1]), _of(generator, rows), z.device, torch.float64)
        after = replace(logits, z[rows], free[rows], u, temperature, tokens_per_step)
        reached = accuracy(logits, after, free[rows])
        failures[rows] = torch.where(reached > best[rows], 0, failures[rows] + 1)
        best[rows] = torch.maximum(reached, best[rows])
        steps[rows] += 1
        unchanged = (after == z[rows]).all(1)
        stop[rows] = torch.where(unchanged, CONVERGED, torch.where(failures[rows] > patience, PATIENCE, BUDGET))
        going = stop[rows] == BUDGET
        rows = rows[going]
        z[rows] = after[going]
        if len(rows) == 0:
            break
    return Corrected(z, init_acc, final_acc, (z != given).sum(1), steps, [STOPS[reason] for reason in stop.tolist()])


def replace(logits: Tensor, z: Tensor, free: Tensor, u: Tensor, temperature: float, tokens_per_step: int) -> Tensor:
    """z [B, L] with its likeliest replacements: draws z' from softmax(logits / temperature), by inversion at u [B, L].

    Of the free positions where z' differs from z those with the highest p(z') take it, at most tokens_per_step.
    """
    logits = logits.double()
    p = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)  # finite at any temperature
    proposal = sample_categorical(p, u)
    score = p.gather(-1, proposal[..., None]).squeeze(-1) * ((proposal != z) & free)
    top = score.topk(min(tokens_per_step, z.shape[1]), dim=1)
    taken = torch.where(top.values > 0, proposal.gather(1, top.indices), z.gather(1, top.indices))
    return z.scatter(1, top.indices, taken)


def accuracy(logits: Tensor, z: Tensor, free: Tensor) -> Tensor:
    """Share [B] of the free positions where z [B, L] is the likeliest id of logits [B, L, V]; 0 where none is free."""
    return mean_over_valid((z == logits.argmax(-1)).double(), free)


def _of(generator: Randomness, rows: Tensor) -> Randomness:
    """What draws for these rows only, so that no row's numbers depend on how long the others go on."""
    if not isinstance(generator, SampleGenerators):
        return generator
    lengths = generator.lengths
    return generator.of(rows.tolist(), None if lengths is None else [lengths[i] for i in rows.tolist()])
