"""Drawing tokens by inversion in float64."""

import pytest
import torch
from scipy import stats

from diffusion.categorical import sample_categorical, widened

LARGEST = 1 - 2**-53  # the largest uniform in float64


def uniforms(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_id_is_drawn_from_its_own_stretch_of_the_uniforms():
    weights = torch.tensor([1.0, 0.0, 5.0, 2.0])  # need not sum to 1
    u = (torch.arange(800) + 0.5) / 800
    assert torch.bincount(sample_categorical(weights.expand(800, 4), u)).tolist() == [100, 0, 500, 200]


def test_rows_are_drawn_independently_in_any_shape():
    weights = uniforms(2, 3, 5)
    ids = sample_categorical(weights.expand(20_000, 2, 3, 5), uniforms(20_000, 2, 3, seed=1))
    assert ids.shape == (20_000, 2, 3)
    for row in range(2):
        for column in range(3):
            counts = torch.bincount(ids[:, row, column], minlength=5)
            expected = weights[row, column] / weights[row, column].sum() * 20_000
            assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3


def test_rare_tokens_together_get_their_share_against_a_likely_one():
    """50,000 tokens share 1e-3: a race with Gumbel noise in single precision draws about 23 of the 100 expected."""
    weights = torch.full((50_001,), 1e-3 / 50_000)
    weights[0] = 1 - 1e-3
    u = uniforms(100_000)
    assert sample_categorical(weights, torch.tensor(0.998)) == 0  # so that only larger u need be tried
    drawn = torch.cat([sample_categorical(weights.expand(len(some), -1), some) for some in u[u > 0.998].split(50)])
    rare = drawn[drawn > 0]
    assert 60 < len(rare) < 140
    assert len(rare.unique()) >= len(rare) - 3  # and none of them is preferred


@pytest.mark.parametrize("u", [0.0, LARGEST])
def test_an_id_without_weight_is_never_drawn(u):
    weights = torch.tensor([[0.0, 0.0, 0.3, 0.0], [0.0, 1e-300, 0.0, 0.0], [0.0, 0.1, 1e300, 0.0]], dtype=torch.float64)
    ids = sample_categorical(weights, torch.full((3,), u, dtype=torch.float64))
    assert (weights.gather(1, ids[:, None]) > 0).all()


def test_no_rows_give_no_ids():
    assert sample_categorical(torch.empty(0, 4), torch.empty(0)).shape == (0,)


@pytest.mark.parametrize("row", [[0.0, 0.0], [torch.nan, 1.0], [torch.inf, 1.0]])
def test_rows_that_describe_no_distribution_are_refused(row):
    with pytest.raises(ValueError, match="nothing to draw from"):
        sample_categorical(torch.tensor([[0.5, 0.5], row]), torch.tensor([0.1, 0.1]))


def test_half_precision_is_widened_before_it_is_normalised():
    output = 8 * uniforms(50, 1000).bfloat16()
    p = widened(output).softmax(-1)
    assert p.dtype == torch.float32 and (p.sum(-1) - 1).abs().max() < 1e-6
    assert widened(output.double()).dtype == torch.float64
