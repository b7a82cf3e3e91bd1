"""Trains a codec on top of a frozen encoder: latents made of its states, and a decoder that writes all tokens at once.

    python -m scripts.train_autoencoder --dataset_name e2e --encoder bart-e2e                 # one latent a token
    python -m scripts.train_autoencoder --dataset_name e2e --encoder bart-e2e --latents 16    # 16 latents a text
    python -m scripts.codec_audit --dataset_name e2e --enc_dec_model bart-e2e-n16
    python train_text_diffusion.py --dataset_name e2e --enc_dec_model bart-e2e-n16

Half of the texts have states hidden, the others noised ones; then coordinates of the latents are dropped, and noise is
put on them (scripts/pretraining/autoencoder_loss.py). Latents are standardised, so that no training can make them
outgrow that noise, and a run finds them of unit variance.

B batch, L tokens, W width of the states.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffusion.process import check_seed
from diffusion.training.batches import EpochBatches
from diffusion.training.files import replacing
from diffusion.training.progress import progress_bar
from latent_models.autoencoder import HEAD, Autoencoder, Shape
from latent_models.autoencoder_codec import AutoencoderCodec
from latent_models.codec import ModelError, find_model
from latent_models.corpora import Corpus, DataOptions, load_corpus
from latent_models.frozen_encoder import FrozenEncoder
from latent_models.latent_cache import LatentCache, encoded
from latent_models.seq2seq_codec import token_accuracy
from latent_models.statistics import LatentStatistics
from scripts.composition.checks import check_writable
from scripts.composition.options import parse
from scripts.job.errors import UsageError, run
from scripts.job.hardware import device
from scripts.pretraining.autoencoder_loss import Corruption, CorruptionOptions, losses
from scripts.pretraining.model_training import new_folder, train, write_card

HELD_OUT = 500  # validation texts that the codec is judged on


@dataclass
class AutoencoderOptions:
    _argument_group_name: ClassVar[str] = "autoencoder"

    encoder: str = field(
        default="facebook/bart-base",
        metadata={"help": "cached model whose encoder is used: BERT, RoBERTa, MiniLM, BART or T5, by name or folder"},
    )
    latents: int = field(default=0, metadata={"help": "latents of a text, whatever its length (0: one for each token)"})
    latent_dim: int = field(default=64, metadata={"help": "width of a latent, where --latents says how many"})
    width: int = field(default=256, metadata={"help": "width of the network, a multiple of 32"})
    depth: int = field(default=3, metadata={"help": "layers before the latents, and layers behind them"})
    max_length: int = field(default=64, metadata={"help": "longest text in tokens; longer ones are cut"})
    steps: int = field(default=5000, metadata={"help": "optimizer steps"})
    batch_size: int = field(default=64, metadata={"help": "texts per step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak rate (AdamW, warm-up, half cosine to 0)"})
    random_seed: int = field(default=42, metadata={"help": "seed of weights, batches and noise"})
    name: str | None = field(
        default=None, metadata={"help": "name of the new folder (that of the encoder and -n16 for 16 latents, -tokens)"}
    )
    output_dir: str = field(default="pre_trained_models", metadata={"help": "folder that receives the model folder"})
    save_dir: str = field(default="saved_models", metadata={"help": "encoded splits are kept in its latents/"})

    def __post_init__(self):
        for flag, least in {
            "latents": 0, "latent_dim": 1, "width": 1, "depth": 1, "max_length": 3, "steps": 1, "batch_size": 2,
        }.items():  # fmt: skip
            if getattr(self, flag) < least:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected at least {least}")
        if self.width % HEAD:
            raise UsageError(f"--width {self.width}: is in heads of {HEAD}; expected a multiple of {HEAD}")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"--learning_rate {self.learning_rate}: expected a number above 0")
        check_seed("random_seed", self.random_seed)


class Lessons(NamedTuple):
    """The texts of a split and the states of the frozen encoder, from disk."""

    encoder: FrozenEncoder
    cache: LatentCache
    texts: Sequence[str]

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Raw states [B, L, W], valid [B, L] and tokens [B, L] of some texts."""
        states, valid = self.cache.batch(indices)
        ids = self.encoder.ids_of([self.texts[i] for i in indices.tolist()])
        return states.to(ids.device), valid.to(ids.device), ids

    @property
    def special(self) -> tuple[Tensor, int]:
        """The ids of special tokens, and that of padding among them."""
        tokenizer = self.encoder.tokenizer
        return torch.tensor(sorted(tokenizer.all_special_ids), device=self.encoder.device), tokenizer.pad_token_id


def read_split(encoder: FrozenEncoder, corpus: Corpus, name: str, save_dir: str) -> Lessons:
    texts, folder = getattr(corpus, name).texts, Path(save_dir) / "latents"
    return Lessons(encoder, encoded(encoder, texts, folder, f"{corpus.name}-{name}", progress=progress_bar), texts)


