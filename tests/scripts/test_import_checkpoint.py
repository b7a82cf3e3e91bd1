"""Published weights made a run: their figures through the command, a whole life, and every refusal in one line.

Figures from running the public reference code with random weights on a CPU; see tests/golden/README.md.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion.denoiser import DenoiserOptions
from diffusion.dit import DiT, rotary_frequencies
from diffusion.guidance import Prediction
from diffusion.training import checkpoint
from latent_models.token_codec import TokenCodec
from scripts import export_run, sample, self_correct
from scripts.import_checkpoint import main
from scripts.published.weights import read_published
from scripts.sampling.samples_file import read_texts
from tests.scripts.hostile import Hostile
from train_text_diffusion import main as train_main

GOLDEN = Path(__file__).parents[1] / "golden" / "discrete" / "dit"
ROWS = {"mdlm": 784, "sedd": 784, "gidd": 896}  # of gpt2-demo: 783 ids and the mask; with a PAD too, padded to 7 x 128
FAMILIES = list(ROWS)
LIFE = (
    "--dataset_name plain --perplexity_model gpt2-demo --mauve_model gpt2-demo --max_length 24 --timesteps 20 "
    "--sampling_timesteps 3 --num_train_steps 2 --train_batch_size 8 --learning_rate 1e-3 --lr_warmup_steps 0 "
    "--save_and_sample_every 2 --log_every 1 --num_samples 4 --likelihood_draws 2"
)


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
    """Corpora of 5 and 6 letters: with PAD and EOS they have the 7 and 8 ids of the figures."""
    place = tmp_path_factory.mktemp("letters")
    for name, alphabet in (("five", "abcde"), ("six", "abcdef")):
        (place / name).mkdir()
        for split in ("train", "valid", "test"):
            lines = [json.dumps({"text": alphabet}), json.dumps({"text": alphabet[::-1]})]
            (place / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return place


@pytest.fixture(scope="module")
def imported(call, letters, tmp_path_factory) -> Callable[..., Path]:
    """imported(place, "--family ... --flag value") is the run made of a checkpoint."""

    def make(place: Path, line: str) -> Path:
        run_dir = tmp_path_factory.mktemp("imported") / "run"
        places = f"--data_dir {letters} --save_dir {run_dir.parent} --output_dir {run_dir}"
        outcome = call(main, f"{place} --max_length 6 --tokenizer char {places} {line}")
        assert outcome.status == 0, outcome.err
        return run_dir

    return make


@pytest.fixture
def tiny(tmp_path) -> Callable[..., dict[str, Tensor]]:
    """tiny(rows) are random weights of a network of 2 blocks 32 wide with 2 heads, and its rotary table."""

    def make(rows: int, seed: int = 0) -> dict[str, Tensor]:
        options, generator = DenoiserOptions(tx_dim=32, tx_depth=2, trunk="dit", dit_heads=2, dit_cond_dim=16), None
        generator = torch.Generator().manual_seed(seed)
        with torch.device("meta"):
            shapes = {name: p.shape for name, p in DiT(rows, options, None).named_parameters()}
        weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return weights | {"rotary_emb.inv_freq": rotary_frequencies(16)}

    return make


# Figures


def told(run_dir: Path, loaded, ids: Tensor, t: Tensor) -> SimpleNamespace:
    """Logits and x0_hat of a run at t."""
    system = loaded(run_dir)
    with torch.no_grad():
        valid = torch.ones_like(ids, dtype=torch.bool)
        predict = Prediction(system.process, system.denoiser, valid)
        return SimpleNamespace(logits=system.denoiser(ids, t, valid), x0_hat=predict(ids, t))


@pytest.mark.parametrize("flags", ["--time_input layerwise", ""])
def test_mdlm_logits_after_the_command(imported, loaded, flags):
    figures = load_file(GOLDEN / "mdlm_io.safetensors")
    run_dir = imported(GOLDEN / "mdlm_weights.safetensors", f"--family mdlm --dataset_name five {flags}")
    t = loaded(run_dir).process.survival.time_of_sigma(figures["sigma"].double())
    expected = figures["logits" if flags else "logits_sigma_zero"]
    torch.testing.assert_close(told(run_dir, loaded, figures["input_ids"], t).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("graph", "corpus"), [("absorb", "five"), ("uniform", "six")])
def test_sedd_scores_after_the_command(imported, loaded, graph, corpus):
    figures = load_file(GOLDEN / f"sedd_{graph}_io.safetensors")
    place = GOLDEN / f"sedd_{graph}_weights.safetensors"
    run_dir = imported(place, f"--family sedd --graph {graph} --dataset_name {corpus}")
    t = loaded(run_dir).process.survival.time_of_sigma(figures["sigma"].double())
    x0_hat = told(run_dir, loaded, figures["input_ids"], t).x0_hat
    torch.testing.assert_close(x0_hat.float(), figures["log_score"], rtol=0, atol=1e-5)


def test_gidd_logits_after_the_command(imported, loaded):
    figures = load_file(GOLDEN / "gidd_io.safetensors")
    run_dir = imported(GOLDEN / "gidd_weights.safetensors", "--family gidd --dataset_name five")
    logits = told(run_dir, loaded, figures["input_ids"], figures["t"].double()).logits
    assert logits.shape[-1] == 8
    torch.testing.assert_close(logits, figures["logits"][..., :8], rtol=0, atol=1e-5)


# A life


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def test_a_run_of_published_weights_has_a_whole_life(call, tiny, data_dir, tmp_path, family, rows_of):
    folder, run_dir = tmp_path / "published", tmp_path / "run"
    folder.mkdir()
    save_file({f"backbone.{name}": value for name, value in tiny(ROWS[family]).items()}, folder / "model.safetensors")
    places = f"--data_dir {data_dir} --save_dir {tmp_path} --output_dir {run_dir}"
    outcome = call(main, f"{folder} --family {family} --tokenizer gpt2-demo {LIFE} {places}")
    assert outcome.status == 0, outcome.err
    codec = TokenCodec.load(run_dir / "tokenizer")
    vocabulary = 785 if family == "gidd" else 784
    assert f"{run_dir}: {family}" in outcome.out and f"{vocabulary} ids" in outcome.out
    assert ("111 of its 896 rows stand for no token" in outcome.err) is (family == "gidd")
    assert (codec.vocab_size, codec.mask_id) == (vocabulary, vocabulary - 1)
    assert codec.pad_id == (783 if family == "gidd" else codec.eos_id)
    origin = json.loads((run_dir / "imported.json").read_text())
    content = (folder / "model.safetensors").read_bytes()
    assert origin == {
        "family": family, "file": "model.safetensors", "sha256": hashlib.sha256(content).hexdigest()
    }  # fmt: skip

    def done(entry, line: str) -> str:
        outcome = call(entry, f"--resume_dir {run_dir} {line}")
        assert outcome.status == 0, outcome.err
        return outcome.out

    assert "PPL" in done(train_main, "--eval") and "nats" in done(train_main, "--ppl_eval")
    samples = tmp_path / "samples.jsonl"
    done(sample.main, f'--num_samples 2 --prefix "The" --output_file {samples}')
    assert all(text.startswith("The") for text in read_texts(samples))
    assert done(sample.main, "--num_samples 1 --semi_ar_stride 4")
    if family == "gidd":
        corrected = tmp_path / "corrected.jsonl"
        done(self_correct.main, f"--samples {samples} --output_file {corrected} --max_correction_steps 2")
    done(train_main, "--resume_training")
    assert [row["step"] for row in rows_of(run_dir) if "loss" in row] == [1, 2]
    outcome = call(export_run.main, f"--run {run_dir} --output_dir {tmp_path / 'small'}")
    assert outcome.status == 0 and (tmp_path / "small" / "imported.json").is_file()


@pytest.mark.parametrize("method", ["mdlm", "sedd", "gidd", "d3pm"])
def test_the_published_trunk_trains_here_and_resumes_bit_for_bit(call, small_run, tmp_path, method):
    trunk = "--enc_dec_model bart-demo --trunk dit --tx_dim 32 --tx_depth 1 --dit_heads 2 --dit_cond_dim 8"
    run_dir = small_run(method, "", trunk)
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "step_00000004")
    assert call(train_main, f"--resume_training --resume_dir {copy}").status == 0
    for name in ("model", "ema"):
        (one,), _ = checkpoint.load(run_dir / "checkpoints" / "step_00000004", name)
        (other,), _ = checkpoint.load(copy / "checkpoints" / "step_00000004", name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert one["ema_model.output_layer.linear.weight"].any()


# What is read


def test_a_training_checkpoint_gives_its_weights_and_their_average(imported, tiny, tmp_path):
    state, average = tiny(8), tiny(8, seed=1)
    shadows = [value for name, value in average.items() if not name.startswith("rotary_emb.")]
    wrapped = {f"module._orig_mod.{name}": value for name, value in state.items()}
    ema = {"decay": 0.9999, "num_updates": 7, "shadow_params": shadows}
    torch.save({"model": wrapped, "ema": ema, "step": 7, "optimizer": {"state": {}}}, tmp_path / "checkpoint.pth")
    run_dir = imported(tmp_path / "checkpoint.pth", "--family mdlm --dataset_name five")
    (model, averaged), state_of = checkpoint.load(checkpoint.find_checkpoint(run_dir), "model", "ema")
    assert state_of["step"] == 0
    for name in model:
        assert torch.equal(model[name], state[name]) and torch.equal(averaged[f"ema_model.{name}"], average[name])
    assert averaged["initted"].all() and averaged["step"].item() == 101 + 7  # the average goes on, and is no copy


def test_a_bare_state_dict_in_half_precision_is_read(imported, tiny, tmp_path):
    state = {name: value.bfloat16() for name, value in tiny(8).items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    run_dir = imported(tmp_path, "--family mdlm --dataset_name five")
    (model, averaged), _ = checkpoint.load(checkpoint.find_checkpoint(run_dir), "model", "ema")
    assert all(torch.equal(model[name], state[name].float()) for name in model) and not averaged["initted"].any()
    assert torch.equal(averaged["ema_model.vocab_embed.embedding"], model["vocab_embed.embedding"])


def test_a_bias_of_all_logits_joins_that_of_the_output(tiny, tmp_path):
    state = tiny(8)
    save_file(state | {"logit_bias": torch.full((1, 1, 1), 2.5)}, tmp_path / "model.safetensors")
    bias = read_published(str(tmp_path)).weights["output_layer.linear.bias"]
    assert torch.equal(bias, state["output_layer.linear.bias"] + 2.5)


@pytest.mark.parametrize(
    ("family", "rows", "config", "options"),
    [
        ("mdlm", 8, {"hidden_dim": 32, "cond_dim": 16, "n_blocks": 2, "n_heads": 2, "vocab_size": 8}, {}),
        ("mdlm", 8, {"time_conditioning": True}, {"time_input": "layerwise"}),
        ("mdlm", 8, {"model_length": 7}, {}),  # what is given goes before
        ("sedd", 8, {"tokens": 7, "graph": {"type": "absorb"}, "noise": {"type": "loglinear", "sigma_min": 1e-4},
                     "model": {"hidden_size": 32, "n_heads": 2, "scale_by_sigma": True}},
         {"graph": "absorb", "noise_schedule": "loglinear", "sigma_min": None}),
        ("sedd", 7, {"graph": {"type": "uniform"}, "noise": {"type": "geometric", "sigma_min": 1e-3, "sigma_max": 9}},
         {"graph": "uniform", "noise_schedule": "geometric", "sigma_min": 1e-3, "sigma_max": 9}),
        ("gidd", 128, {"num_attention_heads": 2, "timestep_cond_dim": 16, "p_uniform": 0.2, "vocab_size": 8},
         {"p_uniform": 0.2, "disable_dropout": True}),
    ],
)  # fmt: skip
def test_settings_are_those_of_the_config_beside(imported, tiny, tmp_path, family, rows, config, options):
    save_file(tiny(rows), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "code.Model"}}))
    run_dir = imported(tmp_path, f"--family {family} --dataset_name five")
    saved = json.loads((run_dir / "args.json").read_text())
    sizes = {"method": family, "trunk": "dit", "tx_dim": 32, "tx_depth": 2, "dit_heads": 2, "dit_cond_dim": 16}
    assert saved.items() >= (sizes | options | {"max_length": 6}).items()


@pytest.mark.parametrize("source", ["config", "flag"])
def test_heads_come_from_elsewhere_where_there_are_no_rotary_tables(imported, tiny, tmp_path, source):
    save_file({k: v for k, v in tiny(8).items() if "rotary" not in k}, tmp_path / "model.safetensors")
    if source == "config":
        (tmp_path / "config.json").write_text('{"model": {"n_heads": 4}}')
    flag = "--heads 4" if source == "flag" else ""
    run_dir = imported(tmp_path, f"--family mdlm --dataset_name five {flag}")
    assert json.loads((run_dir / "args.json").read_text())["dit_heads"] == 4


# Refusals


@pytest.fixture
def refused(complaint, letters, tmp_path) -> Callable[..., str]:
    """refused(place, flags) is the one line in which the command refused, having left nothing behind."""

    def refusal(place: Path | str = "", line: str = "--family mdlm --dataset_name five --tokenizer char") -> str:
        before = sorted(tmp_path.rglob("*"))
        said = complaint(main, f"{place} --data_dir {letters} --save_dir {tmp_path} --output_dir {tmp_path}/run {line}")
        assert sorted(tmp_path.rglob("*")) == before
        return said

    return refusal


def without(name: str) -> Callable[[dict], object]:
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("blocks.1.norm1.weight"), "1 missing (blocks.1.norm1.weight)"),
        (lambda s: s.update(extra=torch.ones(1)), "1 unexpected (extra)"),
        (lambda s: s.update({"blocks.7.norm1.weight": torch.ones(32)}), "10 missing (blocks.2.norm1.weight, "),
        (lambda s: s.update({"blocks.0.mlp.0.bias": torch.ones(9)}), "1 of another shape (blocks.0.mlp.0.bias [9] for"),
        (lambda s: (s.pop("blocks.0.norm1.weight"), s.update(a=torch.ones(1), b=torch.ones(1))),
         "1 missing (blocks.0.norm1.weight), 2 unexpected (a, b)"),
        (without("vocab_embed.embedding"), "0 of its 30 entries are called vocab_embed.embedding"),
        (without("sigma_map.mlp.0.weight"), "1 missing (sigma_map.mlp.0.weight)"),
        (lambda s: s.update({"ema.vocab_embed.embedding": torch.ones(8, 32)}), "2 of its 32 entries"),
        (lambda s: s.update({"vocab_embed.embedding": torch.ones(8)}), "vocab_embed.embedding is [8]"),
        (lambda s: s.update({"vocab_embed.embedding": torch.ones(8, 33)}), "its width is 33"),
        (lambda s: s.update({"vocab_embed.embedding": torch.ones(8, 32).long()}), "no numbers (vocab_embed.embedding)"),
        (lambda s: s["blocks.1.attn_out.weight"].fill_(torch.nan), "1 not finite (blocks.1.attn_out.weight)"),
        (lambda s: s.update({"rotary_emb.inv_freq": 500_000.0 ** -(torch.arange(8) / 8)}), "base 10,000"),
        (lambda s: s.update({"rotary_emb.inv_freq": torch.ones(5)}), "rotary_emb.inv_freq is [5], which fits no heads"),
        (lambda s: s.update({"rotary_emb.cos_cached": torch.ones(4)}), "rotary_emb.cos_cached is not the rotary table"),
        (lambda s: s.update(logit_bias=torch.ones(3)), "logit_bias is [3]"),
    ],
)  # fmt: skip
def test_weights_of_another_network_are_refused(refused, tiny, tmp_path, change, said):
    change(state := tiny(8))
    save_file(state, tmp_path / "model.safetensors")
    told = refused(tmp_path)
    assert said in told and str(tmp_path) in told


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[: len(content) // 2], "cannot be read as bare tensors"),
        (lambda content: content[:20] + bytes([content[20] ^ 0x80]) + content[21:], "cannot be read as bare tensors"),
        (lambda content: bytes([content[0] ^ 0x40]) + content[1:], "cannot be read as bare tensors"),
        (lambda content: b"", "cannot be read as bare tensors"),
        (lambda content: b"not a checkpoint at all", "cannot be read as bare tensors"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])
def test_damaged_files_are_refused(refused, tiny, tmp_path, damage, said, name):
    save_file(tiny(8), tmp_path / "whole")
    path = tmp_path / name
    path.write_bytes(damage((tmp_path / "whole").read_bytes()))
    assert said in refused(path)


def test_a_pickle_that_runs_code_does_not(refused, tiny, tmp_path):
    marker = tmp_path / "ran"
    torch.save(tiny(8) | {"more": Hostile(marker)}, tmp_path / "model.pt")
    told = refused(tmp_path / "model.pt")
    assert "cannot be read as bare tensors" in told and "state_dict and ema alone" in told and not marker.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds no weights"),
        ({"step": 3}, "0 of its 1 entries"),
        ({"model": {"vocab_embed.embedding": 3}}, "1 no numbers"),
        ({"model": {}, "ema": 3}, "its `ema` is no average"),
        ({"model": {}, "ema": {"shadow_params": []}}, "0 of its 0 entries"),
    ],
)
def test_other_contents_are_refused(refused, tmp_path, content, said):
    torch.save(content, tmp_path / "model.pt")
    assert said in refused(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda shadows: shadows.pop(), "its average has 29 parts; expected 30"),
        (lambda shadows: shadows.reverse(), "of another shape (the average of vocab_embed.embedding [64] for [8, 32]"),
        (lambda shadows: shadows[3].fill_(torch.inf), "not finite (sigma_map.mlp.2.weight)"),
    ],
)
def test_averages_of_another_network_are_refused(refused, tiny, tmp_path, change, said):
    state = tiny(8)
    shadows = [value.clone() for name, value in state.items() if "rotary" not in name]
    change(shadows)
    torch.save({"state_dict": state, "ema": {"shadow_params": shadows, "num_updates": 1}}, tmp_path / "model.ckpt")
    assert said in refused(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"hidden_size": 64}', "hidden_size or hidden_dim is 64, the weights beside it have 32"),
        ('{"model": {"n_blocks": 3}}', "is 3, the weights beside it have 2"),
        ('{"n_heads": 4}', "is 4, the weights beside it have 2"),
        ('{"n_heads": "two"}', "n_heads is 'two'; expected a whole number"),
        ('{"vocab_size": 50258}', "vocab_size is 50,258, the weights beside it have 8 rows"),
        ('{"tokens": 50257}', "tokens is 50,257"),
        ("[1]", "not a JSON object"),
        ('{"n_heads": ', "cannot be read"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(refused, tiny, tmp_path, config, said):
    save_file(tiny(8), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    told = refused(tmp_path)
    assert said in told and "config.json" in told


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model": {"scale_by_sigma": False}}, "scale_by_sigma is False on graph absorb"),
        ({"graph": {"type": "roulette"}}, "roulette"),
    ],
)
def test_settings_of_sedd_that_are_not_ours_are_refused(refused, tiny, tmp_path, config, said):
    save_file(tiny(8), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert said in refused(tmp_path, "--family sedd --dataset_name five --tokenizer char")


def test_another_vocabulary_is_refused(refused, tiny, tmp_path):
    save_file(tiny(9), tmp_path / "model.safetensors")
    said = "--tokenizer char: has 8 ids, those of special tokens among them, and the checkpoint"
    assert said in refused(tmp_path)
    assert said in refused(tmp_path, "--family gidd --dataset_name five --tokenizer char")


def test_folders_without_one_file_of_weights_are_refused(refused, tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no weights" in refused(tmp_path / "empty")
    for name in ("one.safetensors", "two.safetensors"):
        save_file(tiny(8), tmp_path / name)
    assert "several files of weights (one.safetensors, two.safetensors)" in refused(tmp_path)
    assert "not on this machine: mdlm-owt" in refused("mdlm-owt")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--dataset_name five", "--family (not given): expected one of mdlm, sedd, gidd"),
        ("--family llada --dataset_name five", "--family llada"),
        ("--family mdlm --dataset_name five --heads 3", "--heads 3"),
        ("--family mdlm --dataset_name five --heads 0", "--heads 0"),
        ("--family mdlm --dataset_name five --tx_dim 64", "--tx_dim: follows from the checkpoint"),
        ("--family mdlm --dataset_name five --method sedd", "--method: follows from the checkpoint"),
        ("--family mdlm --dataset_name five --dry_run", "--dry_run: is for the run that this makes"),
        ("--family mdlm --dataset_name nowhere", "nowhere"),
        ("--family mdlm --dataset_name five --graph uniform", "--graph belongs to --method sedd"),
        ("--family mdlm --dataset_name five --tokenizer nowhere", "nowhere"),
        ("--family mdlm --dataset_name five --scale_shift", "--scale_shift: --trunk dit"),
    ],
)
def test_wrong_options_are_refused(refused, tiny, tmp_path, line, said):
    save_file(tiny(8), tmp_path / "model.safetensors")
    assert said in refused(tmp_path, line)


def test_a_command_without_checkpoint_or_with_a_folder_that_is_there_is_refused(refused, tiny, tmp_path):
    assert "expected the folder or file of a checkpoint" in refused()
    save_file(tiny(8), tmp_path / "model.safetensors")
    (tmp_path / "run").mkdir()
    assert "run: is there already; expected a new folder" in refused(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--trunk dit", "--trunk dit: does not serve --method latent"),
        ("--trunk dit --method ar", "--trunk dit: does not serve --method ar"),
        ("--trunk dit --method diffusion_bert --bert_model bart-demo", "are two networks"),
        ("--method mdlm --dit_cond_dim 64", "--dit_cond_dim belongs to --trunk dit"),
        ("--method mdlm --dit_heads 8", "--dit_heads 8: is of --trunk dit"),
        ("--trunk dit --method sedd --time_input none", "--time_input none"),
    ],
)
def test_the_published_trunk_is_refused_where_it_does_not_serve(complaint, data_dir, tmp_path, line, said):
    places = f"--dataset_name plain --data_dir {data_dir} --save_dir {tmp_path} --enc_dec_model bart-demo"
    assert said in complaint(train_main, f"{places} {line}")
