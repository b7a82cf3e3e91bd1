"""The benchmarks: each part runs, its figures agree with each other, and FLOPs are those that PyTorch counts."""

import json
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils.flop_counter import FlopCounterMode
from x_transformers.attend import Attend

from diffusion.denoiser import DenoiserOptions, LatentDenoiser
from diffusion.gaussian import GaussianOptions, GaussianProcess
from diffusion.training.objective import Batch, Objective
from scripts.bench import __main__ as every_part
from scripts.bench import corpus, measure, sampling, scaling, scoring, training, trunks
from scripts.bench.arms import Setting, Texts, plain
from scripts.bench.trained import STAGES, forward_flops, useful_flops

MACHINE = {"processor", "cores", "threads", "gpu", "float32_matmul_peak", "torch", "python"}
TINY = "--tx_dim 64 --tx_depth 1"


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch):
    """Looks at the matmul peak that take no time; accelerate forgets the precision of a benchmark."""
    monkeypatch.setattr(measure, "MATMUL_SIZE", {"cpu": 128})
    monkeypatch.setattr(measure, "PROBE_SECONDS", 0.001)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def bench(call, tmp_path):
    """bench(part, "--flag value ...") are the rows that it wrote, once its other fields are as they should be."""

    def rows_of(part, line: str) -> list[dict]:
        outcome = call(part.main, f"{line} --output_dir {tmp_path}")
        assert outcome.status == 0, outcome.err
        name = part.__name__.rpartition(".")[2]
        assert outcome.out.startswith(f"## {name}: ") and "\n\n| " in outcome.out
        written = json.loads((tmp_path / f"{name}.json").read_text())
        assert written.keys() == {"part", "machine", "settings", "rows"} and written["part"] == name
        assert written["machine"].keys() == MACHINE and written["machine"]["float32_matmul_peak"] > 0
        assert written["settings"].keys() >= {"repetitions"}
        return written["rows"]

    return rows_of


def check_figures(row: dict) -> None:
    for key in ("seconds_per_step", "tokens_per_second", "share_of_peak", "matmul_peak"):
        assert 0 < row[key + "_low"] <= row[key] <= row[key + "_high"]
    assert row["peak_memory"] > 0
    assert row["share_of_peak"] < 1.2


# FLOPs


def unfused(denoiser: LatentDenoiser) -> LatentDenoiser:
    """Attends by single products: PyTorch does not count those of its fused attention on a CPU."""
    for module in denoiser.modules():
        if isinstance(module, Attend):
            module.flash = False
    return denoiser


@pytest.mark.parametrize("self_condition, scale_shift", [(True, True), (False, False)])
def test_a_forward_pass_has_the_counted_flops(self_condition, scale_shift):
    options = DenoiserOptions(128, 2, scale_shift, disable_dropout=True, self_condition=self_condition)
    denoiser, lengths = unfused(LatentDenoiser(48, options)), np.array([21, 21, 21])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        denoiser(torch.randn(3, 21, 48), torch.rand(3, dtype=torch.float64), torch.ones(3, 21, dtype=torch.bool))
    assert forward_flops(options, 48, lengths) == counter.get_total_flops()


def test_the_flops_of_texts_add_up():
    options, lengths = DenoiserOptions(128, 2, True, self_condition=True), np.array([12, 30, 47])
    each = [forward_flops(options, 48, lengths[i : i + 1]) for i in range(3)]
    assert forward_flops(options, 48, lengths) == pytest.approx(sum(each), rel=1e-12)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_a_training_step_has_the_counted_flops_but_for_the_gradient_of_its_input(p):
    options, lengths = DenoiserOptions(128, 6, True, disable_dropout=True, self_condition=True), np.full(4, 21)
    denoiser = unfused(LatentDenoiser(128, options))
    torch.nn.init.normal_(denoiser.write.weight)
    objective = Objective(GaussianProcess.from_options(GaussianOptions()), p)
    batch = Batch(torch.randn(4, 21, 128), torch.ones(4, 21, dtype=torch.bool))
    with FlopCounterMode(display=False) as counter:
        objective(denoiser, batch, range(1000), torch.Generator().manual_seed(0)).mean().backward()
    counted, useful = counter.get_total_flops(), useful_flops(options, 128, lengths, p)
    assert counted < useful < 1.01 * counted


# Measuring


def test_a_stage_within_another_is_counted_by_itself(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 7.0, 10.0, 11.0])
    monkeypatch.setattr(measure, "perf_counter", lambda: next(clock))
    watch = measure.Stopwatch(torch.device("cpu"))
    with watch("outer"):
        with watch("inner"):
            pass
    with watch("outer"):
        pass
    assert watch.seconds == {"outer": 1 + 4 + 1, "inner": 2}


