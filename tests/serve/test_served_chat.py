"""/v1/chat/completions, as the official client asks it."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
from served import Running

from muomni.infer.engine import Engine
from muomni.infer.prompt import Request

ASKED: list[Any] = [{"role": "user", "content": "the red circle"}]


def data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def image(path: Path) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(path)}}


def recording(path: Path) -> dict[str, Any]:
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def user(*parts: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


# --- text -------------------------------------------------------------------------------------------------------------------------------


def test_an_answer_is_the_engines(client: openai.OpenAI, engine: Engine) -> None:
    expected = engine.answer("the red circle", max_new=12)
    reply = client.chat.completions.create(model="tiny", messages=ASKED, max_completion_tokens=12)
    (choice,) = reply.choices
    assert choice.message.content == expected.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == {"end": "stop", "stop": "stop", "length": "length"}[expected.finish]
    assert reply.object == "chat.completion"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == len(expected.token_ids)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_stream_joins_to_the_whole_answer_and_ends_with_its_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=12)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=ASKED, max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
    )
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        == whole.choices[0].message.content
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 5


def test_without_asking_for_it_no_chunk_has_usage(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=3, stream=True))
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)


def test_the_asynchronous_client_does_both(tiny: Running) -> None:
    async def asked() -> tuple[str | None, str]:
        client = tiny.aio()
        whole = await client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=9)
        stream = await client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=9, stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return whole.choices[0].message.content, "".join(parts)

    whole, joined = asyncio.run(asked())
    assert whole == joined


def test_the_clients_own_stream_helper_understands_the_chunks(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=12)
    text = whole.choices[0].message.content or ""
    # The helper raises where an answer ends by its length, as the official one does.
    with client.chat.completions.stream(model="tiny", messages=ASKED, max_tokens=12, stop=text[5]) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == text[: text.index(text[5])]


def test_pictures_and_sounds_answer_as_the_engine_has_it(
    client: openai.OpenAI, engine: Engine, media: Path
) -> None:
    expected = engine.answer("what is it", images=[media / "red.png"], audios=[media / "low.wav"], max_new=8)
    reply = client.chat.completions.create(
        model="tiny",
        messages=user(image(media / "red.png"), recording(media / "low.wav"), words("what is it")),
        max_completion_tokens=8,
    )
    assert reply.choices[0].message.content == expected.text
    assert reply.usage is not None
    details = reply.usage.prompt_tokens_details
    assert details is not None
    assert details.audio_tokens is not None
    assert details.audio_tokens > 0
    prompt = engine.prepare(Request("what is it", [media / "red.png"], [media / "low.wav"]))
    assert reply.usage.prompt_tokens == len(prompt.ids)


def test_several_turns_are_rendered_in_their_order(
    client: openai.OpenAI, engine: Engine, media: Path
) -> None:
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "image", "path": str(media / "red.png")}, words("what")]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "is it"},
    ]
    expected = engine.answer(turns, max_new=8)
    messages: list[Any] = [
        {"role": "developer", "content": "be brief"},
        *user(image(media / "red.png"), words("what")),
        {"role": "assistant", "content": [words("red")]},
        {"role": "user", "content": "is it"},
    ]
    reply = client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=8)
    assert reply.choices[0].message.content == expected.text


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=12)
    text = whole.choices[0].message.content or ""
    stop = text[3]
    reply = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=12, stop=["nowhere", stop]
    )
    assert reply.choices[0].message.content == text[: text.index(stop)]
    assert reply.choices[0].finish_reason == "stop"


def test_seeds_repeat_and_choices_differ(client: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str | None]:
        reply = client.chat.completions.create(
            model="tiny", messages=ASKED, max_tokens=10, temperature=1.5, seed=seed, n=3
        )
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        return [choice.message.content for choice in reply.choices]

    first = texts(-7)
    assert texts(-7) == first
    assert len(set(first)) == 3
    assert texts(8) != first


def test_the_choices_of_a_stream_are_told_apart(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"temperature": 1.2, "seed": 3, "n": 2, "max_tokens": 8}
    whole = client.chat.completions.create(model="tiny", messages=ASKED, **asked)
    texts = ["", ""]
    for chunk in client.chat.completions.create(model="tiny", messages=ASKED, stream=True, **asked):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_log_probabilities_name_each_token_and_the_likeliest(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"max_tokens": 5, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(model="tiny", messages=ASKED, **asked)
    scored = whole.choices[0].logprobs
    assert scored is not None
    assert scored.content is not None
    assert len(scored.content) == 5
    assert all(len(each.top_logprobs) == 2 for each in scored.content)
    joined = b"".join(bytes(each.bytes or []) for each in scored.content)
    assert joined.decode("utf-8", "replace") == whole.choices[0].message.content
    streamed = [
        each.logprob
        for chunk in client.chat.completions.create(model="tiny", messages=ASKED, stream=True, **asked)
        for choice in chunk.choices
        if choice.logprobs
        for each in choice.logprobs.content or []
    ]
    assert streamed == [each.logprob for each in scored.content]


def test_without_a_limit_the_answer_may_fill_the_context(client: openai.OpenAI, engine: Engine) -> None:
    reply = client.chat.completions.create(model="tiny", messages=ASKED)
    assert reply.usage is not None
    if reply.choices[0].finish_reason == "length":
        assert reply.usage.total_tokens == engine.parts.thinker.config.ctx_len


# --- speech -----------------------------------------------------------------------------------------------------------------------------


def test_a_spoken_answer_is_a_file_with_its_words(client: openai.OpenAI, engine: Engine) -> None:
    expected = engine.answer("the red circle", max_new=12, speak=True)
    reply = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        modalities=["text", "audio"],
        audio={"voice": "default", "format": "wav"},
        max_completion_tokens=12,
    )
    message = reply.choices[0].message
    assert message.content is None
    assert message.audio is not None
    assert message.audio.transcript == expected.text
    wave, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(message.audio.data)), dtype="float32")
    assert expected.audio is not None
    assert rate_hz == expected.audio[1]
    assert np.allclose(wave, np.clip(expected.audio[0], -1, 1), atol=1e-4)
    assert reply.usage is not None
    assert reply.usage.completion_tokens_details is not None
    assert reply.usage.completion_tokens_details.audio_tokens


@pytest.mark.parametrize("form", ["mp3", "flac", "opus", "pcm16"])
def test_every_form_of_a_spoken_answer_can_be_read(client: openai.OpenAI, form: Any) -> None:
    reply = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        modalities=["text", "audio"],
        audio={"voice": "default", "format": form},
        max_completion_tokens=12,
    )
    audio = reply.choices[0].message.audio
    assert audio is not None
    data = base64.b64decode(audio.data)
    if form == "pcm16":
        assert len(data) > 1000
    else:
        assert len(soundfile.read(io.BytesIO(data))[0]) > 1000


def test_a_streamed_spoken_answer_has_its_words_and_samples_as_deltas(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"messages": ASKED, "max_completion_tokens": 12, "modalities": ["text", "audio"]}
    whole = client.chat.completions.create(
        model="tiny", audio={"voice": "default", "format": "pcm16"}, **asked
    )
    stream = client.chat.completions.create(
        model="tiny", audio={"voice": "default", "format": "pcm16"}, stream=True, **asked
    )
    words_said, data, names, expires, finish = "", b"", set(), None, None
    for chunk in stream:
        (choice,) = chunk.choices
        finish = choice.finish_reason or finish
        assert choice.delta.content is None
        if (audio := choice.delta.audio) is not None:
            names |= {audio.id} - {None}
            words_said += audio.transcript or ""
            data += base64.b64decode(audio.data or "")
            expires = audio.expires_at or expires
    said = whole.choices[0].message.audio
    assert said is not None
    assert words_said == said.transcript
    assert len(names) == 1
    assert expires
    assert finish == "length"
    assert (
        abs(len(data) - len(base64.b64decode(said.data))) <= 2 * 24_000 * 0.01
    )  # seams shift by 5 ms at most


def test_a_later_turn_can_name_a_spoken_answer(client: openai.OpenAI) -> None:
    spoken: dict[str, Any] = {"modalities": ["text", "audio"], "audio": {"voice": "default", "format": "wav"}}
    said = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=6, **spoken)
    audio = said.choices[0].message.audio
    assert audio is not None
    after: list[Any] = [{"role": "user", "content": "is it"}]
    named = [*ASKED, {"role": "assistant", "audio": {"id": audio.id}}, *after]
    written = [*ASKED, {"role": "assistant", "content": audio.transcript}, *after]
    replies = [
        client.chat.completions.create(model="tiny", messages=turns, max_tokens=6)
        for turns in (named, written)
    ]
    assert replies[0].choices[0].message.content == replies[1].choices[0].message.content
    gone: list[Any] = [*ASKED, {"role": "assistant", "audio": {"id": "audio-0"}}, *after]
    with pytest.raises(openai.BadRequestError, match="no spoken answer") as caught:
        client.chat.completions.create(model="tiny", messages=gone)
    assert caught.value.param == "messages.1.audio.id"
