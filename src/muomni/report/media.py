"""Pictures, sounds and heat maps as data URIs, so that a page is one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from muomni.report.html import Html, h

PEAKS = 72  # bars of a drawn wave
HEAT = (214, 73, 51)
INK = (43, 108, 196)


def uri(content: bytes, kind: str) -> str:
    """Bytes as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(path: Path | None, *, alt: str = "", size: int = 132) -> Html | None:
    """A PNG file as an element, None where there is none."""
    if path is None:
        return None
    return h("img", src=uri(path.read_bytes(), "image/png"), alt=alt, width=size, height=size, loading="lazy")


def thumbnail(path: Path, edge_px: int) -> Html | None:
    """A small version of a picture; None if it can't be read any more."""
    try:
        with Image.open(path) as stored:
            small = stored.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    small.thumbnail((edge_px, edge_px))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return h(
        "img",
        src=uri(stream.getvalue(), "image/jpeg"),
        alt=path.name,
        width=small.width,
        height=small.height,
        loading="lazy",
    )


def sound(path: Path | None, label: str = "") -> Html | None:
    """A player with the waveform; the sound is stored losslessly (FLAC, about half the size of wav)."""
    if path is None:
        return None
    wave_S, rate_hz = soundfile.read(path, dtype="float32")
    return player(wave_S, int(rate_hz), label)


def player(wave_S: NDArray[np.float32], rate_hz: int, label: str = "") -> Html:
    """A player of a mono wave; without scripts the browser's own."""
    stream = io.BytesIO()
    soundfile.write(stream, wave_S, rate_hz, format="FLAC", subtype="PCM_16")
    length_s = len(wave_S) / rate_hz
    return h(
        "figure",
        h("audio", controls=True, preload="none", src=uri(stream.getvalue(), "audio/flac")),
        h("button", "▶", type="button", aria_label=f"play {label}".strip(), hidden=True),
        _wave(wave_S),
        h("figcaption", f"{label} {length_s:.1f} s".strip()),
        cls="sound",
    )


def _wave(wave_S: NDArray[np.float32]) -> Html:
    parts = np.array_split(np.abs(wave_S), PEAKS) if len(wave_S) >= PEAKS else [np.abs(wave_S)] * PEAKS
    peaks = np.array([part.max() if len(part) else 0.0 for part in parts])
    tall = 1 + 13 * peaks / max(float(peaks.max()), 1e-6)
    path = "".join(f"M{2 * i + 1} {15 - t:.0f}v{2 * t:.0f}" for i, t in enumerate(tall))
    return h(
        "svg",
        h("path", d=path),
        h("path", d=path, cls="played"),
        viewBox=f"0 0 {2 * PEAKS} 30",
        preserveAspectRatio="none",
        cls="wave",
    )


def heat(
    values: Sequence[Sequence[float]],
    *,
    low: float | None = None,
    high: float | None = None,
    ink: bool = False,
) -> str:
    """A matrix as a PNG data URI, one pixel a value, opaque where high. `ink` for matrices, else for
    overlays."""
    array = np.nan_to_num(np.asarray(values, dtype=np.float64))
    least, most = (float(array.min()) if low is None else low), (float(array.max()) if high is None else high)
    share = np.clip((array - least) / max(most - least, 1e-12), 0, 1)
    rgba = np.zeros((*array.shape, 4), np.uint8)
    rgba[..., :3] = INK if ink else HEAT
    rgba[..., 3] = (255 * share if ink else 215 * share**1.5).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(rgba).save(stream, "PNG", optimize=True)
    return uri(stream.getvalue(), "image/png")


def over(
    path: Path | None, values: Sequence[Sequence[float]] | None, label: str, *, size: int = 132
) -> Html | None:
    """A picture with a heat map of its patches laid over."""
    base = picture(path, alt=label, size=size)
    if base is None or not values:
        return None
    return h(
        "figure", base, h("img", src=heat(values), alt="", cls="heat"), h("figcaption", label), cls="seen"
    )
