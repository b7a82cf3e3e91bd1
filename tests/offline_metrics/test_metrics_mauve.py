"""MAUVE from features; the figures in tests/golden are from running mauve-text and the reference system's wrapper."""

import json
from importlib.metadata import version
from math import isnan
from pathlib import Path

import mauve
import numpy as np
import pytest
from mauve.compute_mauve import get_divergence_curve_for_multinomials
from sklearn.decomposition import PCA

from offline_metrics.errors import MetricError
from offline_metrics.mauve_score import mauve_score

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads((GOLDEN / "mauve.json").read_text())


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "mauve.npz") as file:
        return dict(file)


@pytest.mark.parametrize(
    ("name", "scaling_factor"), [("c5_default", 5.0), ("c8", 8.0), ("same_distribution_halves_of_p", 5.0)]
)
def test_mauve_of_the_reference_features(golden, arrays, name, scaling_factor):
    p, q = arrays["p_features"], arrays["q_features"]
    if name == "same_distribution_halves_of_p":
        p, q = p[:125], p[125:]
    found = mauve_score(p, q, scaling_factor=scaling_factor)
    recorded = golden["versions"]
    same_libraries = all(version(name) == recorded[name] for name in ("mauve-text", "faiss-cpu"))
    tolerance = 1e-6 if same_libraries else 0.15
    assert found["mauve_per_seed"][0] == pytest.approx(golden[name]["mauve"], rel=0, abs=tolerance)
    assert found["mauve_buckets"] == golden[name]["num_buckets"]
    assert found["mauve"] == pytest.approx(np.mean(found["mauve_per_seed"]))
    assert found["mauve_std"] == pytest.approx(np.std(found["mauve_per_seed"], ddof=1))
    assert found["mauve_std"] > 0 and found["note"] == "" and found["mauve_texts"] == len(p)


def test_each_seed_gives_the_recorded_score(golden, arrays):
    recorded = golden["spread_over_seeds"]
    seeds = (1, 26, 27, 28)
    found = mauve_score(arrays["p_features"], arrays["q_features"], seeds=seeds)
    expected = [recorded["mauve_c5"][recorded["seeds"].index(seed)] for seed in seeds]
    same_libraries = all(version(name) == golden["versions"][name] for name in ("mauve-text", "faiss-cpu"))
    np.testing.assert_allclose(found["mauve_per_seed"], expected, rtol=0, atol=1e-6 if same_libraries else 0.15)


def test_the_library_still_computes_the_recorded_formula(golden, arrays):
    curve = get_divergence_curve_for_multinomials(
        arrays["p_hist"], arrays["q_hist"], np.linspace(1e-6, 1 - 1e-6, 25), 5
    )
    np.testing.assert_allclose(curve, arrays["c5_default__divergence_curve"], rtol=0, atol=1e-9)
    x, y = curve.T
    area = 0.5 * (abs(np.trapezoid(y, x)) + abs(np.trapezoid(x, y)))
    assert area == pytest.approx(golden["c5_default"]["mauve"], rel=0, abs=1e-9)


@pytest.mark.parametrize(
    ("texts", "width"), [(150, 12), (150, 200), (60, 700)], ids=["covariance", "full", "fewer texts than dimensions"]
)
@pytest.mark.parametrize("scaling_factor", [5.0, 8.0])
def test_every_bit_is_that_of_mauve_text(texts, width, scaling_factor):
    """On all roads that scikit-learn's PCA takes."""
    rng = np.random.default_rng(texts + width)
    topics = rng.standard_normal((5, width)).astype(np.float32)
    p, q = (topics[rng.integers(0, end, texts)] + rng.random((texts, width), dtype=np.float32) for end in (4, 5))
    expected = [
        mauve.compute_mauve(p, q, seed=seed, mauve_scaling_factor=scaling_factor).mauve for seed in (25, 26, 27)
    ]
    assert mauve_score(p, q, scaling_factor=scaling_factor)["mauve_per_seed"] == expected
    assert 0.004 < expected[0] < 0.999


def test_the_principal_components_are_found_once_for_all_seeds(arrays, monkeypatch):
    fits, fit = [], PCA.fit
    monkeypatch.setattr(PCA, "fit", lambda self, data: fits.append(data.shape) or fit(self, data))
    mauve_score(arrays["p_features"], arrays["q_features"], seeds=range(5))
    assert fits == [(2 * len(arrays["p_features"]), arrays["p_features"].shape[1])]


def test_unequal_sides_are_cut_to_the_smaller_count(arrays):
    p, q = arrays["p_features"][:100], arrays["q_features"][:60]
    found = mauve_score(p, q)
    assert found["mauve_texts"] == 60 and found["mauve_buckets"] == 6
    assert found["mauve_per_seed"] == mauve_score(p[:60], q)["mauve_per_seed"]


@pytest.mark.parametrize("count", [0, 1, 14])
def test_too_few_texts_are_nan_with_a_note(arrays, count):
    found = mauve_score(arrays["p_features"], arrays["q_features"][:count])
    assert isnan(found["mauve"]) and isnan(found["mauve_std"]) and found["mauve_texts"] == count
    assert f"{count} texts" in found["note"]
    assert not isnan(mauve_score(arrays["p_features"], arrays["q_features"][:15])["mauve"])


def test_features_that_are_all_alike_or_not_finite(arrays):
    alike = np.ones((40, 8), dtype=np.float32)
    found = mauve_score(alike, alike)
    assert isnan(found["mauve"]) and "nothing to cluster" in found["note"]
    found = mauve_score(alike, alike * np.nan)
    assert isnan(found["mauve"]) and "not finite" in found["note"]
    assert mauve_score(arrays["p_features"][:40, :8], alike)["mauve"] < 0.2


@pytest.mark.filterwarnings("error")
def test_a_scaling_factor_at_which_there_is_no_curve_has_a_note(arrays):
    p = arrays["p_features"][:40]
    found = mauve_score(p, p, scaling_factor=1e300)
    assert isnan(found["mauve"]) and "scaling factor of 1e+300" in found["note"]


def test_fewer_than_three_seeds_are_refused(arrays):
    with pytest.raises(MetricError, match="at least 3"):
        mauve_score(arrays["p_features"], arrays["q_features"], seeds=(25, 26))


def test_nothing_is_printed(arrays, capfd):
    mauve_score(arrays["p_features"][:40], arrays["q_features"][:40])
    assert capfd.readouterr() == ("", "")
