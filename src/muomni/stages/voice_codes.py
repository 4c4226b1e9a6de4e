"""Codes of sounds for stages that learn from speech: encoded once, by batches of equal lengths, and kept on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from muomni.data.sample import AudioPart, Sample
from muomni.data.tokenized.encode import BATCH_NUMBERS, HELD_BYTES, read
from muomni.errors import DataError, ShapeError
from muomni.models import store
from muomni.stages import coded
from muomni.tokens.codec import Codec, encode_by_length
from muomni.train.objectives.talker import TalkerItem

Place = tuple[str, float | None, float | None, int | None]


class Clips:
    """The codes of sounds, made once and kept on disk (`coded`); a sound that could not be read raises why."""

    def __init__(self, parts: Sequence[AudioPart], items: coded.Items) -> None:
        self.places = {place_of(part): number for number, part in enumerate(parts)}
        self.items = items

    def __call__(self, part: AudioPart) -> Tensor:
        """Codes (K, F) int64; raises DataError."""
        number = self.places[place_of(part)]
        if number in self.items.refused:
            raise self.items.refused[number]
        return self.items[number].codes_KF


def place_of(part: AudioPart) -> Place:
    """What names a stretch of a sound."""
    return part.path, part.start, part.end, part.channel


def parts_of(samples: Iterable[Sample]) -> list[AudioPart]:
    """All sounds of samples, each once."""
    found: dict[Place, AudioPart] = {}
    for sample in samples:
        for part in (*sample.audios, *sample.speech):
            found.setdefault(place_of(part), part)
    return list(found.values())


def encoded(
    parts: Sequence[AudioPart], codec: Codec, device: torch.device
) -> Iterator[tuple[int, TalkerItem | DataError]]:
    """The codes of sounds by their numbers, in rising order; of those that can't be read the error.

    Sounds of one window that are equally long share a batch, as shards' do; none is padded to another's length.
    """
    window: dict[int, Tensor | DataError] = {}
    held = 0
    rates: Counter[int] = Counter()  # of the files, in Hz
    for number, part in enumerate(parts):
        try:
            medium = read(part, codec)
            window[number], held = medium.values, held + medium.values.nbytes
            rates[int(medium.about["file_rate_hz"])] += 1
        except DataError as error:
            window[number] = error
        if held < HELD_BYTES and number + 1 < len(parts):
            continue
        yield from _coded(window, codec, device)
        window, held = {}, 0
    if resampled := describe_resampled(rates, codec.sample_rate_hz):
        store.say_once(resampled)


def describe_resampled(rates: Mapping[int, int], rate_hz: int | None) -> str:
    """How many sounds are not of the rate that a codec takes, a line; "" where all are.

    Takes   rates: sounds by the rate of their file, in Hz.
    """
    others = {rate: count for rate, count in sorted(rates.items()) if rate != rate_hz}
    if not others:
        return ""
    named = ", ".join(f"{count} of {rate} Hz" for rate, count in others.items())
    lower = sum(count for rate, count in others.items() if rate_hz is not None and rate < rate_hz)
    low = f"; {lower} of a lower rate have nothing above half of it" if lower else ""
    return (
        f"{sum(others.values())} of {sum(rates.values())} sounds are resampled to {rate_hz} Hz: {named}{low}"
    )


def _coded(
    window: Mapping[int, Tensor | DataError], codec: Codec, device: torch.device
) -> Iterator[tuple[int, TalkerItem | DataError]]:
    """The codes of a window's waves; one that its codec refuses is found by encoding each alone."""
    waves = {place: wave_S for place, wave_S in window.items() if isinstance(wave_S, Tensor)}
    longest = max((wave_S.numel() for wave_S in waves.values()), default=1)
    found: dict[int, Tensor | DataError] = {}
    with torch.inference_mode():
        moved = [wave_S.to(device) for wave_S in waves.values()]
        try:
            codes = encode_by_length(codec, moved, most=max(1, BATCH_NUMBERS // longest))
            found.update(zip(waves, codes, strict=True))
        except (DataError, ShapeError):
            for place, wave_S in zip(waves, moved, strict=True):
                try:
                    (found[place],) = codec.encode_many([wave_S])
                except (DataError, ShapeError) as error:
                    found[place] = DataError("undecodable", f"sound of {len(wave_S)} samples: {error}")
    for place, wave in window.items():
        codes_KF = found.get(place, wave)
        yield place, codes_KF if isinstance(codes_KF, DataError) else TalkerItem("", [], codes_KF.cpu())
