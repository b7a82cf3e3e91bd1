"""What an evaluation was asked, kept beside its scores: one cut short goes on, and none replaces another unseen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from offline_metrics import report
from scripts.composition.build import System
from scripts.composition.options import Options
from scripts.evaluation.run_folder import read
from scripts.job.errors import UsageError

ASKED = "asked.json"  # written last: what lies beside it is whole
IDENTITIES = {"weights": "other weights", "corpus": "other texts of the corpus"}  # checksums, in words
UNSEEN = ("metric_batch_size",)  # of the metrics' options: changes speed and memory only

Asked = dict[str, Any]  # flag -> value


def asked_of(options: Options) -> Asked:
    """The flags that shape what an evaluation finds of a trained run, and what each stands at."""
    if options.run.mode == "ppl_eval":
        return {"likelihood_draws": options.training.likelihood_draws, "decoder": options.codec.decoder}
    asked = {"num_samples": options.run.num_samples, "mbr_candidates": options.run.mbr_candidates}
    asked |= {"decoder": options.codec.decoder, **vars(options.sampling), **vars(options.metrics)}
    return {flag: value for flag, value in asked.items() if flag not in UNSEEN}


def identities(system: System) -> Asked:
    """Checksums of weights and texts, which may change under one name; all of both is read."""
    weights = hashlib.sha256()
    for tensor in system.denoiser.state_dict().values():
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    splits = [vars(split) for split in (system.corpus.train, system.corpus.valid, system.corpus.test)]
    corpus = hashlib.sha256(json.dumps(splits).encode())
    return {"weights": weights.hexdigest(), "corpus": corpus.hexdigest()}


def asked_of_system(system: System) -> Asked:
    """What an evaluation of a system as it stands is asked."""
    return asked_of(system.options) | identities(system)


def is_whole(place: Path) -> bool:
    """Whether an evaluation came to its end there and says what it was asked."""
    return (place / ASKED).is_file() and (place / "scores.json").is_file()


def mark_whole(place: Path, asked: Asked) -> None:
    """Says so of a place whose files are written."""
    report.write_json(place / ASKED, asked)


def read_asked(place: Path) -> Asked:
    """What an evaluation was asked; UsageError for a record that cannot be read."""
    return read(place / ASKED, _mapping)


def difference(folder: Path, asked: Asked) -> str | None:
    """How what lies anywhere in a folder was made otherwise, in words; None where nothing says that it was.

    What is not in `asked` is not looked at. UsageError for a record that cannot be read.
    """
    for path in sorted(folder.rglob(ASKED)):
        before = {**_defaults(), **read_asked(path.parent)}
        for flag, value in asked.items():
            if flag in before and before[flag] != value:
                if flag in IDENTITIES:
                    return f"was made of {IDENTITIES[flag]}"
                return f"was made with --{flag} {before[flag]}, and asked is {value}"
    return None


def check_alike(folder: Path, asked: Asked) -> None:
    """Raises UsageError where a folder holds what was asked otherwise."""
    if words := difference(folder, asked):
        raise UsageError(f"{folder}: {words}; give --output_dir, another place, or remove the folder to make it anew")


def _mapping(found: Any) -> Asked:
    if not isinstance(found, Mapping):
        raise TypeError("no object of flags")
    return dict(found)


@cache
def _defaults() -> Asked:
    """Of flags that an evaluation may be older than."""
    return asked_of(Options.from_argv([]))
