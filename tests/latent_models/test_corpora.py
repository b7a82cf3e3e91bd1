"""Every corpus format read exactly, every malformed line refused in one line that names file and line."""

import csv
import inspect
import json
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import HfArgumentParser, PreTrainedTokenizerBase

from latent_models.corpora import CorpusError, DataOptions, Split, load_corpus
from latent_models.readers import detokenise

E2E_LINE = "name : The Mill | Type : pub | area : riverside||The Mill is a pub , isn't it ? \n"
LINE_BREAKS_BUT_NOT_OURS = "a\x0bb\x0cc\x1cd\x1de\x85f\u2028g\u2029h\ri"

texts = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\n\r"), min_size=1, max_size=30
).filter(str.strip)
text_lists = st.lists(texts, min_size=1, max_size=8)
texts_with_line_ends = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1)
many = settings(max_examples=100, deadline=None)


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Writes the files, text as UTF-8 with its line ends as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return folder


def load(data_dir: Path, name: str = "own", label_field: str = "label"):
    return load_corpus(DataOptions(dataset_name=name, data_dir=str(data_dir), label_field=label_field))


def load_own(data_dir: Path, extension: str, content: str | bytes, label_field: str = "label") -> Split:
    """The training split of a folder that holds `content` as each of its three files."""
    write(data_dir / "own", {f"{split}.{extension}": content for split in ("train", "valid", "test")})
    return load(data_dir, label_field=label_field).train


def refused(data_dir: Path, name: str | None = "own", label_field: str = "label") -> str:
    """The message of the CorpusError that loading raises, after checking that it is one line."""
    with pytest.raises(CorpusError) as caught:
        load_corpus(DataOptions(dataset_name=name, data_dir=str(data_dir), label_field=label_field))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "; expected " in message
    return message


