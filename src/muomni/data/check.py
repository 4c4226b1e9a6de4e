"""What a manifest holds and what is wrong with it, row by row, before any training pays for it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from muomni import files
from muomni.data import formats, readers, split
from muomni.data.quarantine import EXAMPLES, Quarantine
from muomni.data.sample import AudioPart, Sample, inline_bytes
from muomni.data.source import Source
from muomni.errors import DataError, UserError
from muomni.media import audio, image
from muomni.tokens.alphabet import Alphabet, min_frames
from muomni.tokens.bpe import Tokenizer

RATE_HZ = 16_000
SAMPLES_PER_STATE = 640  # the hearing part writes at 25 Hz (SPEC M-B)
AUDIO_TOKENS_MAX = 128  # a sound is capped at a quarter of the context (SPEC M-E)
BYTES_PER_TOKEN = 3  # a careful guess where no tokenizer is given; English with 5000 tokens has 3.6
BINS = 10


@dataclass
class Report:
    """All that was found; `errors` must be mended, `warnings` should be known."""

    path: str
    format: str = ""
    rows: int = 0  # read, good and bad
    samples: int = 0  # good
    tasks: dict[str, int] = field(default_factory=dict)
    bad: dict[str, int] = field(default_factory=dict)  # by reason: missing, undecodable, empty, bad_row, silent, infeasible, ...
    examples: dict[str, list[str]] = field(default_factory=dict)  # reason -> "file:line: what", at most 20
    duplicates: int = 0  # rows whose content another row has
    leaks: dict[str, list[str]] = field(default_factory=dict)  # what stands on both sides of the split
    groups: int = 0
    zero_label: int = 0  # conversations in which the assistant says nothing
    too_long: int = 0  # conversations over ctx_len tokens
    ctx_len: int = 512
    is_estimate: bool = True  # tokens were guessed from bytes, for want of a tokenizer
    unknown_symbols: int = 0  # characters of transcripts that the CTC alphabet can't write
    sample_rates: dict[str, int] = field(default_factory=dict)  # "16000" -> sounds
    durations_s: dict[str, Any] = field(default_factory=dict)
    lengths_characters: dict[str, Any] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)


def check(
    source: Source, base: Path, *, tokenizer: Tokenizer | None = None, ctx_len: int = 512, val_split: float = 0.05, seed: int = 0
) -> Report:
    """Read every row and open every file of a source. What can't be used is reported, never raised."""
    return _Check(source, Path(base), tokenizer, ctx_len).run(val_split, seed)


