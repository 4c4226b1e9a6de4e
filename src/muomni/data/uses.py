"""Uses of a sample: the transcript of its sound, the stages that can learn from it, and why others can't."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from muomni.data.sample import AudioPart, Sample
from muomni.errors import DataError
from muomni.media.frames import DOWNSAMPLE, MELS_HZ, PAD_S, num_states
from muomni.tokens.alphabet import Alphabet, min_frames

MAX_S = 20.0  # the longest sound that hearing, codec and talker take, unless their settings say otherwise
MAX_TEXT_LEN = 64  # characters of the longest transcript of stage hearing, unless its settings say otherwise
ALPHABET = Alphabet()
LOOKED_AT = 64  # samples; where one of them can be used, a stage has something to learn from


def transcript(sample: Sample) -> str:
    """The words of a sample's sound, "" where it has none.

    `extra.text` goes before all. Of a sound that is heard they are the answer. Of one that the assistant says
    they stand beside it, else they are what the user asked to be said: the turn before it, if that has words
    alone (words about a picture or a sound are a question about it, whose answer nobody wrote down).
    """
    if text := sample.extra.get("text"):
        return str(text)
    if sample.audios or not sample.speech:
        return sample.answer
    spoken = sample.speech[0]
    place = next(
        number
        for number, message in enumerate(sample.messages)
        if any(part is spoken for part in message.parts)
    )
    if (own := sample.messages[place].text).strip():
        return own
    user_message = next(
        (message for message in reversed(sample.messages[:place]) if message.role == "user"), None
    )
    return "" if user_message is None or user_message.media else user_message.text


def spoken(sample: Sample) -> tuple[AudioPart, str]:
    """The sound of a sample and the words in it; see `transcript`.

    Raises  DataError (bad_row) where a sample has no sound or more than one, or no words.
    """
    sounds, text = sample.audios or sample.speech, transcript(sample)
    if len(sounds) != 1 or not text.strip():
        raise DataError(
            "bad_row",
            f"{sample.id}: expected one sound and its words, got {len(sounds)} sounds and {len(text.split())} words",
        )
    return sounds[0], text


def says_words(sample: Sample) -> bool:
    """Whether the assistant says anything in words, which is all that a language model learns from."""
    return any(message.text.strip() for message in sample.messages if message.role == "assistant")


class Shape(NamedTuple):
    """All of a sample that decides which stages can learn from it: how many media it shows and says, and
    whether there are words."""

    is_document: bool
    images: int  # shown to the model, as `audios`
    audios: int
    speech: int  # said by the assistant
    others: int  # media of the assistant's that are no sound: pictures that it draws
    has_answer: bool  # words in the assistant's last turn
    has_question: bool  # words of the user's
    is_one_turn: bool  # a question and an answer, beside what the system says
    says_words: bool  # in any of its turns
    has_transcript: bool  # of its one sound


def shape(sample: Sample) -> Shape:
    """The shape of a sample."""
    images = audios = speech = others = 0
    has_answer = has_question = does_say = False
    turns = [message.role for message in sample.messages if message.role != "system"]
    for message in sample.messages:
        is_said = message.role == "assistant"
        has_question |= message.role == "user" and bool(message.text.strip())
        for part in message.media:
            is_sound = part.type == "audio"
            speech, others = speech + (is_said and is_sound), others + (is_said and not is_sound)
            audios, images = audios + (is_sound and not is_said), images + (not is_said and not is_sound)
        if is_said:
            has_answer = bool(message.text.strip())
            does_say |= has_answer
    has_transcript = (audios or speech) == 1 and bool(transcript(sample).strip())
    is_one_turn = turns == ["user", "assistant"]
    return Shape(
        sample.text is not None,
        images,
        audios,
        speech,
        others,
        has_answer,
        has_question,
        is_one_turn,
        does_say,
        has_transcript,
    )


def _speech(shape: Shape) -> str | None:
    sounds = shape.audios or shape.speech
    if sounds != 1:
        return "more than one sound" if sounds else "no sound"
    return None if shape.has_transcript else "no words for its sound"


def _picture(shape: Shape) -> str | None:
    if shape.images != 1:
        return "more than one picture" if shape.images else "no picture"
    return None if shape.has_answer else "no caption"


def _still(shape: Shape) -> str | None:
    pictures = shape.images + shape.others  # a codec learns from what is to be drawn, too
    if pictures != 1:
        return "more than one picture" if pictures else "no picture"
    return None


def _language(shape: Shape) -> str | None:
    if shape.images or shape.audios or shape.speech or shape.others:
        return "pictures or sound"
    return None if shape.is_document or shape.says_words else "no words of the assistant's"


def _conversation(shape: Shape) -> str | None:
    if not shape.is_document and not shape.says_words:
        return "no words of the assistant's"
    return "a picture of the assistant's" if shape.others else None


def _seen(shape: Shape) -> str | None:
    return "sound" if shape.audios or shape.speech else _conversation(shape)


def _captioned(shape: Shape) -> str | None:
    return _seen(shape) if shape.images else "no picture"


def _tokens(shape: Shape) -> str | None:
    """A task over tokens reads one medium and writes words, or reads words and writes one medium."""
    shown, said = shape.images + shape.audios, shape.speech + shape.others
    if shape.is_document or not shown + said:
        return "no medium"
    if shown + said > 1:
        return "more than one medium"
    if not shape.is_one_turn:
        return "not one question and one answer"
    if shown:
        return None if shape.has_answer else "no words in the answer"
    if shape.others and shape.has_answer:
        return "words beside the picture that it draws"  # which of them the picture shows, nobody knows
    return None if shape.has_question else "no words in the question"


def _voiced(shape: Shape) -> str | None:
    """A conversation in which the assistant speaks."""
    if shape.is_document or not shape.speech:
        return "no sound of the assistant's"
    return "pictures" if shape.images or shape.others else None


RULES: dict[str, Callable[[Shape], str | None]] = {
    "thinker": _language,
    "hearing": _speech,
    "vision": _picture,
    "codec": _speech,
    "image_codec": _still,
    "talker": _speech,
    "omni": _conversation,
    "align": _captioned,
    "instruct": _seen,
    "rows": _tokens,
    "mmpt": _tokens,
    "voice": _voiced,
}


def refusal(stage: str, sample: Sample) -> str | None:
    """Why a stage can't learn from a sample, in a few words that many samples share; None where it can."""
    return RULES[stage](shape(sample))