def json_lines(values: list) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def csv_text(rows: list[list[str]]) -> str:
    with tempfile.TemporaryFile("w+", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
        file.seek(0)
        return file.read()


# --- options and names ------------------------------------------------------------------------------------------------


def test_options_are_parsed_from_the_command_line():
    parser = HfArgumentParser(DataOptions)
    (default,) = parser.parse_args_into_dataclasses([])
    assert default == DataOptions(dataset_name=None, data_dir="datasets", label_field="label", running_text=None)
    (options,) = parser.parse_args_into_dataclasses(
        "--dataset_name e2e --data_dir d --label_field Type --running_text 9".split()
    )
    assert options == DataOptions("e2e", "d", "Type", 9)
    assert "--label_field" in parser.format_help()


@pytest.mark.parametrize("name", [None, "nope", "no\nfolder"])
def test_without_a_known_name_the_available_ones_are_listed(tmp_path, name):
    write(tmp_path / "mine", {"train.txt": "a\n"})
    write(tmp_path / ".hidden", {})
    message = refused(tmp_path, name)
    assert f"e2e (in {tmp_path}/e2e_data)" in message and f"roc (in {tmp_path}/ROCstory)" in message
    assert "found there: mine)" in message
    assert "no dataset chosen" in message if name is None else repr(name) in message


def test_missing_data_dir_is_named(tmp_path):
    assert f"a folder under {tmp_path}/gone (which cannot be listed" in refused(tmp_path / "gone", "mine")


@pytest.mark.parametrize(("name", "folder"), [("e2e", "e2e_data"), ("roc", "ROCstory")])
def test_missing_built_in_folder_gives_its_full_path(tmp_path, name, folder):
    assert refused(tmp_path, name).startswith(f"{tmp_path}/{folder}: no such folder; expected ")
    write(tmp_path, {folder: "a file"})
    assert refused(tmp_path, name).startswith(f"{tmp_path}/{folder}: cannot be listed (Not a directory); ")


@pytest.mark.parametrize(
    ("folder", "file", "name", "remedy"),
    [
        ("mine", "train.txt", "mine", "set --dataset_name {own}"),
        ("mine", "validation.csv", None, "set --dataset_name {own}"),
        ("mine", "src1_train.txt", "other", "set --dataset_name {own}"),
        ("mine", "train.jsonl", "e2e", "set --dataset_name {own}"),
        ("mine", "trainset.csv", "e2e", "move its files to {own}/e2e_data"),
        ("e2e_data", "src1_test.txt", "e2e", "set --data_dir {own.parent}"),
        ("ROCstory", "roc_train.json", "roc", "set --data_dir {own.parent}"),
    ],
)
def test_a_data_folder_that_is_itself_a_corpus_is_told(tmp_path, folder, file, name, remedy):
    own = tmp_path / folder
    write(own, {file: "a\n"})
    message = refused(own, name)
    assert message.endswith(f"; {own} itself holds {file}: {remedy.format(own=own)}")


def test_folder_given_by_its_path_lends_the_corpus_its_name(tmp_path):
    write(tmp_path / "away" / "mine", {f"{split}.txt": "a\n" for split in ("train", "valid", "test")})
    for name in ("away/mine", str(tmp_path / "away" / "mine"), "away/mine/"):
        assert load(tmp_path, name).name == "mine"


# --- E2E --------------------------------------------------------------------------------------------------------------


def test_e2e_text_is_read_exactly(tmp_path):
    no_type = "name : The Mill||A family - friendly place || with bars .\n"
    write(tmp_path / "e2e_data", {"src1_train.txt": E2E_LINE + no_type + E2E_LINE, "src1_valid.txt": E2E_LINE,
                                  "src1_test.txt": E2E_LINE.rstrip("\n"), "devset_head.csv": "mr,ref\n"})  # fmt: skip
    corpus = load(tmp_path, "e2e", "Type")
    meaning = "name : The Mill | Type : pub | area : riverside"
    assert corpus.name == "e2e"
    assert corpus.train.texts[0] == "The Mill is a pub, isn't it?"
    assert corpus.train.texts[1] == "A family - friendly place || with bars."
    assert corpus.train.texts[2] == corpus.train.texts[0]  # a duplicate stays
    assert corpus.train.labels == ["pub", None, "pub"]
    assert corpus.train.sources == [meaning, "name : The Mill", meaning]
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == (3, 1, 1)
    assert corpus.classes == ["pub"]
    assert load(tmp_path, "e2e").classes == []


def test_published_e2e_csv_is_read_where_the_text_files_are_absent(tmp_path):
    row = '"name[Alimentum], area[city centre], near[Bar, Grill]","In the ""centre"", Alimentum."\n'
    folder = write(tmp_path / "e2e_data", {"trainset.csv": "mr,ref\n" + row, "devset.csv": "mr,ref\r\n" + row,
                                           "testset.csv": "MR\n", "testset_w_refs.csv": "mr,ref\n" + row})  # fmt: skip
    corpus = load(tmp_path, "e2e", "area")
    for split in (corpus.train, corpus.valid, corpus.test):
        assert split.texts == ['In the "centre", Alimentum.']
        assert split.sources == ["name : Alimentum | area : city centre | near : Bar, Grill"]
        assert split.labels == ["city centre"]
    (folder / "testset_w_refs.csv").unlink()
    assert f"{folder}/testset.csv:1: no column 'mr', 'ref' among 'MR'" in refused(tmp_path, "e2e")
    write(folder, {"testset.csv": "mr,ref\nname[A],b\n"})
    assert load(tmp_path, "e2e").test.texts == ["b"]


def test_missing_e2e_split_is_named(tmp_path):
    write(tmp_path / "e2e_data", {"src1_train.txt": E2E_LINE, "src1_valid.txt": E2E_LINE})
    assert refused(tmp_path, "e2e").startswith(f"{tmp_path}/e2e_data/src1_test.txt: no such file; ")


@pytest.mark.parametrize(
    ("spaced", "joined"),
    [("a .", "a."), ("a ?", "a?"), ("a !", "a!"), ("a , b", "a, b"), ("a ' b", "a'b"), ("do n't", "don't"),
     ("I 'm", "I'm"), ("it 's", "it's"), ("I 've", "I've"), ("we 're", "we're"),
     ("we 'll", "we 'll"), ("a ; b", "a ; b"), ("family - friendly", "family - friendly"), ("a .  .", "a. .")],
)  # fmt: skip
def test_detokenising_rules(spaced, joined):
    assert detokenise(spaced) == joined


@many
@given(st.lists(st.sampled_from([*" .,?!'-", "n't", "'m", "'s", "'ve", "'re", "ab"])).map("".join))
def test_detokenising_equals_hugging_face(text):
    oracle = inspect.getattr_static(PreTrainedTokenizerBase, "clean_up_tokenization", None)
    if oracle is None:
        pytest.skip("this version of transformers has no clean_up_tokenization")
    expected = oracle.__func__(text) if isinstance(oracle, staticmethod) else oracle(None, text)
    assert detokenise(text) == expected


# --- ROCStories -------------------------------------------------------------------------------------------------------


def stories(count: int, first: int = 0) -> list[str]:
    return [f"Story {i} begins. It ends." for i in range(first, first + count)]


def roc_json(texts: list[str]) -> str:
    return json_lines([[text] for text in texts])


def story_csv(count: int, first: int = 0) -> str:
    header = ["storyid", "storytitle", *(f"sentence{i}" for i in range(1, 6))]
    rows = ([f"id{i}", "Title", *(f"S{i}, {k}." for k in range(5))] for i in range(first, first + count))
    return csv_text([header, *rows])


def test_roc_json_is_decoded_and_its_test_file_used(tmp_path):
    write(tmp_path / "ROCstory", {"roc_train.json": '["She said \\"hi\\" \\u00e9. "]\n', "roc_valid.json": '["v"]\n',
                                  "roc_test.json": '["t"]'})  # fmt: skip
    corpus = load(tmp_path, "roc")
    assert corpus.train == Split(['She said "hi" é. '], [None], [None])
    assert (corpus.valid.texts, corpus.test.texts) == (["v"], ["t"])
    assert corpus.classes == []


@pytest.mark.parametrize(("lines", "valid", "test"), [(5000, 1000, 4000), (2000, 1000, 1000), (1999, 999, 1000),
                                                      (750, 375, 375), (2, 1, 1)])  # fmt: skip
def test_roc_valid_file_is_split_where_there_is_no_test_file(tmp_path, lines, valid, test):
    write(tmp_path / "ROCstory", {"roc_train.json": '["a"]\n', "roc_valid.json": roc_json(stories(lines))})
    corpus = load(tmp_path, "roc")
    assert (len(corpus.valid), len(corpus.test)) == (valid, test)
    assert sorted(corpus.valid.texts + corpus.test.texts) == sorted(stories(lines))
    assert load(tmp_path, "roc") == corpus
    if lines > 2:
        assert corpus.valid.texts != stories(lines)[:valid]


def test_roc_split_is_the_reference_one(tmp_path):
    """First indices of `datasets.Dataset.shuffle(seed=42)` over 5,000 rows, which is what the reference applies."""
    write(tmp_path / "ROCstory", {"roc_train.json": '["a"]\n', "roc_valid.json": roc_json(stories(5000))})
    first = [stories(1, i)[0] for i in (1535, 1183, 3378, 3825, 643)]
    assert load(tmp_path, "roc").valid.texts[:5] == first


def test_one_roc_validation_line_cannot_be_split(tmp_path):
    write(tmp_path / "ROCstory", {"roc_train.json": '["a"]\n', "roc_valid.json": '["a"]\n'})
    assert "roc_valid.json: one text cannot give a validation and a test split" in refused(tmp_path, "roc")


@pytest.mark.parametrize(
    ("total", "held_out"), [(10_000, (1000, 4000)), (9_999, (499, 499)), (100, (5, 5)), (3, (1, 1))]
)
def test_published_story_csvs_are_pooled_and_split(tmp_path, total, held_out):
    half = total // 2
    write(tmp_path / "ROCstory", {"ROCStories__spring2016 - ROCStories_spring2016.csv": story_csv(half),
                                  "ROCStories_winter2017 - ROCStories_winter2017.csv": story_csv(total - half, half),
                                  "cloze_test.csv": "InputStoryid,InputSentence1\nx,y\n"})  # fmt: skip
    corpus = load(tmp_path, "roc")
    assert (len(corpus.valid), len(corpus.test)) == held_out
    pool = corpus.train.texts + corpus.valid.texts + corpus.test.texts
    assert sorted(pool) == sorted(" ".join(f"S{i}, {k}." for k in range(5)) for i in range(total))
    assert load(tmp_path, "roc") == corpus


@pytest.mark.parametrize(
    ("content", "message"),
    [("InputStoryid,InputSentence1,RandomFifthSentenceQuiz1\na,b,c\n", "x.csv:1: a Story Cloze test, not a file of"),
     ("a,b\n1,2\n", "x.csv:1: not a file of stories; expected the columns sentence1, sentence2"),
     ("", "x.csv: holds no text"),
     (story_csv(2), "ROCstory: 2 stories cannot give three splits"),
     (story_csv(2) + "id,title,a,b,,d,e\n", "x.csv:4: empty 'sentence3'"),
     (story_csv(2) + "id,title,a,b,c,d\n", "x.csv:4: 6 fields; expected 7")],
)  # fmt: skip
def test_unfit_story_csv_is_refused(tmp_path, content, message):
    write(tmp_path / "ROCstory", {"x.csv": content})
    assert message in refused(tmp_path, "roc")


# --- own folders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("valid", ["valid", "validation", "dev"])
def test_own_folder_with_one_format_per_split(tmp_path, valid):
    write(tmp_path / "own", {"train.jsonl": json_lines([{"text": "a", "label": 1}, {"text": "b", "label": "x"}]),
                             f"{valid}.txt": " v \r\nw\r\n", "test.csv": "source,text\ns,t\n",
                             "readme.md": ""})  # fmt: skip
    corpus = load(tmp_path)
    assert corpus.name == "own"
    assert corpus.train == Split(["a", "b"], ["1", "x"], [None, None])
    assert corpus.valid == Split([" v ", "w"], [None, None], [None, None])
    assert corpus.test == Split(["t"], [None], ["s"])
    assert corpus.classes == ["1", "x"]


def test_jsonl_pairs_and_other_label_field(tmp_path):
    content = json_lines([{"src": "q", "trg": "p", "topic": "x", "label": 0}])
    assert load_own(tmp_path, "jsonl", content, "topic") == Split(["p"], ["x"], ["q"])


def test_an_empty_column_of_a_csv_is_none(tmp_path):
    """As --gen_data writes labels that there are not."""
    assert load_own(tmp_path, "csv", "text,label\na,\nb,\n", "label") == Split(["a", "b"], [None, None], [None, None])


def test_own_folder_may_be_laid_out_as_e2e_or_roc(tmp_path):
    write(tmp_path / "own", {f"src1_{split}.txt": E2E_LINE for split in ("train", "valid", "test")})
    assert load(tmp_path, label_field="area").train.labels == ["riverside"]
    write(tmp_path / "tales", {"roc_train.json": '["a"]\n', "roc_valid.json": '["b"]\n["c"]\n'})
    assert len(load(tmp_path, "tales").test) == 1
    write(tmp_path / "own", {"train.txt": "a\n"})
    assert "two corpora, train.txt and src1_test.txt" in refused(tmp_path)


def test_missing_and_doubled_splits_are_refused(tmp_path):
    folder = write(tmp_path / "own", {})
    assert refused(tmp_path).startswith(f"{folder}: holds no corpus files; expected train, valid and test as .txt")
    write(folder, {"train.txt": "a\n", "valid.txt": "b\n"})
    message = refused(tmp_path)
    assert message.startswith(f"{folder}/test.*: no such file; expected one of test.txt, test.jsonl, test.csv; ")
    write(folder, {"test.txt": "c\n", "dev.csv": "text\nb\n"})
    assert "valid.txt and dev.csv are both there for the valid split" in refused(tmp_path)


@pytest.mark.parametrize(
    ("extension", "content", "message"),
    [
        ("txt", "", "train.txt: holds no text"),
        ("txt", b"\xef\xbb\xbf", "train.txt: holds no text"),
        ("txt", "a\n\nb\n", "train.txt:2: blank line"),
        ("txt", "a\n \t\u3000\nb\n", "train.txt:2: blank line"),
        ("txt", "a\n\n", "train.txt:2: blank line"),
        ("txt", b"a\nb\xff\n", "train.txt:2: invalid UTF-8: byte 0xff at column 2"),
        ("txt", "a\n".encode("utf-16"), "train.txt:1: invalid UTF-8"),
        ("txt", "a\nb\0\n", "train.txt:2: holds a NUL byte"),
        ("jsonl", '{"text": "a"}\n\n', "train.jsonl:2: blank line"),
        ("jsonl", '{"text": "a"}\n{"text": \n', "train.jsonl:2: not JSON (Expecting value at column 10)"),
        ("jsonl", '["a"]\n', "train.jsonl:1: a JSON list, not an object"),
        ("jsonl", "[" * 100_000 + "\n", "train.jsonl:1: not JSON (nested too deeply)"),
        ("jsonl", "9" * 5000 + "\n", f"train.jsonl:1: not JSON ({'9' * 40} is no number that can be held)"),
        ("jsonl", '{"text": "a", "n": NaN}\n', "train.jsonl:1: not JSON (NaN is no number that can be held)"),
        ("jsonl", '{"text": "a", "n": 1e999}\n', "train.jsonl:1: not JSON (1e999 is no number"),
        ("jsonl", '{"text": "a", "text": "b"}\n', "train.jsonl:1: not JSON (the key 'text' twice in one object)"),
        ("jsonl", '{"txet": "a"}\n', "train.jsonl:1: no 'text' among the keys 'txet'"),
        ("jsonl", '{"text": null}\n', "train.jsonl:1: no 'text'"),
        ("jsonl", '{"text": ""}\n', "train.jsonl:1: empty 'text'"),
        ("jsonl", '{"text": 3}\n', "train.jsonl:1: 'text' is a JSON int"),
        ("jsonl", '{"text": "a", "trg": "b"}\n', "train.jsonl:1: both 'text' and 'trg'"),
        ("jsonl", '{"text": "a\\u0000"}\n', "train.jsonl:1: 'text' holds a NUL"),
        ("jsonl", '{"text": "a\\ud83d"}\n', "train.jsonl:1: not JSON (half a surrogate pair, \\ud83d)"),
        ("jsonl", '{"text": "a", "label": 1.5}\n', "train.jsonl:1: 'label' is a JSON float"),
        ("jsonl", '{"text": "a", "label": true}\n', "train.jsonl:1: 'label' is a JSON bool"),
        ("jsonl", '{"text": "a", "label": " "}\n', "train.jsonl:1: empty 'label'"),
        ("jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "train.jsonl:2: no 'label' here, unlike line 1"),
        ("jsonl", '{"text": "a"}\n{"text": "b", "label": 1}\n', "train.jsonl:2: a 'label' here, unlike line 1"),
        ("jsonl", '{"text": "a", "src": "b"}\n{"text": "b"}\n', "train.jsonl:2: no 'source' here, unlike line 1"),
        ("csv", "", "train.csv: holds no text"),
        ("csv", "text\n", "train.csv: holds no text"),
        ("csv", "txet,label\na,b\n", "train.csv:1: no column 'text' among 'txet, label'; expected the header text"),
        ("csv", "text,text\na,b\n", "train.csv:1: two columns of one name"),
        ("csv", "text,label\na,b\nc\n", "train.csv:3: 1 fields; expected 2"),
        ("csv", 'text,label\n"a\nb\nc",d\ne,f,g\n', "train.csv:5: 3 fields; expected 2"),
        ("csv", "text,label\na,b\n,b\n", "train.csv:3: empty 'text'"),
        ("csv", "text,label\na,b\nc,\n", "train.csv:3: no 'label' here, unlike line 2"),
        ("csv", "text,label\na,b\n\nc,d\n", "train.csv:3: blank row"),
        ("csv", 'text\na\n"b\nc\n', "train.csv:4: not CSV (unexpected end of data)"),
        ("csv", 'text\n"a"b\n', "train.csv:2: not CSV"),
        ("csv", "text\na\rb\n", "train.csv:2: not CSV"),
        ("csv", b'text\n"a\n\xff"\n', "train.csv:3: invalid UTF-8"),
        ("csv", "text\na\0\n", "train.csv:2: holds a NUL byte"),
    ],
)
def test_malformed_own_file_is_refused(tmp_path, extension, content, message):
    folder = write(tmp_path / "own", {f"{split}.{extension}": content for split in ("train", "valid", "test")})
    assert refused(tmp_path).startswith(f"{folder}/{message}")


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("src1", "name : A\n", "no || in 'name : A'; expected attr : value | attr : value || sentence"),
        ("src1", "name : A|| \n", "empty text after ||"),
        ("src1", "||text\n", "not an attribute: ''"),
        ("src1", "name : A | pub||text\n", "not an attribute: ' pub'"),
        ("src1", "name : ||text\n", "not an attribute: 'name :'"),
        ("src1", "\n", "blank line"),
        ("roc", "a story\n", "not JSON (Expecting value at column 1)"),
        ("roc", '"a story"\n', "not a list of one string"),
        ("roc", '["a", "b"]\n', "not a list of one string"),
        ("roc", "[]\n", "not a list of one string"),
        ("roc", "[1]\n", "not a list of one string"),
        ("roc", '[""]\n', "empty 'text'"),
    ],
)
def test_malformed_e2e_or_roc_line_is_refused(tmp_path, name, line, message):
    file, good = {"src1": ("src1_train.txt", E2E_LINE), "roc": ("roc_train.json", '["a"]\n')}[name]
    folder = write(tmp_path / "own", {file: good + line + good})
    assert refused(tmp_path).startswith(f"{folder}/{file}:2: {message}")


