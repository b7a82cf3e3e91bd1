"""Placing E2E and ROCStories from official files, in a folder or on a server: what is written, counted and refused."""

import csv
import io
import json
from pathlib import Path

import pytest

from latent_models.corpora import DataOptions, load_corpus
from scripts.prepare_datasets import OFFICIAL_NAMES, main

E2E_NAMES = OFFICIAL_NAMES["e2e"]
STORY_FILE = OFFICIAL_NAMES["roc"][1]
SENTENCES = [f"sentence{i}" for i in range(1, 6)]


def table(header: list[str], rows: list[list[str]]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows([header, *rows])
    return file.getvalue().encode()


def e2e_table(names: list[str]) -> bytes:
    rows = [[f"name[{name}], eatType[pub]", f"{name} is a pub, and a good one."] for name in names]
    return table(["mr", "ref"], rows)


def stories(count: int, first: int = 0) -> bytes:
    header = ["storyid", "storytitle", *SENTENCES]
    rows = range(first, first + count)
    return table(header, [[str(i), "Title", *(f"Sentence {k} of story {i}." for k in range(5))] for i in rows])


@pytest.fixture
def official(tmp_path) -> Path:
    """A folder with small E2E files in the official format, in which some texts repeat others."""
    folder = tmp_path / "official"
    folder.mkdir()
    for file, names in zip(E2E_NAMES, (["A", "B", "B", "C"], ["A", "D"], ["D", "B", "E", "E"]), strict=True):
        (folder / file).write_bytes(e2e_table(names))
    return folder


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "datasets"


@pytest.fixture
def prepared(call, target):
    """prepared("dataset --from SOURCE") is what the command printed."""

    def done(line: str):
        outcome = call(main, f"{line} --data_dir {target}")
        assert outcome.status == 0, outcome.err
        return outcome

    return done


@pytest.fixture
def refused(complaint, target):
    """refused("dataset --from SOURCE") is the one line in which the command complained; nothing is left behind."""

    def done(line: str) -> str:
        before = sorted(target.rglob("*")) if target.exists() else []
        message = complaint(main, f"{line} --data_dir {target}")
        assert sorted(target.rglob("*")) == before
        return message

    return done


def test_e2e_is_copied_as_it_is_and_counted(prepared, official, target):
    outcome, words = prepared(f"e2e --from {official}"), "words: median 8, 95 % at most 8, longest 8"
    place = target / "e2e_data"
    assert {path.name for path in place.iterdir()} == {*E2E_NAMES, "prepared.json"}
    assert all((place / name).read_bytes() == (official / name).read_bytes() for name in E2E_NAMES)
    assert outcome.out.splitlines() == [
        f"{place}: written",
        f"  train: 4 texts, 1 of them repeated; {words}",
        f"  valid: 2 texts, 0 of them repeated, 1 also in train; {words}",
        f"  test: 4 texts, 1 of them repeated, 1 also in train, 1 also in valid; {words}",
    ]
    assert "10 texts; as published, e2e has 51,426 in all" in outcome.err
    assert load_corpus(DataOptions("e2e", str(target))).test.texts[0] == "D is a pub, and a good one."
    assert json.loads((place / "prepared.json").read_text())["splits"]["valid"]["also_in"] == {"train": 1}


def test_a_second_call_finds_it_there(prepared, official, target):
    first, record = prepared(f"e2e --from {official}"), (target / "e2e_data" / "prepared.json").stat()
    second = prepared(f"e2e --from {official}")
    assert "is there already, with the same files" in second.out
    assert second.out.splitlines()[1:] == first.out.splitlines()[1:]
    assert (target / "e2e_data" / "prepared.json").stat() == record


def test_other_files_are_left_alone(prepared, refused, official, target):
    prepared(f"e2e --from {official}")
    (official / "devset.csv").write_bytes(e2e_table(["F"]))
    message = refused(f"e2e --from {official}")
    assert "holds other files (devset.csv, testset_w_refs.csv, trainset.csv, ...)" in message
    assert message.endswith("choose another --data_dir")


def test_stories_are_split_as_runs_would_split_them(prepared, tmp_path, target):
    source = tmp_path / "ROCstory"
    source.mkdir()
    (source / "one.csv").write_bytes(stories(50))
    (source / "two.csv").write_bytes(stories(10, first=50))
    prepared(f"roc --from {source}")
    assert {path.name for path in (target / "ROCstory").iterdir()} == {
        "roc_train.json", "roc_valid.json", "roc_test.json", "prepared.json"
    }  # fmt: skip
    ours, direct = (load_corpus(DataOptions("roc", str(folder))) for folder in (target, tmp_path))
    assert (ours.train, ours.valid, ours.test) == (direct.train, direct.valid, direct.test)
    sizes = [len(split) for split in (ours.train, ours.valid, ours.test)]
    assert sizes == [54, 3, 3]
    assert {*ours.train.texts, *ours.valid.texts, *ours.test.texts} == {
        " ".join(f"Sentence {k} of story {i}." for k in range(5)) for i in range(60)
    }


# From a server


def test_e2e_from_a_server(prepared, hub, official, target):
    hub.files = {f"/data/{name}": (official / name).read_bytes() for name in E2E_NAMES}
    hub.faults = {"devset.csv": ["truncate"]}
    prepared(f"e2e --from {hub.url}/data/")
    assert all((target / "e2e_data" / name).read_bytes() == (official / name).read_bytes() for name in E2E_NAMES)
    assert [path.name for path in target.iterdir()] == ["e2e_data"]


@pytest.mark.parametrize("line", ["{url}/data", "{url}/a%20story.csv?dl=1 {url}/other.csv"])
def test_stories_from_a_server(prepared, hub, target, line):
    below = [f"/data/{name}" for name in OFFICIAL_NAMES["roc"]]
    names = below if line.endswith("data") else ["/a story.csv", "/other.csv"]
    hub.files = {name: stories(30, first=30 * i) for i, name in enumerate(names)}
    prepared("roc --from " + line.format(url=hub.url))
    assert len(load_corpus(DataOptions("roc", str(target))).train) == 54


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        (401, "devset.csv: HTTP 401"),
        (404, "devset.csv: HTTP 404, not there"),
        ("truncate", "devset.csv: broke off (peer closed"),
        ("stall", "devset.csv: the connection stalls"),
    ],
)
def test_a_server_that_fails(refused, hub, official, monkeypatch, fault, wanted):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.files = {f"/data/{name}": (official / name).read_bytes() for name in E2E_NAMES}
    hub.faults = {"devset.csv": [fault] * 6}
    assert f"{hub.url}/data/{wanted}" in refused(f"e2e --from {hub.url}/data")


