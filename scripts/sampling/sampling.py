"""Texts from noise: lengths, labels and what is given of a text, then the sampler, then the codec.

B batch, L positions, D latent width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from time import perf_counter

import torch
from torch import Tensor

from diffusion.early_stop import EarlyStop
from diffusion.guidance import Clamped, Guided, Prediction, Predictor, Tempered
from diffusion.randomness import SampleGenerators, sample_seeds, uniform
from diffusion.training.progress import progress_bar
from scripts.composition.build import System
from scripts.job.console import note
from scripts.job.errors import UsageError
from scripts.job.hardware import wait_for
from scripts.job.processes import rank_and_count, shared_out
from scripts.sampling.samples_file import Samples

BAR = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
DECODING_STREAM = 2**32  # added to a seed: decoding draws from other numbers than the latents


@dataclass(frozen=True)
class Given:
    """What is given of the texts to sample: a source before each, and pieces within every one."""

    sources: Sequence[str] | None = None  # one for each sample
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class Piece:
    """The tokens [n] of a piece of text, and its first position; None: the piece ends the text."""

    ids: Tensor
    position: int | None

    def place(self, length: int) -> slice:
        """Where it stands in a text of `length` positions."""
        start = length - len(self.ids) if self.position is None else self.position
        return slice(start, start + len(self.ids))


# Called with a step, the number of steps, the samples of a batch and their x after that step.
Watch = Callable[[int, int, Sequence[int], Tensor], None]


@torch.no_grad()
def sample(
    system: System,
    count: int,
    seed: int,
    *,
    strategies: Iterable[str] | None = None,
    labels: Sequence[int] | None = None,
    given: Given | None = None,
    watch: Watch | None = None,
) -> Samples:
    """`count` texts by each strategy; sample i is a function of `seed` and i alone, whatever the batch size.

    Lengths are drawn from the training lengths, unless the model writes them; labels from the training labels, unless
    `labels` gives them. Raises ValueError for a model that is told sources and gets none.
    """
    given = given or Given()
    if system.options.tokens.condition_on_source and given.sources is None:
        raise ValueError("the model makes texts from sources: expected one for each")
    batch_size = system.options.training.eval_batch_size
    seeds, decoding_seeds = (sample_seeds(s, 0, count) for s in (seed, seed + DECODING_STREAM))
    generators = SampleGenerators(seeds)
    u = uniform((count, 2), generators, dtype=torch.float64)
    targets = _target_lengths(system, u[:, 0], given)
    before = [[] for _ in range(count)] if given.sources is None else system.space.encode_sources(given.sources)
    lengths = targets + torch.tensor([len(source) for source in before])
    label = _drawn_labels(system, u[:, 1]) if labels is None else torch.tensor(labels)
    texts = {strategy: [""] * count for strategy in strategies or system.space.strategies}
    made: list[list[int]] = [[]] * count
    seconds = dict.fromkeys(texts, 0.0)
    device = next(system.denoiser.parameters()).device
    groups = lengths.argsort(stable=True).split(batch_size)  # similar lengths together, so that little is padded
    rank, processes = rank_and_count()
    total = sum(map(len, groups[rank::processes]))
    sampling = 1 if system.method.on_tokens else 1 / (1 + len(texts))  # its share: latents have to be written, too

    with progress_bar(None, f"sample {total}, seed {seed}", total=total, bar_format=BAR, disable=rank > 0) as bar:

        def make(group: Tensor) -> tuple[dict[str, list[str]], dict[str, float], list[list[int]]]:
            """The texts of a group by each strategy, its seconds, and the tokens where the method is on tokens."""
            rows, done, started = group.tolist(), bar.n, perf_counter()

            def progress(i: int, n: int, x: Tensor) -> None:
                bar.update(done + len(rows) * sampling * i / n - bar.n)
                if watch is not None:
                    watch(i, n, rows, x)

            chosen = None if label is None else label[group]
            own = generators.of(rows, lengths[group].tolist())
            x0, shown = _sample_batch(
                system, own, lengths[group], chosen, [before[i] for i in rows], given.pieces, progress
            )
            wait_for(device)
            generated = perf_counter() - started
            bar.update(done + len(rows) * sampling - bar.n)  # a sampler may end early
            own_seeds = [decoding_seeds[i] for i in rows]
            written, spent = {}, {}
            for way, strategy in enumerate(texts, start=1):
                started = perf_counter()
                written[strategy] = system.space.decode(x0, shown, strategy, own_seeds)
                spent[strategy] = generated + perf_counter() - started
                bar.update(done + len(rows) * (sampling + (1 - sampling) * way / len(texts)) - bar.n)
            if not system.method.on_tokens:
                return written, spent, [[]] * len(rows)
            return written, spent, [_ended(system, ids[keep].tolist()) for ids, keep in zip(x0, shown, strict=True)]

        for group, (written, spent, ids) in zip(groups, shared_out(groups, make), strict=True):
            for place, i in enumerate(group.tolist()):
                made[i] = ids[place]
                for strategy in texts:
                    texts[strategy][i] = written[strategy][place]
            for strategy in texts:
                seconds[strategy] += spent[strategy]
    names = [None] * count if label is None else [system.classes[i] if i >= 0 else None for i in label.tolist()]
    if not system.method.on_tokens:
        return Samples(texts, seeds, targets.tolist(), names, seconds=seconds)
    lost = sum(_loses(system, ids, length, given.pieces) for ids, length in zip(made, targets.tolist(), strict=True))
    if lost:
        note(
            f"warning: {lost:,} of {count:,} texts end before words given to them, which they have lost: the model "
            "wrote an end of text there; give the words an earlier place, or another --random_seed"
        )
    return Samples(texts, seeds, [len(ids) for ids in made], names, made, system.space.fingerprint, seconds)


def _sample_batch(
    system: System,
    generators: SampleGenerators,
    lengths: Tensor,
    label: Tensor | None,
    before: Sequence[Sequence[int]],
    pieces: Sequence[Piece],
    progress: Callable[[int, int, Tensor], None],
) -> tuple[Tensor, Tensor]:
    """x0 of a batch and which of its positions [B, L] are the text: not padding, not the source before it."""
    device = next(system.denoiser.parameters()).device
    place = torch.arange(int(lengths.max()))
    valid = place < lengths[:, None]
    shown = valid & (place >= torch.tensor([len(source) for source in before])[:, None])
    known, free = _known(system, before, lengths, valid, pieces)
    valid, known, free = valid.to(device), known.to(device), free.to(device)
    clamped = Clamped(prediction(system, valid, None if label is None else label.to(device)), known, free)
    tolerance = system.options.sampling.early_stop
    x = system.process.prior(system.space.shape(*valid.shape), generators, device)
    if system.method.on_tokens:
        x = clamped.hold(x)  # known tokens are there from the start; latents come out of the noise with the others
    x = system.sampler(
        system.process,
        EarlyStop(system.process, clamped, free, tolerance) if tolerance else clamped,
        x,
        system.times,
        generator=generators,
        on_step=lambda i, n, x: progress(i, n, clamped.hold(x)),
    )
    return clamped.hold(x), shown.to(device)


def _ended(system: System, ids: list[int]) -> list[int]:
    """The ids up to the end of text, where the model writes it."""
    return ids[: system.space.codec.end_of(ids) + 1] if system.writes_length else ids


def _loses(system: System, ids: list[int], length: int, pieces: Sequence[Piece]) -> bool:
    """Whether a text of `length` positions ends before the last of the words given to it."""
    codec = system.space.codec
    words = (piece.place(length).stop - int((piece.ids == codec.eos_id).sum()) for piece in pieces)
    return codec.end_of(ids) < max(words, default=0)


def prediction(system: System, valid: Tensor, label: Tensor | None = None) -> Predictor:
    """predict_x0 of a system, guided and sharpened as its options say; on a GPU in the precision of its training."""
    chosen, precision = system.options.sampling, system.options.training.sampling_precision(valid.device)
    predict_x0 = Prediction(system.process, system.denoiser, valid, label, precision=precision)
    if chosen.guidance != 1:
        less = replace(predict_x0, label=None)
        predict_x0 = Guided(predict_x0, less, chosen.guidance, normalised=system.method.is_tempered)
    elif chosen.self_condition_guidance != 1:
        predict_x0 = Guided(predict_x0, replace(predict_x0, forgets=True), chosen.self_condition_guidance)
    if not chosen.is_tempered:
        return predict_x0
    return Tempered(predict_x0, chosen.temperature, chosen.top_p, chosen.top_k, system.process.mask_id)


def _target_lengths(system: System, u: Tensor, given: Given) -> Tensor:
    """Positions of each text to be made: as many as the pieces given need at least."""
    limit = system.space.limit
    least = sum(len(piece.ids) for piece in given.pieces if piece.position is None) + max(
        (piece.position + len(piece.ids) for piece in given.pieces if piece.position is not None), default=0
    )
    if least > limit:
        raise UsageError(
            f"what is given of a text takes {least:,} tokens; expected at most {limit:,}, the longest text of the "
            "model: shorten it"
        )
    pinned = any(piece.position is None for piece in given.pieces)  # to the end, which must then be known
    if system.writes_length and not (pinned and system.method.causal):
        return torch.full((len(u),), limit)
    return system.space.lengths.lengths_at(u).clamp(min=least)


def _known(
    system: System, before: Sequence[Sequence[int]], lengths: Tensor, valid: Tensor, pieces: Sequence[Piece]
) -> tuple[Tensor, Tensor]:
    """What is known of a batch, [B, L] or [B, L, D], padding included, and which positions [B, L] are free.

    Padding is PAD, as in training: a schedule that depends on the tokens of a sentence must not count what is there.
    """
    shape = system.space.shape(*valid.shape)
    known = torch.full(shape, system.space.codec.pad_id) if system.method.on_tokens else torch.zeros(shape)
    free = valid.clone()
    among = cache(system.space.among)  # many rows of a batch are alike in length
    for row, (source, length) in enumerate(zip(before, lengths.tolist(), strict=True)):
        if source:
            known[row, : len(source)], free[row, : len(source)] = torch.tensor(source), False
        for piece in pieces:
            own = length - len(source)
            place = piece.place(own)
            x0 = among(piece.ids, place.start, own)
            place = slice(place.start + len(source), place.stop + len(source))
            known[row, place], free[row, place] = x0.to(known.dtype).cpu(), False
    return known, free


def _drawn_labels(system: System, u: Tensor) -> Tensor | None:
    """Label index [B] at the quantiles u of the training labels; None for unconditional models."""
    if not system.classes:
        return None
    known = torch.from_numpy(system.label_ids(system.corpus.train.labels)).sort().values
    return known[(u * len(known)).long()]
