"""Checkpoints: exact round trips, never half of one in sight, nothing pickled, damage told in one line."""

import errno
import json
import os
import pickletools
import resource
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion.process import DiffusionError
from diffusion.training import checkpoint, files
from diffusion.training.optim import OptimOptions, make_ema, make_optimizer

WHOLE = {"model.safetensors", "random.safetensors", "state.json", "checksums.json"}


def tensors(seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": {"weight": torch.randn(3, 4, generator=generator), "count": torch.tensor(seed)},
        "random": {"state": generator.get_state()},
    }


def save(run_dir, step: int, keep: int = 0):
    return checkpoint.save(run_dir, step, tensors(step), {"step": step}, keep)


def steps(run_dir) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.checkpoints(run_dir)]


def trained(optimizer: str, updates: int = 3, seed: int = 0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    optim = make_optimizer(net, OptimOptions(optimizer=optimizer, learning_rate=1e-2))
    for _ in range(updates):
        train_once(net, optim)
    return net, optim


def train_once(net, optim):
    optim.zero_grad()
    net(torch.arange(8.0).view(2, 4)).square().sum().backward()
    optim.step()


# Round trips


def test_tensors_and_state_come_back_exactly(tmp_path):
    state = {"step": 7, "rate": 0.1, "text": "Zoë", "nothing": None}
    place = checkpoint.save(tmp_path, 7, tensors(), state, keep=1)
    assert place == tmp_path / "checkpoints" / "step_00000007"
    (random, model), loaded = checkpoint.load(place, "random", "model")
    assert loaded == state
    for group, name in ((model, "model"), (random, "random")):
        assert group.keys() == tensors()[name].keys()
        for key, value in tensors()[name].items():
            assert torch.equal(group[key], value) and group[key].dtype == value.dtype


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_an_optimizer_goes_on_exactly_where_it_was(tmp_path, optimizer):
    net, optim = trained(optimizer)
    groups = {"model": net.state_dict(), "optimizer": checkpoint.optimizer_tensors(optim)}
    place = checkpoint.save(tmp_path, 3, groups, {}, keep=1)
    other_net, other_optim = trained(optimizer, updates=1, seed=5)
    (model, state), _ = checkpoint.load(place, "model", "optimizer")
    checkpoint.load_weights(other_net, model, place)
    checkpoint.load_optimizer(other_optim, state)
    for _ in range(3):
        train_once(net, optim)
        train_once(other_net, other_optim)
    for (name, one), other in zip(net.state_dict().items(), other_net.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert not torch.equal(model["0.weight"], other_net[0].weight)  # and it does move


def test_a_moving_average_comes_back_with_its_count(tmp_path):
    net, _ = trained("adamw")
    ema = make_ema(net, OptimOptions())
    for _ in range(120):
        net[0].weight.data.add_(1)
        ema.update()
    place = checkpoint.save(tmp_path, 3, {"ema": ema.state_dict()}, {}, keep=1)
    other = make_ema(trained("adamw", seed=5)[0], OptimOptions())
    ((state,), _) = checkpoint.load(place, "ema")
    checkpoint.load_weights(other, state, place)
    assert other.get_current_decay() == ema.get_current_decay() > 0
    assert torch.equal(other.ema_model[0].weight, ema.ema_model[0].weight)
    assert not torch.equal(ema.ema_model[0].weight, net[0].weight)


def test_random_states_come_back_for_the_training_and_the_global_generator(tmp_path):
    generators = {name: torch.Generator().manual_seed(seed) for name, seed in (("training", 3), ("host", 5))}
    torch.manual_seed(4)
    draw = lambda own: [torch.rand(5), *(torch.rand(5, generator=each) for each in own.values())]  # noqa: E731
    draw(generators)
    place = checkpoint.save(tmp_path, 1, {"random": checkpoint.random_states(generators)}, {}, keep=1)
    expected = draw(generators)
    others = {name: torch.Generator().manual_seed(30) for name in generators}
    torch.manual_seed(40)
    ((states,), _) = checkpoint.load(place, "random")
    checkpoint.load_random_states(others, states)
    assert all(map(torch.equal, draw(others), expected))


@pytest.mark.parametrize("training", [torch.zeros(16, dtype=torch.uint8), None])  # CUDA's; an older version's
def test_random_states_of_another_kind_of_device_or_of_none_are_refused_in_one_line(training):
    generators = {"training": torch.Generator()}
    states = {name: state for name, state in {"training": training}.items() if state is not None}
    with pytest.raises(DiffusionError, match="random state") as refusal:
        checkpoint.load_random_states(generators, states)
    assert "\n" not in str(refusal.value)


def test_nothing_in_a_checkpoint_is_pickled(tmp_path):
    place = save(tmp_path, 1)
    assert {file.name for file in place.iterdir()} == WHOLE
    json.loads((place / "state.json").read_text())
    for file in place.iterdir():
        content = file.read_bytes()
        assert not content.startswith(b"PK") and not content.startswith(b"\x80")  # torch.save, pickle
        with pytest.raises(Exception):  # noqa: B017 (whatever pickletools makes of it)
            list(pickletools.genops(content))


# Never half a checkpoint


class Killed(BaseException):
    """Stands for a process that dies here."""


@pytest.mark.parametrize("dies_in", ["write_tensors", "seal", "replace", "rmtree"])
def test_a_save_that_dies_leaves_the_older_checkpoint_and_nothing_that_looks_like_one(tmp_path, monkeypatch, dies_in):
    save(tmp_path, 1)
    real = checkpoint.write_tensors

    def die(*args, **kwargs):
        raise Killed

    def die_at_the_second_file(path, group):
        real(path, group)
        if path.name.startswith("random"):
            raise Killed

    with monkeypatch.context() as patch:
        if dies_in == "replace":
            patch.setattr(files.os, "replace", die)
        elif dies_in == "rmtree":  # nothing is cleaned up, as after SIGKILL
            patch.setattr(checkpoint, "seal", die)
            patch.setattr(files.shutil, "rmtree", lambda *args, **kwargs: None)
        else:
            patch.setattr(checkpoint, dies_in, {"write_tensors": die_at_the_second_file, "seal": die}[dies_in])
        with pytest.raises(Killed):
            save(tmp_path, 2, keep=1)
    assert steps(tmp_path) == [1]
    assert (len(list((tmp_path / "checkpoints").iterdir())) == 2) == (dies_in == "rmtree")
    assert checkpoint.load(checkpoint.find_checkpoint(tmp_path), "model")[1] == {"step": 1}
    save(tmp_path, 2, keep=1)  # what was left over is in nobody's way, and does not pile up
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]


def test_every_folder_in_sight_is_whole_while_a_checkpoint_is_written_and_old_ones_go(tmp_path, monkeypatch):
    seen = []

    def look(real):
        def looking(*args, **kwargs):
            result = real(*args, **kwargs)
            for path in checkpoint.checkpoints(tmp_path):
                assert {file.name for file in path.iterdir()} == WHOLE
            seen.append(steps(tmp_path))
            return result

        return looking

    for step in (1, 2):
        save(tmp_path, step)
    monkeypatch.setattr(checkpoint, "write_tensors", look(checkpoint.write_tensors))
    for name in ("replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, look(getattr(os, name)))
    save(tmp_path, 3, keep=1)
    save(tmp_path, 3, keep=1)  # again in the same place
    monkeypatch.undo()
    assert [1, 2, 3] in seen and steps(tmp_path) == [3]


def test_a_left_over_folder_and_other_files_are_no_checkpoints(tmp_path):
    save(tmp_path, 5)
    for name in (".step_00000009", ".step_00000009.123", "step_9", "step_backup00", "notes"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "step_00000008").write_text("a file")
    assert steps(tmp_path) == [5]
    assert checkpoint.find_checkpoint(tmp_path).name == "step_00000005"


# Which ones are kept and found


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3, 10]), (1, [10]), (2, [3, 10]), (9, [1, 2, 3, 10])])
def test_the_newest_checkpoints_are_kept(tmp_path, keep, left):
    for step in (1, 2, 3, 10):
        save(tmp_path, step, keep)
    assert steps(tmp_path) == left


