"""What a sample is good for: the words of its sound, the stages that can learn from it, and why the others can't."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from muomni.data.sample import AudioPart, Sample
from muomni.errors import DataError
from muomni.tokens.alphabet import Alphabet, min_frames

MAX_S = 20.0  # the longest sound that hearing, codec and talker take, unless their settings say otherwise
MAX_TEXT_LEN = 64  # characters of the longest transcript of stage hearing, unless its settings say otherwise
MELS_HZ, MELS_A_STATE = 100, 4  # the hearing part writes at 25 Hz (SPEC M-B)
PAD_S = 0.1  # silence on both sides of a sound, as the hearing stage adds by default
ALPHABET = Alphabet()
LOOKED_AT = 64  # samples; where one of them can be used, a stage has something to learn from


def transcript(sample: Sample) -> str:
    """The words of a sample's sound, "" where it has none.

    `extra.text` goes before all. Of a sound that is heard they are the answer. Of one that the assistant says they stand beside it, else
    they are what the user asked to be said: the turn before it, if that has words alone (words about a picture or a sound are a question
    about it, whose answer nobody wrote down).
    """
    if given := sample.extra.get("text"):
        return str(given)
    if sample.audios or not sample.speech:
        return sample.answer
    spoken = sample.speech[0]
    place = next(number for number, message in enumerate(sample.messages) if any(part is spoken for part in message.parts))
    if (own := sample.messages[place].text).strip():
        return own
    asked = next((message for message in reversed(sample.messages[:place]) if message.role == "user"), None)
    return "" if asked is None or asked.media else asked.text


def spoken(sample: Sample) -> tuple[AudioPart, str]:
    """The sound of a sample and the words in it; see `transcript`.

    Raises  DataError (bad_row) where a sample has no sound or more than one, or no words.
    """
    sounds, text = sample.audios or sample.speech, transcript(sample)
    if len(sounds) != 1 or not text.strip():
        raise DataError("bad_row", f"{sample.id}: expected one sound and its words, got {len(sounds)} sounds and {len(text.split())} words")
    return sounds[0], text


def says_words(sample: Sample) -> bool:
    """Whether the assistant says anything in words, which is all that a language model learns from."""
    return any(message.text.strip() for message in sample.messages if message.role == "assistant")


def _speech(sample: Sample) -> str | None:
    sounds = sample.audios or sample.speech
    if len(sounds) != 1:
        return "more than one sound" if sounds else "no sound"
    return None if transcript(sample).strip() else "no words for its sound"


def _picture(sample: Sample) -> str | None:
    if len(sample.images) != 1:
        return "more than one picture" if sample.images else "no picture"
    return None if sample.answer.strip() else "no caption"


def _language(sample: Sample) -> str | None:
    if sample.media:
        return "pictures or sound"
    return None if sample.text is not None or says_words(sample) else "no words of the assistant's"


def _conversation(sample: Sample) -> str | None:
    if sample.text is None and not says_words(sample):
        return "no words of the assistant's"
    shown = len(sample.images) + len(sample.audios) + len(sample.speech)
    return None if shown == len(sample.media) else "a picture of the assistant's"


def _seen(sample: Sample) -> str | None:
    return "sound" if sample.audios or sample.speech else _conversation(sample)


def _captioned(sample: Sample) -> str | None:
    return _seen(sample) if sample.images else "no picture"


RULES: dict[str, Callable[[Sample], str | None]] = {
    "thinker": _language,
    "hearing": _speech,
    "vision": _picture,
    "codec": _speech,
    "talker": _speech,
    "omni": _conversation,
    "align": _captioned,
    "instruct": _seen,
}


def refusal(stage: str, sample: Sample) -> str | None:
    """Why a stage can't learn from a sample, in a few words that many samples share; None where it can."""
    return RULES[stage](sample)


def refusals(sample: Sample, sounds_s: Sequence[float]) -> dict[str, str]:
    """Why stages can't learn from a sample, by their names; one that can is left out.

    Takes   sounds_s: how long its sounds are. Stages have their default limits.
    """
    found = {stage: reason for stage in RULES if (reason := refusal(stage, sample)) is not None}
    if sounds_s and max(sounds_s) > MAX_S:
        for stage in ("hearing", "codec", "talker"):
            found.setdefault(stage, f"a sound of over {MAX_S:g} s (max_s)")
    if "hearing" not in found and min_frames(ALPHABET.encode(transcript(sample))) > states(sum(sounds_s) + 2 * PAD_S):
        found["hearing"] = "more symbols than CTC can write in its frames"
    return found


def states(seconds: float) -> int:
    """Frames in which the hearing part can write, of so much sound."""
    return math.ceil(int(seconds * MELS_HZ + 1e-6) / MELS_A_STATE)


def demand(stage: str, samples: Sequence[Sample], refused: Callable[[Sample], str | None]) -> None:
    """Stop before anything is paid for where a stage could learn from none of its samples; a few of them tell, else all are asked.

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
        f"{stage}: expected samples that it can learn from, got none in {len(samples)}: {told(reasons)}",
        hint="`muomni data check` says for which stages each row is",
    )


def told(reasons: Counter[str]) -> str:
    """`12 no picture, 3 more than one picture`."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
