"""Lhotse's cuts -> a sample for each supervision: a stretch of a recording and what is said in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from muomni.errors import DataError

DERIVED = (
    "features",
)  # made from the sound, by whom and how does not matter: they are told, and their files are not looked for
USED = ("id", "start", "duration", "channel", "supervisions", "recording", "type")
MANIFESTS = {"sources": "a recording", "recording_id": "a supervision"}
MOST_S = 1e9  # JSON knows integers of any length


def knows(row: dict[str, Any]) -> bool:
    """Whether a row is a cut, or a row of another manifest of Lhotse's."""
    kind = row.get("type")
    if isinstance(kind, str) and kind.endswith("Cut"):
        return True
    is_recording = isinstance(row.get("sources"), list) and "sampling_rate" in row
    is_supervision = "recording_id" in row and "start" in row and "duration" in row
    return ("supervisions" in row and "recording" in row) or is_recording or is_supervision


def convert(
    row: dict[str, Any], prompt: str | None = None
) -> Iterator[tuple[dict[str, Any], list[str], dict[str, Any]]]:
    """The samples of a cut, each with the fields that were used and, by name, what of the supervision was
    left.

    A cut with one supervision has its own id, else the supervisions'. Times of supervisions count from the
    start of their cut.
    Raises  DataError: bad_row (another manifest, mixed or many-channel cuts, a source that is no file),
            empty.
    """
    kind = row.get("type", "MonoCut")
    if "supervisions" not in row and "recording" not in row:
        what = next((name for key, name in MANIFESTS.items() if key in row), kind)
        raise DataError(
            "bad_row",
            f"Lhotse: expected a cut, got {what}",
            hint="make cuts of it: CutSet.from_manifests(...).to_file(...)",
        )
    if kind != "MonoCut":
        raise DataError(
            "bad_row",
            f"Lhotse: expected a MonoCut, got a {kind}",
            hint="write its sounds to files: cuts.save_audios(...)",
        )
    path = _source(row.get("recording"))
    channel = row.get("channel", 0)
    if not isinstance(channel, int):
        raise DataError("bad_row", f"channel: expected a number, got {channel!r:.40}")
    supervisions = row.get("supervisions")
    if not isinstance(supervisions, list) or not supervisions:
        raise DataError("empty", "supervisions: expected at least one with its text, got none")
    for one in supervisions:
        if not isinstance(one, dict):
            raise DataError("bad_row", f"supervisions: expected objects, got {one!r:.60}")
        yield _sample(row, one, path, channel, prompt, alone=len(supervisions) == 1)


def left_of(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a cut that are not read."""
    return {
        key: None if key in DERIVED else value
        for key, value in row.items()
        if key not in USED and value is not None
    }


def _sample(
    row: dict[str, Any], one: dict[str, Any], path: str, channel: int, prompt: str | None, *, alone: bool
) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """One supervision of a cut."""
    text = one.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError("empty", f"supervisions: {one.get('id')}: expected its text, got {text!r:.40}")
    whole_s = row["recording"].get("duration")
    own = one.get("channel", channel)
    if own != channel:
        raise DataError(
            "bad_row", f"supervisions: {one.get('id')}: expected the cut's channel {channel}, got {own!r:.40}"
        )
    start = _number("start", row.get("start", 0.0)) + (
        0.0 if alone and "start" not in one else _number("start", one.get("start", 0.0))
    )
    start = max(0.0, start)
    end = start + _number("duration", one.get("duration", row.get("duration")))
    limit = _number("start", row.get("start", 0.0)) + _number("duration", row.get("duration", end))
    end = min(end, limit) if limit > start else end
    sound: dict[str, Any] = {"type": "audio", "path": path, "start": round(start, 6), "end": round(end, 6)}
    if isinstance(whole_s, int | float) and start == 0.0 and end - 1e-3 < whole_s < end + 1e-3:
        del sound["start"], sound["end"]  # the whole file: rounded times would cut its last samples
    channels = row["recording"]["sources"][0].get("channels", [0])
    if not isinstance(channels, list):
        raise DataError("bad_row", f"channels: expected a list, got {channels!r:.40}")
    if len(channels) > 1 or channel:
        sound["channel"] = channel
    sample: dict[str, Any] = {"task": "transcribe"}
    name = row.get("id") if alone else one.get("id")
    if isinstance(name, str | int) and name != "":
        sample["id"] = str(name)
    who = one.get("speaker")
    if isinstance(who, str | int) and who != "":
        sound["speaker"] = sample["group"] = str(who)
    content = [sound, {"type": "text", "text": prompt}] if prompt else [sound]
    sample["messages"] = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": text.strip()},
    ]
    used = {"id", "recording_id", "start", "duration", "channel", "text", "speaker"}
    left = {
        f"supervisions.{key}": None for key, value in one.items() if key not in used and value is not None
    }
    return sample, list(USED), left


def _source(recording: Any) -> str:
    """The file of a recording.

    Raises  DataError (bad_row).
    """
    sources = recording.get("sources") if isinstance(recording, dict) else None
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
        got = len(sources) if isinstance(sources, list) else type(recording).__name__
        raise DataError(
            "bad_row",
            f"recording: expected one source, got {got}",
            hint="write its sounds to files: cuts.save_audios(...)",
        )
    kind, path = sources[0].get("type"), sources[0].get("source")
    if kind != "file" or not isinstance(path, str):
        raise DataError(
            "bad_row",
            f"recording: expected a source of type file, got {kind!r:.40}",
            hint="write its sounds to files: cuts.save_audios(...)",
        )
    if recording.get("transforms"):
        raise DataError(
            "bad_row",
            "recording: expected the file as it is, got transforms (speed, resampling, ...)",
            hint="write its sounds to files: cuts.save_audios(...)",
        )
    return path


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MOST_S:
        raise DataError("bad_row", f"{key}: expected seconds, got {str(value)[:40]}")
    return float(value)
