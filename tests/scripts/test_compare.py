"""The table over several runs: a run that was evaluated, folders written by hand, and folders that are not as they
should be."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from diffusion.training import checkpoint
from offline_metrics.scores import Scores
from scripts import compare
from train_text_diffusion import main

HUMAN = {"corpus_perplexity": 20.0, "mean_words": 11.0, "total_words": 44.0, "notes": {}}
EVALUATED = "evaluation/test_step_00000007"
LIKELIHOOD = "evaluation/likelihood_step_00000007"


@pytest.fixture
def made(tmp_path):
    """made(name, rows, timings, likelihood) is a run folder of step 7 with these scores; what is None it lacks."""

    def make(name, rows=None, timings=(), likelihood=None):
        run_dir = tmp_path / name
        tensors = {"step": torch.tensor(7), "ema_model.a": torch.zeros(300, 200), "ema_model.b": torch.zeros(())}
        checkpoint.save(run_dir, 7, {"ema": tensors}, {}, keep=0)
        files = {f"{EVALUATED}/seed_{seed}/timing.json": timing for seed, timing in enumerate(timings, start=42)}
        files[f"{EVALUATED}/scores.json"] = None if rows is None else {"human": HUMAN} | rows
        files[f"{LIKELIHOOD}/scores.json"] = likelihood
        for file, content in files.items():
            if content is not None:
                (run_dir / file).parent.mkdir(parents=True, exist_ok=True)
                (run_dir / file).write_text(json.dumps(content))
        return run_dir

    return make


@pytest.fixture
def compared(call):
    """compared(*run_dirs, flags) is the table as {row: {column: cell}}, and the outcome."""

    def run(*run_dirs, flags=""):
        outcome = call(compare.main, f"--runs {' '.join(map(str, run_dirs))} {flags}")
        assert outcome.status == 0, outcome.err
        lines = [line[1:-1].split("|") for line in outcome.out.splitlines() if line.startswith("|")]
        (_, *columns), _, *rows = [[cell.strip() for cell in line] for line in lines]
        table = {title: dict(zip(columns, cells, strict=True)) for title, *cells in rows}
        assert len(table) == len(rows)  # no name twice
        return table, outcome

    return run


@pytest.fixture(scope="module")
def evaluated(small_run, call, tmp_path_factory):
    """A copy of a run after --eval_test and --ppl_eval."""
    run_dir = Path(shutil.copytree(small_run("gidd", "--T_schedule linear"), tmp_path_factory.mktemp("runs") / "own"))
    for mode in ("eval_test", "ppl_eval"):
        outcome = call(main, f"--{mode} --resume_dir {run_dir}")
        assert outcome.status == 0, outcome.err
    return run_dir


# The table


def test_a_run_that_was_evaluated(evaluated, compared, loaded):
    table, _ = compared(evaluated)
    assert list(table) == ["human text", "own"]
    folder = evaluated / "evaluation"
    scores = json.loads((folder / "test_step_00000004" / "scores.json").read_text())
    (bound,) = json.loads((folder / "likelihood_step_00000004" / "scores.json").read_text()).values()
    timings = [json.loads(path.read_text()) for path in folder.glob("test_step_00000004/seed_*/timing.json")]
    assert len(timings) == 5 and sum(timing["samples"] for timing in timings) == 20
    assert all(timing["processes"] == 1 for timing in timings)
    seconds = sum(timing["seconds"]["sample"] for timing in timings) / 20
    millions = sum(p.numel() for p in loaded(evaluated).denoiser.parameters()) / 1e6
    row = table["own"]
    assert row["nats/token ↓"] == f"{bound['nats_per_token']:.3f} ± {bound['nats_per_token_std']:.3f}"
    assert row["nats/word ↓"] == f"{bound['nats_per_word']:.3f} ± {bound['nats_per_word_std']:.3f}"
    assert (row["s/sample ↓"], row["M params"]) == (f"{seconds:.3f}", f"{millions:.2f}")
    for title, name, form in (
        ("corpus PPL ↓", "corpus_perplexity", ".1f"), ("diversity ↑", "diversity", ".3f"),
        ("entropy", "unigram_entropy", ".3f"), ("words per text", "mean_words", ".1f"),
    ):  # fmt: skip
        for printed, found in (("own", scores["sample"]), ("human text", scores["human"])):
            assert table[printed][title] == f"{found[name]:{form}} ± {found[f'{name}_std']:{form}}"
    assert table["human text"]["nats/token ↓"] == table["human text"]["s/sample ↓"] == ""
    assert not {"BLEU ↑", "div-4 ↑", "bits/character ↓"} & row.keys()


def test_runs_stand_in_the_order_given_below_one_human_row(made, compared):
    values = {"b": 3.0, "a": 1.0, "c": 2.0}
    runs = [made(name, {"sample": {"corpus_perplexity": value}}) for name, value in values.items()]
    table, outcome = compared(*runs)
    assert [(name, row["corpus PPL ↓"]) for name, row in table.items()] == [
        ("human text", "20.0"), ("b", "3.0"), ("a", "1.0"), ("c", "2.0")
    ]  # fmt: skip
    assert "warning" not in outcome.err
    assert list(compared(runs[1], f"{runs[0]}/")[0]) == ["human text", "a", "b"]


def test_columns_are_those_that_any_row_has(made, compared):
    one = made("one", {"sample": {"corpus_perplexity": 3.0, "perplexity": 4.0, "tokens": 5.0}})
    assert list(compared(one)[0]["one"]) == ["corpus PPL ↓", "words per text", "M params"]
    two = made("two", {"sample": {"bleu": 31.25}}, [{"seconds": 1.5, "samples": 2}, {"seconds": 0.5, "samples": 6}])
    table, _ = compared(one, two)
    assert list(table["one"]) == ["BLEU ↑", "corpus PPL ↓", "words per text", "s/sample ↓", "M params"]
    assert table["one"] == dict(zip(table["one"], ["", "3.0", "", "", "0.06"], strict=True))
    assert table["two"] == dict(zip(table["one"], ["31.25", "", "", "0.250", "0.06"], strict=True))


def test_each_way_of_writing_is_a_row_with_the_likelihood_of_its_run(made, compared):
    rows = {"sample": {"bleu": 1.0}, "mbr": {"bleu": 2.0}}
    paired = made("paired", rows, [{"seconds": 3, "samples": 4}], {"mdlm": {"nats_per_token": 2.5, "notes": {}}})
    latent = made("latent", {"beam": {"bleu": 3.0}, "nucleus": {"bleu": 4.0}})
    table, _ = compared(paired, latent)
    assert {name: (row["BLEU ↑"], row["nats/token ↓"], row["s/sample ↓"]) for name, row in table.items()} == {
        "human text": ("", "", ""),
        "paired, sample": ("1.00", "2.500", "0.750"), "paired, mbr": ("2.00", "2.500", "0.750"),
        "latent, beam": ("3.00", "", ""), "latent, nucleus": ("4.00", "", ""),
    }  # fmt: skip


def test_each_way_of_writing_has_its_own_seconds_and_a_choice_among_candidates_none(made, compared):
    rows = {name: {"bleu": 1.0} for name in ("beam", "nucleus", "mbr")}
    timings = [{"seconds": {"beam": 6.0, "nucleus": nucleus}, "samples": 4, "processes": 2} for nucleus in (1.0, 3.0)]
    table, _ = compared(made("run", rows, timings))
    assert [row["s/sample ↓"] for row in table.values()] == ["", "1.500", "0.500", ""]
    with_old, _ = compared(made("old", rows, [{"seconds": 8.0, "samples": 4}]))
    assert [row["s/sample ↓"] for row in with_old.values()] == ["", "2.000", "2.000", "2.000"]


def test_runs_of_one_name_are_told_apart_by_their_paths(made, compared):
    first, second, other = (made(name, {"sample": {"bleu": 1.0 + i}}) for i, name in enumerate(["x/run", "y/run", "z"]))
    table, _ = compared(first, second, other)
    assert [row["BLEU ↑"] for row in table.values()] == ["", "1.00", "2.00", "3.00"]
    assert list(table) == ["human text", str(first), str(second), "z"]
    assert len(compared(first, first)[0]) == 2  # the same run once


def test_a_value_that_is_missing_has_its_reason(made, compared):
    run_dir = made(
        "run",
        {"sample": {"mauve": None, "notes": {"mauve": "too few texts"}}},
        likelihood={"mdlm": {"nats_per_token": None, "notes": {"nats_per_token": "not a number"}}},
    )
    table, outcome = compared(run_dir)
    assert (table["run"]["nats/token ↓"], table["run"]["MAUVE ↑"]) == ("– [1]", "– [2]")
    assert "[1] nats/token: not a number" in outcome.out and "[2] MAUVE: too few texts" in outcome.out


def test_the_newest_step_is_compared(made, compared, complaint):
    run_dir = made("run", {"sample": {"bleu": 1.0}})
    older, newer = (run_dir / "checkpoints" / f"step_0000000{step}" for step in (6, 8))
    shutil.copytree(run_dir / "checkpoints" / "step_00000007", older)
    assert compared(run_dir)[0]["run"]["BLEU ↑"] == "1.00"
    shutil.copytree(older, newer)
    assert "test_step_00000008: no scores; run --eval_test" in complaint(compare.main, f"--runs {run_dir}")


def test_other_human_texts_are_told(made, compared):
    one, other = made("one", {"sample": {"bleu": 1.0}}), made("other", {"sample": {"bleu": 1.0}})
    path = other / EVALUATED / "scores.json"
    path.write_text(path.read_text().replace("44.0", "45.0"))
    table, outcome = compared(one, other)
    (warning,) = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert str(other) in warning and "other human texts" in warning
    assert list(table) == ["human text", "one", "other"]


def test_the_files_hold_all_that_was_found(evaluated, made, compared, tmp_path):
    folder, by_hand = tmp_path / "new" / "table", made("by_hand", {"sample": {"mauve": None}})
    _, outcome = compared(evaluated, by_hand, flags=f"--output_dir {folder}")
    assert outcome.out == compared(evaluated, by_hand)[1].out
    assert {path.name for path in folder.iterdir()} == {"scores.json", "table.md"}
    rows = {name: Scores.from_record(row) for name, row in json.loads((folder / "scores.json").read_text()).items()}
    assert list(rows) == ["human", "own", "by_hand"]
    scores = json.loads((evaluated / "evaluation" / "test_step_00000004" / "scores.json").read_text())
    assert rows["own"].as_record().items() >= {key: scores["sample"][key] for key in ("rep_2", "runs", "mauve")}.items()
    assert rows["own"]["nats_per_token"] > 0 and rows["own"]["seconds_per_sample"] > 0
    table = (folder / "table.md").read_text()
    assert re.search(r"^\| texts from +\| +human text +\| +own +\| +by_hand \|$", table, re.M)


# What is refused


@pytest.mark.parametrize(
    ("file", "content", "wanted"),
    [
        (f"{EVALUATED}/scores.json", None, f"{EVALUATED}: no scores; run --eval_test --resume_dir .*run first"),
        (f"{EVALUATED}/scores.json", "{}", f"{EVALUATED}: no scores"),
        (f"{EVALUATED}/scores.json", '{"sample": {}}', f"{EVALUATED}: no scores"),
        (f"{EVALUATED}/scores.json", '{"human": {', f"{EVALUATED}/scores.json: cannot be read"),
        (f"{EVALUATED}/scores.json", "[1]", f"{EVALUATED}/scores.json: cannot be read"),
        (f"{EVALUATED}/scores.json", '{"human": 3}', f"{EVALUATED}/scores.json: cannot be read"),
        (f"{EVALUATED}/scores.json", "\xff", f"{EVALUATED}/scores.json:1: cannot be read"),
        (f"{LIKELIHOOD}/scores.json", '{"mdlm": []}', f"{LIKELIHOOD}/scores.json: cannot be read"),
        (f"{EVALUATED}/seed_42/timing.json", "", "timing.json: cannot be read"),
        (f"{EVALUATED}/seed_42/timing.json", '{"seconds": 3}', "timing.json: cannot be read"),
        (f"{EVALUATED}/seed_42/timing.json", "[1, 2]", "timing.json: cannot be read"),
        ("checkpoints/step_00000007/ema.safetensors", "cut", r"damaged \(ema.safetensors: has 3 bytes"),
        ("checkpoints/step_00000007/ema.safetensors", None, r"damaged \(ema.safetensors: missing\)"),
    ],
)
def test_a_damaged_run(complaint, made, tmp_path, file, content, wanted):
    run_dir = made("run", {"sample": {"bleu": 1.0}}, [{"seconds": 1, "samples": 1}], {"mdlm": {"nats_per_token": 2.0}})
    good = made("good", {"sample": {"bleu": 1.0}})
    if content is None:
        (run_dir / file).unlink()
    else:
        (run_dir / file).write_bytes(content.encode("latin-1"))
    assert re.search(wanted, complaint(compare.main, f"--runs {good} {run_dir} --output_dir {tmp_path / 'new'}"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", "expected --runs, the folders to compare"),
        ("--runs", "argument --runs: expected at least one argument"),
        ("--runs {tmp}", r"checkpoints: expected a checkpoint \(found: none\); give the folder of a run"),
        ("--runs {run} {tmp}/none", r"none/checkpoints: expected a checkpoint \(found: none\)"),
        ("--runs {run} --output_dir {tmp}/file", "--output_dir .*file: .*is a file; expected a folder"),
        ("--runs {run} --columns bleu", "unknown argument '--columns'"),
    ],
)
def test_a_wrong_command_line(complaint, made, tmp_path, line, wanted):
    (tmp_path / "file").write_text("no folder")
    run_dir = made("run", {"sample": {"bleu": 1.0}})
    assert re.search(wanted, complaint(compare.main, line.format(tmp=tmp_path, run=run_dir)))
