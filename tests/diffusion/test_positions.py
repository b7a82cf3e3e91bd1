"""Networks asked at some positions alone: losses, bounds and samples are those of asking everywhere, at less work."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion.denoiser import CausalDenoiser, TokenDenoiser
from diffusion.guidance import Clamped, Prediction, Tempered
from diffusion.likelihood import draws_of_bound
from diffusion.masked import MaskedProcess
from diffusion.positions import Positions
from diffusion.process import TokenProcess
from diffusion.randomness import SampleGenerators, sample_seeds, uniform
from diffusion.samplers import sample_ancestral
from diffusion.survival import loglinear
from diffusion.token_samplers import sample_ddpm_cache, sample_euler, sample_first_hitting
from diffusion.training.objective import Batch, Objective

B, L, MASK = 4, 7, 3
PLACE, LENGTHS = torch.arange(L), torch.tensor([7, 3, 5, 1])
ONE_LENGTH, SEVERAL = torch.ones(B, L, dtype=torch.bool), PLACE < LENGTHS[:, None]
GIVEN = {
    "nothing": (ONE_LENGTH, PLACE < 0),
    "a prefix, of several lengths": (SEVERAL, PLACE < 2),
    "every other, of several lengths": (SEVERAL, PLACE % 2 == 0),
    "all": (ONE_LENGTH, PLACE >= 0),
}
LABEL = torch.tensor([1, -1, 0, 1])
MASKED = ("mdlm", "d3pm", "sedd_absorb", "gidd_masks_only", "diffusion_bert")


@pytest.fixture(params=GIVEN)
def given(request) -> tuple[Tensor, Tensor]:
    """valid and clamped [B, L]."""
    valid, clamped = GIVEN[request.param]
    return valid, clamped.expand(B, L)


@pytest.fixture
def texts(generator) -> Tensor:
    return torch.randint(3, (B, L), generator=generator(3))


@pytest.fixture
def network(tiny):
    """A tiny denoiser for a process, told classes; `rows` counts the positions that its head wrote for."""

    def make(process: TokenProcess, **options) -> TokenDenoiser:
        kind = CausalDenoiser if process.timesteps == 1 else TokenDenoiser
        denoiser = tiny(kind, process.vocab_size, 2, **options)
        denoiser.rows = []
        denoiser.write.register_forward_hook(
            lambda layer, given, output: denoiser.rows.append(output.shape[:-1].numel())
        )
        return denoiser

    return make


def of_all(process: TokenProcess) -> TokenProcess:
    """The process asking everywhere."""
    other = copy.copy(process)
    other.loss_reads = other.step_reads = None
    return other


@dataclass
class Everywhere:
    """A predictor that asks everywhere and shows of the answer what it is asked for."""

    predict_x0: Prediction

    def __call__(self, xt: Tensor, t: Tensor, at: Positions | None = None) -> Tensor:
        x0_hat = self.predict_x0(xt, t)
        return x0_hat if at is None else at.of(x0_hat)

    def rows(self, index: Tensor) -> "Everywhere":
        return Everywhere(self.predict_x0.rows(index))


def several() -> SampleGenerators:
    return SampleGenerators(sample_seeds(0, 0, B))


# Positions


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_positions_take_and_give_back_what_stands_there(share, generator, randn):
    chosen = torch.rand(B, L, generator=generator()) < share
    at, x, wide, t = Positions.where(chosen), randn(B, L), randn(B, L, 5), randn(B)
    n = int(chosen.sum())
    assert torch.equal(at.of(x), x[chosen][:, None]) and torch.equal(at.of(wide), wide[chosen][:, None])
    assert torch.equal(at.times(t), t[:, None].expand(B, L)[chosen])
    values = randn(n, 1, seed=1)
    assert torch.equal(at.put(x, values)[chosen], values[:, 0]) and torch.equal(at.put(x, values)[~chosen], x[~chosen])
    assert torch.equal(at.spread(values), at.put(torch.zeros(B, L), values))
    for draws in (generator, several, lambda: SampleGenerators([1, 2, 3, 4], LENGTHS.tolist())):
        ours, all_draws = at.draws(draws()), draws()
        for _ in range(2):
            own, whole = uniform((n, 1), ours, None, torch.float64), uniform((B, L), all_draws, None, torch.float64)
            assert torch.equal(own, whole[chosen][:, None])
    with pytest.raises(RuntimeError):
        uniform((n + 1, 1), at.draws(generator()))


# The same as when asking everywhere


def test_losses_and_gradients_are_those_of_asking_everywhere(ideal, method, network, texts, given, generator):
    process = ideal(method).process
    (valid, clamped), results = given, []
    batch = Batch(texts, valid, LABEL, clamped)
    for own in (process, of_all(process)):
        denoiser, seen = network(own), []
        denoiser.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        loss = Objective(own, stratified_times=True)(denoiser, batch, range(own.timesteps), generator())
        loss.mean().backward()
        results.append((loss.detach(), [p.grad for p in denoiser.parameters()]))
        read = ONE_LENGTH if own.loss_reads is None else batch.free & (seen[0] == own.loss_reads)
        assert denoiser.rows == [int(read.sum())]
    (loss, gradients), (loss_of_all, gradients_of_all) = results
    assert loss.sum() > 0 or torch.equal(seen[0][batch.free], texts[batch.free])
    torch.testing.assert_close(loss, loss_of_all, rtol=1e-6, atol=0)
    for ours, theirs in zip(gradients, gradients_of_all, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("name", MASKED)
def test_where_nothing_is_masked_every_parameter_has_a_gradient_of_zero(ideal, network, texts, name, generator):
    """Processes that train together wait for each other's gradients."""
    process = ideal(name).process
    denoiser = network(process).train()
    batch = Batch(texts, ONE_LENGTH, LABEL, clamped=ONE_LENGTH)
    loss = Objective(process)(denoiser, batch, range(process.timesteps), generator())
    loss.mean().backward()
    assert torch.equal(loss, torch.zeros(B, dtype=loss.dtype)) and (denoiser.rows == [0]) == (name != "diffusion_bert")
    assert all(p.grad is not None and (p.grad == 0).all() for p in denoiser.parameters())


