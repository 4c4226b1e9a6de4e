"""Text as the models read it (`clean`) and as a voice says it (`spoken`)."""

from __future__ import annotations

import re
import unicodedata

ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = [
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}
JOINERS = "\u200c\u200d"  # invisible, but emoji and several scripts need them


def clean(text: str) -> str:
    """NFC text on one line: white space collapsed, control, surrogate and invisible format characters
    removed. Idempotent."""
    visible = "".join(character for character in text if _is_visible(character))
    return " ".join(unicodedata.normalize("NFC", visible).split())


def spoken(text: str) -> str:
    """Lower-case words as they are said: 0..100 as number words, longer numbers and decimals digit by digit,
    no punctuation. Idempotent.

    An apostrophe within a word stays (don't), for it is heard; hyphens split words, or are the minus of a
    number.
    """
    lowered = clean(text).lower().replace("’", "'")
    lowered = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", lowered)
    lowered = re.sub(
        r"(?:(?<=\d)|(?<![^\s(+\-−$€£]))\.(\d+)", lambda found: f" point {' '.join(found[1])} ", lowered
    )
    lowered = re.sub(r"(?<![^\s(])[-−](?=\d| point )", " minus ", lowered)
    lowered = re.sub(r"(?<=\d)\s*%", " percent ", lowered)
    lowered = re.sub(
        r"(?<!\d)(100|\d{1,2})(?:st|nd|rd|th)\b", lambda found: f" {ordinal_words(found[1])} ", lowered
    )
    lowered = re.sub(r"\d+", lambda found: f" {number_words(found.group())} ", lowered)
    kept = "".join(character if _is_spoken(character) else " " for character in lowered)
    words = (word.strip("'") for word in kept.split())
    return clean(" ".join(word for word in words if word))


def ordinal_words(digits: str) -> str:
    """A number up to 100 as a place in an order: 1 -> first, 20 -> twentieth, 42 -> forty second."""
    *front, last = number_words(digits).split()
    return " ".join([*front, ORDINALS.get(last, f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")])


def number_words(digits: str) -> str:
    """Decimal digits as words: 42 -> forty two, 100 -> one hundred; above that, or with leading zeros, digit
    by digit."""
    value = int(digits) if len(digits) <= 3 else 101
    if value > 100 or len(digits) > len(str(value)):
        return " ".join(ONES[int(digit)] for digit in digits)
    if value == 100:
        return "one hundred"
    if value < 10:
        return ONES[value]
    if value < 20:
        return TEENS[value - 10]
    tens = TENS[value // 10 - 2]
    return tens if value % 10 == 0 else f"{tens} {ONES[value % 10]}"


def _is_visible(character: str) -> bool:
    return (
        character.isspace()
        or character in JOINERS
        or unicodedata.category(character) not in {"Cc", "Cf", "Cs"}
    )


def _is_spoken(character: str) -> bool:
    return character == "'" or unicodedata.category(character)[0] in "LMN"
