"""Counts of tokens in a file: those of a plain count, and those that a DiffusionBERT run then uses."""

import json
import re
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from diffusion.spindle import type_deviation
from latent_models.corpora import DataOptions, load_corpus
from latent_models.token_codec import find_tokenizer
from scripts import word_frequencies
from train_text_diffusion import main


@pytest.fixture
def counted(call, tmp_path):
    """counted("--flag value ...") are the counts in the file that the script wrote, and what it said."""

    def run(line):
        target = tmp_path / "new" / "counts.safetensors"
        outcome = call(word_frequencies.main, f"{line} --output_file {target}")
        assert outcome.status == 0, outcome.err
        (found,) = load_file(target).items()
        assert found[0] == "token_counts" and found[1].dtype == torch.int64
        return found[1], outcome

    return run


@pytest.fixture
def own(tmp_path):
    """own(*texts) is the place of the corpus `own`, which has these texts in every split."""

    def write(*texts):
        (tmp_path / "own").mkdir()
        for split in ("train", "valid", "test"):
            (tmp_path / "own" / f"{split}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        return f"--data_dir {tmp_path} --dataset_name own"

    return write


# What is counted


@pytest.mark.parametrize("tokenizer", ["bart-demo", "gpt2-demo", "bert"])
@pytest.mark.parametrize("max_length", [8, 64])
def test_counts_are_those_of_every_token_of_every_training_text(counted, data_dir, bert_dir, tokenizer, max_length):
    """As far as texts are not cut, and each with its end, which for BERT is [SEP]."""
    folder = bert_dir if tokenizer == "bert" else find_tokenizer(tokenizer)
    counts, outcome = counted(
        f"--dataset_name plain --data_dir {data_dir} --tokenizer {folder} --max_length {max_length}"
    )
    own = AutoTokenizer.from_pretrained(folder)
    end = own.eos_token_id if own.eos_token_id is not None else own.sep_token_id
    texts = load_corpus(DataOptions("plain", str(data_dir))).train.texts
    tokenised = [own(text, add_special_tokens=False)["input_ids"] for text in texts]
    expected = Counter(i for ids in tokenised for i in [*ids[: max_length - 1], end])
    assert {i: count for i, count in enumerate(counts.tolist()) if count} == expected
    cut = sum(len(ids) > max_length - 1 for ids in tokenised)
    assert (f"{cut} of 120 texts were cut at --max_length 8" in outcome.err) == (cut > 0) == (max_length == 8)


def test_characters_are_counted(counted, own):
    counts, outcome = counted(f"{own('ab', 'baa b')} --tokenizer char")
    assert counts.tolist() == [0, 2, 1, 3, 3, 0]  # [PAD], [EOS], blank, a, b, and the mask
    assert "9 tokens, 4 of 6 types seen" in outcome.out
    shown = [line.split(maxsplit=1) for line in outcome.out.splitlines()[1:]]
    assert sorted(shown) == [["1", "' '"], ["2", "'[EOS]'"], ["3", "'a'"], ["3", "'b'"]]


def test_running_text_has_line_ends_and_no_ends_of_texts(counted, own):
    counts, outcome = counted(f"{own('ab', 'baa b')} --tokenizer char --running_text 3")
    assert counts.tolist() == [0, 0, 2, 1, 3, 3, 0]  # [PAD], [EOS], "\n", blank, a, b, and the mask
    assert r"'\n'" in outcome.out


def test_the_most_frequent_come_first(counted, data_dir):
    line = f"--dataset_name plain --data_dir {data_dir} --tokenizer bart-demo"
    counts, outcome = counted(line)
    shown = [int(row.split()[0].replace(",", "")) for row in outcome.out.splitlines()[1:]]
    assert shown == counts.sort(descending=True).values[:10].tolist()
    again, repeated = counted(line)
    assert torch.equal(again, counts) and repeated.out == outcome.out


# What a run makes of them


def test_training_counts_the_same_by_itself(counted, data_dir, small_run):
    run_dir = small_run("diffusion_bert", "--T_schedule linear")
    counts, _ = counted(f"--dataset_name plain --data_dir {data_dir} --tokenizer bart-demo --max_length 24")
    assert torch.equal(load_file(run_dir / "token_counts.safetensors")["token_counts"], counts)


def test_a_run_uses_the_counts_of_its_file(counted, pairs, data_dir, bert_dir, call, tmp_path, loaded):
    counts, _ = counted(f"--dataset_name pairs --data_dir {pairs} --tokenizer {bert_dir} --max_length 24")
    file, run_dir = tmp_path / "new" / "counts.safetensors", tmp_path / "run"
    outcome = call(
        main,
        f"--method diffusion_bert --bert_model {bert_dir} --token_counts {file} --dataset_name plain "
        f"--data_dir {data_dir} --save_dir {tmp_path} --output_dir {run_dir} --max_length 24 --timesteps 20 "
        "--num_train_steps 1 --sampling_timesteps 2 --perplexity_model gpt2-demo --mauve_model gpt2-demo",
    )
    assert outcome.status == 0, outcome.err
    file.unlink()  # a run folder needs nothing beside it
    system = loaded(run_dir)
    split = system.space.codec.encode_split(system.corpus.train.texts)
    assert not torch.equal(system.space.codec.token_counts(split), counts)
    assert torch.equal(system.space.token_counts, counts)
    expected = type_deviation(counts, system.space.codec.pad_id)
    assert torch.equal(system.process.deviation(torch.zeros(1, 1, dtype=torch.long)), expected)
    assert json.loads((run_dir / "args.json").read_text())["token_counts"] == str(file)


# What is refused


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", "no dataset chosen"),
        ("--dataset_name no", "unknown dataset 'no'"),
        ("--dataset_name own --tokenizer no/such", r"run: python -m scripts.cache_models no/such$"),
        ("--dataset_name own --tokenizer {tmp}/own", "own: not a model folder"),
        ("--dataset_name own --tokenizer char --max_length 1", "--max_length 1: expected at least 2"),
        ("--dataset_name own --tokenizer char --output_file {tmp}/counts.pt", "ends in .safetensors"),
        ("--dataset_name own --tokenizer char --output_file {tmp}/a.txt/c.safetensors", "a.txt is a file; expected a"),
        ("--dataset_name own --tokenizer char --output_file {tmp}/folder.safetensors", "safetensors: is a folder"),
        ("--dataset_name own --method mdlm", "unknown argument '--method'"),
    ],
)
def test_a_wrong_command_line(complaint, own, tmp_path, line, wanted):
    own("a pub")
    (tmp_path / "a.txt").write_text("no folder")
    (tmp_path / "folder.safetensors").mkdir()
    before = sorted(tmp_path.rglob("*"))
    places = f"--data_dir {tmp_path} --output_file {tmp_path}/new/counts.safetensors"
    message = complaint(word_frequencies.main, f"{places} {line.format(tmp=tmp_path)}")
    assert re.search(wanted, message)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_must_be_named(complaint):
    message = complaint(word_frequencies.main, "--dataset_name demo")
    assert "--output_file: expected a file to write, one that ends in .safetensors" in message
