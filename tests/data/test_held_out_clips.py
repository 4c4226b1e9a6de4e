"""Clips of each speaker held out: targets and their references stand on one side."""

from __future__ import annotations

import json
from pathlib import Path

from muomni.data import readers, references
from muomni.data.quarantine import Quarantine
from muomni.data.source import Source
from muomni.media import audio
from muomni.selftest import voices


def test_no_sound_stands_on_both_sides_and_each_speaker_on_either(tmp_path: Path) -> None:
    rows = []
    for voice in (0, 1):
        for take in range(12):
            name = f"{voice}-{take}.wav"
            audio.write(tmp_path / name, voices.wave("one", voice, take), voices.RATE_HZ)
            part = {"type": "audio", "path": name, "speaker": f"v{voice}"}
            turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": [part]}]
            rows.append({"id": name, "messages": turns})
    path = tmp_path / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = references.convert([Source(path=str(path))], Quarantine(), held_out=0.4, min_s=0.1, home=tmp_path)
    out = tmp_path / "rows.jsonl"
    references.write(out, made.rows)
    corpus = readers.load(
        [Source(path=str(out))], base=tmp_path, val_split=0.1, seed=1, quarantine=Quarantine()
    )
    assert not corpus.leaks
    for side in (corpus.train, corpus.valid):
        assert {sample.extra["speaker"] for sample in side} == {"v0", "v1"}
