"""Evaluations that are cut short and go on, those asked otherwise, and those of before that was written down."""

import json
import shutil

import pytest

from diffusion.training.signals import Stopped
from offline_metrics import report
from scripts.evaluation import evaluation
from scripts.evaluation.asked import asked_of, difference
from scripts.evaluation.run_folder import scores
from train_text_diffusion import main

SEEDS = [f"seed_{seed}" for seed in (42, 43, 44, 45, 46)]
ALONE = {"timing.json"}  # differs when the same is done again


@pytest.fixture
def evaluated(small_run, call, tmp_path):
    """evaluated(name, flags) is what --eval_test of a small run said, and the folder that it made under a name."""

    def run(name="own", more="", mode="eval_test", of=None):
        outcome = call(main, f"--{mode} --resume_dir {of or small_run('mdlm')} --output_dir {tmp_path / name} {more}")
        (folder,) = (tmp_path / name / "evaluation").iterdir()
        return outcome, folder

    return run


@pytest.fixture
def stopped_at(monkeypatch):
    """stopped_at(n) ends the n-th evaluation of a seed as a signal would; the list of seeds evaluated grows."""
    evaluate, made = evaluation.evaluate, []

    def begin(number):
        def stopping(system, suite, seed, *more):
            made.append(seed)
            if len(made) == number:
                raise Stopped()
            return evaluate(system, suite, seed, *more)

        made.clear()
        monkeypatch.setattr(evaluation, "evaluate", stopping)
        return made

    return begin


def files(folder):
    """What lies in a folder, but for what depends on the clock."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name not in ALONE}


def test_an_evaluation_that_is_cut_short_goes_on_and_ends_as_one_that_was_not(evaluated, stopped_at):
    whole, undisturbed = evaluated("whole")
    made = stopped_at(3)
    outcome, folder = evaluated()
    assert (outcome.status, made) == (75, [42, 43, 44])
    assert sorted(path.name for path in folder.iterdir()) == SEEDS[:2]
    made = stopped_at(None)
    outcome, _ = evaluated()
    assert (outcome.status, made) == (0, [44, 45, 46])
    assert f"{folder}: seed 42, 43 evaluated before and kept; remove the folder" in outcome.err
    assert files(folder) == files(undisturbed) and len(files(folder)) == 5 * 4 + 2
    assert outcome.out.replace("/own/", "/whole/") == whole.out
    made = stopped_at(None)
    assert evaluated()[0].out == outcome.out and made == []


@pytest.mark.parametrize(
    ("more", "wanted"),
    {
        "--sampling_timesteps 2": "was made with --sampling_timesteps 3, and asked is 2; give --output_dir",
        "--num_samples 5": "was made with --num_samples 4, and asked is 5",
        "--temperature 0.7": "was made with --temperature 1.0, and asked is 0.7",
        "--mauve_seeds 4": "was made with --mauve_seeds 3, and asked is 4",
    }.items(),
)
def test_what_is_asked_otherwise_is_refused_and_changes_nothing(evaluated, more, wanted):
    _, folder = evaluated(mode="eval")
    before = files(folder)
    outcome, _ = evaluated(more=more, mode="eval")
    (line,) = outcome.errors
    assert (outcome.status, outcome.out) == (2, "") and str(folder) in line and wanted in line
    assert files(folder) == before
    assert evaluated("other", more, "eval")[0].status == 0
    assert evaluated(more="--metric_batch_size 3 --eval_batch_size 2", mode="eval")[0].status == 0  # as fast, no more


def test_another_run_or_corpus_in_the_same_place_is_refused(evaluated, small_run, altered, data_dir, tmp_path):
    evaluated(mode="eval")
    other = altered(small_run("mdlm"), lambda weight, bias: bias.add_(1))
    assert "was made of other weights" in evaluated(mode="eval", of=other)[0].errors[0]
    copy = shutil.copytree(data_dir, tmp_path / "data")
    assert evaluated(mode="eval", more=f"--data_dir {copy}")[0].status == 0  # the same texts elsewhere
    texts = copy / "plain" / "test.jsonl"
    texts.write_text("".join(texts.read_text().splitlines(keepends=True)[:-1]))
    found = evaluated(mode="eval", more=f"--data_dir {copy}")[0].errors[0]
    assert "was made of other texts of the corpus" in found


def test_an_evaluation_of_before_is_made_anew_as_a_whole(evaluated, stopped_at):
    _, folder = evaluated()
    before = files(folder)
    for name in SEEDS:
        (folder / name / "asked.json").unlink()
    (folder / SEEDS[1] / "nucleus.jsonl").write_text("of another method")
    stopped_at(2)
    outcome, _ = evaluated(more="--num_samples 3")
    assert outcome.status == 75 and "seed_46 do not say what was asked; made anew" in outcome.err
    assert [path.name for path in folder.iterdir()] == SEEDS[:1]  # nothing of two kinds beside each other
    shutil.rmtree(folder)
    stopped_at(None)
    evaluated()
    assert files(folder) == before


def test_a_likelihood_is_kept_too(evaluated):
    outcome, folder = evaluated(mode="ppl_eval")
    assert outcome.status == 0, outcome.err
    before = files(folder)
    again, _ = evaluated(mode="ppl_eval")
    assert again.out == outcome.out and "evaluated before and kept" in again.err
    refused = evaluated(mode="ppl_eval", more="--likelihood_draws 3")[0].errors
    assert len(refused) == 1 and "was made with --likelihood_draws 2, and asked is 3" in refused[0]
    (folder / "asked.json").write_text("[")
    assert "asked.json: cannot be read" in evaluated(mode="ppl_eval")[0].errors[0]
    (folder / "asked.json").unlink()
    assert evaluated(mode="ppl_eval")[0].status == 0 and files(folder) == before


def test_scores_without_a_value_are_gathered_as_those_just_made(evaluated, stopped_at, monkeypatch):
    """An infinite score is none in a file, whether its seed was evaluated now or before."""
    score = evaluation.MetricSuite.score

    def infinite(suite, texts):
        row = score(suite, texts)
        row["perplexity"] = float("inf")
        return row

    monkeypatch.setattr(evaluation.MetricSuite, "score", infinite)
    _, undisturbed = evaluated("whole")
    stopped_at(3), evaluated()
    stopped_at(None)
    _, folder = evaluated()
    assert files(folder) == files(undisturbed)
    assert "infinite" in scores(folder / "scores.json")["sample"].notes["perplexity"]


def test_a_flag_younger_than_an_evaluation_stood_at_its_default(loaded, small_run, tmp_path):
    asked = asked_of(loaded(small_run("mdlm")).options)
    report.write_json(tmp_path / "asked.json", {flag: value for flag, value in asked.items() if flag != "top_k"})
    assert difference(tmp_path, asked) is None
    assert difference(tmp_path, asked | {"top_k": 7}) == "was made with --top_k 0, and asked is 7"
    assert json.loads((tmp_path / "asked.json").read_text())["num_samples"] == 4
