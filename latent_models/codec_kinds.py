"""Which codec a model folder holds: the one place that tells kinds of codecs apart."""

from __future__ import annotations

from pathlib import Path

from latent_models.autoencoder_codec import KIND, RECORD, AutoencoderCodec
from latent_models.codec import ModelError, first_line
from latent_models.seq2seq_codec import Seq2SeqCodec
from latent_models.strict_json import parse

KINDS: dict[str, type[AutoencoderCodec]] = {KIND: AutoencoderCodec}


def codec_type(folder: Path) -> type[Seq2SeqCodec] | type[AutoencoderCodec]:
    """The class whose `load` reads the folder: as its record says, else that of encoder-decoders."""
    path = folder / RECORD
    if not path.is_file():
        return Seq2SeqCodec
    try:
        return KINDS[parse(path.read_text(encoding="utf-8"))["kind"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: names no known kind of codec ({first_line(error)}); expected one of: {', '.join(KINDS)}"
        ) from error
