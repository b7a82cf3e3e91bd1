"""The grammar of the demo corpus: short restaurant descriptions, written and recognised by one definition.

A text is one *first* sentence, or a first and a *second* sentence that share no attribute. A sentence is a frame with
slots; a slot names an attribute and a way to word it; a table gives the phrases for each value of the attribute. The
same tables are read in two directions: `write` draws a text with its meaning, `parse` gives the meaning back.
"""

from __future__ import annotations

import random
import re
from functools import cache

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
# A slot with a capital first letter is worded the same, with its phrase capitalised.
FIRST = (
    "{name} is {a_type} {place}.",
    "{name} is {a_food} {type} {place}.",
    "{name} is {a_price} {type} {close}.",
    "{name} is {a_family} {type} that serves {dishes}.",
    "{name} is {a_type} {close} with {rating}.",
    "{name} is {a_type} serving {dishes} {place}.",
    "{name} is {a_price} {food} {type} {place}.",
    "{name} serves {dishes} and is {a_type} {close}.",
    "{name}, {a_food} {type} {close}, {costs}.",
    "{name}, {a_type} {place}, {family}.",
    "{name}, {rated}, is {a_type} that serves {dishes}.",
    "{Place}, {name} is {a_type} with {cost}.",
    "{Place} there is {a_food} {type} called {name}.",
    "{Place} you will find {name}, {a_price} {type}.",
    "{Close} you can eat {dishes} at {name}, {a_type} {place}.",
    "{Close} there is {a_family} {type} named {name}.",
    "{A_price} {type} {place} is {name}.",
    "{A_food} {type} with {cost} is {name} {close}.",
    "{A_type} that {family} is {name} {place}.",
    "For {dishes} try {name}, {a_type} {close}.",
    "If you like {dishes}, visit {name}, {a_rated} {type}.",
    "With {rating}, {name} is {a_type} {close}.",
    "You can find {a_type} named {name} {close}.",
    "There is {a_family} {type} {place} called {name}.",
    "Although {name} has {rating}, this {type} {costs}.",
)
SECOND = (
    "It serves {dishes}.",
    "It is {place}.",
    "It is {close}.",
    "It {costs}.",
    "It {family}.",
    "It has {rating}.",
    "It is {rated} and {costs}.",
    "It {family} and has {cost}.",
    "It serves {dishes} and has {rating}.",
    "Customers {customers}.",
    "Customers {customers} and it {costs}.",
    "{Guests}.",
    "{Guests} and the food is {food}.",
    "Look for it {place}.",
    "You will see {landmark} from the window.",
    "Expect {cost} and {dishes}.",
    "The food is {food} and it {costs}.",
)
SECOND_SHARE = 0.35  # of the texts have a second sentence
SLOTS = {slot: (attribute, table) for attribute, slots in WORDINGS.items() for slot, table in slots.items()}
ATTRIBUTES = tuple(WORDINGS)
SLOT_PATTERN = re.compile(r"\{(\w+)\}")


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


def write(rng: random.Random) -> tuple[str, str]:
    """Draws one example: its meaning (`attribute : value | ...`) and its text."""
    frames = [rng.choice(FIRST)]
    if rng.random() < SECOND_SHARE:
        frames.append(rng.choice([frame for frame in SECOND if not attributes_of(frame) & attributes_of(frames[0])]))
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
    for first in FIRST:
        start = _compiled(first).match(text)
        if start is None:
            continue
        meaning, rest = _meaning_of(first, start), text[start.end() :]
        if not rest:
            return meaning
        for second in SECOND:
            end = _compiled(second).fullmatch(rest[1:]) if rest[0] == " " else None
            if end and not attributes_of(second) & attributes_of(first):
                return meaning | _meaning_of(second, end)
    return None


def acceptance(texts: list[str]) -> float:
    """Share of `texts` that the grammar could have written, in [0, 1]."""
    return sum(parse(text) is not None for text in texts) / len(texts)
