"""Runs killed by SIGKILL at any moment and resumed end, byte for byte, as the run that nothing happened to.

All methods with both optimizers; kills at random moments (seeded) and at chosen ones, which are told by what is seen in
the folders meanwhile. `make test-slow` prints how many kills hit what.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from diffusion.training.checkpoint import checkpoints
from diffusion.training.tracker import has_scores
from scripts.composition.methods import METHODS
from tests.scripts.conftest import SMALL_RECIPE, TRUNK
from train_text_diffusion import main

EVERY, STEPS = 2, 6
RECIPE = (
    f"{SMALL_RECIPE} {TRUNK} --num_train_steps {STEPS} --save_and_sample_every {EVERY} --keep_checkpoints 2 "
    "--gradient_accumulation_steps 2 --ema_update_every 2 --num_samples 6"
)
AIMS = ("cache", "first checkpoint", "checkpoint", "evaluation", "results", "removal")
LEAST = 20  # kills that each method survives with each optimizer
PATIENCE = 120  # seconds that a run may take
KILLS = Counter()  # by what was going on


@pytest.fixture(scope="module", autouse=True)
def told() -> Iterator[None]:
    yield
    print(f"\nkills: {sum(KILLS.values())} survived, {dict(KILLS)}")


class Place:
    """The folders of one life of a run."""

    def __init__(self, folder: Path):
        self.run, self.saved, self.log = folder / "run", folder / "saved", folder / "log.txt"
        folder.mkdir()

    def seen(self) -> str:
        """What is going on, as far as the folders tell."""
        if list((self.saved / "latents").glob(".*")):
            return "cache"
        if list((self.run / "checkpoints").glob(".step_*.old")):
            return "removal"
        if list((self.run / "checkpoints").glob(".step_*")):
            return "checkpoint" if checkpoints(self.run) else "first checkpoint"
        if not (self.run / "args.json").exists():
            return "start"
        step = max(int(path.name[5:]) for path in checkpoints(self.run))
        if step == 0 or step % EVERY or has_scores(self.run / "metrics.jsonl", step):
            return "training"
        return "results" if (self.run / "evaluation" / f"step_{step:08d}").exists() else "evaluation"


def killed(child, when: Callable[[], bool]) -> bool:
    """Kills a child as soon as it is time; False where it has ended before, well."""
    end = time.monotonic() + PATIENCE
    while not when():
        if child.has_ended:
            assert child.wait() == 0
            return False
        assert time.monotonic() < end
        time.sleep(0.0002)
    child.kill()
    return child.wait() < 0


def moment(aim: str, place: Place, draw: random.Random, usual: float) -> Callable[[], bool]:
    """When to kill: in what `aim` names, or at a random moment of the `usual` seconds of a whole run."""
    begun, due = time.monotonic(), draw.uniform(0, usual)
    seen, wait = [], draw.uniform(0, 0.1) if aim == "evaluation" else draw.uniform(0, 0.004)

    def is_time() -> bool:
        now = time.monotonic()
        if aim == "any":
            return now - begun > due
        if not seen and place.seen() == aim:
            seen.append(now)
        return bool(seen) and now - seen[0] > wait

    return is_time


def contents(place: Place) -> dict[str, object]:
    """Every file of a run folder, but for what the clock and the folder's place make of it."""
    found = {}
    for path in place.run.rglob("*"):
        name = str(path.relative_to(place.run))
        if path.name == "timing.json" or path.is_dir():
            found[name] = None
        elif name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in row.items() if key != "steps_per_second"} for row in rows]
        elif name == "args.json":
            found[name] = json.loads(path.read_text()) | {"save_dir": None}
        else:
            found[name] = path.read_bytes()
    return found


def assert_same_end(place: Place, whole: Place) -> None:
    ends = contents(place), contents(whole)
    assert ends[0].keys() == ends[1].keys()  # no file less, and nothing left over
    assert [name for name in ends[0] if ends[0][name] != ends[1][name]] == []
    assert [row["step"] for row in ends[0]["metrics.jsonl"] if "loss" in row] == list(range(1, STEPS + 1))
    shared = ({path.relative_to(each.saved) for path in each.saved.rglob("*")} for each in (place, whole))
    assert len(set(map(frozenset, shared))) == 1


def cases() -> Iterator:
    """All of it is slow; some of it is not."""
    for method, optimizer in product(METHODS, ("adamw", "lion")):
        yield pytest.param(method, optimizer, 2 * AIMS + 4 * ("any",), LEAST, marks=pytest.mark.slow)
    yield "latent", "adamw", ("cache", "checkpoint", "evaluation"), 0
    yield "mdlm", "lion", ("results",), 0


@pytest.mark.parametrize(("method", "optimizer", "aims", "least"), cases())
def test_a_run_killed_at_any_moment_ends_as_if_nothing_had_happened(
    warm, call, data_dir, tmp_path, method, optimizer, aims, least
):
    """Each aim once, which may come too late, then any moment until enough kills are survived."""
    annealed = "" if METHODS[method].causal else "--T_schedule linear"
    line = f"--data_dir {data_dir} {RECIPE} --method {method} --optimizer {optimizer} {annealed}"
    flags = lambda place: f"{line} --save_dir {place.saved} --output_dir {place.run}"  # noqa: E731
    whole, begun = Place(tmp_path / "whole"), time.monotonic()
    outcome = call(main, flags(whole))
    assert outcome.status == 0, outcome.err
    draw, usual, lives, kills = random.Random(f"{method} {optimizer}"), time.monotonic() - begun, 0, 0
    to_come = [aim for aim in aims if aim not in ("cache",) or not METHODS[method].on_tokens]
    while to_come or kills < least:  # a run that has come to its end before all kills is begun anew
        place, lives = Place(tmp_path / f"life_{lives}"), lives + 1
        alive = True
        while alive:
            goes_on = (place.run / "args.json").exists()
            child = warm.start(f"--resume_training --resume_dir {place.run}" if goes_on else flags(place), place.log)
            aim = to_come.pop(0) if to_come else "any" if kills < least else None
            alive = killed(child, moment(aim, place, draw, usual) if aim else lambda: False)
            KILLS[place.seen()] += alive
            kills += alive
        assert_same_end(place, whole)
        assert "Loading weights" not in place.log.read_text()  # the bars are ours
    print(f"\n{method}, {optimizer}: {lives} lives, {len(aims)} aims, {kills} kills")
