"""The report of runs: its numbers are those of the files, text stays text, and what is missing is told."""

import base64
import hashlib
import json
import re
import shutil
import statistics
from pathlib import Path

import pytest
from scipy import stats

from scripts.report.__main__ import main
from scripts.report.runs import find_runs, found_in

EVALUATED = "evaluation/test_step_00000400"
PAYLOAD = """</td></script><script>alert(1)</script><img src=x onerror="alert('2')">&amp; "q" \x00\x1b[31m"""


def rows_of(markdown: str, section: str | None = None) -> dict[str, dict[str, str]]:
    """A table of the Markdown as {row: {column: cell}}: that of a section, else the first."""
    part = markdown if section is None else markdown.split(f"## {section}")[1]
    lines = []
    for line in part.splitlines():
        if line.startswith("|"):
            lines.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line[1:-1])])
        elif lines:
            break
    (_, *columns), _, *rows = lines
    assert len({row[0] for row in rows}) == len(rows)
    return {title: dict(zip(columns, cells, strict=True)) for title, *cells in rows}


# What it tells


def test_the_numbers_of_one_run_are_those_of_its_files(report, write_run, tmp_path):
    run = write_run(tmp_path / "own", mauve=(0.7, 0.75, 0.86), ways=("beam", "nucleus"), method="latent")
    made = report(run)
    scores = json.loads((run / EVALUATED / "scores.json").read_text())
    table = rows_of(made.markdown)
    assert list(table) == ["human text", "own, beam", "own, nucleus"]
    for title, name in (("human text", "human"), ("own, beam", "beam")):
        row = scores[name]
        assert table[title]["MAUVE ↑"] == f"{row['mauve']:.3f} ± {row['mauve_std']:.3f}"
        assert table[title]["corpus PPL ↓"] == f"{row['corpus_perplexity']:.1f} ± {row['corpus_perplexity_std']:.1f}"
    assert (table["own, beam"]["seeds"], table["own, beam"]["s/sample ↓"]) == ("1 × 3", "0.500")
    assert table["own, beam"]["M params"] == "0.06"
    cells = [text for tag, text in made.page.said if tag == "td"]
    assert f"{scores['beam']['mauve']:.3f}" in cells and f"± {scores['beam']['mauve_std']:.3f}" in cells
    told = [text for tag, text in made.page.said if tag == "title"]
    assert "training: 4 at step 100" in told and "validation, EMA: 0.5 at step 400" in told
    assert "T_k: 650 at step 400" in told and "learning rate: 0.0002 at step 400" in told
    assert "own, beam: 0.35 at step 200" in told and "human text: 0.95" in told
    diversity = scores["beam"]["diversity"]
    assert f"own, beam: MAUVE ↑ {scores['beam']['mauve']:.4g}, diversity {diversity:.4g}" in told
    assert "own beam 42 number 3" in cells and "own nucleus 42 number 0" in cells
    assert made.err == "" and "Missing or doubtful" not in made.page.text


def test_a_sweep_has_means_over_seeds_and_paired_differences(report, sweep):
    made = report(sweep)
    table = rows_of(made.markdown)
    assert list(table) == ["human text", "linear", "normal"]
    for name, gains in (("linear", (0.01, 0.02, 0.06)), ("normal", (0, 0, 0))):
        means = [0.62 + seed / 100 + gain for seed, gain in zip((1, 2, 3), gains, strict=True)]
        assert table[name]["MAUVE ↑"] == f"{statistics.fmean(means):.3f} ± {statistics.stdev(means):.3f}"
        assert table[name]["seeds"] == "3 × 3"
    differences = rows_of(made.markdown, "Paired differences")
    assert list(differences) == ["linear − normal"]
    expected = stats.ttest_rel([0.64, 0.66, 0.71], [0.63, 0.64, 0.65]).confidence_interval()
    cell = differences["linear − normal"]["MAUVE ↑"]
    assert cell == f"+0.030 [{expected.low:+.3f}, {expected.high:+.3f}]".replace("-", "−")
    assert differences["linear − normal"]["pairs"] == "3 training seeds"
    (found,) = made.numbers["differences"]
    assert (found["setting"], found["baseline"], found["pairs"]) == ("linear", "normal", "training seeds")
    wanted = {"n": 3, "mean": 0.03, "low": expected.low, "high": expected.high}
    assert found["metrics"]["mauve"] == pytest.approx(wanted) and made.numbers["confidence"] == 0.95
    row = made.numbers["rows"]["linear"]
    assert f"{row['mauve']:.3f} ± {row['mauve_std']:.3f}" == table["linear"]["MAUVE ↑"]
    assert made.numbers["rows"].keys() == {"human", "linear", "normal"} and made.numbers["seeds"]["linear"] == "3 × 3"
    assert cell.split()[0] in [text for tag, text in made.page.said if tag == "b"]
    assert "study" in made.page.text and "6 runs · 2 settings · 6 with scores" in made.page.text
    assert made.err == ""


