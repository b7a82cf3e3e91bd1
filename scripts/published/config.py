"""The settings beside published weights: what their config.json says, as flags of this project.

MDLM and GIDD have theirs at top level, in the form of the model hub; SEDD, and GIDD's training, under `model`, `graph`
and `noise`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.composition.options import fits, kind_name
from scripts.job.errors import UsageError
from scripts.job.reading import read_json
from scripts.published.weights import Published

CONFIG = "config.json"
HEADS = ("n_heads", "num_heads", "num_attention_heads")
WIDTH = ("hidden_size", "hidden_dim")
DEPTH = ("n_blocks", "num_hidden_layers")
CONDITION = ("cond_dim", "timestep_cond_dim")
LENGTH = ("model_length", "length", "max_seq_len")
PADDED = 128  # GIDD's training rounds the vocabulary up to a multiple of that


@dataclass(frozen=True)
class Config:
    """The content of a config.json; of one that is not there nothing."""

    path: Path
    values: dict[str, Any]

    @classmethod
    def beside(cls, weights: Path) -> Config:
        """That in the folder of a file of weights; UsageError for a damaged one."""
        path, expected = weights.parent / CONFIG, "the settings of the weights beside it: restore it, or move it away"
        if not path.exists():
            return cls(path, {})
        values = read_json(path, expected)
        if not isinstance(values, dict):
            raise UsageError(f"{path}: not a JSON object; expected {expected}")
        return cls(path, values)

    def told(self, names: tuple[str, ...], kind: type, parts: tuple[str, ...] = ("", "model")) -> Any:
        """The first of these settings that is there, at top level ("") or in a part; UsageError for another kind."""
        for part in parts:
            within = self.values if part == "" else self.values.get(part)
            for name in names:
                value = within.get(name) if isinstance(within, dict) else None
                if value is not None:
                    if not fits(value, kind):
                        raise UsageError(f"{self.path}: {name} is {value!r}; expected {kind_name(kind)}")
                    return value
        return None

    def check(self, published: Published) -> None:
        """Raises UsageError where it contradicts the shapes of the weights."""
        sizes = ((WIDTH, published.width), (DEPTH, published.depth), (CONDITION, published.condition))
        for names, size in (*sizes, (HEADS, published.heads)):
            told = self.told(names, int)
            if size is not None and told is not None and told != size:
                raise UsageError(f"{self.path}: {' or '.join(names)} is {told}, the weights beside it have {size}")
        rows, tokens = self.told(("vocab_size",), int), self.told(("tokens",), int)
        if rows is not None and published.rows not in (rows, padded(rows)):
            raise UsageError(f"{self.path}: vocab_size is {rows:,}, the weights beside it have {published.rows:,} rows")
        if tokens is not None and published.rows not in (tokens, tokens + 1):  # a mask is not counted
            raise UsageError(f"{self.path}: tokens is {tokens:,}, the weights beside it have {published.rows:,} rows")


def padded(rows: int) -> int:
    """The rows that GIDD's training has for a vocabulary."""
    return -(-rows // PADDED) * PADDED


@dataclass(frozen=True)
class Family:
    """One of the systems with this network: the flags that a config.json of theirs amounts to, and its tokenizer."""

    flags: Callable[[Config], dict[str, Any]]
    own_pad: bool = False  # it gives its tokenizer a PAD where that has none
    is_padded: bool = False  # to PADDED rows, of which those beyond the vocabulary are dead


def _mdlm(config: Config) -> dict[str, Any]:
    return {"time_input": "layerwise"} if config.told(("time_conditioning",), bool) else {}


def _sedd(config: Config) -> dict[str, Any]:
    graph = config.told(("type",), str, ("graph",)) or "absorb"
    scaled = config.told(("scale_by_sigma",), bool)
    if scaled is not None and scaled != (graph == "absorb"):
        raise UsageError(
            f"{config.path}: scale_by_sigma is {scaled} on graph {graph}; here scores are scaled by sigma on graph "
            "absorb, and on no other"
        )
    flags, schedule = {"graph": graph}, config.told(("type",), str, ("noise",))
    if schedule is not None:
        flags["noise_schedule"] = schedule
    if schedule == "geometric":  # loglinear does not read them
        ends = {name: config.told((name,), float, ("noise",)) for name in ("sigma_min", "sigma_max")}
        flags |= {name: end for name, end in ends.items() if end is not None}
    return flags


def _gidd(config: Config) -> dict[str, Any]:
    share = config.told(("p_uniform",), float)
    return {"disable_dropout": True} | ({} if share is None else {"p_uniform": share})


FAMILIES = {
    "mdlm": Family(_mdlm),
    "sedd": Family(_sedd),
    "gidd": Family(_gidd, own_pad=True, is_padded=True),
}
