"""--dry_run: what a job needs and will take, looked at in seconds, without a GPU and without writing anything.

Whatever is missing or wrong is told at once, one line each; else a short table of what the job would be.
"""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from os.path import commonpath
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from diffusion.training import checkpoint
from latent_models.codec import Codec, find_model
from latent_models.latent_cache import STORED, cache_folder
from latent_models.statistics import LatentStatistics
from scripts.composition.build import fit_space, load_space, make_denoiser
from scripts.composition.checks import Inputs, checks, missing_metric_models, needed_models, reader_folders
from scripts.composition.latent_space import STATISTICS, check_codec, check_decoder, load_codec
from scripts.composition.methods import METHODS
from scripts.composition.options import Options
from scripts.composition.window_file import levels_of
from scripts.job.errors import USER_ERRORS, Problems

FLOAT = 4  # bytes; the weights are float32 whatever --mixed_precision says
MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes that the system counts memory in
SAMPLED = 1_000  # texts whose tokens are counted, for the size of the encoded splits
ENCODED = {"train": ("train", "valid"), "resume_training": ("train", "valid"), "ppl_eval": ("test",)}  # splits by mode
Result = TypeVar("Result")


class Room(NamedTuple):
    """Bytes that a job will take on disk beyond what is there."""

    what: str
    at: Path
    size: int


@dataclass
class Findings:
    """What is wrong, each line once, the rows of the table, and room by the folder that will take it."""

    problems: list[str] = field(default_factory=list)
    rows: dict[str, str] = field(default_factory=dict)
    room: dict[Path, Room] = field(default_factory=dict)

    def of(self, call: Callable[[], Result]) -> Result | None:
        """What `call` gives; None where it finds something wrong, which is kept."""
        try:
            return call()
        except (*USER_ERRORS, OSError) as error:
            self.add(str(error))
            return None

    def add(self, problem: str) -> None:
        line = " ".join(problem.split())
        if line not in self.problems:
            self.problems.append(line)

    def include(self, other: Findings) -> None:
        """Takes in what was found of another job, whose table stands where there is none of a job yet."""
        for problem in other.problems:
            self.add(problem)
        if "job" not in self.rows:
            self.rows |= other.rows
        self.room |= other.room


def dry_run(options: Options, problems: list[str]) -> None:
    """Prints the table; raises Problems with all that is wrong, `problems` found before this among it."""
    show(look(options, problems))


def show(findings: Findings) -> None:
    """Prints the table; raises Problems with all that is wrong, too little room on disk among it."""
    for problem in _lacking(findings.room.values()):
        findings.add(problem)
    if findings.problems:
        raise Problems(findings.problems)
    width = max(map(len, findings.rows))
    print("\n".join(f"{name:<{width}}  {what}" for name, what in findings.rows.items()), flush=True)


def look(options: Options, problems: Iterable[str] = (), readers: dict[Path, nn.Module] | None = None) -> Findings:
    """All that can be said of a job before it starts; `readers` are kept for the next one."""
    findings, inputs = Findings(list(dict.fromkeys(problems))), Inputs(options, {} if readers is None else readers)
    for each in checks(inputs):
        findings.of(each)
    codec = findings.of(lambda: _codec(options)) if "enc_dec_model" in needed_models(options) else None
    readers = {folder: findings.of(lambda folder=folder: inputs.reader(folder)) for folder in reader_folders(options)}
    network = None if findings.problems else findings.of(lambda: _network(inputs, codec))
    if findings.problems:  # what the job would be rests on all of it
        return findings

    corpus, training = inputs.corpus, options.run.is_training
    frozen = {path: _parameters(model) for path, model in readers.items()}
    if codec is not None:
        frozen[find_model(options.codec.decoder or options.codec.enc_dec_model)] = _parameters(codec.model)
    sizes = ", ".join(f"{len(getattr(corpus, name)):,} {name}" for name in ("train", "valid", "test"))
    findings.rows["job"] = f"{options.run.mode}, {options.method.method}, {corpus.name} ({sizes} texts)"
    findings.rows["network"] = f"{_parameters(network) / 1e6:,.1f} M parameters"
    findings.rows["models"] = ", ".join(f"{path} ({count / 1e6:,.1f} M)" for path, count in frozen.items()) or "none"
    if training:
        first = 0 if options.run.resume_dir is None else checkpoint.step_of(inputs.checkpoint)
        findings.rows["steps"] = _steps(options, len(corpus.train), first)
        findings.room = _room(inputs, codec, _parameters(network))
        findings.rows["disk"] = disk(findings.room.values())
    findings.rows["memory"] = _memory(options, _parameters(network), sum(frozen.values()), training)
    if missing := missing_metric_models(options):
        findings.rows["left out"] = f"metrics of {', '.join(missing)}, not on this machine"
    return findings


# --- what is there ----------------------------------------------------------------------------------------------------


def _codec(options: Options) -> Codec:
    """The codec without its weights: of their files the headers are read."""
    return load_codec(options.codec, torch.device("meta"))


def _network(inputs: Inputs, codec: Codec | None) -> nn.Module:
    """The denoiser of the job, without weights but for a pretrained BERT's."""
    options = inputs.options
    run_dir = None if options.run.resume_dir is None else Path(options.run.resume_dir)
    if codec is None:
        space = fit_space(options, inputs.corpus) if run_dir is None else load_space(options, run_dir)
        for name in ENCODED.get(options.run.mode, ()):  # which tells of characters that the tokenizer does not have
            space.data(inputs.corpus, name, None)
    else:
        levels = levels_of(options.gaussian.window, run_dir)
        space = SimpleNamespace(codec=codec, levels=levels)  # all that process and network need to know of latents
        if run_dir is not None:
            statistics = LatentStatistics.load(run_dir / STATISTICS)
            check_codec(options.codec, codec, statistics, run_dir)
            check_decoder(options.codec, statistics)
    process = METHODS[options.method.method].process(options, space)
    with nullcontext() if options.method.bert_model else torch.device("meta"):
        return make_denoiser(options, inputs.corpus, space, process)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# --- what it will take ------------------------------------------------------------------------------------------------


