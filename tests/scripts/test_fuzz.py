"""Every reader of the project against damage: what it takes it takes exactly, anything else is one line of a user.

A few inputs for each reader here, always the same ones; `make test-slow` tries more than ten thousand, other ones each
time, and prints how many each reader met.
"""

import csv
import io
import json
import math
import os
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers.utils import logging

from diffusion.window import Levels
from latent_models.corpora import DataOptions, load_corpus
from latent_models.latent_cache import cache_folder, encoded
from latent_models.lengths import LengthModel
from latent_models.readers import detokenise
from latent_models.seq2seq_codec import CodecOptions, Seq2SeqCodec
from latent_models.statistics import LatentStatistics
from latent_models.token_codec import TokenCodec
from offline_metrics.language_model import LanguageModel, load_feature_model
from scripts.composition.bert import load_bert
from scripts.composition.latent_space import STATISTICS
from scripts.composition.method_options import TokenOptions
from scripts.composition.options import Options, read_args
from scripts.composition.spaces import RECORD, check_files, save_space
from scripts.composition.token_space import LENGTHS, TOKEN_COUNTS, TOKENIZER, TokenSpace
from scripts.composition.window_file import read_levels
from scripts.evaluation.run_folder import parameters, scores, seconds_per_sample
from scripts.fetching.checksums import read_record
from scripts.job.errors import USER_ERRORS
from scripts.report.runs import read_run
from scripts.sampling.samples_file import read_samples, read_texts
from scripts.sweep.file import read_sweep
from tests.scripts.hostile import copied, damage, damaged, in_time, inflict