def several(batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Batches of at least two texts: one alone has no spread to be standardised by."""
    return (batch for batch in batches if len(batch) > 1)


@torch.no_grad()
def set_spread(model: Autoencoder, lessons: Lessons, batch_size: int) -> None:
    """Standardises each coordinate of each of the N latents by the clean latents of the whole split."""
    if model.compressor is None:
        return
    standard, rows = model.compressor.standard, np.arange(len(lessons.texts))
    standard.reset_running_stats()  # mean 0 and variance 1: latents pass as they are, but for EPSILON
    model.eval()

    def pieces() -> Iterator[Tensor]:
        for start in range(0, len(rows), batch_size):
            states, valid, _ = lessons.batch(rows[start : start + batch_size])
            yield model.latents(model.standardised(states, valid), valid).flatten(1).cpu()

    statistics = LatentStatistics.fit(pieces(), np.ones(len(rows), dtype=np.int64), "dimension")
    standard.running_mean.copy_(statistics.mean)
    standard.running_var.copy_(statistics.scale.square())


@torch.no_grad()
def held_out_facts(codec: AutoencoderCodec, held_out: Lessons, batch_size: int) -> dict[str, float]:
    """How well texts are told and written again from their own latents; what follows their ends is counted apart."""
    texts = list(held_out.texts[:HELD_OUT])
    decoded, found = [], []
    for rows in np.split(np.arange(len(texts)), range(batch_size, len(texts), batch_size)):
        read = codec.encode([texts[i] for i in rows])
        decoded += codec.decode(read.x0, read.valid)
        found.append(losses(codec.autoencoder, *held_out.batch(rows), *held_out.special))
    content, tokens, padding, pads, error = torch.stack([torch.stack(each) for each in found]).double().sum(0).tolist()
    wanted = codec.encoder.known(texts)
    return {
        "held_out_texts": len(texts),
        "held_out_token_accuracy": token_accuracy(codec.tokenizer, wanted, decoded),
        "held_out_exact_texts": sum(a == b for a, b in zip(wanted, decoded, strict=True)) / len(texts),
        "held_out_nats_per_token": content / tokens,
        "held_out_nats_per_position_behind_the_end": padding / max(pads, 1),
        "held_out_squared_error_of_states": error / tokens,
    }


def fitted(
    lessons: Lessons, options: AutoencoderOptions, corruption_options: CorruptionOptions
) -> tuple[AutoencoderCodec, list[dict]]:
    """A codec trained on the texts of a split, and the log of its training."""
    encoder, seed = lessons.encoder, options.random_seed
    statistics = LatentStatistics.fit(lessons.cache.pieces(), lessons.cache.lengths, "dimension")
    vocabulary = max(encoder.tokenizer.get_vocab().values()) + 1  # some have holes
    shape = Shape(
        encoder.width, vocabulary, options.max_length, options.latents, options.latent_dim, options.width, options.depth
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # torch draws initial weights from the global generator
        model = Autoencoder(shape)
    model.mean.copy_(statistics.mean)
    model.scale.copy_(statistics.scale)
    model.to(encoder.device)
    order = several(iter(EpochBatches(lessons.cache.lengths, options.batch_size, seed)))
    corruption = Corruption(corruption_options, torch.Generator().manual_seed(seed))

    def loss_of(indices: np.ndarray) -> Tensor:
        return losses(model, *lessons.batch(indices), *lessons.special, corruption).total

    log = train(model, order, loss_of, options.steps, options.learning_rate)
    set_spread(model, lessons, options.batch_size)
    return AutoencoderCodec(encoder, model), log


def codec_name(options: AutoencoderOptions) -> str:
    """What the new codec is called, unless --name says it: the encoder and how many latents a text has."""
    kind = f"n{options.latents}" if options.latents else "tokens"
    return options.name or f"{Path(options.encoder).name}-{kind}"


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    data, options, corruption = parse([DataOptions, AutoencoderOptions, CorruptionOptions], argv, __doc__)
    check_writable("save_dir", options.save_dir)
    folder, corpus = new_folder(options.output_dir, codec_name(options)), load_corpus(data)
    if len(corpus.train) < 2:
        raise UsageError(f"the train split of {corpus.name!r} has one text; expected at least 2 to train on")
    encoder = FrozenEncoder.load(find_model(options.encoder), options.max_length, device())
    if encoder.tokenizer.pad_token_id is None:
        raise ModelError(f"--encoder {options.encoder}: its tokenizer has no padding; expected an encoder's")
    lessons, held_out = (read_split(encoder, corpus, name, options.save_dir) for name in ("train", "valid"))
    codec, log = fitted(lessons, options, corruption)
    facts = {"parameters": sum(p.numel() for p in codec.autoencoder.parameters())}
    facts |= held_out_facts(codec, held_out, options.batch_size)
    per_text = f"{options.latents} latents of width {options.latent_dim} a text"
    if not options.latents:
        per_text = "one latent a token"
    about = (
        f"A codec on the frozen encoder of `{options.encoder}`, with {per_text} and a decoder that writes all tokens "
        f"at once, trained on the {len(corpus.train):,} training texts of the dataset `{corpus.name}`. Use it by "
        f"`--enc_dec_model {folder}`; the encoder must be on the machine too."
    )
    command = shlex.join(["python", "-m", "scripts.train_autoencoder", *argv])
    with replacing(folder) as beside:
        codec.save(beside, options.encoder)
        write_card(
            beside, folder.name, about, facts, command,
            {"options": asdict(options) | asdict(corruption), "dataset": corpus.name, **facts, "log": log},
        )  # fmt: skip
    print((folder / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(main)
