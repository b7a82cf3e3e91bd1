"""Which method is trained, and on which tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from scripts.job.errors import UsageError

CHARACTERS = "char"


@dataclass
class MethodOptions:
    _argument_group_name: ClassVar[str] = "method"

    method: Literal["latent", "ar", "d3pm", "mdlm", "sedd", "gidd", "diffusion_bert"] = field(
        default="latent", metadata={"help": "what is trained: latent diffusion, or a baseline on tokens"}
    )
    recipe: str | None = field(
        default=None,
        metadata={"help": "options of latent diffusion by one name, reference or frontier; flags given go before them"},
    )
    bert_model: str | None = field(
        default=None, metadata={"help": "cached BERT whose weights diffusion_bert starts from, in place of --tx_*"}
    )


@dataclass
class TokenOptions:
    """What a text is made of, for methods that work on tokens."""

    _argument_group_name: ClassVar[str] = "tokens"

    tokenizer: str | None = field(
        default=None,
        metadata={"help": "cached tokenizer or model, or char for single characters (that of --enc_dec_model)"},
    )
    lengths: Literal["drawn", "modelled"] = field(
        default="drawn",
        metadata={
            "help": "how the model knows how long a text is: drawn from the training lengths (their nats are counted), "
            "or modelled: texts are filled with PAD up to --max_length, which the model has to write"
        },
    )
    condition_on_source: bool = field(
        default=False, metadata={"help": "texts are made from the sources of the corpus (its `source` or `src`)"}
    )
    token_counts: str | None = field(
        default=None,
        metadata={"help": "file of scripts.word_frequencies for DiffusionBERT (counted on the training texts)"},
    )

    def __post_init__(self):
        if self.lengths not in ("drawn", "modelled"):
            raise UsageError(f"--lengths {self.lengths!r} is not one of: drawn, modelled")