@pytest.mark.parametrize(
    "meaning", ["", "name", "name[]", "name[ ]", "[A]", "name[A", "name[A] area[B]", "name[A]]", "a[b[c]]"]
)
def test_malformed_meaning_is_refused(tmp_path, meaning):
    folder = write(tmp_path / "e2e_data", {"trainset.csv": f'mr,ref\nname[A],text\n"{meaning}",text\n'})
    assert refused(tmp_path, "e2e").startswith(f"{folder}/trainset.csv:3: not a meaning: {meaning!r}; expected an mr")


def test_what_is_no_readable_file_is_refused(tmp_path, monkeypatch):
    folder = write(tmp_path / "own", {"valid.txt": "a\n", "test.txt": "a\n"})
    train = folder / "train.txt"
    train.mkdir()
    assert refused(tmp_path).startswith(f"{train}: not a file; ")
    train.rmdir()
    train.symlink_to(train)
    assert refused(tmp_path).startswith(f"{train}: cannot be read (Too many levels of symbolic links); ")
    train.unlink()
    train.symlink_to(folder / "gone.txt")
    assert refused(tmp_path).startswith(f"{train}: no such file; ")
    train.unlink()
    train.write_text("a\n")

    def forbidden(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", forbidden)
    assert refused(tmp_path).startswith(f"{train}: cannot be read (Permission denied); ")


# --- running text -----------------------------------------------------------------------------------------------------


def load_running(data_dir: Path, size: int, name: str = "own"):
    return load_corpus(DataOptions(dataset_name=name, data_dir=str(data_dir), running_text=size))


def test_running_text_is_cut_into_pieces_of_one_size(tmp_path):
    write(tmp_path / "own", {"train.txt": "\ufeffAll:\r\n\n\nSpeak.\n", "dev.txt": "é" * 6, "test.txt": "ab"})
    corpus = load_running(tmp_path, 3)
    assert corpus.train.texts == ["All", ":\r\n", "\n\nS", "pea", "k.\n"]
    assert corpus.valid.texts == ["ééé", "ééé"]
    assert corpus.test == Split(["ab"], [None], [None])  # the last, shorter piece is a text too


@many
@given(texts_with_line_ends.filter(lambda text: text.strip() and text[0] != "\ufeff"), st.integers(2, 9))
def test_pieces_make_the_whole_running_text(text, size):
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "own", {f"{split}.txt": text for split in ("train", "valid", "test")})
        pieces = load_running(Path(folder), size).valid.texts
    assert "".join(pieces) == text
    assert all(len(piece) == size for piece in pieces[:-1]) and 1 <= len(pieces[-1]) <= size


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [("own", {"train.jsonl": '{"text": "a"}', "valid.txt": "b", "test.txt": "c"}, "own/train.jsonl: not running text"),
     ("own", {"train.txt": "a", "valid.csv": "text\nb\n", "test.txt": "c"}, "own/valid.csv: not running text"),
     ("own", {f"src1_{split}.txt": E2E_LINE for split in ("train", "valid", "test")}, "own: not running text"),
     ("roc", {"roc_train.json": '["a"]'}, "ROCstory: not running text"),
     ("own", {"train.txt": " \n\n", "valid.txt": "b", "test.txt": "c"}, "own/train.txt: holds no text"),
     ("own", {"train.txt": "", "valid.txt": "b", "test.txt": "c"}, "own/train.txt: holds no text"),
     ("own", {"train.txt": b"a\n\xff", "valid.txt": "b", "test.txt": "c"}, "own/train.txt:2: invalid UTF-8")],
)  # fmt: skip
def test_what_is_not_running_text_is_refused(tmp_path, name, files, message):
    write(tmp_path / {"roc": "ROCstory"}.get(name, name), files)
    with pytest.raises(CorpusError) as caught:
        load_running(tmp_path, 5, name)
    assert str(caught.value).startswith(f"{tmp_path}/{message}")
    assert "; expected " in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("size", [1, 0, -3])