def test_memory_growth_is_that_of_the_block():
    with measure.MemoryGrowth(torch.device("cpu")) as growth:
        torch.ones(16 * 2**20)
    assert 60 * 2**20 <= growth.bytes < 80 * 2**20
    with measure.MemoryGrowth(torch.device("cpu")) as growth:
        torch.ones(2**20)
    assert 3 * 2**20 <= growth.bytes < 20 * 2**20


def test_the_stages_of_a_step_make_up_the_step():
    setting = Setting(tx_dim=64, tx_depth=1, encoder_layers=1)
    trained = plain(setting, Texts(setting, 4, 2, torch.device("cpu")), 4)
    trained.stages(1)
    started = perf_counter()
    stages = trained.stages(4)
    seconds = perf_counter() - started
    assert 0.7 * seconds < 4 * sum(stages.values()) < seconds


# Parts


def test_training(bench):
    rows = bench(training, f"{TINY} --batch_sizes 2 4 --steps 2 --repetitions 2 --encoder_layers 1")
    assert [(row["batch_size"], row["arm"]) for row in rows] == [(b, a) for b in (2, 4) for a in ("plain", "ours")]
    for row in rows:
        check_figures(row)
        assert row["matmul_dtype"] == "float32"
        assert (row["encode"] > 0) is (row["arm"] == "plain")
        assert all(row[stage] > 0 for stage in STAGES if stage != "encode")
    for padded, own in (rows[:2], rows[2:]):
        assert padded["times_plain"] == 1
        assert padded["useful_flops_per_step"] == own["useful_flops_per_step"]
        assert own["peak_memory"] < padded["peak_memory"]
    assert rows[2]["useful_flops_per_step"] == pytest.approx(2 * rows[0]["useful_flops_per_step"], rel=0.1)


def test_the_ratio_of_one_turn_is_the_quotient_of_the_rates_and_the_plain_way_stays_in_float32(bench):
    line = f"{TINY} --batch_sizes 2 --steps 1 --repetitions 1 --encoder_layers 1 --mixed_precision bf16"
    padded, own = bench(training, line)
    assert own["times_plain"] == pytest.approx(own["tokens_per_second"] / padded["tokens_per_second"])
    assert (padded["matmul_dtype"], own["matmul_dtype"]) == ("float32", "bfloat16")


def test_all_ways_of_training_see_the_same_latents_and_attend_alike(tmp_path):
    setting = Setting(tx_dim=64, tx_depth=1, encoder_layers=1)
    texts, rows = Texts(setting, 4, 2, torch.device("cpu")), np.arange(4)
    padded, trimmed = texts.batch(rows), texts.cached(tmp_path).batch(rows)
    states = texts.states(padded.x0, padded.valid)
    L, scale = trimmed.x0.shape[1], texts.cached(tmp_path).statistics
    assert states.shape == (4, 64, 64) and L == texts.lengths[:4].max() < 64
    torch.testing.assert_close(scale.normalise(states[:, :L]) * trimmed.valid[..., None], trimmed.x0, rtol=0, atol=1e-4)
    network = plain(setting, texts, 4).trainer.denoiser.eval()
    torch.nn.init.normal_(network.write.weight)
    t = torch.full((4,), 0.5, dtype=torch.float64)
    found = network(states, t, padded.valid)[:, :L][trimmed.valid]
    fused = LatentDenoiser(64, setting.denoiser).eval()
    fused.load_state_dict(network.state_dict())
    torch.testing.assert_close(found, fused(states[:, :L], t, trimmed.valid)[trimmed.valid], rtol=1e-4, atol=1e-4)


def test_batches_are_spread_over_the_lengths():
    lengths = Texts(Setting(tx_dim=64, encoder_layers=1), 16, 8, torch.device("cpu")).lengths.reshape(8, 16)
    assert 12 <= lengths.min() and lengths.max() <= 47 and lengths.mean() == 29.5
    assert (np.ptp(lengths, axis=1) <= 2).all()  # as narrow as those of a window of 32 batches


def test_scaling(bench):
    line = f"{TINY} --encoder_layers 1 --length 8 --batch_size 2 --steps 1 --repetitions 1"
    rows = bench(scaling, f"{line} --lengths 8 16 --batch_sizes 2 4 --widths 64")
    assert [(r["varied"], r["value"]) for r in rows] == [
        ("length", 8), ("length", 16), ("batch", 2), ("batch", 4), ("width", 64)
    ]  # fmt: skip
    for row in rows:
        check_figures(row)
    short, long = rows[:2]
    assert long["times_first_cost"] == pytest.approx(short["tokens_per_second"] / long["tokens_per_second"])
    assert long["useful_flops_per_step"] > 1.9 * short["useful_flops_per_step"]
    assert rows[2]["useful_flops_per_step"] == short["useful_flops_per_step"]


