"""Self-correction of samples files by a GIDD run: what is corrected, what the files say about it, what is refused."""

import json
import re
from collections import Counter
from statistics import fmean

import pytest
import torch

from diffusion.self_correction import STOPS
from offline_metrics.entropy import unigram_entropy
from offline_metrics.self_bleu import self_bleu4
from scripts import sample as sample_script
from scripts import self_correct
from scripts.composition.options import Options
from scripts.sampling.samples_file import read_samples
from scripts.self_correct import EARLY, CorrectionOptions, correct

WARM = "--correction_temperature 1 --max_correction_steps 16"  # so that much is left to chance
TEXTS = ["The Vaults is a pub.", "", "Cheap food!", "A café near the river that is not bad at all."]


@pytest.fixture(scope="module")
def plain(small_run):
    return small_run("gidd", "--T_schedule linear")


@pytest.fixture(scope="module")
def corrector(plain, altered):
    """A run whose network depends on all that it sees."""
    generator = torch.Generator().manual_seed(0)
    return altered(plain, lambda weight, bias: weight.copy_(0.3 * torch.randn(weight.shape, generator=generator)))


@pytest.fixture(scope="module")
def favourite(plain, loaded, altered):
    """A run that wants " pub" everywhere, and of what is left neither the end of a text nor padding; and its id."""
    codec = loaded(plain).space.codec
    (pub,) = codec.encode_piece(" pub")

    def change(weight, bias):
        weight.zero_()
        bias.zero_()[[pub, codec.eos_id, codec.pad_id]] = torch.tensor([6.0, 8.0, 8.0])

    return altered(plain, change), pub


@pytest.fixture(scope="module")
def samples(corrector, call, tmp_path_factory):
    """A samples file of the run, with ids of several lengths."""
    file = tmp_path_factory.mktemp("samples") / "7.jsonl"
    assert call(sample_script.main, f"--resume_dir {corrector} --num_samples 7 --output_file {file}").status == 0
    assert len({row["tokens"] for row in read_samples(file)}) > 3
    return file


@pytest.fixture
def corrected(call, tmp_path):
    """corrected(run_dir, file, flags) are the rows and the report that the script wrote."""

    def run(run_dir, file, flags=""):
        target = tmp_path / "new" / "out.jsonl"
        outcome = call(self_correct.main, f"--resume_dir {run_dir} --samples {file} --output_file {target} {flags}")
        assert outcome.status == 0, outcome.err
        assert {path.name for path in target.parent.iterdir()} == {"out.jsonl", "out.report.json"}
        return read_samples(target), json.loads((target.parent / "out.report.json").read_text())

    return run


@pytest.fixture
def file_of(tmp_path):
    """file_of(rows) is a samples file of them: a .txt file of texts, else JSON lines."""

    def write(rows):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file = tmp_path / f"given.{'txt' if isinstance(rows[0], str) else 'jsonl'}"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return file

    return write


@pytest.fixture
def refusal(complaint, tmp_path):
    """refusal(run_dir, file, flags) is the line in which the script refused, having written nothing."""

    def refuse(run_dir, file, flags=""):
        target = tmp_path / "new" / "out.jsonl"
        line = complaint(
            self_correct.main, f"--resume_dir {run_dir} --samples {file} --output_file {target} {flags}"
        )
        assert not target.parent.exists()
        return line

    return refuse


def changes(before, after):
    return sum(one != other for one, other in zip(before, after, strict=True))


# What is corrected


@pytest.mark.parametrize("form", ["ids", "jsonl", "txt", "some ids"])
def test_ids_are_taken_as_they_are_and_other_texts_are_tokenised(corrector, samples, corrected, file_of, loaded, form):
    """One step changes one token at most, so what was corrected can be seen."""
    codec, rows = loaded(corrector).space.codec, read_samples(samples)
    tokenised = [codec.encode_piece(text) + [codec.eos_id] for text in TEXTS]
    given, start = {
        "ids": ([row | {"text": "not what the ids say"} for row in rows], [row["ids"] for row in rows]),
        "jsonl": ([{"text": text} for text in TEXTS], tokenised),
        "txt": (TEXTS, tokenised),
        "some ids": ([{"text": TEXTS[0]}, rows[0], {"text": TEXTS[2]}], [tokenised[0], rows[0]["ids"], tokenised[2]]),
    }[form]
    found, _ = corrected(corrector, file_of(given), "--max_correction_steps 1")
    assert [row["before"] for row in found] == [row if form == "txt" else row["text"] for row in given]
    counts = [changes(before, row["ids"]) for before, row in zip(start, found, strict=True)]
    assert [row["num_changes"] for row in found] == counts
    assert set(counts) <= {0, 1} and 1 in counts


