"""What the tests of the composition share: calling a script's `main` as the shell does, small corpora, reading runs."""

import contextlib
import io
import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from huggingface_hub import close_session, constants, file_download
from safetensors.torch import load_file, save_file
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from diffusion.training import checkpoint
from latent_models.corpora import DataOptions, load_corpus
from scripts import train_decoder
from scripts.composition.build import System, load_system
from scripts.composition.demo_grammar import parse
from scripts.composition.flag_checks import VOID
from scripts.composition.options import GROUPS, Options
from scripts.job.command_line import parse as parse_options
from scripts.job.errors import run
from tests.scripts.hub import Hub
from tests.scripts.warm import Warm
from train_text_diffusion import main

SIZES = {"train": 120, "valid": 24, "test": 30}
SMALL_RECIPE = (
    "--dataset_name plain --perplexity_model gpt2-demo --mauve_model gpt2-demo --max_length 24 --timesteps 20 "
    "--sampling_timesteps 3 --num_train_steps 4 --train_batch_size 16 --learning_rate 1e-2 --lr_warmup_steps 1 "
    "--save_and_sample_every 2 --log_every 1 --keep_checkpoints 0 --num_samples 4 --likelihood_draws 2"
)
SWEEP_HEAD = """
output_dir = "{out}"
[options]
dataset_name = "plain"
data_dir = "{data}"
enc_dec_model = "bart-demo"
perplexity_model = "gpt2-demo"
mauve_model = "gpt2-demo"
tx_dim = 64
tx_depth = 1
max_length = 24
sampling_timesteps = 3
num_samples = 4
"""
SMALL_DECODER = (
    "--dataset_name plain --enc_dec_model bart-demo --max_length 24 --steps 25 --batch_size 16 --noise_ratio 4"
)
TRUNK = "--enc_dec_model bart-demo --tx_dim 64 --tx_depth 1"


def places(data_dir: Path, place: Path) -> str:
    """Flags that make scripts.train_decoder read there and write here."""
    return f"--data_dir {data_dir} --save_dir {place} --output_dir {place}"


class Outcome(NamedTuple):
    """What a command left: exit status and both streams."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines in which the command complained."""
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="session")
def call() -> Callable[..., Outcome]:
    """call(main, "--flag value ...") runs `main` with this command line in this process."""

    def call_main(main: Callable[[], None], line: str = "") -> Outcome:
        out, err, status = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.setattr("sys.argv", ["script.py", *shlex.split(line)])
            try:
                run(main)
            except SystemExit as leaving:
                status = leaving.code
        return Outcome(status, out.getvalue(), err.getvalue())

    return call_main


