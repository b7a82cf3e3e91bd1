"""Prediction: what the sampler calls, which hands the denoiser its own last estimate."""

import pytest
import torch
from torch import nn

from diffusion.denoiser import DenoiserOptions, LatentDenoiser
from diffusion.gaussian import GaussianOptions, GaussianProcess
from diffusion.guidance import Prediction
from diffusion.samplers import SAMPLERS
from diffusion.schedules import time_grid

B, L, D = 2, 5, 4


class Recorder(nn.Module):
    """A denoiser that keeps what it was called with and puts out `factor` times xt."""

    def __init__(self, self_condition: bool, factor: float = 0.5, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.self_condition, self.factor, self.dtype, self.calls = self_condition, factor, dtype, []

    def forward(self, xt, t, valid, x0_prev=None, label=None):
        self.calls.append({"xt": xt, "t": t, "valid": valid, "x0_prev": x0_prev, "label": label})
        return (self.factor * xt).to(self.dtype)


def process(**options) -> GaussianProcess:
    return GaussianProcess.from_options(GaussianOptions(**options))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


VALID = torch.arange(L) < torch.tensor([L, 2])[:, None]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objective", ["pred_x0", "pred_noise", "pred_v"])
def test_sampling_feeds_every_estimate_of_x0_into_the_next_step(sampler, objective):
    p, denoiser, label = process(objective=objective), Recorder(self_condition=True), torch.tensor([1, -1])
    predict_x0 = Prediction(p, denoiser, VALID, label)
    x = p.prior((B, L, D), generator())
    SAMPLERS[sampler](p, predict_x0, x, time_grid(1000, 6), generator=generator())
    assert len(denoiser.calls) == 6
    assert denoiser.calls[0]["x0_prev"] is None
    for before, after in zip(denoiser.calls[:-1], denoiser.calls[1:], strict=True):
        estimate = p.denoised(0.5 * before["xt"], before["xt"], before["t"])  # of x0, not the bare output
        assert torch.equal(after["x0_prev"], estimate)
    assert all(call["valid"] is VALID and call["label"] is label for call in denoiser.calls)


def test_a_denoiser_without_self_conditioning_is_given_no_estimate():
    p, denoiser = process(), Recorder(self_condition=False)
    predict_x0 = Prediction(p, denoiser, VALID)
    for t in (1.0, 0.5):
        predict_x0(torch.randn(B, L, D, generator=generator()), torch.full((B,), t))
    assert [call["x0_prev"] for call in denoiser.calls] == [None, None]


def test_the_estimate_has_the_precision_of_xt_whatever_the_trunk_computes_in():
    predict_x0 = Prediction(process(), Recorder(self_condition=True, dtype=torch.bfloat16), VALID)
    xt = torch.randn(B, L, D, generator=generator())
    assert predict_x0(xt, torch.ones(B)).dtype == torch.float32


def test_each_prediction_starts_without_an_estimate():
    denoiser = Recorder(self_condition=True)
    for _ in range(2):
        Prediction(process(), denoiser, VALID)(torch.zeros(B, L, D), torch.ones(B))
    assert [call["x0_prev"] for call in denoiser.calls] == [None, None]


def test_samples_do_not_depend_on_what_their_padding_starts_from():
    torch.manual_seed(0)
    denoiser = LatentDenoiser(D, DenoiserOptions(tx_dim=64, tx_depth=1, self_condition=True)).eval()
    nn.init.normal_(denoiser.write.weight, std=0.1, generator=generator())
    p, samples = process(), []
    for pad in (0.0, 100.0):
        x = torch.where(VALID[..., None], p.prior((B, L, D), generator()), pad)
        predict_x0 = Prediction(p, denoiser, VALID)
        samples.append(SAMPLERS["ddim"](p, predict_x0, x, time_grid(1000, 8), generator=generator()))
    assert torch.equal(samples[0][VALID], samples[1][VALID])
