"""Weights that others published of the network in diffusion/dit.py: every one accounted for, or refused in one line.

V rows of the vocabulary, W width, H heads, L positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from diffusion.denoiser import DenoiserOptions
from diffusion.dit import DiT, rotary_angles, rotary_frequencies
from latent_models.codec import find_model, first_line
from scripts.job.errors import UsageError

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
EMBEDDING, TIME = "vocab_embed.embedding", "sigma_map.mlp.0.weight"
HEAD = ("output_layer.linear.weight", "output_layer.linear.bias")
FREQUENCIES, COSINES, SINES = (f"rotary_emb.{name}" for name in ("inv_freq", "cos_cached", "sin_cached"))
LOGIT_BIAS = "logit_bias"  # GIDD's, one number added to every logit
NAMED = 8  # weights that a complaint names


@dataclass(frozen=True)
class Published:
    """A checkpoint: `weights` and their moving average, in float32 by the names that `DiT` has for them."""

    path: Path
    weights: dict[str, Tensor]
    averaged: dict[str, Tensor]  # the same ones where the file has no average
    updates: int | None  # of the average; None where the file has none
    heads: int | None  # by its rotary tables; None where the file has none

    @property
    def rows(self) -> int:
        return len(self.weights[EMBEDDING])

    @property
    def width(self) -> int:
        return self.weights[EMBEDDING].shape[1]

    @property
    def depth(self) -> int:
        return _depth(self.weights)

    @property
    def condition(self) -> int:
        return len(self.weights[TIME])

    def cut(self, rows: int) -> Published:
        """The same for the first `rows` ids alone."""

        def kept(weights: dict[str, Tensor]) -> dict[str, Tensor]:
            return weights | {name: weights[name][:rows] for name in (EMBEDDING, *HEAD)}

        return replace(self, weights=kept(self.weights), averaged=kept(self.averaged))


def read_published(place: str) -> Published:
    """The checkpoint at a path, or of a cached model; UsageError for anything that is not the whole network."""
    path = find_weights(place)
    state, shadows, updates = _content(path)
    own, tables, bias = _parted(_own(state, path))
    named = _accounted(own, path)
    heads = _heads(tables, named[EMBEDDING].shape[1], path)
    weights = _sound(named, bias, path)
    averaged = weights if shadows is None else _sound(_by_name(shadows, named, path), bias, path)
    return Published(path, weights, averaged, updates, heads)


def find_weights(place: str) -> Path:
    """The file of weights: a path to it, or the one in a folder or a cached model; UsageError or ModelError."""
    path = Path(place)
    if path.is_file():
        return path
    folder = path if path.is_dir() else find_model(place)
    found = sorted(folder.glob("*.safetensors")) or sorted(each for kind in PICKLED for each in folder.glob(kind))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"{folder}: holds no weights; expected a .safetensors or a PyTorch file in it")
    raise UsageError(f"{folder}: several files of weights ({', '.join(each.name for each in found)}); name one of them")


# --- what is in the file ----------------------------------------------------------------------------------------------


def _content(path: Path) -> tuple[Mapping[str, Any], Sequence[Any] | None, int | None]:
    """The state dict, and where the file is a training checkpoint its average and of how many updates that is."""
    content = _read(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path}: holds no weights; expected a state dict, or a training checkpoint with one")
    state = next((content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)), None)
    if state is None:
        return content, None, None
    average = content.get("ema")
    if average is None:
        return state, None, None
    try:
        shadows, updates = average["shadow_params"], average.get("num_updates")
    except (KeyError, TypeError, AttributeError):
        shadows = updates = None
    if not isinstance(shadows, (list, tuple)) or not (updates is None or type(updates) is int and updates >= 0):
        raise UsageError(f"{path}: its `ema` is no average of weights; expected shadow_params and num_updates")
    return state, shadows, 10**6 if updates is None else updates  # without a count the decay has no ramp


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever a foreign or damaged file makes the libraries raise
        raise UsageError(
            f"{path}: cannot be read as bare tensors ({first_line(error)}); restore it, or where it holds more than "
            "tensors save its state_dict and ema alone on the machine that it is from"
        ) from None


def _own(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The weights without the prefix of what the network was wrapped in."""
    anchors = [key for key in state if isinstance(key, str) and f".{key}".endswith(f".{EMBEDDING}")]
    if len(anchors) != 1:
        raise UsageError(
            f"{path}: not the published network: {len(anchors)} of its {len(state):,} entries are called "
            f"{EMBEDDING}, whatever stands before; expected one"
        )
    prefix = anchors[0].removesuffix(EMBEDDING)
    _refuse(path, unexpected=[str(key) for key in state if not (isinstance(key, str) and key.startswith(prefix))])
    own = {key.removeprefix(prefix): value for key, value in state.items()}
    _refuse(path, no_numbers=[name for name, value in own.items() if not _is_numbers(value)])
    return {name: value.detach() for name, value in own.items()}


