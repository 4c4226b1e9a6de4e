"""/v1/audio/speech and /v1/audio/transcriptions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from muomni.serve.schemas.base import Body, OnlyOne, OnlyZero, Reply, Unsupported
from muomni.serve.settings import CHARACTERS_SPOKEN


class VoiceId(Body):
    """A voice by its id, which is its name here."""

    id: str


class SpeechBody(Body):
    """A text to be spoken."""

    model: str
    input: Annotated[str, Field(min_length=1, max_length=CHARACTERS_SPOKEN)]
    voice: str | VoiceId
    instructions: Annotated[str, Field(max_length=0)] | None = None
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] | None = None
    speed: OnlyOne | None = None
    stream_format: Literal["sse", "audio"] | None = None


Format = Literal["json", "text", "srt", "verbose_json", "vtt"]
Granularity = Literal["word", "segment"]


class TranscriptionFields(Body):
    """The fields beside the file of a recording that is to be written down."""

    model: str
    response_format: Format | None = None
    stream: bool | None = None
    temperature: OnlyZero | None = None
    timestamp_granularities: list[Granularity] | None = None
    language: Unsupported = None
    prompt: Unsupported = None
    chunking_strategy: Literal["auto"] | None = None
    include: Annotated[list[Any], Field(max_length=0)] | None = None
    keywords: Unsupported = None
    languages: Unsupported = None
    known_speaker_names: Unsupported = None
    known_speaker_references: Unsupported = None


class Duration(Reply):
    """What is counted of a transcription."""

    type: Literal["duration"]
    seconds: float


class Transcription(Reply):
    """What was said."""

    text: str
    usage: Duration


class TimedWord(Reply):
    """A word and when it was said, in seconds."""

    word: str
    start: float
    end: float


class Segment(Reply):
    """A stretch of speech. `tokens`: symbols of the hearing part; no_speech_prob: that it holds no symbol."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class Verbose(Reply):
    """What was said, and when."""

    task: Literal["transcribe"]
    language: str
    duration: float
    text: str
    segments: list[Segment] | None = None
    words: list[TimedWord] | None = None
    usage: Duration
