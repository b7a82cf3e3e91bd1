"""Options and fixtures of the whole suite."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# The models of the tests are tiny, and other jobs may share the machine, where threads wait for one another for long.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start


def pytest_addoption(parser):
    parser.addoption("--golden", metavar="DIR", help="folder of reference figures that contain corpus sentences")
    parser.addoption("--soak_minutes", type=float, default=2.0, help="how long the soak of the slow suite lasts")


@pytest.fixture(scope="session")
def golden_dir(request) -> Path:
    """The folder given by --golden; skips the test where none is given."""
    folder = request.config.getoption("--golden")
    if folder is None:
        pytest.skip("needs --golden DIR (figures with corpus sentences are not part of this repository)")
    return Path(folder)


@pytest.fixture(scope="session")
def random_model(tmp_path_factory) -> Callable[..., Path]:
    """random_model(type, config, tokenizer) is the folder of a model of random weights, always the same ones."""

    def saved(kind, config, tokenizer) -> Path:
        folder = tmp_path_factory.mktemp("models") / f"tiny-{config.model_type}"
        tokenizer.save_pretrained(folder)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            kind(config).save_pretrained(folder)
        return folder

    return saved
