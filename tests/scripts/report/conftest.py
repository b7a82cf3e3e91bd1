"""Run folders written by hand, and pages read back."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from offline_metrics import report as tables
from offline_metrics.scores import Scores
from scripts.report.__main__ import main

HUMAN = {"corpus_perplexity": 5.0, "mauve": 0.95, "diversity": 0.1, "mean_words": 20.0, "total_words": 2000.0}
SAMPLING_SEEDS = (42, 43, 44)
STEPS = (100, 200, 300, 400)


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def write_run() -> Callable[..., Path]:
    """write_run(folder, ...) is a finished run with curves, scores in training and on the test split, and texts.

    `mauve` is what it has under each sampling seed; `human` the human row beside it, `ways` how it writes texts.
    """

    def write(folder: Path, *, mauve=(0.8, 0.82, 0.84), human=None, ways=("sample",), texts=None, **options) -> Path:
        human = {**HUMAN, **(human or {}), "notes": {}}
        write_json(folder / "args.json", {"num_train_steps": STEPS[-1], "method": "mdlm", "timesteps": 1000, **options})
        curves = [
            {"step": step, "loss": 400 / step, "valid_loss": 300 / step, "valid_loss_ema": 200 / step,
             "learning_rate": 1e-3 * (1 - step / 500), "T": 250 + step, "grad_norm": 1.0}
            for step in STEPS
        ]  # fmt: skip
        scored = [
            {"step": step, **{f"human/{name}": value for name, value in human.items() if name != "notes"},
             **{f"{way}/mauve": mauve[0] * step / 400 for way in ways}, **{f"{way}/diversity": 0.2 for way in ways}}
            for step in STEPS[1::2]
        ]  # fmt: skip
        write_lines(folder / "metrics.jsonl", sorted(curves + scored, key=lambda row: row["step"]))
        evaluated = folder / "evaluation" / f"test_step_{STEPS[-1]:08d}"
        by_seed: dict[str, list[Scores]] = {}
        for seed, value in zip(SAMPLING_SEEDS, mauve, strict=False):
            row = {"corpus_perplexity": 10 / value, "mauve": value, "diversity": value / 4, "notes": {}}
            rows = {"human": human, **{way: row for way in ways}}
            write_json(evaluated / f"seed_{seed}" / "scores.json", rows)
            write_json(evaluated / f"seed_{seed}" / "timing.json", {"seconds": 3.0, "samples": 6})
            for way in ways:
                said = texts or [f"{folder.name} {way} {seed} number {i}" for i in range(6)]
                write_lines(evaluated / f"seed_{seed}" / f"{way}.jsonl", [{"text": text} for text in said])
            for name, row in rows.items():
                by_seed.setdefault(name, []).append(Scores.from_record(row))
        total = {name: tables.aggregate(rows) for name, rows in by_seed.items()}
        tables.write_json(evaluated / "scores.json", total)
        checkpoint = folder / "checkpoints" / f"step_{STEPS[-1]:08d}"
        checkpoint.mkdir(parents=True)
        save_file({"ema_model.a": torch.zeros(300, 200)}, checkpoint / "ema.safetensors")
        return folder

    return write


class Page(HTMLParser):
    """A page read strictly: every element closed in its order; attributes and text as a browser has them."""

    EMPTY = {"meta", "input", "br"}

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []  # element, name, value
        self.counts: dict[str, int] = {}
        self.said: list[tuple[str, str]] = []  # innermost element, text
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        """All text but that of style and script."""
        return " ".join(data for tag, data in self.said if tag not in ("style", "script"))


class Made(NamedTuple):
    """What a call left: the page, the Markdown, the numbers, and what was said on standard error."""

    html: str
    page: Page
    markdown: str
    numbers: dict
    err: str
    folder: Path


@pytest.fixture
def report(call, tmp_path) -> Callable[..., Made]:
    """report(place, ..., flags="") calls the script and reads what it wrote."""

    def make(*places: Path, flags: str = "") -> Made:
        folder = tmp_path / "made"
        outcome = call(main, " ".join(f"'{place}'" for place in places) + f" --output_dir {folder} {flags}")
        assert outcome.status == 0, outcome.err
        assert outcome.out.split() == [str(folder / f"report.{kind}") for kind in ("html", "md", "json")]
        html, markdown = ((folder / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
        numbers = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        return Made(html, Page(html), markdown, numbers, outcome.err, folder)

    return make


@pytest.fixture(scope="session")
def sweep(write_run, tmp_path_factory) -> Path:
    """Two schedules by three training seeds, in folders of folders: linear is better by 0.01, 0.02 and 0.06."""
    place = tmp_path_factory.mktemp("sweep") / "study"
    for seed, gain in ((1, 0.01), (2, 0.02), (3, 0.06)):
        base = (0.6 + seed / 100, 0.62 + seed / 100, 0.64 + seed / 100)
        write_run(place / "normal" / f"seed_{seed}", mauve=base, random_seed=seed)
        write_run(
            place / "linear" / f"seed_{seed}",
            mauve=[value + gain for value in base],
            random_seed=seed,
            T_schedule="linear",
        )
    return place