def _is_numbers(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


def _parted(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
    """The network's parameters, its rotary tables, which are computed here, and GIDD's bias."""
    tables = {name: state[name] for name in (FREQUENCIES, COSINES, SINES) if name in state}
    weights = {name: value for name, value in state.items() if name not in tables and name != LOGIT_BIAS}
    return weights, tables, state.get(LOGIT_BIAS)


# --- whether it is the network ----------------------------------------------------------------------------------------


def _accounted(weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights in the order of the network; UsageError unless they are those of one of the size they tell."""
    _refuse(path, missing=[name for name in (EMBEDDING, TIME) if name not in weights])
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    depth = _depth(weights)
    if not all(len(shapes[name]) == 2 and min(shapes[name]) for name in (EMBEDDING, TIME)) or not depth:
        raise UsageError(
            f"{path}: not the published network: {EMBEDDING} is {list(shapes[EMBEDDING])}, {TIME} "
            f"{list(shapes[TIME])}, and it has {depth} blocks; expected matrices, and a block at least"
        )
    (rows, width), (condition, _) = shapes[EMBEDDING], shapes[TIME]
    if width % 2:
        raise UsageError(f"{path}: not the published network: its width is {width}; expected an even one")
    options = DenoiserOptions(tx_dim=width, tx_depth=depth, trunk="dit", dit_heads=1, dit_cond_dim=condition)
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in DiT(rows, options, None).named_parameters()}
    _refuse(
        path,
        missing=[name for name in expected if name not in shapes],
        unexpected=[name for name in shapes if name not in expected],
        of_another_shape=[
            f"{name} {list(shapes[name])} for {list(shape)}"
            for name, shape in expected.items()
            if shapes.get(name, shape) != shape
        ],
    )
    return {name: weights[name] for name in expected}


def _depth(weights: dict[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in weights if name.startswith("blocks.")})


def _heads(tables: dict[str, Tensor], width: int, path: Path) -> int | None:
    """Into how many heads the rotary tables part the width, None without tables; UsageError for tables unlike ours."""
    found = set()
    for name, table in tables.items():
        head_dim = (2 if name == FREQUENCIES else 1) * table.shape[-1] if table.ndim else 0
        if not head_dim or head_dim % 2 or width % head_dim:
            raise UsageError(f"{path}: {name} is {list(table.shape)}, which fits no heads of a network {width} wide")
        ours = _table(name, table, head_dim)
        # Tables are as exact as their type, and float32 angles of far positions are off by 1e-4.
        tolerance = max(1e-3, 4 * torch.finfo(table.dtype).eps)
        close = {"rtol": tolerance, "atol": 0.0} if name == FREQUENCIES else {"rtol": 0.0, "atol": tolerance}
        if ours.shape != table.shape or not torch.allclose(ours, table.float(), **close):
            raise UsageError(
                f"{path}: {name} is not the rotary table that is computed here (half-split, whole heads, base 10,000); "
                "the network would read positions otherwise than it was trained to"
            )
        found.add(width // head_dim)
    if len(found) > 1:
        raise UsageError(f"{path}: its rotary tables are of {' and '.join(map(str, sorted(found)))} heads")
    return next(iter(found), None)


def _table(name: str, table: Tensor, head_dim: int) -> Tensor:
    """What a rotary table should be: frequencies [W / 2H]; cosines or sines [1, L, 3, 1, W / H], values not turned."""
    if name == FREQUENCIES:
        return rotary_frequencies(head_dim).to(table.dtype).float()
    length = table.shape[1] if table.ndim > 1 else 0
    angles = rotary_angles(length, head_dim).repeat(1, 2)[None, :, None, None].repeat(1, 1, 3, 1, 1)
    angles[:, :, 2] = 0
    return (angles.cos() if name == COSINES else angles.sin()).to(table.dtype).float()


def _by_name(shadows: Sequence[Any], weights: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Averages, which stand in the order of the parameters, by their names."""
    if len(shadows) != len(weights) or not all(map(_is_numbers, shadows)):
        raise UsageError(f"{path}: its average has {len(shadows):,} parts; expected {len(weights):,}, one a tensor")
    averaged = dict(zip(weights, (shadow.detach() for shadow in shadows), strict=True))
    _refuse(
        path,
        of_another_shape=[
            f"the average of {name} {list(value.shape)} for {list(weights[name].shape)}"
            for name, value in averaged.items()
            if value.shape != weights[name].shape
        ],
    )
    return averaged


def _sound(weights: dict[str, Tensor], bias: Tensor | None, path: Path) -> dict[str, Tensor]:
    """The weights in float32, GIDD's bias among that of the logits; UsageError where one is not a finite number."""
    if bias is not None and bias.numel() != 1:
        raise UsageError(f"{path}: {LOGIT_BIAS} is {list(bias.shape)}; expected a single number")
    weights = {name: value.float().contiguous() for name, value in weights.items()}
    if bias is not None:
        weights[HEAD[1]] = weights[HEAD[1]] + bias.flatten().float()
    _refuse(path, not_finite=[name for name, value in weights.items() if not value.isfinite().all()])
    return weights


def _refuse(path: Path, **wrong: list[str]) -> None:
    """Raises UsageError that lists what is wrong, kind by kind, where anything is."""
    told = []
    for kind, names in wrong.items():
        if names:
            more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
            told.append(f"{len(names):,} {kind.replace('_', ' ')} ({', '.join(names[:NAMED])}{more})")
    if told:
        raise UsageError(f"{path}: not the weights of the published network: {', '.join(told)}")
