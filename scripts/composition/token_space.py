"""Tokens as the space that a method works in: ids of a cached tokenizer or of single characters, held in memory.

B batch, L positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from diffusion.training.objective import Batch
from latent_models.codec import ModelError
from latent_models.corpora import Corpus
from latent_models.lengths import LengthModel, load_counts, save_tensors
from latent_models.seq2seq_codec import CodecOptions
from latent_models.token_codec import TokenCodec, TokenSplit, character_tokenizer, find_tokenizer
from scripts.composition.method_options import CHARACTERS, TokenOptions
from scripts.job.console import note
from scripts.job.errors import UsageError

LENGTHS, TOKEN_COUNTS, TOKENIZER = "length_counts.safetensors", "token_counts.safetensors", "tokenizer"


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
        return cls.of(make_token_codec(options, codec_options, corpus, running), options, corpus)

    @classmethod
    def of(cls, codec: TokenCodec, options: TokenOptions, corpus: Corpus) -> TokenSpace:
        """The space of a tokenizer: counts lengths and tokens of the training split."""
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

    def among(self, ids: Tensor, start: int, length: int) -> Tensor:
        return ids

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
