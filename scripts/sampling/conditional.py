"""Texts made from the sources of a corpus, several for each where MBR is to choose."""

from __future__ import annotations

from collections.abc import Sequence

from offline_metrics.mbr import mbr_choice
from offline_metrics.scores import Scores
from offline_metrics.seq2seq import candidate_diversity, seq2seq
from scripts.composition.build import System
from scripts.sampling.samples_file import Samples
from scripts.sampling.sampling import Given, sample

FIRST, MBR = "sample", "mbr"  # rows: the first candidate of each source, and the one that agrees best with all


def sample_candidates(system: System, sources: Sequence[str], seed: int, candidates: int) -> Samples:
    """`candidates` texts for each source, those of one source one after the other."""
    repeated = [source for source in sources for _ in range(candidates)]
    return sample(system, len(repeated), seed, given=Given(repeated))


def candidate_sets(samples: Samples, candidates: int) -> list[list[str]]:
    """The texts of each source."""
    texts = samples.first
    return [texts[i : i + candidates] for i in range(0, len(texts), candidates)]


def chosen(samples: Samples, candidates: int) -> dict[str, Samples]:
    """The first candidate of each source and, where there are several, the choice of minimum Bayes risk."""
    starts = range(0, len(samples.first), candidates)
    result = {FIRST: samples.pick(starts)}
    if candidates > 1:
        picks = map(mbr_choice, candidate_sets(samples, candidates))
        result[MBR] = samples.pick([start + pick for start, pick in zip(starts, picks, strict=True)])
    return result


def add_pair_scores(
    row: Scores, texts: Sequence[str], references: Sequence[str], sets: Sequence[Sequence[str]]
) -> None:
    """BLEU, ROUGE-L and so on of texts against the one reference each has, and how diverse the candidates are."""
    row.add(seq2seq(texts, references), "not defined for these texts")
    if len(sets[0]) > 1:
        row.add(candidate_diversity(sets), "no candidate is long enough")
