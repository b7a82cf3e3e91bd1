"""A pretrained BERT as denoiser: itself before training, blind to padding, told the time in one of three ways."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from diffusion.bert_denoiser import BertDenoiser, sinusoids
from diffusion.positions import Positions
from diffusion.process import DiffusionError
from diffusion.training import checkpoint

V, L, CLS, SEP, PAD, T = 40, 7, 38, 39, 1, 1000
SIZE = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,  # attention that is far from uniform
    "pad_token_id": PAD,
}


def pretrained(kind: str = "bert", seed: int = 0, positions: int = 24) -> torch.nn.Module:
    torch.manual_seed(seed)
    if kind == "roberta":
        return RobertaForMaskedLM(RobertaConfig(**SIZE, max_position_embeddings=positions)).eval()
    return BertForMaskedLM(BertConfig(**SIZE, max_position_embeddings=positions)).eval()


def make(time_input: str = "none", kind: str = "bert", seed: int = 0, told: bool = True) -> BertDenoiser:
    """In evaluation mode; `told` gives weights to the zero layers through which the time comes in."""
    denoiser = BertDenoiser(pretrained(kind, seed), CLS, timesteps=T, time_input=time_input).eval()
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            if told and ".shift." in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return denoiser


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """xt [3, L], t [3], valid [3, L] with lengths 7, 4 and 1."""
    valid = torch.arange(L) < torch.tensor([7, 4, 1])[:, None]
    xt = torch.randint(2, CLS, (3, L), generator=torch.Generator().manual_seed(0))
    return torch.where(valid, xt, PAD), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64), valid


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("time_input", ["none", "layerwise"])
def test_an_untrained_denoiser_is_the_pretrained_model(batch, kind, time_input):
    """Which reads [CLS] x [SEP] with the [SEP] and padding out of sight."""
    xt, t, valid = batch
    ids = torch.cat([torch.full((3, 1), CLS), xt, torch.full((3, 1), PAD)], dim=1)
    ids[torch.arange(3), 1 + valid.sum(1)] = SEP
    attention = torch.cat([torch.ones(3, 1), valid, torch.zeros(3, 1)], dim=1).long()
    expected = pretrained(kind)(input_ids=ids, attention_mask=attention).logits[:, 1:-1]
    found = make(time_input, kind, told=False)(xt, t, valid)
    assert found.shape == (3, L, V) and expected[valid].std() > 0.1
    torch.testing.assert_close(found[valid], expected[valid], rtol=0, atol=1e-5)


def test_without_time_input_the_output_does_not_depend_on_t(batch):
    xt, t, valid = batch
    denoiser = make("none")
    assert torch.equal(denoiser(xt, t, valid), denoiser(xt, t / 3, valid))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("time_input", ["token", "layerwise"])
def test_the_time_reaches_every_position_of_its_own_sample_only(batch, kind, time_input):
    xt, t, valid = batch
    denoiser = make(time_input, kind)
    later = t + torch.tensor([1 / T, 0, 0])
    change = (denoiser(xt, t, valid) - denoiser(xt, later, valid)).abs().amax(-1)
    assert (change[0] > 1e-5).all() and (change[1:] == 0).all()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("time_input", ["none", "token", "layerwise"])
def test_padding_changes_nothing(batch, kind, time_input):
    xt, t, valid = batch
    denoiser = make(time_input, kind)
    expected = denoiser(xt, t, valid)
    refilled = denoiser(torch.where(valid, xt, 5), t, valid)
    longer = denoiser(*(torch.nn.functional.pad(x, (0, 3)) if x.ndim == 2 else x for x in (xt, t, valid)))[:, :L]
    for found in (refilled, longer):
        torch.testing.assert_close(found[valid], expected[valid], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("time_input", ["none", "token", "layerwise"])
def test_the_head_writes_for_some_positions_what_it_writes_among_all(batch, kind, time_input):
    denoiser, chosen = make(time_input, kind), batch[0] % 2 == 0
    some = denoiser(*batch, at=Positions.where(chosen))
    assert 0 < len(some) < chosen.numel()
    torch.testing.assert_close(some[:, 0], denoiser(*batch)[chosen], rtol=1e-5, atol=1e-6)


def test_a_padding_id_that_is_part_of_a_text_keeps_its_place(batch):
    """RoBERTa alone would give all such tokens one position."""
    xt, t, valid = batch
    filled = torch.full_like(xt, PAD)
    logits = make("none", "roberta")(filled, t, torch.ones_like(valid))
    assert (logits[0, 1:] - logits[0, :-1]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("time_input", ["token", "layerwise"])
def test_gradients_reach_the_time_modules(batch, time_input):
    denoiser = make(time_input)
    denoiser(*batch).log_softmax(-1)[..., 0].sum().backward()
    own = [p for name, p in denoiser.named_parameters() if "time_token" in name or "shift" in name]
    assert len(own) == (4 if time_input == "token" else 8)
    assert all(p.grad.abs().max() > 0 for p in own)


def test_the_layers_that_say_nothing_yet_learn(batch):
    denoiser = make("layerwise", told=False)
    denoiser(*batch).log_softmax(-1)[..., 0].sum().backward()
    for layer in denoiser.model.base_model.encoder.layer:
        assert layer.attention.shift[-1].weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("time_input", ["none", "token", "layerwise"])
def test_a_checkpoint_gives_the_same_denoiser_back_with_its_weights_tied(batch, tmp_path, kind, time_input):
    denoiser = make(time_input, kind)
    expected = denoiser(*batch)
    for saved in (denoiser, copy.deepcopy(denoiser)):  # the copy is what an average of weights starts from
        path = checkpoint.save(tmp_path, 1, {"model": saved.state_dict()}, {}, keep=1)
        (weights,), _ = checkpoint.load(path, "model")
        other = make(time_input, kind, seed=5, told=False)
        assert not torch.allclose(other(*batch), expected, atol=1e-2)
        checkpoint.load_weights(other, weights, path)
        assert torch.equal(other(*batch), expected)
        assert other.model.get_output_embeddings().weight is other.model.get_input_embeddings().weight
    del weights[next(name for name in weights if name.endswith("word_embeddings.weight"))]
    with pytest.raises(DiffusionError, match="word_embeddings"):
        checkpoint.load_weights(other, weights, path)


@pytest.mark.parametrize(
    ("kind", "time_input", "limit"),
    [("bert", "none", 9), ("bert", "layerwise", 9), ("bert", "token", 8), ("roberta", "none", 7)],
)
def test_texts_longer_than_the_model_are_refused(kind, time_input, limit):
    denoiser = BertDenoiser(pretrained(kind, positions=10), CLS, timesteps=T, time_input=time_input).eval()
    t = torch.ones(1)
    assert denoiser(torch.full((1, limit), 3), t, torch.ones(1, limit, dtype=torch.bool)).shape == (1, limit, V)
    with pytest.raises(DiffusionError, match=f"{limit + 1} tokens .* room for {limit}") as error:
        denoiser(torch.full((1, limit + 1), 3), t, torch.ones(1, limit + 1, dtype=torch.bool))
    assert "\n" not in str(error.value)


def test_an_unknown_time_input_is_refused():
    with pytest.raises(DiffusionError, match="none, token, layerwise"):
        BertDenoiser(pretrained(), CLS, timesteps=T, time_input="input")


def test_the_waves_of_time_tell_all_steps_apart():
    waves = sinusoids(torch.arange(T, dtype=torch.float64), 32, T)
    distance = torch.cdist(waves, waves) + 10 * torch.eye(T)
    assert waves.shape == (T, 32) and distance.min() > 0.1
    torch.testing.assert_close(waves[:, 0], torch.arange(T).sin())  # from one wave of length 2 pi
    torch.testing.assert_close(waves[:, 15], (torch.arange(T) / T).sin())  # to one of 2 pi T
