"""Conversations with speech as rows of words and codes: what stage voice learns from, and what it is asked
with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni.data.sample import AudioPart, Message, Sample
from muomni.data.speaker_tags import tagged
from muomni.errors import DataError
from muomni.tokens import grid
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.chat import IGNORE

CodesOf = Callable[[AudioPart], Tensor]
"""A sound -> its codes (K, F) int64."""


@dataclass(frozen=True)
class VoiceTokens:
    """The ids of a vocabulary that stand around sounds, and the symbols of a stream of codes.

    heard, said     open a sound of the system or user, and one of the assistant
    close           closes both
    code, last      a step of codes; the K - 1 last steps of a sound, in which books end
    end, more       close a turn; one that the assistant's next turn goes on
    start_of_stream, end_of_stream   of each book, beside its codes
    """

    heard: int
    said: int
    close: int
    code: int
    last: int
    end: int
    more: int
    pad: int
    start_of_stream: int
    end_of_stream: int
    books: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, start_of_stream: int, end_of_stream: int, books: int) -> VoiceTokens:
        """By the names that Higgs Audio v2 gives them.

        Raises  CheckpointError where one is missing.
        """
        names = {
            "heard": "<|audio_bos|>",
            "said": "<|audio_out_bos|>",
            "close": "<|audio_eos|>",
            "code": "<|AUDIO_OUT|>",
            "last": "<|reserved_special_token_6|>",
            "end": "<|eot_id|>",
            "more": "<|eom_id|>",
            "pad": "<|end_of_text|>",
        }
        ids = {field: tokenizer.special(name) for field, name in names.items()}
        return cls(**ids, start_of_stream=start_of_stream, end_of_stream=end_of_stream, books=books)


@dataclass(frozen=True)
class Sound:
    """Where a sound's steps stand in a row; frames of code are fewer than steps."""

    start: int
    steps: int
    frames: int
    is_taught: bool


@dataclass(frozen=True)
class VoiceRow:
    """A conversation as positions.

    ids, labels               of words; a placeholder where codes stand; -100 where no word is learned
    codes_KT, code_labels_KT  int64; -1 and -100 where no code stands, or none is learned
    """

    sample_id: str
    ids: list[int]
    labels: list[int]
    codes_KT: Tensor
    code_labels_KT: Tensor
    sounds: tuple[Sound, ...]

    @property
    def frames(self) -> int:
        """Code frames of all its sounds."""
        return sum(sound.frames for sound in self.sounds)


def first_taught(sample: Sample) -> int:
    """The number of the message from which on the assistant's turns are learned.

    Raises  DataError (bad_row) where a conversation can't be learned from, and why.
    """
    start = sample.extra.get("start_index")
    if not sample.messages:
        raise DataError("bad_row", f"{sample.id}: expected messages, got a text")
    if start is not None and (isinstance(start, bool) or not isinstance(start, int) or start < 0):
        raise DataError(
            "bad_row", f"{sample.id}: start_index: expected a whole number from 0 or null, got {start!r:.40}"
        )
    if sample.images:
        raise DataError("bad_row", f"{sample.id}: expected words and sounds, got a picture")
    if not any(message.role == "assistant" for message in sample.messages[start or 0 :]):
        raise DataError(
            "bad_row",
            f"{sample.id}: nothing to learn: no assistant's turn from message {start or 0} on of {len(sample.messages)}",
            hint="start_index counts all messages from 0",
        )
    return start or 0


def asks_for_whisper(sample: Sample) -> str:
    """The key by which a row asks for Whisper conditioning (a feature file, a switch that is on), "" where none
    does. Rows are rendered without: references are heard by their codes alone."""
    misc = sample.extra.get("misc")
    for key, value in {**(misc if isinstance(misc, dict) else {}), **sample.extra}.items():
        name = key.casefold().replace("-", "_")
        if value and ("whisper" in name or name in ("audio_features", "input_features")):
            return str(key)
    return ""


class _Builder:
    """A row as it grows."""

    def __init__(self, tokens: VoiceTokens) -> None:
        self.tokens = tokens
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.sounds: list[Sound] = []
        self.grids: list[Tensor] = []

    def words(self, ids: list[int] | tuple[int, ...], *, is_taught: bool) -> None:
        self.ids += ids
        self.labels += ids if is_taught else [IGNORE] * len(ids)

    def sound(self, codes_KF: Tensor, *, is_taught: bool) -> None:
        tokens = self.tokens
        if codes_KF.ndim != 2 or codes_KF.shape[0] != tokens.books:
            raise DataError(
                "bad_codes", f"expected codes of {tokens.books} books, got {tuple(codes_KF.shape)}"
            )
        grid_KS = grid.framed(codes_KF[None], tokens.start_of_stream, tokens.end_of_stream)[0]
        steps, lags = grid_KS.shape[1], tokens.books - 1
        self.sounds.append(Sound(len(self.ids), steps, codes_KF.shape[1], is_taught))
        self.grids.append(grid_KS)
        self.words([tokens.code] * (steps - lags) + [tokens.last] * lags, is_taught=False)

    def row(self, sample_id: str) -> VoiceRow:
        tokens, length = self.tokens, len(self.ids)
        codes_KT = torch.full((tokens.books, length), -1)
        labels_KT = torch.full((tokens.books, length), IGNORE)
        for sound, grid_KS in zip(self.sounds, self.grids, strict=True):
            here = slice(sound.start, sound.start + sound.steps)
            codes_KT[:, here] = grid_KS
            if sound.is_taught:
                labels_KT[:, here] = grid.framed_labels(
                    grid_KS[None], tokens.start_of_stream, tokens.end_of_stream, IGNORE
                )[0]
        return VoiceRow(sample_id, self.ids, self.labels, codes_KT, labels_KT, tuple(self.sounds))


