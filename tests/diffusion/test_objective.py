"""What a training step minimises: padding, times, self-conditioning, dropped labels, and that it can be learnt."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.autoregressive import AutoregressiveProcess
from diffusion.denoiser import CausalDenoiser, DenoiserOptions, LatentDenoiser, TokenDenoiser
from diffusion.gaussian import GaussianOptions, GaussianProcess
from diffusion.masked import EARLIEST, MaskedProcess
from diffusion.randomness import SampleGenerators
from diffusion.schedules import training_steps
from diffusion.survival import loglinear
from diffusion.training.batches import EpochBatches
from diffusion.training.objective import Batch, Objective

T, L, D = 1000, 6, 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def process(**options) -> GaussianProcess:
    return GaussianProcess.from_options(GaussianOptions(**({"objective": "pred_x0", "loss_type": "l1"} | options)))


def make_batch(size: int, seed: int = 0, lengths=None, labels=None) -> Batch:
    lengths = torch.arange(size) % L + 1 if lengths is None else torch.tensor(lengths)
    valid = torch.arange(int(max(L, lengths.max()))) < lengths[:, None]
    return Batch(randn(size, valid.shape[1], D, seed=seed) * valid[..., None], valid, labels)


def make_denoiser(*, classes: int = 0, dropout: bool = False, head: bool = True, **options) -> LatentDenoiser:
    torch.manual_seed(0)
    denoiser = LatentDenoiser(D, DenoiserOptions(64, 1, disable_dropout=not dropout, **options), classes)
    if head:
        nn.init.normal_(denoiser.write.weight, std=0.1, generator=generator(1))
    return denoiser


class Spy(nn.Module):
    """Puts out `weight` times xt and keeps every call with its output."""

    def __init__(self):
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.tensor(0.5)), []

    def forward(self, xt, t, valid, x0_prev=None, label=None):
        output = self.weight * (xt if x0_prev is None else xt + x0_prev)
        call = {"xt": xt, "t": t, "valid": valid, "x0_prev": x0_prev, "label": label, "output": output}
        self.calls.append(call)
        return output


# Padding and weights of samples


@pytest.mark.parametrize(("self_condition", "objective"), list(product([False, True], ["pred_x0", "pred_v"])))
def test_what_stands_on_padding_does_not_change_the_loss(self_condition, objective):
    denoiser = make_denoiser(self_condition=self_condition)
    loss = Objective(process(objective=objective), 0.5 if self_condition else 0.0)
    batch = make_batch(12)
    other = Batch(torch.where(batch.valid[..., None], batch.x0, 1e3 * randn(12, L, D, seed=3)), batch.valid)
    assert torch.equal(loss(denoiser, batch, range(T), generator()), loss(denoiser, other, range(T), generator()))


def test_a_sample_counts_the_same_whether_it_has_5_positions_or_64():
    loss, denoiser, batch = Objective(process()), make_denoiser(head=False), make_batch(2, lengths=[5, 64])
    per_sample = loss(denoiser, batch, range(T), generator())
    assert per_sample.shape == (2,)
    # The untrained denoiser puts out 0, so the loss of a sample is the mean size of its own x0.
    expected = torch.stack([row[v].abs().mean() for row, v in zip(batch.x0, batch.valid, strict=True)])
    torch.testing.assert_close(per_sample, expected)
    pooled = batch.x0[batch.valid].abs().mean()
    doubled = Batch(batch.x0 * torch.tensor([2.0, 1.0])[:, None, None], batch.valid)
    gained = loss(denoiser, doubled, range(T), generator()).mean() - per_sample.mean()
    torch.testing.assert_close(gained, expected[0] / 2)  # half of the mean, though it has 5 of 69 positions
    assert (per_sample.mean() - pooled).abs() > 1e-3


def test_first_loss_is_the_mean_size_of_gaussian_latents():
    loss = Objective(process())(make_denoiser(head=False), make_batch(600), range(T), generator()).mean()
    assert loss.item() == pytest.approx((2 / torch.pi) ** 0.5, abs=0.01)


# Times


@pytest.mark.parametrize("T_k", [1, 200, 1000])
def test_times_reach_the_end_of_the_range_and_no_further(T_k):
    spy = Spy()
    for seed in range(10):
        Objective(process())(spy, make_batch(500), range(T_k), generator(seed))
    times = torch.cat([call["t"] for call in spy.calls])
    assert times.max().item() == pytest.approx(T_k / T)
    assert times.min().item() == pytest.approx(1 / T)
    assert times.mean().item() == pytest.approx((T_k + 1) / 2 / T, rel=0.05)


def test_the_network_sees_noise_of_the_time_it_is_told():
    spy, p = Spy(), process()
    x0 = torch.zeros(2000, 4, D)
    Objective(p)(spy, Batch(x0, torch.ones(2000, 4, dtype=torch.bool)), range(T), generator())
    (call,) = spy.calls
    noise = call["xt"] / (1 - p.alpha_bar(call["t"])).sqrt().float()[:, None, None]
    for part in noise[call["t"].argsort()].chunk(4):
        assert part.std().item() == pytest.approx(1, abs=0.02)


def test_stratified_times_are_one_from_each_bin_in_random_order():
    """The first of the batch is at any time: batches are sorted by length."""
    process, denoiser, B = MaskedProcess(5, 4, loglinear()), Tokens(5), 16
    batch = Batch(torch.zeros(B, 3).long(), torch.ones(B, 3, dtype=torch.bool))
    for stratified_times in (True, False):
        denoiser.calls.clear()
        for seed in range(200):
            Objective(process, stratified_times=stratified_times)(denoiser, batch, range(T), generator(seed))
        times = torch.stack([call["t"] for call in denoiser.calls])
        bins = ((times - EARLIEST) / (1 - EARLIEST) * B).long()
        assert (bins.sort(1).values == torch.arange(B)).all().item() == stratified_times
        assert times.dtype == torch.float64 and times[:, 0].std().item() == pytest.approx(12**-0.5, rel=0.1)
        assert times.mean(0).sub(0.5).abs().max() < 0.1


# Clamped positions and weights of positions


class Tokens(nn.Module):
    """Random logits [B, L, V] with a gradient, or those of some positions; keeps every call with the output of all."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.vocab_size, self.calls = vocab_size, []

    def forward(self, xt, t, valid, x0_prev=None, label=None, at=None):
        output = randn(*xt.shape, self.vocab_size, seed=len(self.calls)).requires_grad_()
        self.calls.append({"xt": xt, "t": t, "valid": valid, "output": output})
        return output if at is None else at.of(output)


