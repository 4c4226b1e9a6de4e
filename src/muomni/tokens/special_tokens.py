"""Special tokens of one vocabulary: ids that mark turns, media and documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Special:
    """The special ids of our own vocabularies; the same in every one, always first."""

    pad: int = 0  # fills a row up to the batch's length; never in loss or attention
    bos: int = 1  # opens a conversation
    eos: int = 2  # closes a text document
    unk: int = 3  # reserved: bytes leave nothing unknown
    system: int = 4  # opens a turn that sets the rules
    user: int = 5  # opens a turn of the human
    assistant: int = 6  # opens a turn of the model: what follows is learned and generated
    end: int = 7  # closes a turn; generation stops here
    image: int = 8  # opens an image; any X, X_end and X_pad are the marks of medium X
    image_end: int = 9  # closes an image
    image_pad: int = 10  # a position that holds an image feature
    audio: int = 11  # opens a sound
    audio_end: int = 12  # closes a sound
    audio_pad: int = 13  # a position that holds a sound feature
    speech: int = 14  # the assistant speaks here

    @property
    def names(self) -> list[str]:
        """The spelling of each id, in order, as stored in tokenizer.json."""
        return [f"<|{field.name}|>" for field in fields(self)]


SPECIAL = Special()
PAD = SPECIAL.pad  # rows are padded with it whatever the vocabulary: masks keep it out of loss and attention


@dataclass(frozen=True)
class MediaTokens:
    """How a picture or a sound stands among the words: its mark, a pad for each of its tokens, its end."""

    start: int
    pad: int
    end: int


@dataclass(frozen=True)
class SpecialTokens:
    """The marks of one vocabulary.

    opening     ids before a conversation's first turn
    headers     ids that open a turn, by role
    end         closes a turn, and is learned of the assistant's; after: what follows it, never learned
    bos, eos    around a text document
    media       by modality, those that the vocabulary has marks for
    speech      the assistant speaks here; None where it can't
    words_from, words_to   the ids of plain text begin and end here; None: they go on to the end of the
                           vocabulary
    spelled     ids beyond these that plain text spells all the same: <think> and others that Qwen3 adds, but
                not as special
    """

    opening: tuple[int, ...]
    headers: Mapping[str, tuple[int, ...]]
    end: int
    after: tuple[int, ...]
    bos: int
    eos: int
    media: Mapping[str, MediaTokens]
    speech: int | None
    words_from: int
    words_to: int | None
    spelled: frozenset[int] = frozenset()

    @property
    def stops(self) -> tuple[int, int]:
        """Where generation ends."""
        return self.end, self.eos

    @property
    def pads(self) -> tuple[int, ...]:
        """The ids of positions that hold media."""
        return tuple(medium.pad for medium in self.media.values())

    def is_word(self, token: int) -> bool:
        """Whether an id is plain text."""
        return token in self.spelled or (
            self.words_from <= token and (self.words_to is None or token < self.words_to)
        )


OWN = SpecialTokens(
    opening=(SPECIAL.bos,),
    headers={"system": (SPECIAL.system,), "user": (SPECIAL.user,), "assistant": (SPECIAL.assistant,)},
    end=SPECIAL.end,
    after=(),
    bos=SPECIAL.bos,
    eos=SPECIAL.eos,
    media={
        kind: MediaTokens(
            getattr(SPECIAL, kind), getattr(SPECIAL, f"{kind}_pad"), getattr(SPECIAL, f"{kind}_end")
        )
        for kind in (field.name for field in fields(SPECIAL))
        if hasattr(SPECIAL, f"{kind}_pad")
    },
    speech=SPECIAL.speech,
    words_from=len(SPECIAL.names),
    words_to=None,
)
