"""The two spaces that methods work in, latents and tokens: from the texts of a corpus to batches of x0, and back.

B batch, L positions, D latent width, V vocabulary, N texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from diffusion.training.files import faults, sums
from diffusion.training.objective import Batch
from diffusion.training.trainer import TrainingData
from diffusion.window import Levels
from latent_models.codec import Codec, ModelError, find_model
from latent_models.codec_kinds import codec_type
from latent_models.corpora import Corpus
from latent_models.latent_cache import LatentCache, encoded
from latent_models.lengths import LengthModel, load_counts, save_tensors
from latent_models.seq2seq_codec import CodecOptions, LatentDtype
from latent_models.statistics import LatentStatistics
from latent_models.token_codec import TokenCodec, TokenSplit, character_tokenizer, find_tokenizer
from scripts.console import note
from scripts.errors import UsageError
from scripts.fetching.checksums import read_record, write_record
from scripts.method_options import CHARACTERS, TokenOptions
from scripts.window_file import WINDOW, write_levels

STATISTICS = "latent_statistics.safetensors"
RECORD = "space.json"  # size and SHA-256 of the files below
LENGTHS, TOKEN_COUNTS, TOKENIZER = "length_counts.safetensors", "token_counts.safetensors", "tokenizer"


class Space(Protocol):
    """What trainer, sampler and evaluation need to know of the data of a method."""

    strategies: tuple[str, ...]  # ways to write x0 as text
    files: tuple[str, ...]  # what `save` writes into a run folder
    lengths: LengthModel
    limit: int  # longest text in positions
    fingerprint: str  # equal ones read and write x0 alike

    def data(self, corpus: Corpus, name: str, labels: np.ndarray | None) -> TrainingData:
        """A split of the corpus, encoded."""

    def shape(self, batch: int, length: int) -> tuple[int, ...]:
        """The shape of x0."""

    def piece(self, text: str, *, first: bool = False, last: bool = False) -> Tensor:
        """x0 [n] or [n, D] of words to be clamped somewhere; `first`, `last`: they begin or end the whole text."""

    def decode(self, x0: Tensor, shown: Tensor, strategy: str, seeds: Sequence[int]) -> list[str]:
        """The texts of the `shown` [B, L] positions."""

    def save(self, run_dir: Path) -> None:
        """Writes what `load` needs into the run folder."""


def save_space(space: Space, run_dir: Path) -> None:
    """Writes what `load` needs, and a record by which it is told from what is damaged."""
    space.save(run_dir)
    paths = [path for name in space.files for path in (run_dir / name, *(run_dir / name).rglob("*")) if path.is_file()]
    write_record(run_dir / RECORD, {"files": sums(run_dir, (path.relative_to(run_dir).as_posix() for path in paths))})


def check_files(run_dir: Path) -> None:
    """Raises UsageError where what `save_space` wrote is not as it was; runs from before it have no record."""
    record = read_record(run_dir / RECORD)
    if record is not None and (found := faults(run_dir, record["files"])):
        raise UsageError(f"{found[0]}; restore the folder of the run")


# --- latents ----------------------------------------------------------------------------------------------------------


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
        cache = encode_split(codec, corpus, "train", save_dir / "latents", options.latent_dtype)
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
        """States [n, D] of the piece read by itself, without those of the ends that it does not have."""
        if self.codec.ends is None:
            raise UsageError(
                "--prefix, --suffix and --clamp: this run's latents are not those of single tokens, so no piece of a "
                "text has a place among them; leave them out"
            )
        states, (before, behind) = self.statistics.normalise(self.codec.encode([text]).x0[0]), self.codec.ends
        return states[0 if first else before : None if last else len(states) - behind]

    def decode(self, x0: Tensor, shown: Tensor, strategy: str, seeds: Sequence[int]) -> list[str]:
        return self.codec.decode(self.statistics.unnormalise(x0), shown, strategy, seeds)

    def logits_of(self, texts: Sequence[str], x0: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's logits [B, M, V] for each token [B, M] of given texts, as the codec says."""
        return self.codec.logits_of(texts, self.statistics.unnormalise(x0), valid)

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
    cache = encoded(codec, getattr(corpus, name).texts, folder, f"{corpus.name}-{name}", dtype)
    if cache.truncated:
        note(f"{name}: {cache.truncated:,} of {len(cache.lengths):,} texts were cut at {codec.max_length} tokens")
    return cache


# --- tokens -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenData:
    """A split as the trainer wants it: token ids by index."""

    split: TokenSplit
    labels: np.ndarray | None

    @property
    def lengths(self) -> np.ndarray:
        return self.split.lengths

    def batch(self, indices: np.ndarray) -> Batch:
        """x0 [B, L] ids, PAD where padded; sources are clamped."""
        x0, valid, clamped = self.split.batch(indices)
        return Batch(x0, valid, None if self.labels is None else torch.from_numpy(self.labels[indices]), clamped)


