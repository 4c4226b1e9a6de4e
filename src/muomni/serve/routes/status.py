"""GET /health, /metrics, /v1/models: what is here, and how it is."""

from typing import TYPE_CHECKING, Any, Literal

from muomni.serve.replies import ERRORS, JSON
from muomni.serve.schemas.base import Reply
from muomni.serve.server import Server

if TYPE_CHECKING:
    from fastapi import APIRouter


class Model(Reply):
    """The run that is served. Beyond the official API: what it can do, and the stage that is missing for the
    rest."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    abilities: list[str]
    missing: dict[str, str]
    voices: list[str]


class Models(Reply):
    """All there are."""

    object: Literal["list"]
    data: list[Model]


class Health(Reply):
    """Whether requests are answered."""

    status: Literal["ok", "draining", "weights_changed"]
    model: str


def router(server: Server) -> "APIRouter":
    """The routes that tell about the server."""
    from fastapi import APIRouter
    from starlette.responses import Response

    routes = APIRouter(tags=["status"])

    def model() -> Model:
        return Model(
            id=server.name,
            object="model",
            created=server.created,
            owned_by="muomni",
            abilities=server.abilities.names,
            missing=server.abilities.missing,
            voices=server.abilities.voice_names,
        )

    @routes.get("/v1/models", responses={200: {"model": Models}, **ERRORS}, summary="The run that is served")
    async def models() -> Any:
        return JSON(Models(object="list", data=[model()]).sent())

    @routes.get(
        "/v1/models/{name}", responses={200: {"model": Model}, **ERRORS}, summary="The same, by its name"
    )
    async def one(name: str) -> Any:
        server.admit(name)
        return JSON(model().sent())

    @routes.get("/health", responses={200: {"model": Health}, 503: {"model": Health}}, summary="Is it well?")
    async def health() -> Any:
        changed = server.weights.changed() is not None
        how = "weights_changed" if changed else "draining" if server.is_draining else "ok"
        return JSON({"status": how, "model": server.name}, 200 if how == "ok" else 503)

    @routes.get(
        "/metrics",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **ERRORS},
        response_class=Response,
        summary="Counters, as Prometheus reads them",
    )
    async def metrics() -> Any:
        content, media_type = server.metrics.text()
        return Response(content, media_type=media_type)

    return routes
