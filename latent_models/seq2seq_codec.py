"""A frozen pretrained encoder-decoder as codec: one encoder state per token is the latent.

B batch, L positions, D latent width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TopPLogitsWarper,
)
from transformers.modeling_outputs import BaseModelOutput

from latent_models import frozen
from latent_models.codec import Encoded, ModelError
from latent_models.decoders import check_encoder, check_record
from latent_models.frozen_encoder import FrozenEncoder, nats

LatentDtype = Literal["float32", "bf16"]


@dataclass
class CodecOptions:
    _argument_group_name: ClassVar[str] = "codec"

    enc_dec_model: str = field(
        default="facebook/bart-base",
        metadata={"help": "cached encoder-decoder: a folder, a name under pre_trained_models/, or in the HF cache"},
    )
    decoder: str | None = field(
        default=None,
        metadata={"help": "write texts by this decoder of scripts.train_decoder (by that of --enc_dec_model)"},
    )
    max_length: int = field(default=64, metadata={"help": "longest text in tokens; longer ones are cut and counted"})
    normalize_latent: bool = field(
        default=True, metadata={"help": "normalise latents by the statistics of the whole training split"}
    )
    latent_scale: Literal["scalar", "dimension"] = field(
        default="scalar", metadata={"help": "one scale for all latent dimensions, or one for each"}
    )
    latent_dtype: LatentDtype = field(
        default="float32",
        metadata={"help": "how encoded splits are kept on disk; bf16 takes half the room and rounds by 0.4%% at most"},
    )

    def __post_init__(self):
        if self.max_length < 2:
            raise ModelError(f"--max_length {self.max_length}: expected at least 2 tokens")


# The first two ways to decode are those of the reference system: no three tokens twice in a text, whatever the latents
# say. The third shows what they say. What a way leaves open, the model's own generation settings decide.
LIMITS = {"min_length": 5, "no_repeat_ngram_size": 3, "repetition_penalty": 1.2, "do_sample": False}
NO_LIMITS = {"min_length": 0, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "do_sample": False}
NUCLEUS = 0.95
TRIED = 6  # tokens that a model has to write when it is loaded: one more than `min_length`
DECODING: dict[str, dict[str, Any]] = {
    "beam": {"num_beams": 4, **LIMITS}, "nucleus": {"num_beams": 1, **LIMITS}, "greedy": {"num_beams": 1, **NO_LIMITS},
}  # fmt: skip


class SeededNucleus(LogitsProcessor):
    """Draws each row's next token from its top-p nucleus with that row's own generator, by leaving no other choice.

    The draw inverts the cumulated probabilities in float64. As a processor of greedy search it makes a text depend on
    its own seed alone, where `do_sample` would draw for the whole batch from the global generator.
    """

    def __init__(self, top_p: float, seeds: Sequence[int]):
        self.nucleus = TopPLogitsWarper(top_p)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] -> 0 at the drawn token, -inf elsewhere."""
        cumulated = self.nucleus(input_ids, scores).double().softmax(-1).cumsum(-1)
        u = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in self.generators]).to(scores.device)
        drawn = torch.searchsorted(cumulated, u * cumulated[:, -1:], right=True)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


