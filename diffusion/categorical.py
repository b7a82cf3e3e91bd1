"""Probabilities of tokens, and drawing from them: inversion of cumulated probabilities in float64.

The usual race argmax(log p + Gumbel) in single precision cuts the Gumbel's tail (at 16.6 instead of 36.7), so that
rare tokens lose against a likely one far too often: samples look fluent and lack entropy (Zheng et al. 2024,
arXiv:2409.02908). Legend: V vocabulary.
"""

import torch
from torch import Tensor


def sample_categorical(weights: Tensor, u: Tensor) -> Tensor:
    """Token ids [...] with the probabilities weights / sum(weights), weights [..., V] >= 0, at uniforms u [...].

    An id of weight 0 is never drawn. A row without any weight raises ValueError rather than giving a token.
    """
    cumulated = weights.double().cumsum(-1)
    total = cumulated[..., -1:]
    if not ((total > 0) & total.isfinite()).all():
        raise ValueError("a row of token weights sums to zero or is not finite; there is nothing to draw from")
    # u < 1, but u * total may round up to total itself, which would lie beyond the last id.
    threshold = torch.minimum(u.double().unsqueeze(-1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulated, threshold.contiguous(), right=True).squeeze(-1)


def widened(output: Tensor) -> Tensor:
    """Network output in float32 at least: half-precision log-probabilities are off by some hundredths of a nat."""
    return output if output.dtype == torch.float64 else output.float()


def without(mask_id: int, logits: Tensor) -> Tensor:
    """logits [..., V] with -inf for the mask."""
    return filled(logits, mask_id, -torch.inf)


def filled(x: Tensor, id: int, value: float) -> Tensor:
    """x [..., V] with `value` for one id; without a tensor made of the id, for which a GPU would be waited for."""
    x = x.clone()
    x.select(-1, id).fill_(value)
    return x
