"""Sentences of our own, and tiny random models with tokenizers trained on them, saved as local folders."""

import itertools
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END = "<|endoftext|>"


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """180 short sentences, no two alike."""
    who = ["The old miller", "A young sailor", "My neighbour", "Nobody", "Our teacher", "The tall nurse"]
    does = ["mended", "painted", "carried", "sold", "found"]
    what = ["a broken clock .", "three red kites .", "the garden gate .", "her father's boat .", "a box", "it ."]
    return [" ".join(words) for words in itertools.product(who, does, what)]


@pytest.fixture(scope="session")
def gpt2_folder(sentences: list[str], random_model) -> Path:
    """A random GPT-2 of 24 positions and width 16; its tokenizer has BOS and EOS but no padding token."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(sentences, vocab_size=320, special_tokens=[END], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=24, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )
    return random_model(GPT2LMHeadModel, config, tokenizer)