def test_an_empty_text_stays_empty(corrector, corrected, file_of, loaded):
    (_, empty, *_), report = corrected(corrector, file_of(TEXTS))
    assert (empty["text"], empty["ids"]) == ("", [loaded(corrector).space.codec.eos_id])
    assert (empty["num_changes"], empty["stop"]) == (0, "converged")
    assert report["texts"] == 4 and report["changed"] == 3
    (alone,), report = corrected(corrector, file_of([{"text": ""}]))
    assert alone == empty
    assert report["self_bleu4"] == {"before": None, "after": None}  # of one text


@pytest.mark.parametrize("flags", ["", "--tokens_per_step 4 --max_correction_steps 20 --patience 5"])
def test_rows_and_report_agree(corrector, samples, corrected, loaded, flags):
    rows, report = corrected(corrector, samples, flags)
    codec, given = loaded(corrector).space.codec, read_samples(samples)
    for row, before in zip(rows, given, strict=True):
        assert row.keys() == {
            "before", "text", "ids", "tokenizer", "init_acc", "final_acc", "num_changes", "steps", "stop"
        }  # fmt: skip
        assert row["before"] == before["text"] and row["tokenizer"] == before["tokenizer"]
        ids = torch.tensor([row["ids"]])
        assert [row["text"]] == codec.decode(ids, ids >= 0)
        assert row["num_changes"] == changes(before["ids"], row["ids"])
        assert 1 <= row["steps"] <= report["options"]["max_correction_steps"]
        assert row["num_changes"] <= row["steps"] * report["options"]["tokens_per_step"]
    before, after = ([row[name] for row in rows] for name in ("before", "text"))
    assert report["self_bleu4"] == {"before": self_bleu4(before), "after": self_bleu4(after)}
    entropies = [unigram_entropy(texts)["unigram_entropy"] for texts in (before, after)]
    assert list(report["unigram_entropy"].values()) == entropies
    for name in ("init_acc", "final_acc", "num_changes", "steps"):
        assert report[name] == pytest.approx(fmean(row[name] for row in rows))
    assert report["texts"] == len(rows) and report["changed"] == sum(row["num_changes"] > 0 for row in rows) > 0
    assert report["stop"] == {stop: Counter(row["stop"] for row in rows)[stop] for stop in STOPS}


def test_accuracies_are_those_of_a_text_by_itself(corrector, samples, corrected, loaded):
    """The share of tokens that are the first choice of the network, asked just before the end, among ordinary ones."""
    system = loaded(corrector)
    codec = system.space.codec

    def first_choices(ids):
        x, t = torch.tensor([ids]), torch.tensor([EARLY], dtype=torch.float64)
        with torch.no_grad():
            log_p = system.process.denoised(system.denoiser(x, t, torch.ones_like(x, dtype=torch.bool)), x, t)
        log_p[..., [codec.eos_id, codec.pad_id, codec.mask_id]] = -torch.inf
        hits = [i == best for i, best in zip(ids, log_p[0].argmax(-1).tolist(), strict=True) if i != codec.eos_id]
        return fmean(hits)

    rows, _ = corrected(corrector, samples)
    for row, before in zip(rows, read_samples(samples), strict=True):
        assert row["init_acc"] == pytest.approx(first_choices(before["ids"]))
        assert row["final_acc"] == pytest.approx(first_choices(row["ids"]))
    assert len({row["final_acc"] for row in rows}) > 2


def test_the_same_command_gives_the_same_bytes(corrector, samples, call, tmp_path):
    target, found = tmp_path / "out.jsonl", []
    for seed in (1, 1, 2):
        line = f"--resume_dir {corrector} --samples {samples} --output_file {target} {WARM} --random_seed {seed}"
        outcome = call(self_correct.main, line)
        found.append((outcome.out, target.read_bytes(), target.with_suffix(".report.json").read_bytes()))
    assert found[0] == found[1]
    assert found[0][1] != found[2][1]


def test_a_sample_depends_on_its_number_alone(corrector, samples, corrected, file_of):
    """Neither on the batch size nor on how many there are."""
    rows, report = corrected(corrector, samples, WARM)
    assert corrected(corrector, samples, f"{WARM} --eval_batch_size 1") == (rows, report)
    assert corrected(corrector, samples, f"{WARM} --eval_batch_size 3") == (rows, report)
    assert corrected(corrector, file_of(read_samples(samples)[:3]), WARM)[0] == rows[:3]
    twins, _ = corrected(corrector, file_of(read_samples(samples)[:1] * 2), WARM)
    assert twins[0]["ids"] != twins[1]["ids"]


