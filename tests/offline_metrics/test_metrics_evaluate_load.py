"""Every metric file loads with `evaluate.load` from the repository root, on a machine without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from offline_metrics.distances import bigram_js, length_ks
from offline_metrics.diversity import diversity
from offline_metrics.entropy import unigram_entropy
from offline_metrics.language_model import LanguageModel
from offline_metrics.mauve_score import mauve_score
from offline_metrics.memorization import memorization, training_ngrams
from offline_metrics.perplexity import perplexity
from offline_metrics.repetition import repetition
from offline_metrics.self_bleu import distinct_n, self_bleu4
from offline_metrics.seq2seq import candidate_diversity, seq2seq
from offline_metrics.word_count import word_count

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json
import socket
import sys

attempts = []

def refuse(*arguments, **_):
    attempts.append(arguments)
    raise OSError("the network was used")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse

import evaluate

texts, train_texts, model = json.load(sys.stdin)
inputs = {
    "diversity": {},
    "memorization": {"train_texts": train_texts},
    "word_count": {},
    "repetition": {},
    "distances": {"references": train_texts[: len(texts)]},
    "entropy": {},
    "self_bleu": {},
    "seq2seq": {"references": train_texts[: len(texts)], "candidates": [texts[:3], train_texts[:3]]},
    "perplexity": {"model": model},
    "mauve_score": {"references": train_texts[: len(texts)], "model": model},
}
found = {}
for name, further in inputs.items():
    metric = evaluate.load(f"offline_metrics/{name}.py")
    assert metric.__module__.startswith("evaluate_modules."), metric.__module__
    found[name] = metric.compute(predictions=texts, **further)
assert not attempts, attempts
print("RESULT" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def offline_results(sentences, gpt2_folder, tmp_path_factory) -> dict[str, dict]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    environment["HF_HOME"] = str(tmp_path_factory.mktemp("hf-home"))
    environment["OMP_NUM_THREADS"] = "1"
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([sentences[:40], sentences[60:], str(gpt2_folder)]),
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.split("RESULT")[1])


def test_all_metric_files_load_and_agree_with_their_functions(offline_results, sentences, gpt2_folder):
    texts, train_texts, model = sentences[:40], sentences[60:], LanguageModel(gpt2_folder)
    assert offline_results["diversity"] == pytest.approx(diversity(texts))
    assert offline_results["memorization"] == memorization(texts, training_ngrams(train_texts))
    assert offline_results["word_count"] == word_count(texts)
    assert offline_results["repetition"] == repetition(texts)
    humans = train_texts[:40]
    assert offline_results["distances"] == {
        "length_ks": length_ks(texts, humans), "bigram_js": pytest.approx(bigram_js(texts, humans)),
    }
    assert offline_results["entropy"] == unigram_entropy(texts)
    assert offline_results["self_bleu"] == {"self_bleu4": self_bleu4(texts), **distinct_n(texts)}
    expected = seq2seq(texts, train_texts[:40]) | candidate_diversity([texts[:3], train_texts[:3]])
    assert offline_results["seq2seq"] == expected
    expected = perplexity(texts, model)
    assert offline_results["perplexity"].pop("perplexities") == pytest.approx(expected.pop("perplexities"))
    assert offline_results["perplexity"] == pytest.approx(expected)
    expected = mauve_score(model.features(texts), model.features(train_texts[:40]))
    assert offline_results["mauve_score"]["mauve"] == pytest.approx(expected["mauve"], abs=1e-6)
    assert offline_results["mauve_score"]["mauve_texts"] == 40


METRIC_FILES = (
    "diversity", "memorization", "word_count", "repetition", "distances", "entropy", "self_bleu", "seq2seq",
    "perplexity", "mauve_score",
)


@pytest.mark.parametrize("name", METRIC_FILES)
def test_each_import_of_a_metric_file_is_one_line_without_comment(name):
    # evaluate reads the imports line by line and takes what follows "#" for an address to fetch.
    lines = (ROOT / "offline_metrics" / f"{name}.py").read_text().splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert len(imports) >= 4 and not any("#" in line or line.endswith("(") for line in imports)
