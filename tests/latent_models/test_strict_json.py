"""JSON that every reader takes alike is read, anything else refused with the reason."""

import json

import pytest

from latent_models.strict_json import parse


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -(2**63), 2**64 - 1, 1.5, -1e300, 5e-324, "", "a\u2028\x85🙂\0", [], {}, {"a": [1, {"b": None}]},
        [{"a": 1}, {"a": 2}],
    ],
)  # fmt: skip
@pytest.mark.parametrize("ascii_only", [True, False])
def test_what_json_writes_comes_back(value, ascii_only):
    assert parse(json.dumps(value, ensure_ascii=ascii_only)) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value at column 1"),
        ("{}{}", "Extra data at column 3"),
        ('{\n"a": }', "Expecting value at line 2 column 6"),
        ('"a\0b"', "Invalid control character at at column 3"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' twice in one object"),
        ('[{"\\u2028": 1, "\u2028": 1}]', "the key '\\u2028' twice in one object"),
        ("NaN", "NaN is no number that can be held"),
        ("[-Infinity]", "-Infinity is no number that can be held"),
        ("1e999", "1e999 is no number that can be held"),
        (str(2**64), f"{2**64} is no number that can be held"),
        ("9" * 5000, f"{'9' * 40} is no number that can be held"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('["\\ud83d\\ude00", "\\ud83d"]', "half a surrogate pair, \\ud83d"),
        ('{"\\uDE00": 1}', "half a surrogate pair, \\ude00"),
    ],
)
def test_the_rest_is_refused_in_one_line(text, reason):
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert str(caught.value) == reason