def test_runs_of_one_training_seed_are_paired_by_sampling_seed(report, write_run, tmp_path):
    write_run(tmp_path / "runs" / "a", mauve=(0.70, 0.72, 0.74), random_seed=5)
    write_run(tmp_path / "runs" / "b", mauve=(0.71, 0.75, 0.76), random_seed=5, learning_rate=0.5)
    write_run(tmp_path / "runs" / "c", mauve=(0.71, 0.75, 0.76), random_seed=6, learning_rate=0.25)
    made = report(tmp_path / "runs")
    differences = rows_of(made.markdown, "Paired differences")
    ours, base = "learning_rate=0.5", "learning_rate=0.0001"
    assert list(differences) == [f"{ours} − {base}"]
    assert differences[f"{ours} − {base}"]["pairs"] == "3 sampling seeds"
    assert differences[f"{ours} − {base}"]["MAUVE ↑"].startswith("+0.020 [")
    assert "another training seed would change is not in their intervals" in made.markdown
    alone = f"learning_rate=0.25 − {base}: no two runs with scores were trained with the same seed"
    assert alone in made.page.text and made.numbers["not_compared"] == [alone]


def test_losses_at_other_noise_are_not_drawn_together(report, write_run, tmp_path):
    for name, options in {"a": {}, "b": {"learning_rate": 0.5}, "c": {"timesteps": 50}}.items():
        write_run(tmp_path / "runs" / name, **options)
    text = report(tmp_path / "runs").page.text
    assert "Losses of settings that differ in timesteps are of different things and not drawn together." in text
    assert "validation loss, EMA (timesteps 1000)" in text and "EMA (timesteps 50)" not in text
    assert "not drawn together" not in report(tmp_path / "runs" / "a", tmp_path / "runs" / "b").page.text


def test_runs_scored_beside_other_texts_are_told_and_not_paired(report, write_run, tmp_path):
    write_run(tmp_path / "runs" / "a", random_seed=5)
    write_run(tmp_path / "runs" / "b", random_seed=5, learning_rate=0.5, human={"total_words": 2100.0, "mauve": 0.9})
    made = report(tmp_path / "runs")
    assert "warning: b: scored beside other human texts than a; compare with care" in made.err
    assert "learning_rate=0.5 − learning_rate=0.0001: scored beside other human texts" in made.markdown
    humans = {name: row["MAUVE ↑"] for name, row in rows_of(made.markdown).items() if name.startswith("human text")}
    assert humans == {"human text (a, test)": "0.950 ± 0.000", "human text (b, test)": "0.900 ± 0.000"}


def test_a_mean_is_over_runs_scored_alike(report, write_run, tmp_path):
    for seed, texts in ((1, 2000.0), (2, 2000.0), (3, 900.0), (2, 2000.0)):
        name = f"seed_{seed}" if not (tmp_path / "runs" / f"seed_{seed}").exists() else "again"
        values = [0.5 + seed / 10] * 3
        write_run(tmp_path / "runs" / name, mauve=values, random_seed=seed, human={"total_words": texts})
    made = report(tmp_path / "runs")
    assert "warning: seed_3: scored otherwise than again; left out of their mean" in made.err
    assert "warning: seed_2: has the options and the seed of again; both are counted" in made.err
    (row,) = [row for name, row in rows_of(made.markdown).items() if not name.startswith("human text")]
    spread = statistics.stdev([0.6, 0.7, 0.7])
    assert (row["MAUVE ↑"], row["seeds"]) == (f"0.667 ± {spread:.3f}", "3 × 3")


