"""The seam between texts and x0, and the offline look-up of pretrained models.

B batch, L positions, D latent width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from latent_models.strict_json import parse


class ModelError(Exception):
    """A pretrained model that is missing or unfit, told in one line."""


def first_line(error: Exception) -> str:
    """What an error of a library says first, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def reason(folder: Path, error: Exception) -> str:
    """Why a model folder does not load: its first JSON file that is none, else what the library says first."""
    for path in sorted(folder.rglob("*.json")):
        try:
            parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as fault:
            return f"{path.relative_to(folder)}: {first_line(fault)}"
    return first_line(error)


def check_complete(folder: Path, told: dict[str, Any]) -> None:
    """Raises ModelError where transformers filled weights with random numbers, since the files lack them.

    `told` is what from_pretrained says with output_loading_info.
    """
    if absent := sorted(map(str, {*told["missing_keys"], *told["mismatched_keys"]})):
        raise ModelError(
            f"{folder}: {len(absent)} weights of the model are not in its files (first: {absent[0]}); expected a "
            "complete model: cache it again"
        )


def check_words(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ModelError for a tokenizer of special tokens alone, as transformers makes where its files are gone."""
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        raise ModelError(f"{folder}: its tokenizer has no words; expected its tokenizer.json: cache the model again")


@dataclass(frozen=True)
class Encoded:
    """A batch of texts as x0 [B, L, D] float (or [B, L] int) with `valid` [B, L] bool, True on real positions."""

    x0: Tensor
    valid: Tensor


class Codec(Protocol):
    """Text <-> x0."""

    strategies: tuple[str, ...]  # ways to write x0 as text, all of which an evaluation takes
    on_request: tuple[str, ...]  # further ways, for whoever asks for one
    max_length: int  # longest text in tokens; longer ones are cut
    most_positions: int  # L of the text with most of them
    ends: tuple[int, int] | None  # how many of a text's first and last positions are special; None: none is a token's
    width: int  # D
    fingerprint: str  # equal ones encode equally
    identity: str  # of weights and tokenizer: which model it is

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The texts as one padded batch."""

    def piece_ids(self, text: str, first: bool, last: bool) -> Tensor:
        """The tokens [n] of words within a text; `first`, `last`: they begin or end it. Where `ends` is not None."""

    def encode_among(self, ids: Tensor, start: int, length: int) -> Tensor:
        """x0 [n, D] of tokens [n] that stand from `start` on in a text of `length`, whose others are not known."""

    def decode(self, x0: Tensor, valid: Tensor, strategy: str, seeds: Sequence[int] | None = None) -> list[str]:
        """One text a row; a strategy that draws takes one seed a row."""

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        """Length of each text in tokens, special tokens counted, before it is cut."""

    def positions(self, lengths: np.ndarray) -> np.ndarray:
        """How many positions of x0 texts of these many tokens have [N]."""

    def logits_of(self, texts: Sequence[str], x0: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, M, V] for every token of its texts, as written from x0, and these tokens [B, M]."""


MODELS_DIR = Path("pre_trained_models")

# Names here, which the literature uses too -> names on the hub. Either finds the model, which lies under the first.
HUB_NAMES = {
    "gpt2-large": "openai-community/gpt2-large",
    "all-mpnet-base-v2": "sentence-transformers/all-mpnet-base-v2",
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "gpt2": "openai-community/gpt2",
    "mdlm-owt": "kuleshov-group/mdlm-owt",
    "sedd-small": "louaaron/sedd-small",
    "sedd-medium": "louaaron/sedd-medium",
    **{
        name: f"dvruette/{name}"
        for name in (f"gidd-{size}-p_unif-{share}" for size in ("small", "base") for share in ("0.0", "0.1", "0.2"))
    },
}
NAMES_HERE = {there: here for here, there in HUB_NAMES.items()}


def _hub_snapshot(name: str) -> Path | None:
    """The newest snapshot of `name` in the local Hugging Face cache, without any request."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # a path, or a name no hub would accept
        return None
    return Path(config).parent if isinstance(config, str) else None


def _look_up(name: str, models_dir: Path) -> Path | None:
    for candidate in (Path(name), models_dir / NAMES_HERE.get(name, name), models_dir / name):
        if any((candidate / file).is_file() for file in ("config.json", "modules.json", "codec.json")):
            return candidate
    if Path(name).is_dir():
        raise ModelError(f"{name}: not a model folder; expected a config.json in it")
    return _hub_snapshot(name) or (_hub_snapshot(HUB_NAMES[name]) if name in HUB_NAMES else None)


def find_models(*names: str, models_dir: Path = MODELS_DIR) -> list[Path]:
    """The folder of each model: a path, else `pre_trained_models/<name>`, else in the local Hugging Face cache.

    Raises ModelError that names every missing model and the one command that caches them.
    """
    found = {name: _look_up(name, models_dir) for name in names}
    missing = [name for name, folder in found.items() if folder is None]
    if missing:
        raise ModelError(
            f"not on this machine: {', '.join(missing)} (looked for a folder of that name, under {models_dir}/ and in "
            "the Hugging Face cache); on a machine with internet run: "
            f"python -m scripts.cache_models {' '.join(missing)}"
        )
    return [found[name] for name in names]


def find_model(name: str) -> Path:
    """`find_models` for one."""
    return find_models(name)[0]