LENGTH = 10_000_000  # bytes in one line
FAST, PROOF = 1, 20  # how many times the inputs of a reader
effort = pytest.mark.parametrize("effort", [FAST, pytest.param(PROOF, marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def tried(request):
    """How many inputs each reader met, told in the end."""
    counts = Counter()
    yield counts
    lines = [f"{name:<28}{count:>8,} inputs" for name, count in [*counts.items(), ("in all", counts.total())]]
    plugin = request.config.pluginmanager.get_plugin
    with plugin("capturemanager").global_and_fixture_disabled():
        plugin("terminalreporter").write_line("\n" + "\n".join(lines))


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """transformers warns of much that is refused right after."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(before)
    logging.enable_progress_bar()


def examine(inputs: st.SearchStrategy, check: Callable[[Any], None], count: int, effort: int) -> None:
    """Calls check(input) with that many inputs for each unit of effort."""
    chosen = settings(
        max_examples=count * effort, deadline=None, derandomize=effort == FAST, database=None, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    chosen(given(inputs)(check))()


def refusal(read: Callable[[], Any], place: Path) -> tuple[Any, str | None]:
    """What was read and None, or None and the line in which it was refused, which names what lies at `place`."""
    with in_time():
        try:
            return read(), None
        except USER_ERRORS as error:
            message = str(error)
            assert len(message.splitlines()) == 1 and str(place) in message, message
            assert "expected" in message or ";" in message, message  # and says what to do
            return None, message


# --- files of text ----------------------------------------------------------------------------------------------------

texts = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\0\n\r")
    | st.sampled_from("\u2028\u2029\x85\x1c\x0b\x0c\ufeff|:\"',[]{}\\ \t"),
    min_size=1, max_size=30,
).filter(str.strip)  # fmt: skip
any_text = st.text(st.characters(exclude_categories=("Cs",)))
with_line_ends = any_text.filter(lambda text: text.strip() and "\0" not in text)
words = st.text(st.characters(categories=("L", "N", "S"), exclude_characters="|"), min_size=1, max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1)


class Form(NamedTuple):
    """A kind of file: where it lies, valid contents with what they say, how it is read, what any content would say."""

    file: str
    valid: st.SearchStrategy[tuple[bytes, Any]]
    read: Callable[[Path], Any]
    says: Callable[[str], Any]  # of the decoded content, by other means
    count: int = 25


def corpus(name: str, *others: tuple[str, str], **options) -> Callable[[Path], Any]:
    """Reads the training split of a corpus in the folder: (text, label, source) of each example."""

    def read(folder: Path) -> list[tuple]:
        for file, content in others:
            (folder / file).write_text(content, encoding="utf-8")
        train = load_corpus(DataOptions(dataset_name=name, data_dir=str(folder.parent), **options)).train
        return list(zip(train.texts, train.labels, train.sources, strict=True))

    return read


def lines_of(text: str) -> list[str]:
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines]


def read_running(folder: Path) -> str:
    return "".join(text for text, *_ in corpus("own", *own_others("txt", "A\n"), running_text=100)(folder))


def table(rows: list[list[str]]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file).writerows(rows)
    return file.getvalue().encode("utf-8")


def table_says(text: str, *columns: str | None) -> list[tuple]:
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in header]
    return [tuple(row[header.index(name)] if name in header else None for name in columns) for row in rows if row]


def json_lines(rows: list[Any], ascii_only: bool = True) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows).encode("utf-8")


def json_says(text: str) -> list[tuple]:
    rows = map(json.loads, lines_of(text))
    return [
        (row.get("text") or row.get("trg"), None if (label := row.get("label")) is None else str(label),
         row.get("source") or row.get("src"))
        for row in rows
    ]  # fmt: skip


def meaning_says(text: str) -> list[tuple]:
    rows = (line.partition("||") for line in lines_of(text))
    return [(detokenise(sentence.strip()), None, meaning.strip()) for meaning, _, sentence in rows]


def mr_says(text: str) -> list[tuple]:
    rows = table_says(text, "ref", "mr")
    pairs = [[part.split("[") for part in mr.strip().rstrip(",").removesuffix("]").split("],")] for _, mr in rows]
    return [
        (ref.strip(), None, " | ".join(f"{name.strip()} : {value.strip()}" for name, value in found))
        for (ref, _), found in zip(rows, pairs, strict=True)
    ]


some = {"min_size": 1, "max_size": 5}
pairs = st.lists(st.tuples(words, words), min_size=1, max_size=3)
split = ("train", "valid", "test")
E2E_OTHERS = [(f"src1_{name}.txt", "name : A||A\n") for name in split[1:]]
CSV_OTHERS = [(name, "mr,ref\nname[A],A\n") for name in ("devset.csv", "testset_w_refs.csv")]
ROC_OTHERS = [(f"roc_{name}.json", '["A"]\n') for name in split[1:]]


def own_others(extension: str, content: str) -> list[tuple[str, str]]:
    return [(f"{name}.{extension}", content) for name in split[1:]]


def finite(value: Any) -> Any:
    """NaN, equal to nothing, as a word."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def read_scores(folder: Path) -> Any:
    return finite({name: {**row, "notes": row.notes} for name, row in scores(folder / "scores.json").items()})


def scores_say(text: str) -> Any:
    rows = {
        name: {key: math.nan if value is None else value for key, value in row.items() if key != "notes"}
        | {"notes": row.get("notes") or {}}
        for name, row in json.loads(text).items()
    }
    return finite(rows)


def read_metrics(folder: Path) -> Any:
    run = read_run(folder, "run")
    assert all(len(problem.splitlines()) == 1 for problem in run.problems)
    told = [problem for problem in run.problems if problem.startswith("metrics.jsonl") and "left out" in problem]
    lost = int(told[0].split()[1].replace(",", "")) if told else 0
    return [len(run.training) + len(run.scored) + lost, run.training, run.scored]


def rows_say(text: str) -> Any:
    """As many rows as lines; what they hold is only known of a file that is whole."""
    return len(text.removesuffix("\n").split("\n"))


def read_runs(folder: Path) -> Any:
    """The options of each run, whose folders lie side by side in the folder of all."""
    sweep = read_sweep(folder / "sweep.toml")
    inside = {Path(os.path.normpath(run.folder)).parent for run in sweep.runs}
    assert inside == {Path(os.path.normpath(sweep.output_dir))}
    assert len({run.folder for run in sweep.runs}) == len(sweep.runs)
    return sorted(json.dumps(run.values, sort_keys=True) for run in sweep.runs)


def sweep_says(text: str) -> Any:
    """For files that have no more than options and one axis of values and one of groups."""
    content = tomllib.loads(text)
    runs = [{"save_dir": content["output_dir"]} | content.get("options", {})]
    for key, values in content.get("grid", {}).items():
        runs = [run | {key: value} for run in runs for value in values]
    for groups in content.get("groups", {}).values():
        runs = [run | group for run in runs for group in groups.values()]
    return sorted(json.dumps(run, sort_keys=True) for run in runs)


SWEEP = '''output_dir = "runs"
[options]
dataset_name = "demo"
learning_rate = {rate}
[grid]
random_seed = {seeds}
[groups.method.one]
method = "latent"
[groups.method."{name}"]
method = "mdlm"
num_train_steps = 10
'''


def sweep_of(rate: float, seeds: list[int], name: str) -> tuple[bytes, Any]:
    text = SWEEP.format(rate=rate, seeds=seeds, name=name)
    return text.encode("utf-8"), sweep_says(text)


DEFAULTS = Options.from_argv(["--dataset_name", "demo"]).flat()
changes = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": st.floats(1e-9, 1), "dataset_name": words, "random_seed": st.integers(0, 2**32 - 1),
        "save_dir": texts, "wandb_name": st.none() | texts, "num_samples": st.integers(1, 2**40),
        "method": st.sampled_from(["latent", "ar", "mdlm"]), "scale_shift": st.booleans(),
    },
)  # fmt: skip
rows_of_scores = st.dictionaries(
    words, st.dictionaries(words, st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=3), max_size=3
)


def window_of(levels: Levels) -> Any:
    return [levels.start, levels.gamma.tolist(), levels.squared_error.tolist()]


def window_says(text: str) -> Any:
    found = json.loads(text)
    return [found["window"]["start"], *([each[key] for each in found["levels"]] for key in ("gamma", "squared_error"))]


def said(value: Any, **how) -> bytes:
    return json.dumps(value, **how).encode("utf-8")


FORMS = {
    "text": Form(
        "train.txt",
        st.lists(texts, **some).map(lambda t: ("".join(f"{x}\n" for x in t).encode(), [(x, None, None) for x in t])),
        corpus("own", *own_others("txt", "A\n")),
        lambda text: [(line, None, None) for line in lines_of(text)],
    ),
    "running text": Form(
        "train.txt",
        with_line_ends.filter(lambda text: text[0] != "\ufeff").map(lambda text: (30 * text.encode(), 30 * text)),
        read_running,
        lambda text: text,
    ),
    "jsonl": Form(
        "train.jsonl",
        st.tuples(st.lists(st.tuples(*[with_line_ends] * 3), **some), st.booleans()).map(
            lambda it: (json_lines([dict(zip(("text", "label", "src"), r, strict=True)) for r in it[0]], it[1]), it[0])
        ),
        corpus("own", *own_others("jsonl", '{"text": "A"}\n')),
        json_says,
    ),
    "csv": Form(
        "train.csv",
        st.lists(st.tuples(*[with_line_ends] * 3), **some).map(lambda r: (table([["text", "label", "source"], *r]), r)),
        corpus("own", *own_others("csv", "text\nA\n")),
        lambda text: table_says(text, "text", "label", "source"),
    ),
    "E2E lines": Form(
        "src1_train.txt",
        st.lists(st.tuples(pairs, texts), **some).map(
            lambda rows: (
                "".join(" | ".join(f"{n} : {v}" for n, v in found) + f"||{text}\n" for found, text in rows).encode(),
                [(detokenise(t.strip()), None, " | ".join(f"{n} : {v}" for n, v in found)) for found, t in rows],
            )
        ),
        corpus("own", *E2E_OTHERS),
        meaning_says,
    ),
    "E2E csv": Form(
        "trainset.csv",
        st.lists(st.tuples(pairs, with_line_ends), **some).map(
            lambda rows: (
                table([["mr", "ref"], *([", ".join(f"{n}[{v}]" for n, v in found), text] for found, text in rows)]),
                [(text.strip(), None, " | ".join(f"{n} : {v}" for n, v in found)) for found, text in rows],
            )
        ),
        corpus("e2e", *CSV_OTHERS),
        mr_says,
    ),
    "ROC json": Form(
        "roc_train.json",
        st.lists(with_line_ends, **some).map(lambda t: (json_lines([[x] for x in t]), [(x, None, None) for x in t])),
        corpus("own", *ROC_OTHERS),
        lambda text: [(json.loads(line)[0], None, None) for line in lines_of(text)],
    ),
    "args.json": Form(
        "args.json",
        changes.map(lambda own: (said(DEFAULTS | own), DEFAULTS | own)),
        read_args,
        json.loads,
    ),
    "metrics.jsonl": Form(
        "metrics.jsonl",
        st.lists(st.dictionaries(words, numbers, max_size=3), **some).map(
            lambda rows: [{**row, "step": i} for i, row in enumerate(rows)]
        ).map(lambda rows: (json_lines(rows), [len(rows), rows, []])),
        read_metrics,
        rows_say,
    ),
    "scores.json": Form(
        "scores.json",
        rows_of_scores.map(lambda rows: (said(rows), scores_say(json.dumps(rows)))),
        read_scores,
        scores_say,
    ),
    "timing.json": Form(
        "seed_42/timing.json",
        st.tuples(st.floats(0, 1e6), st.integers(1, 10**6)).map(
            lambda it: (said({"seconds": it[0], "samples": it[1]}), {"seconds_per_sample": it[0] / it[1]})
        ),
        lambda folder: seconds_per_sample(folder, "beam"),
        lambda text: {"seconds_per_sample": (found := json.loads(text))["seconds"] / found["samples"]},
    ),
    "sweep": Form(
        "sweep.toml",
        st.tuples(st.floats(1e-9, 1), st.lists(st.integers(0, 99), unique=True, min_size=1, max_size=2), words)
        .filter(lambda it: it[2] != "one")
        .map(lambda it: sweep_of(*it)),
        read_runs,
        sweep_says,
        8,
    ),
    "samples jsonl": Form(
        "s.jsonl",
        st.lists(st.tuples(any_text, st.integers(0, 2**64 - 1)), **some)
        .map(lambda rows: [{"text": text, "seed": seed} for text, seed in rows])
        .map(lambda rows: (json_lines(rows), rows)),
        lambda folder: read_samples(folder / "s.jsonl"),
        lambda text: [json.loads(line) for line in lines_of(text)],
    ),
    "samples txt": Form(
        "s.txt",
        st.lists(texts, **some).map(lambda t: ("".join(f"{x}\n" for x in t).encode(), t)),
        lambda folder: read_texts(folder / "s.txt"),
        lines_of,
    ),
    "window.json": Form(
        "window.json",
        st.lists(st.floats(-50, 50), unique=True, min_size=2, max_size=5).map(
            lambda gamma: {
                "window": {"start": min(gamma)},
                "levels": [{"gamma": g, "squared_error": i} for i, g in enumerate(sorted(gamma))],
            }
        ).map(lambda window: (said(window), window_says(json.dumps(window)))),
        lambda folder: window_of(read_levels(folder / "window.json")),
        window_says,
        8,
    ),
    "record of checksums": Form(
        "cached.json",
        st.dictionaries(words, st.tuples(st.integers(0, 2**40), words), max_size=3)
        .map(lambda files: {"files": {name: {"bytes": n, "sha256": sha} for name, (n, sha) in files.items()}})
        .map(lambda record: (said(record), record)),
        lambda folder: read_record(folder / "cached.json"),
        json.loads,
    ),
}  # fmt: skip
FOLDERS = {"E2E csv": "e2e_data"}  # else `own`


@effort
@pytest.mark.parametrize("name", FORMS)
def test_a_file_is_read_exactly_or_refused_in_one_line(name, effort, tried):
    """Whole: read as it was written. Damaged: read as other means read what is left, or refused."""
    form = FORMS[name]

    def check(given: tuple[bytes, Any, bytes]) -> None:
        whole, written, other = given
        for content in dict.fromkeys((whole, other)):
            tried[name] += 1
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / FOLDERS.get(name, "own")
                path = folder / form.file
                path.parent.mkdir(parents=True)
                path.write_bytes(content)
                found, refused = refusal(partial(form.read, folder), folder)
            if content == whole:
                assert refused is None and found == written
            elif refused is None:
                text = content.decode("utf-8-sig", "replace" if name == "metrics.jsonl" else "strict")
                assert (found[0] if name == "metrics.jsonl" else found) == form.says(text)

    inputs = form.valid.flatmap(lambda pair: st.tuples(st.just(pair[0]), st.just(pair[1]), damaged(pair[0])))
    examine(inputs, check, form.count, effort)


# --- what stands in the place of a file -------------------------------------------------------------------------------


def a_symlink_loop(path: Path) -> None:
    path.symlink_to(path)


def a_dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


KINDS = {
    "a folder": Path.mkdir,
    "a symlink loop": a_symlink_loop,
    "a dangling link": a_dangling_link,
    "a named pipe": os.mkfifo,
    "an empty file": Path.touch,
    "blanks": lambda path: path.write_bytes(b" \n\t \n"),
    "NUL bytes": lambda path: path.write_bytes(bytes(5000)),
    "a long line": lambda path: path.write_bytes(b"a" * LENGTH),
    "levels": lambda path: path.write_bytes(b"[" * LENGTH),
    "digits": lambda path: path.write_bytes(b"9" * LENGTH),
    "quotes": lambda path: path.write_bytes(b'"' * (LENGTH - 1)),
    "UTF-16": lambda path: path.write_bytes("text\ntext\n".encode("utf-16")),
    "half a character": lambda path: path.write_bytes(b"text\n\xe2\x82"),
}
ABSENT_IS_NONE = {"scores.json", "timing.json", "record of checksums"}  # what was not evaluated has no scores
LONG = ("a long line", "levels", "digits", "quotes")
TAKEN = {("samples txt", "blanks")} | {
    (name, kind) for name in ("text", "running text", "samples txt") for kind in LONG
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in LONG[1:] else ()) for kind in KINDS]
)
def test_what_is_no_readable_file_is_refused(tmp_path, kind, tried):
    for name, form in FORMS.items():
        tried[name] += 1
        folder = tmp_path / name / FOLDERS.get(name, "own")
        path = folder / form.file
        path.parent.mkdir(parents=True)
        KINDS[kind](path)
        found, refused = refusal(partial(form.read, folder), folder)
        if (name, kind) in TAKEN:
            assert refused is None
        elif name == "metrics.jsonl":  # a report tells of it and goes on
            assert found[1:] == [[], []]
        elif refused is None:
            assert name in ABSENT_IS_NONE and not found, (name, kind)


