"""/v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from muomni.serve.schemas.base import Body, Reply
from muomni.serve.schemas.chat import AudioPart, ImagePart, TextPart
from muomni.serve.settings import MOST_TEXTS

Item = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]
Words = Annotated[str, Field(min_length=1)]


class EmbeddingsBody(Body):
    """Texts to be embedded; as an extension also pictures, by the parts of a conversation."""

    model: str
    input: Words | Annotated[list[Words | Item], Field(min_length=1, max_length=MOST_TEXTS)]
    dimensions: Annotated[int, Field(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


class Embedding(Reply):
    """A unit vector, as numbers or as the bytes of float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Read(Reply):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(Reply):
    """The vectors, in the order of what was asked."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: Read
