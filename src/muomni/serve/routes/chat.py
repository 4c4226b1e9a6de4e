"""POST /v1/chat/completions: a conversation -> an answer, in text or spoken, whole or as it comes."""

import base64
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from muomni.infer.prompt import Prompt
from muomni.serve import answers, prompts, sound, speaking, sse
from muomni.serve.answers import Drawing, Written
from muomni.serve.errors import invalid
from muomni.serve.replies import ERRORS, JSON, event_stream, streamed_errors
from muomni.serve.schemas import chat
from muomni.serve.schemas.chat import ChatBody, Completion
from muomni.serve.server import Server, new_id

if TYPE_CHECKING:
    from fastapi import APIRouter


def router(server: Server) -> "APIRouter":
    """The route of conversations."""
    from fastapi import APIRouter, Request

    routes = APIRouter(tags=["chat"])
    described: dict[int | str, dict[str, Any]] = {
        200: {"model": Completion, "content": {"text/event-stream": {}}},
        **ERRORS,
    }

    @routes.post("/v1/chat/completions", responses=described, summary="Answer a conversation")
    async def create(body: ChatBody, request: Request) -> Any:
        answer = await _Answering.begin(server, body)
        if body.stream:
            events = answer.spoken_events() if answer.is_spoken else answer.events()
            begun = await sse.unless_gone(request.receive, sse.started(events))
            return event_stream(streamed_errors(begun))
        made = answer.spoken() if answer.is_spoken else answer.whole()
        return JSON(await sse.unless_gone(request.receive, made))

    return routes


class _Answering:
    """One request at work."""

    def __init__(self, server: Server, body: ChatBody, prompt: Prompt) -> None:
        self.server, self.body, self.prompt = server, body, prompt
        self.filled = prompts.positions(server, prompt)
        self.written = [Written() for _ in range(body.n or 1)]
        self.is_spoken = "audio" in (body.modalities or [])
        self.samples = 0
        self.head = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": server.name}

    @classmethod
    async def begin(cls, server: Server, body: ChatBody) -> "_Answering":
        """A request that can be answered; what can't be honoured is refused here."""
        server.admit(body.model)
        _check(body)
        if "audio" in (body.modalities or []):
            _voice(server, body)
        prompt = await prompts.of_chat(server, body.messages).prompt()
        server.metrics.tokens.labels("prompt").inc(len(prompt.ids))
        return cls(server, body, prompt)

    def _pieces(self, number: int) -> AsyncIterator[Any]:
        body = self.body
        drawing = Drawing(body.temperature, body.top_p, body.top_k, body.repetition_penalty, body.seed)
        most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        tops = (body.top_logprobs or 0) if body.logprobs else None
        asked = answers.ask(
            self.server, self.prompt, drawing, number, stop=answers.stops(body.stop), most=most, tops=tops
        )
        return answers.pieces(self.server, asked, self.written[number])

    # --- text ---------------------------------------------------------------------------------------------

    async def whole(self) -> dict[str, Any]:
        """The answers, written to their ends."""
        every = sse.merged([self._pieces(number) for number in range(len(self.written))])
        try:
            async for number, piece in every:
                if self.body.logprobs:
                    self.written[number].logprobs += answers.scores(self.server, piece).content
        finally:
            await sse.close(every)
        messages = [
            chat.AnswerMessage(role="assistant", content=each.text, refusal=None, annotations=[])
            for each in self.written
        ]
        return self._completion(messages)

    async def events(self) -> AsyncIterator[str]:
        """The pieces of all answers as events."""
        every = sse.merged([self._pieces(number) for number in range(len(self.written))])
        try:
            is_first = True
            async for number, piece in every:
                if is_first:
                    is_first = False
                    for each in range(len(self.written)):
                        yield self._chunk(each, {"role": "assistant", "content": "", "refusal": None})
                scored = answers.scores(self.server, piece).sent() if self.body.logprobs else None
                if piece.text or (scored and scored["content"]):
                    yield self._chunk(number, {"content": piece.text}, scores=scored)
                if piece.finish is not None:
                    yield self._chunk(number, {}, finish=self.written[number].finish_reason)
        finally:
            await sse.close(every)
        for event in self._ending():
            yield event

    # --- speech -------------------------------------------------------------------------------------------

    async def spoken(self) -> dict[str, Any]:
        """The answer said aloud, with its words as a transcript."""
        await sse.collected(self._pieces(0))
        voice, form, text = _voice(self.server, self.body), self._form, self.written[0].text
        said = await self.server.work.call(lambda engine: speaking.whole(engine, text, voice))
        self._count(said)
        data = await self.server.decode(sound.whole, form, said.wave_S, said.rate_hz)
        name = new_id("audio")
        audio = chat.Audio(
            id=name,
            data=base64.b64encode(data).decode(),
            expires_at=self.server.spoken.keep(name, text),
            transcript=text,
        )
        message = chat.AnswerMessage(
            role="assistant", content=None, refusal=None, audio=audio, annotations=[]
        )
        return self._completion([message])

    async def spoken_events(self) -> AsyncIterator[str]:
        """The words and the samples of an answer as events, as they come."""
        name, encoder = new_id("audio"), None
        every = speaking.while_written(self.server, self._pieces(0), _voice(self.server, self.body))
        try:
            is_first = True
            async for item in every:
                if is_first:
                    is_first = False
                    yield self._chunk(
                        0, {"role": "assistant", "content": None, "refusal": None, "audio": {"id": name}}
                    )
                if isinstance(item, speaking.Sound):
                    encoder = encoder or sound.encoder(self._form, item.rate_hz)
                    self._count(item)
                    yield self._heard(encoder.push(item.wave_S))
                elif item.text:
                    yield self._chunk(0, {"audio": {"transcript": item.text}})
        finally:
            await sse.close(every)
        if encoder is not None and (rest := encoder.close()):
            yield self._heard(rest)
        expires = self.server.spoken.keep(name, self.written[0].text)
        yield self._chunk(0, {"audio": {"expires_at": expires}})
        yield self._chunk(0, {}, finish=self.written[0].finish_reason)
        for event in self._ending():
            yield event

    @property
    def _form(self) -> str:
        assert self.body.audio is not None
        return self.body.audio.format

    def _count(self, said: speaking.Sound) -> None:
        self.samples += len(said.wave_S)
        self.server.metrics.sound.labels("out").inc(len(said.wave_S) / said.rate_hz)

    def _heard(self, data: bytes) -> str:
        return self._chunk(0, {"audio": {"data": base64.b64encode(data).decode()}})

    # --- both ---------------------------------------------------------------------------------------------

    def _completion(self, messages: list[chat.AnswerMessage]) -> dict[str, Any]:
        choices = [
            chat.Choice(
                index=number,
                message=message,
                logprobs=chat.Logprobs(content=each.logprobs, refusal=None) if self.body.logprobs else None,
                finish_reason=each.finish_reason,
            )
            for number, (message, each) in enumerate(zip(messages, self.written))
        ]
        return Completion(
            object="chat.completion",
            choices=choices,
            usage=self._usage(),
            system_fingerprint=self.server.fingerprint,
            service_tier="default",
            **self.head,
        ).sent()

    def _usage(self) -> chat.Usage:
        frames = speaking.frames(self.server.engine, self.samples) if self.samples else 0
        return answers.usage(self.prompt, self.filled, self.written, frames)

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        *,
        scores: dict[str, Any] | None = None,
        finish: str | None = None,
    ) -> str:
        choice = {"index": number, "delta": delta, "logprobs": scores, "finish_reason": finish}
        return sse.event(self._envelope([choice]))

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        has_usage = self.body.stream_options is not None and self.body.stream_options.include_usage
        return {
            **self.head,
            "object": "chat.completion.chunk",
            "service_tier": "default",
            "system_fingerprint": self.server.fingerprint,
            "choices": choices,
            **({"usage": None} if has_usage else {}),
        }

    def _ending(self) -> list[str]:
        options = self.body.stream_options
        if options is None or not options.include_usage:
            return [sse.DONE]
        counted = self._usage().sent()
        return [sse.event({**self._envelope([]), "usage": counted}), sse.DONE]


