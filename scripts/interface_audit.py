"""What a decoder makes of the latents that it meets, from clean ones to sampled ones: where quality is lost.

    python -m scripts.interface_audit --resume_dir RUN [--decoder NAME] [--num_samples 500]

Reads test texts from latents that are clean, noised, and estimated by the run from just these noised ones, and as many
sampled texts from the latents that they were written from. A large gap from clean to estimated or sampled latents is
for the decoder to close (scripts.train_decoder), not for the denoiser. Written to the run's evaluation folder.

B batch, L positions, D latent width.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from diffusion.training.files import write_text
from offline_metrics import report
from offline_metrics.likelihood import ratio
from scripts.composition.build import System, load_system, shuffled
from scripts.composition.dry_run import dry_run
from scripts.composition.flag_checks import OF_SAMPLES
from scripts.composition.options import GROUPS, Options, parse, reading_a_run
from scripts.evaluation.interface import (
    READINGS,
    Kind,
    LatentTexts,
    check_latent,
    clean,
    estimated,
    noised,
    readings,
    readings_by_kind,
)
from scripts.job.errors import run
from scripts.sampling.sampling import sample

SEED = 42
RATIOS = (0.5, 1.0, 2.0, 4.0, 8.0)  # sigma / alpha; the run's own time with at least that much is taken
COLUMNS = {"nats": "cross-entropy ↓", "right": "likeliest ↑", "margin": "margin ↑", "entropy": "entropy"}
LEGEND = (
    "Per token, ± standard error over texts. Cross-entropy and entropy in nats; likeliest: share of tokens that the "
    "decoder thinks likeliest; margin: its greatest logit less the second. The tokens before are given: those of the "
    "test text, or of the text that was written from sampled latents."
)
Row = dict[str, float]


def text_rows(system: System, count: int) -> dict[str, Row]:
    """What the decoder reads of test texts in latents of every kind; a text's noise is the same at all levels."""
    texts, schedule = LatentTexts.of(system, "test"), system.process.schedule
    chosen = torch.tensor(shuffled(range(len(texts.texts)), SEED)[:count])
    kinds = {"clean": Kind(clean)}
    for name, corruption in (("noised", noised), ("estimated", estimated(system))):
        for level in schedule.noise_ratio(schedule.time_at(torch.tensor(RATIOS))).tolist():
            kinds[f"{name} {level:.3g}"] = Kind(corruption, level, level)
    batch_size = system.options.training.eval_batch_size
    found = readings_by_kind(system.space.codec, texts, kinds, chosen, SEED, batch_size)
    return {name: row_of(sums) for name, sums in found.items()}


def sampled_row(system: System, count: int) -> Row:
    """What the decoder reads of its own texts in the sampled latents that it wrote them from."""
    space, latents = system.space, {}

    def keep(i: int, n: int, rows: list[int], x: Tensor) -> None:
        if i == n:
            latents.update(zip(rows, x, strict=True))

    samples = sample(system, count, SEED, strategies=space.strategies[:1], watch=keep)
    found = []
    for rows in torch.tensor(samples.lengths).argsort(stable=True).split(system.options.training.eval_batch_size):
        own = [latents[i][: samples.lengths[i]] for i in rows.tolist()]
        x0 = pad_sequence(own, batch_first=True)
        valid = torch.arange(x0.shape[1]) < torch.tensor([len(each) for each in own])[:, None]
        texts = [samples.first[i] for i in rows.tolist()]
        found.append(readings(space.codec, texts, space.statistics.unnormalise(x0), valid.to(x0.device)))
    row = row_of(torch.cat(found))
    return {key: value for key, value in row.items() if not key.startswith(("nats", "right"))}  # there is no true text


def row_of(sums: Tensor) -> Row:
    """Each reading per token and its standard error over texts, from sums [N, 5]."""
    tokens, *others = sums.numpy().T
    row = {"texts": float(len(sums)), "tokens": float(tokens.sum())}
    for name, totals in zip(READINGS[1:], others, strict=True):
        row[name], row[f"{name}_std"] = ratio(totals, tokens)
    return row


def table(rows: dict[str, Row]) -> str:
    """The rows as Markdown."""
    lines = [["latents", *COLUMNS.values()]]
    for title, row in rows.items():
        cells = (f"{row[name]:.3f} ± {row[f'{name}_std']:.3f}" if name in row else report.NO_VALUE for name in COLUMNS)
        lines.append([title, *cells])
    return f"{report.markdown(lines)}\n\n{LEGEND}\n"


def audit(system: System) -> dict[str, Row]:
    """All rows: clean, noised and estimated latents of test texts, then those of samples."""
    count = system.options.run.num_samples
    return text_rows(system, count) | {"sampled": sampled_row(system, count)}


def main() -> None:
    argv = reading_a_run(sys.argv[1:])
    options = Options.from_groups(parse(GROUPS, argv, __doc__), argv, OF_SAMPLES | {"output_dir"})
    check_latent(options)
    if options.run.dry_run:
        return dry_run(options, [])
    system, step = load_system(options)
    place = Path(options.run.output_dir or options.run.resume_dir) / "evaluation" / f"interface_step_{step:08d}"
    place = place / Path(options.codec.decoder or options.codec.enc_dec_model).name
    rows = audit(system)
    report.write_json(place.with_name(f"{place.name}.json"), rows)
    write_text(place.with_name(f"{place.name}.md"), table(rows))
    print(f"{place}.md\n\n{table(rows)}", flush=True)


if __name__ == "__main__":
    run(main)
