"""POST /v1/images/generations: a text -> pictures."""

import base64
import io
import secrets
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from muomni.infer.engine import Engine
from muomni.serve import sse
from muomni.serve.abilities import DRAW
from muomni.serve.errors import invalid
from muomni.serve.replies import ERRORS, JSON
from muomni.serve.schemas.images import Image, Images, ImagesBody
from muomni.serve.server import Server

if TYPE_CHECKING:
    from fastapi import APIRouter

Pixels = NDArray[np.uint8]


def router(server: Server) -> "APIRouter":
    """The route of drawing."""
    from fastapi import APIRouter, Request

    routes = APIRouter(tags=["images"])

    @routes.post(
        "/v1/images/generations", responses={200: {"model": Images}, **ERRORS}, summary="Draw a text"
    )
    async def create(body: ImagesBody, request: Request) -> Any:
        server.abilities.need(DRAW)
        server.admit(body.model)
        if not body.prompt.strip():
            raise invalid("prompt: holds no words", param="prompt", code="empty")
        size = size_of(server.engine)
        if body.size not in (None, "auto", size):
            raise invalid(f"size: this model draws {size}", param="size")
        seed = secrets.randbits(61) if body.seed is None else body.seed
        texts = [body.prompt] * (body.n or 1)
        pictures = await sse.unless_gone(
            request.receive, server.work.call(lambda engine: engine.draw(texts, seed=seed))
        )
        form = body.output_format or "png"
        data = [
            Image(b64_json=base64.b64encode(await server.decode(_file, each, form)).decode())
            for each in pictures
        ]
        made = Images(created=int(time.time()), data=data, background="opaque", output_format=form, size=size)
        return JSON(made.sent())

    return routes


def size_of(engine: Engine) -> str:
    """The one size in which a run draws, WIDTHxHEIGHT."""
    side = engine.parts.writer.tokenizer.codecs["image"].size_px
    return f"{side}x{side}"


def _file(pixels_HW3: Pixels, form: str) -> bytes:
    from PIL.Image import fromarray

    stream = io.BytesIO()
    fromarray(pixels_HW3).save(stream, form.upper())
    return stream.getvalue()
