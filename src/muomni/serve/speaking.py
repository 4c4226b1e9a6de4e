"""Speech of a text in growing pieces, and of a text that is still being written: sentence by sentence, while the next
ones come."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muomni.infer.engine import Engine
from muomni.media.text import spoken
from muomni.serve import sse
from muomni.serve.abilities import DEFAULT_VOICE, SPEAK
from muomni.serve.errors import invalid
from muomni.serve.server import Server
from muomni.serve.work import Piece

Wave = NDArray[np.float32]
SENTENCE = re.compile(r"[.!?;:\n]+(?=\s)|\n")
AHEAD = 16


@dataclass(frozen=True)
class Sound:
    """Samples (S,) that follow those before."""

    wave_S: Wave
    rate_hz: int


def voice_of(server: Server, name: str, param: str) -> str | None:
    """The Talker's own name of a voice that is asked for; None for nobody's.

    Raises  ApiError listing the voices that there are, or naming the stage without which there are none.
    """
    server.abilities.need(SPEAK, param=param if param.startswith("audio") else None)
    if name == DEFAULT_VOICE:
        return None
    if name in server.abilities.voices:
        return name
    known = ", ".join([DEFAULT_VOICE, *server.abilities.voices[:20]])
    raise invalid(f"{param}: no voice {name!r} here, there are: {known}", param=param, code="voice_not_found")


def pieces(engine: Engine, text: str, voice: str | None) -> Iterator[Sound]:
    """A text as it is spoken; nothing of one that holds no words."""
    if not spoken(text):
        return
    if "talker" not in engine.parts.stages:
        yield from (Sound(*each) for each in engine.speak([text]))
        return
    talker = engine.parts.voice
    speaker = None if voice is None else talker.number(voice)
    for wave_S in talker.stream(text, speaker=speaker):
        yield Sound(wave_S, talker.rate_hz)


def whole(engine: Engine, text: str, voice: str | None) -> Sound:
    """All of it at once, as `Engine.speak` has it."""
    if not spoken(text):
        return Sound(np.zeros(0, np.float32), 16_000)
    return Sound(*engine.speak([text], voice=voice)[0])


def say(text: str, voice: str | None) -> Callable[[Engine], Iterator[Sound]]:
    """`pieces`, as the scheduler takes it."""
    return lambda engine: pieces(engine, text, voice)


async def while_written(
    server: Server, answer: AsyncIterator[Piece], voice: str | None
) -> AsyncIterator[Piece | Sound]:
    """The pieces of an answer, and among them its speech, which begins when its first sentence is there."""
    sentences: asyncio.Queue[str | None] = asyncio.Queue()

    async def read() -> AsyncIterator[Piece | Sound]:
        waiting = ""
        try:
            async for piece in answer:
                waiting += piece.text
                while end := SENTENCE.search(waiting):
                    sentences.put_nowait(waiting[: end.end()])
                    waiting = waiting[end.end() :]
                yield piece
            sentences.put_nowait(waiting)
            sentences.put_nowait(None)
        finally:
            await sse.close(answer)

    async def speak() -> AsyncIterator[Piece | Sound]:
        while (sentence := await sentences.get()) is not None:
            sounds = server.work.stream(say(sentence, voice))
            try:
                async for sound in sounds:
                    yield sound
            finally:
                await sse.close(sounds)

    both = sse.merged([read(), speak()])
    try:
        async for _, item in both:
            yield item
    finally:
        await sse.close(both)


def frames(engine: Engine, samples: int) -> int:
    """How many code frames made a sound; 0 where a token model spoke, which counts otherwise."""
    if "talker" not in engine.parts.stages:
        return 0
    config = engine.parts.voice.codec.config
    return round(samples / (config.stride_frames * config.mel.hop_samples))


def tokens_read(engine: Engine, text: str) -> int:
    """How many tokens of a text its speaker reads."""
    if "talker" not in engine.parts.stages:
        return len(engine.parts.writer.tokenizer.encode_text(text))
    voice = engine.parts.voice
    return len(voice.talker.text_ids(text, voice.tokenizer))
