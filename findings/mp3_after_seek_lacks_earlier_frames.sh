#!/usr/bin/env bash
# Guess: after seek(n) in an MP3, read() gives what a read of the whole file has from n on: a decoder that knows the frame's place knows that a frame
# takes its bits from earlier ones too (the bit reservoir) and decodes these first.
# Seen (soundfile 0.14.0 with libsndfile 1.2.2): it does not go back far enough. In a file of short bursts with its writer's usual settings
# (variable bit rate) 37 of 94 seeks give other samples at first (in one of them for 90 ms), and no error reaches Python.
# With a constant bit rate no seek differed. Decoding from 1 s earlier and dropping that second is right.
# Output seen: 0.14.0 1.2.2 (seeks that differ, of): {'variable': (37, 94), 'from 1 s earlier': (0, 94), 'constant': (0, 94)}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet soundfile==0.14.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
import os

import numpy as np
import soundfile

os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libmpg123 writes a line to the error stream for each such frame
rate, samples = 44100, 441_000
bursts = 0.1 * np.random.default_rng(0).standard_normal(samples) * (np.sin(8 * np.pi * np.arange(samples) / rate) > 0.9)


def seeks_that_differ(mode: str, earlier: int = 0) -> tuple[int, int]:
    """Of how many seeks, how many are followed by other samples than the whole file has there."""
    written = io.BytesIO()
    soundfile.write(written, bursts.astype("float32"), rate, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode=mode, compression_level=0.5)
    whole, _ = soundfile.read(io.BytesIO(written.getvalue()), dtype="float32")
    starts = range(rate, samples - rate, 3777)
    differ = 0
    for start in starts:
        with soundfile.SoundFile(io.BytesIO(written.getvalue())) as file:
            file.seek(start - earlier)
            part = file.read(earlier + 8000, dtype="float32")[earlier:]
        differ += bool(np.abs(part - whole[start : start + 8000]).max() > 1e-2)
    return differ, len(starts)


found = {"variable": seeks_that_differ("VARIABLE"), "from 1 s earlier": seeks_that_differ("VARIABLE", rate), "constant": seeks_that_differ("CONSTANT")}
print(soundfile.__version__, soundfile.__libsndfile_version__, "(seeks that differ, of):", found)
assert found["variable"][0] > 20 and found["from 1 s earlier"][0] == found["constant"][0] == 0, "what an MP3 gives after a seek has changed"
PYTHON
