"""Which words of the lexicon a world speaks, and in which sentences: all of them, or the few of the small
world."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from muomni.data.world import lexicon
from muomni.data.world.lexicon import HELD_OUT_PAIRS, NUMBERS, grammatical, plural, words

# Slots: S size, C colour, H shape, P plural, N number, M number from two to ten, L place, R relation, A
# answer yes or no.
TEMPLATES = (
    "the S C H is R the C H",
    "the S C H is R the S C H",
    "the C H is R the S H",
    "the H is R the H",
    "the H is C",
    "the H is S",
    "the H is at the L",
    "the C H is at the L",
    "a S C H is at the L",
    "a S C H",
    "a C H",
    "a S H at the L",
    "a C H and a S H",
    "there are M C shapes",
    "there are M S P",
    "there are M P",
    "there are M C P",
    "there is one C H",
    "there is a S H at the L",
    "there is nothing at the L",
    "it is N",
    "it is C",
    "it is S",
    "it is at the L",
    "it is R the C H",
    "it is a C H",
    "A it is C",
    "A it is S",
    "A there is a C H",
    "the number is N",
    "the number N in C",
    "the word is H",
    "i see M P",
    "i see M C P",
    "i see a S C H",
    "at the L",
    "what colour is the H",
    "what colour is the shape at the L",
    "what shape is at the L",
    "what shape is C",
    "what size is the H",
    "what is at the L",
    "how many C shapes are there",
    "how many P are there",
    "how many S shapes are there",
    "how many shapes are there",
    "where is the H",
    "where is the C H",
    "is the H C",
    "is the H S",
    "is the H at the L",
    "is the H R the H",
    "is there a C H",
    "what number is it",
    "what does it say",
    "what number did you hear",
)
_FEW_TEMPLATES = (
    "the H is C",
    "the H is at the L",
    "the C H is at the L",
    "the H at the L is C",
    "the shape at the L is C",
    "a C H at the L",
    "a C H and a C H",
    "it is C",
    "it is N",
    "it is a C H",
    "it is a C H at the L",
    "at the L",
    "the number is N",
    "the number N is C",
    "what colour is the H",
    "what shape is at the L",
    "where is the H",
    "is the H C",
    "is the C H at the L",
    "what number did you hear",
)


@dataclass(frozen=True)
class Vocabulary:
    """The attributes that objects may have, and the templates of what is said, written and asked about them.

    A world of one size never says it. Without relations nothing is said of how objects lie to each other;
    `tells_counts` is whether captions and documents say how many objects there are. What is held out is the
    same in every vocabulary (lexicon.is_held_out).
    """

    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    sizes: tuple[str, ...]
    places: tuple[str, ...]
    relations: tuple[str, ...]
    templates: tuple[str, ...]
    tells_counts: bool

    @property
    def says_sizes(self) -> bool:
        """Whether sizes are told apart."""
        return len(self.sizes) > 1

    @cached_property
    def fillers(self) -> dict[str, tuple[str, ...]]:
        """The words or phrases that a template's slot takes."""
        return {
            "S": self.sizes,
            "C": self.colours,
            "H": self.shapes,
            "P": tuple(plural(shape) for shape in self.shapes),
            "N": NUMBERS,
            "M": NUMBERS[2:],
            "L": self.places,
            "R": self.relations,
            "A": ("yes", "no"),
        }

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Every word that it says, sorted: those of its templates, and yes and no, which answer."""
        words_said = {
            word
            for template in self.templates
            for part in self.alternatives(template)
            for word in words(part)
        }
        words_said |= {word for colour in self.colours for word in words(grammatical(f"a {colour}"))}
        return tuple(sorted(words_said | {"yes", "no"}))

    @cached_property
    def seen_pairs(self) -> tuple[tuple[str, str], ...]:
        """(colour, shape) pairs of training."""
        return tuple(
            (colour, shape)
            for colour in self.colours
            for shape in self.shapes
            if (colour, shape) not in HELD_OUT_PAIRS
        )

    @cached_property
    def held_out_pairs(self) -> tuple[tuple[str, str], ...]:
        """(colour, shape) pairs that training never shows or says."""
        return tuple(
            sorted(pair for pair in HELD_OUT_PAIRS if pair[0] in self.colours and pair[1] in self.shapes)
        )

    def alternatives(self, template: str) -> list[str]:
        """The fixed words of a template and all fillers of its slots, each lower case."""
        return [choice for token in template.split(" ") for choice in self.fillers.get(token, (token,))]

    def asks(self, question: str) -> bool:
        """Whether a question has one of its templates."""
        return self._form.fullmatch(question.removesuffix("?")) is not None

    @cached_property
    def _form(self) -> re.Pattern[str]:
        def token(one: str) -> str:
            return f"(?:{'|'.join(self.fillers[one])})" if one in self.fillers else one

        return re.compile(
            "|".join(" ".join(token(one) for one in template.split(" ")) for template in self.templates)
        )


WHOLE = Vocabulary(
    lexicon.COLOURS,
    lexicon.SHAPES,
    lexicon.SIZES,
    lexicon.PLACES,
    lexicon.RELATIONS,
    templates=TEMPLATES,
    tells_counts=True,
)
# Six colours and four shapes that differ most, of which four pairs are held out, one a shape; all objects are
# big.
FEW = Vocabulary(
    ("red", "green", "blue", "yellow", "black", "white"),
    ("star", "heart", "cross", "ring"),
    ("big",),
    ("left", "right", "top", "bottom"),
    (),
    templates=_FEW_TEMPLATES,
    tells_counts=False,
)
