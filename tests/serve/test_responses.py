"""/v1/responses, as the official client asks it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from served import Running, http
from test_refusals import error_of
from test_served_chat import data_url

from muomni.infer.engine import Engine

ASKED = "the red circle"


def test_an_answer_is_the_engines(client: openai.OpenAI, engine: Engine) -> None:
    expected = engine.answer(ASKED, max_new=12)
    reply = client.responses.create(model="tiny", input=ASKED, max_output_tokens=12)
    assert reply.output_text == expected.text
    assert reply.status == ("incomplete" if expected.finish == "length" else "completed")
    if reply.incomplete_details is not None:
        assert reply.incomplete_details.reason == "max_output_tokens"
    assert reply.usage is not None
    assert reply.usage.output_tokens == len(expected.token_ids)


def test_pictures_instructions_and_turns(client: openai.OpenAI, engine: Engine, media: Path) -> None:
    turns = [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "image", "path": str(media / "red.png")},
                {"type": "text", "text": "what"},
            ],
        },
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "is it"},
    ]
    expected = engine.answer(turns, max_new=8)
    given: Any = [
        {
            "role": "user",
            "content": [
                {"type": "input_image", "image_url": data_url(media / "red.png"), "detail": "auto"},
                {"type": "input_text", "text": "what"},
            ],
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "red"}]},
        {"role": "user", "content": "is it"},
    ]
    reply = client.responses.create(model="tiny", instructions="be brief", input=given, max_output_tokens=8)
    assert reply.output_text == expected.text


def test_the_events_tell_one_answer_in_their_order(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="tiny", input=ASKED, max_output_tokens=12)
    events: list[Any] = list(
        client.responses.create(model="tiny", input=ASKED, max_output_tokens=12, stream=True)
    )
    kinds = [each.type for each in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete" if whole.status == "incomplete" else "response.completed",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert "".join(each.delta for each in events[4:-4]) == whole.output_text
    assert [each.sequence_number for each in events] == list(range(len(events)))
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage == whole.usage
    assert events[-4].text == whole.output_text


def test_the_clients_own_stream_helper_and_the_asynchronous_client(tiny: Running) -> None:
    with tiny.client().responses.stream(model="tiny", input=ASKED, max_output_tokens=9) as stream:
        joined = "".join(each.delta for each in stream if each.type == "response.output_text.delta")

    async def asked() -> str:
        reply = await tiny.aio().responses.create(model="tiny", input=ASKED, max_output_tokens=9)
        return reply.output_text

    assert asyncio.run(asked()) == joined


def test_log_probabilities_come_where_they_are_included(client: openai.OpenAI) -> None:
    reply = client.responses.create(
        model="tiny",
        input=ASKED,
        max_output_tokens=4,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    content: Any = reply.output[0]
    assert len(content.content[0].logprobs) == 4
    assert len(content.content[0].logprobs[0].top_logprobs) == 2


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("previous_response_id", "resp_1"),
        ("tools", [{"type": "web_search"}]),
        ("background", True),
        ("reasoning", {"effort": "high"}),
        ("text", {"format": {"type": "json_schema", "name": "x", "schema": {}}}),
        ("truncation", "auto"),
        ("top_logprobs", 2),
        ("top_p", 0.5),
        ("input", []),
        ("input", [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]),
        ("input", [{"role": "assistant", "content": "hello"}]),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "https://a/b"}]}]),
        ("surprise", 1),
        ("model", "gpt-5"),
    ],
)
def test_what_can_not_be_honoured_is_refused(tiny: Running, member: str, value: Any) -> None:
    response = http.post(f"{tiny.url}/v1/responses", json={"model": "tiny", "input": ASKED, member: value})
    assert response.status_code == (404 if member == "model" else 400)
    assert (error_of(response)["param"] or "").split(".")[0] == member
