"""File formats of text corpora: one function per format, a file -> its examples, every fault naming file and line.

A line ends at "\\n" alone (a "\\r" before it belongs to the ending), so that U+2028, form feeds and their like stay
inside a text. Texts are kept as they stand, duplicates too; only E2E sentences are stripped, and the tokenised ones
among them detokenised.
"""

import csv
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from latent_models.strict_json import parse

TEXT_NAMES = ("text", "trg")
SOURCE_NAMES = ("source", "src")
STORY_COLUMNS = tuple(f"sentence{i}" for i in range(1, 6))

# The replacements of Hugging Face's `clean_up_tokenization`, in its order, which matters.
DETOKENISING = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip

_BOM = b"\xef\xbb\xbf"
_CSV_FIELD_LIMIT = 2**31 - 1  # characters; Python's own limit of 131,072 would refuse long texts
_MEANING_PAIR = re.compile(r"([^\[\]]+)\[([^\[\]]+)\](?:,|$)")


class CorpusError(Exception):
    """A fault of the data or of the data options, in one line: where, what is wrong, what was expected, what to do."""


class Example(NamedTuple):
    """One text with the class label and the source (condition) it has, if any."""

    text: str
    label: str | None = None
    source: str | None = None


def fault(path: Path, line: int | None, wrong: str, expected: str, remedy: str) -> CorpusError:
    """The error for `path` (at a 1-based physical `line`, None: the file as a whole), always a single line."""
    where = str(path) if line is None else f"{path}:{line}"
    return CorpusError(" ".join(f"{where}: {wrong}; expected {expected}; {remedy}".splitlines()))


def read_text(path: Path, label_field: str) -> list[Example]:
    """Plain text, one text a line, without labels; raises CorpusError."""
    return _non_empty(path, (Example(line) for _, line in _lines(path)))


def read_running_text(path: Path, size: int) -> list[Example]:
    """One running text, its line ends and blank lines included, in pieces of `size` characters; raises CorpusError."""
    text = "".join(_physical_lines(path))
    if not text.strip():
        raise _empty_file(path)
    return [Example(text[start : start + size]) for start in range(0, len(text), size)]


def read_jsonl(path: Path, label_field: str) -> list[Example]:
    """A JSON object a line: `text` (or `trg`), optional `label_field` and `source` (or `src`); raises CorpusError."""
    return _non_empty(path, _examples(path, _json_objects(path), label_field))


def read_csv(path: Path, label_field: str) -> list[Example]:
    """CSV with a header: `text`, optional `label_field` and `source`, of which an empty one is none; CorpusError."""
    rows = ((n, {k: v for k, v in row.items() if v or k in TEXT_NAMES}) for n, row in table(path, ("text",)))
    return _non_empty(path, _examples(path, rows, label_field))


def read_e2e_text(path: Path, label_field: str) -> list[Example]:
    """E2E as Diffusion-LM tokenised it, `attr : value | attr : value || sentence` a line; raises CorpusError."""
    return _non_empty(path, _e2e_lines(path, label_field))


def read_e2e_csv(path: Path, label_field: str) -> list[Example]:
    """E2E as published, CSV with `mr` = `attr[value], attr[value]` and `ref`; raises CorpusError."""
    return _non_empty(path, _e2e_rows(path, label_field))


def read_roc_json(path: Path, label_field: str) -> list[Example]:
    """ROCStories, a JSON list of one string a line, without labels; raises CorpusError."""
    return _non_empty(path, _roc_lines(path))


def read_story_csv(path: Path, label_field: str) -> list[Example]:
    """ROCStories as published, CSV with `sentence1` to `sentence5`, joined by a space; raises CorpusError."""
    return _non_empty(path, _story_rows(path))


def csv_header(path: Path) -> list[str]:
    """The column names of a CSV file; raises CorpusError."""
    for _, row in _csv_rows(path):
        return [name.strip() for name in row]
    raise _empty_file(path)


