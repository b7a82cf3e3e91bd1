"""Named sets of options for latent diffusion: `--recipe NAME` gives them, and what stands beside it on the command line
goes before. A new recipe is one more entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scripts.job.command_line import flags, given_flags, value_of
from scripts.job.errors import UsageError

RECIPES: dict[str, dict[str, Any]] = {
    # Of the system that the project began with, in the line of Lovelace et al. 2023 (arXiv:2212.09462).
    "reference": {
        "objective": "pred_x0", "loss_type": "l1", "beta_schedule": "linear", "latent_scale": "scalar",
        "scale_shift": True, "self_condition": True, "self_condition_prob": 0.5, "sampler": "ddim",
        "sampling_timesteps": 250,
    },
    # What has gained most since, where it costs no other codec: noise where the information is (TEncDM; the d that
    # scripts.measure_window names suits a codec better), an estimate fed back almost always and a narrow way into the
    # trunk (arXiv:2604.02028, ELF), fewer steps, and more of them at high noise (docs/performance.md).
    "frontier": {
        "objective": "pred_x0", "loss_type": "l2", "beta_schedule": "tan", "latent_scale": "dimension",
        "scale_shift": True, "self_condition": True, "self_condition_prob": 0.95, "bottleneck_dim": 128,
        "sampler": "ancestral", "sampling_timesteps": 50, "grid_power": 0.5,
    },
}  # fmt: skip


def with_recipe(argv: Sequence[str]) -> list[str]:
    """A command line with the flags of its --recipe that it does not give itself; UsageError for a name unknown."""
    name = value_of("recipe", argv)
    if name is None:
        return list(argv)
    if name not in RECIPES:
        raise UsageError(f"--recipe {name!r} is not one of: {', '.join(RECIPES)}")
    own = {flag: value for flag, value in RECIPES[name].items() if flag not in given_flags(argv)}
    return [*flags(own), *argv]
