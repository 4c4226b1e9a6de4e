"""POST /v1/responses: a conversation of texts and pictures -> an answer in text, whole or as events."""

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from muomni.infer.prompt import Prompt
from muomni.serve import answers, sse
from muomni.serve.answers import Drawing, Written
from muomni.serve.errors import invalid
from muomni.serve.prompts import Turns
from muomni.serve.replies import ERRORS, JSON, event_stream, streamed_errors
from muomni.serve.schemas import responses
from muomni.serve.schemas.responses import InputImage, Message, Response, ResponsesBody, Status, Text
from muomni.serve.server import Server, new_id
from muomni.serve.work import Piece

if TYPE_CHECKING:
    from fastapi import APIRouter

LOGPROBS = "message.output_text.logprobs"


def router(server: Server) -> "APIRouter":
    """The route of responses."""
    from fastapi import APIRouter, Request

    routes = APIRouter(tags=["responses"])
    described: dict[int | str, dict[str, Any]] = {
        200: {"model": Response, "content": {"text/event-stream": {}}},
        **ERRORS,
    }

    @routes.post(
        "/v1/responses", responses=described, summary="Answer a conversation, as the newer API has it"
    )
    async def create(body: ResponsesBody, request: Request) -> Any:
        server.admit(body.model)
        _check(body)
        prompt = await _turns(server, body).prompt("input")
        server.metrics.tokens.labels("prompt").inc(len(prompt.ids))
        answer = _Answering(server, body, prompt)
        if body.stream:
            begun = await sse.unless_gone(request.receive, sse.started(answer.events()))
            return event_stream(streamed_errors(begun))
        return JSON(await sse.unless_gone(request.receive, answer.whole()))

    return routes


class _Answering:
    """One request at work."""

    def __init__(self, server: Server, body: ResponsesBody, prompt: Prompt) -> None:
        self.server, self.body, self.prompt = server, body, prompt
        self.written, self.scores = Written(), list[dict[str, Any]]()
        self.name, self.item = new_id("resp"), new_id("msg")
        self.created, self.count = int(time.time()), 0

    async def whole(self) -> dict[str, Any]:
        """The answer, written to its end."""
        async for _ in self._pieces():
            pass
        return self._response().sent()

    async def events(self) -> AsyncIterator[str]:
        """The answer as it comes, in the order in which the official API tells it."""
        pieces = self._pieces()
        try:
            first = True
            async for piece, scores in pieces:
                if first:
                    first = False
                    for event in self._opening():
                        yield event
                if piece.text or scores:
                    yield self._event(
                        "response.output_text.delta", **self._part, delta=piece.text, logprobs=scores
                    )
        finally:
            await sse.close(pieces)
        text = self._text().sent()
        yield self._event(
            "response.output_text.done", **self._part, text=text["text"], logprobs=text["logprobs"]
        )
        yield self._event("response.content_part.done", **self._part, part=text)
        yield self._event("response.output_item.done", output_index=0, item=self._message().sent())
        last = "incomplete" if self.written.finish == "length" else "completed"
        yield self._event(f"response.{last}", response=self._response().sent())

    async def _pieces(self) -> AsyncIterator[tuple[Piece, list[dict[str, Any]]]]:
        body = self.body
        has_scores = LOGPROBS in (body.include or [])
        tops = (body.top_logprobs or 0) if has_scores else None
        drawing = Drawing(body.temperature, body.top_p)
        asked = answers.ask(self.server, self.prompt, drawing, most=body.max_output_tokens, tops=tops)
        pieces = answers.pieces(self.server, asked, self.written)
        try:
            async for piece in pieces:
                scored = answers.scores(self.server, piece).sent()["content"] if has_scores else []
                self.scores += scored
                yield piece, scored
        finally:
            await sse.close(pieces)

    @property
    def _part(self) -> dict[str, Any]:
        return {"item_id": self.item, "output_index": 0, "content_index": 0}

    def _opening(self) -> list[str]:
        begun = self._response(is_begun=True).sent()
        message = Message(id=self.item, type="message", role="assistant", status="in_progress", content=[])
        empty = Text(type="output_text", text="", annotations=[], logprobs=[])
        return [
            self._event("response.created", response=begun),
            self._event("response.in_progress", response=begun),
            self._event("response.output_item.added", output_index=0, item=message.sent()),
            self._event("response.content_part.added", **self._part, part=empty.sent()),
        ]

    def _event(self, kind: str, **members: Any) -> str:
        self.count += 1
        return sse.event({"type": kind, "sequence_number": self.count - 1, **members}, kind)

    @property
    def _status(self) -> Status:
        return "incomplete" if self.written.finish == "length" else "completed"

    def _text(self) -> Text:
        return Text(type="output_text", text=self.written.text, annotations=[], logprobs=self.scores)

    def _message(self) -> Message:
        return Message(
            id=self.item, type="message", role="assistant", status=self._status, content=[self._text()]
        )

    def _response(self, *, is_begun: bool = False) -> Response:
        body = self.body
        is_cut = not is_begun and self.written.finish == "length"
        return Response(
            id=self.name,
            object="response",
            created_at=self.created,
            completed_at=None if is_begun or is_cut else int(time.time()),
            status="in_progress" if is_begun else self._status,
            model=self.server.name,
            output=[] if is_begun else [self._message()],
            usage=None if is_begun else self._usage(),
            error=None,
            incomplete_details=responses.Incomplete(reason="max_output_tokens") if is_cut else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            parallel_tool_calls=bool(body.parallel_tool_calls),
            previous_response_id=None,
            background=False,
            service_tier="default",
            store=False,
            temperature=body.temperature or 0.0,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_logprobs=body.top_logprobs or 0,
            text={"format": {"type": "text"}, "verbosity": "medium"},
            tool_choice=body.tool_choice or "auto",
            tools=[],
            truncation="disabled",
            user=body.user,
        )

    def _usage(self) -> responses.ResponseUsage:
        read, made = len(self.prompt.ids), self.written.tokens
        return responses.ResponseUsage(
            input_tokens=read,
            input_tokens_details=responses.InputDetails(cached_tokens=0, cache_write_tokens=0),
            output_tokens=made,
            output_tokens_details=responses.OutputDetails(reasoning_tokens=0),
            total_tokens=read + made,
        )


def _turns(server: Server, body: ResponsesBody) -> Turns:
    turns = Turns(server)
    if body.instructions:
        turns.open("system")
        turns.text(body.instructions)
    if isinstance(body.input, str):
        turns.open("user")
        turns.text(body.input)
        return turns
    for number, item in enumerate(body.input):
        turns.open("system" if item.role == "developer" else item.role)
        if isinstance(item.content, str):
            turns.text(item.content)
            continue
        for index, part in enumerate(item.content):
            if isinstance(part, InputImage):
                turns.picture(part.image_url, f"input.{number}.content.{index}.image_url")
            else:
                turns.text(part.text)
    return turns


def _check(body: ResponsesBody) -> None:
    """Raises  ApiError for members that don't go together."""
    if body.top_logprobs and LOGPROBS not in (body.include or []):
        raise invalid(f'top_logprobs: needs include ["{LOGPROBS}"]', param="top_logprobs")
    if body.top_p not in (None, 1) and body.temperature is None:
        message = "top_p: has no effect without a temperature: answers are greedy unless it is given"
        raise invalid(message, param="top_p")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options: has no effect without stream", param="stream_options")
