"""POST /v1/embeddings: texts and pictures -> unit vectors in one space."""

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL.Image import Image

from muomni.infer.engine import Engine
from muomni.serve import media, sse
from muomni.serve.abilities import EMBED
from muomni.serve.errors import invalid
from muomni.serve.replies import ERRORS, JSON
from muomni.serve.schemas.chat import AudioPart, ImagePart
from muomni.serve.schemas.embeddings import Embedding, Embeddings, EmbeddingsBody, Item, Read
from muomni.serve.server import Server

if TYPE_CHECKING:
    from fastapi import APIRouter


def router(server: Server) -> "APIRouter":
    """The route of embeddings."""
    from fastapi import APIRouter, Request

    routes = APIRouter(tags=["embeddings"])

    @routes.post(
        "/v1/embeddings", responses={200: {"model": Embeddings}, **ERRORS}, summary="Embed texts and pictures"
    )
    async def create(body: EmbeddingsBody, request: Request) -> Any:
        server.abilities.need(EMBED)
        server.admit(body.model)
        given = [body.input] if isinstance(body.input, str) else body.input
        width = server.engine.parts.vision[0].config.embed_dim
        if body.dimensions not in (None, width):
            message = f"dimensions: this model's vectors have {width}"
            raise invalid(message, param="dimensions")
        items = await server.decode(_read, server, given)
        vectors_NE, tokens = await sse.unless_gone(
            request.receive, server.work.call(lambda engine: _embedded(engine, items))
        )
        server.metrics.tokens.labels("prompt").inc(tokens)
        is_packed = body.encoding_format == "base64"
        data = [
            Embedding(object="embedding", index=place, embedding=_packed(row) if is_packed else row.tolist())
            for place, row in enumerate(vectors_NE)
        ]
        usage = Read(prompt_tokens=tokens, total_tokens=tokens)
        return JSON(Embeddings(object="list", model=server.name, data=data, usage=usage).sent())

    return routes


def _read(server: Server, given: Sequence[str | Item]) -> list[str | Image]:
    """Texts as they are, pictures decoded."""
    items: list[str | Image] = []
    pictures = 0
    for place, each in enumerate(given):
        if isinstance(each, str):
            items.append(each)
        elif isinstance(each, ImagePart):
            pictures += 1
            if pictures > (most := server.limits.media):
                raise invalid(f"input: at most {most} pictures a request", param="input")
            items.append(media.picture(each.image_url.url, server.limits, f"input.{place}.image_url.url"))
        elif isinstance(each, AudioPart):
            message = f"input.{place}: this model embeds no sounds: no stage of a run teaches that"
            raise invalid(message, param=f"input.{place}")
        else:
            items.append(each.text)
    return items


def _embedded(engine: Engine, items: Sequence[str | Image]) -> tuple[np.ndarray[Any, Any], int]:
    """Unit vectors (N, E) float32, and how many tokens the texts have."""
    texts = [place for place, each in enumerate(items) if isinstance(each, str)]
    pictures = [place for place, each in enumerate(items) if not isinstance(each, str)]
    rows: dict[int, torch.Tensor] = {}
    if texts:
        rows |= dict(zip(texts, engine.embed(texts=[str(items[place]) for place in texts])))
    if pictures:
        shown: list[Any] = [items[place] for place in pictures]
        rows |= dict(zip(pictures, engine.embed(images=shown)))
    tokenizer = engine.parts.vision[2]
    tokens = sum(len(tokenizer.encode(str(items[place]))) for place in texts)
    return np.stack([rows[place].float().cpu().numpy() for place in range(len(items))]), tokens


def _packed(row: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
