"""DiffusionBERT's network (He et al. 2022, arXiv:2211.15029): a pretrained masked language model that reads [CLS] x_t.

The published input ends in a [SEP] that attention skips; it changes no logit and is left out.
B batch, L positions, V vocabulary, W width of the model, T steps.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from diffusion.positions import Positions
from diffusion.process import DiffusionError

TIME_INPUTS = ("none", "token", "layerwise")


class BertDenoiser(nn.Module):
    """A BERT or RoBERTa as a token denoiser: (xt [B, L] ids, t [B], valid [B, L]) -> logits [B, L, V].

    The time enters not at all ("none"), as one more position behind [CLS] ("token"), or behind the attention of every
    layer ("layerwise"). Untrained, none and layerwise are the pretrained model. x0_prev and label are not used.
    """

    self_condition = False

    def __init__(self, model: nn.Module, cls_id: int, *, timesteps: int, time_input: str = "none"):
        """Takes over `model`, a transformers BertForMaskedLM or RobertaForMaskedLM; DiffusionError on time_input."""
        super().__init__()
        if time_input not in TIME_INPUTS:
            raise DiffusionError(f"--time_input {time_input}: a pretrained BERT takes one of {', '.join(TIME_INPUTS)}")
        width = model.config.hidden_size
        self.model = model
        self.cls_id = cls_id
        self.timesteps = timesteps
        self.time_token = _time_mlp(width) if time_input == "token" else None
        self.layerwise = time_input == "layerwise"
        if self.layerwise:
            for layer in model.base_model.encoder.layer:
                layer.attention = TimedAttention(layer.attention, width)
        # A pretrained model writes with the weights it reads with. A checkpoint holds such weights once.
        first_names: dict[nn.Parameter, str] = {}
        named = self.named_parameters(remove_duplicate=False)
        self.tied = {name: first for name, p in named if (first := first_names.setdefault(p, name)) != name}
        self.register_state_dict_post_hook(_drop_tied)
        self.register_load_state_dict_pre_hook(_restore_tied)

    @property
    def trunk(self) -> nn.Module:
        """What reads and writes between the inputs and the logits."""
        return self.model

    def forward(
        self,
        xt: Tensor,
        t: Tensor,
        valid: Tensor,
        x0_prev: Tensor | None = None,
        label: Tensor | None = None,
        at: Positions | None = None,
    ) -> Tensor:
        """Logits of the positions of xt, or of those `at`; DiffusionError where they are more than the model has."""
        words = self.model.get_input_embeddings()
        time = sinusoids(self.timesteps * t - 1, self.model.config.hidden_size, self.timesteps)
        before = [words(xt.new_full((len(xt), 1), self.cls_id))]
        if self.time_token is not None:
            before.append(self.time_token(time)[:, None])
        length, room = xt.shape[1], self.positions - len(before)
        if length > room:
            raise DiffusionError(
                f"texts of {length} tokens do not fit a pretrained BERT with room for {room}: lower --max_length"
            )
        # As embeddings, so that RoBERTa numbers positions by where they are and not by whether they hold padding.
        output = self.model.base_model(
            inputs_embeds=torch.cat([*before, words(xt)], dim=1),
            attention_mask=pad(valid, (len(before), 0), value=True),
            **({"time": time} if self.layerwise else {}),
        )
        hidden = output.last_hidden_state[:, len(before) :]
        (head,) = (part for part in self.model.children() if part is not self.model.base_model)
        return head(hidden if at is None else at.of(hidden))

    @property
    def positions(self) -> int:
        """How many positions the model has; RoBERTa counts them from behind that of padding."""
        table = self.model.base_model.embeddings.position_embeddings
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


class TimedAttention(nn.Module):
    """The attention of a BERT layer, layer norm included, plus a function of the time that is 0 before training."""

    def __init__(self, attention: nn.Module, width: int):
        super().__init__()
        self.attention = attention
        self.shift = _time_mlp(width)
        nn.init.zeros_(self.shift[-1].weight)
        nn.init.zeros_(self.shift[-1].bias)

    def forward(self, *args: Any, time: Tensor, **kwargs: Any) -> tuple[Tensor, ...]:
        """As the attention's; `time` [B, W] comes with the keyword arguments that a model hands to its layers."""
        hidden, *rest = self.attention(*args, **kwargs)
        return hidden + self.shift(time)[:, None], *rest


def sinusoids(k: Tensor, width: int, period: float) -> Tensor:
    """Step indices k [B] -> [B, width]: sines, then cosines, of waves 2 pi to 2 pi `period` long."""
    waves = torch.exp(-math.log(period) * torch.linspace(0, 1, width // 2, device=k.device))
    angles = k[:, None].float() * waves
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _time_mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


def _drop_tied(denoiser: BertDenoiser, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name in denoiser.tied:
        del state[prefix + name]


def _restore_tied(denoiser: BertDenoiser, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name, first in denoiser.tied.items():
        if prefix + first in state:
            state[prefix + name] = state[prefix + first]
