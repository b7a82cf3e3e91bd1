"""Whether losses and gradients are numbers: what comes of others is told by step and texts, and never saved.

Reading a number makes the host wait for the device, so it is done where one is read anyway: before a row of metrics and
before a checkpoint, where the first bad update is found among those since. An update can only be skipped if it is read
before the weights are touched: `skips` costs a wait for each, which is nothing on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion.process import DiffusionError
from diffusion.training.batches import EpochBatches

MOST_IN_A_ROW = 100  # updates that are not applied; after as many nothing is trained any more
SHOWN = 8  # texts of a bad update
ADVICE = "go back to the last checkpoint, which is from before, and lower --learning_rate or look at these texts"


class Update(NamedTuple):
    """Which update it is: the step that it makes, its range of times and rate, and where its batches begin."""

    step: int
    T_k: int
    rate: float
    position: int


@dataclass
class Health:
    """The losses since the last row of metrics, and what is made of updates that are not finite.

    `skips`: they are not applied. `scaled`: a loss scaler does not apply gradients that overflow, and lowers its scale,
    so these are no error. Of both there may not be too many in a row. `mean` is that over all processes, who decide
    alike, since their gradients are the same.
    """

    batches: EpochBatches
    per_update: int  # batches
    skips: bool
    scaled: bool
    mean: Callable[[Tensor], Tensor]
    tell: Callable[[str], None]
    losses: list[Tensor] = field(default_factory=list)  # of updates that were applied
    unread: list[tuple[Update, Tensor]] = field(default_factory=list)  # the last of these updates, and their norms
    skipped: int = 0  # updates that were not applied
    in_a_row: int = 0  # of those, the latest

    def applies(self, update: Update, loss: Tensor, norm: Tensor) -> bool:
        """Whether an update of this loss and gradient norm is to be made."""
        if not self.skips:
            self.unread.append((update, norm))
        elif not self._is_good(update, self.mean(loss).item(), norm.item()):
            return False
        self.losses.append(loss)
        return True

    def settle(self) -> None:
        """Makes the losses those of all processes; DiffusionError for an update that should not have been made."""
        if self.losses:
            self.losses = list(self.mean(torch.stack(self.losses)))
        if self.unread:
            updates, norms = zip(*self.unread, strict=True)
            found = torch.stack([*self.losses[-len(norms) :], *norms]).tolist()
            self.unread.clear()
            for update, loss, norm in zip(updates, found, found[len(norms) :], strict=False):
                self._is_good(update, loss, norm)

    def counts(self) -> dict[str, int]:
        """How many updates were not applied, where there are such."""
        return {"skipped": self.skipped} if self.skips or self.scaled else {}

    def _is_good(self, update: Update, loss: float, norm: float) -> bool:
        """Whether both are finite; raises DiffusionError where training cannot go on after it."""
        if isfinite(loss) and isfinite(norm):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        found = (
            f"step {update.step:,}: the loss is {loss:.4g}, the norm of its gradient {norm:.4g}, at T {update.T_k:,}, "
            f"learning rate {update.rate:.3g}, {self._texts(update.position)}"
        )
        if self.in_a_row >= MOST_IN_A_ROW:
            raise DiffusionError(f"{found}; and {MOST_IN_A_ROW} updates in a row were like this: {ADVICE}")
        if isfinite(loss) and self.scaled:
            return False
        if not self.skips:
            raise DiffusionError(f"{found}; {ADVICE}, or pass over such updates by --on_nonfinite skip")
        self.tell(f"{found}; skipped")
        return False

    def _texts(self, position: int) -> str:
        """The texts of an update for people."""
        places = [divmod(position + n, self.batches.per_epoch) for n in range(self.per_update)]
        texts = [i for epoch, batch in places for i in self.batches.of_epoch(epoch)[batch].tolist()]
        more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
        return f"epoch {places[0][0]:,}, training texts {', '.join(map(str, texts[:SHOWN]))}{more} (counted from 0)"


def check_weights(model: nn.Module, step: int, rate: float) -> None:
    """Raises DiffusionError where a weight is not finite: too large an update makes it so of a finite gradient."""
    if not torch.stack([weights.isfinite().all() for weights in model.parameters()]).all():
        raise DiffusionError(
            f"step {step:,}: weights are not finite any more, at learning rate {rate:.3g}; go back to the last "
            "checkpoint, which is from before, and lower --learning_rate"
        )
