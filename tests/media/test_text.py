from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muomni.media.text import clean, number_words, spoken

ANY_TEXT = st.text(st.characters(), max_size=60)


@given(ANY_TEXT)
def test_clean_is_idempotent_nfc_and_one_line(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert "  " not in once
    assert once == once.strip()
    once.encode()  # no surrogate is left that would break a file


@given(ANY_TEXT)
def test_spoken_is_idempotent_without_digits_or_capitals(text: str) -> None:
    once = spoken(text)
    assert spoken(once) == once
    assert not any(character.isdecimal() for character in once)
    assert clean(once) == once
    assert all(character in " '" or unicodedata.category(character)[0] in "LMN" for character in once)


def test_clean_examples() -> None:
    assert clean(" a\t\tb\r\nc ") == "a b c"
    assert clean("e\u0301") == "\u00e9"
    assert clean("a\x00\x07b\ufeff\u202e") == "ab"
    assert clean("\U0001f469\u200d\U0001f4bb") == "\U0001f469\u200d\U0001f4bb"
    assert clean("") == ""


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("It is 7.", "it is seven"),
        ("42 CATS, 100 dogs!", "forty two cats one hundred dogs"),
        ("101", "one zero one"),
        ("007", "zero zero seven"),
        ("1,000", "one zero zero zero"),
        ("3.5 kg", "three point five kg"),
        ("3.14", "three point one four"),
        ("0.05 or 10.50", "zero point zero five or ten point five zero"),
        ("1,234.56.", "one two three four point five six"),
        ("-5, (-0.5) and .5", "minus five minus zero point five and point five"),
        ("b-2, 5-6, red - 7", "b two five six red seven"),
        ("5%, 12.5 %", "five percent twelve point five percent"),
        (
            "the 1st, 2nd, 3rd, 12th, 20th, 42nd and 100th",
            "the first second third twelfth twentieth forty second and one hundredth",
        ),
        ("1.2.3", "one point two point three"),
        ("٣.١٤", "three point one four"),
        ("a red-hot circle", "a red hot circle"),
        ("don’t 'quote' me", "don't quote me"),
        ("room12b", "room twelve b"),
        ("٣", "three"),
        ("हिन्दी", "हिन्दी"),
        ("...", ""),
    ],
)
def test_spoken_examples(written: str, said: str) -> None:
    assert spoken(written) == said


def test_the_hundred_and_one_numbers_differ() -> None:
    words = [number_words(str(value)) for value in range(101)]
    assert len(set(words)) == 101
    assert words[0] == "zero"
    assert words[13] == "thirteen"
    assert words[20] == "twenty"
    assert words[99] == "ninety nine"