def test_the_bound_is_that_of_asking_everywhere(ideal, method, network, texts, given):
    process, (valid, clamped), draws = ideal(method).process, given, []
    free = valid & ~clamped
    denoiser = network(process)
    asking = Prediction(process, denoiser, valid, LABEL)
    with torch.no_grad():
        for predict in (asking, Everywhere(asking)):
            draws.append(draws_of_bound(process, predict, texts, free, 6, several()))
    torch.testing.assert_close(*draws, rtol=1e-6, atol=1e-6)
    assert (draws[0] > 0).any() == free.any()
    if process.loss_reads is not None:
        assert all(rows <= free.sum() for rows in denoiser.rows[:6]) and denoiser.rows[6:] == 6 * [B * L]


SHARP = {"plain": {}, "temperature": {"temperature": 0.7}, "top_p": {"top_p": 0.6}, "top_k": {"top_k": 2}}
CASES = [
    *((name, "ancestral", sharp) for name in (*MASKED, "gidd") if name != "sedd_absorb" for sharp in SHARP),
    *(("mdlm", sampler, sharp) for sampler in ("ddpm_cache", "first_hitting") for sharp in SHARP),
    *((f"sedd_{graph}", sampler, "plain") for graph in ("absorb", "uniform") for sampler in ("ancestral", "euler")),
]
SAMPLERS = {
    "ancestral": sample_ancestral,
    "ddpm_cache": sample_ddpm_cache,
    "first_hitting": sample_first_hitting,
    "euler": sample_euler,
}


@pytest.mark.parametrize(("name", "sampler", "sharp"), CASES)
def test_samples_are_those_of_asking_everywhere(ideal, network, texts, given, name, sampler, sharp):
    """Bit by bit, the numbers that generators draw next included; the head is asked about masks alone."""
    process, (valid, clamped), samples, shown = ideal(name, timesteps=20).process, given, [], []
    denoiser, free = network(process), valid & ~clamped
    for own, view in ((process, lambda predict: predict), (of_all(process), Everywhere)):
        denoiser.rows.clear()
        predict_x0 = view(Prediction(own, denoiser, valid, LABEL))
        if SHARP[sharp]:
            predict_x0 = Tempered(predict_x0, mask_id=own.mask_id, **SHARP[sharp])
        predict_x0, draws = Clamped(predict_x0, texts, free), several()
        x = predict_x0.hold(own.prior((B, L), draws))
        seen = [x]
        x = SAMPLERS[sampler](
            own, predict_x0, x, own.grid(6), generator=draws, on_step=lambda i, n, x, seen=seen: seen.append(x)
        )
        samples.append((predict_x0.hold(x), [torch.rand(1, generator=each) for each in draws.generators]))
        shown.append((seen, list(denoiser.rows)))
    assert torch.equal(samples[0][0], samples[1][0]) and samples[0][1] == samples[1][1]
    assert torch.equal(samples[0][0][~free], texts[~free])
    (seen, rows), (_, rows_of_all) = shown
    if process.step_reads is None:
        assert rows == rows_of_all
    elif sampler in ("ancestral", "euler"):
        assert rows == [int((x == MASK).sum()) for x in seen[:-1]] and rows_of_all == 6 * [B * L]
    else:  # every mask once, in all
        assert sum(rows) == free.sum() and min(rows, default=1) > 0


def test_asking_only_when_masks_go_needs_no_network_that_is_blind_to_time(ideal, network, texts):
    process, samples = ideal("mdlm").process, []
    denoiser = network(process, time_input="layerwise")
    for sampler in (sample_ancestral, sample_ddpm_cache):
        predict_x0 = Clamped(Prediction(process, denoiser, ONE_LENGTH, LABEL), texts, (PLACE > 1).expand(B, L))
        start = predict_x0.hold(process.prior((B, L), None))
        samples.append(sampler(process, predict_x0, start, process.grid(5), generator=several()))
    assert torch.equal(*samples)


# Memory


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return made


@pytest.mark.parametrize("work", ["training", "sampling"])
def test_no_tensor_is_as_large_as_the_logits_of_all_positions(tiny, generator, work):
    """A tenth of 640 positions is masked: the logits of these, and the head's own weights, are what is large."""
    V, length, width = 8000, 160, 64
    process, denoiser = MaskedProcess(V, V - 1, loglinear()), tiny(TokenDenoiser, V)
    x0 = torch.randint(V - 1, (B, length), generator=generator())
    valid = torch.ones(B, length, dtype=torch.bool)
    given = torch.arange(length).expand(B, -1) % 10 != 0
    masks = int((~given).sum())
    with Largest() as largest:
        if work == "training":
            loss = Objective(process)(denoiser, Batch(x0, valid, clamped=given), range(1000), generator())
            loss.mean().backward()
        else:
            predict_x0 = Clamped(Prediction(process, denoiser, valid), x0, ~given)
            start = predict_x0.hold(process.prior((B, length), None))
            sample_ancestral(process, predict_x0, start, process.grid(2), generator=generator())
    assert largest.elements <= max(masks, width) * V < B * length * V / 9
