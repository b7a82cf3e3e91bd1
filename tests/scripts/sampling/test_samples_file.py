"""Files of samples in each of their formats."""

import csv

import pytest

from scripts.job.errors import USER_ERRORS
from scripts.sampling.samples_file import read_samples, read_texts

TEXTS = ["A pub, near the river.", "", 'It is called "The Mill".', "two\nlines", "not\u2028a line end"]


def test_a_csv_as_gen_data_writes_it_is_read_back(tmp_path):
    """Empty texts too, without a label the row of which is blank."""
    path = tmp_path / "s.csv"
    for labels in ([None] * 5, list("abcde")):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(zip(TEXTS, labels, strict=True))
        assert read_texts(path) == TEXTS
        assert [row["label"] for row in read_samples(path)] == [label or "" for label in labels]


@pytest.mark.parametrize(
    ("content", "wanted"),
    {
        "": "s.csv: holds no samples",
        "text,label\n": "s.csv: holds no samples",
        "sentence\na\n": r"s\.csv:1: no column 'text' among 'sentence'",
        "text,label\na,b\na\n": r"s\.csv:3: 1 fields; expected 2",
        'text\n"a\n': r"s\.csv:2: not CSV",
    }.items(),
)
def test_a_csv_at_fault_is_refused(tmp_path, content, wanted):
    (tmp_path / "s.csv").write_text(content)
    with pytest.raises(USER_ERRORS, match=wanted):
        read_texts(tmp_path / "s.csv")


def test_a_csv_that_is_not_there_is_no_matter_of_the_data_folder(tmp_path):
    with pytest.raises(USER_ERRORS, match="cannot be read") as error:
        read_texts(tmp_path / "s.csv")
    assert "--data_dir" not in str(error.value)
