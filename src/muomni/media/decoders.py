"""Sound files opened for reading by frames: plain wavs by numpy, most others by libsndfile, what it does not
know by PyAV.

Each decoder gives what the file holds, whatever its header says, and any window of it as the same samples
that lie there when the whole file is decoded.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from muomni.errors import DataError
from muomni.media import containers, foreign
from muomni.media.containers import Extent

if TYPE_CHECKING:
    from av import AudioFrame
    from av.container import InputContainer

Wave = NDArray[np.float32]
Source = str | Path | bytes
BLOCK_VALUES = 1 << 20  # values decoded at once: a file of a thousand channels can't fill the memory
KEPT_CHANNELS = 8
TORN_S = 0.05  # a file may hold so much less than it announces: pad bytes, and headers that count themselves
TORN_FRAMES = 2  # of MP3, whose encoders count their own header or not
SALVAGE_FRAMES = 256
LEAD_S = (
    1.0  # decoded before a window and dropped: MP3 borrows bits of earlier frames, Opus predicts from them
)
UNCHECKED = frozenset(
    {"MAT4", "MAT5", "MPC2K", "PAF", "SD2", "SDS", "WVE", "XI"}
)  # libsndfile reads a torn half of these as a whole, or windows wrong
BY_AV = frozenset({"MP4", "Matroska", "ASF", "AMR", "WavPack", "APE", "TTA", "AAC"})
BY_NOTHING = frozenset({"AVI", "FLV", "RealMedia", "MPEG-TS"})  # torn ones can't be told
TIMED = frozenset({"MP4", "Matroska", "ASF"})  # that say how long they are
EITHER = frozenset(
    {"WAV", "RF64", "W64", "AIFF", "CAF", "OGG"}
)  # containers of codecs that libsndfile has not
PLAIN_ENDS = frozenset({"AU", "AVR", "NIST", "SVX", "VOC"})  # in which nothing may follow the sound
AV_SLACK_S = 0.2  # time stamps of Matroska are milliseconds, and its length counts the padding of codecs
AV_LEAD_S = 2.0
AV_SEEK_S = 60.0  # only MP4's time stamps are exact, and AAC's substituted noise is another after a seek: shorter ways are decoded whole
SAVE_HINT = "save it as wav or flac"
AV_HINT = f"pip install 'muomni[av]', or {SAVE_HINT}"


MOST_EXTENTS = 4096
_EXTENTS: dict[
    tuple[str, int, int, int, int], Extent
] = {}  # of files, by all that changes with their content


class Sound(Protocol):
    """A sound file, open.

    frames      of what the file holds; None where only decoding can tell
    said_s      seconds that the header announces; None: it announces nothing, or (is_stream) holds a
                placeholder
    surplus     bytes that follow the announced sound and are nothing known
    is_cut      the file breaks off (within a frame of MP3, or without the last page of Ogg), and nothing says
                how long it was
    slack_frames  fewer than announced may come without a fault
    fault       what the decoder said when it stopped before the end, "" where it did not
    is_float    samples are floating-point numbers, which may have any scale
    """

    rate_hz: int
    channels: int
    frames: int | None
    form: str
    codec: str
    said_s: float | None
    is_stream: bool
    surplus: int
    is_cut: bool
    slack_frames: int
    fault: str
    is_float: bool

    def blocks(self, first: int, frames: int) -> Iterator[Wave]:
        """So many frames from `first` on, (frames, channels), in pieces; fewer where the file ends."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


def opened(source: Source, name: str, *, is_thorough: bool = True) -> Sound:
    """A sound file, ready to be read; `is_thorough` as in `containers.examine`.

    Raises  DataError (undecodable): no sound file, one that is torn, or one that takes a library which is not
            there.
    """
    stream: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb", buffering=0)  # noqa: SIM115  (a wav keeps it)
    is_kept = False
    try:
        head = stream.read(containers.HEAD_BYTES)
        extent = _extent(source, stream, head, is_thorough)
        if _is_plain(extent):
            plain, is_kept = Plain(stream, extent, name), True
            return plain
    finally:
        if not is_kept:
            stream.close()
    foreign_kind = None if extent.form else foreign.explain(head)
    if foreign_kind is not None:
        raise DataError(
            "undecodable", f"{name}: expected a sound, got {foreign_kind.what}", hint=foreign_kind.hint
        )
    if extent.is_lost:
        raise DataError(
            "undecodable",
            f"{name}: the header of this {extent.form} file does not lead to its sound",
            hint="make the file anew",
        )
    if extent.form in BY_NOTHING:
        raise DataError("undecodable", f"{name}: expected a sound, got {extent.form}", hint=SAVE_HINT)
    if extent.form in BY_AV or extent.is_chained:
        return Av(source, extent, name)
    try:
        return Libsndfile(source, extent, name)
    except soundfile.LibsndfileError as error:
        if extent.said is not None and extent.there is not None and extent.said > extent.there:
            what = f"the header announces {extent.said} bytes of sound, the file holds {extent.there}"
            raise DataError("undecodable", f"{name}: torn, {what}", hint="make the file anew") from error
        if extent.form in EITHER and not extent.is_cut:
            return Av(source, extent, name)
        raise DataError("undecodable", f"{name}: not a readable sound file: {said(error)}") from error


