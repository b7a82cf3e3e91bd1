"""Every method by name: the one place where a name decides anything.

A method is a process and what suits it: samplers, how the network is told the time, which options are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

from torch import Tensor

from diffusion.autoregressive import AutoregressiveProcess
from diffusion.gaussian import GaussianProcess
from diffusion.interpolating import InterpolatingProcess
from diffusion.masked import D3PMProcess, MaskedProcess
from diffusion.process import Process
from diffusion.samplers import SAMPLERS
from diffusion.schedules import time_grid, warped
from diffusion.score_entropy import ScoreEntropyProcess
from diffusion.spindle import SpindleProcess
from diffusion.token_samplers import sample_ddpm_cache, sample_euler, sample_first_hitting, sample_left_to_right
from scripts.errors import UsageError
from scripts.options import Options
from scripts.token_space import TokenSpace

Sampler = Callable[..., Tensor]


@dataclass(frozen=True)
class Method:
    """How a method is put together; `groups` name the options that are its own."""

    process: Callable[[Options, TokenSpace], Process]
    samplers: dict[str, Sampler]  # the first is the usual one
    groups: tuple[str, ...] = ()
    time_input: str = "input"
    on_tokens: bool = True
    in_steps: bool = False  # T of them, of which sampling takes some; else time is continuous
    causal: bool = False  # reads from left to right and ends a text itself
    is_tempered: bool = True  # predicts probabilities, which a temperature can sharpen
    noise: Callable[[Process, Tensor], Tensor] = lambda process, t: t  # what the published network is told at t [B]


def _ancestral(**others: Sampler) -> dict[str, Sampler]:
    return {"ancestral": SAMPLERS["ancestral"], **others}


METHODS: dict[str, Method] = {
    "latent": Method(
        process=lambda o, space: GaussianProcess.from_options(o.gaussian, space.levels),
        samplers=dict(SAMPLERS),
        groups=("gaussian",),
        on_tokens=False,
        in_steps=True,
        is_tempered=False,
    ),
    "ar": Method(
        process=lambda o, space: AutoregressiveProcess(space.codec.clean_vocab_size, _own_mask(space)),
        samplers={"left_to_right": sample_left_to_right},
        time_input="none",
        causal=True,
    ),
    "d3pm": Method(
        process=lambda o, space: D3PMProcess(
            space.codec.vocab_size,
            space.codec.mask_id,
            timesteps=o.gaussian.timesteps,
            zero_mask_prob=o.d3pm.zero_mask_prob,
        ),
        samplers=_ancestral(),
        groups=("d3pm",),
        in_steps=True,
    ),
    "mdlm": Method(
        process=lambda o, space: MaskedProcess(
            space.codec.vocab_size,
            space.codec.mask_id,
            o.survival.survival(),
            timesteps=o.gaussian.timesteps,
            importance_sampling=o.masked.importance_sampling,
        ),
        samplers={"ddpm_cache": sample_ddpm_cache, **_ancestral(first_hitting=sample_first_hitting)},
        groups=("survival", "masked"),
        time_input="none",
        noise=lambda process, t: process.survival.sigma(t.double()),
    ),
    "sedd": Method(
        process=lambda o, space: ScoreEntropyProcess.from_options(
            o.score_entropy,
            o.survival,
            vocab_size=space.codec.vocab_size if o.score_entropy.graph == "absorb" else space.codec.clean_vocab_size,
            mask_id=space.codec.mask_id,
            timesteps=o.gaussian.timesteps,
        ),
        samplers=_ancestral(euler=sample_euler),
        groups=("survival", "score_entropy"),
        is_tempered=False,
        noise=lambda process, t: process.noise(t),
    ),
    "gidd": Method(
        process=lambda o, space: InterpolatingProcess(
            space.codec.vocab_size,
            space.codec.mask_id,
            p_uniform=o.interpolating.p_uniform,
            weights=o.interpolating.gidd_weights,
            max_weight=o.interpolating.gidd_max_weight,
            timesteps=o.gaussian.timesteps,
        ),
        samplers=_ancestral(),
        groups=("interpolating",),
    ),
    "diffusion_bert": Method(
        process=lambda o, space: SpindleProcess.from_options(
            o.spindle,
            vocab_size=space.codec.vocab_size,
            mask_id=space.codec.mask_id,
            pad_id=space.codec.pad_id,
            token_counts=space.token_counts,
            timesteps=o.gaussian.timesteps,
        ),
        samplers=_ancestral(),
        groups=("spindle",),
        time_input="none",
        in_steps=True,
    ),
}
OWN_GROUPS = tuple(dict.fromkeys(group for method in METHODS.values() for group in method.groups))
SHARED_FLAGS = {"timesteps"}  # stands with the Gaussian process, and is the T of every method
NEEDS = {"bert_model": ("diffusion_bert",), "token_counts": ("diffusion_bert",)}
TOKENS_ONLY = ("tokenizer", "lengths", "condition_on_source")
LATENT_ONLY = (
    "self_condition", "self_condition_prob", "bottleneck_dim", "decoder", "normalize_latent", "latent_scale",
    "latent_dtype", "ddim_sampling_eta", "q_sampling_from", "churn", "early_stop", "self_condition_guidance",
)  # fmt: skip
SAMPLER_FLAGS = {"ddim_sampling_eta": "ddim", "q_sampling_from": "q", "churn": "churn"}
TRUNK_ONLY = ("tokenizer", "tx_dim", "tx_depth", "scale_shift", "disable_dropout", "class_conditional")
DIT_ONLY = ("dit_heads", "dit_cond_dim")
SHARPENING = ("temperature", "top_p", "top_k")


def _own_mask(space: TokenSpace) -> int | None:
    """The mask of a tokenizer that came with one."""
    return space.codec.mask_id if space.codec.mask_id < space.codec.clean_vocab_size else None


def check_flags(options: Options) -> None:
    """Raises UsageError for a flag given that the chosen method would not read."""
    name = options.method.method
    method = METHODS[name]
    if options.method.recipe is not None and name != "latent":
        raise UsageError(f"--recipe {options.method.recipe} is of --method latent; the method is {name}, leave it out")
    for flag in sorted(options.given):
        owners = _owners(options, flag)
        if owners and name not in owners:
            raise UsageError(f"--{flag} belongs to --method {' or '.join(owners)}; the method is {name}, leave it out")
    sampling = options.sampling
    if sampling.sampler not in ("default", *method.samplers):
        raise UsageError(
            f"--sampler {sampling.sampler}: --method {name} has the samplers {', '.join(method.samplers)}; choose one"
        )
    for flag, owner in SAMPLER_FLAGS.items():
        if flag in options.given and owner != _sampler_name(options):
            raise UsageError(f"--{flag} belongs to --sampler {owner}; leave it out")
    if method.in_steps:
        T = options.gaussian.timesteps
        warped(time_grid(T, sampling.sampling_timesteps), sampling.grid_power, T)  # refuses more steps than there are
    if sampling.guidance != 1 and not options.denoiser.class_conditional:
        raise UsageError("--guidance: the model knows no classes; train it with --class_conditional, or leave it out")
    if sampling.self_condition_guidance != 1 and not options.denoiser.self_condition:
        raise UsageError("--self_condition_guidance: the model is not one of --self_condition; leave it out")
    if sampling.is_tempered and not method.is_tempered:
        raise UsageError(
            f"--temperature, --top_p and --top_k sharpen probabilities of tokens, which --method {name} does not "
            "predict; leave them out"
        )
    if method.causal and (options.training.T_schedule != "normal" or options.denoiser.time_input != "default"):
        raise UsageError(f"--method {name} has no noise and no time: leave out --T_schedule and --time_input")
    if method.causal and sampling.grid_power != 1:
        raise UsageError(f"--grid_power: --method {name} has no noise and no time; leave it out")
    if method.causal and options.tokens.lengths == "modelled":
        raise UsageError(f"--method {name} ends a text by itself: leave out --lengths modelled")
    if method.causal and options.run.compile and options.run.mode not in ("train", "resume_training"):
        raise UsageError(f"--compile: does not serve --method {name}, which samples with a growing cache; leave it out")
    if name == "sedd" and options.denoiser.time_input == "none":
        raise UsageError("--time_input none: the ratios that sedd predicts change with time; choose another")
    if options.run.mbr_candidates > 1 and not options.tokens.condition_on_source:
        raise UsageError("--mbr_candidates chooses among the texts of one source: use --condition_on_source")
    if options.denoiser.trunk == "dit":
        if method.causal or not method.on_tokens:
            raise UsageError(f"--trunk dit: does not serve --method {name}; choose a diffusion of tokens")
        if options.method.bert_model is not None:
            raise UsageError("--trunk dit and --bert_model are two networks; leave one of the two out")
    else:
        for flag in DIT_ONLY:
            if flag in options.given:
                raise UsageError(f"--{flag} is of --trunk dit; leave it out")
    if options.method.bert_model is not None:
        _check_bert(options)
    if options.run.mode == "ppl_eval":
        check_likelihood(options)


def _check_bert(options: Options) -> None:
    for flag in TRUNK_ONLY:
        if flag in options.given:
            raise UsageError(
                f"--{flag} does not go with --bert_model, which brings its own tokenizer and a network without "
                "classes; leave one of the two out"
            )


def check_likelihood(options: Options) -> None:
    """Raises UsageError where --ppl_eval would have nothing to say of such a run."""
    name = options.method.method
    if name == "diffusion_bert" and options.spindle.spindle not in ("none", "type"):
        raise UsageError(
            f"--ppl_eval: --spindle {options.spindle.spindle} has no likelihood, since its reverse step depends on the "
            "sentence to be made; train with --spindle type or none"
        )
    for flag in SHARPENING:
        if flag in options.given:
            raise UsageError(f"--{flag} changes samples; --ppl_eval is of the model as it was trained, leave it out")


def _owners(options: Options, flag: str) -> tuple[str, ...]:
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


def sampler_of(options: Options, *, stop_id: int | None = None) -> Sampler:
    """The chosen sampler with its own options bound, to be called as `diffusion.samplers` says."""
    name = _sampler_name(options)
    own = {
        "ddim": {"eta": options.sampling.ddim_sampling_eta},
        "q": {"q_from": options.sampling.q_sampling_from},
        "churn": {"churn": options.sampling.churn},
        "left_to_right": {"stop_id": stop_id},
    }
    return partial(METHODS[options.method.method].samplers[name], **own.get(name, {}))


def _sampler_name(options: Options) -> str:
    usual = next(iter(METHODS[options.method.method].samplers))
    return usual if options.sampling.sampler == "default" else options.sampling.sampler
