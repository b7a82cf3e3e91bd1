"""Pretrains a small BART codec and a small GPT-2 scorer, tokenizers included, from the texts of any corpus.

    python -m scripts.pretrain_models --dataset_name demo --models both --name demo

writes `pre_trained_models/bart-demo` and `pre_trained_models/gpt2-demo`, each with a model card; what is there is
never overwritten. This is how the system works where no model can be downloaded. The BART is a denoising autoencoder:
tokens of its input are masked (Lewis et al. 2020, arXiv:1910.13461) and its encoder states are noised, so that the
decoder also reads states that are slightly off, which is what a diffusion model will hand it.

B batch, L positions, D width.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import BaseModelOutput

from diffusion.process import check_seed
from diffusion.randomness import normal, uniform
from diffusion.training.batches import EpochBatches
from diffusion.training.files import disk_errors, replacing
from latent_models.corpora import Corpus, DataOptions, load_corpus
from latent_models.frozen_encoder import FrozenEncoder
from latent_models.seq2seq_codec import Seq2SeqCodec, token_accuracy
from scripts.composition.options import parse
from scripts.job.console import note
from scripts.job.errors import UsageError, run
from scripts.job.hardware import device
from scripts.pretraining.model_training import masked, new_folder, train, write_card

BART_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # ids 0..4, as in the published BART
READS = 0.9  # share of held-out tokens that a codec should write back at their place
END_OF_TEXT = "<|endoftext|>"


@dataclass
class PretrainOptions:
    _argument_group_name: ClassVar[str] = "pretraining"

    models: Literal["bart", "gpt2", "both"] = field(default="both", metadata={"help": "which models to train"})
    name: str | None = field(default=None, metadata={"help": "models are named bart-NAME and gpt2-NAME (the dataset)"})
    output_dir: str = field(default="pre_trained_models", metadata={"help": "folder that receives the model folders"})
    vocab_size: int = field(default=1024, metadata={"help": "size of the byte-level BPE vocabularies"})
    max_length: int = field(default=64, metadata={"help": "longest text in tokens; models have twice the positions"})
    width: int = field(default=96, metadata={"help": "width of the BART, hence of the latents"})
    depth: int = field(default=3, metadata={"help": "layers of the BART encoder and of its decoder"})
    bart_steps: int = field(default=2000, metadata={"help": "optimizer steps of the BART"})
    mask_ratio: float = field(default=0.1, metadata={"help": "share of input tokens masked in half of the texts"})
    latent_noise: float = field(
        default=0.5, metadata={"help": "greatest noise on encoder states, in units of their standard deviation"}
    )
    decoder_token_dropout: float = field(
        default=0.3, metadata={"help": "share of decoder input tokens masked, so that it must read the encoder"}
    )
    gpt2_width: int = field(default=128, metadata={"help": "width of the GPT-2"})
    gpt2_depth: int = field(default=3, metadata={"help": "layers of the GPT-2"})
    gpt2_steps: int = field(default=1500, metadata={"help": "optimizer steps of the GPT-2"})
    batch_size: int = field(default=64, metadata={"help": "texts per step"})
    learning_rate: float = field(default=2e-3, metadata={"help": "peak rate (AdamW, warm-up, half cosine to 0)"})
    random_seed: int = field(default=42, metadata={"help": "seed of weights, batches and noise"})

    def __post_init__(self):
        for flag, least in {
            "vocab_size": 1, "max_length": 3, "width": 1, "depth": 1, "bart_steps": 1, "gpt2_width": 1, "gpt2_depth": 1,
            "gpt2_steps": 1, "batch_size": 1,
        }.items():  # fmt: skip
            if getattr(self, flag) < least:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected at least {least}")
        if self.width % 32 or self.gpt2_width % 32:
            raise UsageError("--width and --gpt2_width are in heads of 32: expected multiples of 32")
        for flag in ("mask_ratio", "decoder_token_dropout"):
            if not 0 <= getattr(self, flag) < 1:
                raise UsageError(f"--{flag} {getattr(self, flag)}: expected 0 to below 1")
        if not 0 <= self.latent_noise < math.inf:
            raise UsageError(f"--latent_noise {self.latent_noise}: expected 0 or more")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"--learning_rate {self.learning_rate}: expected a number above 0")
        check_seed("random_seed", self.random_seed)


# --- tokenizers -----------------------------------------------------------------------------------------------------


def train_bpe(texts: list[str], vocab_size: int, special_tokens: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer; every text can be written in it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def bart_tokenizer(texts: list[str], options: PretrainOptions) -> PreTrainedTokenizerBase:
    bpe = train_bpe(texts, options.vocab_size, BART_SPECIAL)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return BartTokenizer(
        tokenizer_object=bpe, model_max_length=options.max_length, bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", cls_token="<s>", sep_token="</s>",
    )  # fmt: skip


def gpt2_tokenizer(texts: list[str], options: PretrainOptions) -> PreTrainedTokenizerBase:
    bpe = train_bpe(texts, options.vocab_size, [END_OF_TEXT])
    return GPT2Tokenizer(
        tokenizer_object=bpe, model_max_length=2 * options.max_length, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
    )  # fmt: skip


# --- training -------------------------------------------------------------------------------------------------------


class Pretrained(NamedTuple):
    """A trained model, what is known of it, and the log of its training."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    facts: dict[str, float]
    log: list[dict]


