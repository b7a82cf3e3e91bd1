"""A frozen pretrained encoder: the states that another model's latents are made of.

B batch, L positions, W width of the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from latent_models import frozen
from latent_models.codec import Encoded, ModelError, check_complete, check_words, reason

UNUSED = "pooler."  # of BERT and its kin: a layer on top of the states, which many files lack


class FrozenEncoder:
    """BERT, RoBERTa, MiniLM or the encoder of BART or T5, in evaluation mode."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        fingerprint: str = "",
        identity: str = "",
    ):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.fingerprint = fingerprint  # of all that encodes, libraries too: equal ones encode equally
        self.identity = identity  # of weights and tokenizer: which model it is

    @classmethod
    def load(cls, folder: Path, max_length: int, device: str | torch.device = "cpu") -> FrozenEncoder:
        """Loads a cached model; raises ModelError where the folder is no encoder with a tokenizer.

        On the device "meta" it has no weights: their files are opened, not read.
        """
        on_disk = {"local_files_only": True, "trust_remote_code": False}
        outline = {"device_map": "meta"} if str(device) == "meta" else {}
        try:
            model, told = AutoModel.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **outline, **on_disk
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **on_disk)
            told["missing_keys"] = [name for name in told["missing_keys"] if not name.startswith(UNUSED)]
            check_complete(folder, told)
            check_words(folder, tokenizer)
            tokenizer.padding_side = "right"  # decoders find a text at the first positions
            model = model.get_encoder() if model.config.is_encoder_decoder else model
            if not outline:
                _try(model, tokenizer)
            digests = frozen.digests(folder)
        except ModelError:
            raise
        except Exception as error:  # transformers raises many kinds for a folder that does not hold what it should
            raise ModelError(
                f"{folder}: cannot be used as encoder ({reason(folder, error)}); expected a BERT-like model, or an "
                "encoder-decoder, saved as safetensors with its tokenizer"
            ) from error
        positions = _positions(model)
        if max_length > positions:
            raise ModelError(f"{folder}: has {positions} positions; expected --max_length of at most that")
        own = frozen.fingerprint(digests, max_length), frozen.identity(digests)
        return cls(model.to(device), tokenizer, max_length, *own)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def width(self) -> int:
        """W, the width of the states."""
        return self.model.config.hidden_size

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Encoded:
        """States [B, L, W] of texts cut at `max_length` tokens, L the longest of the batch."""
        batch = frozen.tokenised(self.tokenizer, texts, self.max_length).to(self.device)
        states = self.model(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        return Encoded(states, batch.attention_mask.bool())

    def ids_of(self, texts: Sequence[str]) -> Tensor:
        """The tokens [B, L] of texts, special ones counted and cut as `encode` cuts them; IGNORED past their ends."""
        return frozen.true_ids(frozen.tokenised(self.tokenizer, texts, self.max_length).to(self.device))

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        """Length of each text in tokens, special tokens counted, before it is cut."""
        return frozen.token_lengths(self.tokenizer, texts)

    def positions(self, lengths: np.ndarray) -> np.ndarray:
        """How many states texts of these many tokens have [N]: one a token, as far as they are not cut."""
        return np.minimum(lengths, self.max_length)

    @property
    def most_positions(self) -> int:
        """The most states that a text can have."""
        return self.max_length


def _positions(model: PreTrainedModel) -> float:
    """The longest text that a model reads, in tokens: RoBERTa counts its positions from behind that of padding."""
    config = model.config
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return getattr(config, "max_position_embeddings", float("inf")) - offset


@torch.no_grad()
def _try(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Reads two texts as a batch: what cannot work, in settings or weights, is found now, not after days."""
    batch = tokenizer(["a", "a a"], padding=True, return_tensors="pt")
    states = model(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    if not states.isfinite().all():
        raise ValueError("it reads a text as NaN or infinity")
