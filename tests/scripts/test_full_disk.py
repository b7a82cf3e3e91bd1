"""A full disk, a small one of our own and a limit of sizes: one line, the last good checkpoint whole, no rubbish."""

import resource
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from diffusion.training.checkpoint import checkpoints, fault
from scripts import train_decoder
from tests.scripts.conftest import SMALL_DECODER, SMALL_RECIPE, TRUNK, places
from train_text_diffusion import main


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(bytes) is the folder of a file system of that size."""
    mounted = []

    def make(size: int) -> Path:
        place = tmp_path / "disk"
        place.mkdir()
        line = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(line, capture_output=True).returncode:
            pytest.skip("a file system of one's own needs root and the right to mount")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # encoded splits may be mapped yet


@contextmanager
def files_of_at_most(size: int):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.fixture
def line(data_dir, tmp_path) -> str:
    return f"--data_dir {data_dir} {SMALL_RECIPE} {TRUNK} --save_dir {tmp_path}/saved"


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def told(outcome) -> str:
    """The one line in which a job says that the disk does not take what it writes."""
    assert (outcome.status, len(outcome.errors)) == (2, 1), outcome.err
    assert "Traceback" not in outcome.err
    return outcome.errors[0]


@pytest.mark.parametrize("method", ["latent", "mdlm"])
def test_a_checkpoint_that_has_no_room_leaves_the_last_one_and_the_run_goes_on_where_there_is(
    small_disk, small_run, call, line, method
):
    whole = small_run(method)
    disk = small_disk(size_of(whole / "checkpoints" / "step_00000000") * 2 + size_of(whole / "checkpoints") // 3)
    run_dir = disk / "run"
    message = told(call(main, f"{line} --method {method} --output_dir {run_dir}"))
    last = checkpoints(run_dir)[-1]
    assert f"{run_dir}/checkpoints/step_0000000" in message and "safetensors: No space left on device" in message
    assert f"the last good checkpoint is {last.name}: " in message
    assert last.name in ("step_00000000", "step_00000002") and fault(last) is None
    assert all(name.startswith("step_") for name in names(run_dir / "checkpoints"))
    assert not list(run_dir.rglob(".*"))
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
    assert call(main, f"--resume_training --resume_dir {run_dir}").status == 0
    for name in ("model", "ema", "optimizer", "random"):
        one, other = (each / "checkpoints" / "step_00000004" / f"{name}.safetensors" for each in (run_dir, whole))
        assert one.read_bytes() == other.read_bytes()


def test_files_that_may_not_grow_are_told_by_name(small_run, call, line, tmp_path):
    """Of a limit (`ulimit -f`) the system sends a signal too, which must not end the job unheard."""
    largest = (small_run("mdlm") / "checkpoints" / "step_00000000" / "ema.safetensors").stat().st_size
    with files_of_at_most(largest + 1_000):  # the optimizer's are as large again
        message = told(call(main, f"{line} --method mdlm --output_dir {tmp_path}/run"))
    assert f"{tmp_path}/run/checkpoints/step_00000002/optimizer.safetensors: File too large" in message
    assert "the last good checkpoint is step_00000000: " in message
    assert names(tmp_path / "run" / "checkpoints") == ["step_00000000"]
    with files_of_at_most(1_000):  # and what is not a checkpoint: the row of the second step
        message = told(call(main, f"--resume_training --resume_dir {tmp_path}/run"))
    assert f"{tmp_path}/run/" in message and "File too large" in message and "step_00000000: " in message
    assert call(main, f"--resume_training --resume_dir {tmp_path}/run").status == 0


@pytest.mark.parametrize("part", [0.2, 0.999])
def test_a_cache_that_has_no_room_is_named_and_leaves_nothing(small_disk, small_run, call, line, part):
    cache = next((small_run("latent").parent / "latents").glob("plain-train-*"))
    disk = small_disk(max(4096, int(size_of(cache) * part)) // 4096 * 4096)
    message = told(call(main, f"{line} --save_dir {disk}"))
    assert f"{disk}/latents/plain-train-" in message and "No space left on device" in message
    assert names(disk / "latents") == []


def test_a_decoder_that_has_no_room_leaves_nothing(small_decoder, data_dir, call):
    place = small_decoder.parent  # where the texts are encoded already
    with files_of_at_most(1_000_000):
        outcome = call(train_decoder.main, f"{SMALL_DECODER} {places(data_dir, place)} --steps 1 --name other")
    assert "bart-demo-other: File too large; check the disk" in told(outcome)
    assert not [name for name in names(place) if "other" in name]
