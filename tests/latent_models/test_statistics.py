"""Statistics of training latents: figures from running the reference system, and what they promise a run.

B batch, L positions, D latent width.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latent_models import statistics
from latent_models.codec import ModelError
from latent_models.statistics import LatentStatistics

GOLDEN = Path(__file__).parents[1] / "golden" / "normalize.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    """[tokens, D]; every dimension with a mean and a spread of its own, one of them an outlier."""
    random = np.random.default_rng(0)
    spread = np.array([1, 0.1, 3, 0.5, 40, 2])
    return (random.normal(size=(500, 6)) * spread + np.arange(6) * 10).astype(np.float32)


LENGTHS = np.array([5] * 40 + [10] * 30)  # 500 tokens


def relative(found, wanted) -> float:
    return float(np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max())


def test_statistics_and_normalised_latents_agree_with_the_reference(golden):
    """Figures from running the reference system."""
    fitted = LatentStatistics.fit(golden["latents"][golden["mask"]], golden["lengths"])
    assert relative(fitted.mean, golden["mean"]) < 1e-6
    assert relative(fitted.scale, golden["scale"]) < 1e-6
    latents, other = torch.from_numpy(golden["latents"]), torch.from_numpy(golden["other"])
    valid = golden["mask"]
    assert relative(fitted.normalise(latents).numpy()[valid], golden["normalized"][valid]) < 1e-6
    assert relative(fitted.normalise(latents), golden["normalized"]) < 1e-6  # padding with its huge values too
    assert relative(fitted.normalise(other), golden["other_normalized"]) < 1e-6
    assert relative(fitted.unnormalise(other), golden["other_unnormalized"]) < 1e-6


@pytest.mark.parametrize("latent_scale", ["scalar", "dimension", "none"])
def test_unnormalise_inverts_normalise(states, latent_scale):
    fitted, latents = LatentStatistics.fit(states, LENGTHS, latent_scale), torch.from_numpy(states).view(5, 100, 6)
    assert torch.allclose(fitted.unnormalise(fitted.normalise(latents)), latents, rtol=1e-5, atol=1e-4)
    assert torch.allclose(fitted.normalise(fitted.unnormalise(latents)), latents, rtol=1e-5, atol=1e-4)


def test_normalised_states_have_mean_0_and_one_pooled_scale(states):
    x0 = LatentStatistics.fit(states, LENGTHS).normalise(torch.from_numpy(states))
    assert x0.mean(0).abs().max() < 1e-4
    assert x0.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert x0.std(0).max() > 2 * x0.std(0).median()  # the outlier stays one


def test_one_scale_for_each_dimension_on_demand(states):
    fitted = LatentStatistics.fit(states, LENGTHS, "dimension")
    assert fitted.scale.shape == (6,)
    x0 = fitted.normalise(torch.from_numpy(states))
    assert x0.mean(0).abs().max() < 1e-4
    assert (x0.std(0, correction=0) - 1).abs().max() < 2e-4


def test_without_normalisation_latents_stay_as_they_are(states):
    latents = torch.from_numpy(states)
    assert torch.allclose(LatentStatistics.fit(states, LENGTHS, "none").normalise(latents), latents, rtol=1e-6)


@pytest.mark.parametrize("latent_scale", ["scalar", "dimension"])
@pytest.mark.parametrize("chunk", [1, 7, 500])
def test_reading_in_chunks_gives_the_same_statistics(states, latent_scale, chunk, monkeypatch):
    whole = LatentStatistics.fit(states, LENGTHS, latent_scale)
    monkeypatch.setattr(statistics, "CHUNK", chunk)
    parts = LatentStatistics.fit(states, LENGTHS, latent_scale)
    assert relative(parts.mean, whole.mean.numpy()) < 1e-6
    assert relative(parts.scale, whole.scale.numpy()) < 1e-6


def test_every_token_weighs_the_same_however_long_its_text(states):
    assert relative(LatentStatistics.fit(states, LENGTHS).mean, states.mean(0, dtype=np.float64)) < 1e-6


def test_statistics_survive_the_disk(states, tmp_path):
    fitted = LatentStatistics.fit(states, LENGTHS, "dimension")
    fitted.save(tmp_path / "statistics.safetensors")
    loaded = LatentStatistics.load(tmp_path / "statistics.safetensors")
    for name in ("mean", "scale", "length_counts"):
        assert torch.equal(getattr(loaded, name), getattr(fitted, name))
    assert loaded.mean.abs().max() > 0


def test_drawn_lengths_follow_the_training_lengths(states):
    counts = {2: 100, 5: 40, 6: 0, 9: 60}
    fitted = LatentStatistics.fit(states, np.repeat(list(counts), list(counts.values())))
    u = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = torch.bincount(fitted.lengths_at(u), minlength=10) / len(u)
    for length, share in enumerate(drawn.tolist()):
        wanted = counts.get(length, 0) / 200
        assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / len(u)) ** 0.5 + 1e-12


def test_no_draw_gives_a_length_that_no_text_has(states):
    """The ends of [0, 1) and both sides of every step of the cumulated shares."""
    lengths = np.array([3] * 1 + [4] * 2 + [7] * 3 + [30] * 1)
    fitted = LatentStatistics.fit(states, lengths)
    steps = torch.tensor([0, 1 / 7, 3 / 7, 6 / 7, 1], dtype=torch.float64)
    u = torch.cat([steps, torch.nextafter(steps, torch.zeros_like(steps)), torch.nextafter(steps, 2 * steps)])
    drawn = fitted.lengths_at(u[u < 1])
    assert set(drawn.tolist()) == {3, 4, 7, 30}
    assert fitted.lengths_at(torch.tensor([0.0])).tolist() == [3]
    assert fitted.lengths_at(torch.tensor([1.0]).double().nextafter(torch.zeros(1).double())).tolist() == [30]


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "other content": lambda path: save_file({"weights": torch.zeros(2)}, path),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_told_in_one_line(states, tmp_path, kind):
    path = tmp_path / "latent_statistics.safetensors"
    LatentStatistics.fit(states, LENGTHS).save(path)
    DAMAGE[kind](path)
    with pytest.raises(ModelError, match=re.escape(str(path))) as error:
        LatentStatistics.load(path)
    assert "\n" not in str(error.value)
    assert "expected" in str(error.value)
