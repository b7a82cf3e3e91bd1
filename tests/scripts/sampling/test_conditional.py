"""Texts made from sources: candidates and the choice among them, and scores that the files written account for."""

import csv
import json
from statistics import fmean, stdev

import pytest
import sacrebleu
import torch

from offline_metrics.bleu import sentence_bleu4
from offline_metrics.mbr import mbr_choice
from offline_metrics.seq2seq import candidate_diversity, seq2seq
from offline_metrics.word_count import word_count
from scripts import sample as sample_script
from scripts import step_curves
from scripts.composition.build import shuffled
from scripts.sampling.conditional import candidate_sets, chosen, sample_candidates
from scripts.sampling.samples_file import Samples, read_samples, read_texts
from scripts.sampling.sampling import Given, sample
from train_text_diffusion import main

SEEDS = (42, 43, 44, 45, 46)
K = 3  # candidates


@pytest.fixture(scope="module")
def run_dir(small_run, pairs, loaded, altered):
    """A run that depends on what it sees and prefers frequent tokens, so that its texts have words of the corpus."""
    plain = small_run("mdlm", f"--data_dir {pairs} --dataset_name pairs --condition_on_source --max_length 40")
    counts, generator = loaded(plain).space.token_counts, torch.Generator().manual_seed(0)

    def change(weight, bias):
        weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
        bias.copy_(2 * (counts[: len(bias)] + 0.1).log())

    return altered(plain, change)


@pytest.fixture(scope="module")
def system(run_dir, loaded):
    return loaded(run_dir)


@pytest.fixture(scope="module")
def evaluated(run_dir, call, tmp_path_factory):
    """The folder of an evaluation with several candidates, and what it printed."""
    place = tmp_path_factory.mktemp("evaluated")
    line = f"--eval_test --resume_dir {run_dir} --output_dir {place} --num_samples 4 --mbr_candidates {K}"
    outcome = call(main, line)
    assert outcome.status == 0, outcome.err
    return place / "evaluation" / "test_step_00000004", outcome.out


def samples_of(*texts):
    """Samples whose every part tells which one it is."""
    seeds, lengths = ([base + i for i in range(len(texts))] for base in (100, 200))
    labels, ids = zip(*((f"label {i}", [300 + i]) for i in range(len(texts))), strict=True)
    return Samples({"sample": list(texts)}, seeds, lengths, list(labels), list(ids), "tokenizer")


# Candidates


def test_candidates_are_of_their_source_one_after_the_other(system):
    """A text is a function of its number and its source, so another source changes its own candidates alone."""
    one, two, other = system.corpus.test.sources[:3]
    first = sample_candidates(system, [one, two], 42, K)
    assert first == sample(system, 2 * K, 42, given=Given([one, one, one, two, two, two]))
    assert len(set(first.first)) == 2 * K
    changed = [sample_candidates(system, sources, 42, K).ids for sources in ([other, two], [one, other])]
    assert changed[0][K:] == first.ids[K:] and changed[1][:K] == first.ids[:K]
    assert all(changed[0][i] != first.ids[i] and changed[1][K + i] != first.ids[K + i] for i in range(K))


@pytest.mark.parametrize(("candidates", "sets"), [(1, ["a", "b", "c", "d", "e", "f"]), (3, ["abc", "def"])])
def test_candidate_sets_are_the_texts_of_each_source(candidates, sets):
    assert candidate_sets(samples_of(*"abcdef"), candidates) == [list(each) for each in sets]


TEXTS = (
    "the cheap pub is near the river", "a cheap pub is near the river", "the river",
    "", "the Vaults is a pub", "the Vaults is a cheap pub",
    "nothing like it", "the river is a long way off", "the river is a long way",
    "same", "same", "same",
)  # fmt: skip


def test_the_choice_is_the_candidate_most_like_all():
    samples = samples_of(*TEXTS)
    result = chosen(samples, K)
    assert list(result) == ["sample", "mbr"]
    starts = range(0, len(TEXTS), K)
    gains = [[sum(sentence_bleu4(a, b) for b in TEXTS[i : i + K]) for a in TEXTS[i : i + K]] for i in starts]
    picks = [start + max(range(K), key=row.__getitem__) for start, row in zip(starts, gains, strict=True)]
    assert [pick % K for pick in picks] == [0, 1, 2, 0]  # of equals the first
    for name, indices in (("sample", list(starts)), ("mbr", picks)):
        found = result[name]
        assert found.first == [TEXTS[i] for i in indices]
        assert found.seeds == [100 + i for i in indices] and found.lengths == [200 + i for i in indices]
        assert found.labels == [f"label {i}" for i in indices] and found.ids == [[300 + i] for i in indices]
        assert found.tokenizer == "tokenizer"


