"""/v1/embeddings and /v1/images/generations, as the official client asks them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from served import Running, http
from test_refusals import error_of
from test_served_chat import image, words

from muomni.infer.engine import Engine

TEXTS = ["the red circle", "blue", "the red circle is left of the blue square"]


def test_vectors_are_the_engines_in_both_encodings(client: openai.OpenAI, engine: Engine) -> None:
    expected = engine.embed(texts=TEXTS).numpy()
    packed = client.embeddings.create(model="tiny", input=TEXTS)  # the client asks for base64 by itself
    plain = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
    for reply in (packed, plain):
        assert [each.index for each in reply.data] == [0, 1, 2]
        assert np.array_equal(np.array([each.embedding for each in reply.data], dtype=np.float32), expected)
        assert reply.usage.prompt_tokens > 3
    one = client.embeddings.create(model="tiny", input=TEXTS[0], dimensions=expected.shape[1])
    assert np.allclose(one.data[0].embedding, expected[0], atol=1e-5)


def test_pictures_are_embedded_beside_texts(client: openai.OpenAI, engine: Engine, media: Path) -> None:
    given: Any = ["red", image(media / "red.png"), words("blue"), image(media / "blue.png")]
    reply = client.embeddings.create(model="tiny", input=given)
    texts = engine.embed(texts=["red", "blue"]).numpy()
    pictures = engine.embed(images=[media / "red.png", media / "blue.png"]).numpy()
    vectors = np.array([each.embedding for each in reply.data])
    assert np.allclose(vectors, np.stack([texts[0], pictures[0], texts[1], pictures[1]]), atol=1e-5)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("input", ""),
        ("input", []),
        ("input", [1, 2, 3]),
        ("input", [[1, 2]]),
        ("input", ["a", ""]),
        ("dimensions", 3),
        ("encoding_format", "int8"),
        ("model", "text-embedding-3-small"),
        ("input", [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]),
    ],
)
def test_vectors_that_can_not_be_as_asked_are_refused(tiny: Running, member: str, value: Any) -> None:
    response = http.post(f"{tiny.url}/v1/embeddings", json={"model": "tiny", "input": "a", member: value})
    assert response.status_code == (404 if member == "model" else 400)
    assert (error_of(response)["param"] or "").split(".")[0] == member


def test_a_token_model_draws(tokens: Running) -> None:
    engine = tokens.server.engine
    reply = tokens.client().images.generate(
        model="tokens", prompt="a red circle", n=2, size="auto", extra_body={"seed": 5}
    )
    assert reply.data is not None
    expected = engine.draw(["a red circle"] * 2, seed=5)
    for made, pixels in zip(reply.data, expected, strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(made.b64_json or "")))
        assert picture.format == "PNG"
        assert np.array_equal(np.array(picture), pixels)
    assert reply.size == "16x16"


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_pictures_come_in_three_forms(tokens: Running, form: Any) -> None:
    reply = tokens.client().images.generate(prompt="one", output_format=form, response_format="b64_json")
    assert reply.data is not None
    assert Image.open(io.BytesIO(base64.b64decode(reply.data[0].b64_json or ""))).format == form.upper()


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("size", "1024x1024"),
        ("response_format", "url"),
        ("stream", True),
        ("prompt", " "),
        ("n", 11),
        ("style", "vivid"),
    ],
)
def test_pictures_that_can_not_be_as_asked_are_refused(tokens: Running, member: str, value: Any) -> None:
    response = http.post(f"{tokens.url}/v1/images/generations", json={"prompt": "one", member: value})
    assert response.status_code == 400
    assert error_of(response)["param"] == member


def test_what_no_stage_taught_is_a_404_that_names_the_stage(tiny: Running, tokens: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="stage mmpt is missing"):
        tiny.client().images.generate(model="tiny", prompt="a red circle")
    client = tokens.client()
    asked: Any = [{"role": "user", "content": "one"}]
    with pytest.raises(openai.NotFoundError, match="stage hearing is missing"):
        client.audio.transcriptions.create(model="tokens", file=("a.wav", b"RIFF"))
    with pytest.raises(openai.NotFoundError, match="stage vision is missing"):
        client.embeddings.create(model="tokens", input="one")
    assert client.chat.completions.create(model="tokens", messages=asked, max_tokens=2).choices
