"""What is refused, with which status, by which words: the API's error object, and never more than that."""

from __future__ import annotations

import base64
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from served import Running, http, serving

from muomni.infer.engine import Engine
from muomni.media import audio
from muomni.serve.settings import Limits

ASKED: list[Any] = [{"role": "user", "content": "the red circle"}]


def post(tiny: Running, path: str, body: Any, **how: Any) -> httpx.Response:
    return http.post(f"{tiny.url}{path}", json=body, timeout=600, **how)


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert str(Path.cwd()) not in response.text
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("member", "value", "code"),
    [
        ("frequency_penalty", 0.5, "invalid_value"),
        ("logit_bias", {"5": 1}, "invalid_value"),
        ("tools", [{"type": "function", "function": {"name": "f"}}], "invalid_value"),
        ("response_format", {"type": "json_object"}, "invalid_value"),
        ("prediction", {"type": "content", "content": "x"}, "unsupported_parameter"),
        ("web_search_options", {}, "unsupported_parameter"),
        ("temperature", 2.5, "invalid_value"),
        ("temperature", "1", "invalid_value"),
        ("top_p", 0.5, None),
        ("n", 0, "invalid_value"),
        ("n", 1000, "invalid_value"),
        ("max_tokens", 0, "invalid_value"),
        ("top_logprobs", 3, None),
        ("stream_options", {"include_usage": True}, None),
        ("stop", ["a", "b", "c", "d", "e"], "invalid_value"),
        ("stop", [""], None),
        ("modalities", ["text", "audio"], None),
        ("modalities", ["video"], "invalid_value"),
        ("audio", {"voice": "default", "format": "wav"}, None),
        ("surprise", 1, "unknown_parameter"),
        ("messages", [], "invalid_value"),
        ("model", "gpt-4o", "model_not_found"),
    ],
)
def test_what_can_not_be_honoured_is_refused_by_its_name(
    tiny: Running, member: str, value: Any, code: str | None
) -> None:
    response = post(tiny, "/v1/chat/completions", {"model": "tiny", "messages": ASKED, member: value})
    error = error_of(response)
    assert response.status_code == (404 if member == "model" else 400)
    assert error["type"] == "invalid_request_error"
    assert (error["param"] or "").split(".")[0] == (
        "audio" if member == "modalities" and code is None else member
    )
    assert error["code"] == code


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("user", "me"),
        ("metadata", {"a": "b"}),
        ("store", False),
        ("safety_identifier", "x"),
        ("service_tier", "auto"),
        ("frequency_penalty", 0),
        ("presence_penalty", 0.0),
        ("tools", None),
        ("tools", []),
        ("logit_bias", {}),
        ("response_format", {"type": "text"}),
        ("parallel_tool_calls", True),
        ("stop", None),
        ("modalities", ["text"]),
        ("top_p", 1),
    ],
)
def test_what_changes_nothing_is_taken(tiny: Running, member: str, value: Any) -> None:
    body = {"model": "tiny", "messages": ASKED, "max_tokens": 2, member: value}
    response = post(tiny, "/v1/chat/completions", body)
    assert response.status_code == 200, response.text


def test_a_missing_member_is_named(tiny: Running) -> None:
    for body, param in (
        ({"model": "tiny"}, "messages"),
        ({"messages": ASKED}, "model"),
        ({"model": "tiny", "messages": [{"role": "user"}]}, "messages.0.content"),
    ):
        response = post(tiny, "/v1/chat/completions", body)
        assert response.status_code == 400
        assert error_of(response)["param"] == param
        assert error_of(response)["code"] == "missing_required_parameter"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1,", b"nothing", b'{"model": NaN}', b"\xff\xfe", b"[" * 100_000, b"9" * 10_000],
)
def test_a_body_that_is_no_json_is_a_400(tiny: Running, content: bytes) -> None:
    response = http.post(
        f"{tiny.url}/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400, response.text
    error_of(response)


def test_an_unknown_name_may_hold_any_characters(tiny: Running) -> None:
    text = json.dumps({"model": "tiny", "messages": ASKED, "\ud800 \x00": 1})
    response = http.post(
        f"{tiny.url}/v1/chat/completions", content=text, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    error_of(response)


def test_other_content_types_are_refused(tiny: Running) -> None:
    # What a page of another host can send without asking the browser's leave.
    body = json.dumps({"model": "tiny", "messages": ASKED})
    response = http.post(
        f"{tiny.url}/v1/chat/completions", content=body, headers={"content-type": "text/plain"}
    )
    assert response.status_code in (400, 415)
    error_of(response)


def test_unknown_places_and_methods_name_those_that_are_here(tiny: Running) -> None:
    response = http.get(f"{tiny.url}/v1/nothing")
    assert response.status_code == 404
    assert "/v1/chat/completions" in error_of(response)["message"]
    response = http.get(f"{tiny.url}/v1/chat/completions")
    assert response.status_code == 405
    error_of(response)


# --- media ------------------------------------------------------------------------------------------------------------------------------


def with_part(part: dict[str, Any]) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": [part]}], "max_tokens": 2}


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/a.png",
        "https://example.com/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "a.tar!0+10!x.png",
        "ftp://a/b",
        "data:text/html;base64,AAAA",
        "data:image/png,plain",
        "data:image/png;base64,",
        "data:image/png;base64,not base64!",
        "data:image/png;base64,AAAA",
        "",
    ],
)
def test_a_picture_is_in_the_request_or_refused(tiny: Running, url: str) -> None:
    response = post(tiny, "/v1/chat/completions", with_part({"type": "image_url", "image_url": {"url": url}}))
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == "messages.0.content.0.image_url.url"
    assert "root:" not in response.text


