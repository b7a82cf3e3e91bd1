"""From options to objects: the one place that builds codec, process, denoiser, data and metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from diffusion.denoiser import CausalDenoiser, LatentDenoiser, TokenDenoiser
from diffusion.dit import DiT
from diffusion.process import Process
from diffusion.schedules import warped
from diffusion.training import checkpoint
from diffusion.training.objective import Objective
from latent_models.codec import find_model
from latent_models.codec_kinds import codec_type
from latent_models.corpora import Corpus, Split
from offline_metrics.language_model import FeatureModel, LanguageModel, load_feature_model
from offline_metrics.result_store import ResultStore
from offline_metrics.suite import MetricSuite
from scripts.composition.bert import load_bert
from scripts.composition.checks import check, metric_model, tokenizer_name
from scripts.composition.demo_grammar import acceptance
from scripts.composition.latent_space import LatentSpace
from scripts.composition.methods import METHODS, Method, sampler_of
from scripts.composition.options import Options
from scripts.composition.spaces import Space, check_files
from scripts.composition.token_space import TokenSpace
from scripts.composition.window_file import levels_of
from scripts.job.console import note
from scripts.job.errors import UsageError
from scripts.job.hardware import compile_trunk, device

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
            mean_length=self.space.lengths.mean if on_tokens else None,
        )

    def data(self, name: str):
        """A split, encoded for the trainer."""
        labels = self.label_ids(getattr(self.corpus, name).labels) if self.classes else None
        return self.space.data(self.corpus, name, labels)

    @cached_property
    def metric_models(self) -> tuple[LanguageModel | None, FeatureModel | None]:
        """Scorer and feature model, loaded once; None for a default one that is not on this machine."""
        paths = (metric_model(self.options, flag) for flag in ("perplexity_model", "mauve_model"))
        return load_metric_models(*paths, device())

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


def load_metric_models(
    scorer_path: Path | None, feature_path: Path | None, device: torch.device
) -> tuple[LanguageModel | None, FeatureModel | None]:
    """Scorer and feature model; one that serves as both is loaded once."""
    scorer = LanguageModel(scorer_path, device) if scorer_path else None
    if scorer and feature_path == scorer_path:
        return scorer, scorer
    return scorer, load_feature_model(feature_path, device) if feature_path else None


def space_type(options: Options) -> type[Space]:
    """The space that the method works in."""
    return TokenSpace if METHODS[options.method.method].on_tokens else LatentSpace


def strategy_of(options: Options, asked: str | None) -> str:
    """The way to write texts: as `asked`, else the usual one; UsageError where a run has no such way."""
    if METHODS[options.method.method].on_tokens:
        ways = TokenSpace.strategies
    else:
        codec = codec_type(find_model(options.codec.enc_dec_model))
        ways = codec.strategies + codec.on_request
    if asked is not None and asked not in ways:
        raise UsageError(f"--strategy {asked!r} is not one of: {', '.join(ways)}")
    return asked or ways[0]


def fit_space(options: Options, corpus: Corpus) -> Space:
    """The space of a new run, from the training split."""
    if not METHODS[options.method.method].on_tokens:
        levels = levels_of(options.gaussian.window, None)
        return LatentSpace.fit(options.codec, corpus, Path(options.run.save_dir), device(), levels)
    tokens = replace(options.tokens, tokenizer=tokenizer_name(options))
    return TokenSpace.fit(tokens, options.codec, corpus, options.data.running_text is not None)


def load_space(options: Options, run_dir: Path) -> Space:
    """The space of an earlier run."""
    check_files(run_dir)
    if not METHODS[options.method.method].on_tokens:
        levels = levels_of(options.gaussian.window, run_dir)
        return LatentSpace.load(options.codec, run_dir, Path(options.run.save_dir), device(), levels)
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
    """The network of the method: the shared trunk with its head, the published network, or a pretrained BERT."""
    method = METHODS[options.method.method]
    time_input = options.denoiser.chosen_time_input(method.time_input)
    classes = len(corpus.classes) if options.denoiser.class_conditional else 0
    if not method.on_tokens:
        return LatentDenoiser(space.codec.width, options.denoiser, classes)
    if method.causal:
        return CausalDenoiser(process.vocab_size, options.denoiser, classes)
    if options.denoiser.trunk == "dit":
        noise = None if time_input == "none" else partial(method.noise, process)
        return DiT(process.vocab_size, options.denoiser, noise)
    if options.method.bert_model is not None:
        return load_bert(find_model(options.method.bert_model), space.codec, process, time_input)
    return TokenDenoiser(process.vocab_size, options.denoiser, classes, method.time_input)


def load_system(options: Options) -> tuple[System, int]:
    """A trained run with its averaged weights in the denoiser, and the step of the checkpoint."""
    inputs = check(options)
    system = build(options, inputs.corpus, load_space(options, Path(options.run.resume_dir)))
    (averaged,), state = checkpoint.load(path := inputs.checkpoint, "ema")
    own = {key.removeprefix("ema_model."): value for key, value in averaged.items() if key.startswith("ema_model.")}
    checkpoint.load_weights(system.denoiser, own, path)
    system.denoiser.to(device()).eval()
    return system, state["step"]
