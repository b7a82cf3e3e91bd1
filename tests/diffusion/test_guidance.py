"""What the sampler calls: the denoiser with its own last estimate, sharpened, or with positions held as they are."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy import stats
from torch import nn

from diffusion.denoiser import LatentDenoiser
from diffusion.guidance import Clamped, Guided, Prediction, Tempered
from diffusion.masked import D3PMProcess
from diffusion.samplers import SAMPLERS, sample_ancestral, sample_ddim, sample_dpmpp, sample_q
from diffusion.schedules import time_grid
from diffusion.token_samplers import sample_left_to_right

B, L, D = 2, 5, 4


class Recorder(nn.Module):
    """A denoiser that keeps what it was called with and puts out `factor` times xt."""

    def __init__(self, self_condition: bool, factor: float = 0.5, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.self_condition, self.factor, self.dtype, self.calls = self_condition, factor, dtype, []

    def forward(self, xt, t, valid, x0_prev=None, label=None, at=None):
        self.calls.append({"xt": xt, "t": t, "valid": valid, "x0_prev": x0_prev, "label": label})
        return (self.factor * xt).to(self.dtype)


VALID = torch.arange(L) < torch.tensor([L, 2])[:, None]


# Prediction


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objective", ["pred_x0", "pred_noise", "pred_v"])
def test_sampling_feeds_every_estimate_of_x0_into_the_next_step(gaussian, generator, sampler, objective):
    p, denoiser, label = gaussian(objective=objective), Recorder(self_condition=True), torch.tensor([1, -1])
    predict_x0 = Prediction(p, denoiser, VALID, label)
    x = p.prior((B, L, D), generator())
    SAMPLERS[sampler](p, predict_x0, x, time_grid(1000, 6), generator=generator())
    assert len(denoiser.calls) == 6
    assert denoiser.calls[0]["x0_prev"] is None
    for before, after in zip(denoiser.calls[:-1], denoiser.calls[1:], strict=True):
        estimate = p.denoised(0.5 * before["xt"], before["xt"], before["t"])  # of x0, not the bare output
        assert torch.equal(after["x0_prev"], estimate)
    assert all(call["valid"] is VALID and call["label"] is label for call in denoiser.calls)


def test_a_denoiser_without_self_conditioning_is_given_no_estimate(gaussian, randn):
    p, denoiser = gaussian(), Recorder(self_condition=False)
    predict_x0 = Prediction(p, denoiser, VALID)
    for t in (1.0, 0.5):
        predict_x0(randn(B, L, D), torch.full((B,), t))
    assert [call["x0_prev"] for call in denoiser.calls] == [None, None]


def test_the_estimate_has_the_precision_of_xt_whatever_the_trunk_computes_in(gaussian, randn):
    predict_x0 = Prediction(gaussian(), Recorder(self_condition=True, dtype=torch.bfloat16), VALID)
    assert predict_x0(randn(B, L, D), torch.ones(B)).dtype == torch.float32


class Computing(Recorder):
    """Keeps the precision that products are taken in, None where it is that of the weights."""

    def forward(self, *args, **kwargs):
        self.calls.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return args[0]

    def next(self, written, cache, label):
        return self(torch.zeros(len(written), 4)), cache


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
def test_the_denoiser_alone_computes_in_the_precision_chosen(gaussian, randn, ideal, precision):
    denoiser, x, t = Computing(self_condition=False), randn(B, L, D), torch.ones(B)
    predict_x0 = Prediction(gaussian(), denoiser, VALID, precision=precision)
    for predict in (predict_x0, predict_x0.rows(torch.tensor([1, 0])), replace(predict_x0, forgets=True)):
        assert torch.equal(predict(x, t), x) and not torch.is_autocast_enabled("cpu")
    Prediction(ideal("ar").process, denoiser, VALID, precision=precision).next(torch.zeros(B, 1).long(), None)
    assert denoiser.calls == 4 * [precision]


def test_each_prediction_starts_without_an_estimate(gaussian):
    denoiser = Recorder(self_condition=True)
    for _ in range(2):
        Prediction(gaussian(), denoiser, VALID)(torch.zeros(B, L, D), torch.ones(B))
    assert [call["x0_prev"] for call in denoiser.calls] == [None, None]


def test_samples_do_not_depend_on_what_their_padding_starts_from(gaussian, generator, tiny):
    denoiser, p, samples = tiny(LatentDenoiser, D, self_condition=True), gaussian(), []
    for pad in (0.0, 100.0):
        x = torch.where(VALID[..., None], p.prior((B, L, D), generator()), pad)
        predict_x0 = Prediction(p, denoiser, VALID)
        samples.append(SAMPLERS["ddim"](p, predict_x0, x, time_grid(1000, 8), generator=generator()))
    assert torch.equal(samples[0][VALID], samples[1][VALID])


def test_some_samples_are_predicted_as_among_all(gaussian, generator, randn, tiny):
    predict_x0 = Prediction(gaussian(), tiny(LatentDenoiser, D, 3), VALID, torch.tensor([2, -1]))
    xt, t = randn(B, L, D), torch.tensor([0.2, 0.9])
    whole = predict_x0(xt, t)
    for row in range(B):
        index = torch.tensor([row])
        one = predict_x0.rows(index)(xt[index], t[index])
        torch.testing.assert_close(one[0][VALID[row]], whole[row][VALID[row]], rtol=1e-5, atol=1e-5)


def test_some_samples_go_on_from_their_own_estimates(gaussian, randn):
    denoiser = Recorder(self_condition=True)
    predict_x0 = Prediction(gaussian(), denoiser, VALID)
    estimate = predict_x0(randn(B, L, D), torch.ones(B))
    some = predict_x0.rows(torch.tensor([1]))
    some(randn(1, L, D), torch.ones(1))
    assert torch.equal(denoiser.calls[1]["x0_prev"], estimate[[1]])
    assert torch.equal(predict_x0.x0_prev, estimate)


def test_token_logits_stay_as_the_trunk_gave_them():
    class Logits(nn.Module):
        self_condition = False

        def forward(self, xt, t, valid, x0_prev=None, label=None, at=None):
            return torch.zeros(*xt.shape, 4, dtype=torch.bfloat16)

    log_p = Prediction(D3PMProcess(4, 3), Logits(), VALID)(torch.zeros(B, L).long(), torch.ones(B))
    assert log_p.dtype == torch.float32 and log_p.exp().sum(-1).allclose(torch.ones(B, L))


# Tempered


class Fixed:
    """Always predicts the same, by rows and next as well."""

    def __init__(self, log_p):
        self.log_p = log_p

    def __call__(self, xt, t, at=None):
        return self.log_p if at is None else at.of(self.log_p)

    def rows(self, index):
        return Fixed(self.log_p[index])

    def next(self, written, cache):
        return self.log_p[:, written.shape[1]], "cache"


def sharpened(log_p: torch.Tensor, **options) -> torch.Tensor:
    return Tempered(Fixed(log_p), **options)(None, None)


@pytest.fixture
def log_p(randn) -> torch.Tensor:
    return (2 * randn(3, 4, 9, dtype=torch.float64)).log_softmax(-1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_takes_probabilities_to_a_power(log_p, temperature):
    power = log_p.exp() ** (1 / temperature)
    expected = power / power.sum(-1, keepdim=True)
    torch.testing.assert_close(sharpened(log_p, temperature=temperature).exp(), expected)


@pytest.mark.parametrize("top_k", [1, 3, 9, 100])
def test_top_k_keeps_so_many_of_the_likeliest(log_p, top_k):
    p = sharpened(log_p, top_k=top_k).exp()
    kept = p > 0
    assert (kept.sum(-1) == min(top_k, 9)).all()
    assert (log_p.masked_fill(kept, -torch.inf).amax(-1) < log_p.masked_fill(~kept, torch.inf).amin(-1)).all()
    expected = torch.where(kept, log_p.exp(), 0.0)
    torch.testing.assert_close(p, expected / expected.sum(-1, keepdim=True))


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.7, 0.999])
def test_top_p_keeps_the_smallest_set_of_that_probability(log_p, top_p):
    p, whole = sharpened(log_p, top_p=top_p).exp(), log_p.exp()
    kept = p > 0
    mass = torch.where(kept, whole, 0.0).sum(-1)
    least = whole.masked_fill(~kept, 1.0).amin(-1)
    assert (mass >= top_p).all() and (mass - least < top_p).all()  # without its least likely token it is too small
    assert (whole.masked_fill(kept, 0.0).amax(-1) <= least).all()
    torch.testing.assert_close(p, torch.where(kept, whole, 0.0) / mass[..., None])


def test_top_p_is_of_what_temperature_and_top_k_left(log_p):
    one_after_another = sharpened(sharpened(sharpened(log_p, temperature=1.5), top_k=4), top_p=0.6)
    torch.testing.assert_close(sharpened(log_p, temperature=1.5, top_k=4, top_p=0.6), one_after_another)


def test_near_temperature_zero_the_likeliest_is_certain(log_p):
    for temperature in (1e-6, 1e-44):
        p = sharpened(log_p.float(), temperature=temperature).exp()
        assert torch.equal(p.argmax(-1), log_p.argmax(-1)) and (p.amax(-1) == 1).all() and (p.sum(-1) == 1).all()


SHARP = [{"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.4}, {"temperature": 3.0, "top_k": 4, "top_p": 0.9}]


@pytest.mark.parametrize("options", SHARP)
@pytest.mark.parametrize("mask_id", [None, 3])
def test_what_is_certain_stays_so(options, mask_id):
    """Rows of tokens that are copied, one-hot, come out as they were."""
    certain = torch.nn.functional.one_hot(torch.tensor([[0, 2, 4]]), 5).float().log()
    assert torch.equal(sharpened(certain, mask_id=mask_id, **options), certain)


@pytest.mark.parametrize("options", SHARP)
def test_the_mask_keeps_its_share_and_the_tokens_are_sharpened_among_themselves(randn, options):
    log_p = (2 * randn(3, 4, 9, dtype=torch.float64) + 5 * (torch.arange(9) == 3)).log_softmax(-1)
    ours = sharpened(log_p, mask_id=3, **options)
    assert torch.equal(ours[..., 3], log_p[..., 3])
    torch.testing.assert_close(ours.exp().sum(-1), torch.ones(3, 4).double())
    tokens = [v for v in range(9) if v != 3]
    among = sharpened(log_p[..., tokens].log_softmax(-1), **options)
    torch.testing.assert_close(ours[..., tokens].log_softmax(-1), among)


@pytest.mark.parametrize("options", SHARP)
def test_rows_and_the_next_position_are_sharpened_alike(log_p, options):
    predict_x0 = Tempered(Fixed(log_p), mask_id=3, **options)
    whole, index = predict_x0(None, None), torch.tensor([2, 0])
    assert torch.equal(predict_x0.rows(index)(None, None), whole[index])
    following, cache = predict_x0.next(torch.zeros(3, 2), None)
    assert torch.equal(following, whole[:, 2]) and cache == "cache"


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.5}, {"temperature": 1e-6}])
def test_a_process_that_predicts_masks_can_be_sharpened(generator, options):
    """The mask is far likelier than all tokens together, and must not be all that is left for the last step."""
    process = D3PMProcess(4, 3, timesteps=10)
    log_p = torch.tensor([0.001, 0.006, 0.003, 0.99]).log().expand(2, 5, 4)
    predict_x0 = Tempered(Fixed(log_p), mask_id=process.mask_id, **options)
    shown = []
    x = sample_ancestral(
        process, predict_x0, process.prior((2, 5), None), process.grid(10), generator=generator(),
        on_step=lambda i, n, x: shown.append((x != 3).sum()),
    )  # fmt: skip
    assert (x == 1).all() and shown[8] < 5  # as many as the network says, and all in the last step


def test_every_method_that_predicts_probabilities_can_be_sharpened(ideal, method, generator):
    if method.startswith("sedd"):
        pytest.skip("predicts ratios")
    exact = ideal(method, timesteps=16)
    process, sampler = exact.process, sample_left_to_right if method == "ar" else sample_ancestral
    predict_x0 = Tempered(exact, top_k=1, mask_id=process.mask_id)
    x = sampler(process, predict_x0, process.prior((500, 2), generator()), process.grid(16), generator=generator())
    assert ((x >= 0) & (x < 3)).all()
    assert len(x.unique(dim=0)) <= (1 if method == "ar" else 6)  # of 9; which depends on what was shown first


# Guided


class Labelled(Recorder):
    """Puts out its label everywhere, 0 where none is told, plus half of the estimate before."""

    def forward(self, xt, t, valid, x0_prev=None, label=None, at=None):
        super().forward(xt, t, valid, x0_prev, label, at)
        said = torch.zeros_like(xt) if label is None else label.view(-1, 1, 1).expand_as(xt).to(xt.dtype)
        return said if x0_prev is None else said + 0.5 * x0_prev


def guided(process, denoiser, weight, *, forgets=False):
    told = Prediction(process, denoiser, VALID, torch.tensor([2, 4]))
    less = replace(told, forgets=True) if forgets else replace(told, label=None)
    return Guided(told, less, weight)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 3.0])
def test_a_label_is_followed_by_its_weight_and_both_are_told_what_came_of_it(gaussian, weight):
    predict_x0, xt = guided(gaussian(), Labelled(self_condition=True), weight), torch.zeros(B, L, D)
    label = torch.tensor([2.0, 4.0]).view(-1, 1, 1).expand(B, L, D)
    first = predict_x0(xt, torch.ones(B))
    torch.testing.assert_close(first, weight * label)
    second = predict_x0(xt, torch.full((B,), 0.5))  # 0.5 first + label, 0.5 first
    torch.testing.assert_close(second, 0.5 * first + weight * label)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_an_estimate_is_trusted_by_its_weight(gaussian, weight):
    predict_x0, xt = guided(gaussian(), Labelled(self_condition=True), weight, forgets=True), torch.zeros(B, L, D)
    first = predict_x0(xt, torch.ones(B))
    second = predict_x0(xt, torch.full((B,), 0.5))  # label + 0.5 first, label
    torch.testing.assert_close(second, first + weight * 0.5 * first)


@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_weight_of_one_is_no_guidance_to_the_bit(gaussian, generator, tiny, sampler, forgets):
    denoiser, p = tiny(LatentDenoiser, D, 5, self_condition=True), gaussian()
    with_one = guided(p, denoiser, 1.0, forgets=forgets)
    x = p.prior((B, L, D), generator())
    ours, plain = (
        SAMPLERS[sampler](p, predict_x0, x, time_grid(1000, 5), generator=generator(1))
        for predict_x0 in (with_one, replace(with_one.told))
    )
    assert torch.equal(ours, plain)


def test_some_rows_are_guided_as_among_all(gaussian, randn, tiny):
    predict_x0 = guided(gaussian(), tiny(LatentDenoiser, D, 5, self_condition=True), 2.0)
    xt, t = randn(B, L, D), torch.tensor([0.2, 0.9])
    whole, index = predict_x0(xt, t), torch.tensor([1])
    some = guided(gaussian(), predict_x0.told.denoiser, 2.0).rows(index)(xt[index], t[index])
    torch.testing.assert_close(some[0][VALID[1]], whole[1][VALID[1]], rtol=1e-5, atol=1e-5)


class Told:
    """A prediction of tokens that is given."""

    def __init__(self, log_p):
        self.log_p = log_p

    def __call__(self, xt, t, at=None):
        return self.log_p

    def next(self, written, cache):
        return self.log_p, (cache or 0) + 1

    def feed(self, x0_hat):
        pass


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0])
def test_guided_probabilities_are_those_of_the_mixture_of_logarithms(weight):
    told = torch.tensor([0.5, 0.3, 0.2, 0.0]).log().view(1, 1, 4)
    less = torch.tensor([0.2, 0.4, 0.4, 0.0]).log().view(1, 1, 4)
    predict_x0 = Guided(Told(told), Told(less), weight, normalised=True)
    wanted = less.exp() * (told - less).nan_to_num().mul(weight).exp()
    torch.testing.assert_close(predict_x0(None, None).exp(), wanted / wanted.sum())
    found, cache = predict_x0.next(torch.zeros(1, 0), None)
    torch.testing.assert_close(found.exp(), wanted / wanted.sum())
    assert predict_x0.next(torch.zeros(1, 1), cache)[1] == (2, 2)


# Clamped


@pytest.fixture(
    params=[sample_ancestral, sample_dpmpp, sample_q, *(partial(sample_ddim, eta=eta) for eta in (0.0, 0.5, 1.0))]
)
def sampler(request):
    return request.param


def test_known_latents_end_as_they_are_and_the_others_are_made(gaussian, generator, randn, sampler):
    p, known, free = gaussian(), randn(B, L, D, seed=1), torch.tensor([[False, True, True, False, True]]).expand(B, L)
    start, samples = p.prior((B, L, D), generator()), []
    for predict_x0 in (lambda xt, t: torch.tanh(xt), Clamped(lambda xt, t: torch.tanh(xt), known, free)):
        samples.append(sampler(p, predict_x0, start, p.grid(20), generator=generator(2)))
    assert torch.equal(samples[1][~free], known[~free])
    assert torch.equal(samples[1][free], samples[0][free])  # a network that looks at other positions would see them


@pytest.mark.parametrize("step", [0, 3, 8])
def test_on_their_way_known_latents_are_noised_as_in_training(gaussian, generator, sampler, step):
    """Whatever the sampler draws: x_t has the mean and spread of q(x_t | x_0 = known)."""
    p, known, seen = gaussian(), torch.full((1, 4, 50_000), 1.5), []

    def predict_x0(xt, t):
        seen.append((xt, p.alpha_bar(t).item()))
        return torch.zeros_like(xt)

    times = p.grid(10)
    clamped = Clamped(predict_x0, known, torch.zeros(1, 4, dtype=torch.bool))
    sampler(p, clamped, p.prior(known.shape, generator()), times, generator=generator(1))
    xt, left = seen[step]
    assert xt.mean().item() == pytest.approx(1.5 * left**0.5, abs=0.01)
    assert xt.var().item() == pytest.approx(1 - left, rel=0.02)


def test_given_tokens_reach_the_network_bit_by_bit_and_the_rest_follows_from_them(toy, ideal, method, generator):
    n, exact = 6000, ideal(method, timesteps=16, clamped=(True, False))
    process, known = exact.process, torch.stack([torch.arange(n) % 3, torch.zeros(n).long()], dim=1)
    free, inputs, seen = torch.tensor([False, True]).expand(n, 2), [], []

    class Watched(type(exact)):
        def __call__(self, xt, t, at=None):
            inputs.append(xt)
            return super().__call__(xt, t, at)

    watched = Watched(**vars(exact))
    predict_x0 = Clamped(watched, known, free)
    sampler = sample_left_to_right if method == "ar" else sample_ancestral
    x = sampler(
        process, predict_x0, predict_x0.hold(process.prior((n, 2), generator())), process.grid(8),
        generator=generator(1), on_step=lambda i, n, x: seen.append(predict_x0.hold(x)),
    )  # fmt: skip
    assert len(seen) == (2 if method == "ar" else 8)
    for xt in (*inputs[method == "ar" :], *seen):
        assert torch.equal(xt[:, 0], known[:, 0])
    x = predict_x0.hold(x)
    counts = torch.bincount(3 * x[:, 0] + x[:, 1], minlength=9)
    expected = n / 3 * (toy.p / toy.p.sum(1, keepdim=True)).flatten()
    assert stats.chisquare(counts.numpy(), expected.numpy(), ddof=2).pvalue > 1e-3  # the first ids are not random


def test_some_rows_are_held_at_their_own_values(randn):
    known, free = torch.tensor([[7, 7, 7], [8, 8, 8]]), torch.tensor([[True, False, True], [False, True, True]])
    for exact in (Fixed(randn(2, 3, 4)), Tempered(Fixed(randn(2, 3, 4)), top_k=1)):
        one = Clamped(exact, known, free).rows(torch.tensor([1]))
        assert one.hold(torch.zeros(1, 3).long()).tolist() == [[8, 0, 0]]
        assert torch.equal(one(torch.zeros(1, 3).long(), None), exact(None, None)[[1]])
        assert torch.equal(one.next(torch.zeros(1, 2), None)[0], exact(None, None)[[1], 2])
