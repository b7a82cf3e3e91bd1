"""The command line: which flags there are, what they are worth by default, and what a run remembers of them."""

import json
import re
from dataclasses import fields

import pytest

from scripts import interface_audit, measure_window, sample, self_correct, step_curves
from scripts.composition.options import GROUPS, Options, given_flags
from scripts.job.errors import USER_ERRORS, UsageError

# The flags of the reference system with a value that is not the default here, and where a flag lives.
REFERENCE_FLAGS = {
    "dataset_name": ("data", "roc"),
    "save_dir": ("run", "elsewhere"),
    "output_dir": ("run", "here"),
    "wandb_name": ("run", "a name"),
    "random_seed": ("training", 41),
    "train_batch_size": ("training", 64),
    "eval_batch_size": ("training", 65),
    "num_train_steps": ("training", 80000),
    "gradient_accumulation_steps": ("training", 2),
    "learning_rate": ("optim", 2e-4),
    "lr_schedule": ("optim", "linear"),
    "lr_warmup_steps": ("optim", 500),
    "optimizer": ("optim", "adamw"),
    "T_schedule": ("training", "polynomial"),
    "polynomial_T_power": ("training", 3.0),
    "adam_beta1": ("optim", 0.8),
    "adam_beta2": ("optim", 0.99),
    "adam_weight_decay": ("optim", 0.01),
    "ema_decay": ("optim", 0.999),
    "ema_update_every": ("optim", 2),
    "objective": ("gaussian", "pred_noise"),
    "loss_type": ("gaussian", "l1"),
    "beta_schedule": ("gaussian", "linear"),
    "p2_loss_weight_gamma": ("gaussian", 0.5),
    "timesteps": ("gaussian", 500),
    "sampling_timesteps": ("sampling", 50),
    "normalize_latent": ("codec", True),
    "save_and_sample_every": ("training", 1000),
    "num_samples": ("run", 1000),
    "self_condition": ("denoiser", True),
    "ddim_sampling_eta": ("sampling", 0.0),
    "enc_dec_model": ("codec", "some-bart"),
    "tx_dim": ("denoiser", 768),
    "tx_depth": ("denoiser", 12),
    "scale_shift": ("denoiser", True),
    "disable_dropout": ("denoiser", True),
    "class_conditional": ("denoiser", True),
    "class_unconditional_prob": ("training", 0.2),
    "mixed_precision": ("training", "bf16"),
}
# Its defaults, where ours are the same.
REFERENCE_DEFAULTS = {
    "dataset_name": None, "save_dir": "saved_models", "output_dir": None, "wandb_name": None, "random_seed": 42,
    "train_batch_size": 16, "eval_batch_size": 32, "num_train_steps": 60000, "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4, "lr_schedule": "cosine", "lr_warmup_steps": 1000, "T_schedule": "normal",
    "polynomial_T_power": 2, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_weight_decay": 1e-6, "ema_decay": 0.9999,
    "ema_update_every": 1, "loss_type": "l2", "beta_schedule": "cosine", "p2_loss_weight_gamma": 0, "timesteps": 1000,
    "sampling_timesteps": 250, "save_and_sample_every": 5000, "num_samples": 16, "self_condition": False,
    "ddim_sampling_eta": 1, "enc_dec_model": "facebook/bart-base", "tx_dim": 512, "tx_depth": 6, "scale_shift": False,
    "disable_dropout": False, "class_conditional": False, "class_unconditional_prob": 0.1, "mixed_precision": "no",
}  # fmt: skip
# Ours differ where the reference's cannot be trained (noise prediction), are a slip, or are needed for any good result.
OWN_DEFAULTS = {"objective": "pred_x0", "optimizer": "adamw", "normalize_latent": True}
ONE_CALL = (
    "compile", "eval", "eval_test", "ppl_eval", "gen_data", "resume_training", "resume_dir", "milestone",
    "mbr_candidates", "dry_run",
)  # fmt: skip


def options(line: str = "") -> Options:
    return Options.from_argv(line.split())


def value_of(found: Options, flag: str):
    return getattr(getattr(found, REFERENCE_FLAGS[flag][0]), flag)


def one_line(line: str) -> str:
    """The message that a command line is refused with."""
    with pytest.raises(USER_ERRORS) as error:
        options(line)
    assert "\n" not in str(error.value)
    return str(error.value)


# Which flags there are