def table(path: Path, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(number of the row's last physical line, column -> field) of every row of a CSV file; raises CorpusError."""
    header = None
    for number, row in _csv_rows(path):
        if header is None:
            header = [name.strip() for name in row]
            missing = [name for name in required if name not in header]
            if missing:
                wrong = f"no column {', '.join(map(repr, missing))} among {_excerpt(', '.join(header))}"
                raise fault(path, number, wrong, f"the header {','.join(required)}", "name the columns in line 1")
            if len(set(header)) < len(header):
                wrong = f"two columns of one name among {_excerpt(', '.join(header))}"
                raise fault(path, number, wrong, "distinct column names", "rename or remove one")
        elif len(row) != len(header):
            wrong = f"{len(row)} fields"
            raise fault(path, number, wrong, f"{len(header)} as in the header", "quote fields that hold a comma")
        else:
            yield number, dict(zip(header, row, strict=True))


def detokenise(text: str) -> str:
    """Joins the punctuation and contractions that a tokeniser split off; "family - friendly" stays as it is."""
    for spaced, joined in DETOKENISING:
        text = text.replace(spaced, joined)
    return text


# --- lines, rows and objects ------------------------------------------------------------------------------------------


def _physical_lines(path: Path) -> Iterator[str]:
    """The decoded lines of a UTF-8 file with their endings."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a named pipe would block for ever
            raise fault(path, None, "not a file", "a file of texts", "move what is there and put the file in its place")
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(_BOM)
                    if not line:
                        return
                try:
                    decoded = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    wrong = f"invalid UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}"
                    raise fault(path, number, wrong, "UTF-8 text", "convert the file to UTF-8") from None
                if "\0" in decoded:
                    raise fault(path, number, "holds a NUL byte", "text", "remove it or restore the file")
                yield decoded
    except OSError as error:
        wrong = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise fault(path, None, wrong, "a file of texts", "put a readable one there or correct --data_dir") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line without its ending) for every line; a blank one is refused, since it would be an empty text."""
    for number, line in enumerate(_physical_lines(path), 1):
        line = line.removesuffix("\n").removesuffix("\r")
        if not line.strip():
            raise fault(path, number, "blank line (empty text)", "one text on every line", "remove or fill the line")
        yield number, line


def _json_values(path: Path, expected: str) -> Iterator[tuple[int, Any]]:
    for number, line in _lines(path):
        try:
            yield number, parse(line)
        except ValueError as error:
            raise fault(path, number, f"not JSON ({error})", expected, "correct the line") from None


def _json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    expected = 'an object such as {"text": "..."}'
    for number, value in _json_values(path, expected):
        if not isinstance(value, dict):
            raise fault(path, number, f"a JSON {type(value).__name__}, not an object", expected, "correct the line")
        yield number, value


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(_physical_lines(path), strict=True)
    former_limit = csv.field_size_limit(_CSV_FIELD_LIMIT)  # process-wide, hence given back
    try:
        for row in reader:
            if not row:  # of blank fields each reader thinks its own
                raise fault(path, reader.line_num, "blank row", "a filled row on every line", "remove or fill the row")
            yield reader.line_num, row
    except csv.Error as error:
        expected = 'comma-separated fields, a quote inside quotes doubled ("")'
        raise fault(path, reader.line_num, f"not CSV ({error})", expected, "correct the row") from None
    finally:
        csv.field_size_limit(former_limit)


# --- examples ---------------------------------------------------------------------------------------------------------


def _examples(path: Path, records: Iterable[tuple[int, dict[str, Any]]], label_field: str) -> Iterator[Example]:
    """Examples of the project's own formats; label and source must each be on every line of the file or on none."""
    first = None
    for number, record in records:
        text = _value(path, number, record, TEXT_NAMES)
        if text is None:
            wrong = f"no 'text' among the keys {_excerpt(', '.join(record))}"
            raise fault(path, number, wrong, "a 'text' (or 'trg') on every line", "add it")
        label = _value(path, number, record, (label_field,))
        example = Example(text, label, _value(path, number, record, SOURCE_NAMES))
        if first is None:
            first = number, example
        for name, here, there in zip((label_field, "source"), example[1:], first[1][1:], strict=True):
            if (here is None) != (there is None):
                wrong = f"{'no' if here is None else 'a'} {name!r} here, unlike line {first[0]}"
                raise fault(path, number, wrong, f"{name!r} on every line or on none", "complete the lines")
        yield example


def _value(path: Path, number: int, record: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """The field that bears one of `names`, None where there is none; whole numbers serve as labels."""
    given = [name for name in names if record.get(name) is not None]
    if not given:
        return None
    if len(given) > 1:
        both = " and ".join(map(repr, given))
        raise fault(path, number, f"both {both}", "one of them", "remove the other")
    name, value = given[0], record[given[0]]
    if isinstance(value, int) and not isinstance(value, bool) and name not in TEXT_NAMES + SOURCE_NAMES:
        return str(value)
    if not isinstance(value, str):
        wrong = f"{name!r} is a JSON {type(value).__name__}"
        raise fault(path, number, wrong, "a string (or a whole number as label)", "correct the line")
    return _checked(path, number, name, value)


def _checked(path: Path, number: int, name: str, value: str) -> str:
    """`value` itself, unless it is blank or holds the NUL that a JSON escape can smuggle in."""
    if not value.strip():
        raise fault(path, number, f"empty {name!r}", "a filled one on every line", "remove or fill the line")
    if "\0" in value:
        raise fault(path, number, f"{name!r} holds a NUL character", "text", "remove the character")
    return value


def _e2e_lines(path: Path, label_field: str) -> Iterator[Example]:
    expected, remedy = "attr : value | attr : value || sentence", "correct the line"
    for number, line in _lines(path):
        meaning, bars, sentence = line.partition("||")
        meaning, sentence = meaning.strip(), sentence.strip()
        if not bars:
            raise fault(path, number, f"no || in {_excerpt(line)}", expected, remedy)
        if not sentence:
            raise fault(path, number, "empty text after ||", expected, remedy)
        attributes = {}
        for pair in meaning.split("|"):
            name, _, value = (part.strip() for part in pair.partition(":"))
            if not (name and value):
                raise fault(path, number, f"not an attribute: {_excerpt(pair)}", expected, remedy)
            attributes[name] = value
        yield Example(detokenise(sentence), attributes.get(label_field), meaning)


def _e2e_rows(path: Path, label_field: str) -> Iterator[Example]:
    expected = "an mr such as name[Alimentum], area[city centre]"
    for number, row in table(path, ("mr", "ref")):
        meaning, pairs, position = row["mr"].strip(), [], 0
        while match := _MEANING_PAIR.match(meaning, position):
            pairs.append((match[1].strip(), match[2].strip()))
            position = match.end()
        if position < len(meaning) or not pairs or not all(map(all, pairs)):
            raise fault(path, number, f"not a meaning: {_excerpt(meaning)}", expected, "correct the row")
        source = " | ".join(f"{name} : {value}" for name, value in pairs)
        yield Example(_checked(path, number, "ref", row["ref"]).strip(), dict(pairs).get(label_field), source)


def _roc_lines(path: Path) -> Iterator[Example]:
    expected = 'a list of one string such as ["..."]'
    for number, value in _json_values(path, expected):
        if not (isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)):
            raise fault(path, number, "not a list of one string", expected, "correct the line")
        yield Example(_checked(path, number, "text", value[0]))


def _story_rows(path: Path) -> Iterator[Example]:
    for number, row in table(path, STORY_COLUMNS):
        yield Example(" ".join(_checked(path, number, name, row[name]) for name in STORY_COLUMNS))


def _non_empty(path: Path, examples: Iterable[Example]) -> list[Example]:
    collected = list(examples)
    if not collected:
        raise _empty_file(path)
    return collected


def _empty_file(path: Path) -> CorpusError:
    return fault(path, None, "holds no text", "at least one", "fill the file or restore it")


def _excerpt(text: str, width: int = 60) -> str:
    return repr(text if len(text) <= width else text[: width - 3] + "...")
