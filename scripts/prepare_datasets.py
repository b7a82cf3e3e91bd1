"""Puts E2E and ROCStories where runs read them, from their official files, checked line by line.

    python -m scripts.prepare_datasets e2e --from https://raw.githubusercontent.com/tuetschek/e2e-dataset/master
    python -m scripts.prepare_datasets roc --from FOLDER    # the CSV files that the authors of ROCStories send

E2E is copied as it is: trainset.csv, devset.csv, testset_w_refs.csv (or src1_*.txt). ROCStories comes without splits:
all stories are shuffled (seed 42) and 1,000 of them become the validation split, 4,000 the test, the rest the training
split (5 % each where there are fewer than 10,000), written as roc_*.json. `prepared.json` beside them holds sources,
counts, sizes and SHA-256. The folder appears whole or not at all; one with other files in it is left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np

from diffusion.training.files import sums
from latent_models.corpora import BUILT_IN, E2E_CSV_NAMES, CorpusError, DataOptions
from latent_models.readers import Example, fault
from scripts.fetching.checksums import write_record
from scripts.fetching.download import download, without_secrets
from scripts.job.console import note
from scripts.job.errors import PlainParser, UsageError, run

Parts = Sequence[list[Example]]  # of the splits, in this order:
SPLITS = ("train", "valid", "test")
RECORD = "prepared.json"
PUBLISHED = {"e2e": 51_426, "roc": 98_161}  # texts in all (Novikova et al. 2017; Mostafazadeh et al. 2016 and 2017)
OFFICIAL_NAMES = {
    "e2e": E2E_CSV_NAMES,
    "roc": (
        "ROCStories__spring2016 - ROCStories_spring2016.csv",
        "ROCStories_winter2017 - ROCStories_winter2017.csv",
    ),
}


def prepare(name: str, sources: Sequence[str], data_dir: Path) -> None:
    """Places the corpus `name` under `data_dir` and says what it holds; raises UsageError or CorpusError."""
    place = data_dir / BUILT_IN[name][0]
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=data_dir) as temporary:
        folder, made = Path(temporary) / "fetched", Path(temporary) / "made"
        folder.mkdir(), made.mkdir()
        if len(sources) == 1 and Path(sources[0]).is_dir():
            folder, origins = Path(sources[0]), {}
        else:
            origins = _fetched(name, sources, folder)
        try:
            names, parts = _read(name, folder)
        except CorpusError as error:
            message = str(error)
            for file, url in origins.items():  # what was fetched is gone when this is read
                message = message.replace(str(folder / file), url)
            raise CorpusError(message) from None
        if name == "roc":
            _write_stories(parts, made)
        else:
            for file in names:
                shutil.copyfile(folder / file, made / file)
        record = {
            "from": [each if Path(each).is_dir() else without_secrets(each) for each in sources],
            "source_files": sums(folder, names),
            "splits": dict(zip(SPLITS, _counts(parts), strict=True)),
            "files": sums(made, os.listdir(made)),
        }
        unchanged = _is_there(place, record["files"])
        if not unchanged:
            write_record(made / RECORD, record)
            os.replace(made, place)
    _say(name, place, unchanged, record["splits"])


def _fetched(name: str, urls: Sequence[str], folder: Path) -> dict[str, str]:
    """Fetches the files at `urls`, or the official ones below them; file name -> its address, secrets left out."""
    origins = {}
    for url in urls:
        path = _path(url)
        for each in [url] if path.endswith(".csv") else [f"{url.rstrip('/')}/{quote(n)}" for n in OFFICIAL_NAMES[name]]:
            file = PurePosixPath(_path(each)).name
            origins[file] = without_secrets(each)
            with (folder / file).open("ab") as target:
                download(origins[file], each, target)
    return origins


def _path(url: str) -> str:
    """The path of an address as the server has it; raises UsageError for what is no address."""
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and "\0" not in (path := unquote(parts.path)):
            return path
    raise UsageError(
        f"--from {without_secrets(url)}: no such folder; expected one, or the http(s) addresses of one or of files"
    )


def _read(name: str, folder: Path) -> tuple[list[str], Parts]:
    """The files of the corpus in a folder, and the splits that runs would read from them; raises CorpusError."""
    names = {file for file in os.listdir(folder) if not file.startswith(".")}
    for layout in BUILT_IN[name][1]:
        shown = sorted(filter(layout.shows, names))
        if shown:
            return shown, layout.read(folder, names, DataOptions(name))
    expected = " or ".join(layout.files for layout in BUILT_IN[name][1])
    raise fault(folder, None, f"holds no files of {name}", expected, "correct --from")


def _write_stories(parts: Parts, folder: Path) -> None:
    for split, examples in zip(SPLITS, parts, strict=True):
        with (folder / f"roc_{split}.json").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps([example.text], ensure_ascii=False) + "\n" for example in examples)


def _counts(parts: Parts) -> list[dict[str, Any]]:
    """Of each split: texts, how many of them repeat one before, how many are in each earlier split, words a text."""
    counts, earlier = [], {}
    for split, examples in zip(SPLITS, parts, strict=True):
        texts = [example.text for example in examples]
        words = [len(text.split()) for text in texts]
        most = round(float(np.quantile(words, 0.95)), 1)
        counts.append(
            {
                "texts": len(texts),
                "repeated": len(texts) - len(set(texts)),
                "also_in": {other: sum(text in known for text in texts) for other, known in earlier.items()},
                "words": {"median": median(words), "p95": most, "longest": max(words)},
            }
        )
        earlier[split] = set(texts)
    return counts


def _is_there(place: Path, files: dict[str, Any]) -> bool:
    """Whether `place` holds these files; raises UsageError where it holds others."""
    there = set(os.listdir(place)) - {RECORD} if place.is_dir() else set()
    if not there and not place.exists():
        return False
    if there == files.keys() and sums(place, there) == files:
        return True
    raise UsageError(
        f"{place}: holds other files ({', '.join(sorted(there)[:3])}, ...); move the folder away or choose another "
        "--data_dir"
    )


def _say(name: str, place: Path, unchanged: bool, splits: dict[str, dict[str, Any]]) -> None:
    print(f"{place}: {'is there already, with the same files' if unchanged else 'written'}")
    for split, its in splits.items():
        shared = "".join(f", {count:,} also in {other}" for other, count in its["also_in"].items())
        words = its["words"]
        print(
            f"  {split}: {its['texts']:,} texts, {its['repeated']:,} of them repeated{shared}; words: median "
            f"{words['median']:.0f}, 95 % at most {words['p95']:.0f}, longest {words['longest']}"
        )
    total = sum(its["texts"] for its in splits.values())
    if total != PUBLISHED[name]:
        note(f"warning: {total:,} texts; as published, {name} has {PUBLISHED[name]:,} in all its splits together")


def main() -> None:
    parser = PlainParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(BUILT_IN))
    parser.add_argument(
        "--from", dest="sources", nargs="+", required=True, metavar="SOURCE",
        help="a folder, or addresses: of a folder with the official file names, or of each .csv file",
    )  # fmt: skip
    parser.add_argument("--data_dir", default="datasets", help="folder in which the corpora lie, as for runs")
    options = parser.parse_args()
    prepare(options.dataset, options.sources, Path(options.data_dir))


if __name__ == "__main__":
    run(main)