@pytest.mark.parametrize("mean_length", [None, 3.5])
def test_clamped_positions_show_x0_and_have_no_loss_under_any_process(ideal, method, mean_length):
    process, lengths, place = ideal(method).process, torch.arange(40) % L + 1, torch.arange(L)
    x0 = torch.randint(3, (40, L), generator=generator())
    batch = Batch(x0, place < lengths[:, None], clamped=(place < 2).expand(40, L))
    assert torch.equal(batch.free, (place >= 2) & (place < lengths[:, None]))
    denoiser, objective = Tokens(process.vocab_size), Objective(process, stratified_times=True, mean_length=mean_length)
    loss = objective(denoiser, batch, range(process.timesteps), generator())
    (call,) = denoiser.calls
    assert torch.equal(call["xt"][:, :2], x0[:, :2]) and torch.equal(call["valid"], batch.valid)
    assert method == "ar" or (call["xt"] != x0)[batch.free].any()
    each = torch.where(batch.free, process.loss(call["output"], x0, call["xt"], call["t"]), 0.0)
    counts = batch.free.sum(1)
    expected = each.sum(1) / (mean_length or counts.clamp(min=1))
    torch.testing.assert_close(loss, expected, check_dtype=False)
    assert (loss[counts == 0] == 0).all() and loss.sum() > 0
    loss.sum().backward()
    gradient = call["output"].grad.abs().sum(-1)
    assert (gradient[~batch.free] == 0).all() and (gradient[batch.free] > 0).any() and gradient.isfinite().all()


