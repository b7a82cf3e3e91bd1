"""Perplexity; the checks against figures are from running the reference system."""

import json
from math import exp, isnan

import numpy as np
import pytest
import torch

from offline_metrics.language_model import LanguageModel
from offline_metrics.perplexity import perplexity


@pytest.fixture(scope="module")
def model(gpt2_folder) -> LanguageModel:
    return LanguageModel(gpt2_folder)


def test_texts_without_tokens_are_counted_and_long_texts_too(model, sentences):
    texts = ["", *sentences[:3], "", " ".join(sentences[:8])]
    found = perplexity(texts, model, batch_size=2)
    assert (found["texts"], found["texts_without_tokens"], found["texts_over_context"]) == (6, 2, 1)
    assert [isnan(value) for value in found["perplexities"]] == [True, False, False, False, True, False]
    nll_sum, n_tokens = model.nll(texts, 2)
    assert found["tokens"] == n_tokens.sum()
    assert found["corpus_perplexity"] == pytest.approx(exp(nll_sum.sum() / n_tokens.sum()))
    assert found["perplexities"][1] == pytest.approx(exp(nll_sum[1] / n_tokens[1]))
    assert found["mean_perplexity"] == pytest.approx(np.nanmean(found["perplexities"]))
    assert found["median_perplexity"] == pytest.approx(np.nanmedian(found["perplexities"]))


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_nothing_to_score_is_nan_not_a_crash(model, texts):
    found = perplexity(texts, model)
    assert all(isnan(found[name]) for name in ("mean_perplexity", "median_perplexity", "corpus_perplexity"))
    assert (found["texts"], found["texts_without_tokens"], found["tokens"]) == (len(texts), len(texts), 0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-9)])
def test_perplexity_of_the_reference_system(golden_dir, dtype, tolerance):
    golden = json.loads((golden_dir / "perplexity" / "perplexity.json").read_text())
    model = LanguageModel(golden_dir / "perplexity" / "tiny_gpt2", dtype=dtype)
    found = perplexity(golden["texts"], model, batch_size=16)
    expected = golden["by_definition_float64"]
    np.testing.assert_array_equal(model.nll(golden["texts"], 7)[1], golden["n_tokens"])
    np.testing.assert_allclose(model.nll(golden["texts"], 7)[0], expected["nll_sum"], rtol=tolerance)
    np.testing.assert_allclose(found["perplexities"], expected["perplexities"], rtol=tolerance)
    assert found["mean_perplexity"] == pytest.approx(expected["mean_over_texts"], rel=tolerance)
    assert found["median_perplexity"] == pytest.approx(expected["median_over_texts"], rel=tolerance)
    assert found["corpus_perplexity"] == pytest.approx(expected["corpus_level"], rel=tolerance)
    assert found["tokens"] == expected["total_tokens"]
    reference = golden["reference_implementation"]
    np.testing.assert_allclose(found["perplexities"], reference["perplexities"], rtol=5e-6)
    assert found["mean_perplexity"] == pytest.approx(reference["mean_perplexity"], rel=5e-6)
