"""The demo trained with evaluations and checkpoints over and over: memory, files and threads stay what they are.

    python -m pytest -m slow tests/scripts/test_soak.py -s --soak_minutes 60
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from diffusion.training import checkpoint
from scripts.demo import MODELS, RECIPE

ROOT = Path(__file__).parents[2]
OFTEN = "--num_train_steps 1000000 --save_and_sample_every 10 --log_every 5 --num_samples 32 --keep_checkpoints 2"
WARM_UP = 1 / 3  # of the time: caches fill, and the allocator meets every shape
MOST_GROWTH = 20.0  # MB an hour beyond twice the error of the slope, at more evaluations than a usual week has
EVERY = 1.0  # seconds between readings
# glibc keeps much of what is freed, and more for some time: some 250 MB of the demo's 750. With these settings pieces
# of 64 kB and more have pages of their own, which go back at once, so that what grows is in use.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Reading(NamedTuple):
    """What a process holds at a moment."""

    hours: float
    megabytes: float  # its own: encoded splits are mapped, and stay in memory as far as they have been read
    mapped: float
    files: int  # open
    threads: int
    children: int
    temporary: int  # files in TMPDIR, and hidden ones in what was written


def read(process: int, started: float, written: Path, temporary: Path) -> Reading:
    """The present state of a process."""
    proc = Path(f"/proc/{process}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    own, mapped = (int(status[name].split()[0]) * 1024 / 1e6 for name in ("RssAnon", "RssFile"))
    children = sum(len((task / "children").read_text().split()) for task in (proc / "task").iterdir())
    left = len([*temporary.rglob("*"), *written.rglob(".*")])
    tasks, files = len(os.listdir(proc / "task")), len(os.listdir(proc / "fd"))
    return Reading((time.monotonic() - started) / 3600, own, mapped, files, tasks, children, left)


def slope(hours: np.ndarray, megabytes: np.ndarray) -> tuple[float, float]:
    """Least squares, in MB an hour, and its standard error, over the least of each tenth: the rest comes and goes."""
    x = np.array([part.mean() for part in np.array_split(hours, 10)])
    y = np.array([part.min() for part in np.array_split(megabytes, 10)])
    x = x - x.mean()
    found = (x * y).sum() / (x * x).sum()
    residual = y - y.mean() - found * x
    return found, np.sqrt((residual**2).sum() / (len(x) - 2) / (x * x).sum())


def test_the_slope_is_found_with_its_error():
    draw = np.random.default_rng(0)
    hours = np.linspace(0, 1, 3600)
    found = [slope(hours, 900 + 50 * hours + draw.normal(0, 20, 3600)) for _ in range(200)]
    slopes, errors = np.array(found).T
    assert slopes.mean() == pytest.approx(50, abs=2) and errors.mean() == pytest.approx(slopes.std(), rel=0.15)


@pytest.mark.slow
def test_nothing_grows_and_nothing_is_left(tmp_path, request):
    minutes = request.config.getoption("--soak_minutes")
    run_dir, temporary = tmp_path / "saved" / "run", tmp_path / "temporary"
    temporary.mkdir()
    line = f"{MODELS} {RECIPE} {OFTEN} --save_dir {tmp_path / 'saved'} --output_dir {run_dir}"
    with (tmp_path / "words").open("w") as words:
        process = subprocess.Popen(
            [sys.executable, "train_text_diffusion.py", *line.split()],
            cwd=ROOT, env=ALLOCATOR | os.environ | {"TMPDIR": str(temporary)}, stdout=words, stderr=words,
        )  # fmt: skip
    try:
        while len(list(run_dir.glob("evaluation/*/scores.json"))) < 2:  # the second one begins with all loaded
            assert process.poll() is None, (tmp_path / "words").read_text()[-2000:]
            time.sleep(EVERY)
        started, readings = time.monotonic(), []
        while time.monotonic() - started < 60 * minutes:
            assert process.poll() is None, (tmp_path / "words").read_text()[-2000:]
            readings.append(read(process.pid, started, tmp_path / "saved", temporary))
            time.sleep(EVERY)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 75
    finally:
        process.kill()
        process.wait()
    series = {name: np.array(values) for name, values in zip(Reading._fields, zip(*readings, strict=True), strict=True)}
    (tmp_path / "readings.csv").write_text("\n".join(",".join(map(str, row)) for row in [Reading._fields, *readings]))
    warm = series["hours"] > WARM_UP * minutes / 60
    growth, error = slope(series["hours"][warm], series["megabytes"][warm])
    evaluations = len(list(run_dir.glob("evaluation/*/scores.json")))
    step = checkpoint.step_of(checkpoint.find_checkpoint(run_dir))
    print(f"{minutes:g} minutes: {step} steps, {evaluations} evaluations, as many checkpoints; {tmp_path}/readings.csv")
    own, mapped = series["megabytes"][warm], series["mapped"][warm].max()
    print(
        f"memory {own.min():.0f} to {own.max():.0f} MB and {mapped:.0f} mapped; the least grows by {growth:.1f} +- "
        f"{error:.1f} MB an hour"
    )
    for name in ("files", "threads", "children", "temporary"):
        first, last = (part.min() for part in np.array_split(series[name], 2))
        print(f"{name}: at least {first} in the first half, {last} in the second; at most {series[name].max()}")
        assert last <= first, name
    assert series["children"].max() == 0
    assert growth - 2 * error < MOST_GROWTH
    assert not list(temporary.rglob("*")) and not list((tmp_path / "saved").rglob(".*"))
    assert len(checkpoint.checkpoints(run_dir)) == 2
