"""The denoiser: silent at first, blind to padding, and moved by everything it is conditioned on."""

from functools import partial
from itertools import product

import pytest
import torch

from diffusion.denoiser import CausalDenoiser, DenoiserOptions, LatentDenoiser, TimeEmbedding, TokenDenoiser
from diffusion.positions import Positions
from diffusion.process import DiffusionError, mean_over_valid

D = 8
CONDITIONS = [{"scale_shift": a, "self_condition": b} for a, b in product([False, True], repeat=2)]
CONDITIONS += [{"bottleneck_dim": 3, "self_condition": True}]


@pytest.fixture
def make(tiny):
    """Makes tiny latent denoisers."""
    return partial(tiny, LatentDenoiser, D)


@pytest.fixture
def batch(randn):
    """xt [3, 7, D], t [3], valid [3, 7] with lengths 7, 4 and 1."""
    valid = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    return randn(3, 7, D), torch.tensor([0.1, 0.5, 1.0]), valid


@pytest.mark.parametrize("options", CONDITIONS)
def test_an_untrained_denoiser_puts_out_exactly_zero(batch, options, make, randn):
    denoiser = make(spoken=False, classes=2, **options).train()  # with dropout too
    output = denoiser(*batch, x0_prev=randn(3, 7, D, seed=2), label=torch.tensor([0, 1, -1]))
    assert output.shape == (3, 7, D)
    assert torch.equal(output, torch.zeros_like(output))


