#!/usr/bin/env bash
# Guess: after seek(n) in an Ogg Vorbis file, read() gives the samples from n on that a read of the whole file has there, as tell() says.
# Seen (soundfile 0.14.0 with libsndfile 1.2.2): so it is, up to the last page. Where the file's length cuts the last block (most lengths do), a
# seek into the last page gives the sound from just as much further on as is cut: here 176 samples (8 ms), and at the end come the 176 samples
# of padding that a whole read leaves out. tell() names the place that was asked for. Decoding from an earlier page and dropping samples is exact.
# Output seen: 0.14.0 1.2.2 shift of a middle page 0 of the last page 176
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet soundfile==0.14.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io

import numpy as np
import soundfile

rate, samples = 22050, 50_000
written = io.BytesIO()
noise = 0.1 * np.random.default_rng(0).standard_normal(samples)
soundfile.write(written, noise.astype("float32"), rate, format="OGG", subtype="VORBIS")
whole, _ = soundfile.read(io.BytesIO(written.getvalue()), dtype="float32")


def too_far(start: int) -> int:
    """How many samples beyond `start` lies what read() gives after seek(start)."""
    with soundfile.SoundFile(io.BytesIO(written.getvalue())) as file:
        file.seek(start)
        assert file.tell() == start
        part = file.read(500, dtype="float32")[100:]
    (shift,) = (d for d in range(-1000, 1000) if np.allclose(part, whole[start + 100 + d :][: len(part)], rtol=0, atol=1e-4))
    return shift


shifts = too_far(30_000), too_far(48_500)
print(soundfile.__version__, soundfile.__libsndfile_version__, "shift of a middle page", shifts[0], "of the last page", shifts[1])
assert shifts == (0, 176), "where a seek into the last page of Ogg Vorbis arrives has changed"
PYTHON
