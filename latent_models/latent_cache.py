"""An encoded split on disk: the states of all texts, unpadded and memory-mapped, in a folder named by what made them.

B batch, L positions, D latent width, N texts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from latent_models.codec import ModelError
from latent_models.seq2seq_codec import Seq2SeqCodec


@dataclass(frozen=True)
class LatentCache:
    """states [tokens, D] float32 (memory-mapped), the rows of text i at offsets[i]:offsets[i + 1]."""

    states: np.ndarray
    offsets: np.ndarray
    truncated: int  # texts that were cut at the codec's max_length

    @property
    def lengths(self) -> np.ndarray:
        """Length of each text [N] in positions."""
        return np.diff(self.offsets)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Raw states [B, L, D], zero where padded, and valid [B, L], L the longest of the batch."""
        rows = [self.states[self.offsets[i] : self.offsets[i + 1]] for i in indices]
        lengths = torch.tensor([len(row) for row in rows])
        states = torch.zeros(len(rows), int(lengths.max()), self.states.shape[1])
        for i, row in enumerate(rows):
            states[i, : len(row)] = torch.from_numpy(np.array(row))
        return states, torch.arange(states.shape[1]) < lengths[:, None]


def encoded(codec: Seq2SeqCodec, texts: Sequence[str], folder: Path, name: str, batch_size: int = 64) -> LatentCache:
    """The cache of `texts` under `folder`, built first where it is not there yet; a build cut short leaves nothing.

    Raises ModelError where what is there is damaged.
    """
    key = hashlib.sha256(codec.fingerprint.encode())
    for text in texts:
        key.update(text.encode() + b"\0")
    place = folder / f"{name}-{key.hexdigest()[:16]}"
    if not place.is_dir():
        _build(codec, texts, place, name, batch_size)
    try:
        meta = json.loads((place / "meta.json").read_text(encoding="utf-8"))
        states, offsets = np.load(place / "states.npy", mmap_mode="r"), np.load(place / "offsets.npy")
    except (OSError, ValueError, EOFError) as error:
        raise ModelError(f"{place}: damaged ({error}); delete the folder, it is made anew") from error
    return LatentCache(states, offsets, meta["truncated"])


def _build(codec: Seq2SeqCodec, texts: Sequence[str], place: Path, name: str, batch_size: int) -> None:
    lengths = np.array(codec.token_lengths(texts))
    truncated = int((lengths > codec.max_length).sum())
    lengths = np.minimum(lengths, codec.max_length)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    beside.mkdir(parents=True, exist_ok=True)
    try:
        states = np.lib.format.open_memmap(
            beside / "states.npy", mode="w+", dtype=np.float32, shape=(int(offsets[-1]), codec.width)
        )
        order = np.argsort(lengths, kind="stable")  # neighbours of one length need no padding
        starts = range(0, len(order), batch_size)
        for start in tqdm(starts, desc=f"encode {name}", file=sys.stderr, mininterval=1.0):
            chosen = order[start : start + batch_size]
            batch = codec.encode([texts[i] for i in chosen])
            for row, i in zip(batch.x0.cpu().numpy(), chosen, strict=True):
                states[offsets[i] : offsets[i + 1]] = row[: lengths[i]]
        states.flush()
        np.save(beside / "offsets.npy", offsets)
        meta = {"codec": codec.fingerprint, "texts": len(texts), "truncated": truncated}
        (beside / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        try:
            os.replace(beside, place)
        except OSError:
            if not place.is_dir():  # else another run built the same cache meanwhile
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
