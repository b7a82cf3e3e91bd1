"""Self-correction: the rules of the loop, and golden/discrete/gidd_selfcorrection.json token for token.

Those figures come from running the public script of GIDD on a model in closed form, with its random numbers written
down (the scores and the states before each step, which follow from the rest, are left out).
"""

import pytest
import torch
import torch.nn.functional as F

from diffusion.randomness import SampleGenerators
from diffusion.self_correction import accuracy, replace, self_correct

V, MASK = 8, 7


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_hot_logits(text: torch.Tensor, strength: float = 20.0) -> torch.Tensor:
    """Logits that are sure of `text`, whatever is shown; never the mask."""
    logits = strength * F.one_hot(text, V).double()
    logits[..., MASK] = -torch.inf
    return logits


def random_texts(B: int = 4, L: int = 6) -> torch.Tensor:
    return torch.randint(0, MASK, (B, L), generator=generator(9))


def everywhere(z: torch.Tensor) -> torch.Tensor:
    return torch.ones(z.shape, dtype=torch.bool)


# Figures from running the public reference code


class Recorded(SampleGenerators):
    """Generators that play back the uniforms of each golden sequence, step by step."""

    def __init__(self, sequences):
        super().__init__([])
        self.generators = [iter([step["uniforms"] for step in sequence["steps"]]) for sequence in sequences]

    def of(self, samples, lengths=None):
        chosen = Recorded([])
        chosen.generators = [self.generators[i] for i in samples]
        return chosen

    def draw(self, random, shape, device, dtype):
        return torch.tensor([next(recorded) for recorded in self.generators], dtype=dtype).reshape(shape)


def closed_form(run):
    """logit[i, v] = A cos(a (v + 1) + b i + c z[i - 1] + d z[i + 1] + e z[i]), with the mask out of reach."""
    A, a, b, c, d, e = (run["constants"][name] for name in "Aabcde")
    ids = torch.arange(V, dtype=torch.float64)

    def logits_of(z, rows=None):
        place = b * torch.arange(z.shape[1]) + c * z.roll(1, 1) + d * z.roll(-1, 1) + e * z
        return (A * torch.cos(a * (ids + 1) + place[..., None])).index_fill(-1, torch.tensor(MASK), -1e6)

    return logits_of


@pytest.fixture(scope="module")
def golden(discrete_golden):
    return discrete_golden("gidd_selfcorrection")


@pytest.mark.parametrize("run", range(5))
def test_every_step_is_that_of_the_reference_code(golden, run):
    run = golden["runs"][run]
    config, logits_of = run["config"], closed_form(run)
    for sequence in run["sequences"]:
        z = torch.tensor([sequence["z_init"]])
        for step in sequence["steps"]:
            logits, u = logits_of(z), torch.tensor([step["uniforms"]], dtype=torch.float64)
            for dtype in (torch.float64, torch.float32):
                drawn = replace(logits.to(dtype), z, everywhere(z), u, config["temp"], tokens_per_step=8)
                after = replace(logits.to(dtype), z, everywhere(z), u, config["temp"], config["tokens_per_step"])
                assert drawn[0].tolist() == step["proposal"] and after[0].tolist() == step["z_after"]
            assert accuracy(logits, after, everywhere(z)).item() == step["acc"]
            z = after


@pytest.mark.parametrize("run", range(5))
def test_texts_and_reports_are_those_of_the_reference_code(golden, run):
    run = golden["runs"][run]
    config, sequences, logits_of = run["config"], run["sequences"], closed_form(run)
    z = torch.tensor([sequence["z_init"] for sequence in sequences])
    ours = self_correct(
        logits_of, z, everywhere(z), generator=Recorded(sequences), temperature=config["temp"],
        tokens_per_step=config["tokens_per_step"], max_steps=config["num_denoising_steps"],
        patience=config["max_patience"],
    )  # fmt: skip
    assert ours.z.tolist() == [sequence["z_final"] for sequence in sequences]
    assert ours.stop == [sequence["stop"] for sequence in sequences]
    assert ours.steps.tolist() == [len(sequence["steps"]) for sequence in sequences]
    for name in ("init_acc", "num_changes"):
        assert getattr(ours, name).tolist() == [sequence["metrics"][name] for sequence in sequences]
    # The reference's own final_acc is of the last text tried, even if dropped, and under the logits of the one before.
    assert torch.equal(ours.final_acc, accuracy(logits_of(ours.z), ours.z, everywhere(z)))
    for row, sequence in enumerate(sequences):
        if sequence["stop"] == "converged":
            assert ours.final_acc[row].item() == sequence["metrics"]["final_acc"]


def test_the_golden_runs_meet_every_way_to_stop(golden):
    assert {s["stop"] for run in golden["runs"] for s in run["sequences"]} == {"converged", "patience", "budget"}


# The rules


def test_a_model_sure_of_the_text_changes_nothing_and_converges_at_once():
    z = random_texts()
    ours = self_correct(lambda z, rows: one_hot_logits(z), z, everywhere(z), generator=generator())
    assert torch.equal(ours.z, z) and ours.stop == ["converged"] * 4
    assert ours.steps.tolist() == [1] * 4 and ours.num_changes.tolist() == [0] * 4
    assert ours.init_acc.tolist() == ours.final_acc.tolist() == [1.0] * 4


