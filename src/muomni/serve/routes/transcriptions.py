"""POST /v1/audio/transcriptions: a recording -> its words, with times where they are asked for."""

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from muomni.infer import transcribe
from muomni.infer.engine import Engine
from muomni.infer.transcribe import Transcript
from muomni.serve import errors, media, sse, subtitles
from muomni.serve.abilities import TRANSCRIBE
from muomni.serve.errors import invalid
from muomni.serve.replies import ERRORS, JSON, event_stream, streamed_errors
from muomni.serve.schemas.audio import (
    Duration,
    TimedWord,
    Transcription,
    TranscriptionFields,
    Verbose,
)
from muomni.serve.server import Server

if TYPE_CHECKING:
    from fastapi import APIRouter

LISTS = ("timestamp_granularities", "include", "languages", "keywords", "known_speaker_names")
MOST_FIELDS, MOST_FILES = 32, 1
LANGUAGE = "english"  # the hearing part writes ASCII and has one language


def router(server: Server) -> "APIRouter":
    """The route of transcriptions."""
    from fastapi import APIRouter, Request
    from starlette.responses import PlainTextResponse

    routes = APIRouter(tags=["audio"])
    described: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "What was said",
            "content": {
                "application/json": {
                    "schema": {"anyOf": [Transcription.model_json_schema(), _schema(Verbose)]}
                },
                "text/plain": {"schema": {"type": "string"}},
                "text/event-stream": {"schema": {"type": "string"}},
            },
        },
        **ERRORS,
    }

    @routes.post(
        "/v1/audio/transcriptions",
        responses=described,
        openapi_extra={"requestBody": _request_body()},
        summary="Write down speech",
    )
    async def create(request: Request) -> Any:
        server.abilities.need(TRANSCRIBE)
        fields, content = await _read(request)
        server.admit(fields.model)
        form = fields.response_format or "json"
        _check(fields, form)
        assert server.abilities.rate_hz is not None
        wave_S = await server.decode(media.samples, content, server.abilities.rate_hz, server.limits, "file")
        server.metrics.sound.labels("in").inc(len(wave_S) / server.abilities.rate_hz)
        if fields.stream:
            events = _events(server, wave_S)
            return event_stream(streamed_errors(await sse.unless_gone(request.receive, sse.started(events))))
        said = await sse.unless_gone(request.receive, _written(server, wave_S))
        if form in ("text", "srt", "vtt"):
            parts = subtitles.segments(said)
            made = {"text": f"{said.text}\n", "srt": subtitles.srt(parts), "vtt": subtitles.vtt(parts)}
            return PlainTextResponse(made[form])
        return JSON(_verbose(said, fields) if form == "verbose_json" else _plain(said))

    return routes


def _growing(wave_S: NDArray[np.float32]) -> Callable[[Engine], Iterator[str | Transcript]]:
    """`transcribe.growing`, as the scheduler takes it."""

    def of(engine: Engine) -> Iterator[str | Transcript]:
        parts = engine.parts
        dtype = parts.number_format(parts.hearing.config.width)
        return transcribe.growing(
            parts.hearing, wave_S, pad_s=parts.hearing_pad_s, char_lm=parts.char_lm, dtype=dtype
        )

    return of


async def _written(server: Server, wave_S: NDArray[np.float32]) -> Transcript:
    """All of it; others get their turns between its chunks."""
    items = await sse.collected(server.work.stream(_growing(wave_S)))
    said = items[-1]
    assert isinstance(said, Transcript)
    return said


async def _events(server: Server, wave_S: NDArray[np.float32]) -> AsyncIterator[str]:
    """The text as it becomes certain, and all of it."""
    items = server.work.stream(_growing(wave_S))
    try:
        async for item in items:
            if isinstance(item, Transcript):
                yield sse.event({"type": "transcript.text.done", "text": item.text, "usage": _tokens(item)})
            elif item:
                yield sse.event({"type": "transcript.text.delta", "delta": item})
    finally:
        await sse.close(items)


