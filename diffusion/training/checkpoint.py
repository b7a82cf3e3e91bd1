"""A checkpoint: a folder of safetensors and one JSON file, written beside its place and then renamed into it.

    checkpoints/step_00005000/{model,ema,optimizer,random}.safetensors and state.json
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion.process import DiffusionError

FOLDER = "checkpoints"


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(p for p in (run_dir / FOLDER).glob("step_" + "[0-9]" * 8) if p.is_dir())


def find_checkpoint(run_dir: Path, step: int | None = None) -> Path:
    """The newest checkpoint of a run, or that of `step`; raises DiffusionError naming what there is."""
    found = checkpoints(run_dir)
    if step is not None:
        found = [p for p in found if step_of(p) == step]
    if not found:
        wanted = "a checkpoint" if step is None else f"a checkpoint of step {step}"
        there = ", ".join(p.name for p in checkpoints(run_dir)) or "none"
        raise DiffusionError(
            f"{run_dir / FOLDER}: expected {wanted} (found: {there}); give the folder of a run that has one"
        )
    return found[-1]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def save(run_dir: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint of named groups of tensors and a JSON-able state; keeps the `keep` newest (0: all).

    Checkpoints of later steps go: they belong to a run that was given up for an older checkpoint of it.
    """
    place = run_dir / FOLDER / f"step_{step:08d}"
    for left_over in place.parent.glob(".step_*"):  # by a process that was killed
        shutil.rmtree(left_over)
    beside = place.with_name(f".{place.name}.new")
    beside.mkdir(parents=True)
    for name, group in tensors.items():
        on_cpu = {key: value.detach().cpu().contiguous() for key, value in group.items()}
        save_file(on_cpu, beside / f"{name}.safetensors")
    (beside / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    for file in beside.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if place.exists():
        _remove(place)
    os.replace(beside, place)
    older = [p for p in checkpoints(run_dir) if step_of(p) < step]
    later = [p for p in checkpoints(run_dir) if step_of(p) > step]
    for other in later + (older[: 1 - keep or None] if keep else []):
        _remove(other)
    return place


def _remove(checkpoint: Path) -> None:
    """Takes a checkpoint out of sight before it is taken apart."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")
    os.replace(checkpoint, hidden)
    shutil.rmtree(hidden)


def load(checkpoint: Path, *names: str) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """The named groups of tensors and the state of a checkpoint; raises DiffusionError where a file is damaged."""
    try:
        groups = [load_file(checkpoint / f"{name}.safetensors") for name in names]
        return groups, json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    except (OSError, SafetensorError, ValueError) as error:
        raise DiffusionError(f"{checkpoint}: cannot be read ({error}); use an older checkpoint") from error


def load_weights(model: nn.Module, weights: dict[str, Tensor], origin: Path) -> None:
    """Loads weights of exactly this model; raises DiffusionError naming the first that does not fit."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DiffusionError(f"{origin}: weights of another model ({reason}); check the options of the run") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors `<parameter index>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{i}.{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for i, values in state.items()
        for name, value in values.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave; the options of the groups stay those of `optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_states(generators: dict[str, torch.Generator]) -> dict[str, Tensor]:
    """The states of the training generators by name, and of torch's global ones, which dropout draws from."""
    states = {name: generator.get_state() for name, generator in generators.items()}
    states["torch"] = torch.get_rng_state()
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def load_random_states(generators: dict[str, torch.Generator], states: dict[str, Tensor]) -> None:
    """Puts back what `random_states` gave; raises DiffusionError where it comes from another kind of device."""
    for name, generator in generators.items():
        try:
            generator.set_state(states[name])
        except KeyError:
            raise DiffusionError(
                f"the checkpoint holds no random state {name!r}: an older version wrote it; finish the run with that"
            ) from None
        except RuntimeError as error:
            raise DiffusionError(
                f"the random state of the checkpoint is not one of this device ({generator.device.type}): go on with "
                "the kind of device that the run was started on"
            ) from error
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