class Standing(NamedTuple):
    """What a sample is good for: the stages that can learn from it, and why each of the others can't."""

    stages: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


@lru_cache(maxsize=1024)
def _standing(shape: Shape, is_long: bool, is_crowded: bool) -> Standing:
    refusals = {stage: reason for stage, rule in RULES.items() if (reason := rule(shape)) is not None}
    if is_long:
        for stage in ("hearing", "codec", "talker"):
            refusals.setdefault(stage, f"a sound of over {MAX_S:g} s (max_s)")
    if is_crowded:
        refusals.setdefault("hearing", "more symbols than CTC can write in its frames")
    return Standing(tuple(stage for stage in RULES if stage not in refusals), tuple(refusals.items()))


def standing(sample: Sample, shape: Shape, sounds_s: Sequence[float]) -> Standing:
    """What stages, with their default limits, can make of a sample. Equal ones are one object.

    Takes   sounds_s: how long its sounds are.
    """
    is_crowded = shape.has_transcript and not fits(transcript(sample), sum(sounds_s))
    return _standing(shape, bool(sounds_s) and max(sounds_s) > MAX_S, is_crowded)


def fits(words: str, seconds: float) -> bool:
    """Whether CTC can write the words in the frames of so much sound."""
    frames = states(seconds + 2 * PAD_S)
    return (
        2 * len(words) <= frames or min_frames(ALPHABET.encode(words)) <= frames
    )  # a blank between any two is the worst case


def states(seconds: float) -> int:
    """Frames in which the hearing part can write, of so much sound."""
    return num_states(int(seconds * MELS_HZ + 1e-6), DOWNSAMPLE)


def demand(stage: str, samples: Sequence[Sample], refused: Callable[[Sample], str | None]) -> None:
    """Stop before anything is paid for where a stage could learn from none of its samples; a few of them
    tell, else all are asked.

    Raises  DataError (empty) with the reasons.
    """
    few = sorted(set(np.linspace(0, len(samples) - 1, min(LOOKED_AT, len(samples))).astype(int).tolist()))
    if not few or any(refused(samples[place]) is None for place in few):
        return
    reasons: Counter[str] = Counter()
    for sample in samples:
        if (reason := refused(sample)) is None:
            return
        reasons[reason] += 1
    raise DataError(
        "empty",
        f"{stage}: expected samples that it can learn from, got none in {len(samples)}: {format_reasons(reasons)}",
        hint="`muomni data check` says for which stages each row is",
    )


def format_reasons(reasons: Counter[str]) -> str:
    """`12 no picture, 3 more than one picture`."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
