"""Which losses can be compared: those of runs that agree in texts, noise and measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from scripts.composition.options import GROUP_NAMES, GROUPS, MODEL_GROUPS
from scripts.report.runs import Run
from scripts.report.settings import differing

# Of what is fixed for a run: where things lie, what writes texts, and what the network begins with.
ASIDE = {"data_dir", "label_field", "latent_dtype", "decoder", "recipe", "bert_model"}
SHAPES_LOSS = {
    each.name
    for name, group in zip(GROUP_NAMES, GROUPS, strict=True)
    if name in MODEL_GROUPS and name != "denoiser"
    for each in fields(group)
    if each.name not in ASIDE
}


def apart(runs: Sequence[Run]) -> list[str]:
    """The options in which runs differ that make their losses ones of different things, be it a time's noise."""
    return [key for key in differing(runs) if key in SHAPES_LOSS]