class Nats(nn.Module):
    """Finds every token 0 of two at a cost of 1 nat in texts of 10 tokens, of 3 nats in longer ones."""

    def forward(self, xt, t, valid, x0_prev=None, label=None):
        right = torch.where(valid.sum(1) == 10, -1.0, -3.0)[:, None].expand(xt.shape)
        return torch.stack([right, (-right.exp()).log1p()], dim=-1)


def test_an_epoch_weighs_tokens_alike_though_its_batches_hold_texts_of_similar_length():
    lengths = np.repeat([10, 50], 64)
    x0, valid = torch.zeros(128, 50).long(), torch.arange(50) < torch.from_numpy(lengths)[:, None]
    by_token, by_text = (
        torch.stack(
            [
                Objective(AutoregressiveProcess(2), mean_length=mean_length)(
                    Nats(), Batch(x0[chosen], valid[chosen]), range(1), generator()
                ).mean()
                for chosen in EpochBatches(lengths, 8, seed=0).of_epoch(0)
            ]
        )
        for mean_length in (30, None)
    )
    assert by_token.mean().item() == pytest.approx((10 * 1 + 50 * 3) / 60, rel=1e-5)
    assert by_text.mean().item() == pytest.approx(2, rel=1e-5)
    assert len(by_token.unique()) == 2  # batches are of one length each, or nothing was tried


# Every process of tokens


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_annealing_from_the_other_end_draws_the_latest_times_of_every_method(ideal, method, share):
    process = ideal(method, timesteps=100).process
    if method == "ar":
        return
    T_k = int(share * process.timesteps)
    steps = training_steps("high_to_low", process.timesteps, T_k)
    t = process.times(torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64), steps)
    assert len(steps) == T_k and t[0] >= 1 - share and (t.diff() > 0).all()
    assert t[0].item() == pytest.approx(1 - share, abs=0.0101) and t[-1].item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_annealing_limits_the_noise_that_every_method_sees(ideal, method, share):
    """T_k of T steps: no later time, and of every time as much noise as belongs to it."""
    process, B, many = ideal(method, timesteps=100).process, 60, 3000
    T_k = int(share * process.timesteps)
    x0, denoiser = torch.randint(3, (B, many), generator=generator()), Tokens(process.vocab_size)
    batch = Batch(x0, torch.ones(B, many, dtype=torch.bool))
    Objective(process, stratified_times=True)(denoiser, batch, range(T_k), generator(1))
    (call,) = denoiser.calls
    noise, expected = ((xt != x0).double().mean(1) for xt in (call["xt"], process.corrupt(x0, call["t"], generator(2))))
    torch.testing.assert_close(noise, expected, rtol=0, atol=0.06)
    if method == "ar":
        assert (noise == 0).all()  # has no times
        return
    assert call["t"].max() > 0.9 * share and call["t"].min() < 0.1 * share + 0.01
    assert process.times(torch.tensor([1 - 2**-53], dtype=torch.float64), range(T_k)).item() <= share + 1e-12
    latest = process.corrupt(x0[:1], torch.tensor([share]), generator(3))
    assert noise.max() <= (latest != x0[:1]).double().mean() + 0.06


def test_no_loss_depends_on_the_batch_or_its_padding_under_any_process(ideal, method, tiny):
    process, lengths, place = ideal(method).process, torch.tensor([14, 9, 12]), torch.arange(19)
    denoiser = tiny(CausalDenoiser if method == "ar" else TokenDenoiser, process.vocab_size)
    x0 = torch.randint(3, (3, 19), generator=generator())

    def losses(rows: list[int], width: int, pad_id: int = 0) -> torch.Tensor:
        valid = (place < lengths[rows][:, None])[:, :width]
        shown = torch.where(valid, x0[rows, :width], pad_id)
        batch = Batch(shown, valid, clamped=(place[:width] < 1).expand(len(rows), width))
        own = SampleGenerators(rows, lengths[rows].tolist())
        return Objective(process)(denoiser, batch, range(process.timesteps), own)

    together = losses([0, 1, 2], 14)
    assert together.max() > 0.1
    for other in (losses([0, 1, 2], 19), losses([0, 1, 2], 19, 2), torch.cat([losses([i], 15) for i in range(3)])):
        torch.testing.assert_close(other, together, rtol=1e-4, atol=1e-5)


