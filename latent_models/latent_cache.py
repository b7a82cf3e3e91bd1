"""An encoded split on disk: the states of all texts, unpadded and memory-mapped, in a folder named by what made them.

B batch, L positions, D latent width, N texts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from latent_models.claim import claimed
from latent_models.codec import Codec, ModelError, first_line
from latent_models.seq2seq_codec import LatentDtype

STORED = {"float32": np.dtype("<f4"), "bf16": np.dtype("<u2")}  # numpy has no bfloat16: its bits stand for it
Progress = Callable[[Iterable[int], str], Iterable[int]]  # of items and a title: the items, and how far they are
PIECE = 1_024  # rows that `pieces` reads at a time


@dataclass(frozen=True)
class LatentCache:
    """states [positions, D], memory-mapped, as `STORED` says; the rows of text i are at offsets[i]:offsets[i + 1]."""

    states: np.ndarray
    offsets: np.ndarray
    truncated: int  # texts that were cut at the codec's max_length

    @property
    def lengths(self) -> np.ndarray:
        """Length of each text [N] in positions."""
        return np.diff(self.offsets)

    def pieces(self) -> Iterator[Tensor]:
        """All states, some rows [n, D] at a time: no split is ever held in memory."""
        for start in range(0, len(self.states), PIECE):
            yield _floats(np.array(self.states[start : start + PIECE]))

    def batch(self, indices: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Raw states [B, L, D], zero where padded, and valid [B, L], L the longest of the batch."""
        indices = np.asarray(indices)
        starts, ends = self.offsets[indices, None], self.offsets[indices + 1, None]
        at = starts + np.arange((ends - starts).max())
        valid = at < ends
        states = np.take(self.states, np.minimum(at, ends - 1), axis=0)  # padding reads the text's last row again
        states[~valid] = 0
        return _floats(states), torch.from_numpy(valid)


def _floats(states: np.ndarray) -> Tensor:
    """float32 of what is stored."""
    read = torch.from_numpy(states)
    return read if read.dtype == torch.float32 else read.view(torch.bfloat16).float()


def encoded(
    codec: Codec,
    texts: Sequence[str],
    folder: Path,
    name: str,
    dtype: LatentDtype = "float32",
    batch_size: int = 64,
    progress: Progress = lambda starts, title: starts,
) -> LatentCache:
    """The cache of `texts` under `folder`, built first where it is not there yet; raises ModelError if it is damaged.

    Of many processes one builds and the others wait, and a build cut short does no harm, as `claimed` says. `progress`
    may show how far it is.
    """
    place = cache_folder(codec, texts, folder, name, dtype)
    about = {"codec": codec.fingerprint, "dtype": dtype, "width": codec.width, "texts": len(texts)}
    if not place.is_dir():
        if os.path.lexists(place):  # found out now, not after hours of encoding
            raise ModelError(f"{place}: not a folder; expected one of encoded texts, or none: move it away")
        with claimed(place, "states.npy", f"{name}: another process is encoding these texts; waiting for it") as file:
            if file is not None:
                starts = progress(range(0, len(texts), batch_size), f"encode {name}")
                _build(codec, texts, file, about, starts, batch_size)
    try:
        return _read(place, about, codec.most_positions)
    except Exception as error:  # numpy raises many kinds for a header that does not hold what it should
        raise ModelError(f"{place}: damaged ({first_line(error)}); delete the folder, it is made anew") from error


def cache_folder(codec: Codec, texts: Sequence[str], folder: Path, name: str, dtype: LatentDtype) -> Path:
    """Where `encoded` keeps the cache of these texts."""
    key = hashlib.sha256(f"{codec.fingerprint} {dtype}".encode())
    for text in texts:
        content = text.encode()
        key.update(len(content).to_bytes(8, "little") + content)
    return folder / f"{name}-{key.hexdigest()[:16]}"


def _read(place: Path, about: dict[str, Any], most: int) -> LatentCache:
    """Raises some error for whatever `_build` would not have written."""
    meta = json.loads((place / "meta.json").read_text(encoding="utf-8"))
    if not isinstance(meta, dict) or type(truncated := meta.pop("truncated", None)) is not int or meta != about:
        raise ValueError("meta.json is not that of these texts")
    offsets = np.array(np.lib.format.open_memmap(place / "offsets.npy", mode="r"))
    if offsets.dtype != np.int64 or offsets.shape != (about["texts"] + 1,) or offsets[0] != 0:
        raise ValueError("offsets.npy does not say where each text starts")
    if not (1 <= np.diff(offsets)).all() or not (np.diff(offsets) <= most).all():
        raise ValueError(f"offsets.npy has texts that are not 1 to {most} positions long")
    states = np.lib.format.open_memmap(place / "states.npy", mode="r")
    wanted = (int(offsets[-1]), about["width"]), STORED[about["dtype"]]
    if (states.shape, states.dtype) != wanted:
        raise ValueError(f"states.npy is {states.dtype} {states.shape}, expected {wanted[1]} {wanted[0]}")
    return LatentCache(states, offsets, truncated)


def _build(
    codec: Codec, texts: Sequence[str], file: BinaryIO, about: dict[str, Any], starts: Iterable[int], batch_size: int
) -> None:
    """Writes the states to `file`, the rest beside it. Written, not mapped: a full disk is an error, not a signal."""
    lengths = np.array(codec.token_lengths(texts))
    truncated = int((lengths > codec.max_length).sum())
    positions = codec.positions(lengths)
    offsets = np.concatenate([[0], np.cumsum(positions)])
    dtype = STORED[about["dtype"]]
    shape = (int(offsets[-1]), codec.width)
    np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    origin, row_bytes = file.tell(), codec.width * dtype.itemsize
    order = np.argsort(lengths, kind="stable")  # neighbours of one length need no padding
    for start in starts:
        chosen = order[start : start + batch_size]
        batch = codec.encode([texts[i] for i in chosen])
        states = batch.x0[batch.valid].cpu()  # [positions, D]
        if dtype == np.uint16:
            states = states.to(torch.bfloat16).view(torch.uint16)
        for i, rows in zip(chosen, states.split(positions[chosen].tolist()), strict=True):
            file.seek(origin + int(offsets[i]) * row_bytes)
            file.write(rows.numpy().data)
    folder = Path(file.name).parent
    content = BytesIO()  # of a full disk, numpy's own writing says nothing that could be told from other faults
    np.save(content, offsets)
    (folder / "offsets.npy").write_bytes(content.getbuffer())
    (folder / "meta.json").write_text(json.dumps(about | {"truncated": truncated}, indent=1), encoding="utf-8")
