"""Every option of a run, in the dataclasses beside what they configure, and `args.json`, which remembers them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from diffusion.denoiser import DenoiserOptions
from diffusion.gaussian import GaussianOptions
from diffusion.interpolating import InterpolatingOptions
from diffusion.masked import D3PMOptions, MaskedOptions
from diffusion.samplers import SamplingOptions
from diffusion.score_entropy import ScoreEntropyOptions
from diffusion.spindle import SpindleOptions
from diffusion.survival import SurvivalOptions
from diffusion.training.files import write_text
from diffusion.training.optim import OptimOptions
from diffusion.training.options import TrainingOptions
from latent_models.corpora import DataOptions
from latent_models.seq2seq_codec import CodecOptions
from offline_metrics.suite import MetricOptions
from scripts.composition.method_options import MethodOptions, TokenOptions
from scripts.composition.recipes import with_recipe
from scripts.job.command_line import given_flags, parse
from scripts.job.errors import USER_ERRORS, UsageError
from scripts.job.reading import read_json


@dataclass
class RunOptions:
    _argument_group_name: ClassVar[str] = "run"

    save_dir: str = field(
        default="saved_models",
        metadata={"help": "runs go to <save_dir>/<dataset>/<time>, what they share lies in its latents/ and features/"},
    )
    output_dir: str | None = field(default=None, metadata={"help": "the run folder, instead of one named by the time"})
    wandb_name: str | None = field(
        default=None, metadata={"help": "also log to Weights & Biases under this name, in offline mode"}
    )
    num_samples: int = field(default=16, metadata={"help": "texts to generate at an evaluation"})
    mbr_candidates: int = field(
        default=1,
        metadata={"help": "texts for each source in evaluation, of which MBR chooses one (--condition_on_source)"},
    )
    eval: bool = field(default=False, metadata={"help": "sample and score against the validation split, seed 42"})
    eval_test: bool = field(
        default=False, metadata={"help": "sample and score against the test split, seeds 42 to 46: mean and spread"}
    )
    ppl_eval: bool = field(
        default=False, metadata={"help": "bound or measure the likelihood of the test split"}
    )
    gen_data: bool = field(
        default=False, metadata={"help": "write num_samples texts (shared out over classes) for each of seeds 42 to 46"}
    )
    compile: bool = field(
        default=False, metadata={"help": "compile the trunk: a minute or two before the first step, faster ones then"}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "only tell what is missing or wrong, all of it, or what the job will take"}
    )
    resume_training: bool = field(default=False, metadata={"help": "continue the run of --resume_dir"})
    resume_dir: str | None = field(default=None, metadata={"help": "run folder to continue, evaluate or sample from"})
    milestone: int | None = field(default=None, metadata={"help": "step of the checkpoint to load (the newest)"})

    def __post_init__(self):
        chosen = [mode for mode in MODES if getattr(self, mode)]
        if len(chosen) > 1:
            raise UsageError(f"--{chosen[0]} and --{chosen[1]}: expected one mode at a time")
        if self.num_samples < 1:
            raise UsageError(f"--num_samples {self.num_samples}: expected at least 1")
        if self.mbr_candidates < 1:
            raise UsageError(f"--mbr_candidates {self.mbr_candidates}: expected at least 1")
        if chosen and self.resume_dir is None:
            raise UsageError(f"--{chosen[0]} needs --resume_dir, the folder of a trained run")
        if self.resume_dir is not None and not chosen:
            raise UsageError(f"--resume_dir needs a mode: {', '.join('--' + mode for mode in MODES)}")
        if self.milestone is not None and not chosen:
            raise UsageError(f"--milestone {self.milestone}: is the checkpoint of a --resume_dir to load; leave it out")
        if self.resume_training and self.output_dir is not None:
            raise UsageError(f"--output_dir {self.output_dir}: a run goes on in its own folder; leave it out")

    @property
    def mode(self) -> str:
        return next((mode for mode in MODES if getattr(self, mode)), "train")

    @property
    def is_training(self) -> bool:
        return self.mode in ("train", "resume_training")


MODES = ("eval", "eval_test", "ppl_eval", "gen_data", "resume_training")
REMEMBERED = ("save_dir", "wandb_name", "num_samples")  # the rest of `run` concerns one call only


@dataclass
class Options:
    """Every option of a run, in the groups that `--help` shows."""

    run: RunOptions
    method: MethodOptions
    data: DataOptions
    codec: CodecOptions
    tokens: TokenOptions
    gaussian: GaussianOptions
    survival: SurvivalOptions
    d3pm: D3PMOptions
    masked: MaskedOptions
    score_entropy: ScoreEntropyOptions
    interpolating: InterpolatingOptions
    spindle: SpindleOptions
    denoiser: DenoiserOptions
    training: TrainingOptions
    optim: OptimOptions
    sampling: SamplingOptions
    metrics: MetricOptions
    given: frozenset[str] = frozenset()  # flags that stood on the command line
    reads: frozenset[str] | None = None  # what a script of its own makes of a run; None: as its mode says

    @classmethod
    def from_argv(
        cls, argv: Sequence[str] | None = None, description: str | None = None, problems: list[str] | None = None
    ) -> Options:
        """The options of a command line; those of an earlier run where it names one with --resume_dir."""
        argv = sys.argv[1:] if argv is None else argv
        return cls.from_groups(parse(GROUPS, with_recipe(argv), description, problems), argv)

    @classmethod
    def from_groups(
        cls, groups: Sequence[Any], argv: Sequence[str], reads: Collection[str] | None = None
    ) -> Options:
        """The same from the groups that `parse` made, for a script with a group of its own beside them.

        `argv` is what was given by hand: not the flags of a recipe, which may be void beside others. `reads` are the
        flags of `flag_checks.VOID` that a script which reads a run has a use for.
        """
        options = cls(*groups, frozenset(given_flags(argv)), None if reads is None else frozenset(reads))
        return options if options.run.resume_dir is None else options._on_top_of(Path(options.run.resume_dir))

    def flat(self) -> dict[str, Any]:
        """Flag -> value, over all groups; of `run` what is worth remembering."""
        groups = [getattr(self, name) for name in GROUP_NAMES if name != "run"]
        remembered = {key: getattr(self.run, key) for key in REMEMBERED}
        return remembered | {key: value for group in groups for key, value in vars(group).items()}

    def save(self, run_dir: Path) -> None:
        """Writes args.json, whole or not at all: without it a run is lost."""
        write_text(run_dir / "args.json", json.dumps(self.flat(), indent=1) + "\n")

    def _on_top_of(self, run_dir: Path) -> Options:
        """The run's own options but for the given flags; raises UsageError for one that says what the model is."""
        saved = read_args(run_dir)
        merged = []
        for name, group_type in zip(GROUP_NAMES, GROUPS, strict=True):
            own = vars(getattr(self, name))
            if name == "run":
                kept = {key: saved[key] for key in REMEMBERED if key in saved and key not in self.given}
                merged.append(replace(self.run, **kept))
                continue
            values = {}
            for key, default in vars(group_type()).items():
                had = saved.get(key, default)  # a run that is older than an option
                changed = key in self.given and own[key] != had
                if changed and name in MODEL_GROUPS and not (key in MOVABLE and MOVABLE[key](had, own[key])):
                    raise UsageError(f"--{key} {own[key]}: the run {run_dir} has {had!r}, which is fixed")
                values[key] = own[key] if changed else had
            merged.append(group_type(**values))
        return Options(*merged, self.given, self.reads)


