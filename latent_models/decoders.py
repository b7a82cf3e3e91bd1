"""A decoder trained apart from its encoder: a whole model folder whose encoder is the codec's, bit by bit, and a record
of the codec that it was made from.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from latent_models.codec import ModelError
from latent_models.strict_json import parse

RECORD = "decoder.json"
WANTED = "expected one that python -m scripts.train_decoder made from the model of --enc_dec_model"


def trainable_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of an encoder-decoder of which the decoder and its head can be trained, and nothing else.

    Embeddings that they share with the encoder become their own, so that texts are encoded as before. Raises ModelError
    for a T5 (or its like), which transformers would load with shared ones again, whatever was saved.
    """
    settings = model.config.to_dict() | {"tie_word_embeddings": False}
    if type(model.config).from_dict(settings).tie_word_embeddings:
        raise ModelError(
            f"a {model.config.model_type} always shares its embeddings between encoder and decoder, so that its "
            "decoder cannot be trained alone; expected a BART, or train a new decoder by scripts.train_autoencoder"
        )
    model = copy.deepcopy(model).requires_grad_(False)
    encoder, decoder, head = model.get_encoder(), model.get_decoder(), model.get_output_embeddings()
    for layer in (encoder.get_input_embeddings(), decoder.get_input_embeddings(), head):
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    decoder.requires_grad_(True)
    head.requires_grad_(True)
    return model


def record(identity: str, name: str, statistics: str) -> str:
    """The content of RECORD: the codec's identity and name, and the file of the latent statistics it expects."""
    return json.dumps({"codec": identity, "enc_dec_model": name, "statistics": statistics}, indent=1) + "\n"


def check_record(folder: Path, identity: str) -> None:
    """Raises ModelError where the folder has no record, or one of another codec than that of this identity."""
    try:
        found = parse((folder / RECORD).read_text(encoding="utf-8"))
        codec, name = found["codec"], found["enc_dec_model"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{folder}: no decoder by itself, as it has no readable {RECORD}; {WANTED}") from None
    if codec != identity:
        raise ModelError(
            f"{folder}: was made from another codec, {name} (SHA-256 {str(codec)[:12]}, not {identity[:12]}); {WANTED}"
        )


def check_encoder(folder: Path, ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    """Raises ModelError where a folder's encoder has other weights than ours; without weights, of other shapes."""
    own, found = (model.get_encoder().state_dict() for model in (ours, theirs))
    names = sorted(own.keys() | found.keys())
    other = [name for name in names if name not in own or name not in found or _differ(own[name], found[name])]
    if other:
        raise ModelError(f"{folder}: its encoder is not that of the codec ({other[0]} differs); {WANTED}")


def _differ(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or not (a.is_meta or torch.equal(a, b))
