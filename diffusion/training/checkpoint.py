"""A checkpoint: a folder of safetensors, one JSON file and their checksums, which appears whole or not at all.

    checkpoints/step_00005000/{model,ema,optimizer,random}.safetensors, state.json, checksums.json

One that was damaged later on is told from the others and passed over.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion.process import DiffusionError
from diffusion.training.files import Sums, faults, replacing, sums, write_tensors

FOLDER = "checkpoints"
STATE, CHECKSUMS = "state.json", "checksums.json"
GROUPS = ("model", "ema", "optimizer", "random")  # of tensors, that training goes on from


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first, damaged ones among them."""
    return sorted(p for p in (run_dir / FOLDER).glob("step_" + "[0-9]" * 8) if p.is_dir())


def find_checkpoint(
    run_dir: Path,
    step: int | None = None,
    groups: Iterable[str] = (),
    note: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Path:
    """The newest intact checkpoint of a run, or that of `step`, which is to hold these groups of tensors.

    Damaged ones that are newer are named to `note`; raises DiffusionError naming what there is.
    """
    there = checkpoints(run_dir)
    found = there if step is None else [p for p in there if step_of(p) == step]
    if not found:
        wanted = "a checkpoint" if step is None else f"a checkpoint of step {step}"
        names = ", ".join(p.name for p in there) or "none"
        raise DiffusionError(
            f"{run_dir / FOLDER}: expected {wanted} (found: {names}); give the folder of a run that has one"
        )
    damaged = []
    for path in reversed(found):
        reason = fault(path, groups)
        if reason is None:
            for line in damaged:
                note(f"warning: {line}; {path.name} is used instead")
            return path
        damaged.append(f"{path}: damaged ({reason})")
    advice = "no checkpoint is intact: restore one, or begin anew in another folder"
    if step is not None:
        advice = "restore it, give another --milestone, or leave that out"
    raise DiffusionError(f"{'; '.join(damaged)}; {advice}")


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def fault(checkpoint: Path, groups: Iterable[str] = ()) -> str | None:
    """What is wrong with a checkpoint that is to hold these groups of tensors, in words; None if nothing is."""
    needed = {STATE, *(f"{name}.safetensors" for name in groups)}
    try:
        expected = _read_sums(checkpoint)
        if expected is None:
            there, reasons = {path.name for path in checkpoint.iterdir()}, _unreadable(checkpoint)
        else:
            there, reasons = expected.keys(), faults(checkpoint, expected)
    except (OSError, ValueError) as error:
        return str(error)
    reasons += [f"{checkpoint / name}: missing" for name in sorted(needed - there)]
    return reasons[0].removeprefix(f"{checkpoint}/") if reasons else None


def is_for_sampling(checkpoint: Path) -> bool:
    """Whether it was made to hold the averaged weights alone, and never what training goes on from."""
    try:
        names = {path.name for path in checkpoint.iterdir()} | (_read_sums(checkpoint) or {}).keys()
    except (OSError, ValueError):
        return False
    return {f"{name}.safetensors" for name in GROUPS} & names == {"ema.safetensors"}


def seal(checkpoint: Path) -> None:
    """Writes down what the files of a checkpoint are."""
    record = sums(checkpoint, (p.name for p in checkpoint.iterdir() if p.name != CHECKSUMS))
    (checkpoint / CHECKSUMS).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _read_sums(checkpoint: Path) -> Sums | None:
    """What `seal` wrote down, None where it did not; OSError or ValueError for anything else."""
    try:
        record = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        record = None
    if not isinstance(record, dict) or not all(_is_sum(name, its) for name, its in record.items()):
        raise ValueError(f"{CHECKSUMS}: not a record of files")
    return record


def _is_sum(name: str, its: Any) -> bool:
    kinds = {key: type(value) for key, value in its.items()} if isinstance(its, dict) else {}
    return Path(name).name == name and kinds == {"bytes": int, "sha256": str}


def _unreadable(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint of a version that kept no checksums: files that are cut short or no such files.

    safetensors refuses a file whose length is not the one that its beginning tells.
    """
    found = []
    for path in sorted(checkpoint.iterdir()):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.name == STATE:
                json.loads(path.read_text(encoding="utf-8"))
        except (OSError, SafetensorError, ValueError) as error:
            found.append(f"{path}: cannot be read ({error})")
    return found


def save(run_dir: Path, step: int, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any], keep: int) -> Path:
    """Writes a checkpoint of named groups of tensors and a JSON-able state; keeps the `keep` newest (0: all).

    Checkpoints of later steps go: they belong to a run that was given up for an older checkpoint of it. Raises OSError
    where the disk does not take it; the older ones are as they were then.
    """
    place = run_dir / FOLDER / f"step_{step:08d}"
    with replacing(place) as beside:
        beside.mkdir()
        for name, group in tensors.items():
            on_cpu = {key: value.detach().cpu().contiguous() for key, value in group.items()}
            write_tensors(beside / f"{name}.safetensors", on_cpu)
        (beside / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        seal(beside)
        if place.exists():
            _remove(place)
    for later in (p for p in checkpoints(run_dir) if step_of(p) > step):
        _remove(later)
    tidy(run_dir, step, keep)
    return place


def tidy(run_dir: Path, step: int, keep: int) -> None:
    """Removes what killed processes left, and checkpoints up to `step` but for the `keep` newest (0: none of them)."""
    for left_over in (run_dir / FOLDER).glob(".step_*"):
        shutil.rmtree(left_over)
    until = [p for p in checkpoints(run_dir) if step_of(p) <= step]
    for older in until[:-keep] if keep else []:
        _remove(older)


def _remove(checkpoint: Path) -> None:
    """Takes a checkpoint out of sight before it is taken apart."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")
    os.replace(checkpoint, hidden)
    shutil.rmtree(hidden)


def set_aside(checkpoint: Path) -> Path:
    """Gives a damaged checkpoint another name: training would count it, and write over it or remove it in the end."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    for number in count(2):
        if not aside.exists():
            return checkpoint.rename(aside)
        aside = checkpoint.with_name(f"{checkpoint.name}.damaged_{number}")


def load(checkpoint: Path, *names: str) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """The named groups of tensors and the state of a checkpoint; raises DiffusionError where a file is damaged."""
    try:
        groups = [load_file(checkpoint / f"{name}.safetensors") for name in names]
        return groups, json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
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