@dataclass(frozen=True)
class TokenSpace:
    """Token ids of a cached tokenizer, or of single characters, for the texts of one corpus."""

    codec: TokenCodec
    options: TokenOptions
    lengths: LengthModel
    token_counts: Tensor  # [V] in the training texts
    _splits: dict[str, TokenSplit] = field(default_factory=dict, repr=False, compare=False)  # those encoded so far

    strategies: ClassVar[tuple[str, ...]] = ("sample",)
    files: ClassVar[tuple[str, ...]] = (TOKENIZER, LENGTHS, TOKEN_COUNTS)

    @classmethod
    def fit(cls, options: TokenOptions, codec_options: CodecOptions, corpus: Corpus, running: bool) -> TokenSpace:
        """Finds or makes the tokenizer and counts lengths and tokens of the training split."""
        codec = make_token_codec(options, codec_options, corpus, running)
        split = _encode(codec, corpus, "train", options)
        splits = {"train": split}
        limit = codec.target_limit(options.condition_on_source)
        lengths = LengthModel.fit(split.target_lengths, limit)
        if options.token_counts is None:
            return cls(codec, options, lengths, codec.token_counts(split), splits)
        counts = load_counts(Path(options.token_counts), "token_counts")
        if counts.shape != (codec.vocab_size,):
            raise UsageError(
                f"--token_counts {options.token_counts}: counts {len(counts):,} tokens, the tokenizer has "
                f"{codec.vocab_size:,}; count with the same --tokenizer"
            )
        return cls(codec, options, lengths, counts, splits)

    @classmethod
    def load(cls, options: TokenOptions, codec_options: CodecOptions, run_dir: Path, running: bool) -> TokenSpace:
        """The space of an earlier run, tokenizer included: nothing outside the run folder is needed."""
        codec = TokenCodec.load(run_dir / TOKENIZER, codec_options.max_length, not running)
        counts = load_counts(run_dir / TOKEN_COUNTS, "token_counts")
        if len(counts) != codec.vocab_size:
            raise UsageError(
                f"{run_dir}: counts {len(counts):,} tokens in {TOKEN_COUNTS}, its tokenizer has {codec.vocab_size:,}; "
                "restore the folder of the run"
            )
        return cls(codec, options, LengthModel.load(run_dir / LENGTHS), counts)

    @property
    def limit(self) -> int:
        """Longest text in tokens; a source stands before it."""
        return self.codec.target_limit(self.options.condition_on_source)

    @property
    def fingerprint(self) -> str:
        return self.codec.fingerprint

    def data(self, corpus: Corpus, name: str, labels: np.ndarray | None) -> TokenData:
        if name not in self._splits:
            self._splits[name] = _encode(self.codec, corpus, name, self.options)
        return TokenData(self._splits[name], labels)

    def shape(self, batch: int, length: int) -> tuple[int, ...]:
        return batch, length

    def piece(self, text: str, *, first: bool = False, last: bool = False) -> Tensor:
        if not (first or self.codec.is_characters or text[:1].isspace()):
            text = f" {text}"  # a word within a text has a blank before it, which many tokenizers count to the word
        end = [self.codec.eos_id] if last and self.codec.add_eos else []
        return torch.tensor(self.codec.encode_piece(text) + end, dtype=torch.long)

    def encode_sources(self, sources: Sequence[str]) -> list[list[int]]:
        """What stands before each text, its separator included."""
        return self.codec.encode_sources(sources)

    def decode(self, x0: Tensor, shown: Tensor, strategy: str, seeds: Sequence[int]) -> list[str]:
        return self.codec.decode(x0, shown)

    def save(self, run_dir: Path) -> None:
        self.codec.save(run_dir / TOKENIZER)
        self.lengths.save(run_dir / LENGTHS)
        save_tensors(run_dir / TOKEN_COUNTS, {"token_counts": self.token_counts})


def make_token_codec(options: TokenOptions, codec: CodecOptions, corpus: Corpus, running: bool) -> TokenCodec:
    """The tokenizer that the options name; characters are those of the training texts and sources."""
    if options.tokenizer == CHARACTERS:
        sources = [source for source in corpus.train.sources if source] if options.condition_on_source else []
        return TokenCodec(character_tokenizer([*corpus.train.texts, *sources]), codec.max_length, not running)
    return TokenCodec.load(find_tokenizer(options.tokenizer or codec.enc_dec_model), codec.max_length, not running)


def _encode(codec: TokenCodec, corpus: Corpus, name: str, options: TokenOptions) -> TokenSplit:
    texts = getattr(corpus, name)
    sources = texts.sources if options.condition_on_source else None
    try:
        split = codec.encode_split(texts.texts, sources, fill=options.lengths == "modelled")
    except ModelError as error:
        raise ModelError(f"the {name} split of {corpus.name!r}: {error}") from error
    if split.truncated and not codec.add_eos:
        raise UsageError(
            f"--running_text: {split.truncated:,} of {len(texts):,} pieces of the {name} split are longer than "
            f"--max_length {codec.max_length} tokens and would lose their end; raise it, or take shorter pieces"
        )
    for cut, what, limit in (
        (split.truncated, "texts", codec.target_limit(sources is not None)),
        (split.truncated_sources, "sources", codec.max_length // 2),
    ):
        if cut:
            note(f"{name}: {cut:,} of {len(texts):,} {what} were cut at {limit} tokens")
    return split
