"""Latents as the space that a method works in: normalised states of a frozen codec, from disk.

B batch, L positions, D latent width, M tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffusion.training.objective import Batch
from diffusion.training.progress import progress_bar
from diffusion.window import Levels
from latent_models.codec import Codec, find_model
from latent_models.codec_kinds import codec_type
from latent_models.corpora import Corpus
from latent_models.latent_cache import LatentCache, encoded
from latent_models.lengths import LengthModel
from latent_models.seq2seq_codec import CodecOptions, LatentDtype
from latent_models.statistics import LatentStatistics
from scripts.composition.window_file import WINDOW, write_levels
from scripts.job.console import note
from scripts.job.errors import UsageError

STATISTICS = "latent_statistics.safetensors"


@dataclass(frozen=True)
class LatentData:
    """A split as the trainer wants it: normalised latents by index."""

    cache: LatentCache
    statistics: LatentStatistics
    labels: np.ndarray | None

    @property
    def lengths(self) -> np.ndarray:
        return self.cache.lengths

    def batch(self, indices: np.ndarray) -> Batch:
        """x0 [B, L, D], zero where padded."""
        states, valid = self.cache.batch(indices)
        x0 = self.statistics.normalise(states) * valid[..., None]
        return Batch(x0, valid, None if self.labels is None else torch.from_numpy(self.labels[indices]))


@dataclass(frozen=True)
class LatentSpace:
    """Normalised latents of a frozen codec."""

    codec: Codec
    statistics: LatentStatistics
    cache_dir: Path
    dtype: LatentDtype  # of the states on disk
    levels: Levels | None = None  # the measured window that times are drawn by, where they are

    files: ClassVar[tuple[str, ...]] = (STATISTICS, WINDOW)

    @classmethod
    def fit(
        cls, options: CodecOptions, corpus: Corpus, save_dir: Path, device: torch.device, levels: Levels | None = None
    ) -> LatentSpace:
        """Loads the codec and takes the statistics of the training split."""
        codec = load_codec(options, device)
        folder, name = save_dir / "latents", f"{corpus.name}-train"
        cache = encoded(codec, corpus.train.texts, folder, name, options.latent_dtype, progress=progress_bar)
        scale = options.latent_scale if options.normalize_latent else "none"
        statistics = LatentStatistics.fit(cache.pieces(), cache.lengths, scale)
        statistics = replace(statistics, codec=f"{codec.identity} {options.enc_dec_model}")
        check_decoder(options, statistics)
        return cls(codec, statistics, save_dir / "latents", options.latent_dtype, levels)

    @classmethod
    def load(
        cls, options: CodecOptions, run_dir: Path, save_dir: Path, device: torch.device, levels: Levels | None = None
    ) -> LatentSpace:
        """The space of an earlier run; UsageError where the codec is another one."""
        codec, statistics = load_codec(options, device), LatentStatistics.load(run_dir / STATISTICS)
        check_codec(options, codec, statistics, run_dir)
        check_decoder(options, statistics)
        return cls(codec, statistics, save_dir / "latents", options.latent_dtype, levels)

    @property
    def strategies(self) -> tuple[str, ...]:
        return self.codec.strategies

    @property
    def lengths(self) -> LengthModel:
        return self.statistics.lengths.up_to(self.limit)

    @property
    def limit(self) -> int:
        return self.codec.most_positions

    @property
    def fingerprint(self) -> str:
        return self.codec.fingerprint

    def data(self, corpus: Corpus, name: str, labels: np.ndarray | None) -> LatentData:
        cache = encode_split(self.codec, corpus, name, self.cache_dir, self.dtype)
        return LatentData(cache, self.statistics, labels)

    def shape(self, batch: int, length: int) -> tuple[int, ...]:
        return batch, length, self.codec.width

    def piece(self, text: str, *, first: bool = False, last: bool = False) -> Tensor:
        """The tokens [n] of the piece, special ones at the ends that it has."""
        if self.codec.ends is None:
            raise UsageError(
                "--prefix, --suffix and --clamp: this run's latents are not those of single tokens, so no piece of a "
                "text has a place among them; leave them out"
            )
        return self.codec.piece_ids(text, first, last)

    def among(self, ids: Tensor, start: int, length: int) -> Tensor:
        """States [n, D] of a piece at its place: a state tells its position too."""
        return self.statistics.normalise(self.codec.encode_among(ids, start, length))

    def decode(self, x0: Tensor, shown: Tensor, strategy: str, seeds: Sequence[int]) -> list[str]:
        return self.codec.decode(self.statistics.unnormalise(x0), shown, strategy, seeds)

    def nats_of(self, texts: Sequence[str], x0: Tensor, valid: Tensor) -> Tensor:
        """-log p [B] in nats, float64, of given texts as the codec writes them from x0 [B, L, D]."""
        return self.codec.nats_of(texts, self.statistics.unnormalise(x0), valid)

    def save(self, run_dir: Path) -> None:
        self.statistics.save(run_dir / STATISTICS)
        if self.levels is not None:
            write_levels(run_dir / WINDOW, self.levels)


def check_codec(options: CodecOptions, codec: Codec, statistics: LatentStatistics, run_dir: Path) -> None:
    """Raises UsageError where the codec is not the one that the run was trained with, as far as that is known."""
    if len(statistics.mean) != codec.width:
        raise UsageError(
            f"--enc_dec_model {options.enc_dec_model}: has width {codec.width}, the run {run_dir} was trained with "
            f"{len(statistics.mean)}; give the model it was trained with"
        )
    identity, _, name = statistics.codec.partition(" ")
    if identity and identity != codec.identity:
        raise UsageError(
            f"--enc_dec_model {options.enc_dec_model}: has weights or a tokenizer (SHA-256 {codec.identity[:12]}) that "
            f"the run {run_dir} was not trained with, which were those of {name} ({identity[:12]}); give that model"
        )


def load_codec(options: CodecOptions, device: torch.device) -> Codec:
    """The codec with the decoder that the options name; ModelError where that was made from another codec."""
    folder = find_model(options.enc_dec_model)
    codec = codec_type(folder).load(folder, options.max_length, device)
    return codec.with_decoder(find_model(options.decoder)) if has_decoder(options) else codec


def has_decoder(options: CodecOptions) -> bool:
    """Whether texts are written by another decoder than the codec's own."""
    return options.decoder not in (None, options.enc_dec_model)


def check_decoder(options: CodecOptions, statistics: LatentStatistics) -> None:
    """Warns where the decoder was trained on latents that are spread otherwise."""
    if not has_decoder(options):
        return
    if not statistics.is_near(LatentStatistics.load(find_model(options.decoder) / STATISTICS)):
        note(f"warning: --decoder {options.decoder}: was trained on latents of other statistics, of another corpus say")


def encode_split(codec: Codec, corpus: Corpus, name: str, folder: Path, dtype: LatentDtype) -> LatentCache:
    """The encoded split, from disk where this codec encoded the same texts before."""
    cache = encoded(
        codec, getattr(corpus, name).texts, folder, f"{corpus.name}-{name}", dtype, progress=progress_bar
    )
    if cache.truncated:
        note(f"{name}: {cache.truncated:,} of {len(cache.lengths):,} texts were cut at {codec.max_length} tokens")
    return cache
