"""Statistics of training latents: figures from running the reference system, and what they promise a run.

B batch, L positions, D latent width.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_models.codec import ModelError
from latent_models.statistics import LatentStatistics

GOLDEN = Path(__file__).parents[1] / "golden" / "normalize.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def states() -> torch.Tensor:
    """[tokens, D]; every dimension with a mean and a spread of its own, one of them an outlier."""
    random = np.random.default_rng(0)
    spread = np.array([1, 0.1, 3, 0.5, 40, 2])
    return torch.from_numpy(random.normal(size=(500, 6)) * spread + np.arange(6) * 10).float()


LENGTHS = np.array([5] * 40 + [10] * 30)  # 500 tokens


def relative(found, wanted) -> float:
    return float(np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max())


def test_statistics_and_normalised_latents_agree_with_the_reference(golden):
    """Figures from running the reference system."""
    fitted = LatentStatistics.fit([torch.from_numpy(golden["latents"][golden["mask"]])], golden["lengths"])
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
    fitted, latents = LatentStatistics.fit([states], LENGTHS, latent_scale), states.view(5, 100, 6)
    assert torch.allclose(fitted.unnormalise(fitted.normalise(latents)), latents, rtol=1e-5, atol=1e-4)
    assert torch.allclose(fitted.normalise(fitted.unnormalise(latents)), latents, rtol=1e-5, atol=1e-4)


def test_normalised_states_have_mean_0_and_one_pooled_scale(states):
    x0 = LatentStatistics.fit([states], LENGTHS).normalise(states)
    assert x0.mean(0).abs().max() < 1e-4
    assert x0.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert x0.std(0).max() > 2 * x0.std(0).median()  # the outlier stays one


def test_one_scale_for_each_dimension_on_demand(states):
    fitted = LatentStatistics.fit([states], LENGTHS, "dimension")
    assert fitted.scale.shape == (6,)
    x0 = fitted.normalise(states)
    assert x0.mean(0).abs().max() < 1e-4
    assert (x0.std(0, correction=0) - 1).abs().max() < 2e-4


def test_without_normalisation_latents_stay_as_they_are(states):
    assert torch.allclose(LatentStatistics.fit([states], LENGTHS, "none").normalise(states), states, rtol=1e-6)


@pytest.mark.parametrize("latent_scale", ["scalar", "dimension"])
@pytest.mark.parametrize("rows", [1, 7, 500])
@pytest.mark.parametrize("offset", [0, 1e4])
def test_one_pass_over_pieces_is_as_exact_as_numpy_on_the_whole(states, latent_scale, rows, offset):
    """Far from zero too, where a difference of mean squares would keep few digits."""
    states = states + offset
    fitted = LatentStatistics.fit(states.split(rows), LENGTHS, latent_scale)
    whole = states.double().numpy()
    spread = whole.std(0) if latent_scale == "dimension" else np.sqrt(whole.var(0).mean())
    assert relative(fitted.mean, whole.mean(0)) < 1e-7
    assert relative(fitted.scale, spread) < 1e-7


def test_every_token_weighs_the_same_however_long_its_text(states):
    assert relative(LatentStatistics.fit([states], LENGTHS).mean, states.double().mean(0).numpy()) < 1e-6


def test_statistics_survive_the_disk(states, tmp_path):
    fitted = LatentStatistics.fit([states], LENGTHS, "dimension")
    fitted.save(tmp_path / "statistics.safetensors")
    loaded = LatentStatistics.load(tmp_path / "statistics.safetensors")
    assert torch.equal(loaded.mean, fitted.mean)
    assert torch.equal(loaded.scale, fitted.scale)
    assert torch.equal(loaded.lengths.counts, fitted.lengths.counts)
    assert loaded.mean.abs().max() > 0


def test_the_lengths_of_the_training_texts_are_kept(states):
    assert LatentStatistics.fit([states], LENGTHS).lengths.counts.tolist() == [0] * 5 + [40] + [0] * 4 + [30]


def test_the_file_is_that_of_earlier_runs(states, tmp_path):
    path = tmp_path / "statistics.safetensors"
    tensors = {"mean": torch.arange(6.0), "scale": torch.tensor(2.0), "length_counts": torch.tensor([0, 3, 4])}
    save_file(tensors, path)
    loaded = LatentStatistics.load(path)
    assert loaded.lengths.lengths_at(torch.tensor([0.0, 0.42, 0.43, 0.99])).tolist() == [1, 1, 2, 2]
    loaded.save(path)
    written = load_file(path)
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("shift", "stretch", "near"), [(0.09, 1.0, True), (0.0, 1.09, True), (0.11, 1.0, False), (0.0, 0.89, False)]
)
def test_statistics_are_near_within_a_tenth_of_the_spread(states, shift, stretch, near):
    own = LatentStatistics.fit([states], LENGTHS, "dimension")
    other = LatentStatistics(own.mean.clone(), own.scale.clone(), own.lengths)
    other.mean[1] += shift * own.scale[1]
    other.scale[2] *= stretch
    assert own.is_near(own) and other.is_near(own) is near


GOOD = {"mean": torch.zeros(2), "scale": torch.tensor(1.0), "length_counts": torch.tensor([0, 3])}
DAMAGE = {
    "missing": lambda path: path.unlink(),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "other content": lambda path: save_file({"weights": torch.zeros(2)}, path),
    "a mean that is no number": lambda path: save_file({**GOOD, "mean": torch.tensor([torch.nan, 1.0])}, path),
    "a scale below zero": lambda path: save_file({**GOOD, "scale": torch.tensor(-1.0)}, path),
    "another width": lambda path: save_file({**GOOD, "scale": torch.ones(3)}, path),
    "a table": lambda path: save_file({**GOOD, "mean": torch.ones(2, 2)}, path),
    "counts that are none": lambda path: save_file({**GOOD, "length_counts": torch.ones(2)}, path),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_told_in_one_line(states, tmp_path, kind):
    path = tmp_path / "latent_statistics.safetensors"
    LatentStatistics.fit([states], LENGTHS).save(path)
    DAMAGE[kind](path)
    with pytest.raises(ModelError, match=re.escape(str(path))) as error:
        LatentStatistics.load(path)
    assert "\n" not in str(error.value)
    assert "expected" in str(error.value)
