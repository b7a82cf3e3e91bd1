"""Lets a GIDD model correct a file of samples: tokens that it finds unlikely are replaced one by one.

    python -m scripts.self_correct --resume_dir RUN --samples FILE.jsonl --output_file CORRECTED.jsonl

Any samples file will do: ids written by the same tokenizer are taken as they are, other texts are tokenised. The report
beside the output (`.report.json`) says how the texts changed, entropy included: correction can make texts likelier by
making them alike.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion.randomness import SampleGenerators, sample_seeds
from diffusion.self_correction import STOPS, self_correct
from offline_metrics.entropy import unigram_entropy
from offline_metrics.report import write_json
from offline_metrics.self_bleu import self_bleu4
from scripts.build import System, check_writable, load_system
from scripts.errors import UsageError, run
from scripts.options import GROUPS, Options, parse
from scripts.samples_file import FINGERPRINT, read_samples
from scripts.sampling import prediction

EARLY = 0.01  # the time at which the network is asked: nearly finished texts


@dataclass
class CorrectionOptions:
    """How far to correct; UsageError on a value that cannot work."""

    _argument_group_name: ClassVar[str] = "correction"

    samples: str | None = field(default=None, metadata={"help": "texts to correct: .jsonl with `text`, or .txt"})
    output_file: str | None = field(default=None, metadata={"help": "JSON lines of corrected texts go there"})
    correction_temperature: float = field(default=0.1, metadata={"help": "below 1: only likely tokens are put in"})
    tokens_per_step: int = field(default=1, metadata={"help": "tokens replaced at a time"})
    max_correction_steps: int = field(default=128, metadata={"help": "steps at most"})
    patience: int = field(default=32, metadata={"help": "steps without progress before a text is left as it is"})

    def __post_init__(self):
        if self.samples is None or Path(self.samples).suffix not in (".jsonl", ".txt"):
            raise UsageError(f"--samples {self.samples}: expected a file that ends in .jsonl or .txt")
        if self.output_file is None:
            raise UsageError("expected --output_file, where corrected texts go")
        if not self.correction_temperature > 0:
            raise UsageError(f"--correction_temperature {self.correction_temperature}: expected a number above 0")
        for flag in ("tokens_per_step", "max_correction_steps"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected at least 1")
        if self.patience < 0:
            raise UsageError(f"--patience {self.patience}: expected 0 or more")


def ids_of(system: System, rows: list[dict[str, Any]], path: Path) -> list[list[int]]:
    """Token ids of each sample: its own, else those of its text; UsageError for ids of another tokenizer."""
    codec = system.space.codec
    if "ids" not in rows[0]:
        split = codec.encode_split([row["text"] for row in rows])
        return [split.ids[a:b].tolist() for a, b in zip(split.offsets[:-1], split.offsets[1:], strict=True)]
    for number, row in enumerate(rows, start=1):
        if row.get("tokenizer") != codec.fingerprint[:FINGERPRINT]:
            raise UsageError(
                f"{path}:{number}: its ids are of another tokenizer ({row.get('tokenizer')}) than the run's "
                f"({codec.fingerprint[:FINGERPRINT]}); take a run of that tokenizer, or remove `ids` to go by the text"
            )
        ids = row.get("ids")
        if not isinstance(ids, list) or not ids or not all(type(i) is int and 0 <= i < codec.vocab_size for i in ids):
            raise UsageError(f"{path}:{number}: ids that the tokenizer does not have; expected 0 to {codec.vocab_size}")
    return [row["ids"] for row in rows]


def correct(system: System, ids: list[list[int]], options: CorrectionOptions, seed: int) -> list[dict[str, Any]]:
    """The corrected ids of each text and what happened to it."""
    device, codec = next(system.denoiser.parameters()).device, system.space.codec
    seeds, results = sample_seeds(seed, 0, len(ids)), [{} for _ in ids]
    order = torch.tensor([len(row) for row in ids]).argsort(stable=True)
    groups = order.split(system.options.training.eval_batch_size)
    for group in tqdm(groups, desc="correct", file=sys.stderr, mininterval=1.0):
        rows = group.tolist()
        lengths = [len(ids[i]) for i in rows]
        valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        z = torch.full(valid.shape, codec.pad_id)
        z[valid] = torch.tensor([token for i in rows for token in ids[i]])
        z, valid = z.to(device), valid.to(device)
        predict = prediction(system, valid)

        def log_p(z: Tensor, which: Tensor, predict=predict) -> Tensor:
            t = torch.full((len(z),), EARLY, dtype=torch.float64, device=z.device)
            log_p = predict.rows(which)(z, t)
            log_p[..., codec.eos_id] = -torch.inf  # the length of a text is given: no end within it
            return log_p

        corrected = self_correct(
            log_p,
            z,
            valid & (z != codec.eos_id),
            generator=SampleGenerators([seeds[i] for i in rows], lengths),
            temperature=options.correction_temperature,
            tokens_per_step=options.tokens_per_step,
            max_steps=options.max_correction_steps,
            patience=options.patience,
        )
        texts = codec.decode(corrected.z, valid)
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
    argv = [*sys.argv[1:], "--gen_data"]
    *groups, correction = parse([*GROUPS, CorrectionOptions], argv, __doc__)
    options = Options.from_groups(groups, argv)
    path, target = Path(correction.samples), Path(correction.output_file)
    check_writable("output_file", target.parent)
    rows = read_samples(path)
    if options.method.method != "gidd":
        raise UsageError(
            f"{options.run.resume_dir}: a run of --method {options.method.method}; self-correction needs gidd, whose "
            "network says what it would put in place of a token that it sees"
        )
    system, _ = load_system(options)
    results = correct(system, ids_of(system, rows, path), correction, options.training.random_seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8") as file:
        for row, result in zip(rows, results, strict=True):
            file.write(json.dumps({"before": row["text"], **result}, ensure_ascii=False) + "\n")
    report = report_of([row["text"] for row in rows], results)
    write_json(target.with_suffix(".report.json"), report | {"options": asdict(correction)})
    print(f"{target}: {report['changed']} of {report['texts']} texts changed, {report['num_changes']:.2f} tokens each")
    print(f"share of tokens that are the model's first choice: {report['init_acc']:.3f} -> {report['final_acc']:.3f}")
    for name in ("unigram_entropy", "self_bleu4"):
        print(f"{name}: {report[name]['before']:.3f} -> {report[name]['after']:.3f}")
    print("stopped: " + ", ".join(f"{count} {stop}" for stop, count in report["stop"].items()))


if __name__ == "__main__":
    run(main)