def test_pieces_of_less_than_two_characters_are_refused(size):
    with pytest.raises(CorpusError, match=f"^--running_text {size}: expected pieces of at least 2 characters$"):
        DataOptions(running_text=size)


# --- texts come back exactly ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last_end", [True, False])
@pytest.mark.parametrize("extension", ["txt", "jsonl", "csv"])
def test_line_ends_and_byte_order_mark(tmp_path, bom, end, last_end, extension):
    lines = {"txt": [b"a", b"b"], "jsonl": [b'{"text": "a"}', b'{"text": "b"}'], "csv": [b"text", b"a", b"b"]}
    content = bom + end.join(lines[extension]) + (end if last_end else b"")
    assert load_own(tmp_path, extension, content).texts == ["a", "b"]


@pytest.mark.parametrize("text", [LINE_BREAKS_BUT_NOT_OURS, "x" * 1_000_000, " \ufeffpadded  "])
def test_odd_texts_stay_whole(tmp_path, text):
    record = json.dumps({"text": text}, ensure_ascii=False) + "\n"
    csv.field_size_limit(131_072)  # Python's own, which the reader lifts and gives back
    for extension, content in {"txt": text + "\n", "jsonl": record, "csv": csv_text([["text"], [text]])}.items():
        assert load_own(tmp_path / extension, extension, content).texts == [text]
    assert csv.field_size_limit() == 131_072


