"""Speech by espeak-ng, in a process of its own: `python -m muomni.data.world.speech jobs.jsonl outdir`.

espeak keeps state between utterances that even a re-initialisation does not clear. The same bytes come back
only from a fresh process, a fixed order and a seed before each utterance (espeak-ng 1.52; reference/ecosystem
3), so a whole world is spoken by one run of this module. The library is GPL-3: it is loaded here and nowhere
else. Without it our own formant synthesiser speaks, and the manifest says so.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from muomni.data.world import formant
from muomni.data.world.utterance import Job
from muomni.errors import InternalError, UserError
from muomni.files import write_json

RATE_HZ = 16_000
_PAD_SAMPLES = RATE_HZ * 30 // 1000
_PEAK = 0.6
_QUIET = 1e-3  # of full scale: what is below it at both ends is trimmed

Wave = npt.NDArray[np.float32]


def finish(wave: Wave) -> Wave:
    """Trim silence at both ends to 30 ms pads and set the peak to 0.6; float32 (S,) at 16 kHz.

    Raises InternalError if the utterance is silent: a synthesiser that says nothing is our fault.
    """
    loud = np.flatnonzero(np.abs(wave) > _QUIET)
    if not len(loud):
        raise InternalError("the synthesiser gave silence")
    kept = wave[loud[0] : loud[-1] + 1]
    pad = np.zeros(_PAD_SAMPLES, np.float32)
    return np.concatenate([pad, kept * (_PEAK / np.abs(kept).max()), pad]).astype(np.float32)


def wav_bytes(wave: Wave) -> bytes:
    """A PCM16 mono wav file at 16 kHz."""
    content = (np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes()
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + len(content),
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        RATE_HZ,
        2 * RATE_HZ,
        2,
        16,
        b"data",
        len(content),
    )
    return header + content


def _espeak(library: str, data: str) -> Callable[[Job], Wave]:
    """A function that says one job by espeak-ng, float32 at 16 kHz. Source: espeak-ng's speak_lib.h."""
    engine = ctypes.CDLL(library)
    native_hz = engine.espeak_Initialize(2, 0, data.encode(), 0)  # AUDIO_OUTPUT_SYNCHRONOUS
    if native_hz <= 0:
        raise InternalError(f"espeak_Initialize failed with {native_hz} for {data}")
    pieces: list[Wave] = []

    def hear(samples: Any, count: int, _events: Any) -> int:
        if count > 0 and samples:
            pieces.append(np.asarray(np.ctypeslib.as_array(samples, (count,)) / 32768, np.float32))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(
        hear
    )
    engine.espeak_SetSynthCallback(callback)
    engine.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    current = ""

    def say(job: Job) -> Wave:
        nonlocal current
        if job.voice != current:
            if engine.espeak_SetVoiceByName(job.voice.encode()):
                raise UserError(f"espeak-ng knows no voice {job.voice!r}")
            current = job.voice
        engine.espeak_ng_SetRandSeed(job.seed)
        engine.espeak_SetParameter(1, job.rate_wpm, 0)  # espeakRATE
        engine.espeak_SetParameter(3, job.pitch, 0)  # espeakPITCH
        pieces.clear()
        text = job.text.encode() + b"\0"
        if engine.espeak_Synth(
            text, ctypes.c_size_t(len(text)), 0, 1, 0, 1, None, callback
        ):  # espeakCHARS_UTF8; user data keeps the callback alive
            raise InternalError(f"espeak-ng could not say {job.text!r}")
        if not pieces:
            raise InternalError(f"espeak-ng gave nothing for {job.text!r} by {job.voice}")
        return np.asarray(soxr.resample(np.concatenate(pieces), native_hz, RATE_HZ), np.float32)

    return say


def _formant(job: Job) -> Wave:
    return formant.say(job.text, job.voice, job.rate_wpm, job.pitch, job.seed)


def main(listed: Path, out: Path) -> None:
    """Say every job of a JSONL file and leave `.speech.json` beside the wavs."""
    say: Callable[[Job], Wave]
    try:
        import espeakng_loader
    except ImportError:
        voice, say = "formant", _formant
    else:
        voice, say = (
            "espeak-ng",
            _espeak(str(espeakng_loader.get_library_path()), str(espeakng_loader.get_data_path())),
        )
    samples = utterances = 0
    for line in listed.read_text().splitlines():
        job = Job(**json.loads(line))
        wave = finish(say(job))
        path = out / job.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wav_bytes(wave))
        samples += len(wave)
        utterances += 1
    write_json(
        out / ".speech.json",
        {"voice": voice, "utterances": utterances, "seconds": round(samples / RATE_HZ, 3)},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