@pytest.mark.parametrize("flag", REFERENCE_FLAGS)
def test_every_flag_of_the_reference_is_taken(flag):
    value = REFERENCE_FLAGS[flag][1]
    argv = [f"--{flag}"] if value is True else [f"--{flag}", str(value)]
    assert value_of(Options.from_argv(argv), flag) == value


@pytest.mark.parametrize("flag", ["eval", "eval_test", "gen_data", "resume_training"])
def test_every_mode_of_the_reference_is_taken(flag, saved_run):
    assert options(f"--{flag} --resume_dir {saved_run} --milestone 12").run.mode == flag


@pytest.mark.parametrize("given", ["--amp", "--amp=1", "--corruption_prob 0.1", "--corruption-prob 0.1"])
def test_flags_without_effect_are_refused_with_a_reason(given):
    assert "never had an effect" in one_line(given)


def test_the_example_of_the_reference_is_taken_whole():
    found = options(
        "--dataset_name e2e --T_schedule polynomial --polynomial_T_power 2 --learning_rate 1e-4 "
        "--num_train_steps 80000 --train_batch_size 64 --tx_dim 768 --tx_depth 12 --objective pred_x0 "
        "--enc_dec_model facebook/bart-base --num_samples 1000 --normalize_latent --scale_shift --beta_schedule linear "
        "--loss_type l1 --self_condition --adam_weight_decay 0.01 --optimizer adamW --random_seed 41"
    )
    assert found.training.T_schedule == "polynomial"
    assert found.denoiser.self_condition and found.denoiser.scale_shift and not found.denoiser.class_conditional


def test_defaults_are_those_of_the_reference_but_for_three():
    found = options()
    assert {flag: value_of(found, flag) for flag in REFERENCE_DEFAULTS} == REFERENCE_DEFAULTS
    assert {flag: value_of(found, flag) for flag in OWN_DEFAULTS} == OWN_DEFAULTS
    assert REFERENCE_FLAGS.keys() == REFERENCE_DEFAULTS.keys() | OWN_DEFAULTS.keys()


def test_no_two_groups_share_a_flag():
    flags = [f.name for group in GROUPS for f in fields(group)]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize("line", ["--tx_di 64", "--num_train 5", "--frobnicate", "--frobnicate 3", "stray"])
def test_unknown_and_shortened_flags_are_refused(line):
    assert one_line(line).startswith(f"unknown argument {line.split()[0]!r}")


def test_flags_are_read_from_the_command_line_only(tmp_path, monkeypatch):
    """The parser would read further flags from a file named like the script."""
    (tmp_path / "train_text_diffusion.args").write_text("--tx_dim 64\n")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "train_text_diffusion.py"), "--tx_depth", "2"])
    found = Options.from_argv()
    assert (found.denoiser.tx_dim, found.denoiser.tx_depth) == (512, 2)


def test_a_default_that_is_true_can_be_switched_off():
    assert not options("--no_normalize_latent").codec.normalize_latent
    assert not options("--normalize_latent false").codec.normalize_latent
    assert options("").codec.normalize_latent


def test_the_help_of_a_flag_and_of_its_negation_are_true(capsys):
    with pytest.raises(SystemExit):
        options("--help")
    words = " ".join(capsys.readouterr().out.split())
    positive, negative = re.findall(r"--normalize[-_]latent \[NORMALIZE_LATENT\] (\w.*?) --no_normalize_latent, "
                                    r"--no-normalize-latent (.*?) --latent_scale", words)[0]  # fmt: skip
    assert positive == "normalise latents by the statistics of the whole training split (default: True)"
    assert negative == "--normalize_latent false, in short"


def test_given_flags_are_known_however_they_are_written():
    argv = "--tx_dim 64 --learning-rate=1e-3 --no_normalize_latent --milestone -3 stray".split()
    assert given_flags(argv) == {"tx_dim", "learning_rate", "normalize_latent", "milestone"}


# Wrong values


