"""/v1/images/generations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from muomni.serve.schemas.base import Body, Reply, Unsupported
from muomni.serve.settings import MOST_IMAGES


class ImagesBody(Body):
    """A picture to be drawn. A run draws in one size, which `auto` is; `seed` is an extension."""

    prompt: Annotated[str, Field(min_length=1, max_length=4000)]
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MOST_IMAGES)] | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    size: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**62)] | None = None
    background: Literal["opaque", "auto"] | None = None
    moderation: Literal["auto", "low"] | None = None
    quality: Literal["auto"] | None = None
    stream: Literal[False] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    output_compression: Unsupported = None
    partial_images: Unsupported = None
    style: Unsupported = None


class Image(Reply):
    """A picture's file in base64."""

    b64_json: str


class Images(Reply):
    """What was drawn."""

    created: int
    data: list[Image]
    background: Literal["opaque"]
    output_format: Literal["png", "jpeg", "webp"]
    size: str
