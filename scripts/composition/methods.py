"""Every method by name: the one place where a name decides anything.

A method is a process and what suits it: samplers, how the network is told the time, which options are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from diffusion.autoregressive import AutoregressiveProcess
from diffusion.gaussian import GaussianProcess
from diffusion.interpolating import InterpolatingProcess
from diffusion.masked import D3PMProcess, MaskedProcess
from diffusion.process import Process
from diffusion.samplers import SAMPLERS
from diffusion.score_entropy import ScoreEntropyProcess
from diffusion.spindle import SpindleProcess
from diffusion.token_samplers import sample_ddpm_cache, sample_euler, sample_first_hitting, sample_left_to_right
from scripts.composition.options import Options
from scripts.composition.token_space import TokenSpace

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


def _own_mask(space: TokenSpace) -> int | None:
    """The mask of a tokenizer that came with one."""
    return space.codec.mask_id if space.codec.mask_id < space.codec.clean_vocab_size else None


def sampler_of(options: Options, *, stop_id: int | None = None) -> Sampler:
    """The chosen sampler with its own options bound, to be called as `diffusion.samplers` says."""
    name = sampler_name(options)
    own = {
        "ddim": {"eta": options.sampling.ddim_sampling_eta},
        "q": {"q_from": options.sampling.q_sampling_from},
        "churn": {"churn": options.sampling.churn},
        "left_to_right": {"stop_id": stop_id},
    }
    return partial(METHODS[options.method.method].samplers[name], **own.get(name, {}))


def sampler_name(options: Options) -> str:
    """The chosen sampler, or the usual one of the method."""
    usual = next(iter(METHODS[options.method.method].samplers))
    return usual if options.sampling.sampler == "default" else options.sampling.sampler
