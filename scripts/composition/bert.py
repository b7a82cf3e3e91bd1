"""A cached BERT as the trunk of DiffusionBERT."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForMaskedLM

from diffusion.bert_denoiser import BertDenoiser
from diffusion.process import Process
from latent_models.codec import ModelError, check_complete, reason
from latent_models.token_codec import TokenCodec


def load_bert(folder: Path, codec: TokenCodec, process: Process, time_input: str) -> nn.Module:
    """The denoiser made of a cached masked language model; ModelError where the folder holds none that fits."""
    try:
        model, told = AutoModelForMaskedLM.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
        with torch.no_grad():
            model(torch.zeros(1, 1, dtype=torch.long))  # settings that cannot work are found now
    except Exception as error:  # transformers raises many kinds for a folder that does not hold what it should
        raise ModelError(
            f"{folder}: no masked language model ({reason(folder, error)}); expected a BERT with safetensors"
        ) from error
    check_complete(folder, told)
    if model.config.model_type not in ("bert", "roberta"):
        raise ModelError(f"{folder}: a model of type {model.config.model_type}; expected bert or roberta")
    tokenizer = codec.tokenizer
    if model.config.vocab_size != codec.vocab_size:
        raise ModelError(
            f"{folder}: has {model.config.vocab_size:,} tokens, the tokenizer {codec.vocab_size:,}; expected the "
            "tokenizer of the same model: leave out --tokenizer"
        )
    denoiser = BertDenoiser(model, tokenizer.cls_token_id, timesteps=process.timesteps, time_input=time_input)
    room = denoiser.positions - (2 if time_input == "token" else 1)  # less [CLS] and the time
    if codec.max_length > room:
        raise ModelError(f"{folder}: has room for {room} tokens; expected --max_length of at most that")
    return denoiser
