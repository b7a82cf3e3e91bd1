"""From options to objects: the one place that builds codec, process, denoiser, data and metrics."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from diffusion.denoiser import CausalDenoiser, LatentDenoiser, TokenDenoiser
from diffusion.process import Process
from diffusion.schedules import warped
from diffusion.training import checkpoint
from diffusion.training.objective import Objective
from latent_models.codec import ModelError, find_model
from latent_models.corpora import Corpus, Split, load_corpus
from latent_models.token_codec import find_tokenizer
from offline_metrics.language_model import FeatureModel, LanguageModel, load_feature_model
from offline_metrics.result_store import ResultStore
from offline_metrics.suite import MetricSuite
from scripts.bert import load_bert
from scripts.console import note
from scripts.demo_grammar import acceptance
from scripts.errors import UsageError
from scripts.hardware import compile_trunk, device
from scripts.method_options import CHARACTERS
from scripts.methods import METHODS, Method, check_flags, sampler_of
from scripts.options import Options
from scripts.spaces import LatentSpace, Space, TokenSpace

# Further metrics of single corpora, each a function of the texts.
EXTRA_METRICS: dict[str, dict[str, Callable[[list[str]], float]]] = {"demo": {"acceptance": acceptance}}


@dataclass
class System:
    """Everything that makes texts from noise: the parts a trained run consists of."""

    options: Options
    corpus: Corpus
    space: Space
    process: Process
    denoiser: nn.Module

    @property
    def method(self) -> Method:
        return METHODS[self.options.method.method]

    @cached_property
    def times(self) -> list[float]:
        """The decreasing times that sampling visits, from 1 to 0."""
        even = self.process.grid(self.options.sampling.sampling_timesteps)
        return warped(even, self.options.sampling.grid_power, self.process.timesteps if self.method.in_steps else None)

    @property
    def writes_length(self) -> bool:
        """Whether the model itself says where a text ends; else lengths are drawn from those of training."""
        if self.options.tokens.lengths == "modelled":
            return True
        return self.method.causal and self.options.data.running_text is None

    @cached_property
    def sampler(self):
        return sampler_of(self.options, stop_id=self.space.codec.eos_id if self.writes_length else None)

    @property
    def classes(self) -> list[str]:
        """The labels the denoiser knows, in the order of its embedding; none where it is unconditional."""
        return self.corpus.classes if self.options.denoiser.class_conditional else []

    def label_ids(self, labels: Sequence[str | None]) -> np.ndarray:
        """Index of each label in `classes`, -1 for none or one that training does not have."""
        index = {label: i for i, label in enumerate(self.classes)}
        return np.array([index.get(label, -1) for label in labels])

    @property
    def objective(self) -> Objective:
        training, denoiser, on_tokens = self.options.training, self.options.denoiser, self.method.on_tokens
        stratified = {"default": on_tokens, "iid": False, "stratified": True}[training.time_sampling]
        return Objective(
            self.process,
            training.self_condition_prob if denoiser.self_condition else 0.0,
            training.class_unconditional_prob if denoiser.class_conditional else 0.0,
            stratified_times=stratified,
            token_mean=on_tokens,
        )

    def data(self, name: str):
        """A split, encoded for the trainer."""
        labels = self.label_ids(getattr(self.corpus, name).labels) if self.classes else None
        return self.space.data(self.corpus, name, labels)

    @cached_property
    def metric_models(self) -> tuple[LanguageModel | None, FeatureModel | None]:
        """Scorer and feature model, loaded once; None for a default one that is not on this machine."""
        return load_metric_models(*metric_model_paths(self.options), device())

    @cached_property
    def store(self) -> ResultStore:
        return result_store(self.options.run.save_dir)

    def suite(self, split: Split, seed: int) -> MetricSuite:
        """The metrics against the texts of a split, in an order drawn from `seed`."""
        references = shuffled(split.texts, seed)
        extra, texts = EXTRA_METRICS.get(self.corpus.name), self.corpus.train.texts
        return MetricSuite(self.options.metrics, *self.metric_models, texts, references, extra, seed, self.store)

    def sources(self, split: Split, seed: int) -> list[str] | None:
        """The sources of a split in the order of `suite`; None for methods that need none."""
        return shuffled(split.sources, seed) if self.options.tokens.condition_on_source else None


def result_store(save_dir: str | Path) -> ResultStore:
    """Where results that rest on references and training texts alone are kept, for all runs under `save_dir`."""
    return ResultStore(Path(save_dir) / "features", note)


def shuffled(texts: Sequence[str], seed: int) -> list[str]:
    """The texts in an order drawn from `seed`: files often keep like with like, and metrics read the first n."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    return [texts[i] for i in order.tolist()]


def metric_model_paths(options: Options) -> tuple[Path | None, Path | None]:
    """Folders of scorer and feature model. A default one may be missing in training: its metrics are then left out."""
    paths = []
    for flag in ("perplexity_model", "mauve_model"):
        name = getattr(options.metrics, flag)
        try:
            paths.append(find_model(name))
        except ModelError:
            if flag in options.given or options.run.mode in ("eval", "eval_test"):
                raise
            paths.append(None)
    return tuple(paths)


def load_metric_models(
    scorer_path: Path | None, feature_path: Path | None, device: torch.device
) -> tuple[LanguageModel | None, FeatureModel | None]:
    """Scorer and feature model; one that serves as both is loaded once."""
    scorer = LanguageModel(scorer_path, device) if scorer_path else None
    if scorer and feature_path == scorer_path:
        return scorer, scorer
    return scorer, load_feature_model(feature_path, device) if feature_path else None


