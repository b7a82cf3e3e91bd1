"""From options to objects: the one place that builds codec, process, denoiser, data and metrics."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from diffusion.denoiser import LatentDenoiser
from diffusion.gaussian import GaussianProcess
from diffusion.samplers import sampler_from_options
from diffusion.schedules import time_grid
from diffusion.training import checkpoint
from diffusion.training.objective import Batch, Objective
from latent_models.codec import ModelError, find_model
from latent_models.corpora import Corpus, Split, load_corpus
from latent_models.latent_cache import LatentCache, encoded
from latent_models.seq2seq_codec import Seq2SeqCodec
from latent_models.statistics import LatentStatistics
from offline_metrics.language_model import FeatureModel, LanguageModel, load_feature_model
from offline_metrics.suite import MetricSuite
from scripts.demo_grammar import acceptance
from scripts.errors import UsageError
from scripts.options import Options

STATISTICS = "latent_statistics.safetensors"
# Further metrics of single corpora, each a function of the texts.
EXTRA_METRICS: dict[str, dict[str, Callable[[list[str]], float]]] = {"demo": {"acceptance": acceptance}}


def note(message: str) -> None:
    """One line for the person at the terminal or the job's log."""
    print(message, file=sys.stderr, flush=True)


@dataclass
class System:
    """Everything that makes texts from noise: the parts a trained run consists of."""

    options: Options
    corpus: Corpus
    codec: Seq2SeqCodec
    statistics: LatentStatistics
    process: GaussianProcess
    denoiser: nn.Module

    @cached_property
    def times(self) -> list[float]:
        return time_grid(self.options.gaussian.timesteps, self.options.sampling.sampling_timesteps)

    @cached_property
    def sampler(self):
        return sampler_from_options(self.options.sampling)

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
        training, denoiser = self.options.training, self.options.denoiser
        return Objective(
            self.process,
            self.options.gaussian.timesteps,
            training.self_condition_prob if denoiser.self_condition else 0.0,
            training.class_unconditional_prob if denoiser.class_conditional else 0.0,
        )

    @cached_property
    def metric_models(self) -> tuple[LanguageModel | None, FeatureModel | None]:
        """Scorer and feature model, loaded once; None for a default one that is not on this machine."""
        return load_metric_models(*metric_model_paths(self.options), self.codec.device)

    def suite(self, split: Split, seed: int) -> MetricSuite:
        """The metrics against the texts of a split, in an order drawn from `seed`."""
        references = shuffled(split.texts, seed)
        extra = EXTRA_METRICS.get(self.corpus.name)
        return MetricSuite(self.options.metrics, *self.metric_models, self.corpus.train.texts, references, extra, seed)


def shuffled(texts: Sequence[str], seed: int) -> list[str]:
    """The texts in an order drawn from `seed`: files often keep like with like, and metrics read the first n."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    return [texts[i] for i in order.tolist()]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
    corpus = load_corpus(options.data)
    if options.denoiser.class_conditional and not corpus.classes:
        raise UsageError(
            f"--class_conditional: no text of {corpus.name!r} has a label {options.data.label_field!r}; expected a "
            "label column, named by --label_field"
        )
    time_grid(options.gaussian.timesteps, options.sampling.sampling_timesteps)
    if options.sampling.sampler != "ddim" and "ddim_sampling_eta" in options.given:
        raise UsageError("--ddim_sampling_eta belongs to --sampler ddim; leave it out")
    find_model(options.codec.enc_dec_model)
    if options.run.output_dir is not None:
        check_writable("output_dir", options.run.output_dir)
    if options.run.mode in ("train", "resume_training"):
        check_writable("save_dir", options.run.save_dir)
    if options.run.mode != "gen_data":
        names = (options.metrics.perplexity_model, options.metrics.mauve_model)
        paths = metric_model_paths(options)
        missing = sorted({name for name, path in zip(names, paths, strict=True) if path is None})
        if missing:
            note(
                f"warning: {', '.join(missing)} not on this machine, so metrics that need it are left out; on a "
                f"machine with internet run: python -m scripts.cache_models {' '.join(missing)}"
            )
    return corpus


def load_codec(options: Options) -> Seq2SeqCodec:
    return Seq2SeqCodec.load(find_model(options.codec.enc_dec_model), options.codec.max_length, device())


@dataclass(frozen=True)
class LatentData:
    """A split as the trainer wants it: normalised latents by index."""

    cache: LatentCache
    statistics: LatentStatistics
    labels: np.ndarray | None

    @property
    def lengths(self) -> np.ndarray:
        return self.cache.lengths

    def batch(self, indices: np.ndarray) -> Batch:
        """x0 [B, L, D], zero where padded."""
        states, valid = self.cache.batch(indices)
        x0 = self.statistics.normalise(states) * valid[..., None]
        return Batch(x0, valid, None if self.labels is None else torch.from_numpy(self.labels[indices]))


def encode_split(options: Options, codec: Seq2SeqCodec, corpus: Corpus, name: str) -> LatentCache:
    """The encoded split, from disk where this codec encoded the same texts before."""
    folder = Path(options.run.save_dir) / "latents"
    cache = encoded(codec, getattr(corpus, name).texts, folder, f"{corpus.name}-{name}")
    if cache.truncated:
        note(f"{name}: {cache.truncated:,} of {len(cache.lengths):,} texts were cut at {codec.max_length} tokens")
    return cache


def fit_statistics(options: Options, cache: LatentCache) -> LatentStatistics:
    scale = options.codec.latent_scale if options.codec.normalize_latent else "none"
    return LatentStatistics.fit(cache.states, cache.lengths, scale)


def build(options: Options, corpus: Corpus, codec: Seq2SeqCodec, statistics: LatentStatistics) -> System:
    """A system with a fresh denoiser, its weights drawn from --random_seed."""
    classes = len(corpus.classes) if options.denoiser.class_conditional else 0
    with torch.random.fork_rng():
        torch.manual_seed(options.training.random_seed)  # torch draws initial weights from the global generator
        denoiser = LatentDenoiser(codec.width, options.denoiser, classes)
    return System(options, corpus, codec, statistics, GaussianProcess.from_options(options.gaussian), denoiser)


def load_system(options: Options) -> tuple[System, int]:
    """A trained run with its averaged weights in the denoiser, and the step of the checkpoint."""
    run_dir = Path(options.run.resume_dir)
    path = checkpoint.find_checkpoint(run_dir, options.run.milestone)
    corpus = check(options)
    statistics = LatentStatistics.load(run_dir / STATISTICS)
    system = build(options, corpus, load_codec(options), statistics)
    check_width(system, run_dir)
    (averaged,), state = checkpoint.load(path, "ema")
    own = {key.removeprefix("ema_model."): value for key, value in averaged.items() if key.startswith("ema_model.")}
    checkpoint.load_weights(system.denoiser, own, path)
    system.denoiser.to(device()).eval()
    return system, state["step"]


def check_width(system: System, run_dir: Path) -> None:
    if len(system.statistics.mean) != system.codec.width:
        raise UsageError(
            f"--enc_dec_model {system.options.codec.enc_dec_model}: has width {system.codec.width}, the run {run_dir} "
            f"was trained with {len(system.statistics.mean)}; give the model it was trained with"
        )
