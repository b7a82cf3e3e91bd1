"""Samples texts from a trained run.

    python -m scripts.sample --resume_dir RUN --num_samples 20 [--random_seed 7] [--sampling_timesteps 50]

B batch, L positions, D latent width.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from tqdm import tqdm

from diffusion.guidance import Prediction
from diffusion.randomness import SampleGenerators, sample_seeds, uniform
from latent_models.seq2seq_codec import DECODING
from scripts.build import System, check_writable, load_system, note
from scripts.errors import UsageError, run
from scripts.options import GROUPS, Options, parse

DECODING_STREAM = 2**32  # added to a seed: decoding draws from other numbers than the latents


@dataclass(frozen=True)
class Samples:
    """Texts by decoding strategy, all from the same latents, and what each sample was made of."""

    texts: dict[str, list[str]]
    seeds: list[int]
    lengths: list[int]
    labels: list[str | None]

    def write(self, folder: Path) -> None:
        """One JSON-lines file for each strategy."""
        for strategy in self.texts:
            self.write_strategy(strategy, folder / f"{strategy}.jsonl")

    def write_strategy(self, strategy: str, path: Path) -> None:
        """The texts of one strategy as JSON lines."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = zip(self.texts[strategy], self.labels, self.lengths, self.seeds, strict=True)
        with path.open("w", encoding="utf-8") as file:
            for text, label, length, seed in rows:
                row = {"text": text, **({} if label is None else {"label": label}), "tokens": length, "seed": seed}
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


@torch.no_grad()
def sample(
    system: System,
    count: int,
    seed: int,
    *,
    strategies: Iterable[str] = tuple(DECODING),
    labels: Sequence[int] | None = None,
) -> Samples:
    """`count` texts by each strategy; sample i is a function of `seed` and i alone, whatever the batch size.

    Lengths are drawn from the training lengths; labels from the training labels, unless `labels` gives them.
    """
    device, batch_size = next(system.denoiser.parameters()).device, system.options.training.eval_batch_size
    seeds, decoding_seeds = (sample_seeds(s, 0, count) for s in (seed, seed + DECODING_STREAM))
    generators = SampleGenerators(seeds)
    u = uniform((count, 2), generators, dtype=torch.float64)
    lengths = system.statistics.lengths_at(u[:, 0])
    label = _drawn_labels(system, u[:, 1]) if labels is None else torch.tensor(labels)
    texts = {strategy: [""] * count for strategy in strategies}
    groups = lengths.argsort(stable=True).split(batch_size)  # similar lengths together, so that little is padded
    steps = len(groups) * (len(system.times) - 1)
    with tqdm(total=steps, desc=f"sample {count}", file=sys.stderr, mininterval=1.0) as bar:
        for group in groups:
            own = generators.of(group.tolist(), lengths[group].tolist())
            valid = (torch.arange(int(lengths[group].max())) < lengths[group][:, None]).to(device)
            predict_x0 = Prediction(
                system.process, system.denoiser, valid, None if label is None else label[group].to(device)
            )
            x = system.process.prior((*valid.shape, len(system.statistics.mean)), own, device)
            x0 = system.sampler(
                system.process, predict_x0, x, system.times, generator=own, on_step=lambda *_: bar.update()
            )
            states = system.statistics.unnormalise(x0)
            for strategy in texts:
                decoded = system.codec.decode(states, valid, strategy, [decoding_seeds[i] for i in group.tolist()])
                for i, text in zip(group.tolist(), decoded, strict=True):
                    texts[strategy][i] = text
    names = [None] * count if label is None else [system.classes[i] if i >= 0 else None for i in label.tolist()]
    return Samples(texts, seeds, lengths.tolist(), names)


def _drawn_labels(system: System, u: torch.Tensor) -> torch.Tensor | None:
    """Label index [B] at the quantiles u of the training labels; None for unconditional models."""
    if not system.classes:
        return None
    known = torch.from_numpy(system.label_ids(system.corpus.train.labels)).sort().values
    return known[(u * len(known)).long()]


@dataclass
class SampleOptions:
    _argument_group_name: ClassVar[str] = "output"

    strategy: str = field(default="beam", metadata={"help": "how latents are decoded: beam or nucleus"})
    output_file: str | None = field(default=None, metadata={"help": "write JSON lines there instead of printing"})

    def __post_init__(self):
        if self.strategy not in DECODING:
            raise UsageError(f"--strategy {self.strategy!r} is not one of: {', '.join(DECODING)}")


def main() -> None:
    argv = [*sys.argv[1:], "--gen_data"]
    *groups, output = parse([*GROUPS, SampleOptions], argv, __doc__)
    options = Options.from_groups(groups, argv)
    if output.output_file is not None:
        check_writable("output_file", Path(output.output_file).parent)
    system, step = load_system(options)
    note(f"{options.run.resume_dir}, step {step:,}")
    samples = sample(system, options.run.num_samples, options.training.random_seed, strategies=[output.strategy])
    texts = samples.texts[output.strategy]
    if output.output_file is None:
        print("\n".join(texts))
    else:
        samples.write_strategy(output.strategy, Path(output.output_file))


if __name__ == "__main__":
    run(main)