@pytest.fixture(scope="session")
def complaint(call) -> Callable[..., str]:
    """complaint(main, "--flag value ...") is the one line in which the command refused to work."""

    def refusal(main: Callable[[], None], line: str = "") -> str:
        outcome = call(main, line)
        assert (outcome.status, outcome.out, len(outcome.errors)) == (2, "", 1), outcome
        return outcome.errors[0]

    return refusal


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Starts the entry script in processes of their own, at once."""
    warm = Warm()
    yield warm
    warm.close()


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    """An empty hub on loopback that the client of this process asks, a client that does not rest between its tries."""
    hub = Hub()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what arrives in one piece, else 10 MB
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    close_session()  # which remembers proxies
    yield hub
    close_session()
    hub.close()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A folder with the corpora `demo` (its first texts, labelled by type) and `plain` (the same without labels)."""
    place, corpus = tmp_path_factory.mktemp("data"), load_corpus(DataOptions("demo"))
    for name in ("demo", "plain"):
        (place / name).mkdir()
        for split, size in SIZES.items():
            with (place / name / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                for text in getattr(corpus, split).texts[:size]:
                    label = {"label": parse(text)["type"]} if name == "demo" else {}
                    file.write(json.dumps({"text": text, **label}, ensure_ascii=False) + "\n")
    return place


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """A folder with the corpus `pairs`: meanings and what they say."""
    place, corpus = tmp_path_factory.mktemp("paired"), load_corpus(DataOptions("demo"))
    (place / "pairs").mkdir()
    for split, count in (("train", 60), ("valid", 12), ("test", 12)):
        part = getattr(corpus, split)
        lines = [json.dumps({"src": s, "trg": t}) for s, t in zip(part.sources[:count], part.texts, strict=False)]
        (place / "pairs" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return place


@pytest.fixture(scope="session")
def loaded() -> Callable[..., System]:
    """loaded(run_dir, "--flag", "value", ...) is the system of a run, made anew."""

    def load(run_dir: Path, *more: str) -> System:
        argv = ["--gen_data", "--resume_dir", str(run_dir), *more]
        return load_system(Options.from_groups(parse_options(GROUPS, argv), argv, VOID))[0]  # which reads any flag

    return load


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path], list[dict]]:
    """rows_of(run_dir) are its metrics."""
    return lambda run_dir: [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def small_run(call, data_dir, tmp_path_factory) -> Callable[..., Path]:
    """small_run(method, more flags) is the folder of a run of 4 steps, trained once: no test may change it."""
    place = tmp_path_factory.mktemp("small_runs")

    @cache
    def trained(method: str, more: str = "", trunk: str = TRUNK) -> Path:
        folder = place / f"{len(list(place.iterdir()))}-{method}"
        places = f"--data_dir {data_dir} --save_dir {place} --output_dir {folder}"
        outcome = call(main, f"--method {method} {SMALL_RECIPE} {places} {trunk} {more}")
        assert outcome.status == 0, outcome.err
        return folder

    return trained


@pytest.fixture(scope="session")
def small_decoder(call, data_dir, tmp_path_factory) -> Path:
    """The folder of a decoder of bart-demo, trained on noised latents for a few steps: no test may change it."""
    place = tmp_path_factory.mktemp("small_decoder")
    assert (outcome := call(train_decoder.main, f"{SMALL_DECODER} {places(data_dir, place)}")).status == 0, outcome.err
    return place / "bart-demo-noised"


@pytest.fixture(scope="session")
def altered(tmp_path_factory) -> Callable[[Path, Callable[[Tensor, Tensor], object]], Path]:
    """altered(run_dir, change) is a copy of a run, after change(weight, bias) of the averaged network's last layer."""

    def alter(run_dir: Path, change: Callable[[Tensor, Tensor], object]) -> Path:
        copy = Path(shutil.copytree(run_dir, tmp_path_factory.mktemp("altered") / run_dir.name))
        path = checkpoint.find_checkpoint(copy) / "ema.safetensors"
        averaged = load_file(path)
        change(averaged["ema_model.write.weight"], averaged["ema_model.write.bias"])
        save_file(averaged, path)
        checkpoint.seal(path.parent)
        return copy

    return alter


@pytest.fixture(scope="session")
def bert_dir(data_dir, random_model) -> Path:
    """The folder of a random BERT of 2 layers and its WordPiece tokenizer."""
    wordpiece = BertWordPieceTokenizer(lowercase=False)
    texts = load_corpus(DataOptions("plain", str(data_dir))).train.texts
    wordpiece.train_from_iterator(texts, vocab_size=300, show_progress=False)
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=wordpiece._tokenizer, **{f"{key}_token": name for key, name in names.items()}
    )
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=28, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return random_model(BertForMaskedLM, config, tokenizer)


@pytest.fixture(scope="session")
def sentence_folder(bert_dir, tmp_path_factory) -> Path:
    """A sentence model: the tiny BERT and a pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    folder = tmp_path_factory.mktemp("sentence") / "sentence"
    transformer = modules.Transformer(str(bert_dir))
    pooling = modules.Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder))
    return folder
