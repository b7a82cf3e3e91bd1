"""The ways of training that are compared, all by the same Trainer on the same synthetic texts.

B texts in a batch, L positions, D latent width, N texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BartConfig, BartModel
from x_transformers.attend import Attend

from diffusion.denoiser import DenoiserOptions
from diffusion.process import Process
from diffusion.training.batches import WINDOW
from diffusion.training.objective import Batch, Objective
from latent_models.codec import Encoded
from latent_models.latent_cache import encoded
from latent_models.seq2seq_codec import LatentDtype
from latent_models.statistics import LatentStatistics
from scripts.bench.trained import Trained
from scripts.composition.latent_space import LatentData
from scripts.job.errors import UsageError

HEAD_DIM = 64


@dataclass
class Setting:
    """What is trained, on texts of which lengths; the latents are as wide as the trunk, as is their encoder."""

    _argument_group_name: ClassVar[str] = "setting"

    tx_dim: int = field(default=256, metadata={"help": "width of trunk, latents and encoder"})
    tx_depth: int = field(default=6, metadata={"help": "trunk layers"})
    self_condition_prob: float = field(default=0.5, metadata={"help": "share of samples that see an estimate of x0"})
    dropout: bool = field(default=False, metadata={"help": "dropout 0.1 in the trunk"})
    mixed_precision: Literal["no", "bf16"] = field(default="no", metadata={"help": "precision of matrix products"})
    latent_dtype: LatentDtype = field(default="float32", metadata={"help": "how latents are kept on disk"})
    shortest: int = field(default=12, metadata={"help": "shortest text in tokens; lengths are drawn uniformly"})
    longest: int = field(default=47, metadata={"help": "longest text in tokens"})
    max_length: int = field(default=64, metadata={"help": "positions that the plain way pads every text to"})
    encoder_layers: int = field(default=6, metadata={"help": "layers of the encoder (BART-base has 6)"})

    def __post_init__(self):
        _ = self.denoiser  # refuses a width or depth that cannot be
        if not 0 <= self.self_condition_prob <= 1:
            raise UsageError(f"--self_condition_prob {self.self_condition_prob}: expected a probability, 0 to 1")
        if not 1 <= self.shortest <= self.longest <= self.max_length:
            raise UsageError(
                f"--shortest {self.shortest} --longest {self.longest} --max_length {self.max_length}: expected "
                "lengths of 1 or more in this order"
            )
        if self.encoder_layers < 1:
            raise UsageError(f"--encoder_layers {self.encoder_layers}: expected at least 1")

    @property
    def denoiser(self) -> DenoiserOptions:
        return DenoiserOptions(
            self.tx_dim, self.tx_depth, scale_shift=True, disable_dropout=not self.dropout, self_condition=True
        )


class Texts:
    """Random token ids [N, max_length] of an epoch of `steps` batches, and an encoder of random weights to read them.

    Stands in for a codec where latents are cached: its texts are the numbers of the rows.
    """

    def __init__(self, setting: Setting, batch_size: int, steps: int, device: torch.device):
        config = BartConfig(
            d_model=setting.tx_dim,
            encoder_layers=setting.encoder_layers,
            encoder_attention_heads=setting.tx_dim // HEAD_DIM,
            encoder_ffn_dim=4 * setting.tx_dim,
            decoder_layers=1,
            decoder_attention_heads=1,
            decoder_ffn_dim=1,
            max_position_embeddings=setting.max_length,
        )
        torch.manual_seed(0)
        self.encoder = BartModel(config).get_encoder().to(device).eval().requires_grad_(False)
        self.width, self.max_length, self.fingerprint = setting.tx_dim, setting.max_length, "random"
        self.most_positions, self.latent_dtype = setting.max_length, setting.latent_dtype
        # Batches as sorting within a window makes them: each takes a small part of the lengths, here evenly spread.
        middle = (np.arange(steps)[:, None] + 0.5) / steps
        quantile = middle + ((np.arange(batch_size) + 0.5) / batch_size - 0.5) / max(steps, WINDOW)
        different = setting.longest - setting.shortest + 1
        self.lengths = (setting.shortest + quantile * different).astype(int).ravel()
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(4, config.vocab_size, (len(self.lengths), self.max_length), generator=generator)

    def positions(self, lengths: np.ndarray) -> np.ndarray:
        """One latent a token."""
        return lengths

    @torch.no_grad()
    def states(self, ids: Tensor, valid: Tensor) -> Tensor:
        """The encoder's states [B, L, D], zero where padded; they have unit variance as they come."""
        return self.encoder(ids, attention_mask=valid.long()).last_hidden_state * valid[..., None]

    def batch(self, indices: np.ndarray) -> Batch:
        """Ids [B, max_length], padded to the end: what has yet to be encoded."""
        lengths = torch.from_numpy(self.lengths[indices])
        return Batch(self.ids[indices], torch.arange(self.max_length) < lengths[:, None])

    # What the cache asks of a codec.

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        return [int(self.lengths[int(text)]) for text in texts]

    def encode(self, texts: Sequence[str]) -> Encoded:
        batch = self.batch(np.array(list(map(int, texts))))
        longest = int(batch.valid.sum(1).max())
        batch = batch.each(lambda part: part[:, :longest].to(self.encoder.device))
        return Encoded(self.states(batch.x0, batch.valid), batch.valid)

    def cached(self, folder: Path) -> LatentData:
        """All texts encoded once, on disk, as training reads them."""
        cache = encoded(self, list(map(str, range(len(self.lengths)))), folder, "bench", self.latent_dtype)
        return LatentData(cache, LatentStatistics.fit(cache.pieces(), cache.lengths), None)


@dataclass(frozen=True)
class EncodedEveryTime:
    """An objective on the states that an encoder makes of each batch anew."""

    objective: Objective
    texts: Texts
    stage: Callable[[str], AbstractContextManager]

    @property
    def process(self) -> Process:
        return self.objective.process

    def __call__(self, denoiser: nn.Module, batch: Batch, *times_and_noise) -> Tensor:
        with self.stage("encode"):
            states = self.texts.states(batch.x0, batch.valid)
        return self.objective(denoiser, Batch(states, batch.valid), *times_and_noise)


def plain(setting: Setting, texts: Texts, batch_size: int) -> Trained:
    """Unoptimised: float32, all padded to max_length, encoded at every step, nothing fused, nothing compiled."""
    trained = Trained(
        setting.denoiser, setting.tx_dim, texts, batch_size, self_condition_prob=setting.self_condition_prob
    )
    trainer = trained.trainer
    trainer.objective = EncodedEveryTime(trainer.objective, texts, lambda name: trainer.stage(name))
    for group in trainer.optimizer.param_groups:
        group.update(fused=False, foreach=False)
    trainer.ema.use_foreach = False
    for module in trainer.denoiser.modules():
        if isinstance(module, Attend):
            module.flash = False
    return trained


def ours(setting: Setting, texts: Texts, batch_size: int, folder: Path, compiled: bool = False) -> Trained:
    """As users train: from the cache in `folder`, trimmed, fused, in the precision asked for."""
    return Trained(
        setting.denoiser,
        setting.tx_dim,
        texts.cached(folder),
        batch_size,
        self_condition_prob=setting.self_condition_prob,
        mixed_precision=setting.mixed_precision,
        compiled=compiled,
    )


def cache_folder() -> TemporaryDirectory:
    """A folder for latents, gone after use."""
    return TemporaryDirectory(prefix="bench-latents-", ignore_cleanup_errors=True)
