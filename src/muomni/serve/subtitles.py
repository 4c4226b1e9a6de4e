"""Words with their times -> stretches of speech, and these as subtitles."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from itertools import pairwise

from muomni.infer.transcribe import Transcript, Word
from muomni.serve.schemas.audio import Segment
from muomni.tokens.alphabet import Alphabet

PAUSE_S = 0.6  # so long a silence ends a stretch
LONGEST_S = 8.0  # of one that has no pause


def segments(transcript: Transcript) -> list[Segment]:
    """The stretches of a transcript, ended by pauses, or where they become long."""
    alphabet = Alphabet()
    silence = math.exp(max(-700.0, transcript.blank_log_prob))
    made = []
    for number, words in enumerate(_stretches(transcript.words)):
        text = " ".join(word.text for word in words)
        content = text.encode()
        made.append(
            Segment(
                id=number,
                seek=0,
                start=round(words[0].start_s, 3),
                end=round(words[-1].end_s, 3),
                text=text,
                tokens=alphabet.encode(text),
                temperature=0.0,
                avg_logprob=sum(word.log_prob for word in words) / len(words),
                compression_ratio=len(content) / len(zlib.compress(content)),
                no_speech_prob=silence,
            )
        )
    return made


def srt(parts: Sequence[Segment]) -> str:
    """SubRip."""
    cues = [
        f"{number}\n{_clock(each.start, ',')} --> {_clock(each.end, ',')}\n{each.text}\n"
        for number, each in enumerate(parts, start=1)
    ]
    return "\n".join(cues)


def vtt(parts: Sequence[Segment]) -> str:
    """WebVTT."""
    cues = [
        f"\n{_clock(each.start, '.')} --> {_clock(each.end, '.')}\n{_escaped(each.text)}\n" for each in parts
    ]
    return "WEBVTT\n" + "".join(cues)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _stretches(words: Sequence[Word]) -> list[list[Word]]:
    stretches = [[words[0]]] if words else []
    for before, word in pairwise(words):
        is_pause = word.start_s - before.end_s >= PAUSE_S
        if is_pause or word.end_s - stretches[-1][0].start_s > LONGEST_S:
            stretches.append([])
        stretches[-1].append(word)
    return stretches


def _clock(seconds: float, point: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}{point}{ms % 1000:03d}"
