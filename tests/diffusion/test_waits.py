"""What a step of training or sampling asks of its device before it may go on: a GPU would be waited for each time.

Counted on a CPU, by the operations that read a tensor's numbers in order to continue, or copy numbers from the host.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion.denoiser import LatentDenoiser, TokenDenoiser
from diffusion.guidance import Prediction
from diffusion.masked import MaskedProcess
from diffusion.randomness import SampleGenerators
from diffusion.samplers import SAMPLERS, sample_ancestral
from diffusion.survival import loglinear
from diffusion.token_samplers import sample_ddpm_cache, sample_euler
from diffusion.training.objective import Batch, Objective

B, L, D, STEPS = 3, 5, 4, 6
VALID = torch.ones(B, L, dtype=torch.bool)
aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense: "flag",  # .item(), and a tensor as the condition of an if
    aten.nonzero: "positions",
    aten.masked_select: "positions",
    aten.lift_fresh: "copy",  # torch.tensor of numbers
}


class Waits(TorchDispatchMode):
    """Counts what waits, by kind."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kind = WAITS.get(function.overloadpacket)
        if function.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            kind = "positions" if any(i is not None and i.dtype == torch.bool for i in args[1]) else None
        if kind:
            self.found[kind] += 1
        return function(*args, **(kwargs or {}))


def test_what_waits_is_found():
    x = torch.ones(3)
    with Waits() as waits:
        assert x[0] > 0 and x[x > 0].sum().item() and len(x.nonzero())
        x[x > 0] = torch.tensor(2.0)
        x[1:] = x[:2].clone()
        x.select(0, 0).fill_(3.0)
    assert waits.found == {"flag": 2, "positions": 3, "copy": 1}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_step_of_a_latent_sampler_waits(gaussian, tiny, sampler):
    process, denoiser, generator = gaussian(), tiny(LatentDenoiser, D, self_condition=True), SampleGenerators(range(B))
    x, predict_x0 = process.prior((B, L, D), generator), Prediction(process, denoiser, VALID)
    with Waits() as waits:
        SAMPLERS[sampler](process, predict_x0, x, process.grid(STEPS), generator=generator)
    assert not waits.found


@pytest.mark.parametrize(
    ("name", "sampler", "positions", "flags"),
    [
        ("d3pm", sample_ancestral, 2, 1),  # where masks are, which of them go, and whether there is anything to draw
        ("mdlm", sample_ancestral, 2, 1),
        ("mdlm", sample_ddpm_cache, 2, 1),
        ("sedd_absorb", sample_ancestral, 1, 1),
        ("sedd_absorb", sample_euler, 1, 1),
        ("sedd_uniform", sample_ancestral, 0, 1),
        ("gidd", sample_ancestral, 1, 2),  # two draws: the way and the token
        ("gidd_masks_only", sample_ancestral, 2, 2),
    ],
)
def test_a_step_of_a_token_sampler_waits_no_more_than_it_must(ideal, tiny, name, sampler, positions, flags):
    process = ideal(name).process
    predict_x0 = Prediction(process, tiny(TokenDenoiser, process.vocab_size), VALID)
    x = process.prior((B, L), torch.Generator())
    with Waits() as waits:
        sampler(process, predict_x0, x, process.grid(STEPS), generator=SampleGenerators(range(B)))
    assert waits.found["positions"] <= positions * STEPS and waits.found["flag"] <= flags * STEPS
    assert not waits.found["copy"]


@pytest.mark.parametrize(
    "name", ["gaussian", "mdlm", "importance-sampled", "sedd_absorb", "sedd_uniform", "gidd", "gidd_masks_only"]
)
def test_an_update_waits_for_nothing_but_the_number_of_masks(gaussian, ideal, tiny, generator, name):
    if name == "gaussian":
        process, x0 = gaussian(), torch.ones(B, L, D)
        denoiser = tiny(LatentDenoiser, D)
    else:
        own = MaskedProcess(4, 3, loglinear(), importance_sampling=True)
        process, x0 = own if name == "importance-sampled" else ideal(name).process, torch.zeros(B, L).long()
        denoiser = tiny(TokenDenoiser, process.vocab_size)
    objective, batch = Objective(process, stratified_times=True), Batch(x0, VALID)
    with Waits() as waits:
        objective(denoiser, batch, range(process.timesteps), generator()).mean().backward()
    assert waits.found == ({} if process.loss_reads is None else {"positions": 1})