@many
@given(text_lists)
def test_round_trip_of_plain_text(written):
    with tempfile.TemporaryDirectory() as folder:
        assert load_own(Path(folder), "txt", "".join(text + "\n" for text in written)).texts == written


@many
@given(st.lists(st.tuples(*[texts_with_line_ends.filter(str.strip)] * 3), min_size=1, max_size=8), st.booleans())
def test_round_trip_of_jsonl_and_csv(rows, ascii_only):
    expected = Split(*map(list, zip(*rows, strict=True)))
    names = ["text", "class", "source"]
    lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=ascii_only) + "\n" for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        assert load_own(Path(folder) / "json", "jsonl", "".join(lines), "class") == expected
        assert load_own(Path(folder) / "csv", "csv", csv_text([names, *rows]), "class") == expected


@many
@given(text_lists)
def test_round_trip_of_roc_and_e2e(written):
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder)
        content = roc_json(written)
        write(data_dir / "ROCstory", {f"roc_{split}.json": content for split in ("train", "valid", "test")})
        assert load(data_dir, "roc").train.texts == written
        content = "".join(f"name : A||{text} \n" for text in written)
        write(data_dir / "e2e_data", {f"src1_{split}.txt": content for split in ("train", "valid", "test")})
        assert load(data_dir, "e2e").train.texts == [detokenise(text.strip()) for text in written]