def test_settings_are_called_by_what_differs(report, write_run, tmp_path):
    place = tmp_path / "runs"
    for number, power in enumerate((2, 3)):
        write_run(place / f"run_{10 - number}", T_schedule="polynomial", polynomial_T_power=power)
    write_run(place / "run_11", log_every=7, save_dir="elsewhere")
    made = report(place)
    assert list(rows_of(made.markdown)) == [
        "human text", "polynomial, polynomial_T_power=3", "polynomial", "normal"
    ]  # fmt: skip


def test_a_run_that_was_evaluated(small_run, call, report, tmp_path):
    """What the program itself writes, from training to --eval_test."""
    import train_text_diffusion

    run = Path(shutil.copytree(small_run("mdlm", "--T_schedule linear"), tmp_path / "own"))
    assert call(train_text_diffusion.main, f"--eval_test --resume_dir {run}").status == 0
    made = report(run, flags="--film_strip 2")
    scores = json.loads((run / "evaluation" / "test_step_00000004" / "scores.json").read_text())["sample"]
    row = rows_of(made.markdown)["own"]
    assert row["diversity ↑"] == f"{scores['diversity']:.3f} ± {scores['diversity_std']:.3f}"
    assert row["seeds"] == "1 × 5"
    assert made.page.text.count("t = 0.67") == 2 and "<mask>" in made.page.text
    lines = (run / "evaluation" / "test_step_00000004" / "seed_42" / "sample.jsonl").read_text().splitlines()
    assert made.page.text.count(json.loads(lines[1])["text"].strip()) == 2  # among the texts and in the strip
    assert "warning" not in made.err


def test_the_film_strip_of_latents(small_run, report, loaded):
    run = small_run("latent")
    made = report(run, flags="--film_strip 1")
    places = [text for tag, text in made.page.said if tag == "span" and re.fullmatch(r"t = 0\.\d\d|text", text)]
    assert places == [*(f"t = {t:.2f}" for t in loaded(run).times[1:3]), "text"]


# Text is data


def test_nothing_that_runs_say_becomes_markup(report, write_run, tmp_path):
    place = tmp_path / "runs"
    run = write_run(place / "<script>alert(1)<" / "'\"><b onload=x>|", texts=[PAYLOAD, "", "a | b"])
    other = write_run(place / "other", data_dir=PAYLOAD, label_field="<i>", learning_rate=0.5)
    scores = json.loads((other / EVALUATED / "scores.json").read_text())
    scores["sample"] |= {"mauve": None, "notes": {"mauve": PAYLOAD}}
    (other / EVALUATED / "scores.json").write_text(json.dumps(scores))
    (run / "metrics.jsonl").write_text('{"step": 1, "<b>/mauve": 0.5, "loss": 1}\n{"step": 2, "loss": 2}\n')
    made = report(place)
    assert made.page.counts["script"] == 1 and not made.page.counts.keys() & {"img", "b onload", "i"}
    assert not [name for _, name, _ in made.page.attributes if name.startswith("on")]
    clean = re.sub("[\x00-\x08\x0b-\x1f]", "\ufffd", PAYLOAD)
    assert clean in [text for tag, text in made.page.said if tag == "td"]
    assert "\x00" not in made.html + made.markdown and "<" not in made.markdown
    assert "(empty)" in made.page.text and "a | b" in made.page.text


def test_a_run_called_human_is_not_the_human_row(report, write_run, tmp_path):
    made = report(write_run(tmp_path / "human", mauve=(0.5, 0.5, 0.5)))
    table = rows_of(made.markdown)
    assert [row["MAUVE ↑"] for row in table.values()] == ["0.950 ± 0.000", "0.500 ± 0.000"]
    assert list(table)[0] == "human text"


