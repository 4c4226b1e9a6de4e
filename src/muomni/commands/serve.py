"""`muomni serve`: a finished run behind the API of OpenAI's clients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from muomni.commands import console
from muomni.errors import ConfigError

MIB = 2**20
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="a run's folder, a stage's, or a final/")]


def serve(
    folder: Folder,
    host: Annotated[
        str, typer.Option(help="where it listens; 0.0.0.0: everywhere, which wants a key")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", envvar="MUOMNI_API_KEY", help="who asks must send it; left out: everybody may"
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="what clients call the model; left out: its folder's name")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="answers that are written at the same time")] = 16,
    max_waiting: Annotated[int, typer.Option(min=1, help="requests that may wait; others get a 429")] = 256,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="pages of this origin may ask; may be given several times"),
    ] = None,
    max_body: Annotated[int, typer.Option(metavar="MIB", min=1, help="of one request")] = 32,
    max_pixels: Annotated[int, typer.Option(min=1, help="of one picture")] = 25_000_000,
    max_sound: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="of one sound")] = 300.0,
    drain: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="that open answers have to end, on SIGTERM")
    ] = 30.0,
    precision: Annotated[
        str, typer.Option(help="number format: auto (the fastest that is sound here), fp32, bf16 or fp16")
    ] = "auto",
) -> None:
    """Serve a trained run over HTTP: chat, speech, transcriptions, embeddings (docs/serving.md)."""
    from muomni.serve.opening import require_extra

    require_extra()
    from muomni.infer.engine import Engine
    from muomni.serve import listening
    from muomni.serve.settings import Limits, ServeSettings

    if api_key == "":
        raise ConfigError("serve: --api-key is empty", hint="leave it out, or give a key")
    if "*" in (cors or []) and api_key is None:
        raise ConfigError(
            "serve: --cors '*' without --api-key lets every page in a browser ask",
            hint="give a key, or an origin",
        )
    settings = ServeSettings(
        host=host,
        port=port,
        api_key=api_key,
        origins=tuple(cors or ()),
        name=name,
        drain_s=drain,
        limits=Limits(body_bytes=max_body * MIB, pixels=max_pixels, sound_s=max_sound),
    )
    if not settings.is_loopback and api_key is None:
        console.note(f"note: {host} can be reached by others, and without --api-key everybody may ask")
    engine = Engine.load(folder, precision=precision)
    listening.run(engine, settings, max_batch=max_batch, max_waiting=max_waiting, say=console.note)
