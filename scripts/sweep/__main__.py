"""Runs what a file names: every combination of options, each in its own folder, trained and then evaluated.

    python -m scripts.sweep sweeps/annealing.toml              # what is missing; what is done stays, what broke goes on
    python -m scripts.sweep sweeps/annealing.toml --list       # how far each run is
    python -m scripts.sweep sweeps/annealing.toml --dry_run    # what is missing or wrong, before anything runs
    python -m scripts.sweep sweeps/annealing.toml --run 2/4    # the second of four shares of the runs
    python -m scripts.sweep sweeps/annealing.toml --task 7     # the run of that number alone, for SLURM arrays

scripts/sweep/file.py says what the file holds. Each run's words go to log.txt in its folder. Exit status: 0; 1 where
a run failed, the others ran all the same; 2 for a wrong file; 75 after a signal, 130 after Ctrl-C, and the same
command goes on.
"""

from __future__ import annotations

if __name__ == "__main__":  # signals are heard while the libraries load, which takes seconds
    from diffusion.training.signals import leave_when_asked

    leave_when_asked()

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

from torch import nn

from diffusion.training import checkpoint
from diffusion.training.signals import EXIT_STOPPED, STOP_SIGNALS, Stopped, StopSignals, listening
from scripts.composition.checks import Inputs, scoring_checks
from scripts.composition.dry_run import Findings, disk, look, show
from scripts.composition.options import Options, defaults, read_args
from scripts.evaluation.asked import asked_of, difference
from scripts.evaluation.evaluation import result_folder
from scripts.job.command_line import flags
from scripts.job.console import note
from scripts.job.errors import PlainParser, UsageError, going_on, run
from scripts.job.locks import locked
from scripts.sweep.file import Run, Sweep, read_sweep

ENTRY = Path(__file__).parents[2] / "train_text_diffusion.py"
LOCK, LOG = ".lock", "log.txt"
HEADER = re.compile(rf"[-\d]{{10}} [:\d]{{8}} .*{re.escape(ENTRY.name)}")  # by `call`, above the words of each
POLL = 0.1  # seconds
STOPPED = (EXIT_STOPPED, *(128 + number for number in STOP_SIGNALS))  # exit statuses after a signal


@dataclass(frozen=True)
class State:
    """How far a run is: steps done of those wanted, and the evaluations that are still to be made."""

    step: int
    steps: int
    missing: tuple[str, ...]

    @property
    def is_done(self) -> bool:
        return self.step >= self.steps and not self.missing

    def __str__(self) -> str:
        if self.is_done:
            return "done"
        if self.step >= self.steps:
            return f"trained, {' and '.join(self.missing)} to come"
        return f"step {self.step:,} of {self.steps:,}" if self.step else "to come"


def state_of(run: Run) -> State:
    """What lies in the folder of a run."""
    found = checkpoint.checkpoints(run.folder)
    step, steps = checkpoint.step_of(found[-1]) if found else 0, run.options.training.num_train_steps
    missing = []
    for mode, options in run.evaluations.items():
        made = result_folder(run.folder, mode, steps)
        if not (made / "scores.json").is_file() or difference(made, asked_of(options)):
            missing.append(mode)
    return State(step, steps, tuple(missing))


def check_unchanged(run: Run) -> None:
    """Raises UsageError where a run was begun with other options than it has by the file now."""
    if not (run.folder / "args.json").is_file():
        return
    try:
        saved = defaults() | read_args(run.folder)
    except UsageError as error:
        raise UsageError(f"{error}; remove the folder to run it anew") from None
    for key, value in run.options.flat().items():
        if saved[key] != value:
            now = "the file has" if key in run.values else "the file, without it, means"
            raise UsageError(
                f"{run.folder}: was begun with {key} {saved[key]!r}, {now} {value!r}; choose another output_dir, or "
                "remove the folder to run it anew"
            )


def check_asked(run: Run) -> None:
    """Raises UsageError where a run was evaluated otherwise than the file has it now."""
    for mode, options in run.evaluations.items():
        made = result_folder(run.folder, mode, run.options.training.num_train_steps)
        if words := difference(made, asked_of(options)):
            raise UsageError(f"{made}: {words} by [{mode}]; put that back, or remove the folder to make it anew")


def check_scoring(run: Run, readers: dict[Path, nn.Module]) -> None:
    """Raises the first that is wrong with the models which the evaluations of a run that are to come score with."""
    for mode in state_of(run).missing:
        for check in scoring_checks(Inputs(run.evaluations[mode], readers)):
            check()


def is_running(run: Run) -> bool:
    """Whether a process has the lock of a run."""
    if not (run.folder / LOCK).exists():
        return False
    with locked(run.folder / LOCK) as lock:
        return lock is None


def commands(run: Run, sweep: Sweep) -> Iterator[tuple[str, list[str]]]:
    """What is still to be done for a run, in order, and the command line of each."""
    state, found = state_of(run), checkpoint.checkpoints(run.folder)
    if state.is_done:
        return
    if not (run.folder / "args.json").is_file():
        yield "training", [*flags(run.values), f"--output_dir={run.folder}"]
    elif state.step < state.steps or not found or checkpoint.fault(found[-1]) is not None:
        yield "training", ["--resume_training", f"--resume_dir={run.folder}"]
    for mode in state.missing:
        yield mode, [f"--{mode}", f"--resume_dir={run.folder}", *flags(sweep.evaluations[mode])]


