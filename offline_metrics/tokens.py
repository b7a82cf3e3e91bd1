"""Word tokens and n-grams, the common ground of diversity and memorization."""

import sys
from collections.abc import Iterator, Sequence
from functools import cache

import spacy
from spacy.tokenizer import Tokenizer


@cache
def english_tokenizer() -> Tokenizer:
    """spaCy's rule tokenizer for English; it needs no downloaded model."""
    return spacy.blank("en").tokenizer


def tokenise(texts: Sequence[str]) -> list[list[str]]:
    """Tokens of each text, case and whitespace tokens kept."""
    # Interned, because the n-grams of a training corpus hold every token n times.
    return [[sys.intern(token.text) for token in document] for document in english_tokenizer().pipe(texts)]


def ngrams(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """All runs of n tokens inside one text, repeats included."""
    return zip(*(tokens[start:] for start in range(n)), strict=False)
