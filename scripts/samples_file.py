"""Samples and the files they are kept in, JSON lines that say what each text was made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from scripts.errors import UsageError

FINGERPRINT = 16  # letters of a tokenizer's fingerprint in a samples file


@dataclass(frozen=True)
class Samples:
    """Texts by decoding strategy, all from the same latents, and what each sample was made of."""

    texts: dict[str, list[str]]
    seeds: list[int]
    lengths: list[int]
    labels: list[str | None]
    ids: tuple[list[list[int]], str] | None = None  # of each text, and the fingerprint of their tokenizer

    @property
    def first(self) -> list[str]:
        """The texts of the usual strategy."""
        return next(iter(self.texts.values()))

    def write(self, folder: Path) -> None:
        """One JSON-lines file for each strategy."""
        for strategy in self.texts:
            self.write_strategy(strategy, folder / f"{strategy}.jsonl")

    def write_strategy(self, strategy: str, path: Path) -> None:
        """The texts of one strategy as JSON lines."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for i, text in enumerate(self.texts[strategy]):
                row = {"text": text, "label": self.labels[i], "tokens": self.lengths[i], "seed": self.seeds[i]}
                if self.labels[i] is None:
                    del row["label"]
                if self.ids is not None:
                    row |= {"ids": self.ids[0][i], "tokenizer": self.ids[1][:FINGERPRINT]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_texts(path: Path) -> list[str]:
    """The texts of a samples file, empty ones too: .jsonl with `text`, or .txt with one a line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be read ({reason}); expected a file of samples") from None
    lines = lines[:-1] if lines[-1] == "" else lines
    texts = lines if path.suffix == ".txt" else [_text_of(path, i, line) for i, line in enumerate(lines, start=1)]
    if not texts:
        raise UsageError(f"{path}: holds no samples; expected at least one")
    return texts


def _text_of(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise UsageError(f'{path}:{number}: not a sample; expected a JSON object such as {{"text": "..."}}')
    return text
