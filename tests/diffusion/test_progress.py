"""Bars are drawn often on a terminal and now and then in a log, and no other bar is made anywhere."""

import io
import sys
from pathlib import Path

import pytest

from diffusion.training.progress import progress_bar

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("terminal", "env", "seconds"), [(True, {}, 0.1), (False, {}, 30), (False, {"TQDM_MININTERVAL": "5"}, 0.1)]
)
def test_a_log_gets_few_lines_of_a_bar(monkeypatch, terminal, env, seconds):
    """tqdm reads the variable when it is imported, and so not here."""
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with progress_bar(range(3), "counted") as bar:
        assert list(bar) == [0, 1, 2]
    assert (bar.mininterval, bar.desc) == (seconds, "counted")
    assert "counted" in sys.stderr.getvalue()


def test_no_bar_is_made_elsewhere():
    packages = ("latent_models", "diffusion", "offline_metrics", "scripts")
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert [path.name for path in files if "tqdm(" in path.read_text(encoding="utf-8")] == ["progress.py"]
