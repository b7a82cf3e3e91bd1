"""MAUVE between two sets of texts (Pillutla et al. 2021), averaged over clustering seeds.

The score depends on the random start of its k-means, by some 0.05 at a few hundred texts, so one seed alone says
little: the mean and the standard deviation over at least three are given.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import nan

import datasets
import evaluate
import faiss
import numpy as np
from mauve.compute_mauve import get_divergence_curve_for_multinomials
from sklearn.decomposition import PCA
from sklearn.metrics import auc
from sklearn.preprocessing import normalize

from offline_metrics.errors import MetricError
from offline_metrics.language_model import load_feature_model

SEEDS = (25, 26, 27)
SCALING_FACTOR = 5.0
TEXTS_PER_BUCKET = 10


def mauve_score(
    p_features: np.ndarray,
    q_features: np.ndarray,
    seeds: Sequence[int] = SEEDS,
    scaling_factor: float = SCALING_FACTOR,
) -> dict[str, float | list[float] | str]:
    """MAUVE of features [N, D] and [M, D], both cut to their first min(N, M) rows: mean and spread over `seeds`.

    `mauve_std` is the sample standard deviation over clustering seeds, `mauve_texts` the rows used on each side.
    Where it cannot be computed the values are NaN and `note` says why. Raises MetricError for fewer than three seeds.
    """
    if len(seeds) < 3:
        raise MetricError(f"MAUVE: {len(seeds)} clustering seeds given; at least 3 are needed to state a spread")
    texts = min(len(p_features), len(q_features))
    p, q = np.asarray(p_features)[:texts], np.asarray(q_features)[:texts]
    # The library's own rule, without its floor of two buckets, under which a handful of texts would get a score.
    buckets = round(texts / TEXTS_PER_BUCKET)
    result = {"mauve": nan, "mauve_std": nan, "mauve_per_seed": [], "mauve_buckets": buckets, "mauve_texts": texts}
    if buckets < 2:
        return result | {"note": f"{texts} texts on each side give fewer than 2 clusters; MAUVE needs at least 15"}
    if not (np.isfinite(p).all() and np.isfinite(q).all()):
        return result | {"note": "the features hold values that are not finite"}
    if np.allclose(p, p[0]) and np.allclose(q, p[0]):
        # Clusters of one point repeated fall apart by rounding, and the score with them.
        return result | {"note": "all texts of both sides have the same features, there is nothing to cluster"}
    with _quiet_stderr(), np.errstate(all="ignore"):
        points = _reduced(p, q)
        scores = [_one_clustering(points, buckets, seed, scaling_factor) for seed in seeds]
    if not np.isfinite(scores).all():
        return result | {"note": f"the divergence curve is not defined at a scaling factor of {scaling_factor:g}"}
    return result | {
        "mauve": float(np.mean(scores)),
        "mauve_std": float(np.std(scores, ddof=1)),
        "mauve_per_seed": scores,
        "note": "",
    }


# The settings, and the order of the steps, are those of mauve-text: equal seeds give its numbers to the last bit. The
# library itself would fit one and the same PCA, the dearest step, again for every seed.


def _reduced(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Unit vectors of q, then p, in the principal components that hold nine tenths of their variance, [2N, d]."""
    both = normalize(np.vstack([q, p]))
    pca = PCA().fit(both)
    kept = np.argmax(np.cumsum(pca.explained_variance_ratio_) >= 0.9) + 1
    return pca.transform(both)[:, :kept].astype(np.float32)


def _one_clustering(points: np.ndarray, buckets: int, seed: int, scaling_factor: float) -> float:
    """The area under the divergence curve of two histograms [buckets], from one start of k-means."""
    kmeans = faiss.Kmeans(points.shape[1], buckets, niter=500, nredo=5, update_index=True, seed=seed + 2)
    kmeans.train(points)
    nearest = kmeans.index.search(points, 1)[1].ravel()
    q, p = (np.bincount(side, minlength=buckets) / len(side) for side in np.split(nearest, 2))
    curve = get_divergence_curve_for_multinomials(p, q, np.linspace(1e-6, 1 - 1e-6, 25), scaling_factor)
    x, y = curve.T
    by_x, by_y = np.argsort(x), np.argsort(y)
    return float((auc(x[by_x], y[by_x]) + auc(y[by_y], x[by_y])) / 2)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drop what is written to file descriptor 2: faiss warns there, from C++, about MAUVE's own bucket size."""
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


class MauveScore(evaluate.Metric):
    """`compute(predictions=texts, references=texts, model=<feature model or its local folder>)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="MAUVE between predictions and references, mean and spread over clustering seeds.",
            citation="Pillutla et al. 2021, MAUVE: Measuring the Gap Between Neural Text and Human Text",
            inputs_description="predictions, references: equally many texts. model: a feature model or its folder.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        model: object,
        device: str = "cpu",
        batch_size: int = 32,
        seeds: Sequence[int] = SEEDS,
        scaling_factor: float = SCALING_FACTOR,
    ) -> dict[str, float | list[float] | str]:
        reader = model if hasattr(model, "features") else load_feature_model(model, device)
        p, q = (reader.features(texts, batch_size) for texts in (predictions, references))
        return mauve_score(p, q, seeds, scaling_factor)
