"""Which flags may stand together: one that would change nothing, or ask for what there is not, is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

from diffusion.samplers import SamplingOptions
from diffusion.schedules import time_grid, warped
from diffusion.training.optim import OptimOptions
from diffusion.training.options import TrainingOptions
from offline_metrics.suite import MetricOptions
from scripts.composition.methods import METHODS, Method, sampler_name
from scripts.composition.options import Options
from scripts.job.errors import UsageError

OWN_GROUPS = tuple(dict.fromkeys(group for method in METHODS.values() for group in method.groups))
SHARED_FLAGS = {"timesteps"}  # stands with the Gaussian process, and is the T of every method
NEEDS = {"bert_model": ("diffusion_bert",), "token_counts": ("diffusion_bert",)}
TOKENS_ONLY = ("tokenizer", "lengths", "condition_on_source")
LATENT_ONLY = (
    "self_condition", "self_condition_prob", "bottleneck_dim", "decoder", "normalize_latent", "latent_scale",
    "latent_dtype", "ddim_sampling_eta", "q_sampling_from", "churn", "early_stop", "self_condition_guidance",
)  # fmt: skip
TRUNK_ONLY = ("tokenizer", "tx_dim", "tx_depth", "scale_shift", "disable_dropout", "class_conditional")


class Owner(NamedTuple):
    """The flag that has another one read, and whether the options have it so."""

    name: str
    is_set: Callable[[Options], Any]


CLASS_CONDITIONAL = Owner("--class_conditional", lambda o: o.denoiser.class_conditional)
DIT = Owner("--trunk dit", lambda o: o.denoiser.trunk == "dit")
SELF_CONDITION = Owner("--self_condition", lambda o: o.denoiser.self_condition)
SPINDLE = Owner("a --spindle other than none", lambda o: o.spindle.spindle != "none")
OWNERS = {
    "polynomial_T_power": Owner("--T_schedule polynomial", lambda o: o.training.T_schedule == "polynomial"),
    "tan_d": Owner("--beta_schedule tan", lambda o: o.gaussian.beta_schedule == "tan"),
    "p2_loss_weight_k": Owner("a --p2_loss_weight_gamma above 0", lambda o: o.gaussian.p2_loss_weight_gamma),
    "latent_scale": Owner("--normalize_latent", lambda o: o.codec.normalize_latent),
    "self_condition_prob": SELF_CONDITION,
    "self_condition_guidance": SELF_CONDITION,
    "class_unconditional_prob": CLASS_CONDITIONAL,
    "label_field": CLASS_CONDITIONAL,
    "guidance": CLASS_CONDITIONAL,
    "gidd_max_weight": Owner("--gidd_weights dynamic or clip", lambda o: o.interpolating.gidd_weights != "raw"),
    "spindle_lambda": SPINDLE,
    "token_counts": SPINDLE,
    "dit_heads": DIT,
    "dit_cond_dim": DIT,
    "ddim_sampling_eta": Owner("--sampler ddim", lambda o: sampler_name(o) == "ddim"),
    "q_sampling_from": Owner("--sampler q", lambda o: sampler_name(o) == "q"),
    "churn": Owner("--sampler churn", lambda o: sampler_name(o) == "churn"),
    "mbr_candidates": Owner("--condition_on_source", lambda o: o.tokens.condition_on_source),
}
OF_SAMPLES = {f.name for f in fields(SamplingOptions)} | {"num_samples"}
OF_SCORES = {f.name for f in fields(MetricOptions)}
READ_AFTERWARDS = {"eval_batch_size", "likelihood_draws", "random_seed"}  # of what stands with training
OF_TRAINING = {f.name for group in (TrainingOptions, OptimOptions) for f in fields(group)} - READ_AFTERWARDS
OF_TRAINING |= {"wandb_name"}
# Why a flag that is not of training is void where a job does not read it. The other flags are read by every job.
VOID = {
    **dict.fromkeys(OF_SAMPLES, "is of samples, of which this makes none"),
    **dict.fromkeys(OF_SCORES, "is of scores, of which this gives none"),
    "mbr_candidates": "is of several texts for each source, of which this makes none",
    "likelihood_draws": "is of likelihoods, of which this takes none",
    "random_seed": "is not read by this, which has seeds of its own, so that runs can be compared",
    "output_dir": "is not read by this, which writes nothing there",
}
SCORING = frozenset(OF_SAMPLES | OF_SCORES | {"mbr_candidates", "output_dir"})
READ = {  # of those flags, by mode
    "eval": SCORING,
    "eval_test": SCORING,
    "ppl_eval": {"likelihood_draws", "output_dir"},
    "gen_data": OF_SAMPLES | {"output_dir"},
}


def check_flags(options: Options) -> None:
    """Raises UsageError for flags that do not go together, and for one given that nothing would read."""
    name = options.method.method
    method = METHODS[name]
    if options.method.recipe is not None and name != "latent":
        raise UsageError(f"--recipe {options.method.recipe} is of --method latent; the method is {name}, leave it out")
    for flag in sorted(options.given):
        methods = _methods(options, flag)
        if methods and name not in methods:
            raise UsageError(f"--{flag} belongs to --method {' or '.join(methods)}; the method is {name}, leave it out")
    sampling = options.sampling
    if sampling.sampler not in ("default", *method.samplers):
        raise UsageError(
            f"--sampler {sampling.sampler}: --method {name} has the samplers {', '.join(method.samplers)}; choose one"
        )
    for flag in sorted(options.given & OWNERS.keys()):
        owner = OWNERS[flag]
        if not owner.is_set(options):
            raise UsageError(f"--{flag} belongs to {owner.name}, without which nothing reads it; leave it out")
    if not options.run.is_training:
        _check_evaluation(options)
    if method.in_steps:
        T = options.gaussian.timesteps
        warped(time_grid(T, sampling.sampling_timesteps), sampling.grid_power, T)  # refuses more steps than there are
    if sampling.is_tempered and not method.is_tempered:
        raise UsageError(
            f"--temperature, --top_p and --top_k sharpen probabilities of tokens, which --method {name} does not "
            "predict; leave them out"
        )
    if method.causal:
        _check_causal(options)
    if name == "sedd" and options.denoiser.time_input == "none":
        raise UsageError("--time_input none: the ratios that sedd predicts change with time; choose another")
    if DIT.is_set(options):
        _check_dit(options, method)
    if options.method.bert_model is not None:
        _check_bert(options)


def _check_evaluation(options: Options) -> None:
    """Of a run that is trained: nothing can change how, nor is anything given that this job does not read."""
    for flag in sorted(options.given & OF_TRAINING):
        raise UsageError(f"--{flag} is of training, of which this does none; leave it out")
    reads = READ[options.run.mode] if options.reads is None else options.reads
    for flag in sorted((options.given & VOID.keys()) - reads):
        raise UsageError(f"--{flag} {VOID[flag]}; leave it out")
    if options.run.mode == "ppl_eval":
        check_likelihood(options)


def check_likelihood(options: Options) -> None:
    """Raises UsageError where --ppl_eval would have nothing to say of such a run."""
    if options.method.method == "diffusion_bert" and options.spindle.spindle not in ("none", "type"):
        raise UsageError(
            f"--ppl_eval: --spindle {options.spindle.spindle} has no likelihood, since its reverse step depends on the "
            "sentence to be made; train with --spindle type or none"
        )


def _check_causal(options: Options) -> None:
    name = options.method.method
    if options.training.T_schedule != "normal" or options.denoiser.time_input != "default":
        raise UsageError(f"--method {name} has no noise and no time: leave out --T_schedule and --time_input")
    if options.sampling.grid_power != 1:
        raise UsageError(f"--grid_power: --method {name} has no noise and no time; leave it out")
    if options.tokens.lengths == "modelled":
        raise UsageError(f"--method {name} ends a text by itself: leave out --lengths modelled")
    if options.run.compile and not options.run.is_training:
        raise UsageError(f"--compile: does not serve --method {name}, which samples with a growing cache; leave it out")


def _check_dit(options: Options, method: Method) -> None:
    if method.causal or not method.on_tokens:
        raise UsageError(f"--trunk dit: does not serve --method {options.method.method}; choose a diffusion of tokens")
    if options.method.bert_model is not None:
        raise UsageError("--trunk dit and --bert_model are two networks; leave one of the two out")


def _check_bert(options: Options) -> None:
    for flag in TRUNK_ONLY:
        if flag in options.given:
            raise UsageError(
                f"--{flag} does not go with --bert_model, which brings its own tokenizer and a network without "
                "classes; leave one of the two out"
            )


def _methods(options: Options, flag: str) -> tuple[str, ...]:
    """The methods that read a flag; none where all do."""
    if flag in NEEDS:
        return NEEDS[flag]
    if flag in TOKENS_ONLY:
        return tuple(name for name, method in METHODS.items() if method.on_tokens)
    if flag in LATENT_ONLY:
        return ("latent",)
    for group in OWN_GROUPS:
        if flag in {f.name for f in fields(getattr(options, group))} - SHARED_FLAGS:
            return tuple(name for name, method in METHODS.items() if group in method.groups)
    return ()
