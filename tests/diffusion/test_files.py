"""Files that appear whole or not at all: what is left after errors and kills, what is on the disk when."""

import errno
import os
import resource
import socket

import pytest
import torch

from diffusion.training.files import faults, replacing, sums, write_tensors, write_text


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_at_the_place_before_all_of_it_is(tmp_path):
    place = tmp_path / "new" / "file.txt"
    with replacing(place) as beside:
        beside.write_text("one")
        assert not place.exists()
    with replacing(place) as beside:
        beside.write_text("other")
        assert place.read_text() == "one"
    assert place.read_text() == "other" and names(place.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, lambda: OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_error_leaves_what_was_there_and_is_told(tmp_path, error, kind):
    place = tmp_path / "place"
    write_text(place, "old")
    with pytest.raises((KeyboardInterrupt, ValueError, OSError)) as raised, replacing(place) as beside:
        beside.mkdir() if kind == "folder" else beside.write_text("half")
        raise error()
    assert names(tmp_path) == ["place"] and place.read_text() == "old"
    if raised.type is OSError:
        assert raised.value.filename == str(place)


def test_an_error_names_the_file_as_it_would_have_been_called(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, replacing(tmp_path / "folder") as beside:
        (beside / "file").write_text("the folder is not there")
    assert raised.value.filename == str(tmp_path / "folder" / "file")


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    pid = os.fork()
    if pid == 0:
        with replacing(tmp_path / "a[1]") as beside:
            beside.mkdir()
            (beside / "file").touch()
            os._exit(0)
    os.waitpid(pid, 0)
    (left_over,) = names(tmp_path)
    assert left_over == f".a[1].{socket.gethostname()}-{pid}"
    alive, elsewhere = f".a[1].{socket.gethostname()}-1", f".a[1].elsewhere-{pid}"
    own = f".a[1].{socket.gethostname()}-{os.getpid()}"  # of a container before this one
    for name in (alive, elsewhere, own):
        (tmp_path / name).touch()
    write_text(tmp_path / "a[1]", "text")
    assert names(tmp_path) == sorted([alive, elsewhere, "a[1]"])


def test_what_is_no_file_is_written_to_and_a_link_stays_one(tmp_path):
    write_text(tmp_path / "target", "old")
    (tmp_path / "link").symlink_to("target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "new"
    (tmp_path / "null").symlink_to("/dev/null")
    write_text(tmp_path / "null", "nowhere")
    write_text(tmp_path.joinpath("/dev/null"), "nowhere")
    assert (tmp_path / "null").is_symlink() and not os.path.isfile("/dev/null")


def test_tensors_that_the_disk_does_not_take_are_an_oserror_that_names_the_file(tmp_path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OSError) as refusal:
            write_tensors(tmp_path / "a.safetensors", {"w": torch.zeros(100)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (refusal.value.errno, refusal.value.filename) == (errno.EFBIG, str(tmp_path / "a.safetensors"))
    assert names(tmp_path) == []


def test_checksums_tell_whatever_has_changed(tmp_path):
    for name in ("same", "gone", "longer", "other"):
        (tmp_path / name).write_text(name)
    expected = sums(tmp_path, ["same", "gone", "longer", "other"])
    assert faults(tmp_path, expected) == []
    (tmp_path / "gone").unlink()
    (tmp_path / "longer").write_text("longer than it was")
    (tmp_path / "other").write_text("Other")
    assert [line.split(": ")[1].split()[0] for line in faults(tmp_path, expected)] == ["missing", "has", "SHA-256"]
