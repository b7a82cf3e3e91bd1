"""Nats per text, token and word: sums over sums, and errors that agree with theory and with resampling."""

from math import inf, isnan, log, nan, sqrt

import numpy as np
import pytest

from offline_metrics.errors import MetricError
from offline_metrics.likelihood import likelihood


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def texts(rng, count: int = 400, draws: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """nats [N, K], tokens [N] and words [N]: longer texts cost more, and every draw has noise of its own."""
    tokens = rng.integers(3, 40, count)
    per_text = tokens * rng.normal(2.5, 0.3, count) + rng.normal(4, 1, count)
    return per_text[:, None] + rng.normal(0, 2, (count, draws)), tokens, np.maximum(tokens // 2, 1)


def test_every_ratio_is_the_sum_of_nats_over_the_sum_of_counts():
    row = likelihood(np.array([[2.0, 4.0], [5.0, 7.0]]), [2, 4], [1, 2], [10, 20])
    assert row["nats_per_sequence"] == pytest.approx(9 / 2)
    assert row["nats_per_token"] == pytest.approx(9 / 6)
    assert row["nats_per_word"] == pytest.approx(9 / 3)
    assert row["bits_per_character"] == pytest.approx(9 / log(2) / 30)
    assert (row["likelihood_texts"], row["likelihood_tokens"], row["draws"]) == (2, 6, 2)
    assert "bits_per_character" not in likelihood(np.ones((2, 1)), [1, 1], [1, 1])


def test_parts_are_sums_over_the_sum_of_tokens_with_errors_of_their_own(rng):
    nats, tokens, words = texts(rng)
    first = rng.normal(5, 1, len(nats))
    parts = {"first": first, "rest": nats.mean(1) - first}
    row = likelihood(nats, tokens, words, parts=parts)
    assert row["nats_per_token_first"] == pytest.approx(first.sum() / tokens.sum())
    assert row["nats_per_token_first"] + row["nats_per_token_rest"] == pytest.approx(row["nats_per_token"])
    alone = likelihood(first[:, None], tokens, words)
    assert row["nats_per_token_first_std"] == pytest.approx(alone["nats_per_token_std"])
    assert likelihood(nats, tokens, words).items() <= row.items()


def test_the_error_of_a_mean_is_the_usual_one(rng):
    nats, tokens, words = texts(rng)
    row, per_text = likelihood(nats, tokens, words), nats.mean(1)
    assert row["nats_per_sequence_std"] == pytest.approx(per_text.std(ddof=1) / sqrt(len(per_text)))
    alike = likelihood(nats, [7] * len(nats), words)  # with equal counts a ratio is a mean over a constant
    assert alike["nats_per_token_std"] == pytest.approx(row["nats_per_sequence_std"] / 7)


def test_the_error_of_a_ratio_is_that_of_resampled_texts(rng):
    nats, tokens, words = texts(rng)
    row, per_text = likelihood(nats, tokens, words), nats.mean(1)
    picks = rng.integers(0, len(nats), (4000, len(nats)))
    for name, counts in (("nats_per_token", tokens), ("nats_per_word", words)):
        resampled = per_text[picks].sum(1) / counts[picks].sum(1)
        assert row[f"{name}_std"] == pytest.approx(resampled.std(), rel=0.05)
        assert row[name] == pytest.approx(resampled.mean(), abs=row[f"{name}_std"] / 10)
    # Texts that cost the same per token differ in nothing but length, which is no error.
    assert likelihood(2.5 * tokens[:, None], tokens, words)["nats_per_token_std"] == pytest.approx(0, abs=1e-12)


def test_the_error_of_the_draws_is_what_new_draws_vary_by(rng):
    nats, tokens, words = texts(rng, draws=4)
    fixed = nats.mean(1, keepdims=True)
    rows = [likelihood(fixed + rng.normal(0, 2, nats.shape), tokens, words) for _ in range(400)]
    found = np.mean([row["nats_per_token_draws"] for row in rows])
    assert found == pytest.approx(np.std([row["nats_per_token"] for row in rows]), rel=0.1)
    assert found == pytest.approx(2 * sqrt(len(nats) / 4) / tokens.sum(), rel=0.02)


def test_the_error_over_texts_contains_that_of_the_draws(rng):
    count = 500
    tokens = np.full(count, 10)
    row = likelihood(30 + rng.normal(0, 6, (count, 2)), tokens, tokens)  # texts that differ by their draws alone
    assert row["nats_per_token_std"] == pytest.approx(row["nats_per_token_draws"], rel=0.15)


def test_what_cannot_be_computed_has_a_reason(rng):
    one = likelihood(np.array([[3.0]]), [2], [0])
    assert one["nats_per_token"] == 1.5 and isnan(one["nats_per_word"])
    assert one.notes["nats_per_word"] == "there are no words"
    assert "one text" in one.notes["nats_per_token_std"] and "one draw" in one.notes["nats_per_token_draws"]
    assert "nats_per_token" not in one.notes
    impossible = likelihood(np.array([[3.0, 3.0], [inf, 2.0]]), [2, 2], [1, 1])
    assert impossible["nats_per_token"] == inf and isnan(impossible["nats_per_token_std"])
    assert isnan(impossible["nats_per_token_draws"])


@pytest.mark.filterwarnings("error")
def test_the_reason_is_the_one_that_holds():
    unknown = likelihood(np.array([[nan, 1.0], [2.0, 1.0]]), [2, 2], [1, 1])
    assert isnan(unknown["nats_per_token"]) and unknown.notes["nats_per_token"].endswith("is not a number")
    silent = likelihood(np.ones((2, 2)), [0, 0], [0, 0], [0, 0])
    reasons = {name: note for name, note in silent.notes.items() if not name.endswith(("std", "draws"))}
    assert reasons == {f"nats_per_{unit}": f"there are no {unit}s" for unit in ("token", "word")} | {
        "bits_per_character": "there are no characters"
    }


@pytest.mark.parametrize(
    ("nats", "tokens", "words", "characters"),
    [
        (np.ones(2), [1, 1], [1, 1], None),
        (np.ones((0, 1)), [], [], None),
        (np.ones((2, 1)), [1], [1, 1], None),
        (np.ones((2, 1)), [1, 1], [1, 1, 1], None),
        (np.ones((2, 1)), [1, 1], [1, 1], [1]),
    ],
)
def test_counts_that_do_not_fit_are_refused(nats, tokens, words, characters):
    with pytest.raises(MetricError, match="^likelihood: nats of shape"):
        likelihood(nats, tokens, words, characters)