@pytest.mark.parametrize(
    ("flag", "choices"),
    {
        "objective": ["pred_x0", "pred_noise", "pred_v"],
        "loss_type": ["l1", "l2", "smooth_l1"],
        "beta_schedule": ["linear", "cosine", "tan"],
        "T_schedule": ["normal", "linear", "polynomial", "cosine", "unsmooth"],
        "lr_schedule": ["cosine", "linear", "constant"],
        "optimizer": ["adamw", "lion"],
        "mixed_precision": ["no", "fp16", "bf16"],
        "sampler": [
            "default", "ddim", "ancestral", "dpmpp", "q", "ddpm_cache", "first_hitting", "euler", "left_to_right"
        ],
        "latent_scale": ["scalar", "dimension"],
        "latent_dtype": ["float32", "bf16"],
        "method": ["latent", "ar", "d3pm", "mdlm", "sedd", "gidd", "diffusion_bert"],
        "lengths": ["drawn", "modelled"],
        "time_input": ["default", "none", "input", "token", "layerwise"],
        "noise_schedule": ["default", "loglinear", "cosine", "cosine_squared", "linear", "geometric"],
        "graph": ["absorb", "uniform"],
        "gidd_weights": ["dynamic", "clip", "raw"],
        "spindle": ["none", "type", "frequency", "information"],
    }.items(),
)  # fmt: skip
def test_a_wrong_choice_names_the_choices(flag, choices):
    message = one_line(f"--{flag} wrong")
    assert flag in message
    assert all(choice in message for choice in choices)
    for choice in choices:
        options(f"--{flag} {choice}")


@pytest.mark.parametrize(
    "flag",
    "num_samples train_batch_size eval_batch_size num_train_steps gradient_accumulation_steps save_and_sample_every "
    "log_every ema_update_every tx_dim tx_depth timesteps sampling_timesteps learning_rate metric_batch_size "
    "likelihood_draws mbr_candidates temperature top_p sigma_min sigma_max gidd_max_weight".split(),
)
@pytest.mark.parametrize("value", ["0", "-1", "many", "nan"])
def test_counts_and_rates_must_be_positive_numbers(flag, value):
    assert flag in one_line(f"--{flag} {value}")


@pytest.mark.parametrize(
    "line",
    [
        "--learning_rate inf", "--adam_beta1 1", "--adam_beta2 nan", "--ema_decay 1", "--adam_weight_decay -0.1",
        "--lr_warmup_steps -1", "--ddim_sampling_eta 1.5", "--ddim_sampling_eta nan", "--class_unconditional_prob 2",
        "--q_sampling_from 1.5", "--q_sampling_from nan", "--early_stop -1", "--early_stop nan",
        "--grid_power 0", "--grid_power nan",
        "--self_condition_prob nan", "--tx_dim 100", "--random_seed -1", "--polynomial_T_power 0", "--tan_d 0",
        "--p2_loss_weight_gamma nan", "--max_length 1", "--mauve_seeds 2", "--mauve_scaling_factor nan",
        "--keep_checkpoints -1", "--scale_shift perhaps", "--num_train_steps 1.5", "--wandb_name",
        "--beta_schedule linear --timesteps 20", "--spindle_lambda 0.5", "--spindle_lambda -0.1",
        "--spindle_lambda nan", "--p_uniform 1", "--p_uniform -0.1", "--p_uniform nan", "--top_p 1.5", "--top_k -1",
        "--temperature inf", "--sigma_min 2 --sigma_max 1", "--hybrid_weight -1", "--running_text 1",
    ],
)  # fmt: skip
def test_a_value_that_cannot_work_is_refused_by_the_name_of_its_flag(line):
    assert line.split()[0] in one_line(line)


@pytest.mark.parametrize(
    ("line", "wanted"),
    {
        "--eval": "--eval needs --resume_dir",
        "--gen_data": "--gen_data needs --resume_dir",
        "--ppl_eval": "--ppl_eval needs --resume_dir",
        "--resume_training": "--resume_training needs --resume_dir",
        "--eval --eval_test --resume_dir x": "one mode at a time",
        "--resume_dir x": "--resume_dir needs a mode",
        "--milestone 7": "--milestone 7",
        "--resume_training --resume_dir x --output_dir y": "--output_dir y",
    }.items(),
)
def test_modes_and_run_folders_that_do_not_go_together(line, wanted):
    assert wanted in one_line(line)


@pytest.mark.parametrize("script", [sample, self_correct, interface_audit, step_curves])
@pytest.mark.parametrize(
    ("line", "wanted"),
    {
        "--num_samples 2": "expected --resume_dir, the folder of a trained run",
        "--eval --resume_dir x": "--eval: is a mode of train_text_diffusion.py; leave it out",
    }.items(),
)
def test_scripts_that_read_a_run_ask_for_that_and_for_no_mode(complaint, script, line, wanted):
    assert wanted in (said := complaint(script.main, line)) and not re.search("gen_data|eval_test", said)


