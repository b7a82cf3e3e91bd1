"""Samples and the files they are kept in, JSON lines that say what each text was made of; readers of other files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion.training.files import replacing
from latent_models.readers import table
from latent_models.strict_json import parse
from scripts.job.errors import UsageError
from scripts.job.reading import read_lines

FORMATS = (".jsonl", ".csv", ".txt")
FINGERPRINT = 16  # letters of a tokenizer's fingerprint in a samples file


@dataclass(frozen=True)
class Samples:
    """Texts by decoding strategy, all from the same latents, and what each sample was made of."""

    texts: dict[str, list[str]]
    seeds: list[int]
    lengths: list[int]
    labels: list[str | None]
    ids: list[list[int]] | None = None  # tokens of each text, for methods on tokens
    tokenizer: str | None = None  # fingerprint of what the ids mean
    # By strategy: of making x0 and of writing it so, each process's own.
    seconds: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def first(self) -> list[str]:
        """The texts of the usual strategy."""
        return next(iter(self.texts.values()))

    def pick(self, indices: Sequence[int]) -> Samples:
        """Some of the samples."""
        texts = {strategy: [texts[i] for i in indices] for strategy, texts in self.texts.items()}
        rest = ([each[i] for i in indices] for each in (self.seeds, self.lengths, self.labels))
        return Samples(texts, *rest, None if self.ids is None else [self.ids[i] for i in indices], self.tokenizer)

    def write(self, folder: Path) -> None:
        """One JSON-lines file for each strategy."""
        for strategy in self.texts:
            self.write_strategy(strategy, folder / f"{strategy}.jsonl")

    def write_strategy(self, strategy: str, path: Path) -> None:
        """The texts of one strategy as JSON lines."""
        with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
            for i, text in enumerate(self.texts[strategy]):
                row = {"text": text, "label": self.labels[i], "tokens": self.lengths[i], "seed": self.seeds[i]}
                if self.labels[i] is None:
                    del row["label"]
                if self.ids is not None:
                    row |= {"ids": self.ids[i], "tokenizer": self.tokenizer[:FINGERPRINT]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def check_format(path: str | None) -> None:
    """Raises UsageError for a name that is not one of a samples file."""
    if path is None or Path(path).suffix not in FORMATS:
        raise UsageError(f"--samples {path}: expected a file that ends in {', '.join(FORMATS)}")


def read_texts(path: Path) -> list[str]:
    """The texts of a samples file, empty ones too; as `numbered_samples`."""
    return [row["text"] for row in read_samples(path)]


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The rows of a samples file; as `numbered_samples`."""
    return [row for _, row in numbered_samples(path)]


def numbered_samples(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Line and row of every sample: .jsonl or .csv with `text`, or .txt, whose lines are texts and give just `text`.

    Raises UsageError or CorpusError naming the line.
    """
    lines = read_lines(path, "a file of samples")
    if path.suffix == ".csv":
        rows = list(table(path, ("text",))) if lines else []
    elif path.suffix == ".txt":
        rows = [(number, {"text": line}) for number, line in enumerate(lines, start=1)]
    else:
        rows = [(number, _row(path, number, line)) for number, line in enumerate(lines, start=1)]
    if not rows:
        raise UsageError(f"{path}: holds no samples; expected at least one")
    return rows


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = parse(line)
        if isinstance(row, dict) and isinstance(row.get("text"), str):
            return row
        reason = "no text"
    except ValueError as error:
        reason = str(error)
    raise UsageError(f'{path}:{number}: not a sample ({reason}); expected a JSON object such as {{"text": "..."}}')