FILES_OF_A_FORMAT = {
    "txt": ("own", ["train.txt", "valid.txt", "test.txt"]),
    "jsonl": ("own", ["train.jsonl", "valid.jsonl", "test.jsonl"]),
    "csv": ("own", ["train.csv", "valid.csv", "test.csv"]),
    "e2e text": ("e2e_data", ["src1_train.txt", "src1_valid.txt", "src1_test.txt"]),
    "e2e csv": ("e2e_data", ["trainset.csv", "devset.csv", "testset_w_refs.csv"]),
    "roc json": ("ROCstory", ["roc_train.json", "roc_valid.json"]),
    "roc csv": ("ROCstory", ["stories.csv"]),
}
GOOD_STARTS = [b"", b"text\n", b"text,label\n", b"mr,ref\n", story_csv(3).encode(), E2E_LINE.encode(),
               b'["a"]\n["b"]\n', b'{"text": "a"}\n', b"\xef\xbb\xbf"]  # fmt: skip
PIECES = [b"\n", b"\r", b'"', b",", b"|", b"||", b" : ", b"[", b"]", b"{", b"}", b"\\u", b"\0", b"\xff", b"1e999", b"a"]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(FILES_OF_A_FORMAT)),
    st.sampled_from(GOOD_STARTS),
    st.binary(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=20).map(b"".join),
)
def test_any_bytes_are_read_or_refused(form, start, noise):
    """Whatever a file holds, the result is a corpus of filled texts or a CorpusError of one line."""
    name, files = FILES_OF_A_FORMAT[form]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name, {file: start + noise for file in files})
        try:
            corpus = load(Path(folder), {"e2e_data": "e2e", "ROCstory": "roc"}.get(name, name))
        except CorpusError as error:
            assert str(error).startswith(folder) and len(str(error).splitlines()) == 1
        else:
            for split in (corpus.train, corpus.valid, corpus.test):
                assert len(split) == len(split.texts) == len(split.labels) == len(split.sources) > 0
                assert all(text.strip() and text.encode("utf-8") for text in split.texts)


def test_hundred_thousand_lines_are_read_in_seconds(tmp_path):
    write(tmp_path / "e2e_data", {"src1_train.txt": E2E_LINE * 100_000, "src1_valid.txt": E2E_LINE,
                                  "src1_test.txt": E2E_LINE})  # fmt: skip
    begin = time.process_time()
    assert len(load(tmp_path, "e2e").train) == 100_000
    assert time.process_time() - begin < 5