@pytest.mark.parametrize("keep", [0, 2])
def test_going_on_from_an_older_checkpoint_replaces_the_newer_ones(tmp_path, keep):
    """Else the next resume would take up a continuation that was given up, or a new checkpoint would be the oldest."""
    for step in (10, 20, 30, 40):
        save(tmp_path, step, keep=0)
    save(tmp_path, 25, keep)
    assert steps(tmp_path) == ([10, 20, 25] if keep == 0 else [20, 25])


def test_a_step_can_be_asked_for_and_what_is_missing_is_told_with_what_there_is(tmp_path):
    for step in (5, 10):
        save(tmp_path, step)
    assert checkpoint.find_checkpoint(tmp_path).name == "step_00000010"
    assert checkpoint.find_checkpoint(tmp_path, 5).name == "step_00000005"
    with pytest.raises(DiffusionError, match="step 7.*step_00000005, step_00000010") as refusal:
        checkpoint.find_checkpoint(tmp_path, 7)
    assert "\n" not in str(refusal.value)
    with pytest.raises(DiffusionError, match="none"):
        checkpoint.find_checkpoint(tmp_path / "nowhere")


# On the disk


def test_all_of_a_checkpoint_is_on_the_disk_before_it_gets_its_name_and_before_older_ones_go(tmp_path, monkeypatch):
    save(tmp_path, 1)
    done, sync, replace = [], os.fsync, os.replace
    path_of = lambda handle: Path(os.readlink(f"/proc/self/fd/{handle}"))  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(path_of(handle)) or sync(handle))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append(Path(paths[1]).name) or replace(*paths))
    place = save(tmp_path, 2, keep=1)
    beside, inside = done[4], {path.name for path in done[:4]}
    assert inside == WHOLE and {path.parent for path in done[:4]} == {beside}
    assert done[5:] == [place.name, place.parent, ".step_00000001.old"]


