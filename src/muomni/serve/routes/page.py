"""GET / and /muomni/...: the page for people, and what it asks beyond the API: abilities, proof, training."""

import asyncio
from typing import TYPE_CHECKING, Any

from muomni.serve import following, page
from muomni.serve.errors import ApiError
from muomni.serve.replies import ERRORS, JSON
from muomni.serve.schemas.base import Reply
from muomni.serve.server import Server

if TYPE_CHECKING:
    from fastapi import APIRouter


class AbilitiesReply(Reply):
    """What the run can do, the stage that is missing for the rest, and its voices."""

    model: str
    abilities: list[str]
    missing: dict[str, str]
    voices: list[str]


class GateReply(Reply):
    """A judged gate; `why`: of a waived or a red one."""

    name: str
    verdict: str
    value: float | None
    threshold: str | None
    why: str | None


class Waived(Reply):
    """A gate that was waived in a stage below."""

    stage: str
    gate: str
    why: str


class Proof(Reply):
    """A stage's certificate; `verdict` none: it has none."""

    name: str
    verdict: str
    gates: list[GateReply]
    inherited: list[Waived]


class Certificates(Reply):
    """Of all stages in the folder; `report`: whether /muomni/report is there."""

    stages: list[Proof]
    report: bool


class StageState(Reply):
    """Where a stage stands."""

    name: str
    verdict: str
    is_running: bool


class Training(Reply):
    """A stage as it comes along; `html`: its gates, curves and samples, null where `seen` is still true."""

    stages: list[StageState]
    stage: str
    verdict: str
    is_running: bool
    step: int
    steps: int | None
    eta_s: float | None
    version: str
    html: str | None


HTML: dict[str, Any] = {"content": {"text/html": {"schema": {"type": "string"}}}}


def router(server: Server) -> "APIRouter":
    """The routes of the page."""
    from fastapi import APIRouter
    from starlette.responses import HTMLResponse, Response

    routes = APIRouter(tags=["page"])
    where = server.engine.parts.where
    reading = asyncio.Semaphore(1)  # pages that follow a run take turns

    @routes.get("/", responses={200: HTML, **ERRORS}, response_class=Response, summary="The page for people")
    async def whole() -> Any:
        return HTMLResponse(page.text(), headers=page.headers())

    @routes.get(
        "/muomni/abilities",
        responses={200: {"model": AbilitiesReply}, **ERRORS},
        summary="What the run can do",
    )
    async def abilities() -> Any:
        can = server.abilities
        told = AbilitiesReply(
            model=server.name, abilities=can.names, missing=can.missing, voices=can.voice_names
        )
        return JSON(told.sent())

    @routes.get(
        "/muomni/certificate", responses={200: {"model": Certificates}, **ERRORS}, summary="What was proven"
    )
    async def certificate() -> Any:
        async with reading:
            told = await asyncio.to_thread(following.certificates, where, server.engine.parts.stages)
        return JSON(Certificates.model_validate(told).sent())

    @routes.get(
        "/muomni/report",
        responses={200: HTML, **ERRORS},
        response_class=Response,
        summary="The report of the run",
    )
    async def report() -> Any:
        path = following.report(where)
        if path is None:
            raise ApiError(404, "no report here: muomni report DIR writes one", code="no_report")
        content = await asyncio.to_thread(path.read_text, encoding="utf-8")
        return HTMLResponse(content, headers=page.guarded(page.REPORT_POLICY))

    @routes.get(
        "/muomni/training", responses={200: {"model": Training}, **ERRORS}, summary="A stage in training"
    )
    async def training(stage: str = "", seen: str = "") -> Any:
        async with reading:
            told = await asyncio.to_thread(following.training, where, stage, seen)
        return JSON(Training.model_validate(told).sent())

    return routes
