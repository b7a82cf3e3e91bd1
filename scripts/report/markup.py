"""HTML in which text cannot become markup: whatever is not made by `el` is escaped on its way in."""

from __future__ import annotations

import html
import re

# What HTML cannot hold: control characters but tab and newline, and halves of surrogate pairs in names of files.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
WITHOUT_END = {"meta", "input", "br"}


class Html(str):
    """Finished markup."""


def plain(text: object) -> str:
    """Text that any encoding and any page can hold."""
    return UNPRINTABLE.sub("\ufffd", str(text))


def escaped(child: object) -> Html:
    """Markup as it is, anything else as text."""
    return child if isinstance(child, Html) else Html(html.escape(plain(child)))


def join(*children: object) -> Html:
    """Pieces of markup and text, one after the other; None is nothing."""
    return Html("".join(escaped(child) for child in children if child is not None))


def el(name: str, /, *children: object, **attributes: object) -> Html:
    """An element; `cls` is its class, an underscore in an attribute's name a hyphen, None and False no attribute."""
    printed = []
    for key, value in attributes.items():
        key = "class" if key == "cls" else key.replace("_", "-")
        if value is True:
            printed.append(f" {key}")
        elif value is not None and value is not False:
            printed.append(f' {key}="{html.escape(plain(value))}"')
    start = f"<{name}{''.join(printed)}>"
    return Html(start if name in WITHOUT_END else f"{start}{join(*children)}</{name}>")