@pytest.mark.parametrize("room", [100, 1_500, 4_000])  # bytes that a file may have: of tensors, of several of them
def test_a_disk_that_does_not_take_it_leaves_the_older_checkpoint_and_names_the_file(tmp_path, room):
    save(tmp_path, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        with pytest.raises(OSError, match=r"checkpoints/step_00000002/\w+.safetensors") as refusal:
            checkpoint.save(tmp_path, 2, {"model": {"w": torch.zeros(64)}, "random": {"w": torch.zeros(2_000)}}, {}, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert refusal.value.errno == errno.EFBIG
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert checkpoint.fault(tmp_path / "checkpoints" / "step_00000001") is None


# Damage


def damage(path, how: str) -> None:
    content = path.read_bytes()
    if how == "gone":
        return path.unlink()
    middle = len(content) // 2
    path.write_bytes(
        {
            "empty": b"",
            "cut": content[:-4],
            "cut early": content[:4],
            "one bit": content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :],
            "last bit": content[:-1] + bytes([content[-1] ^ 1]),
            "other bytes": b"\xff\xfe" * middle,
            "zeros": bytes(len(content)),
            "longer": content + b" ",
        }[how]
    )


FILES = ["model.safetensors", "random.safetensors", "state.json", "checksums.json"]
DAMAGES = ["gone", "empty", "cut", "cut early", "one bit", "last bit", "other bytes", "zeros", "longer"]


@pytest.mark.parametrize(("file", "how"), list(product(FILES, DAMAGES)))
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, file, how, capsys):
    save(tmp_path, 1)
    place = save(tmp_path, 2)
    damage(place / file, how)
    found = checkpoint.find_checkpoint(tmp_path, groups=["model", "random"])
    told = capsys.readouterr()
    harmless = file == "checksums.json" and how in ("gone", "longer", "last bit")  # a blank, the end of the line
    if harmless and found == place:
        assert told.err == ""
        return
    assert found.name == "step_00000001" and not (harmless and how == "gone")
    (line,) = told.err.splitlines()
    what = "" if (file, how) == ("checksums.json", "one bit") else file  # which blames the file that it speaks of
    assert line.startswith(f"warning: {place}: damaged ({what}") and line.endswith("step_00000001 is used instead")
    with pytest.raises(DiffusionError, match=r"step_00000002: damaged .*; .*another --milestone") as refusal:
        checkpoint.find_checkpoint(tmp_path, 2)
    assert "\n" not in str(refusal.value)
    assert steps(tmp_path) == [1, 2]  # looking changes nothing


