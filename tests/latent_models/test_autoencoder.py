"""The network between frozen states and tokens: what it must not see, and what its latents are."""

import pytest
import torch

from latent_models.autoencoder import Autoencoder, Shape

W, V, M = 24, 30, 12
SHAPES = [Shape(W, V, M, width=32, depth=2), Shape(W, V, M, latents=4, latent_dim=8, width=32, depth=2)]


@pytest.fixture(params=SHAPES, ids=["tokens", "n4"])
def model(request) -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Autoencoder(request.param).eval()


@pytest.fixture
def batch():
    """States [3, 9, W] of texts of 9, 5 and 2 tokens."""
    valid = torch.arange(9) < torch.tensor([9, 5, 2])[:, None]
    return torch.randn(3, 9, W, generator=torch.Generator().manual_seed(1)), valid


def latents_of(model: Autoencoder, states, valid):
    return model.latents(model.standardised(states, valid), valid)


def test_shapes(model, batch):
    states, valid = batch
    latents, there = latents_of(model, *batch), model.valid_latents(valid)
    assert latents.shape == (3, model.shape.latents or 9, model.shape.code_width) and there.shape == latents.shape[:2]
    assert torch.equal(there, valid) or there.all()
    told, logits = model.decoder(latents, there, 7)
    assert told.shape == (3, 7, W) and logits.shape == (3, 7, V)


def test_padding_never_reaches_latents_and_a_text_depends_on_itself_alone(model, batch):
    states, valid = batch
    latents, there = latents_of(model, states, valid), model.valid_latents(valid)
    other = torch.where(valid[..., None], states, 100.0)
    assert torch.equal(latents_of(model, other, valid), latents)
    for i, length in enumerate(valid.sum(1).tolist()):
        alone = latents_of(model, states[[i], :length], valid[[i], :length])
        assert torch.allclose(alone[0], latents[i][there[i]], atol=1e-5)
    if model.compressor is not None:  # told by the mask alone
        assert torch.allclose(model.compressor(other, valid), latents, atol=1e-5)


def test_what_is_written_depends_on_the_text_s_own_latents_alone(model, batch):
    latents, there = latents_of(model, *batch), model.valid_latents(batch[1])
    _, logits = model.decoder(latents, there, 9)
    _, others = model.decoder(torch.where(there[..., None], latents, 100.0), there, 9)
    real = batch[1]  # positions past the end of a text are read by nobody where latents are those of tokens
    assert torch.allclose(others[real], logits[real], atol=1e-5)
    _, fewer = model.decoder(latents[:1, : there[0].sum()], there[:1, : there[0].sum()], 9)
    assert torch.allclose(fewer[0], logits[0], atol=1e-5)


def test_how_much_is_written_changes_no_part_of_it():
    torch.manual_seed(0)
    model, latents = Autoencoder(SHAPES[1]).eval(), torch.randn(2, 4, 8)
    there = torch.ones(2, 4, dtype=torch.bool)
    assert torch.allclose(model.decoder(latents, there, 5)[1], model.decoder(latents, there, 12)[1][:, :5], atol=1e-5)


def test_latents_are_standardised_over_a_batch_in_training(batch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Autoencoder(SHAPES[1]).train()
    states = torch.randn(64, 9, W, generator=torch.Generator().manual_seed(2))
    latents = latents_of(model, 50 * states, torch.ones(64, 9, dtype=torch.bool))
    assert latents.mean(0).abs().max() < 1e-5
    assert (latents.var(0, correction=0) - 1).abs().max() < 0.05  # EPSILON's part, in coordinates of little variance