def test_a_single_candidate_leaves_no_choice():
    samples = samples_of(*TEXTS)
    assert chosen(samples, 1) == {"sample": samples}


# Evaluation


def rows_in(folder):
    return json.loads((folder / "scores.json").read_text())


def test_files_are_the_first_candidate_and_the_choice(evaluated, system):
    folder, _ = evaluated
    for seed in SEEDS:
        samples = sample_candidates(system, shuffled(system.corpus.test.sources, seed)[:4], seed, K)
        sets = candidate_sets(samples, K)
        own = folder / f"seed_{seed}"
        assert {path.name for path in own.iterdir()} == {
            "sample.jsonl", "mbr.jsonl", "candidates.jsonl", "scores.json", "table.md", "timing.json", "asked.json"
        }  # fmt: skip
        assert read_texts(own / "candidates.jsonl") == samples.first
        timing = json.loads((own / "timing.json").read_text())
        assert timing["samples"] == 4 * K and timing["seconds"].keys() == {"sample"}
        for name, picks in (("sample", [0] * 4), ("mbr", [mbr_choice(each) for each in sets])):
            assert read_texts(own / f"{name}.jsonl") == [each[pick] for each, pick in zip(sets, picks, strict=True)]
            rows = read_samples(own / f"{name}.jsonl")
            places = [K * i + pick for i, pick in enumerate(picks)]
            assert [row["seed"] for row in rows] == [samples.seeds[place] for place in places]
            assert [row["ids"] for row in rows] == [samples.ids[place] for place in places]
            assert system.space.codec.fingerprint.startswith(rows[0]["tokenizer"])
    first, best = (
        [read_texts(folder / f"seed_{seed}" / f"{name}.jsonl") for seed in SEEDS] for name in ("sample", "mbr")
    )
    assert first != best


