"""The fast path of training gives the losses of the plain one: trimmed batches, fused updates, a compiled trunk."""

import copy

import pytest
import torch
from torch.nn.functional import pad

from diffusion.denoiser import DenoiserOptions, LatentDenoiser
from diffusion.gaussian import GaussianOptions, GaussianProcess
from diffusion.randomness import SampleGenerators
from diffusion.training.batches import EpochBatches
from diffusion.training.objective import Batch, Objective
from diffusion.training.optim import OptimOptions, make_ema, make_optimizer

D, T, LIMIT, BATCH = 16, 1000, 64, 8
LENGTHS = torch.randint(12, 48, (64,), generator=torch.Generator().manual_seed(1))
LATENTS = [torch.randn(n, D, generator=torch.Generator().manual_seed(i)) for i, n in enumerate(LENGTHS.tolist())]
STEPS = 24


@pytest.fixture
def denoiser() -> LatentDenoiser:
    torch.manual_seed(0)
    return LatentDenoiser(D, DenoiserOptions(64, 2, scale_shift=True, self_condition=True, disable_dropout=True))


def batches(length: int | None) -> list[tuple[Batch, SampleGenerators]]:
    """The batches of the first steps, padded to their longest text or to `length`; each text draws its own noise."""
    found = []
    order = iter(EpochBatches(LENGTHS.tolist(), BATCH, seed=0))
    for step, rows in zip(range(STEPS), order, strict=False):
        L = length or int(LENGTHS[rows].max())
        x0 = torch.stack([pad(LATENTS[i], (0, 0, 0, L - len(LATENTS[i]))) for i in rows])
        valid = torch.arange(L) < LENGTHS[rows][:, None]
        found.append((Batch(x0, valid), SampleGenerators((1000 * step + rows).tolist(), LENGTHS[rows].tolist())))
    return found


def train(denoiser, optimizer, update_average, length) -> list[float]:
    objective, losses = Objective(GaussianProcess.from_options(GaussianOptions()), self_condition_prob=0.5), []
    for batch, generators in batches(length):
        loss = objective(denoiser.train(), batch, range(T), generators).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        update_average()
        losses.append(loss.item())
    return losses


def plain_adamw(model) -> torch.optim.Optimizer:
    """One parameter after the other, as the formulas say."""
    o = OptimOptions(learning_rate=1e-3)
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim >= 2) is matrices], "weight_decay": decay}
        for matrices, decay in ((True, o.adam_weight_decay), (False, 0.0))
    ]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(o.adam_beta1, o.adam_beta2), foreach=False, fused=False)


def test_trimmed_batches_and_fused_updates_give_the_losses_of_the_plain_padded_path(denoiser):
    other, options = copy.deepcopy(denoiser), OptimOptions(learning_rate=1e-3)
    ema = make_ema(denoiser, options)
    ema.update_after_step = 5
    average, done = copy.deepcopy(other), 0

    @torch.no_grad()
    def update_plainly():
        nonlocal done
        decay = 0.0 if done <= 5 else 1 - (1 + done - 5) ** -0.75
        done += 1
        for mean, value in zip(average.parameters(), other.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)

    fast = train(denoiser, make_optimizer(denoiser, options), ema.update, None)
    plain = train(other, plain_adamw(other), update_plainly, LIMIT)
    assert fast[-1] < 0.9 * fast[0]
    assert fast == pytest.approx(plain, rel=1e-5)
    for name, value in other.named_parameters():
        torch.testing.assert_close(denoiser.get_parameter(name), value, rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(ema.ema_model.get_parameter(name), average.get_parameter(name), rtol=1e-3, atol=2e-5)
    assert not torch.equal(average.write.weight, other.write.weight)


@pytest.mark.slow
def test_a_compiled_trunk_gives_the_same_losses_and_is_compiled_once_for_all_shapes(denoiser):
    other, options = copy.deepcopy(denoiser), OptimOptions(learning_rate=1e-3)
    plain = train(other, make_optimizer(other, options), lambda: None, None)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    denoiser.trunk.compile(dynamic=True)
    compiled = train(denoiser, make_optimizer(denoiser, options), lambda: None, None)
    assert compiled == pytest.approx(plain, rel=1e-4)
    shapes = {batch.valid.shape for batch, _ in batches(None)}
    assert len(shapes) > 5
    # With gradients; without, for estimates; and those of a single row, which torch always treats apart.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3
