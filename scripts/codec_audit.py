"""What a codec writes of latents with more and more noise on them: to be looked at before a diffusion is trained on it.

    python -m scripts.codec_audit --dataset_name e2e --enc_dec_model bart-e2e-n16 [--num_texts 500]

Encodes test texts, puts noise on their normalised latents, writes them again and compares (the gate of smooth latents:
perturb and decode). A codec that keeps its texts longer forgives a denoiser more. Noise is in standard deviations of
the latents, sigma / alpha; the same noise for a text at all levels. Written to the folder codec_audit of --save_dir.

B batch, L positions, D latent width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from diffusion.randomness import normal
from diffusion.training.files import write_text
from diffusion.training.progress import progress_bar
from latent_models.corpora import DataOptions, load_corpus
from latent_models.seq2seq_codec import CodecOptions, token_accuracy
from offline_metrics import report
from offline_metrics.bleu import sentence_bleu4
from scripts.composition.build import shuffled
from scripts.composition.checks import check_writable
from scripts.composition.latent_space import LatentSpace
from scripts.composition.options import parse
from scripts.evaluation.interface import LatentTexts
from scripts.job.errors import UsageError, run
from scripts.job.hardware import device

SEED = 42
RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # sigma / alpha
COLUMNS = {"token_accuracy": "tokens in place ↑", "bleu": "BLEU ↑", "exact": "exact texts ↑"}


@dataclass
class CodecAuditOptions:
    _argument_group_name: ClassVar[str] = "audit"

    num_texts: int = field(default=500, metadata={"help": "test texts to write again"})
    batch_size: int = field(default=64, metadata={"help": "texts at a time"})
    save_dir: str = field(default="saved_models", metadata={"help": "folder of encoded splits and of what is found"})

    def __post_init__(self):
        for flag in ("num_texts", "batch_size"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected at least 1")


@torch.no_grad()
def written_again(
    texts: LatentTexts, ratios: Sequence[float], count: int, batch_size: int
) -> tuple[list[str], dict[float, list[str]]]:
    """Some texts, as the codec's tokenizer knows them, and what is written of their latents at each noise ratio."""
    wanted, found = [], {ratio: [] for ratio in ratios}
    chosen = torch.tensor(shuffled(range(len(texts.texts)), SEED)[:count])
    for rows in progress_bar(texts.by_length(chosen, batch_size), "write"):
        batch, own = texts.batch(rows)
        wanted += texts.space.codec.encoder.known(own)
        noise = normal(batch.x0.shape, texts.draws(rows, SEED), batch.x0.device)
        for ratio in ratios:
            x0 = batch.x0 + ratio * noise
            found[ratio] += texts.space.decode(x0, batch.valid, texts.space.strategies[0], rows.tolist())
    return wanted, found


def audit(
    texts: LatentTexts, ratios: Sequence[float] = RATIOS, count: int = 500, batch_size: int = 64
) -> dict[str, dict[str, float]]:
    """How much of some texts is written again, by the noise ratio of their latents."""
    wanted, found = written_again(texts, ratios, count, batch_size)
    tokenizer = texts.space.codec.tokenizer
    return {
        f"{ratio:g}": {
            "token_accuracy": token_accuracy(tokenizer, wanted, again),
            "bleu": sum(map(sentence_bleu4, again, wanted)) / len(wanted),
            "exact": sum(a == b for a, b in zip(wanted, again, strict=True)) / len(wanted),
        }
        for ratio, again in found.items()
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows as Markdown."""
    lines = [["noise", *COLUMNS.values()]]
    lines += [[ratio, *(f"{row[name]:.3f}" for name in COLUMNS)] for ratio, row in rows.items()]
    return f"{report.markdown(lines)}\n"


def main(argv: list[str] | None = None) -> None:
    data, codec, options = parse([DataOptions, CodecOptions, CodecAuditOptions], argv, __doc__)
    check_writable("save_dir", options.save_dir)
    corpus = load_corpus(data)
    space = LatentSpace.fit(codec, corpus, Path(options.save_dir), device())
    texts = LatentTexts(space, space.data(corpus, "test", None), corpus.test.texts)
    rows = audit(texts, RATIOS, options.num_texts, options.batch_size)
    place = Path(options.save_dir) / "codec_audit" / f"{corpus.name}-{Path(codec.decoder or codec.enc_dec_model).name}"
    report.write_json(place.with_name(f"{place.name}.json"), rows)
    write_text(place.with_name(f"{place.name}.md"), table(rows))
    print(f"{place}.md\n\n{table(rows)}", flush=True)


if __name__ == "__main__":
    run(main)