def render(sample: Sample, tokenizer: Tokenizer, tokens: VoiceTokens, codes_of: CodesOf) -> VoiceRow:
    """A conversation as a row; its words and labels are made part by part, so that no text can spell a mark.

    Learned are the assistant's words, the mark that opens its sounds, their codes and the end of each book,
    the mark that closes them, and the end of its turns, from `start_index` on; headers never.

    Names of speakers become the prompt's tags (`speaker_tags.tagged`).

    Raises  DataError as `first_taught`, `tagged` and `codes_of`.
    Source  SPEC H1, H2.
    """
    out = _Builder(tokens)
    sample = tagged(sample)
    _turns(out, sample.messages, tokenizer, codes_of, first=first_taught(sample))
    return out.row(sample.id)


def prompt(
    sample: Sample, tokenizer: Tokenizer, tokens: VoiceTokens, codes_of: CodesOf, said: str = ""
) -> VoiceRow:
    """The row of a conversation up to where the assistant's codes begin: what `render` makes of the same
    conversation up to there.

    Takes   said: words of the assistant's turn before its sound.
    """
    out = _Builder(tokens)
    _turns(out, tagged(sample).messages, tokenizer, codes_of, then="assistant")
    header = tokenizer.special_tokens.headers["assistant"]
    out.words([*header, *tokenizer.encode(said), tokens.said], is_taught=False)
    return out.row(sample.id)


def _turns(
    out: _Builder,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    codes_of: CodesOf,
    *,
    first: int | None = None,
    then: str = "",
) -> None:
    """Whole turns; those of the assistant's are learned from message `first` on. `then`: whose turn follows
    them."""
    out.words(tokenizer.special_tokens.opening, is_taught=False)
    roles = [*(message.role for message in messages), then]
    for number, message in enumerate(messages):
        is_said = message.role == "assistant"
        is_taught = is_said and first is not None and number >= first
        _turn(out, message, tokenizer, codes_of, is_taught=is_taught)
        goes_on = is_said and roles[number + 1] == "assistant"
        out.words([out.tokens.more if goes_on else out.tokens.end], is_taught=is_taught)


def _turn(
    out: _Builder, message: Message, tokenizer: Tokenizer, codes_of: CodesOf, *, is_taught: bool
) -> None:
    """A turn without its end."""
    tokens = out.tokens
    out.words(tokenizer.special_tokens.headers[message.role], is_taught=False)
    for part in message.parts:
        if part.type == "text":
            out.words(tokenizer.encode(part.text), is_taught=is_taught)
        else:
            assert isinstance(part, AudioPart)
            opens = tokens.said if message.role == "assistant" else tokens.heard
            out.words([opens], is_taught=is_taught)
            out.sound(codes_of(part), is_taught=is_taught)
            out.words([tokens.close], is_taught=is_taught)


class VoiceRows:
    """Conversations of a voice's recordings: a dataset of `VoiceRow`s.

    codes_of  gives the codes of each sound, or raises why there are none
    most      positions of the longest row; longer ones are left out and counted
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tokenizer: Tokenizer,
        tokens: VoiceTokens,
        codes_of: CodesOf,
        most: int,
    ) -> None:
        self.samples, self.tokenizer, self.tokens = samples, tokenizer, tokens
        self.codes_of, self.most = codes_of, most

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """The sample's id."""
        return self.samples[index].id

    def item(self, index: int, rng: np.random.Generator) -> VoiceRow:
        """One conversation.

        Raises  DataError: bad_row (`render`), too_long, no_target, and what `codes_of` raises.
        """
        return self.row(self.samples[index])

    def row(self, sample: Sample) -> VoiceRow:
        """The row of any sample, as `item`."""
        row = render(sample, self.tokenizer, self.tokens, self.codes_of)
        if len(row.ids) > self.most:
            raise DataError(
                "too_long",
                f"{sample.id}: {len(row.ids)} positions, at most {self.most} fit",
                hint="shorter sounds, or fewer of them: each second takes 25 positions",
            )
        if not any(sound.is_taught for sound in row.sounds):
            raise DataError(
                "no_target", f"{sample.id}: no sound of the assistant's to learn from start_index on"
            )
        return row

    def lengths(self) -> NDArray[np.int32]:
        """About how many positions each row has, (len,): its code frames, and a word for four letters."""
        return np.array([self._length(sample) for sample in self.samples], np.int32)

    def _length(self, sample: Sample) -> int:
        letters = sum(len(message.text) for message in sample.messages)
        steps = 0
        for part in (*sample.audios, *sample.speech):
            try:
                steps += self.codes_of(part).shape[1] + self.tokens.books + 1
            except DataError:
                return 0
        return steps + letters // 4
