"""`muomni chat`: once, line by line, or over a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from muomni import files
from muomni.commands import console
from muomni.commands.use import ROWS_AT_ONCE
from muomni.data import readers
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Sample
from muomni.data.source import Source
from muomni.errors import DataError, MuomniError
from muomni.infer.answer import Answer
from muomni.infer.engine import Engine
from muomni.media import audio as sound
from muomni.media.modality import MODALITIES

HELP = "/image F and /audio F go with the next line, /new forgets what was said, /quit ends"


class Chat:
    """Questions in, answers out; `how` goes to the engine (sampling, max_new, stop)."""

    def __init__(self, engine: Engine, how: dict[str, Any], *, as_json: bool, speak: Path | None) -> None:
        self.engine, self.how, self.as_json, self.speak = engine, how, as_json, speak

    def answer_once(self, text: str | None, images: list[Path], audios: list[Path]) -> None:
        """One question."""
        self._tell([{"role": "user", "content": _parts(text, {"image": images, "audio": audios})}])

    def interactive(self) -> None:
        """Interactive: each line is a turn, with the turns before it as context."""
        turns: list[dict[str, Any]] = []
        media: dict[str, list[Path]] = {}
        _ = self.engine.parts.thinker  # what can't be opened is told once, not at every turn
        console.note(HELP)
        for line in _typed():
            command, _, rest = line.partition(" ")
            if command == "/quit":
                return
            if command == "/new":
                turns = []
            elif command[:1] == "/" and command[1:] in MODALITIES:
                media.setdefault(command[1:], []).append(Path(rest.strip()))
            elif line or media:
                messages = [*turns, {"role": "user", "content": _parts(line, media)}]
                media = {}
                try:
                    answer = self._tell(messages)
                except (MuomniError, OSError) as error:
                    console.problem(error)
                    continue
                # A turn without words can't be shown to the model again.
                turns = [*messages, {"role": "assistant", "content": answer}] if answer.strip() else turns

    def answer_file(self, path: Path, out: Path) -> None:
        """All samples of a file; rows that fail are reported, and the others are still answered.

        Raises  DataError at the end if a row was bad.
        """
        _ = self.engine.parts.thinker  # what can't be opened is told once, not for every row
        quarantine = Quarantine()
        samples = readers.read(Source(path=str(path.absolute()), format="samples"), Path(), quarantine)
        rows: list[dict[str, Any]] = []
        bad = count = 0
        while some := list(islice(samples, ROWS_AT_ONCE)):
            prompts, refused = console.each(some, self._prepare)
            bad += refused
            answers = self.engine.answer_many(
                list(prompts.values()), **self.how, speak=self.speak is not None
            )
            for place, answer in zip(prompts, answers):
                row: dict[str, Any] = {"id": some[place].id, "text": answer.text}
                if answer.audio is not None and self.speak is not None:
                    row["audio"] = _write(answer, self.speak / f"{count + place:04d}.wav")
                rows.append(row)
            count += len(some)
            console.note(f"{count} rows read, {len(rows)} answered")
        files.write_jsonl(out, rows)
        for examples in quarantine.examples.values():
            for example in examples:
                console.problem(example)
        if bad := bad + quarantine.total:
            raise DataError(
                "bad_row",
                f"{path}: {bad} rows failed, for the reasons above; {len(rows)} were answered",
                hint=str(out),
            )

    def _prepare(self, sample: Sample) -> Any:
        try:
            return self.engine.prepare(sample)
        except MuomniError as error:
            raise DataError("bad_row", f"{sample.id}: {error}") from error

    def _tell(self, turns: list[dict[str, Any]]) -> str:
        """Answer the last turn on standard output, and return the text."""
        if not self.as_json and self.speak is None:
            text = ""
            for piece in self.engine.stream(turns, **self.how):
                text += piece
                print(piece, end="", flush=True)
            console.result("")
            return text
        answer = self.engine.answer(turns, **self.how, speak=self.speak is not None)
        row = answer.to_json()
        if self.speak is not None and answer.audio is not None:
            row["audio"] = _write(answer, self.speak)
        elif self.speak is not None:
            console.note("the answer has no words, so nothing was said aloud")
        console.result(json.dumps(row, ensure_ascii=False) if self.as_json else answer.text)
        return answer.text


def _parts(text: str | None, media: Mapping[str, list[Path]]) -> list[dict[str, str]]:
    """A user's turn: pictures, then sounds, then words, as in training."""
    parts = [{"type": kind, "path": str(path)} for kind in MODALITIES for path in media.get(kind, ())]
    return [*parts, {"type": "text", "text": text or ""}] if text or not parts else parts


def _write(answer: Answer, path: Path) -> str:
    assert answer.audio is not None
    sound.write(path, *answer.audio)
    return str(path)


def _typed() -> Iterator[str]:
    """Lines from the keyboard or a pipe, until it ends."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line.strip()
