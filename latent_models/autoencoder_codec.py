"""A frozen encoder as codec by way of an autoencoder trained on its states, whose decoder writes all tokens at once.

B batch, L positions of x0, D latent width, M tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad

from latent_models.autoencoder import Autoencoder, Shape
from latent_models.codec import Encoded, ModelError, find_model, first_line
from latent_models.frozen_encoder import FrozenEncoder, nats
from latent_models.lengths import save_tensors
from latent_models.strict_json import parse

KIND, RECORD, WEIGHTS = "autoencoder", "codec.json", "model.safetensors"
REMEDY = "expected what python -m scripts.train_autoencoder writes: train it again, or restore the folder"


class AutoencoderCodec:
    """Standardised latents of an autoencoder, one a token or N a text; frozen, in evaluation mode."""

    strategies: ClassVar[tuple[str, ...]] = ("argmax",)  # ways to write
    on_request: ClassVar[tuple[str, ...]] = ()

    def __init__(self, encoder: FrozenEncoder, autoencoder: Autoencoder, identity: str = ""):
        self.encoder = encoder
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.tokenizer, self.max_length = encoder.tokenizer, encoder.max_length
        self.identity = identity  # of the weights of both and the tokenizer: which model it is
        self.fingerprint = _digest(encoder.fingerprint, identity)  # equal ones encode equally
        self.end_id = encoder.tokenizer("a")["input_ids"][-1]

    @classmethod
    def load(cls, folder: Path, max_length: int = 64, device: str | torch.device = "cpu") -> AutoencoderCodec:
        """Loads a trained autoencoder and the cached encoder that it names; raises ModelError where one is not it.

        On the device "meta" both have no weights: their files are opened, not read.
        """
        name, trained_on, shape = _read(folder / RECORD)
        if max_length > shape.max_length:
            raise ModelError(f"{folder}: writes {shape.max_length} tokens; expected --max_length of at most that")
        encoder = FrozenEncoder.load(find_model(name), max_length, device)
        if encoder.identity != trained_on:
            raise ModelError(
                f"{folder}: was trained on another encoder than {name} is here (SHA-256 {trained_on[:12]}, not "
                f"{encoder.identity[:12]}); restore that model, or train an autoencoder for this one"
            )
        with torch.device("meta"):
            autoencoder = Autoencoder(shape)
        _load_weights(autoencoder, folder / WEIGHTS, read=str(device) != "meta")
        with (folder / WEIGHTS).open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(encoder, autoencoder.to(device), _digest(encoder.identity, weights))

    def save(self, folder: Path, encoder_name: str) -> None:
        """Writes what `load` reads, under the name by which the encoder is found."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {"kind": KIND, "encoder": encoder_name, "encoder_identity": self.encoder.identity}
        text = json.dumps(about | {"shape": asdict(self.autoencoder.shape)}, indent=1) + "\n"
        (folder / RECORD).write_text(text, encoding="utf-8")
        save_tensors(folder / WEIGHTS, {k: v.cpu().contiguous() for k, v in self.autoencoder.state_dict().items()})

    def with_decoder(self, folder: Path) -> AutoencoderCodec:
        """Raises ModelError: this codec's decoder is part of it."""
        raise ModelError(f"{folder}: cannot write for an autoencoder, whose decoder is its own; leave out --decoder")

    @property
    def model(self) -> nn.Module:
        """All of its weights."""
        return nn.ModuleList([self.encoder.model, self.autoencoder])

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def width(self) -> int:
        """D, the width of the latents."""
        return self.autoencoder.shape.code_width

    @property
    def most_positions(self) -> int:
        """The most latents that a text can have."""
        return self.autoencoder.shape.latents or self.max_length

    def positions(self, lengths: np.ndarray) -> np.ndarray:
        """How many latents texts of these many tokens have [N]."""
        fixed = self.autoencoder.shape.latents
        return np.full_like(lengths, fixed) if fixed else self.encoder.positions(lengths)

    @property
    def ends(self) -> tuple[int, int] | None:
        """How many of a text's first and last latents are those of special tokens; None where none is a token's."""
        return None if self.autoencoder.shape.latents else self.encoder.ends

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Encoded:
        """Latents x0 [B, L, D] of texts cut at `max_length` tokens; L is N, or the longest of the batch."""
        read = self.encoder.encode(texts)
        return Encoded(self._latents(read), self.autoencoder.valid_latents(read.valid))

    def _latents(self, read: Encoded) -> Tensor:
        return self.autoencoder.latents(self.autoencoder.standardised(read.x0, read.valid), read.valid)

    def piece_ids(self, text: str, first: bool, last: bool) -> Tensor:
        """The tokens [n] of words within a text; `first`, `last`: they begin or end it."""
        return self.encoder.piece_ids(text, first, last)

    @torch.no_grad()
    def encode_among(self, ids: Tensor, start: int, length: int) -> Tensor:
        """x0 [n, D] of tokens [n] that stand from `start` on in a text of `length`, whose others are not known."""
        return self._latents(self.encoder.encode_among(ids, start, length))[0, start : start + len(ids)]

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        """Length of each text in tokens, special tokens counted, before it is cut."""
        return self.encoder.token_lengths(texts)

    @torch.no_grad()
    def decode(
        self, x0: Tensor, valid: Tensor, strategy: str = "argmax", seeds: Sequence[int] | None = None
    ) -> list[str]:
        """The texts of x0 [B, L, D]: at each position the likeliest token, up to the first end of text."""
        x0, valid = x0.to(self.device), valid.to(self.device)
        fixed = self.autoencoder.shape.latents
        _, logits = self.autoencoder.decoder(x0, valid, self.max_length if fixed else x0.shape[1])
        ids = logits.argmax(-1)
        shown = torch.ones_like(ids, dtype=torch.bool) if fixed else valid
        rows = (row[own].tolist() for row, own in zip(ids, shown, strict=True))
        return self.encoder.written([self._ended(row) for row in rows])

    def _ended(self, ids: list[int]) -> list[int]:
        return ids[: ids.index(self.end_id)] if self.end_id in ids else ids

    def logits_of(self, texts: Sequence[str], x0: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's logits [B, M, V] for every token of its texts, x0 [B, L, D] alone being given, and these
        tokens [B, M] as of the encoder's `ids_of`. Differentiable in x0.
        """
        ids = self.encoder.ids_of(texts)
        if not self.autoencoder.shape.latents and (more := ids.shape[1] - x0.shape[1]) > 0:
            x0, valid = pad(x0, (0, 0, 0, more)), pad(valid, (0, more))  # tokens without a latent are guessed
        return self.autoencoder.decoder(x0, valid, ids.shape[1])[1], ids

    def nats_of(self, texts: Sequence[str], x0: Tensor, valid: Tensor) -> Tensor:
        """-log p [B] in nats, float64, of each text and its end, whatever would stand behind that."""
        return nats(*self.logits_of(texts, x0, valid))


def _digest(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _read(path: Path) -> tuple[str, str, Shape]:
    """Name and identity of the encoder, and the sizes; raises ModelError."""
    try:
        record: dict[str, Any] = parse(path.read_text(encoding="utf-8"))
        name, identity, shape = record["encoder"], record["encoder_identity"], Shape(**record["shape"])
        if not (isinstance(name, str) and isinstance(identity, str)):
            raise ValueError("the encoder is not named")
        if not all(type(size) is int and size >= 0 for size in asdict(shape).values()):
            raise ValueError("sizes are not whole numbers")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: cannot be read ({first_line(error)}); {REMEDY}") from error
    return name, identity, shape


def _load_weights(autoencoder: Autoencoder, path: Path, read: bool) -> None:
    """Gives an autoencoder on "meta" its weights, or only looks whether they are there; raises ModelError."""
    wanted = {name: list(tensor.shape) for name, tensor in autoencoder.state_dict().items()}
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        other = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if other:
            raise ValueError(f"{other[0]} is not of the shape that {RECORD} says")
        if read:
            weights = load_file(path)
            if not all(tensor.isfinite().all() for tensor in weights.values()):
                raise ValueError("some weights are NaN or infinite")
            autoencoder.load_state_dict(weights, assign=True)
    except Exception as error:  # safetensors raises kinds of its own
        raise ModelError(f"{path}: cannot be loaded ({first_line(error)}); {REMEDY}") from error
