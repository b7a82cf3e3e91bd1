"""The grammar of the demo corpus: short restaurant descriptions, written and recognised by one definition.

A text is one *first* sentence, or a first and a *second* sentence that share no attribute. A sentence is written from a
form, whose parts are filled in to make a frame, whose slots are filled in to make a sentence: a slot names an attribute
and a way to word it, and a table gives the phrases for each value of the attribute. The same tables are read in two
directions: `write` draws a text with its meaning, `parse` gives the meaning back.
"""

from __future__ import annotations

import random
import re
from functools import cache
from itertools import chain

NAMES = (
    "The Amber Fox", "The Blue Heron", "The Copper Kettle", "The Green Lantern", "The Iron Gate", "The Little Owl",
    "The Old Forge", "The Quiet Goose", "The Red Door", "The Silver Birch", "The Tin Whistle", "The White Hart",
    "Bella Notte", "Cedar House", "Golden Wok", "Juniper", "Marigold", "Olive Branch", "Saffron", "Thyme and Salt",
)  # fmt: skip
LANDMARKS = (
    "the old bridge", "the train station", "the museum", "the cathedral", "the town hall", "the library",
    "the market square", "the botanic garden", "the theatre", "the football ground",
)  # fmt: skip
FOODS = ("French", "Greek", "Mexican", "Thai", "Turkish", "vegan", "Indian", "Italian")
TYPES = ("restaurant", "pub", "café", "bistro")


def _same(values):
    return {value: (value,) for value in values}


def _article(phrase: str) -> str:
    return ("an " if phrase[0].lower() in "aeiou" else "a ") + phrase


# attribute -> wording -> value -> phrases
WORDINGS = {
    "name": {"name": _same(NAMES)},
    "type": {"type": _same(TYPES), "a_type": {t: (_article(t),) for t in TYPES}},
    "food": {
        "food": _same(FOODS),
        "a_food": {f: (_article(f),) for f in FOODS},
        "dishes": {f: (f"{f} food", f"{f} dishes", f"{f} cooking") for f in FOODS},
    },
    "price": {
        "a_price": {
            "low": ("a cheap", "an inexpensive", "a low-priced"),
            "moderate": ("a reasonably priced", "a mid-priced"),
            "high": ("an expensive", "a high-priced"),
        },
        "cost": {
            "low": ("low prices", "small bills"),
            "moderate": ("moderate prices", "fair prices"),
            "high": ("high prices", "steep prices"),
        },
        "costs": {
            "low": ("does not cost much", "is easy on the wallet"),
            "moderate": ("costs about the average", "charges a fair price"),
            "high": ("costs a lot", "charges above the average"),
        },
    },
    "customer rating": {
        "rated": {
            "low": ("poorly rated", "rated 1 out of 5"),
            "average": ("fairly rated", "rated 3 out of 5"),
            "high": ("highly rated", "rated 5 out of 5"),
        },
        "a_rated": {
            "low": ("a poorly rated",),
            "average": ("a fairly rated",),
            "high": ("a highly rated", "a well-loved"),
        },
        "rating": {
            "low": ("a low customer rating", "poor reviews"),
            "average": ("an average customer rating", "mixed reviews"),
            "high": ("a high customer rating", "excellent reviews"),
        },
        "customers": {
            "low": ("do not like it", "rate it poorly"),
            "average": ("find it average", "have mixed feelings about it"),
            "high": ("love it", "rate it highly"),
        },
    },
    "area": {
        "place": {
            "city centre": ("in the city centre", "in the centre of town"),
            "riverside": ("by the river", "in the riverside area"),
            "suburbs": ("in the suburbs", "outside the city"),
        },
    },
    "near": {
        "close": {mark: (f"near {mark}", f"next to {mark}", f"not far from {mark}") for mark in LANDMARKS},
        "landmark": _same(LANDMARKS),
    },
    "family friendly": {
        "a_family": {"yes": ("a family-friendly", "a child-friendly"), "no": ("an adults-only",)},
        "family": {
            "yes": ("welcomes families", "is good for children", "is family-friendly"),
            "no": ("does not welcome children", "is for adults only", "is not family-friendly"),
        },
        "guests": {
            "yes": ("Families are welcome", "Children are welcome", "Bring the whole family"),
            "no": ("Children are not allowed", "Leave the children at home"),
        },
    },
}
# What a sentence is made of: <part> stands for any of these. A capital first letter capitalises what takes its place.
PARTS = {
    "kind": (
        "{a_type}", "{a_food} {type}", "{a_price} {type}", "{a_family} {type}", "{a_rated} {type}",
        "{a_price} {food} {type}",
    ),
    "where": ("{place}", "{close}"),
    "with": ("with {rating}", "with {cost}", "serving {dishes}", "that serves {dishes}", "that {family}"),
    "does": ("serves {dishes}", "{costs}", "{family}", "has {rating}", "has {cost}"),
}  # fmt: skip
FIRST_FORMS = (
    "{name} is <kind> <where>.",
    "{name} is <kind> <with>.",
    "{name} is <kind> <where> <with>.",
    "{name}, <kind> <where>, <does>.",
    "{name}, {rated}, is <kind> <where>.",
    "{name} <does> and is <kind> <where>.",
    "<Where> there is <kind> called {name}.",
    "<Where>, {name} is <kind> <with>.",
    "<Where> you will find {name}, <kind>.",
    "<Where> you can eat {dishes} at {name}, <kind>.",
    "<Kind> <where> is {name}.",
    "<Kind> <with> is {name} <where>.",
    "If you like {dishes}, visit {name}, <kind> <where>.",
    "For {dishes} try {name}, <kind> <where>.",
    "With {rating}, {name} is <kind> <where>.",
    "There is <kind> <where> called {name}.",
    "You can find <kind> named {name} <where>.",
    "Although {name} has {rating}, this {type} {costs}.",
)
SECOND_FORMS = (
    "It <does>.",
    "It <does> and <does>.",
    "It is <where>.",
    "It is {rated} and {costs}.",
    "Customers {customers}.",
    "Customers {customers} and it <does>.",
    "{Guests}.",
    "{Guests} and the food is {food}.",
    "The food is {food} and it <does>.",
    "Look for it <where>.",
    "You will see {landmark} from the window.",
    "Expect {cost} and {dishes}.",
)
SECOND_SHARE = 0.2  # of the texts have a second sentence
SLOTS = {slot: (attribute, table) for attribute, slots in WORDINGS.items() for slot, table in slots.items()}
ATTRIBUTES = tuple(WORDINGS)
SLOT_PATTERN = re.compile(r"\{(\w+)\}")
PART_PATTERN = re.compile(r"<(\w+)>")


