"""Two processes of `accelerate launch` do what one does: the same losses, texts and scores, each made once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.job.processes import main_first, shared_out
from train_text_diffusion import main

ROOT = Path(__file__).parents[3]
# Calls of the entry script, one after the other: a process needs seconds to start.
CALLS = """
import faulthandler, json, shlex, sys
from scripts.job.errors import run
from train_text_diffusion import main

faulthandler.dump_traceback_later(120, exit=True)
for line in json.loads(sys.argv[1]):
    sys.argv = ["train_text_diffusion.py", *shlex.split(line)]
    run(main)
"""
TRAIN = (
    "--dataset_name plain --perplexity_model gpt2-demo --mauve_model gpt2-demo --enc_dec_model bart-demo --tx_dim 64 "
    "--tx_depth 1 --max_length 24 --timesteps 20 --sampling_timesteps 3 --num_train_steps 6 --train_batch_size 17 "
    "--eval_batch_size 3 --save_and_sample_every 3 --log_every 1 --num_samples 7 --keep_checkpoints 0 "
    "--self_condition --disable_dropout --lr_warmup_steps 0"
)


@pytest.fixture(scope="module")
def places(small_run, tmp_path_factory) -> dict[str, Path]:
    """Folders of what one process (`one`) and two (`two`) made of the same commands."""
    runs = {method: small_run(method) for method in ("latent", "mdlm")}
    return {"base": tmp_path_factory.mktemp("processes"), **runs}


def command_lines(places: dict[str, Path], data_dir: Path, name: str) -> list[str]:
    place = places["base"] / name
    return [
        f"{TRAIN} --data_dir {data_dir} --save_dir {place / 'saved'} --output_dir {place / 'trained'}",
        *(
            f"--{mode} --resume_dir {places[method]} --save_dir {place / 'saved'} --output_dir {place / method} "
            f"--eval_batch_size 2 {own}"
            for method, mode, own in (
                *((method, "eval", "--num_samples 7") for method in ("latent", "mdlm")),
                *((method, "ppl_eval", "") for method in ("latent", "mdlm")),
                ("latent", "gen_data", "--num_samples 7"),
            )
        ),
    ]


@pytest.fixture(scope="module")
def made(places, data_dir, call) -> Path:
    """The folder of both."""
    script = places["base"] / "calls.py"
    script.write_text(CALLS)
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1",
         "--dynamo_backend=no", "--mixed_precision=no", "--main_process_port=0", str(script),
         json.dumps(command_lines(places, data_dir, "two"))],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for line in command_lines(places, data_dir, "one"):
        outcome = call(main, line)
        assert outcome.status == 0, outcome.err
    (places["base"] / "out").write_text(done.stdout)
    return places["base"]


def files(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for what depends on the clock."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in found.items() if path.name != "timing.json"}


@pytest.mark.parametrize("method", ["latent", "mdlm"])
def test_evaluations_are_those_of_one_process(made, method):
    one, two = files(made / "one" / method), files(made / "two" / method)
    assert one.keys() == two.keys() and len(one) > 3
    for name, content in one.items():
        assert two[name] == content, name


def test_every_text_is_made_once_and_said_once(made):
    rows = (made / "two" / "latent" / "evaluation" / "valid_step_00000004" / "seed_42" / "beam.jsonl").read_text()
    seeds = [json.loads(row)["seed"] for row in rows.splitlines()]
    assert len(seeds) == len(set(seeds)) == 7
    out = (made / "out").read_text()
    assert out.count("valid_step_00000004\n") == out.count("likelihood_step_00000004\n") == 2
    assert out.count("synth_sample7_seed42.csv\n") == 1


def test_training_and_its_evaluations_are_those_of_one_process(made, rows_of):
    one, two = (rows_of(made / name / "trained") for name in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [1, 2, 3, 3, 4, 5, 6, 6]
    for alone, shared in zip(one, two, strict=True):
        if "loss" in alone:
            names = ("loss", "valid_loss", "valid_loss_ema", "grad_norm", "epoch", "samples")
            assert {name: shared[name] for name in names} == pytest.approx(
                {name: alone[name] for name in names}, rel=1e-4
            )
    for step in (3, 6):
        folders = [made / name / "trained" / "evaluation" / f"step_{step:08d}" for name in ("one", "two")]
        assert files(folders[0]).keys() == files(folders[1]).keys()
    assert {path.name for path in (made / "two" / "trained").iterdir()} == {
        path.name for path in (made / "one" / "trained").iterdir()
    }


def test_one_process_shares_with_nobody():
    assert shared_out([3, 1, 2], lambda item: item * 2) == [6, 2, 4]
    with main_first():
        pass
