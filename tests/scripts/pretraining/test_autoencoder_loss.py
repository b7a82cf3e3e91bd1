"""What the loss of an autoencoder hides, noises and counts."""

import pytest
import torch
from torch.nn.functional import log_softmax

from latent_models.autoencoder import Autoencoder, Shape
from latent_models.frozen_encoder import IGNORED
from scripts.pretraining.autoencoder_loss import PADS, Corruption, CorruptionOptions, losses, targets

PAD, SPECIAL = 1, torch.tensor([0, 1, 2])


def corruption(**options) -> Corruption:
    return Corruption(CorruptionOptions(**options), torch.Generator().manual_seed(0))


@pytest.fixture
def lengths():
    return torch.tensor([40, 40, 7, 7, 12])


@pytest.fixture
def valid(lengths):
    return torch.arange(40) < lengths[:, None]


def test_one_half_has_tokens_hidden_the_other_noise(valid):
    states = torch.randn(5, 40, 64, generator=torch.Generator().manual_seed(1)) * valid[..., None]
    hideable = valid.clone()
    hideable[:, 0] = False
    found = corruption().states(states, hideable, valid)
    hidden = (found == 0).all(-1)
    assert torch.equal(found[0::2][~hidden[0::2]], states[0::2][~hidden[0::2]])  # whole tokens, or nothing
    assert not (hidden & valid & ~hideable).any()
    assert (hidden[0::2] & hideable[0::2]).sum() / hideable[0::2].sum() == pytest.approx(0.3, abs=0.15)
    noise = found[1::2] - (1 - 0.714**2) ** 0.5 * states[1::2]
    assert noise[valid[1::2]].std() == pytest.approx(0.714, rel=0.05)
    assert (found[~valid] == 0).all()


def test_latents_are_dropped_without_being_made_larger_and_noised_up_to_the_ratio():
    x = torch.ones(400, 8, 64)
    dropped = corruption(noise_ratio=0).latents(x)
    assert set(dropped.unique().tolist()) == {0.0, 1.0} and dropped.mean() == pytest.approx(0.6, abs=0.01)
    sigma = (corruption(latent_dropout=0, noise_ratio=2).latents(x) - x).flatten(1).std(1)
    assert sigma.max() < 2.2 and sigma.mean() == pytest.approx(1, abs=0.1) and sigma.min() < 0.1


def test_texts_are_ended_by_some_padding_where_latents_do_not_say_how_long_they_are():
    ids = torch.tensor([[0, 5, 6, 7, 8, 2], [0, 5, 2, IGNORED, IGNORED, IGNORED]])
    assert torch.equal(targets(ids, PAD, Shape(4, 9, 8)), ids)
    own = targets(ids, PAD, Shape(4, 9, 20, latents=2))
    assert own[0].tolist() == [*ids[0].tolist(), *[PAD] * PADS]
    assert own[1].tolist() == [0, 5, 2, *[PAD] * PADS, *[IGNORED] * 3]
    assert targets(ids, PAD, Shape(4, 9, 8, latents=2))[0].tolist() == [*ids[0].tolist(), PAD, PAD]


@pytest.mark.parametrize("latents", [0, 3])
def test_content_is_counted_apart_from_padding_and_states_where_texts_are(valid, lengths, latents):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Autoencoder(Shape(16, 9, 48, latents=latents, latent_dim=4, width=32, depth=1)).eval()
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(5, 40, 16, generator=generator)
    ids = torch.randint(3, 9, (5, 40), generator=generator).masked_fill(~valid, IGNORED)
    with torch.no_grad():
        found = losses(model, states, valid, ids, SPECIAL, PAD)
        clean = model.standardised(states, valid)
        told, logits = model.decoder(model.latents(clean, valid), model.valid_latents(valid), 44 if latents else 40)
    nats = -log_softmax(logits, -1)
    content = sum(nats[i, j, ids[i, j]].item() for i in range(5) for j in range(lengths[i]))
    padding = sum(nats[i, j, PAD].item() for i in range(5) for j in range(lengths[i], lengths[i] + PADS) if latents)
    error = sum((told[i, j] - states[i, j]).square().mean().item() for i in range(5) for j in range(lengths[i]))
    assert found.content.item() == pytest.approx(content, rel=1e-5) and found.tokens == lengths.sum()
    assert found.padding.item() == pytest.approx(padding, rel=1e-5) and found.pads == (5 * PADS if latents else 0)
    assert found.error.item() == pytest.approx(error, rel=1e-4)
    whole = (content + padding) / (lengths.sum() + found.pads) + error / lengths.sum()
    assert found.total.item() == pytest.approx(whole.item(), rel=1e-4)
