"""Samplers that save network calls: the samples they must equal, the law they must follow, the calls they may make."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from scipy import stats

from diffusion.autoregressive import ERASED, AutoregressiveProcess
from diffusion.graphs import AbsorbingGraph, UniformGraph
from diffusion.guidance import Clamped
from diffusion.masked import MaskedProcess
from diffusion.randomness import SampleGenerators, sample_seeds
from diffusion.samplers import sample_ancestral
from diffusion.score_entropy import ScoreEntropyProcess
from diffusion.survival import SURVIVALS, geometric, loglinear
from diffusion.token_samplers import sample_ddpm_cache, sample_euler, sample_first_hitting, sample_left_to_right

V, MASK, L = 6, 5, 9


class Network:
    """A predictor whose answer for a row depends on all its tokens; `asked` keeps the rows, xt and t of each call."""

    def __init__(self, process, lengths=(L, L, L, L), rows=None, asked=None):
        self.process, self.lengths, self.index = process, lengths, rows
        self.asked = [] if asked is None else asked

    def __call__(self, xt, t, at=None):
        rows = torch.arange(len(xt)) if self.index is None else self.index
        self.asked.append((rows, xt, t))
        place = torch.arange(xt.shape[1])
        valid = place < torch.tensor(self.lengths)[rows % len(self.lengths)][:, None]
        context = (valid * xt * (1.0 + place)).sum(1)[:, None, None]
        x0_hat = self.process.denoised(2 * torch.cos(context + 1.7 * place[:, None] * torch.arange(V)).double(), xt, t)
        return x0_hat if at is None else at.of(x0_hat)

    def rows(self, index):
        return Network(self.process, self.lengths, index, self.asked)


class Chain:
    """What an autoregressive network says of the next of V ids, by what was written; counts its calls."""

    def __init__(self):
        self.calls = 0

    def next(self, written, cache):
        assert (cache or 0) == written.shape[1] == self.calls and (written != ERASED).all()
        self.calls += 1
        context = (written * (1.0 + torch.arange(written.shape[1]))).sum(1)
        return (2 * torch.cos(context[:, None] + torch.arange(V))).log_softmax(-1), self.calls


def mdlm(schedule: str = "loglinear") -> MaskedProcess:
    return MaskedProcess(V, MASK, SURVIVALS[schedule]())


def several(lengths=(L, L, L, L), start: int = 0) -> SampleGenerators:
    return SampleGenerators(sample_seeds(0, start, len(lengths)), lengths)


# ddpm_cache


@pytest.mark.parametrize("schedule", ["loglinear", "cosine", "geometric"])
@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("clamped", [False, True])
def test_asking_only_when_masks_go_gives_the_samples_of_ancestral_sampling(schedule, count, clamped, generator):
    process = mdlm(schedule)
    free = torch.arange(L) >= clamped * torch.arange(1, 5)[:, None]
    for draws in (several, generator):
        samples = []
        for sampler in (sample_ddpm_cache, sample_ancestral):
            predict_x0 = Clamped(Network(process), torch.full((4, L), 2), free)
            start = predict_x0.hold(process.prior((4, L), None))
            samples.append(sampler(process, predict_x0, start, process.grid(count), generator=draws()))
        assert torch.equal(*samples) and (samples[0] != MASK).all() and (samples[0][~free] == 2).all()


def test_only_rows_that_change_are_asked_about(generator):
    process, N = mdlm(), 100
    network, seen = Network(process), [process.prior((4, L), None)]
    sample_ddpm_cache(
        process, network, seen[0], process.grid(N), generator=generator(), on_step=lambda i, n, x: seen.append(x)
    )
    changes = [(before, (before != after).any(1)) for before, after in pairwise(seen)]
    changes = [(x, changed.nonzero().squeeze(1)) for x, changed in changes if changed.any()]
    assert len(seen) == N + 1 and L < len(network.asked) == len(changes) < N
    for (rows, xt, _), (x, changed) in zip(network.asked, changes, strict=True):
        assert torch.equal(rows, changed) and torch.equal(xt, x[changed])
    assert torch.cat([rows for rows, _, _ in network.asked]).bincount().max() <= L  # a row changes L times at most


@pytest.mark.parametrize(("length", "N"), [(8, 20), (3, 5), (20, 10)])
def test_rows_are_asked_about_as_often_as_expected(length, N, generator):
    """In each step in which any token shows: each does with chance 1 / N."""
    process, B = MaskedProcess(V, MASK, loglinear(epsilon=0)), 1000
    network = Network(process)
    sample_ddpm_cache(process, network, process.prior((B, length), None), process.grid(N), generator=generator())
    asked = torch.cat([rows for rows, _, _ in network.asked]).bincount().double()
    expected = N * (1 - (1 - 1 / N) ** length)
    assert abs(asked.mean() - expected) < 4 * asked.std() / B**0.5


def test_a_token_that_is_nearly_the_mask_in_floating_point_is_a_change(generator):
    """128,256 and 128,255 are within a relative tolerance of 1e-5."""
    mask, counts = 128_256, []
    process = MaskedProcess(mask + 1, mask, loglinear(epsilon=0))

    class Sure:
        def __call__(self, xt, t, at):
            counts.append(int((xt == mask).sum()))
            output = torch.zeros(*xt.shape, mask + 1)
            output[..., mask - 1] = 100.0
            return at.of(process.denoised(output, xt, t))

        def rows(self, index):
            return self

    x = sample_ddpm_cache(process, Sure(), process.prior((1, 3), None), process.grid(20), generator=generator())
    assert (x == mask - 1).all() and len(counts) > 1 and len(set(counts)) == len(counts)


# First hitting


def test_texts_of_first_hitting_follow_the_distribution(toy, ideal, generator):
    method = ideal("mdlm")
    start = method.process.prior((20_000, 2), None)
    assert toy.p_value(sample_first_hitting(method.process, method, start, [], generator=generator())) > 1e-3


@pytest.mark.parametrize("schedule", SURVIVALS)
def test_masks_go_one_by_one_in_any_order_at_the_times_of_uniform_move_chances(schedule, generator):
    process, B, length = mdlm(schedule), 4000, 6
    network, seen = Network(process), [process.prior((B, length), None)]
    sample_first_hitting(process, network, seen[0], [], generator=generator(), on_step=lambda i, n, x: seen.append(x))
    assert len(network.asked) == length and (seen[-1] != MASK).all()
    for i, (rows, xt, t) in enumerate(network.asked):
        assert len(rows) == B and torch.equal(xt, seen[i])
        now = (xt == MASK) & (seen[i + 1] != MASK)
        assert (now.sum(1) == 1).all() and ((seen[i + 1] == xt) | now).all()
        assert stats.chisquare(now.sum(0).numpy()).pvalue > 1e-3
        share = process.survival.move_chance(t) / process.survival.move_chance(torch.ones(()))
        assert stats.kstest(share.numpy(), stats.beta(length - i, i + 1).cdf).pvalue > 1e-3  # of order statistics


def test_first_hitting_asks_about_rows_with_masks_only_and_keeps_tokens(generator):
    process, told = mdlm(), []
    network, x = Network(process), torch.tensor([[0, MASK, 2, MASK, MASK], [1, 1, 1, 1, 1], [MASK, 0, 0, 0, 0]])
    after = sample_first_hitting(
        process, network, x, [], generator=generator(), on_step=lambda i, n, x: told.append((i, n))
    )
    assert [rows.tolist() for rows, _, _ in network.asked] == [[0, 2], [0], [0]] and told == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(after[x != MASK], x[x != MASK]) and (after != MASK).all()
    assert torch.equal(sample_first_hitting(process, network, after, [], generator=generator()), after)


# Euler


@pytest.mark.parametrize("graph", [AbsorbingGraph(V, MASK), UniformGraph(V)], ids=["absorb", "uniform"])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_euler_takes_its_own_steps_but_an_exact_last_one(graph, count, generator):
    process, told = ScoreEntropyProcess(graph, geometric()), []
    network, start, times = Network(process), process.prior((40, L), generator()), process.grid(count)
    ours = sample_euler(
        process, network, start, times, generator=generator(1), on_step=lambda i, n, x: told.append((i, n))
    )
    x, draws = start, generator(1)
    for i, (t, s) in enumerate(pairwise(times), start=1):
        t, s = (torch.full((len(x),), time, dtype=torch.float64) for time in (t, s))
        x = (process.step if i == count else process.euler_step)(network(x, t), x, t, s, draws)
    assert torch.equal(ours, x) and told == [(i, count) for i in range(1, count + 1)]
    assert isinstance(graph, UniformGraph) or (ours != MASK).all()


# Left to right


def write(x, *, generator=None, **options):
    """What the chain makes of x, and its number of calls."""
    chain = Chain()
    generator = generator or several((x.shape[1],) * len(x))
    return sample_left_to_right(AutoregressiveProcess(V), chain, x, [], generator=generator, **options), chain.calls


def test_what_stands_there_is_kept_and_what_is_erased_is_written():
    x = torch.full((4, L), ERASED)
    x[0, :4], x[1, 5:], x[2, [0, 8]] = 3, 2, 1
    before, told = x.clone(), []
    written, calls = write(x, on_step=lambda i, n, x: told.append((i, n, int((x == ERASED).sum()))))
    assert torch.equal(x, before) and calls == L
    assert torch.equal(written[x != ERASED], x[x != ERASED]) and ((written >= 0) & (written < V)).all()
    assert [t[:2] for t in told] == [(i, L) for i in range(1, L + 1)]
    assert [t[2] for t in told] == [int((x[:, i:] == ERASED).sum()) for i in range(1, L + 1)]


@pytest.mark.parametrize("stop_id", range(V))
def test_a_row_ends_with_the_first_stop_that_it_draws(stop_id):
    x = torch.full((4, 60), ERASED)
    endless, _ = write(x)
    stopped, calls = write(x, stop_id=stop_id)
    ends = (endless == stop_id).int().argmax(1)
    assert (endless == stop_id).any(1).all() and len(set(ends.tolist())) > 1
    for row, whole, end in zip(stopped, endless, ends.tolist(), strict=True):
        assert torch.equal(row[:end], whole[:end]) and (row[end:] == stop_id).all()
    assert calls == ends.max() + 1 < 60


def test_a_stop_that_is_given_ends_nothing_and_what_is_given_after_the_end_is_kept():
    x = torch.full((20, 6), ERASED)
    x[:, 0], x[:, 4] = 0, 3  # 0 is the stop: a source may end in one
    (endless, _), (stopped, _) = write(x), write(x, stop_id=0)
    assert (stopped[:, 0] == 0).all() and (stopped[:, 4] == 3).all()
    assert torch.equal(stopped[:, 1], endless[:, 1])
    ended = (endless[:, 1:4] == 0).any(1)
    assert ended.any() and not ended.all()
    assert (stopped[ended, 5] == 0).all() and torch.equal(stopped[~ended], endless[~ended])


# Every sampler


@pytest.mark.parametrize("name", ["ddpm_cache", "first_hitting", "euler", "left_to_right"])
def test_a_sample_depends_on_its_own_generator_and_length_only(name):
    """Not on its batch partners, which may be longer or end later; nor do the numbers that its generator draws next."""
    process, sampler, network = {
        "ddpm_cache": (mdlm(), sample_ddpm_cache, Network),
        "first_hitting": (mdlm(), sample_first_hitting, Network),
        "euler": (ScoreEntropyProcess(UniformGraph(V), geometric()), sample_euler, Network),
        "left_to_right": (AutoregressiveProcess(V), partial(sample_left_to_right, stop_id=1), lambda *_: Chain()),
    }[name]

    def sample(lengths, start=0):
        draws, width = several(lengths, start), max(lengths)
        x = process.prior((len(lengths), width), draws)
        x = sampler(process, network(process, lengths), x, process.grid(12), generator=draws)
        return x, torch.rand(1, generator=draws.generators[-1])

    lengths = (L, 4, 7, 5)
    together, next_together = sample(lengths)
    for i, length in enumerate(lengths):
        alone, next_alone = sample((length,), i)
        assert torch.equal(alone[0], together[i, :length])
    assert next_alone == next_together
    assert len(set(together.flatten().tolist())) > 2