def call(line: list[str], run: Run, lock: BinaryIO, stop: StopSignals) -> int:
    """The exit status of the entry script; signals go on to it, and it holds the lock too."""
    line = [sys.executable, str(ENTRY), *line]
    with (run.folder / LOG).open("a", encoding="utf-8") as log:
        print(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(line)}", file=log, flush=True)
        child = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock.fileno(),))
        told = False
        while (status := child.poll()) is None:
            if stop.asked and not told:
                child.send_signal(STOP_SIGNALS[-1])
                told = True
            time.sleep(POLL)
    return status


def advance(run: Run, sweep: Sweep, lock: BinaryIO, stop: StopSignals, title: str) -> bool:
    """Does what is still to be done for a run; whether all of it went well. Raises Stopped after a signal."""
    for what, line in commands(run, sweep):
        note(f"{title}: {what}")
        with stop.deferred():
            status = call(line, run, lock, stop)
        if status in STOPPED or stop.asked:
            raise Stopped(stop.asked)
        if status != 0:
            note(f"{title}: {what} failed with status {status}: {_last_words(run.folder / LOG)}")
            return False
    return True


def _last_words(log: Path) -> str:
    """The complaint that the last command of a log ended with."""
    said = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if HEADER.match(line):
            said = []
        elif line.strip():
            said.append(line)
    last = said[-1] if said else "it said nothing"
    return f"{next((line for line in reversed(said) if line.startswith('error: ')), last)} ({log})"


def run_all(sweep: Sweep, chosen: list[Run], wait: bool) -> int:
    """Advances the chosen runs one after the other; the exit status."""
    results, durations = dict.fromkeys(chosen, "done"), []
    to_do = [run for run in chosen if not state_of(run).is_done]
    note(f"{len(chosen)} runs under {sweep.output_dir}: {len(chosen) - len(to_do)} done, {len(to_do)} to do")
    with listening() as stop:
        for number, run in enumerate(to_do, start=1):
            title, started = f"[{number}/{len(to_do)}] {run.name}", time.monotonic()
            waiting = f"{title}: another process is at it; waiting for that" if wait else None
            with locked(run.folder / LOCK, waiting) as lock:
                if lock is None:
                    note(f"{title}: another process is at it; left to that")
                    results[run] = "with another process"
                    continue
                results[run] = "done" if advance(run, sweep, lock, stop, title) else "failed"
            if results[run] == "done":
                durations.append(time.monotonic() - started)
                left = (len(to_do) - number) * sum(durations) / len(durations)
                note(f"{title}: done in {_time(durations[-1])}; about {_time(left)} left")
    counts = {name: list(results.values()).count(name) for name in ("done", "failed", "with another process")}
    note(", ".join(f"{count} {name}" for name, count in counts.items() if count))
    return 1 if counts["failed"] else 0


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def choose(runs: list[Run], share: str | None, task: int | None) -> list[Run]:
    """The runs of a share "i/n", or of one number; UsageError for what there is not."""
    if task is not None:
        if not 1 <= task <= len(runs):
            raise UsageError(f"--task {task}: expected 1 to {len(runs)}, the runs of the file")
        return [runs[task - 1]]
    if share is None:
        return runs
    part, _, parts = share.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UsageError(f"--run {share}: expected i/n with i from 1 to n, such as 2/4")
    return runs[int(part) - 1 :: int(parts)]


def dry_run(sweep: Sweep, runs: list[Run]) -> None:
    """Raises Problems with all that is wrong with what is to come, each once; else prints what the first job will take
    and the room on disk for all."""
    readers: dict[Path, nn.Module] = {}
    to_do = [each for each in runs if not state_of(each).is_done]
    found = Findings(rows={"runs": f"{len(runs)} under {sweep.output_dir}: {len(to_do)} to do"})
    for each in sweep.runs:
        found.of(lambda each=each: check_unchanged(each))
    for each in runs:
        found.of(lambda each=each: check_asked(each))
    for each in to_do:
        for what, line in commands(each, sweep):
            if what != "training" and not (each.folder / "args.json").is_file():  # nothing to evaluate is there yet
                for check in scoring_checks(Inputs(each.evaluations[what], readers)):
                    found.of(check)
            elif (options := found.of(lambda line=line: Options.from_argv(line))) is not None:
                found.include(look(options, readers=readers))
    if found.room:
        found.rows["disk"] = disk(found.room.values())
    show(found)


@going_on()
def main() -> None:
    parser = PlainParser(prog="python -m scripts.sweep", description=__doc__.split("\n\n")[0])
    parser.add_argument("file", type=Path, help="what to run, as scripts/sweep/file.py says")
    parser.add_argument("--run", metavar="i/n", help="only every n-th run, beginning with the i-th")
    parser.add_argument("--task", type=int, metavar="N", help="only run N of the list; waits where it is running")
    parser.add_argument("--list", action="store_true", help="print how far each run is, and run nothing")
    parser.add_argument("--dry_run", action="store_true", help="tell all that is missing or wrong, and run nothing")
    asked = parser.parse_args()
    sweep = read_sweep(asked.file)
    runs = choose(sweep.runs, asked.run, asked.task)
    if asked.list:
        for number, each in enumerate(sweep.runs, start=1):
            if each in runs:
                print(f"{number:>4}  {each.name}  {state_of(each)}{', running' * is_running(each)}", flush=True)
    elif asked.dry_run:
        dry_run(sweep, runs)
    else:
        for each in sweep.runs:
            check_unchanged(each)
        readers: dict[Path, nn.Module] = {}
        for each in runs:
            check_asked(each)
            check_scoring(each, readers)
        if status := run_all(sweep, runs, wait=asked.task is not None):
            raise SystemExit(status)


if __name__ == "__main__":
    run(main)
