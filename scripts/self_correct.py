"""Lets a GIDD model correct a file of samples: tokens that it finds unlikely are replaced one by one.

    python -m scripts.self_correct --resume_dir RUN --samples FILE.jsonl --output_file CORRECTED.jsonl

Any samples file will do: ids written by the same tokenizer are taken as they are, other texts are tokenised. The report
beside the output (`.report.json`) says how the texts changed, entropy included: correction can make texts likelier by
making them alike.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion.guidance import Prediction
from diffusion.randomness import SampleGenerators, sample_seeds
from diffusion.self_correction import STOPS, self_correct
from diffusion.training.files import replacing
from diffusion.training.progress import progress_bar
from latent_models.codec import ModelError
from offline_metrics.entropy import unigram_entropy
from offline_metrics.report import write_json
from offline_metrics.self_bleu import self_bleu4
from scripts.composition.build import System, load_system
from scripts.composition.checks import check_file
from scripts.composition.dry_run import dry_run
from scripts.composition.flag_checks import OF_SAMPLES
from scripts.composition.options import GROUPS, Options, parse, reading_a_run
from scripts.job.errors import UsageError, run
from scripts.sampling.samples_file import FINGERPRINT, check_format, numbered_samples

EARLY = 0.01  # the time at which the network is asked: nearly finished texts


@dataclass
class CorrectionOptions:
    """How far to correct; UsageError on a value that cannot work."""

    _argument_group_name: ClassVar[str] = "correction"

    samples: str | None = field(default=None, metadata={"help": "what to correct: .jsonl or .csv with `text`, or .txt"})
    output_file: str | None = field(default=None, metadata={"help": "JSON lines of corrected texts go there"})
    correction_temperature: float = field(default=0.1, metadata={"help": "below 1: only likely tokens are put in"})
    tokens_per_step: int = field(default=1, metadata={"help": "tokens replaced at a time"})
    max_correction_steps: int = field(default=128, metadata={"help": "steps at most"})
    patience: int = field(default=32, metadata={"help": "steps without progress before a text is left as it is"})

    def __post_init__(self):
        check_format(self.samples)
        if self.output_file is None:
            raise UsageError("expected --output_file, where corrected texts go")
        if not 0 < self.correction_temperature < math.inf:
            raise UsageError(f"--correction_temperature {self.correction_temperature}: expected a number above 0")
        for flag in ("tokens_per_step", "max_correction_steps"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected at least 1")
        if self.patience < 0:
            raise UsageError(f"--patience {self.patience}: expected 0 or more")


def check_run(options: Options) -> None:
    """Raises UsageError for a run that cannot correct, and for flags that change samples but not corrections."""
    run_dir, method = options.run.resume_dir, options.method.method
    if method != "gidd":
        raise UsageError(
            f"{run_dir}: a run of --method {method}; self-correction needs gidd, whose network says what it would put "
            "in place of a token that it sees"
        )
    if options.tokens.condition_on_source:
        raise UsageError(f"{run_dir}: a run of --condition_on_source; samples files do not hold the sources it needs")
    for flag in sorted(options.given & OF_SAMPLES):
        raise UsageError(f"--{flag} changes samples, not corrections; see --correction_temperature, or leave it out")


def ids_of(system: System, row: dict[str, Any]) -> list[int]:
    """Token ids of a sample: its own, else those of its text; UsageError for such as the run cannot read."""
    codec, limit = system.space.codec, system.space.limit
    if "ids" not in row:
        ids = system.space.piece(row["text"], first=True, last=True).tolist()
    elif row.get("tokenizer") != codec.fingerprint[:FINGERPRINT]:
        raise UsageError(
            f"its ids are of another tokenizer or --max_length ({row.get('tokenizer')}) than the run's "
            f"({codec.fingerprint[:FINGERPRINT]}); take a run of that tokenizer, or remove `ids` to go by the text"
        )
    else:
        ids = row["ids"]
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < codec.vocab_size for i in ids):
            raise UsageError(f"ids that the tokenizer does not have; expected 0 to {codec.vocab_size - 1}")
    if not 1 <= len(ids) <= limit:  # to cut a text would be no correction
        raise UsageError(f"{len(ids)} tokens; expected 1 to {limit}, as the run's texts have: shorten or remove it")
    return ids


def all_ids(system: System, samples: list[tuple[int, dict[str, Any]]], path: Path) -> list[list[int]]:
    """`ids_of` every sample, an error naming file and line."""
    ids = []
    for number, row in samples:
        try:
            ids.append(ids_of(system, row))
        except (UsageError, ModelError) as error:
            raise UsageError(f"{path}:{number}: {error}") from None
    return ids


def correct(system: System, ids: list[list[int]], options: CorrectionOptions, seed: int) -> list[dict[str, Any]]:
    """The corrected ids of each text and what happened to it."""
    device, codec = next(system.denoiser.parameters()).device, system.space.codec
    seeds, results = sample_seeds(seed, 0, len(ids)), [{} for _ in ids]
    precision = system.options.training.sampling_precision(device)
    padded = system.options.tokens.lengths == "modelled"  # then the network knows texts with their PAD only
    order = torch.tensor([len(row) for row in ids]).argsort(stable=True)
    groups = order.split(system.options.training.eval_batch_size)
    for group in progress_bar(groups, "correct"):
        rows = group.tolist()
        lengths = [len(ids[i]) for i in rows]
        width = system.space.limit if padded else max(lengths)
        text = torch.arange(width) < torch.tensor(lengths)[:, None]
        z = torch.full(text.shape, codec.pad_id)
        z[text] = torch.tensor([token for i in rows for token in ids[i]])
        z, text = z.to(device), text.to(device)
        valid = torch.ones_like(text) if padded else text
        # Not sharpened, as samples may be.
        predict = Prediction(system.process, system.denoiser, valid, precision=precision)

        def log_p(z: Tensor, which: Tensor, predict=predict) -> Tensor:
            t = torch.full((len(z),), EARLY, dtype=torch.float64, device=z.device)
            log_p = predict.rows(which)(z, t)
            log_p[..., [codec.eos_id, codec.pad_id]] = -torch.inf  # the length of a text is given: no end within it
            return log_p

        corrected = self_correct(
            log_p,
            z,
            text & (z != codec.eos_id),
            generator=SampleGenerators([seeds[i] for i in rows], lengths),
            temperature=options.correction_temperature,
            tokens_per_step=options.tokens_per_step,
            max_steps=options.max_correction_steps,
            patience=options.patience,
        )
        texts = codec.decode(corrected.z, text)
        for k, i in enumerate(rows):
            results[i] = {
                "text": texts[k],
                "ids": corrected.z[k, : lengths[k]].tolist(),
                "tokenizer": codec.fingerprint[:FINGERPRINT],
                "init_acc": corrected.init_acc[k].item(),
                "final_acc": corrected.final_acc[k].item(),
                "num_changes": int(corrected.num_changes[k]),
                "steps": int(corrected.steps[k]),
                "stop": corrected.stop[k],
            }
    return results


def report_of(before: list[str], results: list[dict[str, Any]]) -> dict[str, Any]:
    """What correction did to the file as a whole."""
    after = [result["text"] for result in results]
    means = {key: fmean(result[key] for result in results) for key in ("init_acc", "final_acc", "num_changes", "steps")}
    stops = {stop: sum(result["stop"] == stop for result in results) for stop in STOPS}
    alike = {
        name: {"before": metric(before), "after": metric(after)}
        for name, metric in (
            ("unigram_entropy", lambda texts: unigram_entropy(texts)["unigram_entropy"]),
            ("self_bleu4", self_bleu4),
        )
    }
    return {"texts": len(after), "changed": sum(r["num_changes"] > 0 for r in results), **means, "stop": stops, **alike}


def main() -> None:
    argv = reading_a_run(sys.argv[1:])
    *groups, correction = parse([*GROUPS, CorrectionOptions], argv, __doc__)
    options = Options.from_groups(groups, argv, {"random_seed"})
    path, target = Path(correction.samples), Path(correction.output_file)
    check_file("output_file", target)
    check_run(options)
    samples = numbered_samples(path)
    if options.run.dry_run:
        return dry_run(options, [])
    system, _ = load_system(options)
    results = correct(system, all_ids(system, samples, path), correction, options.training.random_seed)
    before = [row["text"] for _, row in samples]
    with replacing(target) as beside, beside.open("w", encoding="utf-8") as file:
        for text, result in zip(before, results, strict=True):
            file.write(json.dumps({"before": text, **result}, ensure_ascii=False) + "\n")
    report = report_of(before, results)
    write_json(target.with_suffix(".report.json"), report | {"options": asdict(correction)})
    print(f"{target}: {report['changed']} of {report['texts']} texts changed, {report['num_changes']:.2f} tokens each")
    print(f"share of tokens that are the model's first choice: {report['init_acc']:.3f} -> {report['final_acc']:.3f}")
    for name in ("unigram_entropy", "self_bleu4"):
        print(f"{name}: {report[name]['before']:.3f} -> {report[name]['after']:.3f}")
    print("stopped: " + ", ".join(f"{count} {stop}" for stop, count in report["stop"].items()))


if __name__ == "__main__":
    run(main)
