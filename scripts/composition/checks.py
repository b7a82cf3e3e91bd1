"""Everything that can be found wrong before a model is loaded: one list for the job, which stops at the first, and for
--dry_run, which tells all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from diffusion.gaussian import GaussianProcess
from diffusion.training import checkpoint
from latent_models.codec import ModelError, check_complete, find_model, reason
from latent_models.corpora import Corpus, load_corpus
from latent_models.token_codec import find_tokenizer
from scripts.composition.flag_checks import check_flags
from scripts.composition.method_options import CHARACTERS
from scripts.composition.methods import METHODS
from scripts.composition.options import TRAINED_WITH, Options
from scripts.composition.window_file import levels_of
from scripts.job.console import note
from scripts.job.errors import UsageError


@dataclass(frozen=True)
class Inputs:
    """What the checks of a job read: its options, and once its checkpoint, its corpus and the metrics' models."""

    options: Options
    readers: dict[Path, nn.Module] = field(default_factory=dict)

    @cached_property
    def checkpoint(self) -> Path:
        """The intact one that the job begins with."""
        run = self.options.run
        run_dir, goes_on = Path(run.resume_dir), run.mode == "resume_training"
        there = checkpoint.checkpoints(run_dir)
        if goes_on and there and all(map(checkpoint.is_for_sampling, there)):
            raise UsageError(
                f"{run_dir}: an exported run, which holds averaged weights and no state to train on from; resume the "
                "run that it was made of, or evaluate and sample this one"
            )
        return checkpoint.find_checkpoint(run_dir, run.milestone, checkpoint.GROUPS if goes_on else ("ema",), note)

    @cached_property
    def corpus(self) -> Corpus:
        return load_corpus(self.options.data)

    def reader(self, folder: Path) -> nn.Module:
        """A model of the metrics without its weights."""
        if folder not in self.readers:
            self.readers[folder] = open_reader(folder)
        return self.readers[folder]


def checks(inputs: Inputs) -> Iterator[Callable[[], object]]:
    """Everything that can be found wrong before a model is loaded: calls that raise a user's error where it is."""
    options = inputs.options
    run_options = options.run
    yield lambda: check_flags(options)
    yield lambda: inputs.corpus
    yield lambda: check_corpus(inputs)
    for find, name in needed_models(options).values():
        yield lambda find=find, name=name: find(name)
    if options.gaussian.window is not None:
        yield lambda: check_window(options)
    if run_options.output_dir is not None:
        yield lambda: check_writable("output_dir", run_options.output_dir)
        if run_options.mode == "train":
            yield lambda: check_new(Path(run_options.output_dir))
    if run_options.is_training:
        yield lambda: check_writable("save_dir", run_options.save_dir)
    if run_options.is_training:  # which read them first when hours have gone by
        yield from scoring_checks(inputs)
    else:
        for flag in metric_models(options):
            yield lambda flag=flag: metric_model(options, flag)
    if run_options.resume_dir is not None:  # last, as all of it is read
        yield lambda: inputs.checkpoint
    if run_options.mode == "resume_training":
        yield lambda: check_steps(inputs)
        yield lambda: check_unchanged(inputs)


def scoring_checks(inputs: Inputs) -> Iterator[Callable[[], object]]:
    """The part of `checks` about what the job scores with: the models are there, and they are such that would load."""
    options = inputs.options
    for flag in metric_models(options):
        yield lambda flag=flag: metric_model(options, flag)
    for folder in reader_folders(options):
        yield lambda folder=folder: inputs.reader(folder)


def check(options: Options) -> Inputs:
    """Raises the first of what `checks` finds wrong; returns what was read."""
    inputs = Inputs(options)
    for each in checks(inputs):
        each()
    if missing := missing_metric_models(options):
        note(
            f"warning: {', '.join(missing)} not on this machine, so metrics that need it are left out; on a "
            f"machine with internet run: python -m scripts.cache_models {' '.join(missing)}"
        )
    return inputs


def check_corpus(inputs: Inputs) -> None:
    """Raises UsageError where the texts lack what the options ask of them."""
    options, corpus = inputs.options, inputs.corpus
    if options.denoiser.class_conditional and not corpus.classes:
        raise UsageError(
            f"--class_conditional: no text of {corpus.name!r} has a label {options.data.label_field!r}; expected a "
            "label column, named by --label_field"
        )
    if options.tokens.condition_on_source and any(
        source is None for split in (corpus.train, corpus.valid, corpus.test) for source in split.sources
    ):
        raise UsageError(f"--condition_on_source: texts of {corpus.name!r} have no source; expected `source` or `src`")


def check_window(options: Options) -> None:
    """Raises the user's error where --window is none, or tells nothing about the levels of noise of the schedule."""
    run_dir = options.run.resume_dir
    levels = levels_of(options.gaussian.window, None if run_dir is None else Path(run_dir))
    GaussianProcess.from_options(options.gaussian, levels)


def check_new(run_dir: Path) -> None:
    """Raises UsageError where the folder of a new run holds a run already."""
    trained = any(map(checkpoint.step_of, checkpoint.checkpoints(run_dir)))  # step 0 alone: killed while it began
    if (run_dir / "args.json").exists() or trained:
        raise UsageError(
            f"{run_dir}: holds a run already; choose another --output_dir, or continue it with --resume_training "
            f"--resume_dir {run_dir}"
        )