def test_a_file_without_permission_is_refused(tried):
    """As another user, since root may read anything."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        for name, form in FORMS.items():
            tried[name] += 1
            folder = Path(place) / name / FOLDERS.get(name, "own")
            path = folder / form.file
            path.parent.mkdir(parents=True)
            path.write_bytes(b"text")
            path.chmod(0)
            folder.chmod(0o777)
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    if os.getuid() == 0:
                        os.setuid(65534)
                    found, refused = refusal(partial(form.read, folder), folder)
                    told = "Permission denied" in (refused or "") or (name == "metrics.jsonl" and not found[1])
                    status = 0 if told else 2
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0, name


# --- folders of models and runs ---------------------------------------------------------------------------------------

MODELS = Path("pre_trained_models")
CACHE_FILES = ("meta.json", "offsets.npy", "states.npy")
TEXT = "The Mill is a pub near the river."


class Kept(NamedTuple):
    """A folder, which of its files are damaged, how it is read and used, and whether all damage must be found."""

    folder: Path
    files: tuple[str, ...]
    read: Callable[[Path], Any]
    exact: bool = False
    count: int = 8


def use_tokenizer(folder: Path) -> list[str]:
    codec = TokenCodec.load(folder)
    encoded = codec.encode([TEXT])
    return codec.decode(encoded.x0, encoded.valid)


def use_codec(folder: Path) -> list[str]:
    codec = Seq2SeqCodec.load(folder, max_length=12)
    encoded = codec.encode([TEXT])
    return codec.decode(encoded.x0, encoded.valid)


def use_scorer(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return LanguageModel(folder).nll([TEXT])


@pytest.fixture(scope="module")
def kept(request, tmp_path_factory) -> dict[str, Callable[[], Kept]]:
    """Each folder by name, made when it is asked for."""

    def cache() -> Kept:
        place, codec = tmp_path_factory.mktemp("cache"), Seq2SeqCodec.load(MODELS / "bart-demo", 12)
        sentences = [TEXT, "A second text.", "One more."]
        states, _ = encoded(codec, sentences, place, "own").batch([0, 1, 2])

        def read(folder: Path) -> tuple[int, ...]:
            found, _ = encoded(codec, sentences, folder.parent, "own").batch([0, 1, 2])
            assert found.shape == states.shape
            return found.shape

        return Kept(cache_folder(codec, sentences, place, "own", "float32"), CACHE_FILES, read, count=20)

    def bert() -> Kept:
        folder = request.getfixturevalue("bert_dir")
        codec, process = TokenCodec.load(folder, 24), SimpleNamespace(timesteps=8)
        files = ("config.json", "model.safetensors")
        return Kept(folder, files, lambda folder: load_bert(folder, codec, process, "none"))

    def space(with_record: bool) -> Kept:
        codec = TokenCodec.load(MODELS / "bart-demo")
        counts = torch.arange(codec.vocab_size)
        own = TokenSpace(codec, TokenOptions(), LengthModel(torch.tensor([0, 3, 4])), counts)
        folder = tmp_path_factory.mktemp("space") / "run"
        folder.mkdir()
        save_space(own, folder)
        LatentStatistics(torch.zeros(3), torch.ones(3), own.lengths).save(folder / STATISTICS)
        if not with_record:
            (folder / RECORD).unlink()

        def read(folder: Path) -> tuple:
            check_files(folder)
            found = TokenSpace.load(own.options, CodecOptions(), folder, running=False)
            LatentStatistics.load(folder / STATISTICS)
            return found.token_counts.tolist(), found.lengths.counts.tolist(), found.fingerprint

        files = (LENGTHS, TOKEN_COUNTS, f"{TOKENIZER}/tokenizer.json", f"{TOKENIZER}/tokenizer_config.json")
        return Kept(folder, files if with_record else (*files, STATISTICS), read, with_record, 20)

    def weights() -> Kept:
        folder = tmp_path_factory.mktemp("weights") / "run"
        folder.mkdir()
        save_file({"ema_model.a": torch.zeros(3, 4), "step": torch.ones(1)}, folder / "ema.safetensors")
        return Kept(folder, ("ema.safetensors",), parameters, count=20)

    model = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors")

    def sentence() -> Kept:
        folder = request.getfixturevalue("sentence_folder")
        names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
        files = tuple(name for name in names if not name.endswith(".md"))
        return Kept(folder, files, lambda folder: load_feature_model(folder).features([TEXT]))

    return {
        "tokenizer": lambda: Kept(MODELS / "bart-demo", model[1:3], use_tokenizer, count=20),
        "encoder-decoder": lambda: Kept(MODELS / "bart-demo", model, use_codec),
        "scorer": lambda: Kept(MODELS / "gpt2-demo", model, use_scorer),
        "sentence model": sentence,
        "BERT": bert,
        "encoded texts": cache,
        "space of a run": lambda: space(True),
        "space of an older run": lambda: space(False),
        "weights of a run": weights,
    }


@effort
@pytest.mark.parametrize(
    "name",
    ["tokenizer", "encoder-decoder", "scorer", "sentence model", "BERT", "encoded texts", "space of a run",
     "space of an older run", "weights of a run"],
)  # fmt: skip
def test_a_folder_is_used_or_refused_in_one_line(name, effort, kept, tried, tmp_path):
    """Where its files have checksums, a damaged one is always found; where not, nothing but a user's error comes up."""
    folder, files, read, exact, count = kept[name]()
    whole = read(copied(folder, tmp_path / "whole"))

    def check(what: tuple[str, str | bytes]) -> None:
        tried[name] += 1
        with tempfile.TemporaryDirectory() as place:
            copy = copied(folder, Path(place))
            unchanged = (copy / what[0]).read_bytes() == what[1]
            inflict(copy / what[0], what[1])
            found, refused = refusal(partial(read, copy), copy)
        if exact:
            assert found == whole if unchanged else refused is not None

    examine(damage(folder, files), check, count, effort)
