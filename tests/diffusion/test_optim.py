"""Optimizers, the learning rate over a run, and the moving average of the weights."""

import math

import pytest
import torch
from torch import nn

from diffusion.denoiser import DenoiserOptions, LatentDenoiser
from diffusion.process import DiffusionError
from diffusion.training.optim import OptimOptions, learning_rate_factor, make_ema, make_optimizer


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4))


# Optimizers


@pytest.mark.parametrize("optimizer", ["adamw", "adamW", "lion", "LION"])
def test_both_optimizers_learn_and_move_every_weight(optimizer):
    net = model()
    before = [p.detach().clone() for p in net.parameters()]
    optim = make_optimizer(net, OptimOptions(optimizer=optimizer, learning_rate=1e-2))
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(60):
        loss = (net(x) - x.flip(-1)).square().mean()
        optim.zero_grad()
        loss.backward()
        optim.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all((p - old).abs().max() > 1e-4 for p, old in zip(net.parameters(), before, strict=True))


def test_a_step_of_lion_is_the_sign_of_the_gradient_and_decay_shrinks_matrices_only():
    net = model()
    before = [p.detach().clone() for p in net.parameters()]
    optim = make_optimizer(net, OptimOptions(optimizer="lion", learning_rate=0.1, adam_weight_decay=0.5))
    for p in net.parameters():
        p.grad = torch.full_like(p, 3.0)
    optim.step()
    for p, old in zip(net.parameters(), before, strict=True):
        kept = 1 - 0.1 * 0.5 if p.ndim >= 2 else 1
        torch.testing.assert_close(p.detach(), old * kept - 0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_weight_decay_acts_on_matrices_and_embeddings_only(optimizer):
    denoiser = LatentDenoiser(8, DenoiserOptions(64, 1, scale_shift=True, self_condition=True), classes=2)
    optim = make_optimizer(denoiser, OptimOptions(optimizer=optimizer, adam_weight_decay=0.01, adam_beta2=0.98))
    decayed, spared = optim.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0)
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in spared["params"]} == {1}
    assert any(p is denoiser.label.weight for p in decayed["params"])
    grouped = [id(p) for group in optim.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in denoiser.parameters())
    assert all(group["betas"] == (0.9, 0.98) for group in optim.param_groups)


def test_frozen_parameters_are_left_out():
    net = model()
    net[0].weight.requires_grad = False
    assert all(p is not net[0].weight for g in make_optimizer(net, OptimOptions()).param_groups for p in g["params"])


# Learning rate


def test_the_rate_rises_over_the_warm_up_and_then_follows_the_schedule_to_the_end():
    N, w = 80_000, 1000
    factor = {name: learning_rate_factor(name, w, N) for name in ("cosine", "linear", "constant")}
    for f in factor.values():
        assert [f(0), f(1), f(500), f(w)] == [0, 1 / 1000, 0.5, 1]
    for k in (w, 20_000, 40_500, 79_999, N):
        progress = (k - w) / (N - w)
        assert factor["cosine"](k) == pytest.approx(0.5 * (1 + math.cos(math.pi * progress)), abs=1e-12)
        assert factor["linear"](k) == pytest.approx(1 - progress, abs=1e-12)
        assert factor["constant"](k) == 1
    assert factor["cosine"](40_500) == pytest.approx(0.5)
    for name in ("cosine", "linear"):
        falling = [factor[name](k) for k in range(w, N + 1, 100)]
        assert all(a > b for a, b in zip(falling[:-1], falling[1:], strict=True))
        assert factor[name](N) == pytest.approx(0, abs=1e-12)
        assert factor[name](N + 5) == pytest.approx(0, abs=1e-12)  # and does not rise again


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (10, 10), (20, 10), (0, 1)])
def test_rates_stay_between_0_and_1_in_runs_shorter_than_their_warm_up_too(warmup, total):
    for name in ("cosine", "linear", "constant"):
        factor = learning_rate_factor(name, warmup, total)
        assert all(0 <= factor(k) <= 1 for k in range(total + 1))
        assert factor(0) == (0 if warmup else 1)


# Moving average


def test_the_average_copies_for_a_hundred_updates_and_then_decays_by_its_formula():
    net = model()
    ema = make_ema(net, OptimOptions())
    draw = torch.Generator().manual_seed(0)
    for update in range(1, 1001):
        before = ema.ema_model[0].weight.clone()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn(p.shape, generator=draw))
        ema.update()
        weight, averaged = net[0].weight, ema.ema_model[0].weight
        if update <= 101:
            assert torch.equal(averaged, weight)
        else:
            decay = 1 - (update - 100) ** -0.75
            torch.testing.assert_close(averaged, decay * before + (1 - decay) * weight)
        if update == 102:
            assert ema.get_current_decay() == pytest.approx(0.4054, abs=5e-5)
    assert ema.get_current_decay() == pytest.approx(0.99391, abs=5e-6)


def test_the_decay_is_capped():
    ema = make_ema(model(), OptimOptions())
    for step, decay in ((20_000, 0.9994), (80_000, 0.99979), (300_000, 0.9999), (10**7, 0.9999)):
        ema.step.fill_(step)
        assert ema.get_current_decay() == pytest.approx(decay, abs=1e-5)
    low = make_ema(model(), OptimOptions(ema_decay=0.5))
    low.step.fill_(10_000)
    assert low.get_current_decay() == 0.5


def test_the_average_keeps_no_second_copy_of_the_model_and_takes_no_gradient():
    net = model()
    ema = make_ema(net, OptimOptions())
    assert {key.split(".")[0] for key in ema.state_dict()} == {"ema_model", "initted", "step"}
    assert sum(p.numel() for p in ema.parameters()) == sum(p.numel() for p in net.parameters())
    averaged = {id(p) for p in ema.parameters()}
    assert not averaged & {id(p) for g in make_optimizer(net, OptimOptions()).param_groups for p in g["params"]}


def test_the_average_can_skip_updates():
    net = model()
    ema = make_ema(net, OptimOptions(ema_update_every=10))
    seen = set()
    for _ in range(30):
        with torch.no_grad():
            net[0].weight.add_(1)
        ema.update()
        seen.add(ema.ema_model[0].weight[0, 0].item())
    assert len(seen) == 3  # updates 1, 11 and 21


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "awamW"},
        {"lr_schedule": "polynomial"},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"adam_beta1": 1.0},
        {"ema_decay": -0.1},
        {"adam_weight_decay": -1.0},
        {"lr_warmup_steps": -1},
        {"ema_update_every": 0},
        {"max_grad_norm": 0.0},
    ],
)
def test_wrong_options_are_refused_in_one_line_that_names_the_flag(wrong):
    (flag,) = wrong
    with pytest.raises(DiffusionError, match=f"--{flag}") as refusal:
        OptimOptions(**wrong)
    assert "\n" not in str(refusal.value)