def _slot(name: str):
    """Attribute, table of phrases and whether to capitalise, for a slot as it is written in a frame."""
    attribute, table = SLOTS[name[0].lower() + name[1:]]
    return attribute, table, name[0].isupper()


def _capitalised(phrase: str) -> str:
    return phrase[0].upper() + phrase[1:]


@cache
def attributes_of(frame: str) -> frozenset[str]:
    """The attributes that a frame speaks of."""
    return frozenset(_slot(name)[0] for name in SLOT_PATTERN.findall(frame))


def frames_of(form: str) -> tuple[str, ...]:
    """The frames of a form: every choice of its parts that speaks of no attribute twice."""
    part = PART_PATTERN.search(form)
    if part is None:
        return (form,) if len(SLOT_PATTERN.findall(form)) == len(attributes_of(form)) else ()
    choices = PARTS[part[1].lower()]
    if part[1][0].isupper():
        choices = tuple(re.sub(r"\w", lambda letter: letter[0].upper(), choice, count=1) for choice in choices)
    return tuple(frame for choice in choices for frame in frames_of(form.replace(part[0], choice, 1)))


FIRST = {form: frames_of(form) for form in FIRST_FORMS}
SECOND = {form: frames_of(form) for form in SECOND_FORMS}


@cache
def seconds_after(said: frozenset[str]) -> tuple[str, ...]:
    """The second sentences that repeat none of the attributes `said`; each form as often as any other."""
    free = [[frame for frame in frames if not attributes_of(frame) & said] for frames in SECOND.values()]
    most = max(map(len, free))
    return tuple(frame for frames in free if frames for frame in (frames * most)[:most])


def write(rng: random.Random) -> tuple[str, str]:
    """Draws one example: its meaning (`attribute : value | ...`) and its text."""
    frames = [rng.choice(FIRST[rng.choice(FIRST_FORMS)])]
    if rng.random() < SECOND_SHARE:
        frames.append(rng.choice(seconds_after(attributes_of(frames[0]))))
    meaning = {}

    def word(match: re.Match) -> str:
        attribute, table, capital = _slot(match[1])
        meaning[attribute] = rng.choice(list(table))
        phrase = rng.choice(table[meaning[attribute]])
        return _capitalised(phrase) if capital else phrase

    text = " ".join(SLOT_PATTERN.sub(word, frame) for frame in frames)
    return " | ".join(f"{name} : {meaning[name]}" for name in ATTRIBUTES if name in meaning), text


@cache
def _compiled(frame: str) -> re.Pattern:
    """The frame as a regular expression with one group per slot; longer phrases first."""

    def alternatives(name: str) -> str:
        _, table, capital = _slot(name)
        phrases = sorted({p for phrases in table.values() for p in phrases}, key=lambda p: (-len(p), p))
        return "|".join(re.escape(_capitalised(p) if capital else p) for p in phrases)

    pieces = SLOT_PATTERN.split(frame)  # text, slot, text, slot, ..., text
    pattern = "".join(f"({alternatives(p)})" if i % 2 else re.escape(p) for i, p in enumerate(pieces))
    return re.compile(pattern)


def _meaning_of(frame: str, match: re.Match) -> dict[str, str]:
    meaning = {}
    for name, phrase in zip(SLOT_PATTERN.findall(frame), match.groups(), strict=True):
        attribute, table, capital = _slot(name)
        meaning[attribute] = next(
            value for value, phrases in table.items() if phrase in [_capitalised(p) if capital else p for p in phrases]
        )
    return meaning


def parse(text: str) -> dict[str, str] | None:
    """The meaning of a text (attribute -> value), or None where the grammar could not have written it."""
    for first in chain.from_iterable(FIRST.values()):
        start = _compiled(first).match(text)
        if start is None:
            continue
        meaning, rest = _meaning_of(first, start), text[start.end() :]
        if not rest:
            return meaning
        for second in chain.from_iterable(SECOND.values()):
            end = _compiled(second).fullmatch(rest[1:]) if rest[0] == " " else None
            if end and not attributes_of(second) & attributes_of(first):
                return meaning | _meaning_of(second, end)
    return None


def acceptance(texts: list[str]) -> float:
    """Share of `texts` that the grammar could have written, in [0, 1]."""
    return sum(parse(text) is not None for text in texts) / len(texts)