GROUPS = (
    RunOptions, MethodOptions, DataOptions, CodecOptions, TokenOptions, GaussianOptions, SurvivalOptions, D3PMOptions,
    MaskedOptions, ScoreEntropyOptions, InterpolatingOptions, SpindleOptions, DenoiserOptions, TrainingOptions,
    OptimOptions, SamplingOptions, MetricOptions,
)  # fmt: skip
GROUP_NAMES = tuple(f.name for f in fields(Options) if f.name not in ("given", "reads"))
MODEL_GROUPS = (  # they say what the model is
    "method", "data", "codec", "tokens", "gaussian", "survival", "d3pm", "masked", "score_entropy", "interpolating",
    "spindle", "denoiser",
)  # fmt: skip
# They say what is optimised, on which texts and how, so that a run goes on as it began. Open are the number of steps
# and the peak rate: longer, or slower where it became unstable.
TRAINED_WITH = (
    "train_batch_size", "gradient_accumulation_steps", "T_schedule", "polynomial_T_power", "T_direction",
    "time_sampling", "self_condition_prob", "class_unconditional_prob", "random_seed", "lr_schedule",
    "lr_warmup_steps", "optimizer", "adam_beta1", "adam_beta2", "adam_weight_decay", "max_grad_norm", "ema_decay",
    "ema_update_every",
)  # fmt: skip
# Where things lie may differ from machine to machine, and what writes x0 as text has no part in making it. By flag,
# whether the run's value may become another: a codec is known by its checksum, a corpus by the name of its folder, and
# of a BERT the weights are in the checkpoint.
MOVABLE: dict[str, Callable[[Any, Any], bool]] = {
    "data_dir": lambda had, now: True,
    "enc_dec_model": lambda had, now: True,
    "decoder": lambda had, now: True,
    "bert_model": lambda had, now: had is not None,
    "dataset_name": lambda had, now: had is not None and Path(had).name == Path(now).name,
}


