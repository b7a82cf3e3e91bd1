"""Loss of trained runs at each level of noise: where their training went.

    python -m scripts.noise_losses RUN_OR_SWEEP [RUN ...] [--bands 10]

The range of times is cut into equal bands, from data to noise. In each the loss of the averaged weights on the test
split is taken at times and noise that are the same for all runs. Runs that differ in their training seed alone make one
row; rows are compared with that of the most usual options, seed by seed. Every run keeps its losses in
evaluation/noise_losses_step_*/losses.json, which are not measured again.
"""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from diffusion.training import checkpoint
from diffusion.training.progress import progress_bar
from offline_metrics import report
from scripts.composition.build import System, load_system
from scripts.composition.options import Options
from scripts.evaluation.run_folder import read
from scripts.job.console import note
from scripts.job.errors import PlainParser, UsageError, run
from scripts.report.losses import apart
from scripts.report.runs import Run, found_in, read_run
from scripts.report.settings import Setting, most_usual, paired, settings_of

SEED = 42


def bands_of(timesteps: int, count: int) -> list[range]:
    """T steps cut into bands as equal as they can be; UsageError where there are fewer steps than bands."""
    if not 1 <= count <= timesteps:
        raise UsageError(f"--bands {count}: expected 1 to {timesteps}, the --timesteps of the run")
    return [range(timesteps * i // count, timesteps * (i + 1) // count) for i in range(count)]


@torch.no_grad()
def band_losses(system: System, count: int) -> list[float]:
    """Mean loss on the test split in each band; the same draws for every system of the same corpus."""
    data, objective = system.data("test"), system.objective
    device = next(system.denoiser.parameters()).device
    order = torch.tensor(data.lengths).argsort(stable=True)
    batches = [
        data.batch(group.numpy()).each(lambda part: part.to(device))
        for group in order.split(system.options.training.eval_batch_size)
    ]
    losses = []
    for steps in progress_bar(bands_of(system.process.timesteps, count), "noise levels"):
        generator = torch.Generator(device).manual_seed(SEED + steps.start)
        found = [objective(system.denoiser, batch, steps, generator) for batch in batches]
        losses.append(torch.cat(found).mean().item())
    return losses


def losses_of(run_dir: Path, count: int) -> list[float]:
    """The losses of a run, read where they were measured before."""
    step = checkpoint.step_of(checkpoint.find_checkpoint(run_dir))
    place = run_dir / "evaluation" / f"noise_losses_step_{step:08d}" / "losses.json"
    if place.is_file():
        found = read(place, _losses)
        if len(found) == count:
            return found
    note(str(run_dir))
    system, _ = load_system(Options.from_argv(["--gen_data", "--resume_dir", str(run_dir)]))
    losses = band_losses(system, count)
    report.write_json(place, {"losses": losses})
    return losses


def _losses(found: Any) -> list[float]:
    if any(type(loss) is not float for loss in found["losses"]):
        raise TypeError(f"{found['losses']!r} are no losses")
    return found["losses"]


def tables(settings: Sequence[Setting], losses: dict[Path, list[float]]) -> str:
    """Losses by setting and band, and their paired differences from the baseline, as Markdown."""
    count = len(next(iter(losses.values())))
    titles = [f"{i / count:.2g} to {(i + 1) / count:.2g}" for i in range(count)] + ["all"]

    def values(run: Run) -> list[float]:
        return [*losses[run.path], fmean(losses[run.path])]

    lines = [["loss at time", "seeds", *titles]]
    for setting in settings:
        by_band = zip(*map(values, setting.runs), strict=True)
        lines.append([setting.name, str(len(setting.runs)), *map(_in_words, by_band)])
    base = most_usual(settings)
    differences = [["difference", "pairs", *titles]]
    for setting in settings:
        ours, theirs = ({run.seed: values(run) for run in each.runs} for each in (setting, base))
        pairs = [seed for seed in ours if seed in theirs]
        if setting is not base and pairs:
            by_band = [paired(*({s: each[s][i] for s in pairs} for each in (ours, theirs))) for i in range(count + 1)]
            cells = [f"{d.mean:+.4f}" + (f" [{d.low:+.4f}, {d.high:+.4f}]" if d.n > 1 else "") for d in by_band]
            differences.append([f"{setting.name} − {base.name}", str(len(pairs)), *cells])
    return "\n\n".join(report.markdown(each) for each in (lines, differences) if len(each) > 1)


def _in_words(found: Sequence[float]) -> str:
    return f"{fmean(found):.4f}" + (f" ± {stdev(found):.4f}" if len(found) > 1 else "")


def main() -> None:
    parser = PlainParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs, or of several runs")
    parser.add_argument("--bands", type=int, default=10, help="into how many the range of times is cut (10)")
    options = parser.parse_args()
    found, empty = found_in(options.runs)
    for place, message in empty:
        note(f"warning: {place} {message}")
    runs = []
    for each in (read_run(path, title) for path, title in found.items()):
        if each.options is None or not checkpoint.checkpoints(each.path):
            note(f"warning: {each.title}: {'; '.join(each.problems)}; left out")
        else:
            runs.append(each)
    if not runs:
        raise UsageError("the runs have no checkpoint; expected trained ones")
    if keys := apart(runs):
        raise UsageError(
            f"the runs differ in {', '.join(keys)}, so that their losses are of different things; expected runs whose "
            "losses can be compared"
        )
    losses = {each.path: losses_of(each.path, options.bands) for each in runs}
    print(tables(settings_of(runs), losses))


if __name__ == "__main__":
    run(main)
