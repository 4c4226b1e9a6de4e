"""Text <-> CTC symbols: the 99 things that the hearing part can write."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from muomni.errors import TokenRangeError

BLANK = 0  # nothing is written here, and it parts two equal symbols
ASCII_FIRST, ASCII_LAST = 32, 126  # printable ASCII is 1..95
NEWLINE = ASCII_LAST - ASCII_FIRST + 2
TAB = NEWLINE + 1
UNK = TAB + 1
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Alphabet:
    """blank 0, ASCII 32-126 as 1..95, newline 96, tab 97, unk 98. Source: SPEC M-B (the original's 98 is off
    by one)."""

    blank = BLANK
    unk = UNK

    def __init__(self) -> None:
        self.characters = [*map(chr, range(ASCII_FIRST, ASCII_LAST + 1)), "\n", "\t"]
        self._ids = {character: i for i, character in enumerate(self.characters, start=1)}

    def __len__(self) -> int:
        return len(self.characters) + 2  # and blank, unk

    def encode(self, text: str) -> list[int]:
        """One symbol a character; what is not in the alphabet becomes `unk` (see `unknown`)."""
        return [self._ids.get(character, UNK) for character in text]

    def unknown(self, text: str) -> int:
        """How many characters of the text the alphabet can't write."""
        return sum(character not in self._ids for character in text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of symbols, blanks left out, unk as U+FFFD; repeats are kept (see `collapse`).

        Raises  TokenRangeError on an id outside of the alphabet.
        """
        out: list[str] = []
        for i in ids:
            if not 0 <= i < len(self):
                raise TokenRangeError(f"alphabet: expected symbols in 0..{len(self) - 1}, got {i}")
            if i == UNK:
                out.append(REPLACEMENT)
            elif i != BLANK:
                out.append(self.characters[i - 1])
        return "".join(out)


def collapse(path: Sequence[int]) -> list[int]:
    """The symbols that a frame-by-frame CTC path writes: runs become one, then blanks go."""
    return [symbol for i, symbol in enumerate(path) if symbol != BLANK and (i == 0 or path[i - 1] != symbol)]


def min_frames(ids: Sequence[int]) -> int:
    """The fewest frames in which CTC can write these symbols: one each, and a blank between two equal
    neighbours."""
    return len(ids) + sum(a == b for a, b in pairwise(ids))
