"""Speech as log-mel frames, with or without its transcript: the data of hearing, codec and talker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from muomni.config import ReportsIdle
from muomni.data.cache import Cache, shared
from muomni.data.conversation import read_wave, wave_to_mel
from muomni.data.sample import AudioPart, OfSamples, Sample, inline_bytes
from muomni.data.uses import MAX_S, MAX_TEXT_LEN
from muomni.data.uses import spoken as spoken
from muomni.errors import DataError
from muomni.media import audio, augment, stored
from muomni.media.frames import DOWNSAMPLE, PAD_S, num_states
from muomni.media.mel import MelSpec
from muomni.tokens.alphabet import Alphabet, min_frames

ALPHABET = Alphabet()
Wave = NDArray[np.float32]
Mel = NDArray[np.float32]
EDGE_FRAMES = 40


class SpeechAugment(ReportsIdle):
    """Changes of a training utterance, drawn anew each time; a pair is a range, None is off."""

    speed: tuple[float, float] | None = None
    gain_db: tuple[float, float] | None = None
    noise_snr_db: tuple[float, float] | None = None
    formant_scale: tuple[float, float] | None = None
    low_pass_hz: float | None = Field(
        None, gt=0, description="half of the utterances lose what lies above: telephone sound"
    )
    time_masks: int = Field(0, ge=0)
    time_mask_frames: int = Field(10, ge=1)
    freq_masks: int = Field(0, ge=0)
    freq_mask_bins: int = Field(16, ge=1)

    def idle(self) -> dict[str, str]:
        """The size of masks that are not there."""
        idle_options = {} if self.time_masks else {"time_mask_frames": "time_masks is 0"}
        return idle_options if self.freq_masks else {**idle_options, "freq_mask_bins": "freq_masks is 0"}

    @property
    def changes_wave(self) -> bool:
        """Whether the wave itself is changed, so that log-mels can't be kept."""
        return self.speed is not None or self.gain_db is not None or self.noise_snr_db is not None

    def wave(self, wave_S: Wave, rng: np.random.Generator, rate_hz: int) -> Wave:
        """A changed wave."""
        if self.speed:
            wave_S = augment.speed(wave_S, float(rng.uniform(*self.speed)), rate_hz=rate_hz)
        if self.noise_snr_db:
            wave_S = augment.noise(wave_S, float(rng.uniform(*self.noise_snr_db)), rng)
        if self.gain_db:
            wave_S = augment.gain(wave_S, float(rng.uniform(*self.gain_db)))
        return wave_S

    def mel(self, mel_FM: Mel, rng: np.random.Generator, spec: MelSpec) -> Mel:
        """A changed log-mel."""
        if self.low_pass_hz is not None and rng.random() < 0.5:
            mel_FM = augment.narrow(mel_FM, spec.bin_at(self.low_pass_hz))
        if self.formant_scale:
            mel_FM = augment.formants(mel_FM, float(rng.uniform(*self.formant_scale)))
        if self.time_masks or self.freq_masks:
            mel_FM = augment.spec_augment(
                mel_FM,
                rng,
                time_masks=self.time_masks,
                time_frames=self.time_mask_frames,
                bin_masks=self.freq_masks,
                bins=self.freq_mask_bins,
            )
        return mel_FM


@dataclass
class Utterance:
    """Speech as log-mel (F, M) float32, what it says, and the symbols of that."""

    sample_id: str
    mel_FM: Mel
    text: str
    symbols: list[int]


def voice_of(sample: Sample) -> str | None:
    """Who speaks in a sample: the speaker that its sound names, else its group, where the rows name one;
    None: nobody says."""
    sounds = sample.audios or sample.speech
    named = next((part.speaker for part in sounds if part.speaker), None) or sample.extra.get("speaker")
    return str(named) if named else named_group(sample)


def named_group(sample: Sample) -> str | None:
    """The group that a row or its recipe names; None where it is but the row's id, or a sound's own path."""
    sounds = sample.audios + sample.speech
    if sample.group == sample.id or any(_is_of(sample.group, stored.identity(part.path)) for part in sounds):
        return None
    return sample.group


def _is_of(group: str, path: str) -> bool:
    """Whether a group is but a sound's own path, as it is seen from the folder of its manifest."""
    return (
        path == group
        or path.endswith(f"/{group}")
        or (group.startswith("../") and path.endswith(group[group.rindex("../") + 2 :]))
    )


def duration_s(part: AudioPart, known_s: dict[str, float] | None = None) -> float:
    """Seconds of a sound by its header; 0 where that can't be read (reading the sound itself will say why).

    Takes   known: seconds of whole files by their path, looked up and added to.
    """
    known_s = {} if known_s is None else known_s
    if part.path not in known_s:
        known_s[part.path] = _whole_s(part.path)
    whole = known_s[part.path]
    return (
        max(0.0, min(whole, part.end if part.end is not None else whole) - (part.start or 0.0))
        if whole
        else 0.0
    )