def _voice(server: Server, body: ChatBody) -> str | None:
    assert body.audio is not None
    voice = body.audio.voice
    return speaking.voice_of(server, voice if isinstance(voice, str) else voice.id, "audio.voice")


def _check(body: ChatBody) -> None:
    """Raises  ApiError for members that don't go together."""
    is_spoken = "audio" in (body.modalities or [])
    if is_spoken and body.audio is None:
        raise invalid("audio: needed for modalities with audio", param="audio")
    if body.audio is not None and not is_spoken:
        raise invalid('audio: has no effect without modalities ["text", "audio"]', param="audio")
    if is_spoken and "text" not in (body.modalities or []):
        raise invalid('modalities: speech comes with its words: ["text", "audio"]', param="modalities")
    if is_spoken and (body.n or 1) > 1:
        raise invalid("n: one answer at a time is spoken", param="n")
    if is_spoken and body.logprobs:
        raise invalid("logprobs: not of an answer that is spoken", param="logprobs")
    if is_spoken and body.stream and body.audio is not None and body.audio.format != "pcm16":
        raise invalid("audio.format: a streamed answer is pcm16", param="audio.format")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options: has no effect without stream", param="stream_options")
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs: has no effect without logprobs", param="top_logprobs")
    if (
        body.max_tokens is not None
        and body.max_completion_tokens is not None
        and body.max_tokens != body.max_completion_tokens
    ):
        raise invalid("max_tokens: says something else than max_completion_tokens", param="max_tokens")
    if body.temperature is None:
        for name, idle in (("top_p", 1), ("top_k", 0)):
            if getattr(body, name) not in (None, idle):
                message = (
                    f"{name}: has no effect without a temperature: answers are greedy unless it is given"
                )
                raise invalid(message, param=name)
