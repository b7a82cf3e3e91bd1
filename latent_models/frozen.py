"""What codecs of frozen models share: texts as tokens, what these cost, and which model it is.

B batch, M tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BatchEncoding, PreTrainedTokenizerBase

from latent_models.readers import detokenise

IGNORED = -100  # the index that cross-entropy leaves out
CHUNK = 1_000  # texts tokenised at a time: a tokenizer's own results take many times the room of the ids
READ_TO_ENCODE = (".safetensors", ".json", ".txt", ".model", ".spm")  # weights, settings, vocabularies
NOT_READ = ("generation_config.json", "training.json")


def tokenised(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> BatchEncoding:
    """input_ids and attention_mask [B, M] of texts cut at `max_length` tokens, M the longest of the batch."""
    return tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")


def true_ids(batch: BatchEncoding) -> Tensor:
    """The tokens [B, M] of a batch, IGNORED past the ends of its texts."""
    return batch.input_ids.masked_fill(batch.attention_mask == 0, IGNORED)


def token_lengths(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Length of each text in tokens, special tokens counted, before it is cut."""
    chunks = (list(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK))
    return [len(ids) for chunk in chunks for ids in tokenizer(chunk, verbose=False)["input_ids"]]


def ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """How many special tokens begin and end each text."""
    ids = tokenizer("a")["input_ids"]
    special = tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
    return special.index(0), special[::-1].index(0)


def nats(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p [B] in nats, float64, of the true tokens ids [B, M] under logits [B, M, V]."""
    return cross_entropy(logits.float().mT, ids, ignore_index=IGNORED, reduction="none").double().sum(1)


def written(tokenizer: PreTrainedTokenizerBase, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
    """The texts of token ids [B, M], detokenised and stripped; one may be empty."""
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [detokenise(text).strip() for text in texts]


def digests(folder: Path) -> dict[str, bytes]:
    """SHA-256 by name of every file of a model that could decide how texts are encoded."""
    found = {}
    for file in sorted(folder.iterdir()):
        if file.suffix in READ_TO_ENCODE and file.name not in NOT_READ:
            with file.open("rb") as handle:
                found[file.name] = hashlib.file_digest(handle, "sha256").digest()
    return found


def fingerprint(digests: Mapping[str, bytes], max_length: int) -> str:
    """SHA-256 of everything that decides how texts are encoded: max_length, libraries, weights, tokenizer, settings.

    A file too many only encodes anew, one too few would read states of another model: all of the folder that could
    matter count. Hardware and sizes of batches do not: they change states by their rounding.
    """
    libraries = [version(library) for library in ("transformers", "tokenizers")]
    digest = hashlib.sha256(f"max_length {max_length} {libraries}".encode())
    for name, its in digests.items():
        digest.update(f"{name} ".encode() + its)
    return digest.hexdigest()


def identity(digests: Mapping[str, bytes]) -> str:
    """SHA-256 of weights and tokenizer alone: a run shall go on with the same model after a library has changed."""
    own = (its for name, its in digests.items() if name.endswith(".safetensors") or name == "tokenizer.json")
    return hashlib.sha256(b"".join(own)).hexdigest()
