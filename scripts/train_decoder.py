"""Trains a copy of a codec's decoder to write texts from latents that are off, as a denoiser's are.

    python -m scripts.train_decoder --dataset_name e2e --enc_dec_model bart-e2e             # reads noised latents
    python -m scripts.train_decoder --resume_dir RUN [--decoder bart-e2e-noised]            # and what the run estimates
    python train_text_diffusion.py --eval_test --resume_dir RUN --decoder bart-e2e-adapted

Without a run, latents of training texts are noised. With one, a third of each batch is clean, a third noised, and a
third is estimates of the run: its x0_hat of training texts at the lower of its noise levels. Encoder, run and the
codec's folder stay as they are: the new decoder gets a model folder of its own, with a record of its codec.

B batch, L positions, D latent width.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from diffusion.process import check_seed
from diffusion.randomness import normal, uniform
from diffusion.training.batches import EpochBatches
from diffusion.training.files import disk_errors, replacing, write_text
from diffusion.training.objective import Batch
from latent_models.codec import find_model
from latent_models.codec_kinds import codec_type
from latent_models.corpora import DataOptions, load_corpus
from latent_models.decoders import RECORD, record, trainable_decoder
from latent_models.seq2seq_codec import CodecOptions, Seq2SeqCodec
from scripts.composition.build import load_system
from scripts.composition.checks import check_writable
from scripts.composition.latent_space import STATISTICS, LatentSpace
from scripts.composition.options import Options, parse
from scripts.evaluation.interface import (
    NATS,
    TOKENS,
    Kind,
    LatentTexts,
    check_latent,
    clean,
    estimated,
    noised,
    readings_by_kind,
)
from scripts.job.command_line import given_flags
from scripts.job.errors import UsageError, run
from scripts.job.hardware import device
from scripts.pretraining.model_training import masked, new_folder, train, write_card

HELD_OUT = 500  # validation texts that the decoder is judged on, before and after


@dataclass
class TrainDecoderOptions:
    _argument_group_name: ClassVar[str] = "decoder training"

    resume_dir: str | None = field(default=None, metadata={"help": "run whose estimates of x0 are read too"})
    milestone: int | None = field(default=None, metadata={"help": "step of its checkpoint (the newest)"})
    save_dir: str = field(
        default="saved_models", metadata={"help": "encoded splits are kept in its latents/ (that of the run)"}
    )
    output_dir: str = field(default="pre_trained_models", metadata={"help": "folder that receives the model folder"})
    name: str | None = field(
        default=None, metadata={"help": "the decoder of bart-e2e is named bart-e2e-NAME (noised; of a run: adapted)"}
    )
    noise_ratio: float = field(
        default=2.5,
        metadata={
            "help": "greatest sigma / alpha, the noise in standard deviations of the normalised latents: each noised "
            "text has one drawn evenly from 0 to it. 2 to 3 suits wide latents, 1 compressed ones; it should feel too "
            "strong, as words are lost then which only the others can tell"
        },
    )
    adapt_until: float = field(
        default=4.0,
        metadata={
            "help": "greatest sigma / alpha at which the run is asked for estimates, drawn evenly too. The noisier, "
            "the less an estimate knows of its text, and a decoder that has to guess learns not to look: stay where "
            "scripts.interface_audit still finds three of four tokens in estimates. 4 suits latents of width 128; it "
            "grows with the root of the width, 10 for 768"
        },
    )
    steps: int = field(default=1000, metadata={"help": "optimizer steps"})
    batch_size: int = field(default=64, metadata={"help": "texts per step"})
    learning_rate: float = field(default=3e-4, metadata={"help": "peak rate (AdamW, warm-up, half cosine to 0)"})
    decoder_token_dropout: float = field(
        default=0.3, metadata={"help": "share of decoder input tokens masked, so that it must read the latents"}
    )
    random_seed: int = field(default=42, metadata={"help": "seed of batches and noise"})

    def __post_init__(self):
        for flag in ("steps", "batch_size"):
            if getattr(self, flag) < 1:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected at least 1")
        for flag in ("noise_ratio", "adapt_until", "learning_rate"):
            if not 0 < getattr(self, flag) < math.inf:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected a number above 0")
        if not 0 <= self.decoder_token_dropout < 1:
            raise UsageError(f"--decoder_token_dropout {self.decoder_token_dropout}: expected 0 to below 1")
        check_seed("random_seed", self.random_seed)


def mixed(batch: Batch, kinds: Sequence[Kind], generator: torch.Generator) -> Tensor:
    """Latents [B, L, D] of which each kind has an equal share: rows take turns, as neighbours are of one length."""
    x0 = batch.x0
    u = uniform(x0.shape[:1], generator, x0.device, torch.float64)
    noise = normal(x0.shape, generator, x0.device)
    mixture = torch.empty_like(x0)
    for i, kind in enumerate(kinds[: len(x0)]):
        own = slice(i, None, len(kinds))
        mixture[own] = kind.latents(batch.each(lambda part, own=own: part[own]), u[own], noise[own])
    return mixture


def decoder_loss(
    model: PreTrainedModel, lessons: LatentTexts, kinds: Sequence[Kind], dropout: float, generator: torch.Generator
) -> Callable[[np.ndarray], Tensor]:
    """Cross-entropy of the true tokens, some of those before being masked, as a function of which texts are read."""
    codec = lessons.space.codec
    special, mask_id = codec.tokenizer.all_special_ids, codec.tokenizer.mask_token_id
    if mask_id is None:
        mask_id = codec.tokenizer.unk_token_id

    def loss_of(indices: np.ndarray) -> Tensor:
        batch, texts = lessons.batch(torch.from_numpy(indices))
        states = lessons.space.statistics.unnormalise(mixed(batch, kinds, generator))
        ids = codec.encoder.ids_of(texts)
        seen = model.prepare_decoder_input_ids_from_labels(ids)
        return model(
            encoder_outputs=BaseModelOutput(states),
            attention_mask=batch.valid.long(),
            decoder_input_ids=masked(seen, dropout, mask_id, special, generator),
            labels=ids,
        ).loss

    return loss_of


def nats_per_token(
    codec: Seq2SeqCodec, held_out: LatentTexts, kinds: dict[str, Kind], options: TrainDecoderOptions
) -> dict[str, float]:
    """What a token of the first held-out texts costs by the kind of latents read; the same noise for every codec."""
    first = torch.arange(min(HELD_OUT, len(held_out.texts)))
    found = readings_by_kind(codec, held_out, kinds, first, options.random_seed, options.batch_size)
    return {name: (sums[:, NATS].sum() / sums[:, TOKENS].sum()).item() for name, sums in found.items()}


def run_options(data: DataOptions, codec: CodecOptions, options: TrainDecoderOptions, given: set[str]) -> Options:
    """Those of the run of --resume_dir, and of these what was given; UsageError for a run on tokens."""
    flags = {**vars(data), **vars(codec), "save_dir": options.save_dir, "milestone": options.milestone}
    own = [f"--{flag}={value}" for flag, value in flags.items() if flag in given]
    chosen = Options.from_argv(["--gen_data", "--resume_dir", options.resume_dir, *own])
    check_latent(chosen)
    return chosen


def decoder_name(codec: CodecOptions, options: TrainDecoderOptions) -> str:
    """What the new decoder is called: after the codec beside which it lies."""
    return f"{Path(codec.enc_dec_model).name}-{options.name or ('noised' if options.resume_dir is None else 'adapted')}"


def check_kind(codec: CodecOptions) -> None:
    """Raises UsageError for a codec without a decoder that could be trained apart."""
    if codec_type(find_model(codec.enc_dec_model)) is not Seq2SeqCodec:
        raise UsageError(
            f"--enc_dec_model {codec.enc_dec_model}: writes by a decoder that is part of it; expected an "
            "encoder-decoder: train another with more --noise_ratio by scripts.train_autoencoder"
        )


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    data, codec_options, options = parse([DataOptions, CodecOptions, TrainDecoderOptions], argv, __doc__)
    given = given_flags(argv)
    kinds = {"clean": Kind(clean), "noised": Kind(noised, 0, options.noise_ratio)}
    if options.resume_dir is None:
        if alone := given & {"adapt_until", "milestone"}:
            raise UsageError(f"--{min(alone)}: is about the run of --resume_dir; give that too, or leave it out")
        check_writable("save_dir", options.save_dir)
        check_kind(codec_options)
        folder = new_folder(options.output_dir, decoder_name(codec_options, options))
        corpus = load_corpus(data)
        space = LatentSpace.fit(codec_options, corpus, Path(options.save_dir), device())
        splits = [space.data(corpus, name, None) for name in ("train", "valid")]
        read, origin = [kinds["noised"]], "noised latents"
    else:
        chosen = run_options(data, codec_options, options, given)
        check_kind(chosen.codec)
        codec_options = chosen.codec
        folder = new_folder(options.output_dir, decoder_name(codec_options, options))
        system, step = load_system(chosen)
        corpus, space = system.corpus, system.space
        splits = [system.data(name) for name in ("train", "valid")]
        kinds["estimated"] = Kind(estimated(system), 0, options.adapt_until)
        read = list(kinds.values())
        origin = f"clean and noised latents and the estimates by the run `{options.resume_dir}` (step {step:,})"
    lessons, held_out = (
        LatentTexts(space, data, split.texts)
        for data, split in zip(splits, (corpus.train, corpus.valid), strict=True)
    )
    codec, model, seed = space.codec, trainable_decoder(space.codec.model), options.random_seed
    before = nats_per_token(codec, held_out, kinds, options)
    loss = decoder_loss(model, lessons, read, options.decoder_token_dropout, torch.Generator().manual_seed(seed))
    order = iter(EpochBatches(lessons.data.lengths, options.batch_size, seed))
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # dropout, where the decoder has any, draws from the global generator
        log = train(model, order, loss, options.steps, options.learning_rate)
    name = codec_options.enc_dec_model
    about = (
        f"The decoder of `{codec_options.decoder or name}`, trained further on {origin} of the {len(corpus.train):,} "
        f"training texts of the dataset `{corpus.name}`. Its encoder is that of `{name}`, bit by bit: encode by "
        f"`--enc_dec_model {name}`, write by `--decoder {folder}`."
    )
    with replacing(folder) as beside:
        with disk_errors(beside):
            model.save_pretrained(beside)
        codec.tokenizer.save_pretrained(beside)
        space.statistics.save(beside / STATISTICS)
        write_text(beside / RECORD, record(codec.identity, name, STATISTICS))
        after = nats_per_token(codec.with_decoder(beside), held_out, kinds, options)
        facts = {"held_out_texts": min(HELD_OUT, len(held_out.texts))}
        facts |= {f"nats_per_token_{kind}_before": nats for kind, nats in before.items()}
        facts |= {f"nats_per_token_{kind}_after": nats for kind, nats in after.items()}
        command = shlex.join(["python", "-m", "scripts.train_decoder", *argv])
        training = {"options": asdict(options), "codec": asdict(codec_options), "dataset": corpus.name}
        write_card(beside, folder.name, about, facts, command, {**training, **facts, "log": log})
    print((folder / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(main)
