"""POST /v1/audio/speech: a text -> its sound, as it is made; or events with pieces of it."""

import base64
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from muomni.media.text import spoken
from muomni.serve import sound, speaking, sse
from muomni.serve.abilities import SPEAK
from muomni.serve.errors import invalid
from muomni.serve.replies import ERRORS, event_stream, stream, streamed_errors
from muomni.serve.schemas.audio import SpeechBody
from muomni.serve.server import Server
from muomni.serve.speaking import Sound

if TYPE_CHECKING:
    from fastapi import APIRouter


def router(server: Server) -> "APIRouter":
    """The route of speech."""
    from fastapi import APIRouter, Request
    from starlette.responses import Response

    routes = APIRouter(tags=["audio"])
    binary = {"schema": {"type": "string", "format": "binary"}}
    kinds = dict.fromkeys((*sound.MEDIA_TYPES.values(), "text/event-stream"), binary)
    described: dict[int | str, dict[str, Any]] = {
        200: {"description": "The sound", "content": kinds},
        **ERRORS,
    }

    @routes.post("/v1/audio/speech", responses=described, response_class=Response, summary="Speak a text")
    async def create(body: SpeechBody, request: Request) -> Any:
        server.abilities.need(SPEAK)
        server.admit(body.model)
        voice = body.voice if isinstance(body.voice, str) else body.voice.id
        name = speaking.voice_of(server, voice, "voice")
        if not spoken(body.input):
            raise invalid("input: holds no words", param="input", code="empty")
        form = body.response_format or "mp3"
        said = server.work.stream(speaking.say(body.input, name))
        if body.stream_format == "sse":
            begun = await sse.unless_gone(request.receive, sse.started(_events(server, body, said, form)))
            return event_stream(streamed_errors(begun))
        content = await sse.unless_gone(request.receive, sse.started(_bytes(server, said, form)))
        return stream(content, sound.MEDIA_TYPES[form])

    return routes


async def _bytes(server: Server, said: AsyncIterator[Sound], form: str) -> AsyncIterator[bytes]:
    """The file, or samples, piece by piece."""
    encoder: sound.Encoder | None = None
    try:
        async for piece in said:
            server.weights.require_unchanged()
            encoder = encoder or sound.encoder(form, piece.rate_hz)
            server.metrics.sound.labels("out").inc(len(piece.wave_S) / piece.rate_hz)
            if content := encoder.push(piece.wave_S):
                yield content
        if encoder is not None and (content := await server.decode(encoder.close)):
            yield content
    finally:
        await sse.close(said)


async def _events(
    server: Server, body: SpeechBody, said: AsyncIterator[Sound], form: str
) -> AsyncIterator[str]:
    """The same as events, and what it cost."""
    samples = 0

    async def noted() -> AsyncIterator[Sound]:
        nonlocal samples
        try:
            async for piece in said:
                samples += len(piece.wave_S)
                yield piece
        finally:
            await sse.close(said)

    content = _bytes(server, noted(), form)
    try:
        async for part in content:
            data = base64.b64encode(part).decode()
            yield sse.event({"type": "speech.audio.delta", "audio": data})
    finally:
        await sse.close(content)
    read = speaking.tokens_read(server.engine, body.input)
    made = speaking.frames(server.engine, samples)
    usage = {"input_tokens": read, "output_tokens": made, "total_tokens": read + made}
    yield sse.event({"type": "speech.audio.done", "usage": usage})