def batches(ids: list[list[int]], options: PretrainOptions, pad_id: int) -> Iterator[Tensor]:
    """Endless padded batches [B, L] of token ids."""
    for chosen in EpochBatches([len(row) for row in ids], options.batch_size, options.random_seed):
        yield pad_sequence([torch.tensor(ids[i]) for i in chosen], batch_first=True, padding_value=pad_id)


def bart_loss(model: BartForConditionalGeneration, options: PretrainOptions, generator: torch.Generator):
    """Cross-entropy of the clean text from a text with masked tokens and noised encoder states."""
    pad, special = model.config.pad_token_id, range(len(BART_SPECIAL))
    mask_id = BART_SPECIAL.index("<mask>")

    def loss_of(ids: Tensor) -> Tensor:
        ids = ids.to(model.device)
        valid = ids != pad  # [B, L]
        corrupted = uniform((len(ids), 1), generator, ids.device) < 0.5
        states = model.get_encoder()(
            masked(ids, options.mask_ratio * corrupted, mask_id, special, generator), attention_mask=valid.long()
        )[0]
        # Relative to the spread of the states themselves, so that larger states cannot outgrow the noise.
        spread = states[valid].std(0)
        sigma = options.latent_noise * uniform((len(ids), 1, 1), generator, ids.device)
        states = states + sigma * spread * normal(states.shape, generator, ids.device)
        start = torch.full_like(ids[:, :1], model.config.decoder_start_token_id)
        seen = masked(ids[:, :-1], options.decoder_token_dropout, mask_id, special, generator)
        return model(
            encoder_outputs=BaseModelOutput(states),
            attention_mask=valid.long(),
            decoder_input_ids=torch.cat([start, seen], 1),
            labels=ids.masked_fill(~valid, -100),
        ).loss

    return loss_of


def pretrain_bart(corpus: Corpus, options: PretrainOptions) -> Pretrained:
    tokenizer = bart_tokenizer(corpus.train.texts, options)
    torch.manual_seed(options.random_seed)  # transformers draws initial weights from the global generator
    model = BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(tokenizer), d_model=options.width, max_position_embeddings=2 * options.max_length,
            encoder_layers=options.depth, decoder_layers=options.depth,
            encoder_attention_heads=options.width // 32, decoder_attention_heads=options.width // 32,
            encoder_ffn_dim=4 * options.width, decoder_ffn_dim=4 * options.width,
            dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
            bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
            forced_bos_token_id=0, forced_eos_token_id=2,
        )
    ).to(device())  # fmt: skip
    ids = tokenizer(corpus.train.texts, truncation=True, max_length=options.max_length)["input_ids"]
    data = batches(ids, options, tokenizer.pad_token_id)
    generator = torch.Generator().manual_seed(options.random_seed)
    log = train(model, data, bart_loss(model, options, generator), options.bart_steps, options.learning_rate)
    codec = Seq2SeqCodec(model, FrozenEncoder(model.get_encoder(), tokenizer, options.max_length))
    facts = {"parameters": model.num_parameters(), **held_out_facts(codec, corpus.valid.texts[:500])}
    return Pretrained(model, tokenizer, facts, log)


