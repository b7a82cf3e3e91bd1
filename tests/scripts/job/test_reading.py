"""Small files as editors and disks leave them: read line by line as they are, or refused by file and line."""

import os

import pytest

from scripts.job.errors import UsageError
from scripts.job.reading import read_json, read_lines


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\xef\xbb\xbf", []),
        (b"a\nb\n", ["a", "b"]),
        (b"\xef\xbb\xbfa\r\nb", ["a", "b"]),
        (b"a\rb\x0bc\xc2\x85d\xe2\x80\xa8e\n", ["a\rb\x0bc\x85d\u2028e"]),
        (b"a\n\n", ["a", ""]),
        (b"a\r\r\n", ["a\r"]),
    ],
)
def test_a_line_ends_at_a_line_feed_alone(tmp_path, content, lines):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert read_lines(path, "text") == lines


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, ": cannot be read (No such file or directory); expected text"),
        (lambda path: path.mkdir(), ": cannot be read (not a file); expected text"),
        (os.mkfifo, ": cannot be read (not a file); expected text"),
        (lambda path: path.symlink_to(path), ": cannot be read (Too many levels of symbolic links); expected text"),
        (lambda path: path.write_bytes(b"a\n\xef\xbb\xbfb\nc\xff"), ":3: cannot be read (invalid UTF-8: byte 0xff)"),
        (lambda path: path.write_bytes(b"\xef\xbb\xbf\na\xc3"), ":2: cannot be read (invalid UTF-8: byte 0xc3)"),
        (lambda path: path.write_bytes("a\n".encode("utf-16")), ":1: cannot be read (invalid UTF-8: byte 0xff)"),
        (lambda path: path.write_bytes(b"a\n\n\0"), ":3: cannot be read (holds a NUL byte); expected text"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, make, reason):
    make(tmp_path / "file")
    with pytest.raises(UsageError) as caught:
        read_lines(tmp_path / "file", "text")
    assert str(caught.value).startswith(f"{tmp_path}/file{reason}")


def test_a_name_that_no_file_can_have(tmp_path):
    with pytest.raises(UsageError, match="embedded null byte"):
        read_lines(tmp_path / "a\0b", "text")


def test_json_of_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b'\xef\xbb\xbf{"a":\r\n1}\r\n')
    assert read_json(path, "an object") == {"a": 1}
    path.write_text('{"a": 1,\n"a": 2}')
    with pytest.raises(UsageError, match=r"file: cannot be read \(the key 'a' twice in one object\); expected an"):
        read_json(path, "an object")
