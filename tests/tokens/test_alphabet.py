"""CTC symbols: 99 of them, collapse, and the frames that a text needs."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muomni.errors import TokenRangeError
from muomni.tokens.alphabet import Alphabet, collapse, min_frames

ALPHABET = Alphabet()
WRITABLE = "".join(map(chr, range(32, 127))) + "\n\t"


def test_the_99_symbols():
    assert len(ALPHABET) == 99
    assert ALPHABET.encode(" ~\n\té") == [1, 95, 96, 97, 98]
    assert (ALPHABET.blank, ALPHABET.unk) == (0, 98)
    assert ALPHABET.unknown("naïve café") == 2


@given(st.text(alphabet=WRITABLE))
def test_what_it_can_write_comes_back(text):
    assert ALPHABET.decode(ALPHABET.encode(text)) == text
    assert ALPHABET.unknown(text) == 0


def test_unknown_is_visible_and_blank_is_not():
    assert ALPHABET.decode([0, 34, 0, 98]) == "A\ufffd"
    for bad in (-1, 99):
        with pytest.raises(TokenRangeError):
            ALPHABET.decode([bad])


@given(st.lists(st.integers(1, 3), max_size=4))
def test_min_frames_is_the_shortest_path_that_collapses_to_the_text(ids):
    """Against brute force: no shorter path over {blank, 1, 2, 3} writes the symbols, one of this length
    does."""
    frames = min_frames(ids)
    paths = (p for n in range(min(frames, 6) + 1) for p in itertools.product(range(4), repeat=n))
    shortest = next((len(p) for p in paths if collapse(p) == ids), None)
    assert shortest == frames if frames <= 6 else shortest is None


@pytest.mark.parametrize(
    ("path", "written"), [([], []), ([0, 0], []), ([5, 5, 0, 5], [5, 5]), ([1, 1, 2, 2, 0, 0, 2], [1, 2, 2])]
)
def test_collapse(path, written):
    assert collapse(path) == written