def held_out_facts(codec: Seq2SeqCodec, texts: Sequence[str]) -> dict[str, float]:
    """How well a codec writes what it has read, of texts as far as it reads them."""
    known, decoded = codec.encoder.known(texts), codec.reconstruct(texts, "beam")
    return {
        "held_out_sentences": len(texts),
        "held_out_token_accuracy": token_accuracy(codec.tokenizer, known, decoded),
        "held_out_exact_sentences": sum(a == b for a, b in zip(known, decoded, strict=True)) / len(texts),
    }


def warn_of_reading(folder: Path, facts: dict, options: PretrainOptions) -> None:
    """Says so where a codec does not give texts back, as no diffusion on its latents will write better ones."""
    if facts["held_out_token_accuracy"] < READS:
        note(
            f"warning: {folder}: of the tokens of {facts['held_out_sentences']:,} held-out texts "
            f"{facts['held_out_token_accuracy']:.0%} stand at their place when it has read and written them; a codec "
            f"should reach {READS:.0%}: try --decoder_token_dropout 0.9 ({options.decoder_token_dropout:g} here) and "
            f"more --bart_steps ({options.bart_steps:,})"
        )


def pretrain_gpt2(corpus: Corpus, options: PretrainOptions) -> Pretrained:
    tokenizer = gpt2_tokenizer(corpus.train.texts, options)
    torch.manual_seed(options.random_seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_embd=options.gpt2_width, n_layer=options.gpt2_depth,
            n_head=options.gpt2_width // 32, n_positions=2 * options.max_length, bos_token_id=0, eos_token_id=0,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    ).to(device())  # fmt: skip
    end = tokenizer.eos_token_id
    ids = tokenizer(corpus.train.texts, truncation=True, max_length=options.max_length)["input_ids"]
    padding = -100  # also the index that cross-entropy ignores
    data = batches([[end, *row, end] for row in ids], options, padding)

    def loss_of(rows: Tensor) -> Tensor:
        rows = rows.to(model.device)
        return model(rows.clamp(min=0), attention_mask=(rows != padding).long(), labels=rows).loss

    log = train(model, data, loss_of, options.gpt2_steps, options.learning_rate)
    held_out = tokenizer(corpus.valid.texts[:1000], truncation=True, max_length=options.max_length)["input_ids"]
    with torch.no_grad():
        rows = [torch.tensor([[end, *row]], device=model.device) for row in held_out]
        nll = sum(model(row, labels=row).loss.item() * (row.numel() - 1) for row in rows)
    nll /= sum(row.numel() - 1 for row in rows)
    facts = {"parameters": model.num_parameters(), "held_out_perplexity": math.exp(nll)}
    return Pretrained(model, tokenizer, facts, log)


def main(argv: list[str] | None = None) -> None:
    data, options = parse([DataOptions, PretrainOptions], argv, description=__doc__)
    corpus = load_corpus(data)
    options.name = options.name or corpus.name
    command = " ".join(["python -m scripts.pretrain_models", *(sys.argv[1:] if argv is None else argv)])
    trainers_of = {"gpt2": pretrain_gpt2, "bart": pretrain_bart}  # the codec last, as a warning may follow it
    kinds = list(trainers_of) if options.models == "both" else [options.models]
    folders = {kind: new_folder(options.output_dir, f"{kind}-{options.name}") for kind in kinds}
    for kind, folder in folders.items():
        start = time.monotonic()
        model, tokenizer, facts, log = trainers_of[kind](corpus, options)
        seconds = time.monotonic() - start
        about = (
            f"Trained from scratch on the {len(corpus.train):,} training texts of the dataset `{corpus.name}`, "
            "tokenizer included. Nothing was downloaded."
        )
        training = {"options": asdict(options), "dataset": corpus.name, "seconds": round(seconds), **facts, "log": log}
        cores = "a GPU" if device().type == "cuda" else f"{torch.get_num_threads()} CPU cores"
        rows = facts | {"training time": f"{seconds / 60:.0f} min on {cores}"}
        with replacing(folder) as beside:
            with disk_errors(beside):
                model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
            write_card(beside, folder.name, about, rows, command, training)
        print((folder / "README.md").read_text(encoding="utf-8"), flush=True)
        if kind == "bart":
            warn_of_reading(folder, facts, options)


if __name__ == "__main__":
    run(main)
