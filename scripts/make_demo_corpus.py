"""Writes the demo corpus `datasets/demo/src1_{train,valid,test}.txt` (E2E format) from its grammar and a seed.

    python -m scripts.make_demo_corpus            # rebuilds the committed files byte for byte
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from diffusion.training.files import write_text
from scripts.composition.demo_grammar import write
from scripts.composition.options import parse
from scripts.job.errors import run


@dataclass
class DemoCorpusOptions:
    output_dir: str = field(default="datasets/demo", metadata={"help": "folder that receives the three files"})
    random_seed: int = field(default=2026, metadata={"help": "seed of the draw"})


SIZES = {"train": 40_000, "valid": 2_000, "test": 2_000}


def draw(seed: int, count: int) -> list[str]:
    """`count` lines `meaning||text` with pairwise different texts, in random order."""
    rng = random.Random(seed)
    lines: dict[str, str] = {}
    while len(lines) < count:
        meaning, text = write(rng)
        lines.setdefault(text, f"{meaning}||{text}\n")
    return list(lines.values())


def main(argv: list[str] | None = None) -> None:
    (options,) = parse([DemoCorpusOptions], argv, description=__doc__)
    lines = draw(options.random_seed, sum(SIZES.values()))
    folder = Path(options.output_dir)
    for split, size in SIZES.items():
        chosen, lines = lines[:size], lines[size:]
        write_text(folder / f"src1_{split}.txt", "".join(chosen))
        print(f"{folder / f'src1_{split}.txt'}: {size:,} sentences")


if __name__ == "__main__":
    run(main)