def test_the_page_asks_for_nothing(report, sweep):
    made = report(sweep)
    for tag, name, value in made.page.attributes:
        assert name not in ("src", "srcset", "style", "action", "data", "poster"), (tag, name)
        assert "//" not in (value or "") and (name != "href" or value.startswith("#"))
    styles, scripts = ("".join(text for tag, text in made.page.said if tag == name) for name in ("style", "script"))
    assert not re.search(r"url\(|@import|https?:", styles) and not re.search(r"fetch|import|https?:", scripts)
    (policy,) = [value for _, name, value in made.page.attributes if name == "content" and "default-src" in value]
    assert policy.startswith("default-src 'none'; ")
    for text in (styles, scripts):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    ids = {value for _, name, value in made.page.attributes if name == "id"}
    assert {value[1:] for _, name, value in made.page.attributes if name == "href"} <= ids


def test_the_same_runs_make_the_same_page(report, sweep):
    assert report(sweep).html == report(sweep).html


def test_a_long_run_makes_a_small_page(report, write_run, tmp_path):
    run = write_run(tmp_path / "long", num_train_steps=20_000)
    rows = ({"step": i, "loss": 1 + i % 7, "valid_loss_ema": 1.0, "T": 9} for i in range(1, 20_001))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = report(run)
    assert len(made.html) < 150_000
    assert "training: 2 at step 1" in made.html and "training: 2 at step 20,000" in made.html


# What is missing


@pytest.mark.parametrize(
    ("file", "content", "wanted"),
    [
        ("args.json", None, "args.json: cannot be read"),
        ("args.json", '{"T_schedule": 3}', "args.json: T_schedule is 3"),
        ("metrics.jsonl", None, "metrics.jsonl: No such file"),
        ("metrics.jsonl", '{"step": 1, "loss": 2.0}\n{"step": 2, "lo', "metrics.jsonl: 1 of 2 lines cannot be read"),
        ("metrics.jsonl", '[3]\n{"loss": 1}\n\xff\n', "metrics.jsonl: 3 of 3 lines cannot be read"),
        ("metrics.jsonl", f'{{"step": 1, "loss": {"9" * 400}}}\n{"[" * 9000}\n', "metrics.jsonl: 2 of 2 lines cannot"),
        ("metrics.jsonl", '{"step": 1.5, "loss": 1}\n{"step": -1}\n', "metrics.jsonl: 2 of 2 lines cannot be read"),
        (f"{EVALUATED}/scores.json", "{", "scores.json: cannot be read"),
        (f"{EVALUATED}/scores.json", '{"human": {}, "../../secret": {}}', "'../../secret' is no name of a row"),
        (f"{EVALUATED}/scores.json", '{"human": {"mauve": true}, "a": {}}', "True is no number"),
        (f"{EVALUATED}/scores.json", '{"human": {"notes": {"mauve": 3}}, "a": {}}', "3 is no reason"),
        (f"{EVALUATED}/seed_43/timing.json", '{"seconds": 1, "samples": 0}', "1 seconds of 0 samples"),
        (f"{EVALUATED}/scores.json", '{"human": {"mauve": "high"}}', "'high' is no number"),
        (f"{EVALUATED}/scores.json", '{"sample": {}}', "not the scores of texts beside a human row"),
        (f"{EVALUATED}/scores.json", None, "no scores over all seeds; those of the seeds 42, 43, 44"),
        (f"{EVALUATED}/seed_43/scores.json", "[]", "seed_43/scores.json: cannot be read"),
        (f"{EVALUATED}/seed_43/timing.json", "[]", "seed_43/timing.json: cannot be read"),
        (f"{EVALUATED}/seed_42/sample.jsonl", '{"text": "a"}\n{"te', "sample.jsonl:2: not a sample"),
        (f"{EVALUATED}/seed_42/sample.jsonl", None, "sample.jsonl: cannot be read"),
        ("evaluation/likelihood_step_00000400/scores.json", "3", "scores.json: cannot be read"),
        ("evaluation", None, "no scores; run train_text_diffusion.py --eval_test --resume_dir"),
        ("checkpoints/step_00000400/ema.safetensors", "cut", "ema.safetensors: cannot be read"),
        ("checkpoints", None, "no checkpoint"),
    ],
)
def test_a_damaged_run_gives_the_rest(report, write_run, tmp_path, file, content, wanted):
    run, good = write_run(tmp_path / "broken"), write_run(tmp_path / "good", learning_rate=0.5)
    if content is not None:
        (run / file).parent.mkdir(exist_ok=True)
        (run / file).write_bytes(content.encode("latin-1"))
    elif (run / file).is_dir():
        shutil.rmtree(run / file)
    else:
        (run / file).unlink()
    made = report(run, good)
    warnings = [line for line in made.err.splitlines() if line.startswith("warning: broken: ")]
    assert any(wanted in line for line in warnings), made.err
    assert wanted in made.page.text and wanted in made.markdown
    assert "good sample 42 number 1" in made.page.text and len(rows_of(made.markdown)) >= 2


