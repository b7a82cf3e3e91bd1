"""The reference system's README command, at its full size, on both data formats, every schedule and both optimizers."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.composition.demo_grammar import write

ROOT = Path(__file__).parents[2]
COMMAND = (
    "--learning_rate 1e-4 --train_batch_size 64 --tx_dim 768 --tx_depth 12 --objective pred_x0 --loss_type l1 "
    "--beta_schedule linear --normalize_latent --scale_shift --self_condition --adam_weight_decay 0.01 "
    "--polynomial_T_power 2 --num_samples 1000 --random_seed 41 --wandb_name reference"
)
RUNS = [
    ("e2e", "normal", "adamW"), ("e2e", "linear", "lion"), ("e2e", "polynomial", "adamW"), ("e2e", "cosine", "lion"),
    ("roc", "normal", "lion"), ("roc", "linear", "adamW"), ("roc", "polynomial", "lion"), ("roc", "cosine", "adamW"),
]  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The two file formats, filled with sentences of the demo grammar."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    formats = {
        "e2e_data/src1_{}.txt": lambda: "{}||{}".format(*write(rng)),
        "ROCstory/roc_{}.json": lambda: json.dumps([" ".join(write(rng)[1] for _ in range(3))]),
    }
    for name, line in formats.items():
        for split, size in (("train", 256), ("valid", 64), ("test", 64)):
            path = folder / name.format(split)
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(line() + "\n" for _ in range(size)), encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "schedule", "optimizer"), RUNS)
def test_the_reference_command_trains(data_dir, tmp_path, dataset, schedule, optimizer):
    """In a process of its own, which gives its memory back."""
    line = (
        f"train_text_diffusion.py --dataset_name {dataset} --data_dir {data_dir} --enc_dec_model bart-demo {COMMAND} "
        f"--T_schedule {schedule} --optimizer {optimizer} --num_train_steps 2 --log_every 1 "
        f"--save_dir {tmp_path} --output_dir {tmp_path / 'run'}"
    )
    done = subprocess.run([sys.executable, *line.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["T"] == (1000 if schedule == "normal" else 200)
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert (tmp_path / "run" / "checkpoints" / "step_00000002" / "model.safetensors").is_file()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