def check_steps(inputs: Inputs) -> None:
    """Raises UsageError where a run is to end before the step from which it goes on."""
    reached, wanted = checkpoint.step_of(inputs.checkpoint), inputs.options.training.num_train_steps
    if wanted < reached:
        raise UsageError(
            f"--num_train_steps {wanted}: {inputs.checkpoint} has {reached:,} behind it; expected at least as many, "
            "or give an earlier --milestone"
        )


def check_unchanged(inputs: Inputs) -> None:
    """Raises UsageError for a flag that would make another training of a run that has begun."""
    options = inputs.options
    if checkpoint.step_of(inputs.checkpoint) == 0:
        return
    own = Options.from_argv(["--resume_training", "--resume_dir", options.run.resume_dir]).flat()
    for flag, value in options.flat().items():
        if flag in TRAINED_WITH and value != own[flag]:
            raise UsageError(
                f"--{flag} {value}: {inputs.checkpoint} was trained with {own[flag]!r}, and a run goes on as it began; "
                "leave it out, or begin a new run"
            )


def needed_models(options: Options) -> dict[str, tuple[Callable[[str], Path], str]]:
    """Flag -> how to find, and the name of, what the method reads and writes texts with."""
    needed = {}
    if not METHODS[options.method.method].on_tokens:
        needed["enc_dec_model"] = find_model, options.codec.enc_dec_model
        if options.codec.decoder is not None:
            needed["decoder"] = find_model, options.codec.decoder
    elif options.run.resume_dir is None and options.tokens.tokenizer != CHARACTERS:
        needed["tokenizer"] = find_tokenizer, tokenizer_name(options)
    if options.method.bert_model is not None:
        needed["bert_model"] = find_model, options.method.bert_model
    return needed


def check_writable(flag: str, folder: str | Path) -> None:
    """Raises UsageError where `folder` is not there and cannot be made, or cannot be written to."""
    there = next(place for place in (Path(folder).absolute(), *Path(folder).absolute().parents) if place.exists())
    if not there.is_dir():
        raise UsageError(f"--{flag} {folder}: {there} is a file; expected a folder, or a place for one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"--{flag} {folder}: {there} cannot be written to; choose another folder")


def check_file(flag: str, path: str | Path) -> None:
    """Raises UsageError where `path` is a folder, or lies in one that cannot be made or written to."""
    if Path(path).is_dir():
        raise UsageError(f"--{flag} {path}: is a folder; expected a file to write")
    check_writable(flag, Path(path).parent)


def check_free(flag: str, folder: str | Path) -> None:
    """Raises UsageError where something is in the place of a new folder."""
    if Path(folder).exists() or Path(folder).is_symlink():
        raise UsageError(f"--{flag} {folder}: is there already; expected a new folder")


def tokenizer_name(options: Options) -> str:
    """The tokenizer: --tokenizer, else that of the BERT or of the encoder-decoder."""
    return options.tokens.tokenizer or options.method.bert_model or options.codec.enc_dec_model


def metric_models(options: Options) -> tuple[str, ...]:
    """The flags of the models that the job scores with."""
    return () if options.run.mode in ("gen_data", "ppl_eval") else ("perplexity_model", "mauve_model")


def metric_model(options: Options, flag: str) -> Path | None:
    """The folder of scorer or feature model. A default one may be missing in training: its metrics are left out."""
    try:
        return find_model(getattr(options.metrics, flag))
    except ModelError as error:
        if flag in options.given or options.run.mode in ("eval", "eval_test"):
            raise ModelError(f"--{flag}: {error}") from None  # which nobody may have given
        return None


def reader_folders(options: Options) -> list[Path]:
    """The metrics' models that are there, each once."""
    folders = []
    for flag in metric_models(options):
        with suppress(ModelError):
            folders.append(metric_model(options, flag))
    return [folder for folder in dict.fromkeys(folders) if folder is not None]


def open_reader(folder: Path) -> nn.Module:
    """A model of the metrics without its weights, of which the headers are read; ModelError where it is damaged."""
    modules = folder / "modules.json"  # of a sentence model
    on_disk = {"local_files_only": True, "trust_remote_code": False}
    try:
        place = folder / json.loads(modules.read_bytes())[0]["path"] if modules.is_file() else folder
        kind = AutoModel if modules.is_file() else AutoModelForCausalLM
        AutoTokenizer.from_pretrained(place, **on_disk)
        model, told = kind.from_pretrained(
            place, device_map="meta", use_safetensors=True, output_loading_info=True, **on_disk
        )
    except Exception as error:  # transformers raises many kinds for a folder that does not hold what it should
        raise ModelError(f"{folder}: cannot load the model: {reason(folder, error)}; cache it again") from error
    if not modules.is_file():
        check_complete(folder, told)
    return model


def missing_metric_models(options: Options) -> list[str]:
    """The names of models whose metrics are left out; none where a training ends before it is evaluated."""
    if options.training.num_train_steps < options.training.save_and_sample_every:
        return []
    return sorted(
        {getattr(options.metrics, flag) for flag in metric_models(options) if metric_model(options, flag) is None}
    )