def test_corpus(bench, data_dir):
    line = f"{TINY} --texts 8 --times 3 --batch_size 4 --steps 1 --repetitions 1 --dataset_name plain"
    small, large = bench(corpus, f"{line} --data_dir {data_dir}")
    assert (small["texts"], large["texts"]) == (8, 24)
    assert large["cache_bytes"] > 2 * small["cache_bytes"]
    for ratio, key in (("times_build", "build_seconds_per_text"), ("times_step", "seconds_per_token")):
        assert small[ratio] == 1
        assert large[ratio] == pytest.approx(large[key] / small[key])
    assert 0.5 < large["times_memory"] < 1.5


def test_sampling(bench, small_run):
    line = f"--resume_dir {small_run('latent')} --samples 3 --baseline_samples 2 --baseline ddim:4 --cells ddim:2"
    baseline, cell = bench(sampling, line)
    assert (baseline["cell"], cell["cell"]) == ("ddim:4, full length", "ddim:2")
    for row in (baseline, cell):
        assert row["network_seconds"] > 0 and row["decoding_seconds"] > 0
        assert row["network_seconds"] + row["decoding_seconds"] == pytest.approx(row["seconds"])
        assert row["samples_per_second"] == pytest.approx(1000 / row["seconds"])
        assert row["times_baseline"] == pytest.approx(baseline["seconds"] / row["seconds"])


def test_scoring(bench, data_dir):
    rows = bench(scoring, f"--dataset_name plain --data_dir {data_dir} --texts 20 --repetitions 1")
    stages = [row["stage"] for row in rows]
    assert {"perplexity", "MAUVE features", "MAUVE", "diversity", "memorization", "self-BLEU"} < set(stages)
    assert stages[-1] == "all"
    for time in ("first_seconds", "second_seconds"):
        assert sum(row[time] for row in rows[:-1]) == pytest.approx(rows[-1][time])
    for row in rows:
        assert row["times_first"] == pytest.approx(row["first_seconds"] / row["second_seconds"])


def test_trunks(bench):
    rows = bench(trunks, f"{TINY} --vocab_size 11 --length 8 --steps 2 --of_steps 4 --repetitions 1")
    ours, published = rows
    assert (ours["trunk"], published["trunk"]) == ("x_transformers", "dit")
    for work in trunks.WORK:
        assert ours[f"times_{work}"] == 1
        ratio = published[f"{work}_seconds"] / ours[f"{work}_seconds"]
        assert published[f"times_{work}"] == pytest.approx(ratio) and ratio > 0
    heads = 11 * 64 + 11  # the head of either, beside its embedding of as many rows
    assert all(row["parameters"] > heads + 11 * 64 for row in rows)


def test_every_part_is_run_in_a_process_of_its_own_until_one_fails(call, monkeypatch, tmp_path):
    commands = []

    def run(command):
        commands.append(command[1:])
        return type("Done", (), {"returncode": 2 if "scripts.bench.corpus" in command else 0})

    monkeypatch.setattr(every_part.subprocess, "run", run)
    assert call(every_part.main, f"--output_dir {tmp_path / 'new'}").status == 2
    place = ["--output_dir", str(tmp_path / "new")]
    assert commands == [["-m", f"scripts.bench.{part}", *place] for part in ("training", "scaling", "corpus")]
    assert (tmp_path / "new").is_dir()
    parts = {path.stem for path in Path(every_part.__file__).parent.glob("*.py") if "def main" in path.read_text()}
    assert parts == {*every_part.PARTS, "__main__"}


@pytest.mark.parametrize(
    "part, line, said",
    [
        (training, "--tx_dim 100", "--tx_dim 100"),
        (training, "--repetitions 0", "--repetitions 0"),
        (training, "--paper --tx_dim 64", "--paper sets --tx_dim"),
        (training, "--shortest 50", "--shortest 50"),
        (scaling, "--lengths 0", "--lengths"),
        (scaling, "--widths 100", "--tx_dim 100"),
        (corpus, "--times 1", "--times 1"),
        (corpus, "--enc_dec_model nowhere", "nowhere"),
        (sampling, "--cells ddim", "--cells 'ddim'"),
        (sampling, "--random_seed -1", "--random_seed -1: expected 0 to 4294967295"),
        (sampling, "--resume_dir nowhere", "nowhere"),
        (scoring, "--mauve_model nowhere", "nowhere"),
        (trunks, "--tx_dim 100", "--tx_dim 100"),
        (trunks, "--steps 9 --of_steps 8", "--steps 9"),
        (trunks, "--vocab_size 1", "--vocab_size 1"),
        (every_part, "--steps 3", "unknown argument '--steps'"),
    ],
)
def test_wrong_options_end_in_one_line(complaint, part, line, said):
    assert said in complaint(part.main, line)
