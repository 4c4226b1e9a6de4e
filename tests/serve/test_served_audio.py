"""/v1/audio/speech and /v1/audio/transcriptions, as the official client asks them."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
from served import Running, http
from test_refusals import error_of

from muomni.infer.engine import Engine
from muomni.media import audio
from muomni.serve import sound

TEXT = "the red circle is left of the blue square"


# --- speech -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["wav", "flac", "mp3", "opus", "pcm"])
def test_speech_is_the_engines_in_every_form(client: openai.OpenAI, engine: Engine, form: Any) -> None:
    wave, rate_hz = engine.speak([TEXT])[0]
    reply = client.audio.speech.create(model="tiny", input=TEXT, voice="default", response_format=form)
    content = reply.content
    assert reply.response.headers["content-type"] == sound.MEDIA_TYPES[form]
    if form == "pcm":
        seconds = len(content) / 2 / sound.PCM_RATE_HZ
    else:
        samples, read_hz = soundfile.read(io.BytesIO(content))
        seconds = len(samples) / read_hz
        assert np.abs(samples).max() > 0.01
    assert seconds == pytest.approx(len(wave) / rate_hz, abs=0.006)


def test_mp3_is_the_form_if_none_is_asked_for(client: openai.OpenAI) -> None:
    reply = client.audio.speech.create(model="tiny", input=TEXT, voice="default")
    assert reply.response.headers["content-type"] == "audio/mpeg"
    assert audio.info(reply.content).form == "MP3"


def test_a_streamed_wav_is_readable_and_comes_in_pieces(client: openai.OpenAI, tmp_path: Path) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="tiny", input=TEXT, voice="default", response_format="wav"
    ) as reply:
        pieces = list(reply.iter_bytes())
    whole = b"".join(pieces)
    path = tmp_path / "a.wav"
    path.write_bytes(whole)
    assert len(audio.read(path, 16_000)) > 1000
    assert len(soundfile.read(path)[0]) > 1000


def test_speech_as_events_joins_to_the_same_samples(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "input": TEXT, "voice": "default", "response_format": "pcm"}
    whole = client.audio.speech.create(**asked).content
    with client.audio.speech.with_streaming_response.create(**asked, stream_format="sse") as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        import json

        events = [json.loads(line[5:]) for line in reply.iter_lines() if line.startswith("data:")]
    assert {each["type"] for each in events[:-1]} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(each["audio"]) for each in events[:-1]) == whole
    assert len(events) > 3
    assert events[-1]["type"] == "speech.audio.done"
    usage = events[-1]["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens"] > 1


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("voice", "alloy"),
        ("speed", 1.5),
        ("instructions", "cheerfully"),
        ("response_format", "aac"),
        ("input", ""),
        ("input", "..."),
        ("input", "a" * 5000),
        ("stream_format", "mp3"),
        ("model", "tts-1"),
    ],
)
def test_speech_that_can_not_be_as_asked_is_refused(tiny: Running, member: str, value: str) -> None:
    body = {"model": "tiny", "input": TEXT, "voice": "default", member: value}
    response = http.post(f"{tiny.url}/v1/audio/speech", json=body)
    assert response.status_code == (404 if member == "model" else 400)
    assert error_of(response)["param"] == member


def test_a_token_model_speaks_too(tokens: Running) -> None:
    client = tokens.client()
    wave, rate_hz = tokens.server.engine.speak(["a red circle"])[0]
    reply = client.audio.speech.create(
        model="tokens", input="a red circle", voice="default", response_format="wav"
    )
    samples, read_hz = soundfile.read(io.BytesIO(reply.content))
    assert (len(samples), read_hz) == (len(wave), rate_hz)


# --- transcriptions ---------------------------------------------------------------------------------------------------------------------


def recording(media: Path) -> Path:
    return media / "low.wav"


def test_a_transcription_is_the_engines(client: openai.OpenAI, engine: Engine, media: Path) -> None:
    expected = engine.transcribe([recording(media)])[0]
    reply = client.audio.transcriptions.create(model="tiny", file=recording(media))
    assert reply.text == expected
    assert reply.usage is not None
    assert reply.usage.type == "duration"
    assert reply.usage.seconds == pytest.approx(1.0)
    text = client.audio.transcriptions.create(model="tiny", file=recording(media), response_format="text")
    assert text.strip() == expected.strip()


def test_verbose_has_words_and_segments_with_their_times(client: openai.OpenAI, media: Path) -> None:
    reply = client.audio.transcriptions.create(
        model="tiny",
        file=recording(media),
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert reply.duration == pytest.approx(1.0)
    assert reply.words is not None
    assert reply.segments is not None
    assert " ".join(each.word for each in reply.words) == " ".join(reply.text.split())
    assert " ".join(each.text for each in reply.segments) == " ".join(reply.text.split())
    times = [time for each in reply.words for time in (each.start, each.end)]
    assert times == sorted(times)
    assert all(0 <= time <= 1.0 for time in times)
    only = client.audio.transcriptions.create(
        model="tiny", file=recording(media), response_format="verbose_json"
    )
    assert only.words is None
    assert only.segments is not None


def test_subtitles_have_clocks(client: openai.OpenAI, media: Path) -> None:
    srt = client.audio.transcriptions.create(model="tiny", file=recording(media), response_format="srt")
    vtt = client.audio.transcriptions.create(model="tiny", file=recording(media), response_format="vtt")
    assert vtt.startswith("WEBVTT\n")
    if srt.strip():
        assert re.match(r"1\n00:00:0\d,\d{3} --> 00:00:0\d,\d{3}\n.+\n", srt)
        assert re.search(r"\n00:00:0\d\.\d{3} --> 00:00:0\d\.\d{3}\n", vtt)


def test_a_streamed_transcription_joins_to_the_text(client: openai.OpenAI, media: Path) -> None:
    whole = client.audio.transcriptions.create(model="tiny", file=recording(media))
    events = list(client.audio.transcriptions.create(model="tiny", file=recording(media), stream=True))
    assert {each.type for each in events[:-1]} <= {"transcript.text.delta"}
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == whole.text
    assert "".join(each.delta for each in events[:-1] if each.type == "transcript.text.delta") == whole.text
    assert events[-1].usage is not None


def test_the_asynchronous_client_transcribes_bytes(tiny: Running, engine: Engine, media: Path) -> None:
    async def asked() -> str:
        content = recording(media).read_bytes()
        reply = await tiny.aio().audio.transcriptions.create(model="tiny", file=("a.wav", content))
        return reply.text

    assert asyncio.run(asked()) == engine.transcribe([recording(media)])[0]


def test_speech_that_was_saved_is_written_down_again(
    client: openai.OpenAI, engine: Engine, tmp_path: Path
) -> None:
    for form in ("wav", "flac", "mp3", "opus"):
        path = tmp_path / f"said.{form}"
        client.audio.speech.create(
            model="tiny",
            input=TEXT,
            voice="default",
            response_format=form,  # type: ignore[arg-type]
        ).write_to_file(path)
        reply = client.audio.transcriptions.create(model="tiny", file=path)
        assert reply.text == engine.transcribe([path])[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("language", "de"),
        ("prompt", "names: Ann"),
        ("temperature", "0.7"),
        ("response_format", "diarized_json"),
        ("include[]", "logprobs"),
        ("timestamp_granularities[]", "word"),
        ("stream", "perhaps"),
        ("surprise", "1"),
        ("model", "whisper-1"),
    ],
)
def test_fields_that_can_not_be_honoured_are_refused(
    tiny: Running, media: Path, field: str, value: str
) -> None:
    response = http.post(
        f"{tiny.url}/v1/audio/transcriptions",
        data={"model": "tiny", field: value},
        files={"file": ("a.wav", recording(media).read_bytes())},
    )
    assert response.status_code == (404 if field == "model" else 400)
    assert (error_of(response)["param"] or "").split(".")[0] == field.removesuffix("[]")


def test_a_stream_of_subtitles_is_refused(tiny: Running, media: Path) -> None:
    response = http.post(
        f"{tiny.url}/v1/audio/transcriptions",
        data={"model": "tiny", "stream": "true", "response_format": "srt"},
        files={"file": ("a.wav", recording(media).read_bytes())},
    )
    assert response.status_code == 400
    assert error_of(response)["param"] == "response_format"


@pytest.mark.parametrize("content", [b"", b"no sound", b"RIFF, but no more", b"\x00" * 1000])
def test_a_file_that_is_no_sound_is_refused(tiny: Running, content: bytes) -> None:
    response = http.post(
        f"{tiny.url}/v1/audio/transcriptions", data={"model": "tiny"}, files={"file": ("a.wav", content)}
    )
    assert response.status_code == 400
    assert error_of(response)["param"] == "file"


def test_forms_that_are_none_are_refused(tiny: Running) -> None:
    url = f"{tiny.url}/v1/audio/transcriptions"
    assert http.post(url, json={"model": "tiny"}).status_code == 415
    head = {"content-type": "multipart/form-data; boundary=x"}
    for content in (b"", b"--x", b"--x\r\nnothing\r\n", b"\xff" * 100):
        response = http.post(url, content=content, headers=head)
        assert response.status_code == 400, response.text
        error_of(response)
    response = http.post(url, data={"model": "tiny", "file": "/etc/passwd"})
    assert response.status_code in (400, 415)
    response = http.post(url, content=b"", headers={"content-type": "multipart/form-data"})
    assert response.status_code == 400
