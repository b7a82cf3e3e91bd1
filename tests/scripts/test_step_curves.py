"""Curves of quality over sampling steps: each cell sampled once, as its sampler, its steps and its grid say."""

import json
import sys

import pytest

from scripts import step_curves
from scripts.evaluation import evaluation
from scripts.job.errors import USER_ERRORS, UsageError

RUN = "pre_trained_models/diffusion-demo"
METRICS = "--perplexity_model gpt2-demo --mauve_model gpt2-demo"


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs the command on the demo run; its results lie in tmp_path."""

    def call(line: str) -> None:
        words = f"step_curves --resume_dir {RUN} --output_dir {tmp_path} --num_samples 6 {METRICS} {line}".split()
        monkeypatch.setattr(sys, "argv", words)
        step_curves.main()

    return call


def test_every_cell_is_sampled_its_own_way_and_only_once(call, capsys, tmp_path, monkeypatch):
    made, sample = [], evaluation.sample

    def watched(system, *args, **settings):
        made.append((system.sampler, system.times))
        return sample(system, *args, **settings)

    monkeypatch.setattr(evaluation, "sample", watched)
    call("--cells ddim:3 dpmpp:2:0.5 --seeds 1 2")
    assert [len(times) - 1 for _, times in made] == [3, 3, 2, 2]
    assert made[0][0].func.__name__ == "sample_ddim" and made[2][0].func.__name__ == "sample_dpmpp"
    assert made[0][1][1] == pytest.approx(2 / 3, abs=1e-3) and made[2][1][1] == pytest.approx(0.5**0.5, abs=1e-3)
    printed = capsys.readouterr().out
    assert "| ddim 3 " in printed and "| dpmpp 2 0.5 " in printed and "| human text " in printed
    (folder,) = (tmp_path / "evaluation").iterdir()
    rows = json.loads((folder / "scores.json").read_text())
    assert rows.keys() == {"human", "ddim 3", "dpmpp 2 0.5"}
    by_seed = [json.loads((folder / "ddim_3" / f"seed_{i}" / "scores.json").read_text())["beam"] for i in (1, 2)]
    words = [row["mean_words"] for row in by_seed]
    assert rows["ddim 3"]["mean_words"] == pytest.approx(sum(words) / 2)

    made.clear()
    call("--cells ddim:3 q:2 --seeds 1 2 3")  # new: a third seed, another cell
    assert [len(times) - 1 for _, times in made] == [3, 2, 2, 2]
    made.clear()
    call("--cells sampler=churn,churn=2,sampling_timesteps=2 --seeds 1")
    assert made.pop()[0].keywords == {"churn": 2.0}
    with pytest.raises(UsageError, match="ddim_3: was made with --ddim_sampling_eta 1.0, and asked is 0.0; give --out"):
        call("--cells ddim:7 ddim:3 --seeds 1 --ddim_sampling_eta 0")
    assert made == [] and not (folder / "ddim_7").exists()
    call("--cells ddim:3 --seeds 1 --strategy greedy")  # beside the other; no evaluation takes it by itself
    assert len(made) == 1 and (folder / "ddim_3,greedy" / "seed_1" / "greedy.jsonl").is_file()
    (folder / "ddim_3" / "seed_1" / "asked.json").rename(folder / "ddim_3" / "seed_1" / "cell.json")
    call("--cells ddim:3 --seeds 1")  # of before
    assert len(made) == 2 and not (folder / "ddim_3" / "seed_1" / "cell.json").exists()
    (folder / "ddim_3" / "seed_1" / "asked.json").write_text('{"asked": ')
    with pytest.raises(UsageError, match="asked.json: cannot be read"):
        call("--cells ddim:3 --seeds 1")


@pytest.mark.parametrize(
    ("line", "wanted"),
    {
        "": "expected --cells",
        "--cells ddim": "expected SAMPLER:STEPS",
        "--cells ddim:x": "expected SAMPLER:STEPS",
        "--cells ddim:3:1.2.3": "expected SAMPLER:STEPS",
        "--cells euler:3": "--method latent has the samplers ddim, ancestral, dpmpp, q",
        "--cells ddim:2000": "--sampling_timesteps 2000 must be between",
        "--cells ddim:0": "--sampling_timesteps 0 must be 1 or more",
        "--cells ddim:3:0": "--grid_power 0.0 must be above 0",
        "--cells heat=3": "heat is no flag of sampling",
        "--cells temperature=0.5": "which --method latent does not predict",
        "--cells ddim:3 --seeds 1 -1": "--seeds -1: expected 0 to 4294967295",
        "--cells churn=2": "--churn belongs to --sampler churn",
        "--cells churn=2,sampler=churn,": "expected SAMPLER:STEPS",
        "--cells grid_power=x": "--grid_power.*: invalid float value",
        "--cells ddim:3 --strategy best": "--strategy 'best' is not one of: beam, nucleus, greedy",
    }.items(),
)
@pytest.mark.parametrize("asked", ["", "--dry_run"])
def test_a_cell_that_cannot_be_is_refused_before_anything_is_sampled(call, line, wanted, asked, tmp_path):
    with pytest.raises(USER_ERRORS, match=wanted) as error:
        call(f"{line} {asked}")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
