"""The device that is computed on, and what can be compiled for it."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import torch
from torch import nn

from scripts.job.errors import UsageError


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait_for(device: torch.device) -> None:
    """Returns when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compile_trunk(denoiser: nn.Module) -> None:
    """Lets the first call of the trunk compile it; UsageError where torch.compile would not find a compiler."""
    if device().type == "cuda":
        if find_spec("triton") is None:
            raise UsageError("--compile: the package triton, which comes with CUDA builds of torch, is missing")
    elif shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UsageError("--compile: no C++ compiler found; install g++ or name one in the variable CXX")
    denoiser.trunk.compile(dynamic=True)  # for every batch and length alike