@pytest.mark.parametrize(
    ("script", "line", "wanted"),
    [
        (sample, "--mauve_seeds 5", "--mauve_seeds is of scores, of which this gives none; leave it out"),
        (sample, "--output_dir x", "--output_dir is not read by this, which writes nothing there; leave it out"),
        (interface_audit, "--random_seed 7", "--random_seed is not read by this, which has seeds of its own"),
        (interface_audit, "--likelihood_draws 7", "--likelihood_draws is of likelihoods, of which this takes none"),
        (measure_window, "--random_seed 7", "--random_seed is not read by this, which has seeds of its own"),
        (measure_window, "--num_samples 7", "--num_samples is of samples, of which this makes none"),
        (step_curves, "--cells ddim:2 --mbr_candidates 2", "--mbr_candidates belongs to --condition_on_source"),
    ],
)
def test_scripts_that_read_a_run_refuse_what_they_do_not_read(complaint, small_run, script, line, wanted):
    assert wanted in complaint(script.main, f"--resume_dir {small_run('latent')} {line}")


# What a run remembers


@pytest.fixture
def saved_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    options("--dataset_name demo --tx_dim 128 --learning_rate 3e-4 --no_normalize_latent --num_samples 77").save(run)
    return run


def test_args_json_holds_every_option_and_none_of_the_call(saved_run):
    saved = json.loads((saved_run / "args.json").read_text())
    flags = {f.name for group in GROUPS for f in fields(group)}
    assert saved.keys() == flags - {*ONE_CALL, "output_dir"}
    assert [path.name for path in saved_run.iterdir()] == ["args.json"]


def test_an_option_that_came_after_the_run_has_its_default(saved_run):
    saved = json.loads((saved_run / "args.json").read_text())
    del saved["latent_dtype"]
    (saved_run / "args.json").write_text(json.dumps(saved))
    assert options(f"--eval --resume_dir {saved_run}").codec.latent_dtype == "float32"


def test_options_survive_the_disk(saved_run):
    found = options(f"--eval --resume_dir {saved_run}")
    assert (found.data.dataset_name, found.denoiser.tx_dim, found.optim.learning_rate) == ("demo", 128, 3e-4)
    assert found.codec.normalize_latent is False
    assert found.run.num_samples == 77
    again = saved_run.parent / "again"
    again.mkdir()
    found.save(again)
    assert (again / "args.json").read_bytes() == (saved_run / "args.json").read_bytes()


