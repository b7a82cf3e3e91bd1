"""Corpora on disk: the files of a data folder -> Corpus (train, valid and test texts with optional label and source).

Each way of laying out a folder is one `Layout`; the formats of the single files are in `readers`.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from latent_models.readers import (
    STORY_COLUMNS,
    CorpusError,
    Example,
    csv_header,
    fault,
    read_csv,
    read_e2e_csv,
    read_e2e_text,
    read_jsonl,
    read_roc_json,
    read_running_text,
    read_story_csv,
    read_text,
)

__all__ = ["Corpus", "CorpusError", "DataOptions", "Split", "load_corpus"]

SPLIT_SEED = 42  # the reference's; with its permutation too, so that held-out stories are the same ones
VALID_SIZE, TEST_SIZE = 1000, 4000  # ROCStories as the literature splits it


@dataclass
class DataOptions:
    """Which corpus to read, and where it lies."""

    _argument_group_name: ClassVar[str] = "data"

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "corpus: e2e, roc, or the name of a folder under --data_dir (or a path to one)"},
    )
    data_dir: str = field(default="datasets", metadata={"help": "folder in which the corpora lie"})
    label_field: str = field(
        default="label",
        metadata={"help": "column, key or E2E attribute (such as Type) that is the class label"},
    )
    running_text: int | None = field(
        default=None,
        metadata={"help": "read each .txt file as one running text, cut into pieces of this many characters"},
    )

    def __post_init__(self):
        if self.running_text is not None and self.running_text < 2:
            raise CorpusError(f"--running_text {self.running_text}: expected pieces of at least 2 characters")


@dataclass(frozen=True)
class Split:
    """Texts with their labels and sources, three lists of one length; None where a text has no label or source."""

    texts: list[str]
    labels: list[str | None]
    sources: list[str | None]

    def __len__(self) -> int:
        """The number of texts."""
        return len(self.texts)


@dataclass(frozen=True)
class Corpus:
    """A corpus and its name, which is the built-in one or that of its folder."""

    name: str
    train: Split
    valid: Split
    test: Split

    @property
    def classes(self) -> list[str]:
        """The distinct labels of the training split, sorted; empty where it is unlabelled."""
        return sorted({label for label in self.train.labels if label is not None})


Examples = list[Example]


class Layout(NamedTuple):
    """A way of laying out a folder: how it is described, which file names show it, how its three splits are read."""

    files: str
    shows: Callable[[str], bool]  # file name -> does it belong to this layout
    read: Callable[[Path, set[str], DataOptions], tuple[Examples, ...]]  # of folder, file names, options


def load_corpus(options: DataOptions) -> Corpus:
    """Reads the corpus that `options` name; raises CorpusError for a missing or malformed one."""
    data_dir, name = Path(os.path.abspath(options.data_dir)), options.dataset_name
    if name in BUILT_IN:
        folder, layouts = data_dir / BUILT_IN[name][0], BUILT_IN[name][1]
    else:
        folder, layouts = _own_folder(data_dir, name), OWN_LAYOUTS
    names = _file_names(folder, layouts, data_dir, name)
    shown = [layout for layout in layouts if any(map(layout.shows, names))]
    if not shown:
        raise fault(folder, None, "holds no corpus files", _described(layouts), "put them there or correct --data_dir")
    if len(shown) > 1 and name not in BUILT_IN:
        both = " and ".join(min(filter(layout.shows, names)) for layout in shown)
        raise fault(folder, None, f"two corpora, {both}", "the files of one", "move the others elsewhere")
    if options.running_text is not None and shown[0] is not OWN:
        raise _not_running(folder)
    splits = [Split(*map(list, zip(*part, strict=True))) for part in shown[0].read(folder, names, options)]
    return Corpus(name if name in BUILT_IN else folder.name, *splits)


def _own_folder(data_dir: Path, name: str | None) -> Path:
    if name:
        for folder in (data_dir / name, Path(name)):
            if os.path.isdir(folder):
                return Path(os.path.abspath(folder))
    try:
        found = sorted(each for each in os.listdir(data_dir) if each[0] != "." and os.path.isdir(data_dir / each))
        there = f"found there: {', '.join(found) or 'none'}"
    except OSError as error:
        there = f"which cannot be listed ({error.strerror})"
    built_in = ", ".join(f"{key} (in {data_dir / folder})" for key, (folder, _) in BUILT_IN.items())
    wrong = f"unknown dataset {name!r}" if name else "no dataset chosen"
    expected = f"{built_in} or a folder under {data_dir} ({there})"
    remedy = _moved(data_dir, name) or "set --dataset_name or --data_dir"
    raise CorpusError(" ".join(f"{wrong}; expected {expected}; {remedy}".splitlines()))


def _file_names(folder: Path, layouts: tuple[Layout, ...], data_dir: Path, name: str) -> set[str]:
    try:
        return {file for file in os.listdir(folder) if not file.startswith(".")}
    except OSError as error:
        wrong = "no such folder" if isinstance(error, FileNotFoundError) else f"cannot be listed ({error.strerror})"
        remedy = _moved(data_dir, name) or "put the files there or correct --data_dir"
        raise fault(folder, None, wrong, _described(layouts), remedy) from None


def _moved(data_dir: Path, name: str | None) -> str | None:
    """What to do where the data folder is not the one above that of a corpus, but that folder itself; else None."""
    ways = [(OWN_LAYOUTS, f"set --dataset_name {data_dir}")]
    if name in BUILT_IN:
        folder, layouts = BUILT_IN[name]
        above = f"set --data_dir {data_dir.parent}"
        ways.insert(0, (layouts, above if data_dir.name == folder else f"move its files to {data_dir / folder}"))
    with suppress(OSError):
        files = sorted(os.listdir(data_dir))
        for layouts, remedy in ways:
            if shown := [file for file in files if any(layout.shows(file) for layout in layouts)]:
                return f"{data_dir} itself holds {shown[0]}: {remedy}"
    return None


def _described(layouts: tuple[Layout, ...]) -> str:
    return " or ".join(layout.files for layout in layouts)


# --- layouts ----------------------------------------------------------------------------------------------------------

OWN_STEMS = {"train": ("train",), "valid": ("valid", "validation", "dev"), "test": ("test",)}
OWN_READERS = {".txt": read_text, ".jsonl": read_jsonl, ".csv": read_csv}
OWN_NAMES = {split: [stem + ext for stem in stems for ext in OWN_READERS] for split, stems in OWN_STEMS.items()}
E2E_TEXT_NAMES = tuple(f"src1_{split}.txt" for split in OWN_STEMS)
E2E_CSV_NAMES = ("trainset.csv", "devset.csv", "testset_w_refs.csv")
E2E_BARE_TEST = "testset.csv"  # published without references, hence second choice
ROC_NAMES = tuple(f"roc_{split}.json" for split in OWN_STEMS)


def _read_own(folder: Path, names: set[str], options: DataOptions) -> tuple[Examples, ...]:
    parts = []
    for split, candidates in OWN_NAMES.items():
        found = [name for name in candidates if name in names]
        if not found:
            raise fault(folder / f"{split}.*", None, "no such file", f"one of {', '.join(candidates)}", "put it there")
        if len(found) > 1:
            wrong = f"{' and '.join(found)} are both there for the {split} split"
            raise fault(folder, None, wrong, "one file for each split", "move the others elsewhere")
        parts.append(_read_own_file(folder / found[0], options))
    return tuple(parts)


def _read_own_file(path: Path, options: DataOptions) -> Examples:
    if options.running_text is None:
        return OWN_READERS[path.suffix](path, options.label_field)
    if path.suffix != ".txt":
        raise _not_running(path)
    return read_running_text(path, options.running_text)


def _not_running(path: Path) -> CorpusError:
    return fault(path, None, "not running text", "train.txt, valid.txt and test.txt", "leave out --running_text")


def _read_e2e_text(folder: Path, names: set[str], options: DataOptions) -> tuple[Examples, ...]:
    return tuple(read_e2e_text(folder / name, options.label_field) for name in E2E_TEXT_NAMES)


def _read_e2e_csv(folder: Path, names: set[str], options: DataOptions) -> tuple[Examples, ...]:
    train, valid, test = E2E_CSV_NAMES
    test = E2E_BARE_TEST if test not in names and E2E_BARE_TEST in names else test
    return tuple(read_e2e_csv(folder / name, options.label_field) for name in (train, valid, test))


def _read_roc_json(folder: Path, names: set[str], options: DataOptions) -> tuple[Examples, ...]:
    train_name, valid_name, test_name = ROC_NAMES
    train, valid = (read_roc_json(folder / name, options.label_field) for name in (train_name, valid_name))
    if test_name in names:
        return train, valid, read_roc_json(folder / test_name, options.label_field)
    size = VALID_SIZE if len(valid) >= 2 * VALID_SIZE else len(valid) // 2
    if size == 0:
        wrong, expected = "one text cannot give a validation and a test split", f"two or more, or {test_name} beside it"
        raise fault(folder / valid_name, None, wrong, expected, "restore the file")
    valid, test = _parts(valid, size)
    return train, valid, test


def _read_story_csvs(folder: Path, names: set[str], options: DataOptions) -> tuple[Examples, ...]:
    headers = {name: csv_header(folder / name) for name in sorted(names) if _is_csv(name)}
    story_files = [name for name, header in headers.items() if set(STORY_COLUMNS) <= set(header)]
    if not story_files:
        name, header = next(iter(headers.items()))
        cloze = "InputSentence1" in header
        wrong = "a Story Cloze test, not a file of training stories" if cloze else "not a file of stories"
        raise fault(folder / name, 1, wrong, f"the columns {', '.join(STORY_COLUMNS)}", "put the ROCStories CSV there")
    pool = [example for name in story_files for example in read_story_csv(folder / name, options.label_field)]
    if len(pool) < 3:
        wrong = f"{len(pool)} stories cannot give three splits"
        raise fault(folder, None, wrong, "three or more", "put the full ROCStories CSV there")
    large = len(pool) >= 2 * (VALID_SIZE + TEST_SIZE)  # else the fixed sizes would take most of the pool
    sizes = (VALID_SIZE, TEST_SIZE) if large else (max(1, len(pool) // 20),) * 2
    valid, test, train = _parts(pool, *sizes)
    return train, valid, test


def _parts(examples: Examples, *sizes: int) -> list[Examples]:
    """The examples shuffled and cut into parts of the given sizes and a rest."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(examples))
    cuts = np.cumsum(sizes)
    return [[examples[i] for i in part] for part in np.split(order, cuts)]


def _is_csv(name: str) -> bool:
    return name.endswith(".csv")


E2E_TEXT = Layout(", ".join(E2E_TEXT_NAMES), E2E_TEXT_NAMES.__contains__, _read_e2e_text)
E2E_CSV = Layout(", ".join(E2E_CSV_NAMES), (*E2E_CSV_NAMES, E2E_BARE_TEST).__contains__, _read_e2e_csv)
ROC_JSON = Layout("roc_train.json, roc_valid.json", ROC_NAMES.__contains__, _read_roc_json)
ROC_CSV = Layout(f"CSV files with {STORY_COLUMNS[0]} to {STORY_COLUMNS[-1]}", _is_csv, _read_story_csvs)
OWN = Layout(
    "train, valid and test as .txt, .jsonl or .csv",
    {name for candidates in OWN_NAMES.values() for name in candidates}.__contains__,
    _read_own,
)

BUILT_IN = {"e2e": ("e2e_data", (E2E_TEXT, E2E_CSV)), "roc": ("ROCstory", (ROC_JSON, ROC_CSV))}  # first one shown wins
OWN_LAYOUTS = (OWN, E2E_TEXT, ROC_JSON)
