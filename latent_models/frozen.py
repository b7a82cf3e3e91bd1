"""Pretrained models as they lie in a folder: read whole or refused in one line, and told which model it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from latent_models.codec import ModelError, check_complete, check_words, reason

UNUSED = "pooler."  # of BERT and its kin: a layer on top of the states, which many files lack
READ_TO_ENCODE = (".safetensors", ".json", ".txt", ".model", ".spm")  # weights, settings, vocabularies
NOT_READ = ("generation_config.json", "training.json")


def pretrained(kind: type, folder: Path, device: str | torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder, the model on the CPU; ModelError where its files lack a part of either.

    For the device "meta" it has no weights: their files are opened, not read.
    """
    on_disk = {"local_files_only": True, "trust_remote_code": False}
    outline = {"device_map": "meta"} if str(device) == "meta" else {}
    model, told = kind.from_pretrained(
        folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **outline, **on_disk
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, **on_disk)
    told["missing_keys"] = [name for name in told["missing_keys"] if not name.startswith(UNUSED)]
    check_complete(folder, told)
    check_words(folder, tokenizer)
    return model, tokenizer


@contextmanager
def loading(folder: Path, role: str, expected: str) -> Iterator[None]:
    """Raises ModelError for whatever goes wrong within: what the folder cannot be used as, and what was expected."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds for a folder that does not hold what it should
        raise ModelError(
            f"{folder}: cannot be used as {role} ({reason(folder, error)}); expected {expected} saved as safetensors "
            "with its tokenizer"
        ) from error


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