def _whole_s(path: str) -> float:
    if path.startswith("data:"):
        return 0.0
    try:
        content_bytes = inline_bytes(path)
        return audio.info(path if content_bytes is None else content_bytes).seconds
    except DataError:
        return 0.0


class Utterances(OfSamples):
    """Samples as a dataset of `Utterance`s. The cache keeps log-mels as float16, or waves where augmentation
    changes these.

    downsample     mel frames of one state of the ears; texts that need more states are refused as
                   "infeasible"; 0: no such check
    max_text_len   longer texts are refused, never cut (SPEC M-B); 0: no limit
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        mel: MelSpec,
        *,
        downsample: int = DOWNSAMPLE,
        pad_s: float = PAD_S,
        max_text_len: int = MAX_TEXT_LEN,
        max_s: float = MAX_S,
        changes: SpeechAugment | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.samples, self.spec, self.downsample, self.pad_s = samples, mel, downsample, pad_s
        self.max_text_len, self.max_s, self.changes = max_text_len, max_s, changes
        self.kept = (cache or shared()).part()

    @cached_property
    def seconds_N(self) -> NDArray[np.float64]:
        """Seconds of each by the files' headers, (len,); 0 where there is no sound, or none that can be
        read."""
        known_s: dict[str, float] = {}  # many rows may stand on one recording
        firsts = (next(iter(sample.audios or sample.speech), None) for sample in self.samples)
        return np.fromiter(
            (0.0 if part is None else duration_s(part, known_s) for part in firsts),
            np.float64,
            len(self.samples),
        )

    def lengths(self) -> NDArray[np.int32]:
        """Mel frames of each, about, by the files' headers, (len,)."""
        return (self.seconds_N * self.spec.frame_rate_hz).astype(np.int32)

    def item(self, index: int, rng: np.random.Generator) -> Utterance:
        """One utterance.

        Raises  DataError: unreadable sound, text too long, or more symbols than its frames can hold.
        """
        sample = self.samples[index]
        part, text = spoken(sample)
        if self.max_text_len and len(text) > self.max_text_len:
            raise DataError(
                "text_too_long",
                f"{sample.id}: {len(text)} characters, at most {self.max_text_len}",
                hint="raise max_text_len",
            )
        symbols = ALPHABET.encode(text)
        mel_FM = self._mel(index, part, rng)
        if self.downsample:
            states = num_states(len(mel_FM), self.downsample)
            if min_frames(symbols) > states:
                raise DataError(
                    "infeasible",
                    f"{sample.id}: {len(symbols)} symbols need {min_frames(symbols)} states, the sound has {states}",
                )
        return Utterance(sample.id, mel_FM, text, symbols)

    def _mel(self, index: int, part: AudioPart, rng: np.random.Generator) -> Mel:
        changes = self.changes
        if changes is None or not changes.changes_wave:
            mel_FM = self.kept.get(index, lambda: [self._read_mel(part)])[0].astype(np.float32)
        else:
            stored, full_scale = self.kept.get(index, lambda: self._read_wave(part))
            scale = np.float32(32767) / np.float32(full_scale[0])
            wave = changes.wave(stored.astype(np.float32) / scale, rng, self.spec.rate_hz)
            mel_FM = wave_to_mel(wave, self.spec, self.pad_s)
        return changes.mel(mel_FM, rng, self.spec) if changes is not None else mel_FM

    def _read_mel(self, part: AudioPart) -> NDArray[np.float16]:
        wave = read_wave(part, self.spec.rate_hz, max_s=self.max_s)
        return wave_to_mel(wave, self.spec, self.pad_s).astype(np.float16)

    def _read_wave(self, part: AudioPart) -> list[NDArray[Any]]:
        """A wave in 16 bits, and its full scale: 1, or the peak of one that goes beyond."""
        wave = read_wave(part, self.spec.rate_hz, max_s=self.max_s)
        full_scale = np.maximum(np.float32(1.0), np.abs(wave).max())
        return [(wave * (np.float32(32767) / full_scale)).astype(np.int16), full_scale[None]]


class Crops:
    """Random stretches of utterances of at most `frames` mel frames, for the codec.

    Starts are drawn as if the utterance went on for EDGE_FRAMES on both sides and are then moved inside: so
    beginnings and ends, which plain crops hardly ever show, are learned too (docs/log.md).
    """

    def __init__(self, utterances: Utterances, frames: int) -> None:
        self.utterances, self.frames = utterances, frames

    def __len__(self) -> int:
        return len(self.utterances)

    def name(self, index: int) -> str:
        """The sample's id."""
        return self.utterances.name(index)

    def item(self, index: int, rng: np.random.Generator) -> Utterance:
        """One crop."""
        whole = self.utterances.item(index, rng)
        last = max(0, len(whole.mel_FM) - self.frames)
        start = int(np.clip(rng.integers(-EDGE_FRAMES, last + EDGE_FRAMES + 1), 0, last))
        return Utterance(
            whole.sample_id, whole.mel_FM[start : start + self.frames], whole.text, whole.symbols
        )