def test_exactly_the_corrupted_token_is_changed():
    truth = random_texts()
    z = truth.clone()
    z[:, 2] = (z[:, 2] + 1) % MASK
    ours = self_correct(lambda z, rows: one_hot_logits(truth[rows]), z, everywhere(z), generator=generator())
    assert torch.equal(ours.z, truth) and ours.num_changes.tolist() == [1] * 4 and ours.steps.tolist() == [2] * 4
    assert ours.init_acc.tolist() == [5 / 6] * 4 and ours.final_acc.tolist() == [1.0] * 4
    assert not torch.equal(z, truth)  # the given text itself is left alone


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_at_most_k_tokens_change_per_step_and_they_are_the_likeliest(k):
    truth, z = random_texts(), (random_texts() + 1) % MASK
    logits = one_hot_logits(truth)
    sureness = torch.tensor([3.0, 8, 5, 7, 4, 6])
    after = replace(logits * sureness[:, None] / 8, z, everywhere(z), torch.full(z.shape, 0.5), 1.0, k)
    likeliest = sureness.argsort(descending=True)[:k]
    assert (after != z).sum(1).tolist() == [min(k, 6)] * 4
    assert torch.equal(after[:, likeliest], truth[:, likeliest])


def test_only_free_positions_are_changed_and_counted():
    truth, free = random_texts(), everywhere(random_texts())
    free[:, 3:] = False
    free[3] = False
    z = (truth + 1) % MASK
    z[:, 5] = MASK  # padding may hold anything
    ours = self_correct(
        lambda z, rows: one_hot_logits(truth[rows]), z, free, generator=generator(), tokens_per_step=4
    )
    assert torch.equal(ours.z, torch.where(free, truth, z))
    assert ours.num_changes.tolist() == [3, 3, 3, 0] and ours.stop == ["converged"] * 4
    assert ours.init_acc.tolist() == [0.0] * 4 and ours.final_acc.tolist() == [1.0, 1.0, 1.0, 0.0]


def test_no_mask_is_ever_written():
    logits = torch.zeros(4, 6, V).index_fill(-1, torch.tensor(MASK), -torch.inf)
    z = random_texts()
    ours = self_correct(
        lambda z, rows: logits[rows], z, everywhere(z), generator=generator(), temperature=1.0, tokens_per_step=6
    )
    assert (ours.z != MASK).all() and (ours.num_changes > 0).all()


@pytest.mark.parametrize(("patience", "expected"), [(32, 33), (0, 1), (4, 5)])
def test_patience_ends_after_one_more_failure_than_it_bears_and_drops_that_step(patience, expected):
    """Token 0 is always the first choice, but the proposals are all of other ids: the accuracy stays at 0."""
    seen = []

    def logits_of(z, rows):
        seen.append(z.clone())
        logits = torch.zeros(*z.shape, V)
        logits[..., 0] = 1e-9
        logits[..., MASK] = -torch.inf
        return logits

    z = torch.full((1, 6), 3)
    u = torch.rand(200, 6, generator=generator(), dtype=torch.float64) * 0.8 + 0.19  # never id 0
    steps = [{"uniforms": row} for row in u.tolist()]
    ours = self_correct(
        logits_of, z, everywhere(z), generator=Recorded([{"steps": steps}]), temperature=1.0, patience=patience
    )
    assert ours.stop == ["patience"] and ours.steps.tolist() == [expected] and len(seen) == expected
    assert torch.equal(ours.z, seen[-1])


def test_progress_restores_patience():
    """One token is put right every step, from none to all six: no failure, even with a patience of 0."""
    truth = random_texts()
    z = (truth + 1) % MASK
    ours = self_correct(
        lambda z, rows: one_hot_logits(truth[rows]), z, everywhere(z), generator=generator(), patience=0, max_steps=6
    )
    assert torch.equal(ours.z, truth) and ours.stop == ["budget"] * 4 and ours.steps.tolist() == [6] * 4
    assert ours.final_acc.tolist() == [1.0] * 4


def test_a_budget_of_no_steps_returns_the_text():
    z = random_texts()
    ours = self_correct(lambda z, rows: one_hot_logits(z), z, everywhere(z), generator=generator(), max_steps=0)
    assert torch.equal(ours.z, z) and ours.stop == ["budget"] * 4 and ours.steps.tolist() == [0] * 4
    assert torch.equal(ours.init_acc, ours.final_acc)


def test_finished_rows_leave_the_batch_and_no_row_depends_on_the_others(golden):
    run = golden["runs"][3]
    logits_of, asked = closed_form(run), []
    z = torch.tensor([sequence["z_init"] for sequence in run["sequences"]])
    z = torch.cat([z, z.roll(3, 1), z.flip(0)])
    free = torch.arange(8) < torch.randint(4, 9, (12, 1), generator=generator(3))

    def asking(z, rows):
        asked.append(rows.tolist())
        return logits_of(z)

    seeds, lengths = list(range(12)), free.sum(1).tolist()
    together = self_correct(asking, z, free, generator=SampleGenerators(seeds, lengths), temperature=0.6, max_steps=40)
    assert len(set(together.steps.tolist())) > 3
    assert [len(rows) for rows in asked] == sorted((len(rows) for rows in asked), reverse=True) and len(asked[-1]) < 12
    for row in range(12):
        assert sum(row in rows for rows in asked) == together.steps[row] + (together.stop[row] == "budget")
        alone = self_correct(
            logits_of, z[[row]], free[[row]], generator=SampleGenerators([row], lengths[row : row + 1]),
            temperature=0.6, max_steps=40,
        )  # fmt: skip
        assert torch.equal(alone.z[0], together.z[row]) and alone.stop[0] == together.stop[row]
        assert alone.steps[0] == together.steps[row] and alone.final_acc[0] == together.final_acc[row]