def test_a_page_instead_of_the_file(refused, hub, official):
    hub.files = {f"/data/{name}": b"<!doctype html>\n<title>Log in</title>\n" for name in E2E_NAMES}
    assert f"{hub.url}/data/trainset.csv:1: no column 'mr', 'ref'" in refused(f"e2e --from {hub.url}/data")


# What is refused


@pytest.mark.parametrize(
    ("file", "content", "wanted"),
    [
        ("devset.csv", None, "devset.csv: no such file"),
        ("devset.csv", b"", "devset.csv: holds no text"),
        ("devset.csv", b"mr,ref\r\n", "devset.csv: holds no text"),
        ("trainset.csv", b"mr\r\nname[A]\r\n", "trainset.csv:1: no column 'ref'"),
        ("trainset.csv", b"mr,ref\r\nname[A],A pub.\r\nname A,A pub.\r\n", "trainset.csv:3: not a meaning: 'name A'"),
        ("testset_w_refs.csv", b"mr,ref\r\nname[A]\r\n", "testset_w_refs.csv:2: 1 fields"),
        ("testset_w_refs.csv", b'mr,ref\r\nname[A],"A pub\r\n', "testset_w_refs.csv:2: not CSV"),
    ],
)
def test_wrong_e2e_files_are_refused_with_file_and_line(refused, official, file, content, wanted):
    (official / file).unlink()
    if content is not None:
        (official / file).write_bytes(content)
    assert f"{official}/{wanted}" in refused(f"e2e --from {official}")


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (table(["InputStoryid", "InputSentence1"], [["1", "A."]]), ":1: a Story Cloze test"),
        (stories(3) + b"7,Title,One.,Two.,Three.,Four.,\r\n", ":5: empty 'sentence5'"),
        (stories(2), "2 stories cannot give three splits"),
    ],
)
def test_wrong_story_files_are_refused_with_file_and_line(refused, tmp_path, content, wanted):
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / STORY_FILE).write_bytes(content)
    assert wanted in refused(f"roc --from {tmp_path}/official")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("e2e", "the following arguments are required: --from"),
        ("sst --from .", "invalid choice: 'sst'"),
        ("e2e --from {tmp}/none", "none: no such folder; expected one, or the http(s) addresses"),
        ("e2e --from {tmp}", "holds no files of e2e; expected src1_train.txt"),
        ("e2e --from {tmp} {tmp}", "no such folder"),
    ],
)
def test_a_wrong_command_line(refused, tmp_path, line, wanted):
    assert wanted in refused(line.format(tmp=tmp_path))