def _extent(source: Source, stream: BinaryIO, head: bytes, is_thorough: bool) -> Extent:
    """What `containers.examine` says; of a file whose whole length or end it takes, once for as long as the
    file stays as it is."""
    if isinstance(source, bytes):
        return containers.examine(stream, len(source), head, is_thorough=is_thorough)
    status = os.fstat(stream.fileno())
    key = (
        f"{os.fspath(source)}\0{is_thorough}",
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
    )
    extent = _EXTENTS.get(key)
    if extent is None:
        extent = containers.examine(stream, status.st_size, head, is_thorough=is_thorough)
        if extent.form in ("MP3", "FLAC", "OGG"):
            if len(_EXTENTS) >= MOST_EXTENTS:
                _EXTENTS.clear()
            _EXTENTS[key] = extent
    return extent


def said(error: Exception) -> str:
    """libsndfile's words without the object's address, which is another in each run."""
    return error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)


def torn(name: str, said_s: float, there_s: float) -> DataError:
    """The refusal of a file that holds less than it announces."""
    what = f"the header announces {said_s:.2f} s, the file holds {there_s:.2f} s"
    return DataError("undecodable", f"{name}: torn, {what}", hint="make the file anew")


def _announced_s(extent: Extent, frames: int, rate_hz: int, name: str) -> float | None:
    """Seconds that the header announces of a file that holds `frames`.

    Raises  DataError where they are more than these.
    """
    if not extent.said or not extent.there:
        if extent.said and extent.there == 0:
            raise DataError(
                "undecodable",
                f"{name}: torn, the header announces sound, the file ends before it",
                hint="make the file anew",
            )
        return None
    there_s = frames / rate_hz
    if extent.frame_samples:
        said_s = there_s + (extent.said - extent.there) * extent.frame_samples / rate_hz
    else:
        said_s = there_s * extent.said / extent.there
    if said_s - there_s > TORN_S + TORN_FRAMES * extent.frame_samples / rate_hz:
        raise torn(name, said_s, there_s)
    if there_s - said_s > TORN_S and extent.form in PLAIN_ENDS:
        what = f"the header announces {said_s:.2f} s, as much as {there_s:.2f} s follow it"
        raise DataError(
            "undecodable", f"{name}: {what}, and nothing says which is right", hint="make the file anew"
        )
    return said_s


def _is_plain(extent: Extent) -> bool:
    """Whether a file is a wav of 16 bits as nearly all are."""
    fmt = extent.fmt
    return (
        fmt is not None
        and extent.head is None
        and (fmt.order, fmt.tag, fmt.bits, fmt.block_bytes) == ("<", containers.PCM, 16, 2 * fmt.channels)
        and fmt.channels > 0
        and fmt.rate_hz > 0
    )