def _steps(options: Options, texts: int, first: int) -> str:
    """What is left of the steps where a run goes on from the `first`."""
    training, last = options.training, options.training.num_train_steps
    per_step = training.train_batch_size * training.gradient_accumulation_steps
    batches = -(-texts // training.train_batch_size)
    epochs = (last - first) * training.gradient_accumulation_steps / batches
    evaluations = last // training.save_and_sample_every - first // training.save_and_sample_every
    steps = f"{first:,} to {last:,}" if first else f"{last:,}"
    return (
        f"{steps} of {per_step} texts, {epochs:,.1f} epochs; {evaluations:,} evaluations of "
        f"{options.run.num_samples:,} samples"
    )


def _memory(options: Options, parameters: int, frozen: int, training: bool) -> str:
    """What this process has taken, weights and their kin, and the activations of one batch in training.

    These after Korthikanti et al. 2022 (arXiv:2205.05198), eq. 2, of one process that has the batch to itself; their
    count of a plain layer of 16-bit numbers is doubled for float32.
    """
    batch, L, trunk = options.training.train_batch_size, options.codec.max_length, options.denoiser
    parts = {
        "libraries and texts (never on a GPU)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS,
        "weights and their kin": parameters * FLOAT * (3 + _moments(options) if training else 1) + frozen * FLOAT,
    }
    if training:
        per_layer = batch * L * trunk.tx_dim * 34 + 5 * batch * trunk.heads * L * L
        numbers = 2 if options.training.mixed_precision == "no" else 1
        parts[f"activations of {batch} texts"] = per_layer * trunk.tx_depth * numbers
    counted = ", ".join(f"{what} {_size(size)}" for what, size in parts.items())
    return f"about {_size(sum(parts.values()))}: {counted}; sampling, decoding and scoring are not counted"


def _moments(options: Options) -> int:
    """Numbers that the optimizer keeps for each weight."""
    return 1 if options.optim.optimizer == "lion" else 2


def _room(inputs: Inputs, codec: Codec | None, parameters: int) -> dict[Path, Room]:
    """What checkpoints and encoded splits will take that are not there yet."""
    options = inputs.options
    run_dir = Path(options.run.resume_dir or options.run.output_dir or options.run.save_dir)
    training = options.training
    saves = -(-training.num_train_steps // training.save_and_sample_every)
    model, moments = parameters * FLOAT, parameters * FLOAT * _moments(options)
    sizes = [2 * model] + [2 * model + moments] * saves  # the optimizer has none before the first step
    kept = sum(sizes[-training.keep_checkpoints - 1 :] if training.keep_checkpoints else sizes)
    there = sum(path.stat().st_size for path in (run_dir / checkpoint.FOLDER).rglob("*") if path.is_file())
    size = max(0, kept - (there if options.run.resume_dir else 0))
    found = {run_dir / checkpoint.FOLDER: Room("checkpoints", run_dir, size)}
    if codec is not None:
        folder = Path(options.run.save_dir) / "latents"
        for name in ("train", "valid"):
            place, size = _encoded(codec, inputs, name, folder)
            found[place] = Room("encoded splits", folder, size)
    return found


def _encoded(codec: Codec, inputs: Inputs, name: str, folder: Path) -> tuple[Path, int]:
    """Where the encoded split goes and its bytes, from the lengths of some of its texts; 0 where it is there."""
    texts, dtype = getattr(inputs.corpus, name).texts, inputs.options.codec.latent_dtype
    place = cache_folder(codec, texts, folder, f"{inputs.corpus.name}-{name}", dtype)
    if place.is_dir():
        return place, 0
    some = texts[:: -(-len(texts) // SAMPLED)]
    positions = codec.positions(np.array(codec.token_lengths(some))).sum() * len(texts) / len(some)
    return place, int(positions * codec.width * STORED[dtype].itemsize)


def _lacking(rooms: Collection[Room]) -> Iterator[str]:
    """A complaint about each file system without the room that is needed there."""
    by_device: dict[int, list[Room]] = {}
    for room in rooms:
        by_device.setdefault(_standing(room.at).stat().st_dev, []).append(room)
    for there in by_device.values():
        needed, free = sum(room.size for room in there), shutil.disk_usage(_standing(there[0].at)).free
        if needed > free:
            what = ", ".join(dict.fromkeys(room.what for room in there))
            yield (
                f"{there[0].at}: {_size(needed)} are needed ({what}) and {_size(free)} are free; make room, or "
                "choose another --save_dir and --output_dir"
            )


def _standing(folder: Path) -> Path:
    """The folder, or the one above it that is there."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())


def disk(rooms: Collection[Room]) -> str:
    """How much will be taken by what, and where."""
    sums = []
    for what in dict.fromkeys(room.what for room in rooms):
        own = [room for room in rooms if room.what == what]
        places = {room.at for room in own}
        at = places.pop() if len(places) == 1 else commonpath(place.absolute() for place in places)
        sums.append(f"{_size(sum(room.size for room in own))} for {what} at {at}")
    return ", ".join(sums)


def _size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
