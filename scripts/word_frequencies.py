"""Counts how often each token occurs in the training texts, for DiffusionBERT's spindle schedules.

    python -m scripts.word_frequencies --dataset_name e2e --tokenizer bert-base-uncased --output_file COUNTS.safetensors

Training counts by itself where --token_counts names no file; this is for counts of another, larger corpus.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from diffusion.training.files import replacing, write_tensors
from latent_models.corpora import DataOptions, load_corpus
from latent_models.seq2seq_codec import CodecOptions
from scripts.composition.checks import check_file
from scripts.composition.method_options import TokenOptions
from scripts.composition.options import parse
from scripts.composition.token_space import make_token_codec
from scripts.job.console import note
from scripts.job.errors import UsageError, run

SHOWN = 10


@dataclass
class FrequencyOptions:
    _argument_group_name: ClassVar[str] = "output"

    output_file: str | None = field(default=None, metadata={"help": "a .safetensors file"})

    def __post_init__(self):
        if self.output_file is None or Path(self.output_file).suffix != ".safetensors":
            given = "" if self.output_file is None else f" {self.output_file}"
            raise UsageError(f"--output_file{given}: expected a file to write, one that ends in .safetensors")


def main() -> None:
    output, data, codec_options, tokens = parse(
        [FrequencyOptions, DataOptions, CodecOptions, TokenOptions], description=__doc__
    )
    check_file("output_file", output.output_file)
    corpus = load_corpus(data)
    codec = make_token_codec(tokens, codec_options, corpus, data.running_text is not None)
    split = codec.encode_split(corpus.train.texts)
    if split.truncated:
        note(f"{split.truncated:,} of {len(corpus.train):,} texts were cut at --max_length {codec.max_length}")
    counts = codec.token_counts(split)
    with replacing(Path(output.output_file)) as beside:
        write_tensors(beside, {"token_counts": counts})
    seen = int((counts > 0).sum())
    print(f"{output.output_file}: {int(counts.sum()):,} tokens, {seen:,} of {len(counts):,} types seen; most frequent:")
    for i in counts.argsort(descending=True)[: min(SHOWN, seen)].tolist():
        print(f"  {int(counts[i]):>10,}  {codec.tokenizer.convert_ids_to_tokens(i)!r}")


if __name__ == "__main__":
    run(main)