def test_a_run_trained_with_padding_sees_texts_with_their_padding(corrector, loaded, monkeypatch):
    system = loaded(corrector)
    codec, shown, forward = system.space.codec, [], system.denoiser.forward
    monkeypatch.setattr(system.denoiser, "forward", lambda *args, **rest: shown.append(args) or forward(*args, **rest))
    ids = sorted((codec.encode_piece(TEXTS[i]) + [codec.eos_id] for i in (0, 2)), key=len)
    options = CorrectionOptions(samples="x.txt", output_file="y", max_correction_steps=4)
    for lengths, width in (("drawn", max(map(len, ids))), ("modelled", 24)):
        system.options.tokens.lengths = lengths
        found = correct(system, ids, options, 0)
        ((x, t, valid), *_), shown[:] = shown, []
        assert t.tolist() == [EARLY, EARLY]
        assert [row[: len(own)].tolist() for row, own in zip(x, ids, strict=True)] == ids
        assert all(row[len(own) :].eq(codec.pad_id).all() for row, own in zip(x, ids, strict=True))
        assert x.shape[1] == width
        assert valid.sum(1).tolist() == ([24, 24] if lengths == "modelled" else [len(own) for own in ids])
        assert [len(row["ids"]) for row in found] == [len(own) for own in ids]
        assert all(row["ids"][-1] == codec.eos_id and row["num_changes"] for row in found)


# How far it goes


def test_correction_makes_texts_likelier(favourite, samples, corrected, loaded):
    """To a network that wants one token everywhere; the end of a text is given and none is put into it."""
    run_dir, pub = favourite
    codec, given = loaded(run_dir).space.codec, read_samples(samples)
    rows, report = corrected(run_dir, samples)
    for row, before in zip(rows, given, strict=True):
        assert row["ids"] == [i if i == codec.eos_id else pub for i in before["ids"]]
        assert row["init_acc"] < 1 and row["final_acc"] == 1
        assert (row["stop"], row["steps"]) == ("converged", row["num_changes"] + 1)
    assert report["unigram_entropy"]["after"] == 0 < report["unigram_entropy"]["before"]
    limited, _ = corrected(run_dir, samples, "--max_correction_steps 3")
    for row in limited:
        assert row["final_acc"] >= row["init_acc"]
        assert (row["num_changes"], row["steps"], row["stop"]) == (3, 3, "budget")


def test_a_low_temperature_takes_the_first_choice(corrector, favourite, samples, corrected):
    run_dir, pub = favourite
    cold, hot = (
        corrected(run_dir, samples, f"--correction_temperature {temperature}")[1] for temperature in ("1e-6", "1000")
    )
    assert cold["final_acc"] == 1 > 0.5 > hot["final_acc"]
    seeds = [corrected(corrector, samples, f"--correction_temperature 1e-6 --random_seed {seed}") for seed in (1, 2)]
    assert seeds[0] == seeds[1]  # nothing is left to chance


@pytest.mark.parametrize("patience", [0, 1, 5])
def test_patience_is_how_many_steps_without_progress_are_borne(favourite, corrected, file_of, patience):
    """Nothing is likelier than the text given, and the step after the last that is borne is taken back."""
    flags = f"--patience {patience} --correction_temperature 1000"
    rows, report = corrected(favourite[0], file_of(["pub pub pub pub pub pub", " pub pub pub pub"]), flags)
    assert report["stop"] == {"budget": 0, "converged": 0, "patience": 2}
    assert [row["steps"] for row in rows] == [patience + 1] * 2
    assert all(row["num_changes"] <= patience for row in rows)
    assert report["changed"] == (2 if patience else 0)


# What is refused


@pytest.mark.parametrize("method", ["latent", "ar", "mdlm", "sedd"])
def test_a_run_of_another_method(refusal, tmp_path, samples, method):
    (tmp_path / "run").mkdir()
    Options.from_argv(["--method", method, "--dataset_name", "demo"]).save(tmp_path / "run")
    assert f"run: a run of --method {method}; self-correction needs gidd" in refusal(tmp_path / "run", samples)