def test_scores_are_those_of_the_files_and_the_references(evaluated, system):
    """Each text beside the reference of its own source."""
    folder, _ = evaluated
    test, said = system.corpus.test, {}
    for source, text in zip(test.sources, test.texts, strict=True):
        said.setdefault(source, text)
    assert len(said) == len(test.texts)  # so that a source tells its reference
    for seed in SEEDS:
        sources = shuffled(test.sources, seed)[:4]
        references = [said[source] for source in sources]
        candidates = read_texts(folder / f"seed_{seed}" / "candidates.jsonl")
        sets = [candidates[i : i + K] for i in range(0, len(candidates), K)]
        scores = rows_in(folder / f"seed_{seed}")
        assert list(scores) == ["human", "sample", "mbr"]
        assert "bleu" not in scores["human"]
        assert scores["human"]["total_words"] == word_count(references)["total_words"]
        for name in ("sample", "mbr"):
            texts = read_texts(folder / f"seed_{seed}" / f"{name}.jsonl")
            expected = seq2seq(texts, references) | candidate_diversity(sets)
            assert {key: scores[name][key] for key in expected} == pytest.approx(expected)
            assert scores[name]["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score)
            assert scores[name]["texts"] == 4
            assert scores[name]["rouge_l"] > 0.05


def test_seeds_are_gathered_and_printed(evaluated):
    folder, out = evaluated
    assert (folder / "table.md").read_text() in out
    assert all(column in out for column in ("BLEU ↑", "ROUGE-L ↑", "div-4 ↑", "candidate self-BLEU-4 ↓"))
    rows = rows_in(folder)
    for name in ("sample", "mbr"):
        for metric in ("bleu", "sentence_bleu4", "rouge_l", "dist_1_per_text", "div_4", "candidate_self_bleu4"):
            values = [rows_in(folder / f"seed_{seed}")[name][metric] for seed in SEEDS]
            assert rows[name][metric] == pytest.approx(fmean(values))
            assert rows[name][f"{metric}_std"] == pytest.approx(stdev(values))


def test_without_candidates_there_is_one_text_for_each_source(run_dir, call, tmp_path):
    """And as many as there are sources, however many are asked for."""
    outcome = call(main, f"--eval --resume_dir {run_dir} --output_dir {tmp_path} --num_samples 99")
    assert outcome.status == 0, outcome.err
    folder = tmp_path / "evaluation" / "valid_step_00000004"
    assert "99 samples asked but there are 12 sources: 12 are made, one for each" in outcome.err
    assert {path.name for path in (folder / "seed_42").glob("*.jsonl")} == {"sample.jsonl"}
    assert json.loads((folder / "seed_42" / "timing.json").read_text())["seconds"]["sample"] > 0
    scores = rows_in(folder)
    assert list(scores) == ["human", "sample"]
    assert (scores["sample"]["texts"], len(read_texts(folder / "seed_42" / "sample.jsonl"))) == (12, 12)
    assert scores["sample"]["bleu"] >= 0 and "div_4" not in scores["sample"]


# Sampling


def test_sampling_keeps_the_choice_and_the_candidates_beside_it(run_dir, system, call, tmp_path):
    common = f"--resume_dir {run_dir} --num_samples 4 --mbr_candidates {K} --split valid"
    outcome = call(sample_script.main, f"{common} --output_file {tmp_path / 'best.jsonl'}")
    assert outcome.status == 0, outcome.err
    told = [f"{tmp_path / 'best.candidates.jsonl'}: {4 * K} candidates", f"{tmp_path / 'best.jsonl'}: 4 texts"]
    assert outcome.err.splitlines()[-2:] == told
    candidates = read_texts(tmp_path / "best.candidates.jsonl")
    samples = sample_candidates(system, system.corpus.valid.sources[:4], system.options.training.random_seed, K)
    assert candidates == samples.first
    best = [texts[mbr_choice(texts)] for texts in candidate_sets(samples, K)]
    assert read_texts(tmp_path / "best.jsonl") == best
    assert call(sample_script.main, common).out == "\n".join(best) + "\n"
    one = call(sample_script.main, f"--resume_dir {run_dir} --num_samples 4 --output_file {tmp_path / 'one.jsonl'}")
    assert one.status == 0 and not (tmp_path / "one.candidates.jsonl").exists()


def test_no_text_is_made_without_its_source(system):
    with pytest.raises(ValueError, match="makes texts from sources"):
        sample(system, 2, 42)


def test_a_cell_of_a_curve_is_scored_as_an_evaluation_is(run_dir, evaluated, call, tmp_path):
    line = f"--resume_dir {run_dir} --output_dir {tmp_path} --num_samples 4 --mbr_candidates {K} --seeds 42 --cells"
    outcome = call(step_curves.main, f"{line} sampling_timesteps=3")
    assert outcome.status == 0, outcome.err
    rows = rows_in(next(tmp_path.rglob("seed_42")))
    assert rows["sample"].pop("seconds_per_sample") > 0
    assert rows == rows_in(evaluated[0] / "seed_42")
    (texts,) = tmp_path.rglob("sample.jsonl")
    assert texts.read_bytes() == (evaluated[0] / "seed_42" / "sample.jsonl").read_bytes()


def test_gen_data_takes_the_sources_of_training_in_turn_and_writes_them_beside(run_dir, system, call, tmp_path):
    outcome = call(main, f"--gen_data --resume_dir {run_dir} --output_dir {tmp_path} --num_samples 62")
    assert outcome.status == 0, outcome.err
    paths = outcome.out.splitlines()
    for seed, path in zip(SEEDS, paths, strict=True):
        with open(path, newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["text", "label", "source"]
        texts, labels, sources = map(list, zip(*rows, strict=True))
        own = shuffled(system.corpus.train.sources, seed)
        assert sources == own + own[:2] and set(labels) == {""}
        if seed == SEEDS[0]:
            assert texts == sample(system, 62, seed, given=Given(sources)).first


def test_candidates_need_sources(small_run, complaint):
    line = f"--eval_test --resume_dir {small_run('gidd', '--T_schedule linear')} --mbr_candidates 2"
    assert "--mbr_candidates belongs to --condition_on_source" in complaint(main, line)
