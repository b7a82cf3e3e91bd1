"""Many processes, one folder: one makes it, nobody sees half of it, and the dead leave nothing behind."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latent_models import claim
from latent_models.claim import OWNER, claimed

ROOT = Path(__file__).parents[2]
WAITING = "another one makes it"
# Says "made" once the first bytes of its file are written, goes on when it is told to, says how it ended.
MAKER = f"""
import sys
from pathlib import Path
from latent_models.claim import claimed

with claimed(Path(sys.argv[1]), "data", "{WAITING}") as file:
    if file is not None:
        file.write(b"of the other process")
        file.flush()
        print("made", flush=True)
        sys.stdin.readline()
print("made" if file else "found", flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """Starts a process that makes a place; those that still run are ended after the test."""
    started = []

    def start(place):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen([sys.executable, "-c", MAKER, place], cwd=ROOT, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def make(place, content=b"own"):
    with claimed(place, "data", WAITING) as file:
        if file is not None:
            file.write(content)
    return file is not None


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_at_the_place_before_all_of_it_is(tmp_path):
    with claimed(tmp_path / "shared" / "place", "data", WAITING) as file:
        file.write(b"content")
        (Path(file.name).parent / "beside").write_text("more")
        assert not (tmp_path / "shared" / "place").exists()
    assert names(tmp_path / "shared") == ["place"]
    assert names(tmp_path / "shared" / "place") == ["beside", "data"]
    assert (tmp_path / "shared" / "place" / "data").read_bytes() == b"content"


def test_all_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace

    def fsync(handle):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        done.append((path.name, path.stat().st_size if path.is_file() else None))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("renamed") or replace(*paths))
    make(tmp_path / "place", b"content")
    assert done == [("data", 7), (f".place.{OWNER}", None), "renamed", (tmp_path.name, None)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_an_error_leaves_nothing_and_is_told(tmp_path, error):
    with pytest.raises((KeyboardInterrupt, OSError)), claimed(tmp_path / "place", "data", WAITING):
        raise error
    assert names(tmp_path) == []


def test_the_second_process_waits_and_says_so_once(tmp_path, start):
    first = start(tmp_path / "place")
    assert first.stdout.readline() == "made\n"
    second = start(tmp_path / "place")
    assert second.stderr.readline() == f"{WAITING}\n"
    first.stdin.write("\n")
    assert first.communicate(timeout=60) == ("made\n", "")
    assert second.communicate(timeout=60) == ("found\n", "")
    assert names(tmp_path) == ["place"]


def test_of_many_at_once_one_makes_it(tmp_path, start):
    processes = [start(tmp_path / "place") for _ in range(6)]
    for process in processes:  # whichever it is that makes it
        process.stdin.write("\n")
        process.stdin.flush()
    ends = [process.communicate(timeout=60)[0] for process in processes]
    assert sorted(ends) == ["found\n"] * 5 + ["made\nmade\n"]
    assert names(tmp_path) == ["place"]


def test_a_folder_that_is_moved_away_while_it_is_asked_for_is_asked_for_again(tmp_path, monkeypatch):
    real, asked = os.mkdir, []

    def mkdir(path, *mode):
        asked.append(path)
        if len(asked) == 1:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))  # of another process, done by now
        real(path, *mode)

    monkeypatch.setattr(os, "mkdir", mkdir)
    assert make(tmp_path / "place") and len(asked) == 2


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)


def test_what_a_killed_process_left_is_not_taken_for_content(tmp_path, start):
    first = start(tmp_path / "place")
    assert first.stdout.readline() == "made\n"
    kill(first)
    assert names(tmp_path) == [f".place.{OWNER}"]
    assert make(tmp_path / "place")
    assert (tmp_path / "place" / "data").read_bytes() == b"own"
    assert names(tmp_path) == ["place"]


def test_who_waits_for_a_process_that_is_killed_goes_on_itself(tmp_path, start):
    first = start(tmp_path / "place")
    assert first.stdout.readline() == "made\n"
    second = start(tmp_path / "place")
    assert second.stderr.readline() == f"{WAITING}\n"
    kill(first)
    assert second.communicate("\n", timeout=60) == ("made\nmade\n", "")
    assert names(tmp_path) == ["place"]


def test_what_is_left_over_of_other_places_is_removed_unless_it_is_in_use_or_not_of_this_host(tmp_path, start):
    dead, alive = start(tmp_path / "dead"), start(tmp_path / "alive")
    assert dead.stdout.readline() == alive.stdout.readline() == "made\n"
    kill(dead)
    shutil.copytree(tmp_path / f".dead.{OWNER}", tmp_path / ".dead.elsewhere-0")
    assert make(tmp_path / "place")
    assert names(tmp_path) == [f".alive.{OWNER}", ".dead.elsewhere-0", "place"]


def test_another_host_that_is_faster_wins(tmp_path):
    with claimed(tmp_path / "place", "data", WAITING) as file:
        file.write(b"slower")
        (tmp_path / "place").mkdir()
        (tmp_path / "place" / "data").write_bytes(b"faster")
    assert (tmp_path / "place" / "data").read_bytes() == b"faster"
    assert names(tmp_path) == ["place"]


def test_without_locks_each_makes_its_own_and_the_first_one_done_stays(tmp_path, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with claimed(tmp_path / "place", "data", WAITING) as slower:
        slower.write(b"slower")
        with monkeypatch.context() as patch:
            patch.setattr(claim.os, "getpid", lambda: 1)
            assert make(tmp_path / "place", b"faster")
    assert (tmp_path / "place" / "data").read_bytes() == b"faster"
    assert names(tmp_path) == ["place"]