def test_no_socket_is_opened_for_a_picture(tiny: Running) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.3)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.png"
        part = {"type": "image_url", "image_url": {"url": url}}
        assert post(tiny, "/v1/chat/completions", with_part(part)).status_code == 400
        with pytest.raises(TimeoutError):
            listening.accept()


def png(width: int, height: int, folder: Path) -> str:
    path = folder / f"{width}x{height}.png"
    Image.new("L", (width, height)).save(path)
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def wav(seconds: float, folder: Path) -> str:
    path = folder / f"{seconds}.wav"
    wave = 0.3 * np.sin(np.arange(int(seconds * 8000)) / 5).astype(np.float32)
    audio.write(path, wave, 8000)
    return base64.b64encode(path.read_bytes()).decode()


def test_pixels_seconds_and_media_are_limited(engine: Engine, tmp_path: Path) -> None:
    limits = Limits(pixels=10_000, sound_s=2.0, media=2)
    small = {"type": "image_url", "image_url": {"url": png(90, 90, tmp_path)}}
    large = {"type": "image_url", "image_url": {"url": png(200, 90, tmp_path)}}
    long = {"type": "input_audio", "input_audio": {"data": wav(3.0, tmp_path), "format": "wav"}}
    short = {"type": "input_audio", "input_audio": {"data": wav(0.5, tmp_path), "format": "wav"}}
    with serving(engine, limits=limits) as running:
        for part in (small, short):
            assert post(running, "/v1/chat/completions", with_part(part)).status_code == 200
        for part, code in ((large, "too_large"), (long, "too_long")):
            response = post(running, "/v1/chat/completions", with_part(part))
            assert response.status_code == 400
            assert error_of(response)["code"] == code
        body = {"model": "tiny", "messages": [{"role": "user", "content": [small] * 3}]}
        assert "at most 2" in error_of(post(running, "/v1/chat/completions", body))["message"]


def test_a_prompt_beyond_the_context_is_refused(tiny: Running) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a " * 400}]}
    response = post(tiny, "/v1/chat/completions", body)
    assert response.status_code == 400
    assert error_of(response)["code"] == "context_length_exceeded"


# --- what a run can't do ----------------------------------------------------------------------------------------------------------------


def test_a_run_without_a_stage_says_which_one_is_missing(run: Path, tmp_path: Path, media: Path) -> None:
    shutil.copytree(run / "thinker", tmp_path / "only" / "thinker")
    picture = f"data:image/png;base64,{base64.b64encode((media / 'red.png').read_bytes()).decode()}"
    with serving(Engine.load(tmp_path / "only"), name="only") as running:
        client = running.client()
        (model,) = client.models.list().data
        assert model.to_dict()["missing"] == {
            "images": "omni",
            "audio": "omni",
            "transcriptions": "hearing",
            "embeddings": "vision",
            "speech": "talker",
            "drawing": "mmpt",
        }
        assert client.chat.completions.create(model="only", messages=ASKED, max_tokens=2).choices
        shown: list[Any] = [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture}}]}
        ]
        with pytest.raises(openai.BadRequestError, match="stage omni is missing") as caught:
            client.chat.completions.create(model="only", messages=shown)
        assert caught.value.param == "messages.0.content.0.image_url.url"
        with pytest.raises(openai.BadRequestError, match="stage talker is missing"):
            client.chat.completions.create(
                model="only",
                messages=ASKED,
                modalities=["text", "audio"],
                audio={"voice": "default", "format": "wav"},
            )