@pytest.mark.parametrize(
    "given",
    [
        "--tx_dim 256", "--tx_depth 1", "--self_condition", "--class_conditional", "--scale_shift", "--timesteps 500",
        "--objective pred_v", "--beta_schedule linear", "--max_length 32", "--normalize_latent", "--dataset_name e2e",
        "--latent_scale dimension", "--tx-dim=256", "--label_field kind", "--method mdlm", "--tokenizer char",
        "--lengths modelled", "--time_input none", "--graph uniform", "--p_uniform 0.2", "--noise_schedule cosine",
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["eval_test", "resume_training"])
def test_flags_that_say_what_the_model_is_cannot_change(saved_run, mode, given):
    flag = given.split()[0].split("=")[0].replace("-", "_").removeprefix("__")
    message = one_line(f"--{mode} --resume_dir {saved_run} {given}")
    assert re.search(rf"^--{flag} .*{re.escape(str(saved_run))} has .*fixed", message)


def test_nor_can_those_that_came_after_the_run(saved_run):
    saved = json.loads((saved_run / "args.json").read_text())
    del saved["noise_shift"]
    (saved_run / "args.json").write_text(json.dumps(saved))
    message = one_line(f"--eval --resume_dir {saved_run} --noise_shift 2")
    assert message.endswith("has 1.0, which is fixed")


def test_a_corpus_may_have_moved_with_its_folder(saved_run):
    found = options(f"--eval --resume_dir {saved_run} --dataset_name /elsewhere/demo/")
    assert found.data.dataset_name == "/elsewhere/demo/"
    assert "has None, which is fixed" in one_line(f"--eval --resume_dir {saved_run} --bert_model bert")


def test_the_same_value_is_no_change(saved_run):
    found = options(f"--resume_training --resume_dir {saved_run} --tx_dim 128 --no_normalize_latent --timesteps 1000")
    assert found.denoiser.tx_dim == 128


@pytest.mark.parametrize(
    ("group", "flag", "value"),
    [
        ("training", "num_train_steps", 70000), ("optim", "learning_rate", 1e-5), ("sampling", "sampling_timesteps", 9),
        ("training", "eval_batch_size", 5), ("data", "data_dir", "/data"), ("codec", "enc_dec_model", "/models/bart"),
        ("metrics", "mauve_model", "/models/gpt2"), ("run", "num_samples", 5), ("run", "save_dir", "there"),
    ],
)  # fmt: skip
def test_other_flags_given_again_win_over_the_run(saved_run, group, flag, value):
    found = options(f"--resume_training --resume_dir {saved_run} --{flag} {value}")
    assert getattr(getattr(found, group), flag) == value
    assert found.denoiser.tx_dim == 128


def test_a_flag_given_with_its_default_wins_too(saved_run):
    found = options(f"--resume_training --resume_dir {saved_run} --learning_rate 1e-4 --num_samples 16")
    assert (found.optim.learning_rate, found.run.num_samples) == (1e-4, 16)


def test_a_run_saved_before_a_flag_existed_has_its_default(saved_run):
    saved = json.loads((saved_run / "args.json").read_text())
    del saved["log_every"]
    (saved_run / "args.json").write_text(json.dumps(saved))
    assert options(f"--eval --resume_dir {saved_run}").training.log_every == 50


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "null", '{"no_such_flag": 1}', "\ud800".encode("utf-8", "surrogatepass")]
)
def test_a_damaged_args_json_is_told_in_one_line(saved_run, content):
    (saved_run / "args.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert str(saved_run / "args.json") in one_line(f"--eval --resume_dir {saved_run}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tx_dim", "128"), ("tx_dim", 128.0), ("tx_dim", True), ("tx_dim", None), ("learning_rate", "fast"),
        ("scale_shift", 1), ("objective", "wrong"), ("objective", 3), ("num_samples", "8"),
        ("num_samples", 0), ("dataset_name", 3), ("enc_dec_model", None), ("beta_schedule", ["linear"]),
        ("wandb_name", {}), ("train_batch_size", -1), ("save_dir", 7), ("milestone", "last"),
    ],
)  # fmt: skip
def test_a_wrong_value_in_args_json_is_told_in_one_line(saved_run, key, value):
    saved = json.loads((saved_run / "args.json").read_text())
    (saved_run / "args.json").write_text(json.dumps(saved | {key: value}))
    message = one_line(f"--resume_training --resume_dir {saved_run}")
    assert key in message
    assert "expected" in message or "must be" in message


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ('{"train_batch_size": 0}', "args.json: --train_batch_size 0: expected at least 1"),
        ('{"learning_rate": NaN}', "args.json: cannot be read (NaN is no number"),
        ('{"learning_rate": 1, "learning_rate": 2}', "args.json: cannot be read (the key 'learning_rate' twice"),
        ('{"num_train_steps": 18446744073709551615}', "args.json: num_train_steps is 18446744073709551615; expected"),
        ('{"data_dir": "a\\u0000b"}', "args.json: data_dir is"),
        ('{"tx_dim": 64, "no_such_flag": 1}', 'args.json: "no_such_flag" is no option; expected the flags that --help'),
        ("[" * 100_000, "args.json: cannot be read (nested too deeply)"),
    ],
)
def test_args_json_holds_only_what_flags_could_have_been(saved_run, content, wanted):
    (saved_run / "args.json").write_text(content)
    assert wanted in one_line(f"--resume_training --resume_dir {saved_run}")


def test_a_whole_number_is_a_number(saved_run):
    saved = json.loads((saved_run / "args.json").read_text())
    (saved_run / "args.json").write_text(json.dumps(saved | {"ddim_sampling_eta": 0, "tan_d": 9, "wandb_name": None}))
    assert options(f"--eval --resume_dir {saved_run}").sampling.ddim_sampling_eta == 0


@pytest.mark.parametrize("where", ["file", "missing"])
def test_a_resume_dir_that_is_no_run_folder(tmp_path, where):
    (tmp_path / "file").write_text("")
    message = one_line(f"--eval --resume_dir {tmp_path / where}")
    assert str(tmp_path / where) in message
    assert "expected the folder of a run" in message


def test_usage_errors_are_user_errors():
    assert UsageError in USER_ERRORS
