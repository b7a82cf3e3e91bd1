"""Makes a corpus of single sentences of one of longer texts: shorter to train on, where compute is scarce.

    python -m scripts.split_sentences --dataset_name roc        # -> datasets/roc-sentences

A sentence ends at a full stop, question or exclamation mark before a blank and a capital, a digit or a quotation mark;
behind a quotation mark it goes on with the next. Sentences stay in the split of their text; labels and sources are left
behind. The folder appears whole or not at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from diffusion.training.files import replacing, write_text
from latent_models.corpora import DataOptions, Split, load_corpus
from scripts.composition.checks import check_free
from scripts.composition.options import parse
from scripts.job.errors import run

BETWEEN = re.compile(r"(?<=[.!?])\s+(?=[\"'A-Z0-9])")


@dataclass
class SentenceOptions:
    _argument_group_name: ClassVar[str] = "sentences"

    output_dir: str | None = field(default=None, metadata={"help": "the new folder (<data_dir>/<corpus>-sentences)"})


def sentences(split: Split) -> list[str]:
    """The sentences of all texts, in their order, each on a line of its own."""
    pieces = (piece for text in split.texts for piece in BETWEEN.split(text))
    return [" ".join(piece.splitlines()).strip() for piece in pieces if piece.strip()]


def main() -> None:
    data, options = parse([DataOptions, SentenceOptions], description=__doc__)
    corpus = load_corpus(data)
    folder = Path(options.output_dir or Path(data.data_dir) / f"{corpus.name}-sentences")
    check_free("output_dir", folder)
    with replacing(folder) as beside:
        for name in ("train", "valid", "test"):
            split = getattr(corpus, name)
            found = sentences(split)
            write_text(beside / f"{name}.txt", "".join(f"{sentence}\n" for sentence in found))
            print(f"{folder / name}.txt: {len(found):,} sentences of {len(split):,} texts")


if __name__ == "__main__":
    run(main)