@pytest.mark.parametrize("options", CONDITIONS)
def test_the_first_l1_loss_is_the_mean_size_of_x0_and_moves_the_head_only(batch, options, make, randn):
    xt, t, valid = batch
    denoiser, x0 = make(spoken=False, classes=2, **options), randn(3, 7, D, seed=3)
    error = (denoiser(xt, t, valid, label=torch.tensor([0, 1, -1])) - x0).abs().mean(dim=-1)
    loss = mean_over_valid(error, valid).mean()
    expected = torch.stack([row[v].abs().mean() for row, v in zip(x0, valid, strict=True)]).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    moved = {name for name, p in denoiser.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {"write.weight", "write.bias"}


@pytest.mark.parametrize("options", CONDITIONS)
def test_every_parameter_gets_a_gradient_once_the_head_is_not_zero(batch, options, make, randn):
    denoiser = make(classes=2, **options)
    denoiser(*batch, x0_prev=randn(3, 7, D, seed=2), label=torch.tensor([0, 1, -1])).square().sum().backward()
    still = [name for name, p in denoiser.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == []


@pytest.mark.parametrize("options", CONDITIONS)
def test_what_stands_on_padding_does_not_reach_valid_positions(batch, options, make, randn):
    xt, t, valid = batch
    denoiser, x0_prev = make(**options), randn(3, 7, D, seed=2)
    other_xt = torch.where(valid[..., None], xt, 1e4 * randn(3, 7, D, seed=4))
    other_prev = torch.where(valid[..., None], x0_prev, 1e4 * randn(3, 7, D, seed=5))
    output, other = denoiser(xt, t, valid, x0_prev), denoiser(other_xt, t, valid, other_prev)
    assert torch.equal(output[valid], other[valid])
    assert not torch.equal(output[~valid], other[~valid])  # the change did go in


def test_valid_positions_do_see_each_other_within_a_sample_only(batch, make):
    xt, t, valid = batch
    denoiser = make()
    changed = xt.clone()
    changed[0, 6] += 1
    difference = (denoiser(changed, t, valid) - denoiser(xt, t, valid)).abs().amax(dim=-1)
    assert difference[0].min() > 1e-4
    assert difference[1:].max() == 0


def test_more_padding_does_not_change_a_sample(batch, make, randn):
    xt, t, valid = batch
    denoiser = make(scale_shift=True)
    longer = torch.cat([xt, randn(3, 5, D, seed=6)], dim=1)
    padded = denoiser(longer, t, torch.cat([valid, torch.zeros(3, 5, dtype=torch.bool)], dim=1))
    torch.testing.assert_close(padded[:, :7][valid], denoiser(xt, t, valid)[valid], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", CONDITIONS)
def test_positions_are_told_apart(batch, options, make, generator):
    xt, t, _ = batch
    denoiser, everywhere = make(**options), torch.ones(3, 7, dtype=torch.bool)
    permuted = torch.randperm(7, generator=generator(1))
    assert not torch.allclose(
        denoiser(xt[:, permuted], t, everywhere), denoiser(xt, t, everywhere)[:, permuted], atol=1e-3
    )


@pytest.mark.parametrize("scale_shift", [False, True])
def test_neighbouring_times_of_a_long_process_give_different_outputs(batch, scale_shift, make):
    xt, _, valid = batch
    denoiser = make(scale_shift=scale_shift)
    for i in (0, 500, 998):
        one, next_one = (denoiser(xt, torch.full((3,), (j + 1) / 1000), valid) for j in (i, i + 1))
        assert (one - next_one).abs().max() > 1e-5


def test_time_embeddings_start_from_distinct_angles():
    time = TimeEmbedding(64)
    time.mlp = torch.nn.Identity()
    grid = (torch.arange(1000) + 1) / 1000
    features = time(grid)
    assert features.shape == (1000, 64)
    nearest = torch.cdist(features, features) + 10 * torch.eye(1000)
    assert nearest.min() > 0.5


def test_the_previous_estimate_and_where_its_parts_stand_change_the_output(batch, make, randn, generator):
    """The reference system passes this on content alone: permuting the estimate there changes nothing."""
    denoiser, x0_prev = make(self_condition=True), randn(3, 7, D, seed=2)
    output = denoiser(*batch, x0_prev)
    assert (denoiser(*batch, x0_prev + 0.1) - output)[batch[2]].abs().max() > 1e-3
    permuted = x0_prev[:1, torch.randperm(7, generator=generator(1))]
    first = tuple(part[:1] for part in batch)  # the sample without padding
    assert (denoiser(*first, permuted) - denoiser(*first, x0_prev[:1])).abs().max() > 1e-2


def test_no_previous_estimate_is_the_same_as_one_of_zeros(batch, make):
    denoiser = make(self_condition=True)
    assert torch.equal(denoiser(*batch), denoiser(*batch, torch.zeros(3, 7, D)))


def test_without_self_conditioning_the_previous_estimate_is_not_read(batch, make, randn):
    denoiser = make()
    assert torch.equal(denoiser(*batch), denoiser(*batch, randn(3, 7, D, seed=2)))


@pytest.mark.parametrize(("options", "rank"), [({}, D), ({"bottleneck_dim": 3}, 3)])
def test_no_more_than_the_bottleneck_of_what_stands_at_a_position_is_read(batch, options, rank, make):
    xt, t, valid = batch
    denoiser = make(**options).double()

    def at_the_first(x):
        return denoiser(torch.cat([x[None, None], xt[:1, 1:].double()], dim=1), t[:1], valid[:1])[0, :3].flatten()

    jacobian = torch.autograd.functional.jacobian(at_the_first, xt[0, 0].double())
    assert torch.linalg.matrix_rank(jacobian).item() == rank


@pytest.mark.parametrize("scale_shift", [False, True])
def test_labels_change_the_output_and_minus_one_is_no_label(batch, scale_shift, make):
    denoiser = make(classes=3, scale_shift=scale_shift)
    outputs = {label: denoiser(*batch, label=torch.full((3,), label)) for label in (-1, 0, 1, 2)}
    assert torch.equal(outputs[-1], denoiser(*batch))
    for one, other in ((-1, 0), (-1, 2), (0, 1), (1, 2)):
        assert (outputs[one] - outputs[other])[batch[2]].abs().max() > 1e-3
    mixed = denoiser(*batch, label=torch.tensor([2, -1, 0]))
    for row, label in enumerate((2, -1, 0)):
        assert torch.equal(mixed[row], outputs[label][row])


def test_the_label_tensor_of_the_batch_is_left_as_it_was(batch, make):
    label = torch.tensor([2, -1, 0])
    make(classes=3)(*batch, label=label)
    assert label.tolist() == [2, -1, 0]


def test_dropout_acts_in_training_only_and_can_be_switched_off(batch, make):
    with_dropout, without = make().train(), make(disable_dropout=True).train()
    assert not torch.equal(with_dropout(*batch), with_dropout(*batch))
    assert torch.equal(without(*batch), without(*batch))
    with_dropout.eval()
    assert torch.equal(with_dropout(*batch), with_dropout(*batch))


def test_weights_of_a_state_dict_can_be_loaded_into_another_denoiser(batch, make):
    one = make(classes=2, scale_shift=True, self_condition=True)
    other = make(classes=2, scale_shift=True, self_condition=True, spoken=False)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(*batch), other(*batch))


# Tokens

V = 11
TIME_INPUTS = ["none", "input", "token", "layerwise"]


@pytest.fixture
def tokens(batch, generator):
    """xt [3, 7] ids, t [3], valid [3, 7] with lengths 7, 4 and 1."""
    return torch.randint(V, (3, 7), generator=generator()), *batch[1:]


@pytest.fixture(params=[*TIME_INPUTS, "none and scale_shift", "causal", "causal and scale_shift"])
def make_tokens(request, tiny):
    """Makes a token denoiser of 2 classes, each kind in turn."""
    name, scale_shift = request.param.removesuffix(" and scale_shift"), "scale_shift" in request.param
    kind = CausalDenoiser if name == "causal" else partial(TokenDenoiser, time_input=name)
    return partial(tiny, kind, V, 2, scale_shift=scale_shift)


def test_untrained_token_denoisers_put_out_exactly_zero(tokens, make_tokens):
    denoiser = make_tokens(spoken=False).train()
    assert torch.equal(denoiser(*tokens, label=torch.tensor([0, 1, -1])), torch.zeros(3, 7, V))


def test_every_parameter_of_a_token_denoiser_gets_a_gradient(tokens, make_tokens):
    denoiser = make_tokens()
    denoiser(*tokens, label=torch.tensor([0, 1, -1])).square().sum().backward()
    still = [name for name, p in denoiser.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == []


def test_token_denoisers_are_blind_to_padding(tokens, make_tokens):
    (xt, t, valid), denoiser = tokens, make_tokens()
    output = denoiser(xt, t, valid)
    refilled = denoiser(torch.where(valid, xt, (xt + 5) % V), t, valid)
    assert torch.equal(refilled[valid], output[valid])
    longer = denoiser(torch.nn.functional.pad(xt, (0, 3)), t, torch.nn.functional.pad(valid, (0, 3)))
    torch.testing.assert_close(longer[:, :7][valid], output[valid], rtol=1e-5, atol=1e-5)
    assert longer.shape == (3, 10, V) and output[valid].std() > 0.01


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_heads_write_for_some_positions_what_they_write_among_all(tokens, make_tokens, generator, share):
    denoiser, chosen = make_tokens(), torch.rand(3, 7, generator=generator(2)) < share
    some = denoiser(*tokens, label=torch.tensor([0, 1, -1]), at=Positions.where(chosen))
    every = denoiser(*tokens, label=torch.tensor([0, 1, -1]))
    assert some.shape == (chosen.sum(), 1, V)
    torch.testing.assert_close(some[:, 0], every[chosen], rtol=1e-6, atol=1e-6)


def test_labels_change_what_token_denoisers_put_out(tokens, make_tokens):
    denoiser = make_tokens()
    none, first, second = (denoiser(*tokens, label=torch.full((3,), label)) for label in (-1, 0, 1))
    assert torch.equal(none, denoiser(*tokens))
    for one, other in ((none, first), (first, second)):
        assert ((one - other).abs().amax(-1)[tokens[2]] > 1e-4).all()


@pytest.mark.parametrize("time_input", TIME_INPUTS)
@pytest.mark.parametrize("kind", [LatentDenoiser, TokenDenoiser])
def test_the_time_reaches_every_position_of_its_sample_unless_there_is_none(batch, tokens, tiny, kind, time_input):
    xt, t, valid = batch if kind is LatentDenoiser else tokens
    denoiser = tiny(kind, xt.shape[-1] if kind is LatentDenoiser else V, time_input=time_input)
    assert (denoiser.time is None) == (time_input == "none")
    change = (denoiser(xt, t, valid) - denoiser(xt, t + torch.tensor([0.3, 0.0, 0.0]), valid)).abs().amax(-1)
    assert (change[0] == 0).all() if time_input == "none" else (change[0] > 1e-4).all()
    assert (change[1:] == 0).all()


def test_a_causal_denoiser_sees_no_time_and_nothing_of_what_follows(tokens, tiny):
    xt, t, valid = tokens
    denoiser = tiny(CausalDenoiser, V)
    output = denoiser(xt, t, valid)
    assert torch.equal(output, denoiser(xt, t / 2, valid))
    for later in range(7):
        changed = xt.clone()
        changed[:, later:] = (xt[:, later:] + 1) % V
        difference = (denoiser(changed, t, valid) - output).abs().amax(-1)
        assert (difference[:, : later + 1] == 0).all() and (difference[:, later + 1 :] > 1e-4).all()


@pytest.mark.parametrize(
    ("options", "usual", "chosen"),
    [
        ({}, "input", "input"),
        ({}, "none", "none"),
        ({"scale_shift": True}, "input", "layerwise"),
        ({"scale_shift": True}, "none", "none"),  # the layers then scale by a constant
        ({"time_input": "token"}, "none", "token"),
        ({"time_input": "none"}, "input", "none"),
        ({"time_input": "layerwise", "scale_shift": True}, "none", "layerwise"),
    ],
)
def test_how_the_time_enters(options, usual, chosen, tiny):
    assert DenoiserOptions(**options).chosen_time_input(usual) == chosen
    made = TokenDenoiser(V, DenoiserOptions(tx_dim=64, tx_depth=1, **options), time_input=usual)
    assert made.time_input == chosen and made.adaptive == (chosen == "layerwise" or "scale_shift" in options)


# Options


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"tx_dim": 100}, "--tx_dim 100"),
        ({"tx_dim": 0}, "--tx_dim 0"),
        ({"tx_depth": 0}, "--tx_depth 0"),
        ({"bottleneck_dim": -1}, "--bottleneck_dim -1"),
        ({"time_input": "every"}, "none, input, token, layerwise"),
        ({"time_input": "token", "scale_shift": True}, "--time_input token contradicts --scale_shift"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, flag):
    with pytest.raises(DiffusionError, match=flag) as refusal:
        DenoiserOptions(**options)
    assert "\n" not in str(refusal.value)