class Plain:
    """A wav of 16 bits: samples as they lie in the file, divided by 32768 as libsndfile does."""

    is_float = is_cut = False
    slack_frames = 0
    codec = "PCM_16"
    fault = ""

    def __init__(self, stream: BinaryIO, extent: Extent, name: str) -> None:
        assert extent.fmt is not None
        self.stream, self.data, self.form = stream, extent.data, extent.form
        self.rate_hz, self.channels, self.is_stream, self.surplus = (
            extent.fmt.rate_hz,
            extent.fmt.channels,
            extent.is_stream,
            extent.surplus,
        )
        self.frames: int | None = (extent.there or 0) // extent.fmt.block_bytes
        try:
            self.said_s = _announced_s(extent, self.frames, self.rate_hz, name)
        except DataError:
            stream.close()
            raise

    def blocks(self, first: int, frames: int) -> Iterator[Wave]:
        """See Sound."""
        self.stream.seek(self.data + 2 * self.channels * first)
        step = max(1, BLOCK_VALUES // self.channels)
        for start in range(0, frames, step):
            content = self.stream.read(2 * self.channels * min(step, frames - start))
            whole = len(content) // (2 * self.channels)
            samples = np.frombuffer(content, "<i2", whole * self.channels)
            yield (samples * np.float32(1 / 32768)).reshape(whole, self.channels)

    def close(self) -> None:
        """See Sound."""
        self.stream.close()


class Libsndfile:
    """What libsndfile opens, behind a mended header where its own would be believed wrongly."""

    fault = ""

    def __init__(self, source: Source, extent: Extent, name: str) -> None:
        stream: Any = os.fspath(source) if isinstance(source, str | Path) else Spliced(b"", source, 0)
        if extent.head is not None:
            stream = Spliced(extent.head, source, extent.start)
        self.stream, self.sound = stream, soundfile.SoundFile(stream)
        self.rate_hz, self.channels, self.codec = (
            self.sound.samplerate,
            self.sound.channels,
            self.sound.subtype,
        )
        self.form = extent.form or self.sound.format
        self.slack_frames = TORN_FRAMES * extent.frame_samples
        self.is_float = self.codec in ("FLOAT", "DOUBLE")
        self.is_cut = extent.is_cut or extent.is_open
        self.is_stream, self.surplus, self.last_page = extent.is_stream, extent.surplus, extent.last_page
        self.frames: int | None = self.sound.frames
        try:
            if self.form in UNCHECKED:
                raise DataError(
                    "undecodable",
                    f"{name}: expected a format whose length can be checked, got {self.form}",
                    hint=SAVE_HINT,
                )
            if extent.is_cut and self.form == "OGG":
                there_s = self.sound.frames / self.rate_hz
                what = f"a page is cut short or missing, about {there_s:.2f} s are there; nothing says how long it was"
                raise DataError("undecodable", f"{name}: torn, {what}", hint="make the file anew")
            self.said_s = _announced_s(extent, self.sound.frames, self.rate_hz, name)
        except DataError:
            self.sound.close()
            raise

    def blocks(self, first: int, frames: int) -> Iterator[Wave]:
        """See Sound."""
        at = self._entry(first)
        drop, end = first - at, first + frames
        step = max(1, BLOCK_VALUES // self.channels)
        try:
            if at:
                self.sound.seek(at)
            while at < end:
                try:
                    block = self.sound.read(min(step, end - at), dtype="float32", always_2d=True)
                except soundfile.LibsndfileError:
                    if step <= SALVAGE_FRAMES:
                        raise
                    step = SALVAGE_FRAMES  # what precedes the fault is lost with a large block
                    if isinstance(self.stream, Spliced):
                        self.stream.seek(0)
                    self.sound = soundfile.SoundFile(self.stream)
                    if at:
                        self.sound.seek(at)
                    continue
                if len(block) == 0:
                    return
                at += len(block)
                kept, drop = block[drop:], max(0, drop - len(block))
                yield kept
        except soundfile.LibsndfileError as error:
            self.fault = said(error)

    def _entry(self, first: int) -> int:
        """The frame from which to decode, so that those from `first` on are what they are in the whole
        file."""
        if not self.sound.seekable() or self.codec.startswith("ALAC"):
            return 0
        if self.form != "OGG" and not self.codec.startswith("MPEG"):
            return first
        if self.form == "OGG":  # a seek into the last page of Vorbis comes late by what was cut from its end
            in_last = (self.frames or 0) if self.last_page is None else self.last_page
            first = min(first, (self.frames or 0) - in_last)
        return max(0, first - int(LEAD_S * self.rate_hz))

    def close(self) -> None:
        """See Sound."""
        self.sound.close()
        if isinstance(self.stream, Spliced):
            self.stream.close()


class Av:
    """What ffmpeg's libraries open, through PyAV (`muomni[av]`)."""

    frames: int | None = None
    is_float = is_cut = False
    surplus = 0
    fault = ""

    def __init__(self, source: Source, extent: Extent, name: str) -> None:
        try:
            import av
        except ImportError as error:
            kind = (
                extent.form if extent.form in BY_AV else f"{extent.form} of a codec that libsndfile has not"
            )
            kind = "an Ogg file of several sounds in a row" if extent.is_chained else kind
            raise DataError(
                "undecodable", f"{name}: {kind} takes PyAV, which is not installed", hint=AV_HINT
            ) from error
        self.source, self.name, self.form, self.is_stream = source, name, extent.form, extent.is_stream
        self.errors: type[Exception] = av.FFmpegError
        try:
            with self._container() as container:
                if not container.streams.audio:
                    raise DataError("undecodable", f"{name}: expected a sound, got {extent.form} without one")
                stream = container.streams.audio[0]
                first = next(container.decode(stream), None)
                if first is None:
                    raise DataError(
                        "undecodable",
                        f"{name}: no frame of its sound can be decoded",
                        hint="make the file anew",
                    )
                self.rate_hz, self.channels, self.codec = (
                    first.sample_rate,
                    first.layout.nb_channels,
                    stream.codec_context.name,
                )
                self._origin, self._tick_s = first.pts or 0, float(stream.time_base or 0)
                self.slack_frames = round(AV_SLACK_S * self.rate_hz)
                self.said_s: float | None = None
                if self.form in TIMED and stream.duration and stream.time_base:
                    self.said_s = float(stream.duration * stream.time_base)
                elif (
                    self.form in TIMED and container.duration and len(container.streams) == 1
                ):  # else a picture may go on for longer
                    self.said_s = container.duration / 1e6
        except (av.FFmpegError, OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            hint = (
                "a torn MP4 has lost the index at its end; make the file anew"
                if self.form == "MP4"
                else "make the file anew"
            )
            raise DataError("undecodable", f"{name}: not a readable sound file: {why}", hint=hint) from error

    def _container(self) -> InputContainer:
        import av

        source = io.BytesIO(self.source) if isinstance(self.source, bytes) else os.fspath(self.source)
        container: InputContainer = av.open(source, "r", metadata_errors="replace")
        return container

    def blocks(self, first: int, frames: int) -> Iterator[Wave]:
        """See Sound."""
        place, end = 0, first + frames
        start_s = max(0.0, first / self.rate_hz - AV_LEAD_S)
        is_sought = start_s > AV_SEEK_S and self.form == "MP4" and self._tick_s > 0
        try:
            with self._container() as container:
                stream = container.streams.audio[0]
                if is_sought:
                    container.seek(self._origin + int(start_s / self._tick_s), stream=stream)
                for frame in container.decode(stream):
                    if (frame.sample_rate, frame.layout.nb_channels) != (self.rate_hz, self.channels):
                        what = f"expected {self.rate_hz} Hz and {self.channels} channels throughout"
                        got = f"got {frame.sample_rate} Hz and {frame.layout.nb_channels}"
                        raise DataError("undecodable", f"{self.name}: {what}, {got}", hint=SAVE_HINT)
                    if is_sought:
                        place, is_sought = (
                            round(((frame.pts or 0) - self._origin) * self._tick_s * self.rate_hz),
                            False,
                        )
                    block = _floats(frame)
                    if place + len(block) > first:
                        yield block[max(0, first - place) : end - place]
                    place += len(block)
                    if place >= end:
                        return
        except self.errors as error:
            self.fault = getattr(error, "strerror", None) or str(error)

    def close(self) -> None:
        """See Sound."""


def _floats(frame: AudioFrame) -> Wave:
    """The samples of a frame, (frames, channels), full scale at 1."""
    samples = frame.to_ndarray()
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(2.0 ** (8 * samples.itemsize - 1))
    return samples.astype(np.float32)


def gathered(
    blocks: Iterator[Wave], channel: int | None, kept: list[Wave] | None = None
) -> tuple[Wave, float]:
    """One channel of all blocks, or the mean of all channels, and the peak of all; `kept` takes the blocks of
    several channels."""
    pieces: list[Wave] = []
    peak = 0.0
    for block in blocks:
        if block.size:
            peak = max(peak, float(block.max()), -float(block.min()))
        if block.shape[1] == 1:
            pieces.append(block[:, 0])
        else:
            if kept is not None:
                kept.append(block[:, :KEPT_CHANNELS])
            pieces.append(block.mean(axis=1, dtype=np.float32) if channel is None else block[:, channel])
    if len(pieces) == 1:
        return np.ascontiguousarray(pieces[0]), peak
    return (np.concatenate(pieces) if pieces else np.zeros(0, np.float32)), peak


class Spliced(io.RawIOBase):
    """`head`, then a file from `start` on, as one stream to read."""

    def __init__(self, head: bytes, source: Source, start: int) -> None:
        self.inner: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115  (`close` ends it)
        self.head, self.start, self.place = head, start, 0
        self.length = len(head) + max(0, self.inner.seek(0, io.SEEK_END) - start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = max(0, offset + (0, self.place, self.length)[whence])
        return self.place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self.place < len(self.head):
            piece = self.head[self.place : self.place + len(view)]
        else:
            self.inner.seek(self.start + self.place - len(self.head))
            piece = self.inner.read(len(view))
        view[: len(piece)] = piece
        self.place += len(piece)
        return len(piece)

    def close(self) -> None:
        self.inner.close()
        super().close()
