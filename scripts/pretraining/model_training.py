"""What pretraining and further training of small models share: the loop, dropped tokens, folder and card of the result.

B batch, L positions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diffusion.training.files import write_text
from diffusion.training.optim import OptimOptions, learning_rate_factor, make_optimizer
from diffusion.training.progress import progress_bar
from scripts.composition.checks import check_writable
from scripts.job.errors import UsageError

Item = TypeVar("Item")


def train(
    model: nn.Module,
    data: Iterator[Item],
    loss_of: Callable[[Item], Tensor],
    steps: int,
    learning_rate: float,
) -> list[dict]:
    """AdamW with warm-up and half a cosine; returns the log, one row every 50 steps."""
    warmup = min(200, steps // 10)
    optim = OptimOptions(learning_rate=learning_rate, adam_beta2=0.98, adam_weight_decay=0.01)
    optimizer = make_optimizer(model, optim)
    factor = learning_rate_factor(optim.lr_schedule, warmup, steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    log, losses = [], []
    bar = progress_bar(range(1, steps + 1), type(model).__name__)
    for step in bar:
        loss = loss_of(next(data))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if step % 50 == 0 or step == steps:
            log.append({"step": step, "loss": round(torch.stack(losses).mean().item(), 4)})
            bar.set_postfix(loss=log[-1]["loss"], refresh=False)
            losses.clear()
    model.eval()
    return log


def masked(
    ids: Tensor, share: Tensor | float, mask_id: int, kept: Collection[int], generator: torch.Generator
) -> Tensor:
    """ids [B, L] with a share of them (one number, or [B, 1]) replaced by `mask_id`, but for those `kept`."""
    chosen = torch.rand(ids.shape, generator=generator).to(ids.device) < share
    return ids.masked_fill(chosen & ~torch.isin(ids, torch.tensor(sorted(kept), device=ids.device)), mask_id)


def new_folder(output_dir: str, name: str) -> Path:
    """The folder of a new model; UsageError where it is there already or cannot be made."""
    check_writable("output_dir", output_dir)
    folder = Path(output_dir) / name
    if folder.exists():
        raise UsageError(f"{folder}: is there already; choose another --name, or remove it")
    return folder


def write_card(
    folder: Path, name: str, about: str, rows: Mapping[str, Any], command: str, training: Mapping[str, Any]
) -> None:
    """README.md for people, with a table of rows, and training.json for scripts."""
    size = sum(f.stat().st_size for f in folder.glob("model*.safetensors")) / 1e6
    lines = [
        f"# {name}",
        "",
        about,
        "",
        "| | |",
        "|---|---|",
        f"| weights | {size:.1f} MB (safetensors, float32) |",
        *(f"| {key.replace('_', ' ')} | {_shown(value)} |" for key, value in rows.items()),
        "",
        "Rebuild with:",
        "",
        f"    {command}",
        "",
        "`training.json` holds every option and the loss curve.",
    ]
    write_text(folder / "README.md", "\n".join(lines) + "\n")
    write_text(folder / "training.json", json.dumps(training, indent=1) + "\n")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