@cache
def defaults() -> dict[str, Any]:
    """Every option at its default, for runs that are older than some."""
    return Options.from_argv([]).flat()


def read_args(run_dir: Path) -> dict[str, Any]:
    """The options in args.json, each of which could have been given; raises UsageError."""
    path = run_dir / "args.json"
    saved = read_json(path, "the folder of a run that train_text_diffusion.py wrote")
    types = {f.name: get_type_hints(group)[f.name] for group in GROUPS for f in fields(group)}
    if not isinstance(saved, dict):
        raise UsageError(f"{path}: not the options of a run; expected a JSON object of the flags that --help lists")
    if unknown := saved.keys() - types.keys():
        raise UsageError(
            f"{path}: {json.dumps(min(unknown))} is no option; expected the flags that --help lists (a newer version "
            "may have others: use that)"
        )
    for key, value in saved.items():
        if not fits(value, types[key]):
            raise UsageError(
                f"{path}: {key} is {json.dumps(value)}; expected {kind_name(types[key])}, as --help says; put it right"
            )
    try:
        for group in GROUPS:
            group(**{f.name: saved[f.name] for f in fields(group) if f.name in saved})
    except USER_ERRORS as error:
        raise UsageError(f"{path}: {error}") from None
    return saved


def refuse_modes(argv: Sequence[str]) -> None:
    """Raises UsageError for a mode of training's command, on the command line of another script."""
    for mode in MODES:
        if mode in given_flags(argv):
            raise UsageError(f"--{mode}: is a mode of train_text_diffusion.py; leave it out")


def reading_a_run(argv: Sequence[str], mode: str = "gen_data") -> list[str]:
    """The command line of a script that reads a trained run, with the `mode` that loads one; raises UsageError.

    The modes of training's command mean nothing there, so that they are neither taken nor talked about.
    """
    refuse_modes(argv)
    if "resume_dir" not in given_flags(argv) and not {"-h", "--help"} & set(argv):
        raise UsageError("expected --resume_dir, the folder of a trained run")
    return [*argv, f"--{mode}"]


INTEGERS = range(-(2**63), 2**63)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value read from a file is one that a flag of this kind could have had."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_args(kind):  # X | None
        return any(fits(value, each) for each in get_args(kind))
    if kind is float:
        return type(value) is float or (type(value) is int and value in INTEGERS)
    if kind is str:
        return type(value) is str and "\0" not in value  # which no command line can hold
    return type(value) is kind and (kind is not int or value in INTEGERS)


def kind_name(kind: Any) -> str:
    """What values of a kind are, for people."""
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_args(kind):
        return " or ".join(map(kind_name, get_args(kind)))
    return {str: "a string", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}[kind]
