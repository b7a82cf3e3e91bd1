"""The caching command, up to the network: what it asks for, what it refuses."""

from pathlib import Path

import huggingface_hub
import pytest

from scripts import cache_models


@pytest.fixture
def hub(monkeypatch):
    """A hub that writes the files of a repository as the real client would; what was asked of it."""
    asked = []
    files = {"safe/model": ["config.json", "model.safetensors"], "pickled/model": ["config.json"]}

    def snapshot_download(name, *, local_dir, allow_patterns, ignore_patterns):
        asked.append((name, allow_patterns))
        if name not in files:
            raise OSError("no route to host")
        Path(local_dir).mkdir(parents=True)
        for file in files[name]:
            (Path(local_dir) / file).write_text("x")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return asked


def test_a_model_lands_where_runs_look_for_it(hub, call, tmp_path):
    outcome = call(cache_models.main, f"safe/model --output_dir {tmp_path}")
    assert outcome.status == 0, outcome.err
    assert (tmp_path / "safe" / "model" / "model.safetensors").is_file()
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in hub[0][1])


@pytest.mark.parametrize(
    ("name", "reason"), [("pickled/model", "no safetensors"), ("unreachable/model", "no route to host")]
)
def test_what_cannot_be_cached_is_told_in_one_line(hub, call, tmp_path, name, reason):
    outcome = call(cache_models.main, f"{name} --output_dir {tmp_path}")
    assert outcome.status == 2 and len(outcome.errors) == 1
    assert reason in outcome.errors[0]


def test_offline_mode_is_told_before_anything_is_asked(hub, call, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    outcome = call(cache_models.main, f"safe/model --output_dir {tmp_path}")
    assert outcome.status == 2 and "HF_HUB_OFFLINE" in outcome.errors[0]
    assert hub == []
