"""Pretrained models that read texts: token likelihoods for perplexity, one vector per text for MAUVE.

Everything is read from a local folder in safetensors; nothing is fetched and no code of a model folder is run.
Legend: B batch, L positions, D feature width, V vocabulary, N texts.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from offline_metrics.errors import MetricError

UNSCORED = -100
# Said outright, because a folder with code of its own otherwise makes the loader ask on the terminal and wait.
ON_DISK_ONLY = {"local_files_only": True, "trust_remote_code": False}
LOADED_FROM = (".safetensors", ".json", ".txt", ".model")
Loaded = TypeVar("Loaded")


class FeatureModel(Protocol):
    """What MAUVE needs: one vector per text; models of equal fingerprints give equal ones."""

    fingerprint: str

    def features(self, texts: Sequence[str], batch_size: int) -> np.ndarray:
        """Features [N, D] of N texts."""


class Window(NamedTuple):
    """A stretch of one text: the ids read and, at each of them, the id to predict or UNSCORED."""

    text: int
    inputs: list[int]
    targets: list[int]


class LanguageModel:
    """A causal language model with its tokenizer, from a local folder; raises MetricError where it does not load."""

    def __init__(
        self, path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.path = _model_folder(path, "*.safetensors")
        self.device = torch.device(device)
        self.fingerprint = _fingerprint(self.path, self.device, dtype)
        self.tokenizer = _loaded(self.path, lambda: AutoTokenizer.from_pretrained(self.path, **ON_DISK_ONLY))
        _check_words(self.path, self.tokenizer)
        model, report = _loaded(
            self.path,
            lambda: AutoModelForCausalLM.from_pretrained(
                self.path, **ON_DISK_ONLY, use_safetensors=True, dtype=dtype, output_loading_info=True
            ),
        )
        # Absent weights are otherwise filled with random numbers and a mere warning.
        if absent := sorted({*report["missing_keys"], *report["mismatched_keys"]}):
            raise MetricError(
                f"{self.path}: {len(absent)} weights of the causal language model are not in this folder "
                f"(first: {absent[0]}); expected a complete checkpoint, cache the model again"
            )
        self.model = model.to(self.device).eval()
        self.positions: int | None = getattr(model.config, "max_position_embeddings", None)
        _loaded(self.path, lambda: _try(self))

    @property
    def bos_id(self) -> int:
        """Id of the tokenizer's BOS token; raises MetricError if it has none."""
        if self.tokenizer.bos_token_id is None:
            raise MetricError(f"{self.path}: the tokenizer has no bos_token; set one in tokenizer_config.json")
        return self.tokenizer.bos_token_id

    @torch.inference_mode()
    def nll(self, texts: Sequence[str], batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
        """Negative log-likelihood of each text in nats [N] float64, and its number of tokens [N] int.

        BOS is context only and no EOS is scored. A text longer than the model's positions is read in windows that
        overlap by half, so that every token is scored exactly once; such texts are those with n_tokens > positions.
        """
        ids = self._ids(texts, add_special_tokens=False)
        n_tokens = np.array([len(text) for text in ids], dtype=np.int64)
        nll_sum = np.zeros(len(ids))
        windows = [window for index, text in enumerate(ids) for window in self._windows(index, text)]
        for batch in _by_length(windows, batch_size, lambda window: len(window.inputs)):
            inputs, valid = self._padded([window.inputs for window in batch])
            targets, _ = self._padded([window.targets for window in batch], UNSCORED)
            logits = self.model(input_ids=inputs, attention_mask=valid, use_cache=False).logits  # [B, L, V]
            # Half-precision logits are widened first; float32 and float64 stay what they are.
            logits = logits if logits.dtype == torch.float64 else logits.float()
            losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=UNSCORED, reduction="none")
            np.add.at(nll_sum, [window.text for window in batch], losses.double().sum(1).cpu().numpy())
        return nll_sum, n_tokens

    @torch.inference_mode()
    def features(self, texts: Sequence[str], batch_size: int = 32, max_length: int = 256) -> np.ndarray:
        """Last layer's state at the last token of each text cut to `max_length` tokens, [N, D] float32 (mauve-text).

        A text without tokens stands as the state of BOS alone, so that it stays in the comparison.
        """
        max_length = min(max_length, self.positions or max_length)
        ids = [text[:max_length] or [self.bos_id] for text in self._ids(texts)]
        features = np.zeros((len(ids), self.model.config.hidden_size), dtype=np.float32)
        for batch in _by_length(list(enumerate(ids)), batch_size, lambda item: len(item[1])):
            inputs, valid = self._padded([text for _, text in batch])
            states = self.model.base_model(input_ids=inputs, attention_mask=valid, use_cache=False).last_hidden_state
            last = valid.sum(1) - 1
            rows = torch.arange(len(batch), device=self.device)
            features[[index for index, _ in batch]] = states[rows, last].float().cpu().numpy()
        return features

    def _ids(self, texts: Sequence[str], **settings: bool) -> list[list[int]]:
        return self.tokenizer(list(texts), verbose=False, **settings)["input_ids"] if len(texts) else []

    def _windows(self, index: int, ids: list[int]) -> Iterator[Window]:
        """Cut one text so that each token is predicted once, with all the context the positions allow or half of it."""
        sequence = [self.bos_id, *ids]
        positions = self.positions or len(ids)
        scored, end = 0, min(positions, len(ids))
        while scored < len(ids):
            start = max(0, end - positions)
            targets = [UNSCORED] * (scored - start) + sequence[scored + 1 : end + 1]
            yield Window(index, sequence[start:end], targets)
            scored, end = end, min(end + max(1, positions // 2), len(ids))

    def _padded(self, rows: list[list[int]], padding: int = 0) -> tuple[Tensor, Tensor]:
        """Right-padded ids [B, L] and valid [B, L]; the padding id is never attended to, so any id will do."""
        padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)
        lengths = torch.tensor([len(row) for row in rows])
        valid = torch.arange(padded.shape[1]) < lengths[:, None]
        return padded.to(self.device), valid.long().to(self.device)


class SentenceModel:
    """A sentence-transformers model from a local folder; raises MetricError where it does not load."""

    def __init__(self, path: str | Path, device: str | torch.device = "cpu") -> None:
        self.path = _model_folder(path, "**/*.safetensors")
        self.fingerprint = _fingerprint(self.path, torch.device(device), torch.float32)
        # Imported here: only runs that compare sentence embeddings need this library.
        from sentence_transformers import SentenceTransformer

        self.model = _loaded(
            self.path,
            lambda: SentenceTransformer(
                str(self.path),
                device=str(device),
                **ON_DISK_ONLY,
                model_kwargs={"use_safetensors": True},
            ),
        )
        _check_words(self.path, self.model.tokenizer)
        _loaded(self.path, lambda: _try(self))

    def features(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Sentence embeddings [N, D] float32."""
        embeddings = self.model.encode(list(texts), batch_size=batch_size, show_progress_bar=False)
        return np.asarray(embeddings, dtype=np.float32)


def load_feature_model(path: str | Path, device: str | torch.device = "cpu") -> FeatureModel:
    """The sentence model or causal language model that a local folder holds; modules.json marks the former."""
    is_sentence_model = (Path(path) / "modules.json").is_file()
    return SentenceModel(path, device) if is_sentence_model else LanguageModel(path, device)


def _model_folder(path: str | Path, weights: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise MetricError(f"{folder}: no such folder; expected a model saved in safetensors, cache it there first")
    if next(folder.glob(weights), None) is None:
        raise MetricError(f"{folder}: no weights in safetensors; save the model there with save_pretrained")
    return folder


def _fingerprint(folder: Path, device: torch.device, dtype: torch.dtype) -> str:
    """SHA-256 of all that a model is loaded from, weights, settings and tokenizer, and of where and how it computes."""
    digest = hashlib.sha256(f"{device.type} {dtype}".encode())
    for path in sorted(folder.rglob("*")):
        if path.suffix in LOADED_FROM and path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + content)
    return digest.hexdigest()


def _check_words(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises MetricError for a tokenizer of special tokens alone, as transformers makes where its files are gone."""
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        raise MetricError(f"{path}: its tokenizer has no words; expected its tokenizer.json: cache the model again")


def _loaded(path: Path, load: Callable[[], Loaded]) -> Loaded:
    """Turn what a library raises on a damaged or foreign folder into one line."""
    try:
        return load()
    except MetricError:
        raise
    except Exception as error:
        raise MetricError(
            f"{path}: cannot load the model: {_reason(path, error)}; expected a whole model, cache it again"
        ) from error


def _try(model: FeatureModel) -> None:
    """Reads a text, so that settings and weights that cannot work are found now and not in the middle of a job."""
    if not np.isfinite(model.features(["a"], 1)).all():
        raise ValueError("it reads a text as NaN or infinity")


def _reason(folder: Path, error: Exception) -> str:
    """The first JSON file of the folder that is none, else what the library says first."""
    for path in sorted(folder.rglob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as fault:
            return f"{path.relative_to(folder)}: {_first_line(fault)}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _by_length(items: list, batch_size: int, length: Callable) -> Iterator[list]:
    """Batches of items of similar length, the longest first: little padding, and memory runs out at once or never."""
    ordered = sorted(items, key=length, reverse=True)
    return (ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size))