class _Check:
    def __init__(self, source: Source, base: Path, tokenizer: Tokenizer | None, ctx_len: int) -> None:
        self.source, self.base, self.tokenizer, self.ctx_len = source, base, tokenizer, ctx_len
        self.report = Report(str(base / source.path), ctx_len=ctx_len, is_estimate=tokenizer is None)
        self.quarantine = Quarantine()
        self.alphabet = Alphabet()
        self.opened: dict[tuple[str, float | None, float | None], float | DataError] = {}  # duration in s (0 for images), or why not
        self.hashes: dict[str, str] = {}
        self.durations_s: list[float] = []

    def run(self, val_split: float, seed: int) -> Report:
        report = self.report
        good: list[Sample] = []
        try:
            path = readers.locate(self.source, self.base)
            report.format = formats.sniff(path, self.source)
            first_line: dict[str, int] = {}
            for line, sample in readers.numbered(self.source, self.base, self.quarantine):
                if self._is_usable(path, line, sample):
                    good.append(sample)
                    first = first_line.setdefault(self._content(sample), line)
                    if first != line:
                        report.duplicates += 1
                        self._example("duplicate", f"{path}:{line}: the same content as line {first}")
        except UserError as error:
            reason = error.reason if isinstance(error, DataError) else "config"
            self.quarantine.add(report.path, 0, reason, str(error))
        self._summarise(good)
        self._split(good, val_split, seed)
        self._judge()
        return report

    def _is_usable(self, path: Path, line: int, sample: Sample) -> bool:
        """Open the sample's media; a sample with a bad file is set aside with that file's reason."""
        seconds = 0.0
        try:
            for part in sample.media:
                window = (part.start, part.end) if isinstance(part, AudioPart) else (None, None)
                key = (part.path, *window)
                if key not in self.opened:
                    self.opened[key] = self._open(part.path, window if isinstance(part, AudioPart) else None)
                found = self.opened[key]
                if isinstance(found, DataError):
                    raise found
                seconds += found
            self._transcript(sample, seconds)
        except DataError as error:
            self.quarantine.add(path, line, error.reason, str(error))
            return False
        self._labels_and_length(path, line, sample, seconds)
        return True

    def _open(self, path: str, window: tuple[float | None, float | None] | None) -> float | DataError:
        """Seconds of a sound, 0 of an image, or what is wrong with the file."""
        try:
            inline = inline_bytes(path)
            self.hashes[path] = files.sha256_bytes(inline) if inline is not None else files.sha256_file(Path(path))
            if window is None:
                image.read(inline if inline is not None else path)
                return 0.0
            if inline is not None:
                with soundfile.SoundFile(io.BytesIO(inline)) as sound:
                    seconds, rate_hz = float(sound.frames / sound.samplerate), sound.samplerate
            else:
                wave = audio.read(path, RATE_HZ, start_s=window[0], end_s=window[1])
                seconds, rate_hz = len(wave) / RATE_HZ, soundfile.info(path).samplerate
        except DataError as error:
            return error
        except (OSError, soundfile.LibsndfileError) as error:
            return DataError("undecodable", f"{path:.80}: {error}")
        self.durations_s.append(seconds)
        self.report.sample_rates[str(rate_hz)] = self.report.sample_rates.get(str(rate_hz), 0) + 1
        return float(seconds)

    def _transcript(self, sample: Sample, seconds: float) -> None:
        """Whether CTC can write the words in the frames of their sound.

        Raises  DataError (infeasible).
        """
        if sample.task != "transcribe":
            return
        self.report.unknown_symbols += self.alphabet.unknown(sample.answer)
        needed, frames = min_frames(self.alphabet.encode(sample.answer)), math.ceil(seconds * RATE_HZ / SAMPLES_PER_STATE)
        if needed > frames:
            raise DataError("infeasible", f"transcript: needs {needed} frames at 25 Hz, the sound has {frames}: {sample.answer[:60]!r}")

    def _labels_and_length(self, path: Path, line: int, sample: Sample, seconds: float) -> None:
        if sample.messages and not any(m.role == "assistant" for m in sample.messages):
            self.report.zero_label += 1
            self._example("zero_label", f"{path}:{line}: no assistant turn, so nothing is learned")
        if sample.text is not None:
            return  # a document is cut into rows, nothing of it is lost
        texts = [m.text for m in sample.messages]
        if self.tokenizer is not None:
            tokens = sum(map(len, self.tokenizer.encode_many(texts)))
        else:
            tokens = sum(math.ceil(len(text.encode()) / BYTES_PER_TOKEN) for text in texts)
        heard = min(AUDIO_TOKENS_MAX, math.ceil(seconds * RATE_HZ / SAMPLES_PER_STATE)) + 2 if sample.audios else 0
        tokens += 1 + 2 * len(sample.messages) + heard + 3 * len(sample.images)
        if tokens > self.ctx_len:
            self.report.too_long += 1
            self._example("too_long", f"{path}:{line}: {tokens} tokens, the context has {self.ctx_len}")

    def _content(self, sample: Sample) -> str:
        """Hash of what a sample shows and says, whatever its id and file names."""
        media = [[self.hashes[part.path], *([part.start, part.end] if isinstance(part, AudioPart) else [])] for part in sample.media]
        return files.sha256_json([sample.text, [[m.role, m.text] for m in sample.messages], media])

    def _contents(self, sample: Sample) -> Iterable[str]:
        """What of a sample must not stand on both sides: each medium's bytes, or its text where it has none."""
        return [self.hashes[part.path] for part in sample.media] or [self._content(sample)]

    def _summarise(self, good: list[Sample]) -> None:
        report = self.report
        report.samples = len(good)
        report.rows = len(good) + self.quarantine.total
        report.groups = len({sample.group for sample in good})
        for sample in good:
            report.tasks[sample.task] = report.tasks.get(sample.task, 0) + 1
        report.bad = dict(self.quarantine.counts)
        report.examples = {**self.quarantine.examples, **report.examples}
        report.durations_s = histogram(self.durations_s)
        report.lengths_characters = histogram([len(s.text if s.text is not None else s.answer) for s in good])

    def _split(self, good: list[Sample], val_split: float, seed: int) -> None:
        sides = readers.sides([(sample, self.source) for sample in good], val_split, seed)
        train = [sample for sample, side in zip(good, sides, strict=True) if side == "train"]
        valid = [sample for sample, side in zip(good, sides, strict=True) if side == "valid"]
        found = asdict(split.leaks(train, valid, self._contents))
        self.report.leaks = {name: shared for name, shared in found.items() if shared}

    def _judge(self) -> None:
        report = self.report
        report.errors = [f"{count} {reason}: {report.examples[reason][0]}" for reason, count in report.bad.items()]
        report.errors += [f"{len(shared)} {name} on both sides of the split, e.g. {shared[0]}" for name, shared in report.leaks.items()]
        if not report.samples:
            report.errors.append(f"{report.path}: no usable sample")
        for name, count in (("zero_label", report.zero_label), ("duplicate", report.duplicates), ("too_long", report.too_long)):
            if count:
                report.warnings.append(f"{count} {name}: {report.examples[name][0]}")

    def _example(self, reason: str, what: str) -> None:
        if len(examples := self.report.examples.setdefault(reason, [])) < EXAMPLES:
            examples.append(what)


def histogram(values: list[float] | list[int]) -> dict[str, Any]:
    """Least, median, most, sum and ten equal bins; empty for no values."""
    if not values:
        return {}
    counts, edges = np.histogram(values, bins=BINS)
    return {
        "min": min(values),
        "median": float(np.median(values)),
        "max": max(values),
        "sum": sum(values),
        "edges": [round(float(edge), 3) for edge in edges],
        "counts": [int(count) for count in counts],
    }