def check_writable(flag: str, folder: str | Path) -> None:
    """Raises UsageError where `folder` is not there and cannot be made, or cannot be written to."""
    there = next(place for place in (Path(folder).absolute(), *Path(folder).absolute().parents) if place.exists())
    if not there.is_dir():
        raise UsageError(f"--{flag} {folder}: {there} is a file; expected a folder, or a place for one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"--{flag} {folder}: {there} cannot be written to; choose another folder")


def check(options: Options) -> Corpus:
    """Everything that can be found wrong before a model is loaded; returns the corpus."""
    check_flags(options)
    corpus = load_corpus(options.data)
    if options.denoiser.class_conditional and not corpus.classes:
        raise UsageError(
            f"--class_conditional: no text of {corpus.name!r} has a label {options.data.label_field!r}; expected a "
            "label column, named by --label_field"
        )
    if options.tokens.condition_on_source and any(
        source is None for split in (corpus.train, corpus.valid, corpus.test) for source in split.sources
    ):
        raise UsageError(f"--condition_on_source: texts of {corpus.name!r} have no source; expected `source` or `src`")
    check_models(options)
    if options.run.output_dir is not None:
        check_writable("output_dir", options.run.output_dir)
    if options.run.mode in ("train", "resume_training"):
        check_writable("save_dir", options.run.save_dir)
    if options.run.mode not in ("gen_data", "ppl_eval"):
        names = (options.metrics.perplexity_model, options.metrics.mauve_model)
        paths = metric_model_paths(options)
        missing = sorted({name for name, path in zip(names, paths, strict=True) if path is None})
        if missing:
            note(
                f"warning: {', '.join(missing)} not on this machine, so metrics that need it are left out; on a "
                f"machine with internet run: python -m scripts.cache_models {' '.join(missing)}"
            )
    return corpus


def check_models(options: Options) -> None:
    """Raises ModelError where what the method reads texts with is not on this machine."""
    if not METHODS[options.method.method].on_tokens:
        find_model(options.codec.enc_dec_model)
    elif options.run.resume_dir is None and options.tokens.tokenizer != CHARACTERS:
        find_tokenizer(tokenizer_name(options))
    if options.method.bert_model is not None:
        find_model(options.method.bert_model)


def tokenizer_name(options: Options) -> str:
    """The tokenizer: --tokenizer, else that of the BERT or of the encoder-decoder."""
    return options.tokens.tokenizer or options.method.bert_model or options.codec.enc_dec_model


def space_type(options: Options) -> type[Space]:
    """The space that the method works in."""
    return TokenSpace if METHODS[options.method.method].on_tokens else LatentSpace


def fit_space(options: Options, corpus: Corpus) -> Space:
    """The space of a new run, from the training split."""
    if not METHODS[options.method.method].on_tokens:
        return LatentSpace.fit(options.codec, corpus, Path(options.run.save_dir), device())
    tokens = replace(options.tokens, tokenizer=tokenizer_name(options))
    return TokenSpace.fit(tokens, options.codec, corpus, options.data.running_text is not None)


def load_space(options: Options, run_dir: Path) -> Space:
    """The space of an earlier run."""
    if not METHODS[options.method.method].on_tokens:
        return LatentSpace.load(options.codec, run_dir, Path(options.run.save_dir), device())
    return TokenSpace.load(options.tokens, options.codec, run_dir, options.data.running_text is not None)


def build(options: Options, corpus: Corpus, space: Space) -> System:
    """A system with a fresh denoiser, its weights drawn from --random_seed."""
    process = METHODS[options.method.method].process(options, space)
    with torch.random.fork_rng():
        torch.manual_seed(options.training.random_seed)  # torch draws initial weights from the global generator
        denoiser = make_denoiser(options, corpus, space, process)
    if options.run.compile:
        compile_trunk(denoiser)
    return System(options, corpus, space, process, denoiser)


def make_denoiser(options: Options, corpus: Corpus, space: Space, process: Process) -> nn.Module:
    """The network of the method: the shared trunk with its head, or a pretrained BERT."""
    method = METHODS[options.method.method]
    classes = len(corpus.classes) if options.denoiser.class_conditional else 0
    if not method.on_tokens:
        return LatentDenoiser(space.codec.width, options.denoiser, classes)
    if method.causal:
        return CausalDenoiser(process.vocab_size, options.denoiser, classes)
    if options.method.bert_model is not None:
        time_input = options.denoiser.chosen_time_input(method.time_input)
        return load_bert(find_model(options.method.bert_model), space.codec, process, time_input)
    return TokenDenoiser(process.vocab_size, options.denoiser, classes, method.time_input)


def load_system(options: Options) -> tuple[System, int]:
    """A trained run with its averaged weights in the denoiser, and the step of the checkpoint."""
    run_dir = Path(options.run.resume_dir)
    path = checkpoint.find_checkpoint(run_dir, options.run.milestone)
    corpus = check(options)
    system = build(options, corpus, load_space(options, run_dir))
    (averaged,), state = checkpoint.load(path, "ema")
    own = {key.removeprefix("ema_model."): value for key, value in averaged.items() if key.startswith("ema_model.")}
    checkpoint.load_weights(system.denoiser, own, path)
    system.denoiser.to(device()).eval()
    return system, state["step"]
