"""The published network: its figures, silent at first, blind to padding, told the noise alone.

Figures from running the public reference code (kuleshov-group/mdlm, louaaron/Score-Entropy-Discrete-Diffusion,
dvruette/gidd) with random weights on a CPU; see golden/README.md.
"""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad

from diffusion.denoiser import DenoiserOptions
from diffusion.dit import DiT, rotary_angles, rotary_frequencies
from diffusion.positions import Positions
from diffusion.process import DiffusionError

GOLDEN = Path(__file__).parents[1] / "golden" / "discrete" / "dit"
V = 11


def silent(noise=lambda t: t, **options) -> DiT:
    sizes = {"tx_dim": 48, "tx_depth": 2, "dit_heads": 3, "dit_cond_dim": 16, "disable_dropout": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DiT(V, DenoiserOptions(**(sizes | options), trunk="dit"), noise)


def spoken(*args, **options) -> DiT:
    """In evaluation mode, with weights everywhere as after training."""
    network, generator = silent(*args, **options), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@pytest.fixture
def batch(generator) -> tuple[Tensor, Tensor, Tensor]:
    """xt [3, 7] ids, t [3], valid [3, 7] with lengths 7, 4 and 1."""
    valid = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    return torch.randint(V, (3, 7), generator=generator()), torch.tensor([0.1, 0.5, 1.0]).double(), valid


@pytest.fixture
def published():
    """published(name) is a network of golden/discrete/dit, told its noise as it is, and its inputs and outputs."""

    def load(name: str) -> tuple[DiT, dict[str, Tensor]]:
        stored = load_file(GOLDEN / f"{name}_weights.safetensors")
        weights = {key: value for key, value in stored.items() if not key.startswith(("rotary_emb.", "logit_bias"))}
        options = DenoiserOptions(tx_dim=32, tx_depth=2, trunk="dit", dit_heads=2, dit_cond_dim=16)
        network = DiT(len(weights["vocab_embed.embedding"]), options, lambda noise: noise)
        network.load_state_dict(weights)
        return network.eval(), load_file(GOLDEN / f"{name}_io.safetensors")

    return load


def output(network: nn.Module, ids: Tensor, noise: Tensor) -> Tensor:
    with torch.no_grad():
        return network(ids, noise, torch.ones_like(ids, dtype=torch.bool))


# Figures


def test_mdlm_logits_are_those_of_the_reference_told_sigma_or_the_constant_0(published):
    network, figures = published("mdlm")
    ids, sigma = figures["input_ids"], figures["sigma"]
    torch.testing.assert_close(output(network, ids, sigma), figures["logits"], rtol=0, atol=1e-5)
    network.noise = None
    torch.testing.assert_close(output(network, ids, sigma), figures["logits_sigma_zero"], rtol=0, atol=1e-5)
    assert (figures["logits"] - figures["logits_sigma_zero"]).abs().max() > 0.1  # they could not be confused


def test_gidd_logits_are_those_of_the_reference_told_t(published):
    network, figures = published("gidd")
    torch.testing.assert_close(
        output(network, figures["input_ids"], figures["t"]), figures["logits"], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", ["sedd_absorb", "sedd_uniform"])
def test_sedd_scores_are_those_of_the_reference_once_scaled(published, name):
    network, figures = published(name)
    ids, sigma = figures["input_ids"], figures["sigma"]
    scale = torch.expm1(sigma).log() + math.log(7) if name == "sedd_absorb" else torch.zeros(len(sigma))
    scores = (output(network, ids, sigma) - scale[:, None, None]).scatter(-1, ids[..., None], 0.0)
    torch.testing.assert_close(scores, figures["log_score"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["mdlm", "gidd"])
def test_rotary_tables_are_those_of_the_checkpoints(name):
    stored = load_file(GOLDEN / f"{name}_weights.safetensors")
    if name == "mdlm":
        torch.testing.assert_close(rotary_frequencies(16), stored["rotary_emb.inv_freq"])
    else:
        angles = rotary_angles(6, 16).repeat(1, 2)
        torch.testing.assert_close(angles.cos(), stored["rotary_emb.cos_cached"][0, :, 0, 0])
        torch.testing.assert_close(angles.sin(), stored["rotary_emb.sin_cached"][0, :, 1, 0])


@pytest.mark.parametrize("name", ["mdlm", "sedd_absorb", "sedd_uniform", "gidd"])
def test_parameters_bear_the_published_names(published, name):
    stored = load_file(GOLDEN / f"{name}_weights.safetensors").keys()
    network, _ = published(name)
    assert {key for key in stored if not key.startswith(("rotary_emb.", "logit_bias"))} == network.state_dict().keys()


# Properties


def test_an_untrained_network_puts_out_exactly_zero_and_its_embedding_is_even(batch):
    network = silent(disable_dropout=False).train()
    assert torch.equal(network(*batch), torch.zeros(3, 7, V))
    embedding = network.vocab_embed.embedding.detach()
    assert embedding.abs().max() <= 1 / math.sqrt(48)
    assert embedding.std().item() == pytest.approx(1 / math.sqrt(3 * 48), rel=0.05)


def test_every_parameter_gets_a_gradient(batch):
    network = spoken()
    network(*batch).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_a_text_alone_and_in_a_padded_batch_are_the_same(batch):
    (xt, t, valid), network = batch, spoken()
    together = network(xt, t, valid)
    assert torch.equal(network(torch.where(valid, xt, (xt + 5) % V), t, valid)[valid], together[valid])
    longer = network(pad(xt, (0, 3)), t, pad(valid, (0, 3)))
    torch.testing.assert_close(longer[:, :7][valid], together[valid], rtol=1e-5, atol=1e-5)
    for row, length in enumerate((7, 4, 1)):
        alone = network(xt[row : row + 1, :length], t[row : row + 1], valid[row : row + 1, :length])
        torch.testing.assert_close(alone[0], together[row, :length], rtol=1e-5, atol=1e-5)


def test_positions_of_a_text_see_each_other_and_are_told_apart(batch, generator):
    (xt, t, valid), network = batch, spoken()
    changed = xt.clone()
    changed[0, 6] = (xt[0, 6] + 1) % V
    difference = (network(changed, t, valid) - network(xt, t, valid)).abs().amax(-1)
    assert difference[0].min() > 1e-4 and difference[1:].max() == 0
    order = torch.randperm(7, generator=generator(1))
    permuted = network(xt[:1, order], t[:1], valid[:1]) - network(xt[:1], t[:1], valid[:1])[:, order]
    assert permuted.abs().max() > 1e-3


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_head_writes_for_some_positions_what_it_writes_among_all(batch, generator, share):
    network, chosen = spoken(), torch.rand(3, 7, generator=generator(2)) < share
    some, every = network(*batch, at=Positions.where(chosen)), network(*batch)
    assert some.shape == (chosen.sum(), 1, V)
    torch.testing.assert_close(some[:, 0], every[chosen], rtol=1e-5, atol=1e-6)


def test_the_network_knows_what_it_is_told_of_the_time_and_nothing_else(batch):
    xt, t, valid = batch
    later = t + torch.tensor([0.3, 0.0, 0.0])
    change = (spoken()(xt, t, valid) - spoken()(xt, later, valid)).abs().amax(-1)
    assert change[0].min() > 1e-4 and change[1:].max() == 0
    assert torch.equal(spoken(None)(xt, t, valid), spoken(None)(xt, later, valid))
    assert torch.equal(spoken(None)(xt, t, valid), spoken(torch.zeros_like)(xt, t, valid))
    assert torch.equal(spoken(lambda t: 2 * t)(xt, t, valid), spoken()(xt, 2 * t, valid))


def test_it_runs_in_double_precision_and_agrees(batch):
    torch.testing.assert_close(spoken().double()(*batch).float(), spoken()(*batch), rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_only(batch):
    network = spoken(disable_dropout=False).train()
    assert not torch.equal(network(*batch), network(*batch))
    assert torch.equal(network.eval()(*batch), network(*batch))


# Options


def test_heads_are_64_wide_unless_given():
    assert DenoiserOptions(tx_dim=768, trunk="dit").heads == 12
    assert DenoiserOptions(tx_dim=96, trunk="dit", dit_heads=3).heads == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tx_dim": 100}, "--tx_dim 100: expected a positive multiple of 64"),
        ({"tx_dim": 100, "dit_heads": 4}, "--tx_dim 100: expected a positive multiple of 8, twice --dit_heads"),
        ({"tx_dim": 0, "dit_heads": 4}, "--tx_dim 0"),
        ({"dit_heads": -1}, "--dit_heads -1"),
        ({"dit_cond_dim": 0}, "--dit_cond_dim 0"),
        ({"trunk": "x_transformers", "dit_heads": 8}, "--dit_heads 8: is of --trunk dit"),
        ({"trunk": "unet"}, "x_transformers, dit"),
        ({"time_input": "token"}, "--time_input token: --trunk dit"),
        ({"scale_shift": True}, "--scale_shift: --trunk dit"),
        ({"self_condition": True}, "--self_condition: --trunk dit"),
        ({"class_conditional": True}, "--class_conditional: --trunk dit"),
        ({"bottleneck_dim": 8}, "--bottleneck_dim: --trunk dit"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, said):
    with pytest.raises(DiffusionError) as refusal:
        DenoiserOptions(**({"trunk": "dit"} | options))
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
