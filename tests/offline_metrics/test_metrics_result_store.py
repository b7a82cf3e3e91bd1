"""The store of results: what is kept comes back bit for bit, under no other name, whole or not at all."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from offline_metrics import result_store
from offline_metrics.result_store import ResultStore, code_version

ARRAYS = {
    "numbers": np.array([0.1, np.nan, np.inf, -0.0, 5e-324]),
    "features": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32),
    "words": np.array(["", "é\n", "a longer one"]),
    "nothing": np.zeros((0, 7), dtype=np.uint64),
}


class Maker:
    """Gives ARRAYS and counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return ARRAYS


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path, notes) -> ResultStore:
    return ResultStore(tmp_path / "kept" / "features", notes.append)


@pytest.fixture
def make() -> Maker:
    return Maker()


def equal(found: dict[str, np.ndarray]) -> bool:
    """Bit for bit."""
    return found.keys() == ARRAYS.keys() and all(
        (array.dtype, array.shape, array.tobytes()) == (ARRAYS[name].dtype, ARRAYS[name].shape, ARRAYS[name].tobytes())
        for name, array in found.items()
    )


def test_what_was_made_comes_back_bit_for_bit_and_is_not_made_again(store, make, notes):
    assert equal(store.arrays("some", ["a"], make)) and make.calls == 1
    assert equal(store.arrays("some", ["a"], make))
    assert equal(ResultStore(store.folder, notes.append).arrays("some", ["a"], make))
    assert make.calls == 1 and notes == []
    assert len(list(store.folder.iterdir())) == 1


def test_without_a_folder_nothing_is_kept(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = ResultStore()
    assert equal(store.arrays("some", ["a"], make)) and equal(store.arrays("some", ["a"], make))
    assert make.calls == 2 and not list(tmp_path.iterdir())


def test_whatever_makes_a_difference_has_a_name_of_its_own(store, make):
    things = [
        [["a", "b"]], [["b", "a"]], [["ab"]], [["a", "b", ""]], [["a"], ["b"]], [["a\x00b"]], [["a", "b"], 8],
        [["a", "b"], 8.5], [["a", "b"], None], [["a", "b "]], [["é"]], [["e\u0301"]], [["\ud800"]],
    ]  # fmt: skip
    for thing in things:
        store.arrays("some", thing, make)
    store.arrays("other", things[0], make)
    assert make.calls == len(things) + 1 == len(list(store.folder.iterdir()))


def test_other_code_makes_it_anew(store, make, monkeypatch):
    store.arrays("some", [], make)
    monkeypatch.setattr(result_store, "CODE_VERSION", "other")
    store.arrays("some", [], make)
    assert make.calls == 2


def test_the_version_of_code_is_its_text_and_its_libraries(monkeypatch, tmp_path):
    assert result_store.CODE_VERSION == code_version(Path(result_store.__file__).parent)
    (tmp_path / "module.py").write_text("a = 1")
    installed = {library: result_store.version(library) for library in result_store.LIBRARIES}
    monkeypatch.setattr(result_store, "version", installed.__getitem__)
    first, found = code_version(tmp_path), set()
    for library in installed:
        with monkeypatch.context() as patch:
            patch.setitem(installed, library, "0.0")
            found.add(code_version(tmp_path))
    (tmp_path / "module.py").write_text("a = 2")
    found.add(code_version(tmp_path))
    (tmp_path / "module.py").write_text("a = 1")
    assert code_version(tmp_path) == first and len(found - {first}) == len(installed) + 1


def test_every_damage_is_found_told_and_mended(store, make, notes):
    store.arrays("some", [], make)
    (file,) = store.folder.iterdir()
    whole = file.read_bytes()
    flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in (0, 31, 32, 200, len(whole) // 2, -23, -2)]
    for content in [b"", b"x", b"\x80\x04N.", whole[:-1], whole[: len(whole) // 2], whole[32:], whole + b"x", *flipped]:
        file.write_bytes(content)
        notes.clear()
        calls = make.calls
        assert equal(store.arrays("some", [], make)) and make.calls == calls + 1
        assert notes == [f"{file}: damaged; made anew"]
        assert file.read_bytes() == whole


def test_what_cannot_be_read_is_told_and_made_anew(store, make, notes):
    store.arrays("some", [], make)
    (file,) = store.folder.iterdir()
    file.unlink()
    file.mkdir()
    assert equal(store.arrays("some", [], make))
    assert "cannot be read" in notes[0] and "cannot be written to" in notes[1]


def test_an_interruption_leaves_nothing(store, make, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.arrays("some", [], interrupted)
    assert not store.folder.exists()
    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                store.arrays("some", [], make)
        assert not list(store.folder.iterdir())
    assert equal(store.arrays("some", [], make)) and len(list(store.folder.iterdir())) == 1


def test_several_at_once_each_get_the_result_and_leave_one_file(store, notes):
    together = threading.Barrier(8)

    def make():
        together.wait(timeout=10)  # none has written before all have begun
        return ARRAYS

    found = []
    workers = [threading.Thread(target=lambda: found.append(store.arrays("some", [], make))) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 8 and all(map(equal, found)) and notes == []
    assert len(list(store.folder.iterdir())) == 1
    assert equal(store.arrays("some", [], lambda: pytest.fail("made again")))


def test_a_place_that_cannot_be_written_to_is_told_once_and_stops_nothing(tmp_path, notes, make):
    (tmp_path / "file").write_text("")
    store = ResultStore(tmp_path / "file" / "features", notes.append)
    for _ in range(3):
        assert equal(store.arrays("some", [], make))
    assert make.calls == 3
    assert len(notes) == 1 and "cannot be written to" in notes[0]


def test_a_full_disk_leaves_no_piece_of_a_file(store, make, notes, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert equal(store.arrays("some", [], make)) and not list(store.folder.iterdir())
    assert len(notes) == 1 and "No space left" in notes[0]
