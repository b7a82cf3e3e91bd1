"""Texts as token ids, of any fast tokenizer on disk or of single characters, and encoded splits in memory.

A text is its tokens + EOS; after a source (a condition) it is source tokens + EOS, both clamped, + its tokens + EOS.
B batch, L positions, V vocabulary, N texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from latent_models.codec import MODELS_DIR, Encoded, ModelError, check_words, find_model, first_line, reason
from latent_models.readers import detokenise

PAD, MASK = "[PAD]", "[MASK]"
CHUNK = 10_000  # texts tokenised at a time: a tokenizer's own record of a text is far larger than its ids


@dataclass(frozen=True)
class TokenSplit:
    """ids [tokens] int32, those of text i at offsets[i]:offsets[i + 1], its source first where texts have sources."""

    ids: np.ndarray
    offsets: np.ndarray
    pad_id: int
    source_lengths: np.ndarray | None  # [N], separator counted
    truncated: int  # texts cut at the codec's limit
    truncated_sources: int
    unknown: int  # tokens for which the tokenizer has no id of their own

    @property
    def lengths(self) -> np.ndarray:
        """Length of each text [N] in positions, its source counted."""
        return np.diff(self.offsets)

    @property
    def target_lengths(self) -> np.ndarray:
        """The same without the source: what is modelled."""
        return self.lengths if self.source_lengths is None else self.lengths - self.source_lengths

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """x0 [B, L] int64 padded with pad_id, `valid` and, where there are sources, `clamped`, both [B, L] bool."""
        lengths = self.lengths[indices]
        places = np.arange(lengths.max())
        valid = places < lengths[:, None]
        x0 = np.full(valid.shape, self.pad_id, dtype=np.int64)
        x0[valid] = np.concatenate([self.ids[self.offsets[i] : self.offsets[i + 1]] for i in indices])
        clamped = None
        if self.source_lengths is not None:
            clamped = torch.from_numpy(places < self.source_lengths[indices][:, None])
        return torch.from_numpy(x0), torch.from_numpy(valid), clamped


class TokenCodec:
    """Token ids as x0 [B, L] int64.

    A tokenizer without a mask token gets one as its last id, `vocab_size` - 1; methods without a mask have the
    `clean_vocab_size` ids before it. Special tokens that a text spells out are ordinary characters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int = 64, add_eos: bool = True):
        """ModelError for a tokenizer that is not fast or has neither eos_token nor sep_token."""
        if max_length < 2:
            raise ModelError(f"--max_length {max_length}: expected at least 2 tokens")
        name = tokenizer.name_or_path or "the tokenizer"
        if not tokenizer.is_fast:
            raise ModelError(f"{name}: not a fast tokenizer; expected one with a tokenizer.json")
        eos_id = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        if eos_id is None:
            raise ModelError(f"{name}: no end of text; expected eos_token or sep_token in its tokenizer_config.json")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.add_eos = add_eos  # False for running text, of which a text is a piece
        self.eos_id: int = eos_id
        # GPT-2 has one token for both, and MDLM's published weights write it first.
        self._begins_alike = tokenizer.bos_token_id == eos_id
        self.pad_id: int = eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # a copy: it is changed below
        self._backend.no_truncation()
        self._backend.no_padding()
        own_size = _size(self._backend)
        self.mask_id: int = _mask_id(tokenizer, self._backend)
        self.vocab_size = _size(self._backend)
        self.clean_vocab_size = own_size
        self._backend.encode_special_tokens = True
        added = self._backend.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special} | {self.eos_id, self.pad_id, self.mask_id}
        self._unknown_id = None if tokenizer.unk_token_id == eos_id else tokenizer.unk_token_id
        self._alphabet = _alphabet(self._backend, self._special)

    @classmethod
    def load(cls, folder: Path, max_length: int = 64, add_eos: bool = True) -> TokenCodec:
        """The codec of a cached tokenizer, or of one that `save` wrote; raises ModelError."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            check_words(folder, tokenizer)
            return cls(tokenizer, max_length, add_eos)
        except ModelError:
            raise
        except Exception as error:  # transformers raises many kinds for a folder that does not hold what it should
            raise ModelError(
                f"{folder}: no tokenizer ({reason(folder, error)}); expected a tokenizer.json with its config"
            ) from error

    def with_pad(self) -> TokenCodec:
        """The codec with a PAD of its own behind its other ids, before the mask, where its tokenizer has none."""
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.add_special_tokens({"pad_token": PAD})
        return TokenCodec(self.tokenizer, self.max_length, self.add_eos)

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files; ModelError where the disk does not take them."""
        try:
            self.tokenizer.save_pretrained(folder)
        except Exception as error:  # the library of tokenizers raises nothing more special
            raise ModelError(f"{folder}: cannot be written ({first_line(error)}); check the disk") from error

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides how texts are encoded: vocabulary, normalisation, limits; equal ones agree."""
        settings = (self.max_length, self.add_eos, self.eos_id, self.pad_id, self.mask_id)
        return hashlib.sha256(f"{settings} {self._backend.to_str()}".encode()).hexdigest()

    @property
    def is_characters(self) -> bool:
        """Whether each token is one character, so that texts come back as they were."""
        return self._alphabet is not None

    def target_limit(self, paired: bool) -> int:
        """Longest text in tokens, EOS counted: after a source it has half of max_length, however long the source is.

        A limit that followed the source would make the length of a text depend on its source.
        """
        return self.max_length - self.max_length // 2 if paired else self.max_length

    # --- encoding -----------------------------------------------------------------------------------------------------

    def encode_split(
        self, texts: Sequence[str], sources: Sequence[str] | None = None, fill: bool = False
    ) -> TokenSplit:
        """Encodes many texts, after their sources if given; `fill` appends PAD, as ordinary positions, up to the limit.

        Longer texts and sources are cut at their end, the EOS kept, and counted. ModelError for a character that the
        tokenizer lacks and for a text without tokens.
        """
        end, limit = [self.eos_id] if self.add_eos else [], self.target_limit(sources is not None)
        rows, cut = _rows(self._tokens(texts, "text"), end, limit)
        for number, row in enumerate(rows, 1):
            if not row:
                raise ModelError(f"text {number}: no tokens in {texts[number - 1]!r}; expected text, remove it")
        if fill:
            rows = [row + [self.pad_id] * (limit - len(row)) for row in rows]
        source_lengths, cut_sources = None, 0
        if sources is not None:
            before, cut_sources = self._source_rows(sources)
            source_lengths = np.array([len(row) for row in before])
            rows = [source + row for source, row in zip(before, rows, strict=True)]
        offsets = np.cumsum([0, *map(len, rows)])
        ids = np.fromiter((i for row in rows for i in row), dtype=np.int32, count=offsets[-1])
        unknown = 0 if self._unknown_id is None else int((ids == self._unknown_id).sum())
        return TokenSplit(ids, offsets, self.pad_id, source_lengths, cut, cut_sources, unknown)

    def cut(self, texts: Sequence[str], paired: bool = False) -> list[str]:
        """The texts without what `encode_split` leaves out of those that are too long."""
        room = self.target_limit(paired) - self.add_eos
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            text if len(encoding) <= room else text[: encoding.offsets[room - 1][1] if room else 0]
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def encode(self, texts: Sequence[str]) -> Encoded:
        """x0 [B, L] of texts cut at max_length, L the longest of the batch."""
        x0, valid, _ = self.encode_split(texts).batch(range(len(texts)))
        return Encoded(x0, valid)

    def encode_pairs(self, sources: Sequence[str], texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """x0, valid and clamped [B, L], clamped being True on source and separator."""
        return self.encode_split(texts, sources).batch(range(len(texts)))

    def encode_sources(self, sources: Sequence[str]) -> list[list[int]]:
        """What stands before each text: the ids of its source and the separator, max_length // 2 at most."""
        return self._source_rows(sources)[0]

    def encode_piece(self, text: str) -> list[int]:
        """The ids of a piece of text, uncut and without EOS, to be clamped."""
        return next(self._tokens([text], "piece"))

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        """Length of each text in tokens, EOS counted, before it is cut."""
        return [len(tokens) + self.add_eos for tokens in self._tokens(texts, "text")]

    def _source_rows(self, sources: Sequence[str]) -> tuple[list[list[int]], int]:
        return _rows(self._tokens(sources, "source"), [self.eos_id], self.max_length // 2)

    def _tokens(self, texts: Sequence[str], kind: str) -> Iterator[list[int]]:
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            if self._alphabet is not None:
                for number, text in enumerate(chunk, start + 1):
                    self._check_characters(text, f"{kind} {number}")
            for encoding in self._backend.encode_batch_fast(chunk, add_special_tokens=False):
                yield encoding.ids

    def _check_characters(self, text: str, where: str) -> None:
        lacking = set(text) - self._alphabet
        if lacking:
            first = min(lacking, key=text.index)
            raise ModelError(
                f"{where}: holds the character {ascii(first)}, which no training text has; expected the "
                f"{len(self._alphabet)} characters of the training texts; remove it, or put it into one and train anew"
            )

    # --- decoding -----------------------------------------------------------------------------------------------------

    def decode(
        self, x0: Tensor, valid: Tensor, strategy: str = "sample", seeds: Sequence[int] | None = None
    ) -> list[str]:
        """The text of each row's `valid` positions up to its first EOS, special tokens left out.

        Where a text begins with the same token as it ends with, one at the first position does not end it.
        Sentences of a tokenizer are detokenised and stripped, as the latent codec does; characters and running text
        stay as they are. For the texts of pairs let `valid` be False on the clamped source. There is one way to
        decode, which draws nothing: `strategy` and `seeds` are for codecs that have more.
        """
        rows = [row[keep].tolist() for row, keep in zip(x0, valid, strict=True)]
        rows = [self._ordinary(row[: self.end_of(row)]) for row in rows]
        texts = self._backend.decode_batch(rows, skip_special_tokens=False)
        return texts if self.is_characters or not self.add_eos else [detokenise(text).strip() for text in texts]

    def end_of(self, row: list[int]) -> int:
        """The position of the EOS that ends a row, as `decode` says; its length where there is none."""
        first = int(self._begins_alike and row[:1] == [self.eos_id])
        return row.index(self.eos_id, first) if self.eos_id in row[first:] else len(row)

    def show(self, ids: Iterable[int]) -> str:
        """One row as it stands, masks included: "_" among characters, else the name of the mask token."""
        kept = [i for i in map(int, ids) if i == self.mask_id or i not in self._special]
        if self.is_characters:
            return "".join("_" if i == self.mask_id else self._backend.id_to_token(i) for i in kept)
        return self._backend.decode(kept, skip_special_tokens=False)

    def _ordinary(self, row: list[int]) -> list[int]:
        return [i for i in row if i not in self._special]

    # --- counting -----------------------------------------------------------------------------------------------------

    def token_counts(self, split: TokenSplit) -> Tensor:
        """How often each id [V] stands in the texts, their EOS counted, sources, PAD and masks not."""
        starts = split.offsets[:-1] if split.source_lengths is None else split.offsets[:-1] + split.source_lengths
        change = np.zeros(len(split.ids) + 1, dtype=np.int64)  # +1 where a target starts, -1 behind its end
        np.add.at(change, starts, 1)
        np.add.at(change, split.offsets[1:], -1)
        counts = np.bincount(split.ids[change.cumsum()[:-1] > 0], minlength=self.vocab_size)
        counts[[i for i in (self.pad_id, self.mask_id) if i != self.eos_id]] = 0
        return torch.from_numpy(counts)


def word_counts(texts: Sequence[str]) -> np.ndarray:
    """Words of each text [N], as white space parts them."""
    return np.array([len(text.split()) for text in texts])


def character_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token for each character of `texts`, line ends included, besides [PAD] and [EOS]."""
    special = ["[PAD]", "[EOS]"]
    characters = sorted(set().union(*texts))
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*special, *characters])}))
    backend.add_special_tokens(special)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", eos_token="[EOS]")


def find_tokenizer(name: str, models_dir: Path = MODELS_DIR) -> Path:
    """The folder of a tokenizer: a path or a name under `models_dir` with a tokenizer.json, else that of a model."""
    for candidate in (Path(name), models_dir / name):
        if (candidate / "tokenizer.json").is_file():
            return candidate
    return find_model(name)


def _rows(tokenised: Iterable[list[int]], end: list[int], limit: int) -> tuple[list[list[int]], int]:
    """Each text with its end, at most `limit` tokens, and how many texts were cut."""
    rows, cut, room = [], 0, limit - len(end)
    for tokens in tokenised:
        cut += len(tokens) > room
        rows.append(tokens[:room] + end)
    return rows, cut


def _size(backend: Tokenizer) -> int:
    return max(backend.get_vocab(with_added_tokens=True).values()) + 1  # some vocabularies have holes


def _mask_id(tokenizer: PreTrainedTokenizerBase, backend: Tokenizer) -> int:
    """The mask token's id, which `backend` gets as its last where it has none."""
    if tokenizer.mask_token_id is not None:
        return tokenizer.mask_token_id
    backend.add_special_tokens([MASK])  # changes nothing where the vocabulary has it already
    return backend.token_to_id(MASK)


def _alphabet(backend: Tokenizer, special: set[int]) -> set[str] | None:
    """The characters of a tokenizer whose tokens are single characters; None for any other."""
    tokens = {token for token, i in backend.get_vocab(with_added_tokens=True).items() if i not in special}
    return tokens if isinstance(backend.model, models.WordLevel) and all(len(t) == 1 for t in tokens) else None