def test_a_run_whose_texts_need_sources(refusal, tmp_path, samples):
    (tmp_path / "run").mkdir()
    Options.from_argv("--method gidd --dataset_name demo --condition_on_source".split()).save(tmp_path / "run")
    assert "run: a run of --condition_on_source" in refusal(tmp_path / "run", samples)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"tokenizer": "0123456789abcdef"}, r"its ids are of another tokenizer .*\(0123456789abcdef\) than the run's"),
        ({"tokenizer": None}, r"its ids are of another tokenizer .*\(None\) than the run's \([0-9a-f]{16}\)"),
        ({"ids": [3, 787]}, "ids that the tokenizer does not have; expected 0 to 786$"),
        ({"ids": [-1]}, "ids that the tokenizer does not have"),
        ({"ids": [3.0]}, "ids that the tokenizer does not have"),
        ({"ids": [True]}, "ids that the tokenizer does not have"),
        ({"ids": "3 4"}, "ids that the tokenizer does not have"),
        ({"ids": None}, "ids that the tokenizer does not have"),
        ({"ids": []}, "0 tokens; expected 1 to 24, as the run's texts have"),
        ({"ids": [5] * 25}, "25 tokens; expected 1 to 24, as the run's texts have: shorten or remove it"),
        ({"text": 7}, r"not a sample \(no text\); expected a JSON object"),
        ({"text": "\ud800"}, r"not a sample \(half a surrogate pair, \\ud800\); expected a JSON object"),
    ],
)
def test_a_sample_that_cannot_be_read(refusal, plain, samples, file_of, change, wanted):
    first, second, *_ = read_samples(samples)
    assert re.search(re.escape("given.jsonl:2: ") + wanted, refusal(plain, file_of([first, second | change])))


def test_a_text_that_is_too_long_is_not_cut(refusal, plain, file_of):
    file = file_of(["a", "", " ".join(["pub"] * 24)])
    assert re.search(r"given\.txt:3: 2\d tokens; expected 1 to 24, as the run's", refusal(plain, file))


def test_a_character_that_the_run_does_not_know(refusal, small_run, file_of):
    run_dir = small_run("gidd", trunk="--tokenizer char --tx_dim 64 --tx_depth 1")
    assert re.search(r"given\.txt:2: .*holds the character '\\xdc'", refusal(run_dir, file_of(["pub", "pÜb"])))


@pytest.mark.parametrize(
    ("samples", "wanted"),
    [
        ("{tmp}/none.jsonl", "none.jsonl: cannot be read"),
        ("{tmp}/empty.jsonl", "empty.jsonl: holds no samples"),
        ("{tmp}/list.jsonl", "list.jsonl:1: not a sample"),
        ("{tmp}/data.json", "data.json: expected a file that ends in .jsonl, .csv, .txt"),
        ("{tmp}/long.csv", "long.csv:4: \\d\\d tokens; expected 1 to 24"),
        ("{tmp}/good.txt --correction_temperature 0", "--correction_temperature 0.0: expected a number above 0"),
        ("{tmp}/good.txt --correction_temperature nan", "--correction_temperature nan: expected a number above 0"),
        ("{tmp}/good.txt --correction_temperature inf", "--correction_temperature inf: expected a number above 0"),
        ("{tmp}/good.txt --tokens_per_step 0", "--tokens_per_step 0: expected at least 1"),
        ("{tmp}/good.txt --max_correction_steps 0", "--max_correction_steps 0: expected at least 1"),
        ("{tmp}/good.txt --patience -1", "--patience -1: expected 0 or more"),
        ("{tmp}/good.txt --temperature 0.5", "--temperature changes samples, not corrections; see --correction_temp"),
        ("{tmp}/good.txt --top_k 1", "--top_k changes samples, not corrections"),
        ("{tmp}/good.txt --p_uniform 0.3", "--p_uniform 0.3: the run .* has 0.1, which is fixed"),
        ("{tmp}/good.txt --steps 3", "unknown argument '--steps'"),
    ],
)
def test_a_wrong_command_line(refusal, plain, tmp_path, samples, wanted):
    (tmp_path / "good.txt").write_text("A pub.\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "long.csv").write_text('text,label\n"A\npub.",x\n' + "pub " * 30 + ",x\n")
    assert re.search(wanted, refusal(plain, samples.format(tmp=tmp_path)))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--samples x.txt --output_file x.jsonl", "expected --resume_dir, the folder of a trained run"),
        ("--resume_dir {run} --output_file x.jsonl", "--samples None: expected a file"),
        ("--resume_dir {run} --samples x.txt", "expected --output_file"),
        ("--resume_dir {run} --samples x.txt --output_file {run}", "is a folder; expected a file to write"),
        ("--resume_dir {run} --samples x.txt --output_file {run}/args.json/x.jsonl", "args.json is a file; expected a"),
    ],
)
def test_what_must_be_named(complaint, plain, line, wanted):
    assert wanted in complaint(self_correct.main, line.format(run=plain))
