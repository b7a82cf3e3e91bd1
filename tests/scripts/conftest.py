"""What the tests of the composition share: calling a script's `main` as the shell does, and a small labelled corpus."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from latent_models.corpora import DataOptions, load_corpus
from scripts.demo_grammar import parse
from scripts.errors import run

SIZES = {"train": 120, "valid": 24, "test": 30}


class Outcome(NamedTuple):
    """What a command left: exit status and both streams."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines in which the command complained."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="session")
def call() -> Callable[..., Outcome]:
    """call(main, "--flag value ...") runs `main` with this command line in this process."""

    def call_main(main: Callable[[], None], line: str = "") -> Outcome:
        out, err, status = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr("sys.argv", ["script.py", *line.split()])
            try:
                run(main)
            except SystemExit as leaving:
                status = leaving.code
        return Outcome(status, out.getvalue(), err.getvalue())

    return call_main


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A folder with the corpora `demo` (its first texts, labelled by type) and `plain` (the same without labels)."""
    place, corpus = tmp_path_factory.mktemp("data"), load_corpus(DataOptions("demo"))
    for name in ("demo", "plain"):
        (place / name).mkdir()
        for split, size in SIZES.items():
            with (place / name / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for text in getattr(corpus, split).texts[:size]:
                    label = {"label": parse(text)["type"]} if name == "demo" else {}
                    file.write(json.dumps({"text": text, **label}, ensure_ascii=False) + "\n")
    return place