class Seq2SeqCodec:
    """BART (or any encoder-decoder of its kind), frozen, in evaluation mode."""

    strategies: ClassVar[tuple[str, ...]] = ("beam", "nucleus")  # ways to write
    on_request: ClassVar[tuple[str, ...]] = ("greedy",)

    def __init__(self, model: PreTrainedModel, encoder: FrozenEncoder):
        """`encoder` is that of the model."""
        self.model, self.encoder = model.eval().requires_grad_(False), encoder
        self.tokenizer, self.width = encoder.tokenizer, encoder.width
        self.max_length, self.most_positions = encoder.max_length, encoder.most_positions
        self.fingerprint, self.identity = encoder.fingerprint, encoder.identity

    @classmethod
    def load(cls, folder: Path, max_length: int = 64, device: str | torch.device = "cpu") -> Seq2SeqCodec:
        """Loads a cached model; raises ModelError where the folder is no encoder-decoder with a tokenizer.

        On the device "meta" it has no weights: their files are opened, not read.
        """
        with frozen.loading(folder, "encoder-decoder", "a BART-like model"):
            model, tokenizer = frozen.pretrained(AutoModelForSeq2SeqLM, folder, device)
            encoder = FrozenEncoder.of(folder, model.get_encoder(), tokenizer, max_length)
            if str(device) != "meta":
                _try(model, encoder)
        return cls(model.to(device), encoder)

    def with_decoder(self, folder: Path) -> Seq2SeqCodec:
        """This codec with another decoder, of a folder that was made from it; raises ModelError for any other."""
        check_record(folder, self.identity)
        other = Seq2SeqCodec.load(folder, self.max_length, self.device).model
        check_encoder(folder, self.model, other)
        return Seq2SeqCodec(other, replace(self.encoder, model=other.get_encoder()))

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def ends(self) -> tuple[int, int]:
        """How many of a text's first and last latents are those of special tokens."""
        return self.encoder.ends

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encoder states x0 [B, L, D] of texts cut at `max_length` tokens, L the longest of the batch."""
        return self.encoder.encode(texts)

    def piece_ids(self, text: str, first: bool, last: bool) -> Tensor:
        """The tokens [n] of words within a text; `first`, `last`: they begin or end it."""
        return self.encoder.piece_ids(text, first, last)

    def encode_among(self, ids: Tensor, start: int, length: int) -> Tensor:
        """x0 [n, D] of tokens [n] that stand from `start` on in a text of `length`, whose others are not known."""
        return self.encoder.encode_among(ids, start, length).x0[0, start : start + len(ids)]

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        """Length of each text in tokens, special tokens counted, before it is cut."""
        return self.encoder.token_lengths(texts)

    def positions(self, lengths: np.ndarray) -> np.ndarray:
        """How many latents texts of these many tokens have [N]."""
        return self.encoder.positions(lengths)

    @torch.no_grad()
    def generate(self, x0: Tensor, valid: Tensor, strategy: str, seeds: Sequence[int] | None = None) -> Tensor:
        """Token ids [B, at most max_length] that the decoder writes from x0 [B, L, D]; nucleus needs one seed a row."""
        choice = [SeededNucleus(NUCLEUS, seeds)] if strategy == "nucleus" else []
        return self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=x0.to(self.device)),
            attention_mask=valid.to(self.device).long(),
            max_length=self.max_length,
            logits_processor=LogitsProcessorList(choice),
            **DECODING[strategy],
        )

    def decode(
        self, x0: Tensor, valid: Tensor, strategy: str = "beam", seeds: Sequence[int] | None = None
    ) -> list[str]:
        """The texts of x0 [B, L, D], detokenised and stripped; one may be empty."""
        return self.encoder.written(self.generate(x0, valid, strategy, seeds))

    def logits_of(self, texts: Sequence[str], x0: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The decoder's logits [B, M, V] for every token of its texts, those before it and x0 [B, L, D] being given,
        and these tokens [B, M] as of the encoder's `ids_of`. Differentiable in x0 and in the decoder.
        """
        ids = self.encoder.ids_of(texts)
        logits = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=x0), attention_mask=valid.long(), labels=ids
        ).logits
        return logits, ids

    def nats_of(self, texts: Sequence[str], x0: Tensor, valid: Tensor) -> Tensor:
        """-log p [B] in nats, float64, of each text and its EOS as the decoder writes them from x0 [B, L, D]."""
        return nats(*self.logits_of(texts, x0, valid))

    def reconstruct(self, texts: Sequence[str], strategy: str = "beam", batch_size: int = 64) -> list[str]:
        """Encodes and decodes, for judging the codec by itself."""
        decoded = []
        for start in range(0, len(texts), batch_size):
            encoded = self.encode(texts[start : start + batch_size])
            decoded += self.decode(encoded.x0, encoded.valid, strategy, range(start, start + len(encoded.x0)))
        return decoded


def token_accuracy(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], decoded: Sequence[str]) -> float:
    """Share of the tokens of `texts` that stand at their place in `decoded`."""
    wanted, got = (tokenizer(list(t), add_special_tokens=False)["input_ids"] for t in (texts, decoded))
    hits = sum(a == b for w, g in zip(wanted, got, strict=True) for a, b in zip(w, g, strict=False))
    return hits / sum(map(len, wanted))


@torch.no_grad()
def _try(model: PreTrainedModel, encoder: FrozenEncoder) -> None:
    """Writes a short text: what cannot work, in settings or weights, is found now, not after days."""
    read = BaseModelOutput(last_hidden_state=encoder.encode(["a"]).x0)
    model.generate(encoder_outputs=read, max_length=TRIED, **DECODING["beam"])
