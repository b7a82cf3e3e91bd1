"""Pickled weights -> safetensors, without running what a pickle may hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from latent_models.codec import first_line
from scripts.job.errors import UsageError


def convert(pickles: Sequence[Path], target: Path) -> None:
    """Writes the tensors of pickled state dicts to one safetensors file; raises UsageError for any other content.

    torch's `weights_only` reads tensors and plain containers and refuses everything that a pickle could execute.
    """
    tensors: dict[str, Tensor] = {}
    for path in pickles:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # whatever a foreign pickle makes torch raise
            raise UsageError(f"{path.name}: refused, not bare tensors ({first_line(error)})") from None
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
        ):
            raise UsageError(f"{path.name}: refused; expected a state dict, names of tensors and nothing else")
        tensors |= state
    save_file(_unshared(tensors), target, metadata={"format": "pt"})


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each with memory of its own, since safetensors stores no tied weights."""
    seen, own = set(), {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        own[name] = tensor.contiguous().clone() if storage in seen else tensor.contiguous()
        seen.add(storage)
    return own