def test_with_no_checkpoint_intact_each_is_named_with_what_is_wrong(tmp_path, capsys):
    for step, (file, how) in enumerate([("model.safetensors", "cut"), ("state.json", "gone")]):
        damage(save(tmp_path, step) / file, how)
    with pytest.raises(DiffusionError) as refusal:
        checkpoint.find_checkpoint(tmp_path)
    message = str(refusal.value)
    assert "step_00000001: damaged (state.json: missing)" in message and "\n" not in message
    assert "step_00000000: damaged (model.safetensors: has" in message and "no checkpoint is intact" in message


@pytest.mark.parametrize("how", ["gone", "empty", "cut", "cut early", "other bytes", "zeros", "longer"])
@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
def test_a_checkpoint_without_checksums_is_used_if_its_files_can_be_read(tmp_path, file, how, capsys):
    save(tmp_path, 1)
    place = save(tmp_path, 2)
    (place / "checksums.json").unlink()
    assert checkpoint.find_checkpoint(tmp_path, groups=["model"]) == place
    damage(place / file, how)
    if (file, how) == ("state.json", "longer"):  # by a blank
        return
    assert checkpoint.find_checkpoint(tmp_path, groups=["model"]).name == "step_00000001"
    assert f"{place}: damaged ({file}" in capsys.readouterr().err


def test_a_checkpoint_without_what_is_asked_of_it_is_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(DiffusionError, match=r"damaged \(ema.safetensors: missing\)"):
        checkpoint.find_checkpoint(tmp_path, groups=checkpoint.GROUPS)


def test_one_for_sampling_is_told_from_one_that_has_lost_files(tmp_path):
    (averaged, *_), groups = tensors().values(), ("model", "ema", "optimizer", "random")
    place = checkpoint.save(tmp_path, 1, dict.fromkeys(groups, averaged), {}, 0)
    for name in ("model", "optimizer", "random"):
        (place / f"{name}.safetensors").unlink()
    assert not checkpoint.is_for_sampling(place)  # its record tells that it had them
    (place / "checksums.json").unlink()
    assert checkpoint.is_for_sampling(place)
    checkpoint.seal(place)
    assert checkpoint.is_for_sampling(place)
    (place / "checksums.json").write_text("[]")
    assert not checkpoint.is_for_sampling(place)


@pytest.mark.parametrize("record", ["[]", "{}", '{"../../a": {"bytes": 1, "sha256": "0"}}', '{"state.json": 3}',
                                    '{"state.json": {"bytes": "1", "sha256": "0"}}'])  # fmt: skip
def test_a_record_that_no_checkpoint_has_is_damage(tmp_path, record):
    place = save(tmp_path, 1)
    (place / "checksums.json").write_text(record)
    wanted = "checksums.json: not a record" if record != "{}" else "state.json: missing"
    assert checkpoint.fault(place).startswith(wanted)


def test_one_set_aside_is_kept_but_counts_no_more(tmp_path):
    for name in ("step_00000002.damaged", "step_00000002.damaged_2"):
        save(tmp_path, 1)
        assert checkpoint.set_aside(save(tmp_path, 2)).name == name
    save(tmp_path, 3, keep=2)
    assert steps(tmp_path) == [1, 3]
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert sorted(names) == ["step_00000001", "step_00000002.damaged", "step_00000002.damaged_2", "step_00000003"]


def test_a_file_that_turns_bad_under_a_reader_is_one_line(tmp_path):
    place = save(tmp_path, 1)
    damage(place / "model.safetensors", "cut")
    with pytest.raises(DiffusionError, match="step_00000001.*older checkpoint") as refusal:
        checkpoint.load(place, "model", "random")
    assert "\n" not in str(refusal.value)


def test_weights_of_another_model_are_one_line(tmp_path):
    with pytest.raises(DiffusionError, match="another model") as refusal:
        checkpoint.load_weights(nn.Linear(4, 3), nn.Linear(4, 5).state_dict(), tmp_path)
    assert "\n" not in str(refusal.value)
    with pytest.raises(DiffusionError, match="another model"):
        checkpoint.load_weights(nn.Linear(4, 3), nn.Linear(4, 3, bias=False).state_dict(), tmp_path)
