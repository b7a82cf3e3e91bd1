"""Whatever runs say, on the page and in the Markdown it is text: no script, no handler, no address, no other table."""

import json
import re

import pytest

EVALUATED = "evaluation/test_step_00000400"
PAYLOADS = [
    "</script><script>alert(1)</script>",
    "\" onmouseover=\"alert(1)\" x=\"",
    "' autofocus onfocus='alert(1)",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)><a href=javascript:alert(1)>x</a>",
    "</title></style><iframe src=//evil.example></iframe><!--",
    "]]><![CDATA[<script>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;&#60;b&#62;",
    "\x00<\x00script>\x1b[2J\x9b\ufeff\u2028<base href=//evil.example>",
    "{{constructor.constructor('alert(1)')()}}${alert(1)}`",
    "a | b \\| c \\\\| d ` e",
    "a\n\n| x | y |\n|---|---|\n# heading\n- item",
    "![x](//evil.example/x.png) [y](javascript:alert(1)) [z]: //evil.example",
]


def rows(table: str) -> list[list[str]]:
    return [re.split(r"(?<!\\)(?:\\\\)*\|", line.strip()[1:-1]) for line in table.splitlines()]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_runs_say_stays_text(report, write_run, tmp_path, payload):
    name = payload.replace("/", "\N{FRACTION SLASH}").replace("\0", "")
    place = tmp_path / "runs"
    run = write_run(place / name, texts=[payload, f"two {payload}"], save_dir=payload.replace("\0", ""))
    other = write_run(place / "other", label_field=name, tokenizer=name, data_dir=name, learning_rate=0.5)
    folder = other / EVALUATED
    for path in (folder / "scores.json", *folder.glob("seed_*/scores.json")):
        found = json.loads(path.read_text())
        found |= {name: found.pop("sample") | {"mauve": None, payload: 0.5, "notes": {"mauve": payload}}}
        path.write_text(json.dumps(found))
    row = {"step": 1, f"{payload}/mauve": 0.5, "human/mauve": 0.9, f"{payload}/{payload}": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"step": 2, "loss": 1.0, payload: 2}) + "\n")
    broken = write_run(place / f"broken {name}")
    (broken / "args.json").write_text(json.dumps({"learning_rate": payload}))
    made = report(place)
    page = made.page
    assert page.counts["script"] == page.counts["style"] == 1
    assert not page.counts.keys() & {"img", "iframe", "svg/onload=alert(1)", "base", "object", "embed", "link", "form"}
    for tag, attribute, value in page.attributes:
        assert not attribute.startswith("on") and attribute not in ("src", "style", "action", "formaction", "autofocus")
        assert attribute != "href" or value.startswith("#"), (tag, value)
    assert "javascript:" not in "".join(value or "" for tag, name, value in page.attributes if name == "href")
    clean = re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", payload)
    assert clean in [text for tag, text in page.said if tag == "td"]

    numbers = (made.folder / "report.json").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", made.html + made.markdown + numbers + made.err)
    assert "<" not in made.markdown and "![" not in made.markdown and "](" not in made.markdown
    lines = made.markdown.splitlines()
    assert [line for line in lines if line.startswith("#")][1:] in (
        ["## Missing or doubtful"], ["## Paired differences", "## Missing or doubtful"]
    )  # fmt: skip
    tables = re.findall(r"(?m)(?:^\|.*\n)+", made.markdown)
    assert len(tables) == 1 + ("## Paired differences" in lines)
    for table in tables:
        assert len({len(row) for row in rows(table)}) == 1