def _tokens(said: Transcript) -> dict[str, Any]:
    """What was counted: states heard, symbols written."""
    return {
        "type": "tokens",
        "input_tokens": said.frames,
        "output_tokens": len(said.ids),
        "total_tokens": said.frames + len(said.ids),
        "input_token_details": {"audio_tokens": said.frames, "text_tokens": 0},
    }


def _plain(said: Transcript) -> dict[str, Any]:
    usage = Duration(type="duration", seconds=round(said.seconds, 3))
    return Transcription(text=said.text, usage=usage).sent()


def _verbose(said: Transcript, fields: TranscriptionFields) -> dict[str, Any]:
    asked = fields.timestamp_granularities or ["segment"]
    made: dict[str, Any] = {}
    if "segment" in asked:
        made["segments"] = subtitles.segments(said)
    if "word" in asked:
        made["words"] = [
            TimedWord(word=each.text, start=round(each.start_s, 3), end=round(each.end_s, 3))
            for each in said.words
        ]
    seconds = round(said.seconds, 3)
    return Verbose(
        task="transcribe",
        language=LANGUAGE,
        duration=seconds,
        text=said.text,
        usage=Duration(type="duration", seconds=seconds),
        **made,
    ).sent()


def _check(fields: TranscriptionFields, form: str) -> None:
    """Raises  ApiError for fields that don't go together."""
    if fields.timestamp_granularities and form != "verbose_json":
        param = "timestamp_granularities"
        raise invalid(f"{param}: needs response_format verbose_json", param=param)
    if fields.stream and form not in ("json", "text"):
        message = f"response_format: {form} is not streamed: json or text"
        raise invalid(message, param="response_format")


# --- multipart --------------------------------------------------------------------------------------------


async def _read(request: Any) -> tuple[TranscriptionFields, bytes]:
    """The fields and the bytes of the file of a multipart request."""
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException

    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise errors.ApiError(415, "expected multipart/form-data", code="invalid_content_type")
    try:
        form = await request.form(max_files=MOST_FILES, max_fields=MOST_FIELDS)
    except HTTPException as error:
        raise invalid(f"the form can't be read: {error.detail}", code="invalid_form") from error
    try:
        values: dict[str, Any] = {}
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if name == "file":
                continue
            if name in values and name not in LISTS:
                raise invalid(f"{name}: given twice", param=name)
            text = None if isinstance(value, UploadFile) else value
            values[name] = [*values.get(name, []), text] if name in LISTS else text
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise invalid("file: a recording is needed", param="file", code="missing_required_parameter")
        content = await upload.read()
    finally:
        await form.close()
    if not content:
        raise invalid("file: holds no bytes", param="file", code="empty")
    return _fields(values), content


def _fields(values: Mapping[str, Any]) -> TranscriptionFields:
    """The fields, each of which came as text; an empty one was not given."""
    read: dict[str, Any] = {name: value for name, value in values.items() if value not in ("", [""])}
    for name, kinds in (("stream", (bool,)), ("temperature", (int, float))):
        if isinstance(text := read.get(name), str):
            read[name] = _number(text, kinds)
    try:
        return TranscriptionFields.model_validate(read)
    except ValidationError as error:
        raise errors.of_validation([dict(each) for each in error.errors()], read) from error


def _number(text: str, kinds: tuple[type, ...]) -> Any:
    """A number or a truth value that a form holds as text; the text itself where it is none."""
    try:
        value = json.loads(text.lower())
    except (ValueError, RecursionError):
        return text
    return value if type(value) in kinds else text


def _schema(model: Any) -> dict[str, Any]:
    """The schema of an answer, its parts inside."""
    schema: dict[str, Any] = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return whole(parts[value["$ref"].rpartition("/")[2]])
            return {key: whole(each) for key, each in value.items()}
        return [whole(each) for each in value] if isinstance(value, list) else value

    inside: dict[str, Any] = whole(schema)
    return inside


def _request_body() -> dict[str, Any]:
    schema = _schema(TranscriptionFields)
    fields = {f"{name}[]" if name in LISTS else name: each for name, each in schema["properties"].items()}
    schema["properties"] = {"file": {"type": "string", "format": "binary"}, **fields}
    schema["required"] = ["file", "model"]
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
