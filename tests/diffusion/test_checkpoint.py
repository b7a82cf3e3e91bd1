"""Checkpoints: exact round trips, never half of one in sight, nothing pickled, damage told in one line."""

import json
import pickletools

import pytest
import torch
from torch import nn

from diffusion.process import DiffusionError
from diffusion.training import checkpoint
from diffusion.training.optim import OptimOptions, make_ema, make_optimizer


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
    assert {file.name for file in place.iterdir()} == {"model.safetensors", "random.safetensors", "state.json"}
    json.loads((place / "state.json").read_text())
    for file in place.iterdir():
        content = file.read_bytes()
        assert not content.startswith(b"PK") and not content.startswith(b"\x80")  # torch.save, pickle
        with pytest.raises(Exception):  # noqa: B017 (whatever pickletools makes of it)
            list(pickletools.genops(content))


# Never half a checkpoint


class Killed(BaseException):
    """Stands for a process that dies here."""


@pytest.mark.parametrize("dies_in", ["save_file", "os.replace", "json.dumps"])
def test_a_save_that_dies_leaves_the_older_checkpoint_and_nothing_that_looks_like_one(tmp_path, monkeypatch, dies_in):
    save(tmp_path, 1)
    real = checkpoint.save_file

    def die(*args, **kwargs):
        raise Killed

    def die_at_the_second_file(group, path):
        real(group, path)
        if path.name.startswith("random"):
            raise Killed

    replaced = {"save_file": die_at_the_second_file, "os.replace": die, "json.dumps": die}[dies_in]
    monkeypatch.setattr(f"diffusion.training.checkpoint.{dies_in}", replaced)
    with pytest.raises(Killed):
        save(tmp_path, 2, keep=1)
    assert steps(tmp_path) == [1]
    monkeypatch.undo()
    assert checkpoint.load(checkpoint.find_checkpoint(tmp_path), "model")[1] == {"step": 1}
    save(tmp_path, 2, keep=1)  # what was left over is in nobody's way, and does not pile up
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]


def test_every_folder_in_sight_is_whole_while_a_checkpoint_is_written_and_old_ones_go(tmp_path, monkeypatch):
    whole = {"model.safetensors", "random.safetensors", "state.json"}
    seen = []

    def look(real):
        def looking(*args, **kwargs):
            result = real(*args, **kwargs)
            for path in checkpoint.checkpoints(tmp_path):
                assert {file.name for file in path.iterdir()} == whole
            seen.append(steps(tmp_path))
            return result

        return looking

    for step in (1, 2):
        save(tmp_path, step)
    for name in ("save_file", "os.replace", "os.unlink", "os.rmdir"):
        target = f"diffusion.training.checkpoint.{name}"
        monkeypatch.setattr(target, look(getattr(checkpoint.os, name[3:]) if "os." in name else checkpoint.save_file))
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


# Damage


@pytest.mark.parametrize("file", ["model.safetensors", "random.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "cut early", "other bytes", "zeros"])
def test_a_damaged_file_is_one_line_that_names_the_checkpoint(tmp_path, file, damage):
    place = save(tmp_path, 1)
    content = (place / file).read_bytes()
    if damage == "gone":
        (place / file).unlink()
    else:
        (place / file).write_bytes(
            {
                "empty": b"",
                "cut": content[:-4],
                "cut early": content[:4],
                "other bytes": b"\xff\xfe" * (len(content) // 2),
                "zeros": bytes(len(content)),
            }[damage]
        )
    with pytest.raises(DiffusionError, match="step_00000001.*older checkpoint") as refusal:
        checkpoint.load(place, "model", "random")
    assert "\n" not in str(refusal.value)


def test_weights_of_another_model_are_one_line(tmp_path):
    with pytest.raises(DiffusionError, match="another model") as refusal:
        checkpoint.load_weights(nn.Linear(4, 3), nn.Linear(4, 5).state_dict(), tmp_path)
    assert "\n" not in str(refusal.value)
    with pytest.raises(DiffusionError, match="another model"):
        checkpoint.load_weights(nn.Linear(4, 3), nn.Linear(4, 3, bias=False).state_dict(), tmp_path)
