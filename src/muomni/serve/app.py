"""The application: routes, what stands before them, and how errors leave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from muomni import __version__
from muomni.errors import MuomniError
from muomni.serve import errors
from muomni.serve.errors import ApiError
from muomni.serve.guard import Counting, Guard
from muomni.serve.replies import api_error, failed
from muomni.serve.routes import chat, embeddings, images, page, responses, speech, status, transcriptions
from muomni.serve.server import Server
from muomni.serve.settings import ServeSettings
from muomni.serve.sse import ClientGone

if TYPE_CHECKING:
    from fastapi import APIRouter, FastAPI

ROUTERS: tuple[Callable[[Server], APIRouter], ...] = (
    status.router,
    chat.router,
    responses.router,
    speech.router,
    transcriptions.router,
    embeddings.router,
    images.router,
    page.router,
)
GONE = 499  # that of a client that went: it never reads it
CODES = {404: "unknown_url", 405: "method_not_allowed"}


def build(server: Server, settings: ServeSettings) -> FastAPI:
    """The application of one server, to be run by an ASGI server or by a test."""
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.middleware.cors import CORSMiddleware
    from starlette.requests import ClientDisconnect
    from starlette.responses import Response

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        server.is_draining = True

    app = FastAPI(
        title="muOmni",
        version=__version__,
        description=f"A trained run, {server.name}, behind the API of OpenAI's clients.",
        docs_url=None,  # these pages load their scripts from another host
        redoc_url=None,
        lifespan=life,
    )
    for router in ROUTERS:
        app.include_router(router(server))

    _describe_own_errors(app)

    async def refused(_: Request, error: Exception) -> Any:
        return failed(api_error(error))

    async def misfit(_: Request, error: Exception) -> Any:
        assert isinstance(error, RequestValidationError)
        faults = [{**each, "loc": tuple(each["loc"])[1:]} for each in error.errors()]
        return failed(errors.of_validation(faults, error.body))

    async def unknown(request: Request, error: Exception) -> Any:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path[:200]}: {error.detail}"
        if error.status_code in CODES:
            known = ", ".join(sorted(server_paths(app)))
            message += f"; here are: {known}"
        code = CODES.get(error.status_code)
        return failed(ApiError(error.status_code, message, code=code, headers=error.headers))

    async def gone(_: Request, __: Exception) -> Response:
        server.metrics.gone.inc()
        return Response(status_code=GONE)

    for kind, handler in (
        (ApiError, refused),
        (MuomniError, refused),
        (RequestValidationError, misfit),
        (HTTPException, unknown),
        (ClientGone, gone),
        (ClientDisconnect, gone),
    ):
        app.add_exception_handler(kind, handler)
    # The last one added stands first: every request is counted, refused ones too.
    app.add_middleware(Guard, settings=settings, failed=failed, metrics=server.metrics)
    app.add_middleware(Faults)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    app.add_middleware(Counting, metrics=server.metrics)
    return app


def _describe_own_errors(app: FastAPI) -> None:
    """Leave out of the description what the framework would answer by itself, and never does here."""
    make = app.openapi

    def described() -> dict[str, Any]:
        schema = make()
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema.get("components", {}).get("schemas", {}).pop(name, None)
        return schema

    app.openapi = described  # type: ignore[method-assign]


def server_paths(app: FastAPI) -> list[str]:
    """The paths that the application has."""
    return list(app.openapi()["paths"])


class Faults:
    """Turns what nobody handled into an error object, where no answer has begun."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See guard.App."""
        has_begun = False

        async def noted(message: Any) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            told = api_error(error)
            if has_begun or scope["type"] != "http":
                raise
            await failed(told)(scope, receive, send)
