"""Samples texts from a trained run.

    python -m scripts.sample --resume_dir RUN --num_samples 20 [--random_seed 7] [--sampling_timesteps 50]

B batch, L positions, D latent width.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from tqdm import tqdm

from diffusion.guidance import Prediction
from diffusion.randomness import SampleGenerators, sample_seeds, uniform
from latent_models.seq2seq_codec import DECODING
from scripts.build import System, load_system, note
from scripts.errors import UsageError, run
from scripts.options import Options, parse

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
        folder.mkdir(parents=True, exist_ok=True)
        for strategy, texts in self.texts.items():
            rows = zip(texts, self.labels, self.lengths, self.seeds, strict=True)
            with (folder / f"{strategy}.jsonl").open("w", encoding="utf-8") as file:
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
    system: System, count: int, seed: int, *, strategies: Iterable[str] = tuple(DECODING), label: int | None = None
) -> Samples:
    """`count` texts by each strategy; sample i is a function of `seed` and i alone, whatever the batch size.

    Lengths are drawn from the training lengths; labels from the training labels, unless `label` gives one for all.
    """
    device, batch_size = next(system.denoiser.parameters()).device, system.options.training.eval_batch_size
    seeds, decoding_seeds = (sample_seeds(s, 0, count) for s in (seed, seed + DECODING_STREAM))
    generators = SampleGenerators(seeds)
    u = uniform((count, 2), generators, dtype=torch.float64)
    lengths = system.statistics.lengths_at(u[:, 0])
    labels = _labels(system, u[:, 1], label)
    texts = {strategy: [""] * count for strategy in strategies}
    groups = lengths.argsort(stable=True).split(batch_size)  # similar lengths together, so that little is padded
    steps = len(groups) * (len(system.times) - 1)
    with tqdm(total=steps, desc=f"sample {count}", file=sys.stderr, mininterval=1.0) as bar:
        for group in groups:
            own = SampleGenerators([])  # the same generators, after the draw of length and label
            own.generators = [generators.generators[i] for i in group.tolist()]
            own.lengths = lengths[group].tolist()
            valid = (torch.arange(max(own.lengths)) < lengths[group][:, None]).to(device)
            predict_x0 = Prediction(
                system.process, system.denoiser, valid, None if labels is None else labels[group].to(device)
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
    names = [None] * count if labels is None else [system.classes[i] if i >= 0 else None for i in labels.tolist()]
    return Samples(texts, seeds, lengths.tolist(), names)


def _labels(system: System, u: torch.Tensor, label: int | None) -> torch.Tensor | None:
    """Label index [B] at the quantiles u of the training labels, or `label` for all; None for unconditional models."""
    if not system.classes:
        return None
    if label is not None:
        return torch.full(u.shape, label, dtype=torch.long)
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
    argv = sys.argv[1:]
    own_flags = {"--strategy", "--output_file"}
    own = [token for i, token in enumerate(argv) if token in own_flags or (i and argv[i - 1] in own_flags)]
    (output,) = parse([SampleOptions], own, __doc__)
    options = Options.from_argv([*(t for t in argv if t not in own), "--gen_data"], __doc__)
    system, step = load_system(options)
    note(f"{options.run.resume_dir}, step {step:,}")
    samples = sample(system, options.run.num_samples, options.training.random_seed, strategies=[output.strategy])
    texts = samples.texts[output.strategy]
    if output.output_file is None:
        print("\n".join(texts))
    else:
        Path(output.output_file).write_text(
            "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8"
        )


if __name__ == "__main__":
    run(main)