def test_an_unfinished_run(report, write_run, tmp_path):
    run = write_run(tmp_path / "runs" / "short", num_train_steps=1000)
    shutil.rmtree(run / EVALUATED)
    early = run / "evaluation" / "step_00000200"
    row = {"human": {"mauve": 0.9, "diversity": 0.1}, "sample": {"mauve": 0.25, "diversity": 0.3}}
    early.mkdir()
    (early / "scores.json").write_text(json.dumps(row))
    made = report(tmp_path / "runs")
    assert "warning: short: unfinished: step 400 of 1,000" in made.err
    assert "warning: short: scored at step 200; the newest checkpoint is of step 400" in made.err
    assert rows_of(made.markdown)["short"]["MAUVE ↑"] == "0.250"
    assert "validation, step 200" in made.page.text


def test_a_folder_with_nothing_but_metrics(report, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": NaN, "T": null}\n')
    made = report(tmp_path / "bare")
    assert "training: 1 at step 1" in made.page.text and "No run has scores." in made.page.text


def test_a_film_strip_that_cannot_be_made(report, write_run, tmp_path):
    made = report(write_run(tmp_path / "run", method="latent", enc_dec_model="nowhere/none"), flags="--film_strip 1")
    assert "warning: run: no film strip: " in made.err and "no film strip" in made.page.text


# Which runs


def test_runs_lie_at_any_depth_and_count_once(write_run, tmp_path, report):
    place = tmp_path / "study"
    for name in ("run_10", "run_9", "deep/er/run"):
        write_run(place / name, random_seed=len(name))
    (place / ".hidden").mkdir()
    (place / ".hidden" / "args.json").write_text("{}")
    (place / "run_9" / "synthetic").mkdir()
    (place / "run_9" / "synthetic" / "args.json").write_text("{}")
    assert [str(path.relative_to(place)) for path in find_runs(place)] == ["deep/er/run", "run_9", "run_10"]
    made = report(place / "run_10", place, tmp_path / "none", place / "run_9" / "evaluation")
    assert "3 runs" in made.page.text
    assert "none: is no folder" in made.err and "evaluation: holds no run" in made.err


def test_a_run_that_a_link_leads_to_as_well_counts_once_by_its_own_name(write_run, tmp_path):
    place, elsewhere = tmp_path / "study", write_run(tmp_path / "elsewhere")
    write_run(place / "run_1")
    for name, target in (("latest", place / "run_1"), ("other", elsewhere)):
        (place / name).symlink_to(target)
    titles, empty = found_in([place])
    assert (list(titles.values()), empty) == (["run_1", "other"], [])


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", "the following arguments are required: RUN"),
        ("{tmp}/none", "none is no folder; expected the folder of a run"),
        ("{tmp} {tmp}/file", "{tmp} holds no run; {tmp}/file is no folder"),
        ("{tmp} --film 3", "unrecognized arguments: --film"),
        ("{tmp} --film_strip -1", "--film_strip -1: expected a number of texts"),
        ("{run} --output_dir {tmp}/file", "--output_dir {tmp}/file: {tmp}/file is a file"),
    ],
)
def test_a_wrong_command_line(complaint, write_run, tmp_path, tmp_path_factory, line, wanted):
    (tmp_path / "file").write_text("no folder")
    run = write_run(tmp_path_factory.mktemp("runs") / "run") if "{run}" in line else None
    assert wanted.format(tmp=tmp_path) in complaint(main, line.format(tmp=tmp_path, run=run))


def test_a_report_of_one_place_lies_in_it(call, write_run, tmp_path):
    run = write_run(tmp_path / "run")
    assert call(main, str(run)).status == 0
    assert (run / "report.html").is_file() and (run / "report.md").is_file()
