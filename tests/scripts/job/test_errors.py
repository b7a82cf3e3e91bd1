"""Wrong input ends in exit status 2 and one line that says what is wrong, and leaves nothing behind."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train_text_diffusion
from diffusion.training import checkpoint
from diffusion.training.signals import listening
from scripts import demo, evaluate_samples, make_demo_corpus, sample
from scripts.composition.options import Options
from scripts.job.errors import USER_ERRORS, going_on, run

ROOT = Path(__file__).parents[3]
METRICS = "--perplexity_model gpt2-demo --mauve_model gpt2-demo"
SMALL = "--tx_dim 64 --tx_depth 1 --num_train_steps 2 --sampling_timesteps 2"


@pytest.fixture
def place(data_dir, bert_dir, tmp_path) -> dict[str, Path]:
    """The folders that command lines name, `runs` not there yet."""
    (tmp_path / "file").write_text("no folder")
    return {"data": data_dir, "bert": bert_dir, "tmp": tmp_path, "runs": tmp_path / "runs", "file": tmp_path / "file"}


@pytest.fixture
def refused(call, place):
    """refused(line, main) gives the one line in which the command complained; {runs}, {data} ... are put in."""

    def complaint(line: str, main=train_text_diffusion.main) -> str:
        outcome = call(main, line.format(**place))
        assert outcome.status == 2
        assert "Traceback" not in outcome.err
        assert len(outcome.errors) == 1
        assert outcome.err.splitlines()[-1] == outcome.errors[0]
        assert not place["runs"].exists()
        return outcome.errors[0]

    return complaint


BERT = f"--dataset_name demo --data_dir {{data}} --save_dir {{runs}} --method diffusion_bert {METRICS} "
TRAIN = f"--dataset_name demo --data_dir {{data}} --save_dir {{runs}} --enc_dec_model bart-demo {METRICS} {SMALL} "


@pytest.mark.parametrize(
    ("line", "wanted"),
    {
        "--save_dir {runs}": "no dataset chosen; expected e2e .* roc .* set --dataset_name",
        "--save_dir {runs} --dataset_name sst": "unknown dataset 'sst'; expected e2e",
        "--save_dir {runs} --dataset_name demo --data_dir {file}": "unknown dataset 'demo'.*file.*Not a directory",
        "--save_dir {runs} --dataset_name e2e --data_dir {data}": "e2e_data: no such folder",
        "--save_dir {runs} --dataset_name roc --data_dir {file}": "ROCstory: cannot be listed",
        TRAIN + "--tx_dim 100": "--tx_dim 100: expected a positive multiple of 64",
        TRAIN + "--tx_di 64": "unknown argument '--tx_di'",
        TRAIN + "--objective guess": "--objective.*'guess'.*pred_x0.*pred_noise.*pred_v",
        TRAIN + "--num_samples 0": "--num_samples 0: expected at least 1",
        TRAIN + "--train_batch_size -4": "--train_batch_size -4: expected at least 1",
        TRAIN + "--num_train_steps 0": "--num_train_steps 0: expected at least 1",
        TRAIN + "--learning_rate nan": "--learning_rate nan: expected a number above 0",
        TRAIN + "--amp": "--amp is refused",
        TRAIN + "--milestone 7": "--milestone 7",
        TRAIN + "--grid_power 5 --sampling_timesteps 50": "--grid_power 5.0 with 50 sampling steps would visit",
        TRAIN + "--method ar --grid_power 0.5": "--grid_power: --method ar has no noise",
        TRAIN + "--sampling_timesteps 2000": "--sampling_timesteps 2000 must be between 1 and --timesteps",
        TRAIN + "--sampler ancestral --ddim_sampling_eta 0": "--ddim_sampling_eta belongs to --sampler ddim",
        TRAIN + "--sampler dpmpp --ddim_sampling_eta 0": "--ddim_sampling_eta belongs to --sampler ddim",
        TRAIN + "--q_sampling_from 0.3": "--q_sampling_from belongs to --sampler q",
        TRAIN + "--sampler dpmpp --q_sampling_from 0.3": "--q_sampling_from belongs to --sampler q",
        TRAIN + "--method mdlm --q_sampling_from 0.3": "--q_sampling_from belongs to --method latent",
        # What another flag leaves without effect.
        TRAIN + "--guidance 2": "--guidance belongs to --class_conditional, without which nothing reads it; leave",
        TRAIN + "--self_condition_guidance 2": "--self_condition_guidance belongs to --self_condition,",
        TRAIN + "--self_condition_prob 0.9": "--self_condition_prob belongs to --self_condition,",
        TRAIN + "--polynomial_T_power 3": "--polynomial_T_power belongs to --T_schedule polynomial,",
        TRAIN + "--T_schedule cosine --polynomial_T_power 3": "--polynomial_T_power belongs to --T_schedule polynomial",
        TRAIN + "--tan_d 3": "--tan_d belongs to --beta_schedule tan,",
        TRAIN + "--p2_loss_weight_k 2": "--p2_loss_weight_k belongs to a --p2_loss_weight_gamma above 0,",
        TRAIN + "--no_normalize_latent --latent_scale dimension": "--latent_scale belongs to --normalize_latent,",
        TRAIN + "--class_unconditional_prob 0.2": "--class_unconditional_prob belongs to --class_conditional,",
        TRAIN + "--label_field kind": "--label_field belongs to --class_conditional,",
        TRAIN + "--method gidd --gidd_weights raw --gidd_max_weight 2": "--gidd_max_weight belongs to",
        TRAIN + "--method diffusion_bert --spindle none --spindle_lambda 0.2": "--spindle_lambda belongs to a",
        TRAIN + "--method diffusion_bert --spindle none --token_counts {file}": "--token_counts belongs to a",
        TRAIN + "--method mdlm --dit_cond_dim 64": "--dit_cond_dim belongs to --trunk dit,",
        TRAIN + "--churn 2": "--churn belongs to --sampler churn",
        TRAIN + "--noise_shift 0": "--noise_shift 0.0 must be above 0",
        TRAIN + "--method mdlm --noise_shift 2": "--noise_shift belongs to --method latent",
        TRAIN + "--method mdlm --early_stop 0.1": "--early_stop belongs to --method latent",
        TRAIN + "--method mdlm --sampler dpmpp": "--method mdlm has the samplers ddpm_cache, ancestral, first_hitting;",
        TRAIN + "--class_conditional --label_field kind": "--class_conditional: no text of 'demo' has a label 'kind'",
        TRAIN + "--dataset_name plain --class_conditional": "no text of 'plain' has a label",
        TRAIN + "--save_dir {file}": "--save_dir .*file: .*is a file; expected a folder",
        TRAIN + "--save_dir {file}/below": "--save_dir .*file/below: .*file is a file; expected a folder",
        TRAIN + "--output_dir {file}": "--output_dir .*file: .*is a file; expected a folder",
        TRAIN + "--eval": "--eval needs --resume_dir",
        TRAIN + "--enc_dec_model no/such-bart": "no/such-bart.*run: python -m scripts.cache_models no/such-bart$",
        TRAIN + "--enc_dec_model {tmp}": "not a model folder; expected a config.json",
        TRAIN + "--enc_dec_model gpt2-demo": "gpt2-demo: cannot be used as encoder-decoder",
        TRAIN + "--max_length 1000": r"has \d+ positions; expected --max_length of at most that",
        TRAIN + "--perplexity_model no/scorer": "run: python -m scripts.cache_models no/scorer$",
        TRAIN + "--mauve_model no/features": "run: python -m scripts.cache_models no/features$",
        "--eval --resume_dir {file}": "file/args.json: cannot be read",
        "--eval_test --resume_dir {tmp}/nowhere": "nowhere/args.json: cannot be read.*expected the folder of a run",
        "--eval --gen_data --resume_dir {tmp}": "expected one mode at a time",
        # What a method cannot do.
        TRAIN + "--method d3pm --timesteps 0": "--timesteps 0 must be between 1 and",
        TRAIN + "--method d3pm --timesteps 10 --sampling_timesteps 11": "--sampling_timesteps 11 must be between 1",
        TRAIN + "--method diffusion_bert --timesteps 10 --sampling_timesteps 11": "--sampling_timesteps 11 must be",
        TRAIN + "--method gidd --p_uniform 1": "--p_uniform 1.0: expected at least 0 and less than 1",
        TRAIN + "--method gidd --p_uniform -0.1": "--p_uniform -0.1: expected at least 0 and less than 1",
        TRAIN + "--method diffusion_bert --spindle_lambda 0.5": r"--spindle_lambda 0.5: expected 0 to 0.3183",
        TRAIN + "--method mdlm --p_uniform 0.1": "--p_uniform belongs to --method gidd; the method is mdlm",
        TRAIN + "--method ar --noise_schedule cosine": "--noise_schedule belongs to --method mdlm or sedd",
        TRAIN + "--method mdlm --self_condition": "--self_condition belongs to --method latent",
        TRAIN + "--tokenizer char": "--tokenizer belongs to --method ar or d3pm or mdlm or",
        TRAIN + "--lengths modelled": "--lengths belongs to --method",
        TRAIN + "--condition_on_source": "--condition_on_source belongs to --method",
        TRAIN + "--method mdlm --bert_model x": "--bert_model belongs to --method diffusion_bert",
        TRAIN + "--method mdlm --sampler euler": "--method mdlm has the samplers ddpm_cache, ancestral, first_hitting;",
        TRAIN + "--sampler first_hitting": "--method latent has the samplers ddim, ancestral, dpmpp, q, churn;",
        TRAIN + "--method sedd --temperature 0.5": "--temperature.* sharpen .*--method sedd",
        TRAIN + "--top_p 0.9": "--top_p.* sharpen .*--method latent",
        TRAIN + "--method ar --T_schedule linear": "--method ar has no noise and no time: leave out --T_schedule",
        TRAIN + "--method ar --lengths modelled": "--method ar ends a text by itself: leave out --lengths modelled",
        TRAIN + "--method sedd --time_input none": "--time_input none: the ratios that sedd predicts change with time",
        TRAIN + "--method mdlm --sigma_max 9": "--sigma_max do not apply to the loglinear schedule",
        TRAIN + "--method sedd --noise_schedule linear --sigma_max 50": "--sigma_max 50 is too much for SEDD",
        TRAIN + "--method mdlm --condition_on_source": "--condition_on_source: texts of 'demo' have no source",
        TRAIN + "--method mdlm --mbr_candidates 3": "--mbr_candidates belongs to --condition_on_source,",
        TRAIN + "--method mdlm --tokenizer no/such": "run: python -m scripts.cache_models no/such$",
        TRAIN + "--method mdlm --tokenizer {tmp}": "not a model folder; expected a config.json",
        TRAIN + "--method mdlm --running_text 20": "not running text; expected train.txt, valid.txt and test.txt",
        TRAIN + "--method diffusion_bert --token_counts {file}": "file: cannot be read",
        BERT + "--bert_model no/bert": "run: python -m scripts.cache_models no/bert$",
        BERT + "--bert_model gpt2-demo": "gpt2-demo: no masked language model .*expected a BERT",
        BERT + "--bert_model bart-demo": "bart-demo: a model of type bart; expected bert or roberta",
        BERT + "--bert_model {bert} --tokenizer bart-demo": "--tokenizer does not go with --bert_model",
        BERT + "--bert_model {bert} --class_conditional": "--class_conditional does not go with --bert_model",
        BERT + "--bert_model {bert} --tx_dim 64": "--tx_dim does not go with --bert_model",
        BERT + "--bert_model {bert} --max_length 20 --time_input input": "--time_input input: a pretrained BERT takes",
        BERT + "--bert_model {bert} --max_length 28": "has room for 27 tokens; expected --max_length of at most that",
        BERT + "--bert_model {bert} --max_length 27 --time_input token": "has room for 26 tokens",
    }.items(),
)
def test_a_wrong_command_line(refused, line, wanted):
    assert re.search(wanted, refused(line))


def test_a_damaged_model_of_the_metrics_is_told_before_training(refused, tmp_path, monkeypatch):
    """Not hours later, at the first evaluation."""
    monkeypatch.setattr(train_text_diffusion, "build", lambda *_: pytest.fail("went on"))
    folder = Path(shutil.copytree(ROOT / "pre_trained_models" / "gpt2-demo", tmp_path / "gpt2"))
    for file, content in (("tokenizer.json", b"{"), ("config.json", b""), ("model.safetensors", b"\0" * 100)):
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(content)
        line = f"{TRAIN} {METRICS} --method mdlm --perplexity_model {folder}"
        assert f"{folder}: cannot load the model: " in refused(line), file
        (folder / file).write_bytes(whole)


def test_a_bert_with_another_tokenizer(refused, bert_dir, tmp_path):
    shutil.copytree(bert_dir, tmp_path / "bert")
    for file in (Path("pre_trained_models/bart-demo") / name for name in ("tokenizer.json", "tokenizer_config.json")):
        shutil.copy(ROOT / file, tmp_path / "bert")
    message = refused(BERT + f"--max_length 20 --bert_model {tmp_path / 'bert'}")
    assert re.search(r"has 300 tokens, the tokenizer [\d,]+; expected the tokenizer of the same model", message)


def test_token_counts_of_another_tokenizer(refused, tmp_path):
    save_file({"token_counts": torch.ones(7, dtype=torch.long)}, tmp_path / "counts.safetensors")
    message = refused(TRAIN + "--method diffusion_bert --token_counts {tmp}/counts.safetensors")
    assert re.search(r"counts 7 tokens, the tokenizer has \d+; count with the same --tokenizer", message)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_character_that_no_training_text_has(refused, place, tmp_path, split, call):
    (tmp_path / "own").mkdir()
    for name in ("train", "valid", "test"):
        (tmp_path / "own" / f"{name}.txt").write_text("a face\na line\n" + ("caf\xe9\n" if name == split else ""))
    line = TRAIN + f"--data_dir {tmp_path} --dataset_name own --method mdlm --tokenizer char --save_and_sample_every 9 "
    if split == "valid":
        message = refused(line)
    else:  # which training does not read
        line = line.format(**place | {"runs": tmp_path / "saved"})
        assert call(train_text_diffusion.main, f"{line} --output_dir {tmp_path}/run").status == 0
        message = refused(f"--ppl_eval --resume_dir {tmp_path}/run")
    assert re.search(rf"the {split} split of 'own': text 3: holds the character '\\xe9'", message)


@pytest.mark.parametrize(
    ("file", "content", "wanted"),
    [
        ("test.jsonl", None, r"test\.\*: no such file"),
        ("train.jsonl", '{"text": "one"}\n{"text": \n', r"train\.jsonl:2: not JSON"),
        ("train.jsonl", '{"text": "one"}\n["two"]\n', r"train\.jsonl:2: a JSON list, not an object"),
        ("valid.jsonl", '{"words": "one"}\n', r"valid\.jsonl:1: no 'text'"),
        ("valid.jsonl", '{"text": "one", "label": "a"}\n{"text": "two"}\n', r"valid\.jsonl:2: no 'label' here"),
        ("test.jsonl", "", r"test\.jsonl: holds no text"),
        ("test.jsonl", '{"text": " "}\n', r"test\.jsonl:1: empty 'text'"),
        ("test.jsonl", b'{"text": "caf\xe9"}\n', r"test\.jsonl:1: invalid UTF-8"),
    ],
)
def test_a_faulty_corpus_names_file_and_line(refused, tmp_path, file, content, wanted):
    (tmp_path / "own").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / "own" / f"{split}.jsonl").write_text('{"text": "A line of text."}\n')
    if content is None:
        (tmp_path / "own" / file).unlink()
    else:
        (tmp_path / "own" / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert re.search(wanted, refused(TRAIN + f"--data_dir {tmp_path} --dataset_name own"))


def test_an_output_dir_that_holds_a_run(refused, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "args.json").write_text("{}")
    assert "old: holds a run already" in refused(TRAIN + "--output_dir {tmp}/old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["args.json"]


@pytest.mark.parametrize("flag", ["save_dir", "output_dir"])
def test_a_folder_without_permission(refused, tmp_path, monkeypatch, flag):
    (tmp_path / "locked").mkdir()
    # Whoever may do everything, as in containers, could write there all the same.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / "locked")
    assert f"--{flag} {tmp_path}/locked/new: {tmp_path}/locked cannot be written" in refused(
        TRAIN + f"--{flag} {{tmp}}/locked/new"
    )


# A run folder that is not as it should be


@pytest.fixture
def run_dir(place) -> Path:
    """A run that has no checkpoint yet."""
    folder = place["tmp"] / "run"
    folder.mkdir()
    Options.from_argv(TRAIN.format(**place).split()).save(folder)
    return folder


@pytest.mark.parametrize("mode", ["eval", "eval_test", "gen_data", "resume_training"])
def test_a_run_without_a_checkpoint(refused, run_dir, mode):
    message = refused(f"--{mode} --resume_dir {run_dir}")
    assert re.search(r"run/checkpoints: expected a checkpoint \(found: none\)", message)
    assert "expected a checkpoint of step 7" in refused(f"--{mode} --resume_dir {run_dir} --milestone 7")
    assert [path.name for path in run_dir.iterdir()] == ["args.json"]


def test_a_run_with_a_wrong_type_in_its_args(refused, run_dir):
    saved = json.loads((run_dir / "args.json").read_text())
    (run_dir / "args.json").write_text(json.dumps(saved | {"tx_depth": "one"}))
    assert 'args.json: tx_depth is "one"; expected a whole number' in refused(f"--eval --resume_dir {run_dir}")


def test_a_run_whose_model_flags_are_given_otherwise(refused, run_dir):
    message = refused(f"--resume_training --resume_dir {run_dir} --tx_dim 128")
    assert f"--tx_dim 128: the run {run_dir} has 64, which is fixed" in message


def test_a_run_without_its_statistics(refused, run_dir):
    checkpoint.save(run_dir, 2, {"ema": {}}, {}, keep=0)
    assert "latent_statistics.safetensors: cannot be read" in refused(f"--gen_data --resume_dir {run_dir}")


@pytest.mark.parametrize(
    ("method", "given", "wanted"),
    [
        ("--method diffusion_bert --spindle frequency", "", "--spindle frequency has no likelihood"),
        ("--method diffusion_bert --spindle information", "", "--spindle information has no likelihood"),
        ("--method mdlm --temperature 0.5", "--temperature 0.7", "--temperature is of samples, of which this makes"),
        ("--method latent", "--temperature 0.7", "--temperature is of samples, of which this makes none"),
        ("--method ar", "--top_k 5", "--top_k is of samples"),
    ],
)
def test_what_has_no_likelihood_is_told_before_anything_is_loaded(refused, place, method, given, wanted):
    folder = place["tmp"] / "run"
    (folder / "checkpoints" / "step_00000002").mkdir(parents=True)  # empty: whoever reads it stumbles
    Options.from_argv((TRAIN.format(**place) + method).split()).save(folder)
    assert wanted in refused(f"--ppl_eval --resume_dir {folder} {given}")


@pytest.mark.parametrize(
    ("line", "wanted"),
    {
        "--eval --learning_rate 1e-3": "--learning_rate is of training, of which this does none",
        "--gen_data --T_schedule linear": "--T_schedule is of training, of which this does none",
        "--eval_test --wandb_name mine": "--wandb_name is of training",
        "--ppl_eval --num_train_steps 5": "--num_train_steps is of training",
        "--eval_test --random_seed 7": "--random_seed is not read by this, which has seeds of its own",
        "--eval --likelihood_draws 4": "--likelihood_draws is of likelihoods, of which this takes none",
        "--ppl_eval --num_samples 7": "--num_samples is of samples, of which this makes none",
        "--ppl_eval --sampling_timesteps 7": "--sampling_timesteps is of samples",
        "--ppl_eval --mauve_seeds 5": "--mauve_seeds is of scores, of which this gives none",
        "--gen_data --random_seed 7": "--random_seed is not read by this",
        "--gen_data --likelihood_draws 7": "--likelihood_draws is of likelihoods",
        "--gen_data --perplexity_model gpt2-demo": "--perplexity_model is of scores",
        "--gen_data --mauve_seeds 5": "--mauve_seeds is of scores",
    }.items(),
)
def test_what_an_evaluation_would_not_read(refused, run_dir, line, wanted):
    assert wanted in refused(f"{line} --resume_dir {run_dir}")


# Sampling


@pytest.mark.parametrize(
    ("run", "line", "wanted"),
    [
        ("mdlm", "--clamp near", "--clamp 'near': expected POSITION:TEXT"),
        ("mdlm", "--clamp -1:near", "--clamp"),
        ("mdlm", "--clamp 24:pub", "expected at most 24"),
        ("mdlm", "--prefix {long}", r"takes \d+ tokens; expected at most 24, the longest text of the model"),
        ("mdlm", "--prefix {half} --clamp 3:pub", "--clamp 3: .* expected pieces that do not overlap"),
        ("mdlm", "--suffix {long}", "expected at most 24"),
        ("mdlm", "--prefix {half} --suffix {half}", "expected at most 24"),
        ("mdlm --lengths modelled", "--suffix pub", "--suffix: .* by --lengths modelled .* --clamp POSITION:TEXT"),
        ("mdlm --lengths modelled", "--prefix {half} --clamp 22:{half}", "expected at most 24"),
        ("ar", "--prefix {long}", "expected at most 24"),
        ("mdlm", "--semi_ar_stride 24", "--semi_ar_stride 24: expected 1 to 23"),
        ("mdlm", "--semi_ar_stride 0", "--semi_ar_stride 0: expected 1 to 23"),
        ("mdlm", "--semi_ar_stride 3 --semi_ar_strides 0", "--semi_ar_strides 0: expected at least 1"),
        ("mdlm", "--semi_ar_stride 3 --prefix A", "--prefix does not go with --semi_ar_stride"),
        ("mdlm", "--semi_ar_stride 3 --show_intermediate", "--show_intermediate does not go with --semi_ar_stride"),
        ("mdlm", "--semi_ar_strides 3", "--semi_ar_strides 3: .* Give --semi_ar_stride"),
        ("mdlm", "--split valid", "--split valid: is whose sources are used, and this run has none"),
        ("mdlm", "--split dev", "--split 'dev' is not one of: train, valid, test"),
        ("mdlm", "--strategy beam", "--strategy 'beam' is not one of: sample"),
        ("mdlm", "--sampler euler", "--method mdlm has the samplers ddpm_cache, ancestral"),
        ("mdlm", "--p_uniform 0.5", "--p_uniform"),
        ("latent", "--show_intermediate", "need a method on tokens; this run is latent"),
        ("latent", "--semi_ar_stride 3", "need a method on tokens; this run is latent"),
        ("latent", "--temperature 0.5", "--method latent"),
        ("char", "--prefix Ü", "holds the character '.xdc', which no training text has"),
    ],
)
def test_a_wrong_way_to_sample(refused, small_run, run, line, wanted):
    method, _, flags = run.partition(" ")
    if method == "char":
        folder = small_run("mdlm", trunk="--tokenizer char --tx_dim 64 --tx_depth 1")
    else:
        folder = small_run(method, flags)
    long, half = (f"'{' '.join(['pub'] * count)}'" for count in (40, 14))
    line = line.replace("{long}", long).replace("{half}", half)
    assert re.search(wanted, refused(f"--resume_dir {folder} --num_samples 2 {line}", sample.main))


# The scripts beside the entry script


@pytest.mark.parametrize(
    ("main", "line", "wanted"),
    [
        (sample.main, "", "expected --resume_dir, the folder of a trained run"),
        (sample.main, "--resume_dir {tmp}/run --strategy best", "--strategy 'best' is not one of: beam, nucleus"),
        (sample.main, "--resume_dir {tmp}/run --output_file {tmp}", "--output_file .*: is a folder; expected a file"),
        (sample.main, "--resume_dir {tmp}/run --output_file .", "--output_file .: is a folder; expected a file"),
        (sample.main, "--resume_dir {tmp} --strategies beam", "unknown argument '--strategies'"),
        (evaluate_samples.main, "--dataset_name demo", "--samples None: expected a file"),
        (evaluate_samples.main, "--samples {tmp}/none.txt --dataset_name demo", "none.txt: cannot be read"),
        (evaluate_samples.main, "--samples {tmp}/bad.jsonl --dataset_name demo", r"bad\.jsonl:2: not a sample"),
        (evaluate_samples.main, "--samples {tmp}/empty.txt --dataset_name demo", "empty.txt: holds no samples"),
        (evaluate_samples.main, "--samples {tmp}/good.txt --dataset_name no", "unknown dataset 'no'"),
        (
            evaluate_samples.main,
            "--samples {tmp}/good.txt --dataset_name demo --mauve_model no/such --perplexity_model gpt2-demo",
            "run: python -m scripts.cache_models no/such$",
        ),
        (evaluate_samples.main, "--samples {tmp}/good.txt --output_dir {file}", "--output_dir .*is a file"),
        (make_demo_corpus.main, "--seed 3", "unknown argument '--seed'"),
        (demo.main, "--steps 3", "unknown argument '--steps'"),
    ],
)
def test_a_wrong_command_line_of_another_script(refused, run_dir, tmp_path, main, line, wanted):
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"words": "bad"}\n')
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "good.txt").write_text("A text.\n")
    assert re.search(wanted, refused(line, main))


# What becomes of an exception


@pytest.mark.parametrize("kind", USER_ERRORS)
def test_every_kind_of_user_error_is_one_line(call, kind):
    def main():
        raise kind("what is wrong\n  and   where")

    assert call(main) == (2, "", "error: what is wrong and where\n")


def test_what_the_disk_refuses_is_one_line(call):
    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/states.npy")

    status, _, err = call(full)
    assert (status, err) == (2, "error: /runs/states.npy: No space left on device; check the disk and permissions\n")


def test_a_full_gpu_is_one_line_that_says_what_takes_less(call, place):
    def main():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation ...")

    status, _, err = call(main)
    assert status == 2 and err.count("\n") == 1 and "Tried to allocate 20.00 GiB.)" in err
    named = {"train_batch_size", "gradient_accumulation_steps", "eval_batch_size", "metric_batch_size"}
    assert set(re.findall(r"--(\w+)", err)) == named < Options.from_argv(TRAIN.format(**place).split()).flat().keys()


@pytest.mark.parametrize("flush", [True, False])
def test_a_reader_who_has_seen_enough_ends_a_command_in_silence(monkeypatch, capfd, flush):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        with pytest.raises(SystemExit) as leaving:
            run(lambda: print("a sample", flush=flush))
        monkeypatch.undo()  # `unread` is closed here, as at the end of a process, and has a line left
    assert leaving.value.code == 141
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("listens", [nullcontext, listening])
def test_a_job_stopped_by_a_signal_has_its_own_status_and_says_whether_it_goes_on(call, number, listens):
    def main():
        with listens():
            os.kill(os.getpid(), number)

    assert call(main) == (128 + number, "", "stopped by a signal; the same command begins anew\n")
    status = 130 if number == signal.SIGINT else 75
    assert call(going_on()(main)) == (status, "", "stopped by a signal; what was done is on disk\n")


@pytest.mark.parametrize("bug", [ValueError("shape"), OSError("no number")])
def test_a_bug_keeps_its_traceback(bug):
    def main():
        raise bug

    with pytest.raises(type(bug)):
        run(main)


def test_the_entry_script_itself(tmp_path):
    """In a process of its own, as users start it."""
    line = f"--dataset_name demo --enc_dec_model no/such-bart --save_dir {tmp_path / 'runs'}"
    done = subprocess.run(
        [sys.executable, "train_text_diffusion.py", *line.split()], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: .*no/such-bart.*python -m scripts\.cache_models no/such-bart\n", done.stderr)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("module", ["torch._inductor.exc", "torch._dynamo.exc"])
def test_a_trunk_that_cannot_be_compiled_is_one_line(module, capsys):
    failure = type("InductorError", (RuntimeError,), {"__module__": module})

    def main():
        raise failure("CppCompileError: g++ failed\n\nCommand:\ng++ ...")

    with pytest.raises(SystemExit) as leaving:
        run(main)
    told = capsys.readouterr().err
    assert leaving.value.code == 2 and told.count("\n") == 1
    assert told.startswith("error: --compile: the trunk cannot be compiled here (CppCompileError: g++ failed)")


def test_what_is_no_user_error_stays_a_traceback():
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
