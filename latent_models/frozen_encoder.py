"""A frozen pretrained encoder: texts as tokens, and the states that latents are, or are made of.

B batch, L positions, W width of the states, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModel, BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from latent_models import frozen
from latent_models.codec import Encoded, ModelError
from latent_models.readers import detokenise

IGNORED = -100  # the index that cross-entropy leaves out
CHUNK = 1_000  # texts tokenised at a time: a tokenizer's own results take many times the room of the ids


@dataclass(eq=False)
class FrozenEncoder:
    """BERT, RoBERTa, MiniLM or the encoder of BART or T5, in evaluation mode, with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int  # longest text in tokens, special ones counted; longer ones are cut
    fingerprint: str = ""  # of all that encodes, libraries too: equal ones encode equally
    identity: str = ""  # of weights and tokenizer: which model it is

    def __post_init__(self):
        self.model.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, max_length: int, device: str | torch.device = "cpu") -> FrozenEncoder:
        """Loads a cached model; raises ModelError where the folder is no encoder with a tokenizer.

        On the device "meta" it has no weights: their files are opened, not read.
        """
        with frozen.loading(folder, "encoder", "a BERT-like model, or an encoder-decoder,"):
            model, tokenizer = frozen.pretrained(AutoModel, folder, device)
            tokenizer.padding_side = "right"  # decoders find a text at the first positions
            model = model.get_encoder() if model.config.is_encoder_decoder else model
            encoder = cls.of(folder, model, tokenizer, max_length)
        encoder.model.to(device)
        return encoder

    @classmethod
    def of(
        cls, folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> FrozenEncoder:
        """Of what the folder holds; raises ModelError where that has fewer positions, ValueError where it reads NaN."""
        digests = frozen.digests(folder)
        own = frozen.fingerprint(digests, max_length), frozen.identity(digests)
        encoder = cls(model, tokenizer, max_length, *own)
        # What cannot work, in settings or weights, is found now, not after days.
        if model.device.type != "meta" and not encoder.encode(["a", "a a"]).x0.isfinite().all():
            raise ValueError("it reads a text as NaN or infinity")
        positions = _positions(model)
        if max_length > positions:
            raise ModelError(f"{folder}: has {positions} positions; expected --max_length of at most that")
        return encoder

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def width(self) -> int:
        """W, the width of the states."""
        return self.model.config.hidden_size

    def encode(self, texts: Sequence[str]) -> Encoded:
        """States [B, L, W] of texts cut at `max_length` tokens, L the longest of the batch."""
        batch = self._tokenised(texts)
        return self._states(batch.input_ids, batch.attention_mask)

    @torch.no_grad()
    def _states(self, ids: Tensor, attended: Tensor) -> Encoded:
        return Encoded(self.model(ids, attention_mask=attended).last_hidden_state, attended.bool())

    def piece_ids(self, text: str, first: bool, last: bool) -> Tensor:
        """The tokens [n] of words within a text, of its special ones those at the ends that the piece has."""
        behind, start = self.ends[1], 0
        if not first:  # as tokens differ where words follow on others
            text, start = f"a{'' if text[:1].isspace() else ' '}{text}", len(self.tokenizer("a")["input_ids"]) - behind
        ids = self.tokenizer(text)["input_ids"]
        return torch.tensor(ids[start : None if last else len(ids) - behind], dtype=torch.long)

    def encode_among(self, ids: Tensor, start: int, length: int) -> Encoded:
        """States [1, L, W] of a text of `length` tokens, of which those [n] from `start` on are known.

        The others are masks; where the tokenizer has none (T5, whose positions are relative) nothing looks at them.
        """
        (before, behind), own = self.ends, torch.tensor(self.tokenizer("a")["input_ids"])
        mask_id = self.tokenizer.mask_token_id
        text = torch.full((1, length), self.tokenizer.pad_token_id if mask_id is None else mask_id)
        attended = torch.full((1, length), int(mask_id is not None))
        for place, known in (
            (slice(before), own[:before]),
            (slice(length - behind, None), own[len(own) - behind :]),
            (slice(start, start + len(ids)), ids),
        ):
            text[0, place], attended[0, place] = known, 1
        return self._states(text.to(self.device), attended.to(self.device))

    def ids_of(self, texts: Sequence[str]) -> Tensor:
        """The tokens [B, L] of texts, special ones counted and cut as `encode` cuts them; IGNORED past their ends."""
        batch = self._tokenised(texts)
        return batch.input_ids.masked_fill(batch.attention_mask == 0, IGNORED)

    def _tokenised(self, texts: Sequence[str]) -> BatchEncoding:
        """input_ids and attention_mask [B, L]."""
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return batch.to(self.device)

    def written(self, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """The texts of token ids [B, L], detokenised and stripped; one may be empty."""
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [detokenise(text).strip() for text in texts]

    def known(self, texts: Sequence[str]) -> list[str]:
        """The texts as far as the tokenizer knows them and they are not cut: what can be written again."""
        return self.written(self._tokenised(texts).input_ids)

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        """Length of each text in tokens, special tokens counted, before it is cut."""
        chunks = (list(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK))
        return [len(ids) for chunk in chunks for ids in self.tokenizer(chunk, verbose=False)["input_ids"]]

    def positions(self, lengths: np.ndarray) -> np.ndarray:
        """How many states texts of these many tokens have [N]: one a token, as far as they are not cut."""
        return np.minimum(lengths, self.max_length)

    @property
    def most_positions(self) -> int:
        """The most states that a text can have."""
        return self.max_length

    @property
    def ends(self) -> tuple[int, int]:
        """How many of a text's first and last states are those of special tokens."""
        ids = self.tokenizer("a")["input_ids"]
        special = self.tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
        return special.index(0), special[::-1].index(0)


def nats(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p [B] in nats, float64, of the true tokens ids [B, L], as of `ids_of`, under logits [B, L, V]."""
    return cross_entropy(logits.float().mT, ids, ignore_index=IGNORED, reduction="none").double().sum(1)


def _positions(model: PreTrainedModel) -> float:
    """The longest text that a model reads, in tokens: RoBERTa counts its positions from behind that of padding."""
    config = model.config
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return getattr(config, "max_position_embeddings", float("inf")) - offset
