#!/usr/bin/env bash
# Guess: read() of a whole MP3 of variable bit rate gives all its frames, with or without a Xing header (the header only tells the length sooner).
# Seen (soundfile 0.14.0 with libsndfile 1.2.2): without the header `frames` is guessed from the first frames' size, and read() stops there: of
# 10 s at 16 kHz 3.1 s came, without an error. Such files come from streams and from cutting; the same file with its header is read whole. The
# guess may also be too high: of a constant rate of 24 kbit/s, to which its own writer adds no header, `frames` named 1048 more than came.
# Output seen: 0.14.0 1.2.2 (frames, samples read): with Xing (160000, 160000) without (49968, 49968) constant (222808, 221760)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet soundfile==0.14.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io

import numpy as np
import soundfile


def mp3(wave: np.ndarray, rate: int, **settings: object) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave.astype("float32"), rate, format="MP3", subtype="MPEG_LAYER_III", **settings)
    return file.getvalue()


def announced_and_read(data: bytes) -> tuple[int, int]:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        return file.frames, len(file.read())


tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(160_000) / 16000)
noise = 0.3 * np.random.default_rng(0).standard_normal(160_000)
data = mp3(np.concatenate([noise[:80_000], tone[80_000:]]), 16000, bitrate_mode="VARIABLE")
headless = data[data.index(b"\xff\xf3", data.index(b"Xing")) :]  # from its second frame on: all its sound
constant = mp3(0.3 * np.sin(2 * np.pi * 440 * np.arange(220_500) / 22050), 22050, bitrate_mode="CONSTANT", compression_level=0.9)
found = [announced_and_read(d) for d in (data, headless, constant)]
print(soundfile.__version__, soundfile.__libsndfile_version__, "(frames, samples read): with Xing %s without %s constant %s" % tuple(found))
assert found == [(160_000, 160_000), (49_968, 49_968), (222_808, 221_760)], "how MP3 without a Xing header is read has changed"
PYTHON