# Self-conditioning


def test_half_of_the_samples_see_an_estimate_each_by_a_coin_of_its_own():
    spy, objective, rates = Spy(), Objective(process(), self_condition_prob=0.5), []
    for seed in range(40):
        spy.calls.clear()
        objective(spy, make_batch(100), range(T), generator(seed))
        rates.append((spy.calls[-1]["x0_prev"].abs().amax(dim=(1, 2)) > 0).float().mean())
    rates = torch.stack(rates)
    assert rates.mean().item() == pytest.approx(0.5, abs=0.02)
    assert 0.02 < rates.std().item() < 0.1  # 0.05 for coins per sample, 0.5 for a coin per batch


def test_a_host_generator_alone_decides_which_samples_see_an_estimate():
    def chosen(seed: int, host: int):
        spy = Spy()
        Objective(process(), self_condition_prob=0.5)(spy, make_batch(50), range(T), generator(seed), generator(host))
        return (spy.calls[-1]["x0_prev"].abs().amax(dim=(1, 2)) > 0).tolist()

    assert chosen(1, host=1) == chosen(2, host=1) != chosen(1, host=2)


@pytest.mark.parametrize(("prob", "calls"), [(0.0, 1), (1.0, 2)])
def test_the_ends_of_the_rate_are_exact(prob, calls):
    spy = Spy()
    Objective(process(), self_condition_prob=prob)(spy, make_batch(20), range(T), generator())
    assert len(spy.calls) == calls
    if prob == 0:
        assert spy.calls[0]["x0_prev"] is None
    else:
        assert (spy.calls[1]["x0_prev"].abs().amax(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("objective", ["pred_x0", "pred_noise", "pred_v"])
def test_the_estimate_is_that_of_the_same_noisy_sample_and_of_x0(objective):
    spy, p, labels = Spy(), process(objective=objective), torch.arange(20) % 3
    Objective(p, 0.5, 0.3)(spy, make_batch(20, labels=labels), range(400), generator())
    first, second = spy.calls
    chosen = (second["x0_prev"].abs().amax(dim=(1, 2)) > 0).nonzero().squeeze(1)
    assert 0 < len(chosen) < 20
    for name in ("xt", "t", "valid", "label"):
        assert torch.equal(first[name], second[name][chosen])
    assert first["x0_prev"] is None
    expected = p.denoised(first["output"], first["xt"], first["t"])
    assert torch.equal(second["x0_prev"][chosen], expected)


def test_no_gradient_flows_through_the_first_pass():
    spy, batch = Spy(), make_batch(30)
    Objective(process(loss_type="l2"), self_condition_prob=1.0)(spy, batch, range(T), generator()).sum().backward()
    first, second = spy.calls
    assert not first["output"].requires_grad and not second["x0_prev"].requires_grad
    # d/dw of |w (xt + x0_prev) - x0|^2 with x0_prev held fixed, although x0_prev = w xt
    seen = second["xt"] + second["x0_prev"]
    per_position = (2 * (spy.weight.detach() * seen - batch.x0) * seen).mean(dim=-1)
    expected = (per_position * batch.valid).sum(dim=1) / batch.valid.sum(dim=1)
    torch.testing.assert_close(spy.weight.grad, expected.sum())


def test_every_parameter_gets_a_gradient_in_mixed_precision_too():
    """Autocast keeps low-precision copies of weights; those made in the first pass must not serve the second."""
    denoiser, batch = make_denoiser(self_condition=True, scale_shift=True), make_batch(8)
    objective = Objective(process(), self_condition_prob=1.0)
    gradients = []
    for enabled in (False, True):
        denoiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = objective(denoiser, batch, range(T), generator()).mean()
        assert loss.dtype == torch.float32
        loss.backward()
        assert all(p.grad is not None for p in denoiser.parameters())
        gradients.append(torch.cat([p.grad.flatten() for p in denoiser.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98


# Labels


def test_labels_are_dropped_at_the_given_rate_in_training_only():
    spy, objective = Spy(), Objective(process(), 0.5, class_unconditional_prob=0.1)
    for seed in range(20):
        objective(spy.train(), make_batch(500, labels=torch.arange(500) % 3), range(500), generator(seed))
    training = [call["label"] for call in spy.calls if call["x0_prev"] is not None]
    kept = torch.cat(training).view(20, 500)
    assert (kept == -1).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert ((kept == -1) | (kept == torch.arange(500) % 3)).all()
    assert len({tuple(row.tolist()) for row in kept}) == 20  # another draw each time
    spy.calls.clear()
    objective(spy.eval(), make_batch(500, labels=torch.arange(500) % 3), range(500), generator())
    assert all((call["label"] >= 0).all() for call in spy.calls)


def test_the_labels_of_the_batch_are_never_changed():
    labels = torch.arange(50) % 3
    batch = make_batch(50, labels=labels)
    for training in (True, False):
        Objective(process(), 0.5, 0.9)(make_denoiser(classes=3).train(training), batch, range(T), generator())
    assert batch.label is labels and labels.tolist() == (torch.arange(50) % 3).tolist()


def test_labels_change_the_output_after_one_step_of_training():
    denoiser, batch = make_denoiser(classes=2, head=False), make_batch(16, labels=torch.arange(16) % 2)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3)
    Objective(process(), class_unconditional_prob=0.1)(denoiser, batch, range(T), generator()).mean().backward()
    optimizer.step()
    t = torch.full((16,), 0.5)
    outputs = [denoiser(batch.x0, t, batch.valid, label=torch.full((16,), label)) for label in (-1, 0, 1)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (outputs[one] - outputs[other]).abs().max() > 1e-5


# Randomness


def test_a_loss_is_a_function_of_its_generator_and_leaves_the_global_one_alone():
    denoiser, batch = make_denoiser(self_condition=True), make_batch(16)
    objective, state = Objective(process(), 0.5, 0.1), torch.get_rng_state()
    one = objective(denoiser, batch, range(T), generator(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(one, objective(denoiser, batch, range(T), generator(5)))
    assert not torch.equal(one, objective(denoiser, batch, range(T), generator(6)))


def test_training_and_evaluation_mode_draw_the_same_times_and_noise():
    spies = Spy().train(), Spy().eval()
    for spy in spies:
        Objective(process(), 0.5, 0.0)(spy, make_batch(16, labels=torch.zeros(16).long()), range(T), generator())
    for name in ("t", "xt"):
        assert torch.equal(spies[0].calls[-1][name], spies[1].calls[-1][name])


# Learning


@pytest.mark.parametrize(("scale_shift", "objective"), [(False, "pred_x0"), (True, "pred_x0"), (True, "pred_v")])
def test_latents_made_of_a_few_atoms_are_learnt(scale_shift, objective):
    """Texts over an alphabet of four atoms: with little noise the atom can be read off, so the loss falls far."""
    atoms = randn(4, D, seed=7)
    denoiser = make_denoiser(scale_shift=scale_shift, self_condition=True, head=False)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=2e-3)
    loss, losses, draws = Objective(process(objective=objective, loss_type="l2"), 0.5), [], generator(9)
    valid = torch.arange(L) < (torch.arange(48) % L + 1)[:, None]
    for _ in range(100):
        tokens = torch.randint(4, (48, L), generator=draws)
        value = loss(denoiser, Batch(atoms[tokens] * valid[..., None], valid), range(T), draws).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert all(map(math.isfinite, losses))
