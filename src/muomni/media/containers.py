"""What a sound file announces of its length, and how much of it is there: read from the bytes, before any
decoder believes the header.

libsndfile takes what it finds and is silent about the rest: half of a torn AIFF is a whole sound to it, and a
wav whose sizes a pipe left unfilled is an empty one. Each parser here looks at the few bytes of a file that
say how long it is. Where these are wrong and the bytes tell better, `head` holds a mended beginning that a
decoder can believe.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from muomni.media import mpeg

HEAD_BYTES = 4096
DS64_BYTES = 28  # of the chunk with the sizes of RF64, at least
FOLLOWED = frozenset(
    {"WAV", "RF64", "W64", "AIFF", "SVX", "AU", "CAF"}
)  # whose chunks lead to their sound, or are damaged
PAGE_BYTES = 65_307  # the largest page of Ogg
FRAME_BYTES = 1 << 18  # where the last frame of a FLAC file is looked for
MOST_CHUNKS = 10_000
STREAM_SIZES = (  # what writers put into 32 bits when they cannot come back to fill in a size
    range(1),
    range(
        0x7EFF_FF00, 0x8000_0100
    ),  # sox 0x7FFFF000 and 0x7F000000, arecord and players 0x80000000 less a part of a frame
    range(0xFFFF_FF00, 0x1_0000_0000),  # ffmpeg, lame, mpg123
)
LONGEST_BYTES = 1 << 62  # from here on a size of 64 bits was not filled in either
RIFF_SOUND = b"fmt "
W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # of all GUIDs of W64 but the first
W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
PCM, MP3, EXTENSIBLE = 1, 0x55, 0xFFFE
ADTS = (b"\xff\xf1", b"\xff\xf9", b"\xff\xf0", b"\xff\xf8")  # AAC


@dataclass(frozen=True)
class Extent:
    """A file's form, and its sound in the file's own measure: bytes, samples or MPEG frames.

    form    name of the container, "" for one that is not known here
    said    what the header announces; None: nothing, or a placeholder
    there   what the file holds, as far as its announced extent goes; None: not known without decoding
    surplus what follows that is neither announced nor known as anything else
    frame_samples  of MP3, whose measure is its frames; 0: `said` and `there` are in proportion to the sound
    is_stream  the header holds a placeholder, because its writer could not come back to fill it in
    head, start  read `head` and then the file from `start` on, instead of the file
    is_lost     the header does not lead to the sound
    is_cut      a page of Ogg is cut or missing, or the file ends within a frame of MP3, and nothing says how
                much is lost
    is_open     Ogg: the last page bears no mark of the end
    is_chained  Ogg: another sound follows the first
    last_page   Ogg: samples (of 48 kHz for Opus) in the file's last page; None: all of them, or not known
    fmt, data   WAV: the fields of its format; where the samples begin
    """

    form: str = ""
    said: int | None = None
    there: int | None = None
    surplus: int = 0
    frame_samples: int = 0
    is_stream: bool = False
    head: bytes | None = None
    start: int = 0
    is_lost: bool = False
    is_cut: bool = False
    is_open: bool = False
    is_chained: bool = False
    last_page: int | None = None
    fmt: WaveFormat | None = None
    data: int = 0


@dataclass(frozen=True)
class WaveFormat:
    """The fields of a wav's `fmt ` chunk; tag is that of the subformat, where there is one."""

    tag: int
    channels: int
    rate_hz: int
    block_bytes: int
    bits: int
    order: str = "<"


def examine(stream: BinaryIO, size: int, head: bytes, *, is_thorough: bool = True) -> Extent:
    """The extent of a file of `size` bytes that begins with `head` (at most HEAD_BYTES).

    Takes   is_thorough: count the frames of an MP3 whose header fits its size, too; else that header is
            believed.
    """
    form, parse = next(((form, parse) for is_form, form, parse in FORMS if is_form(head)), ("", None))
    if parse is None:
        return Extent(form)
    try:
        extent = parse(_File(stream, size, head, is_thorough=is_thorough), form)
    except (struct.error, LookupError, ValueError, OverflowError):
        extent = Extent(form)
    return replace(extent, is_lost=extent.form in FOLLOWED and extent.there is None)


class _File:
    """Bytes by their place; the beginning is there already. With `origin` what stands within a file is one of
    its own."""

    def __init__(
        self, stream: BinaryIO, size: int, head: bytes, origin: int = 0, *, is_thorough: bool = True
    ) -> None:
        self.stream, self.size, self.head, self.origin, self.is_thorough = (
            stream,
            size,
            head,
            origin,
            is_thorough,
        )

    def at(self, place: int, length: int) -> bytes:
        """`length` bytes, fewer at the file's end."""
        if place + length <= len(self.head):
            return self.head[place : place + length]
        self.stream.seek(self.origin + place)
        return self.stream.read(min(length, max(0, self.size - place)))


def is_unfilled(size: int, bits: int = 32) -> bool:
    """Whether a size is a placeholder."""
    return any(size in sizes for sizes in STREAM_SIZES) if bits == 32 else size <= 0 or size >= LONGEST_BYTES


def _chunks(file: _File, place: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Name, place of the body and announced bytes of each chunk of an IFF file; a missing pad byte is put up
    with."""
    for _ in range(MOST_CHUNKS):
        if place + 8 > file.size:
            return
        name, size = struct.unpack(f"{order}4sI", file.at(place, 8))
        if not _is_name(name):
            if place % 2 == 0 and _is_name(file.at(place - 1, 4)):
                place -= 1
                continue
            return
        yield name, place + 8, size
        place += 8 + (max(size, DS64_BYTES) if name == b"ds64" else size) + size % 2


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and name.isascii() and all(32 <= byte < 127 for byte in name) and not name.isspace()


def _wave(file: _File, form: str) -> Extent:
    """RIFF, RIFX, RF64, BW64. A decoder gets its own header where a size lies or a chunk in front of the
    samples is damaged."""
    order = ">" if file.head[:4] == b"RIFX" else "<"
    long_size: int | None = None
    fmt, fields, is_clean = b"", None, file.head[:4] != b"BW64"
    for name, place, size in _chunks(file, 12, order):
        if name == b"ds64" and form == "RF64":
            long_size = struct.unpack("<Q", file.at(place + 8, 8))[0]
        elif name == RIFF_SOUND:
            fmt = file.at(place, min(size, 64))
            fields = _wave_format(fmt, order)
        elif name == b"PEAK" and fields is not None:
            is_clean &= size == 8 + 8 * fields.channels
        elif name == b"data":
            is_long = long_size is not None and (size == 0xFFFF_FFFF or long_size > 0)
            said_bytes = long_size if is_long and long_size is not None else size
            is_clean &= not is_long or size == 0xFFFF_FFFF
            return _wave_data(
                file, form, order, fmt, fields, place, said_bytes, 64 if is_long else 32, is_clean
            )
    return Extent(form)


def _wave_data(
    file: _File,
    form: str,
    order: str,
    fmt: bytes,
    fields: WaveFormat | None,
    place: int,
    said_bytes: int,
    bits: int,
    is_clean: bool,
) -> Extent:
    rest = file.size - place
    is_stream = (
        is_unfilled(said_bytes, bits)
        and said_bytes != rest
        and not (said_bytes == 0 and _only_chunks(file, place, order))
    )
    there = rest if is_stream else min(said_bytes, rest)
    block = fields.block_bytes if fields else 1
    extent = Extent(
        form, None if is_stream else said_bytes, there, is_stream=is_stream, fmt=fields, data=place
    )
    if fields and fields.tag == MP3 and there == (rest if is_stream else said_bytes):
        inner = _mp3(_File(file.stream, there, b"", place), "MP3")
        return replace(inner, head=inner.head or b"", start=place + inner.start)
    if not is_stream and said_bytes < rest:
        extent = replace(extent, surplus=_surplus(file, place + said_bytes + said_bytes % 2, order))
    if (is_stream or not is_clean) and fmt and there >= block:
        head = _riff(fmt, there, order)
        extent = replace(extent, head=head, start=place)
    return extent


def _wave_format(fmt: bytes, order: str = "<") -> WaveFormat | None:
    if len(fmt) < 16:
        return None
    tag, channels, rate_hz, _, block_bytes, bits = struct.unpack(f"{order}HHIIHH", fmt[:16])
    if tag == EXTENSIBLE and len(fmt) >= 26:
        tag = struct.unpack(f"{order}H", fmt[24:26])[0]
    return WaveFormat(tag, channels, rate_hz, block_bytes, bits, order)


def _riff(fmt: bytes, data_bytes: int, order: str = "<") -> bytes:
    """A header of nothing but format and samples; of RF64 where 32 bits can't hold the size."""
    fmt = fmt + bytes(len(fmt) % 2)
    chunk = struct.pack(f"{order}4sI", RIFF_SOUND, len(fmt)) + fmt
    whole = 4 + len(chunk) + 8 + data_bytes
    if whole < 0xFFFF_FF00:
        name = b"RIFX" if order == ">" else b"RIFF"
        return (
            struct.pack(f"{order}4sI4s", name, whole, b"WAVE")
            + chunk
            + struct.pack(f"{order}4sI", b"data", data_bytes)
        )
    ds64 = struct.pack("<4sIQQQI", b"ds64", 28, whole + 36, data_bytes, 0, 0)
    return (
        struct.pack("<4sI4s", b"RF64", 0xFFFF_FFFF, b"WAVE")
        + ds64
        + chunk
        + struct.pack("<4sI", b"data", 0xFFFF_FFFF)
    )


def _only_chunks(file: _File, place: int, order: str) -> bool:
    """Whether nothing but whole chunks (or nothing at all) follows: then an empty data chunk is truly
    empty."""
    return _surplus(file, place, order) == 0


def _surplus(file: _File, place: int, order: str) -> int:
    """Bytes from `place` on that are neither chunks nor tags; a second stretch of samples counts too."""
    if place >= file.size:
        return 0
    end = place
    for name, body, size in _chunks(file, place, order):
        if name == b"data" or body + size > file.size + 1:
            return file.size - end
        end = body + size + size % 2
    left = file.at(end, min(HEAD_BYTES, max(0, file.size - end)))
    return (
        0
        if not left.strip(b"\0") or left.startswith((b"TAG", b"ID3", b"APETAGEX", b"LYRICS"))
        else file.size - end
    )


def _w64(file: _File, form: str) -> Extent:
    place, fmt = 40, b""
    for _ in range(MOST_CHUNKS):
        name, size = struct.unpack("<16sq", file.at(place, 24))
        if name == RIFF_SOUND + W64_TAIL:
            fmt = file.at(place + 24, min(64, size - 24))
        if name == b"data" + W64_TAIL:
            rest = file.size - place - 24
            is_stream = is_unfilled(size - 24, 64) and rest > 0
            there = rest if is_stream else min(size - 24, rest)
            extent = Extent(form, None if is_stream else size - 24, there, is_stream=is_stream)
            if fmt and (is_stream or there < rest - 8):  # libsndfile reads to the file's end
                return replace(extent, head=_riff(fmt, there), start=place + 24)
            return extent
        if size < 24:
            break
        place += size + -size % 8
    return Extent(form)


def _aiff(file: _File, form: str) -> Extent:
    """AIFF, AIFC and 8SVX. libsndfile reads the samples of a stream to the file's end itself."""
    for name, place, size in _chunks(file, 12, ">"):
        if name in (b"SSND", b"BODY"):
            lead = 8 if name == b"SSND" else 0
            rest, said_bytes = file.size - place - lead, size - lead
            if is_unfilled(size) or said_bytes <= 0:
                return Extent(form, None, max(0, rest), is_stream=rest > 0)
            return Extent(
                form,
                said_bytes,
                min(said_bytes, rest) if name == b"SSND" else rest - (rest > said_bytes and said_bytes % 2),
            )
    return Extent(form)


def _au(file: _File, form: str) -> Extent:
    order = ">" if file.head[:4] == b".snd" else "<"
    place, said_bytes = struct.unpack(f"{order}II", file.head[4:12])
    rest = file.size - place
    if said_bytes >= rest and not is_unfilled(said_bytes):
        return Extent(form, said_bytes, rest)
    head = file.at(0, place)
    mended = head[:8] + struct.pack(f"{order}I", rest) + head[12:] if len(head) >= 24 else None
    is_stream = is_unfilled(said_bytes) and said_bytes != rest
    return Extent(
        form,
        None if is_stream else said_bytes,
        rest,
        is_stream=is_stream and rest > 0,
        head=mended,
        start=place,
    )


def _caf(file: _File, form: str) -> Extent:
    place = 8
    for _ in range(MOST_CHUNKS):
        name, size = struct.unpack(">4sq", file.at(place, 12))
        if name == b"data":
            rest = file.size - place - 12
            is_stream = is_unfilled(size, 64)
            if not is_stream and size <= rest:
                return Extent(form, size - 4, size - 4)
            head = file.at(0, place) + struct.pack(">4sq", name, rest)
            return Extent(
                form,
                None if is_stream else size - 4,
                rest - 4,
                is_stream=is_stream,
                head=head,
                start=place + 12,
            )
        if size < 0:
            break
        place += 12 + size
    return Extent(form)


def _nist(file: _File, form: str) -> Extent:
    start = int(file.head[8:16])
    fields = dict(re.findall(rb"(\w+) -i (\d+)", file.head[:start]))
    said_bytes = (
        int(fields[b"sample_count"])
        * int(fields.get(b"channel_count", b"1"))
        * int(fields.get(b"sample_n_bytes", b"1"))
    )
    return Extent(form, said_bytes, file.size - start) if said_bytes else Extent(form)


def _voc(file: _File, form: str) -> Extent:
    place = struct.unpack("<H", file.head[20:22])[0]
    said_bytes = there = 0
    for _ in range(MOST_CHUNKS):
        block = file.at(place, 4)
        if len(block) < 4 or block[0] == 0:
            break
        size = int.from_bytes(block[1:], "little")
        if block[0] in (1, 2, 9):
            said_bytes, there = said_bytes + size, there + min(size, file.size - place - 4)
        place += 4 + size
    return Extent(form, said_bytes, there + max(0, file.size - place - 1))


def _avr(file: _File, form: str) -> Extent:
    is_stereo, bits, _, _, _, _, frames = struct.unpack(">HHHHHII", file.head[12:30])
    said_bytes = frames * (2 if is_stereo else 1) * (bits // 8)
    return Extent(form, said_bytes, file.size - 128)


def _flac(file: _File, form: str) -> Extent:
    """Samples by STREAMINFO and by the last frame's number."""
    place = mpeg.behind_tags(file.at, file.size)
    if file.at(place, 4) != b"fLaC":
        return Extent("")
    info = file.at(place + 4, 38)
    if info[0] & 0x7F != 0:
        return Extent(form)
    bits = int.from_bytes(info[14:22], "big")
    channels, width, said_samples = (bits >> 41 & 7) + 1, (bits >> 36 & 31) + 1, bits & (1 << 36) - 1
    smallest, largest = struct.unpack(">HH", info[4:8])
    first = max(0, file.size - FRAME_BYTES)
    tail = file.at(first, file.size - first)
    ends = [end for end in _flac_ends(tail, channels, width, smallest, largest) if end]
    if said_samples and (not ends or said_samples in ends[-3:]):
        return Extent(form, said_samples, said_samples if ends else None)
    if not ends:
        return Extent(form, is_stream=True)
    extent = Extent(form, said_samples or None, ends[-1], is_stream=not said_samples)
    mended = (bits >> 36 << 36 | ends[-1]).to_bytes(8, "big")
    return replace(extent, head=file.at(0, place + 18) + mended, start=place + 26)


def _flac_ends(tail: bytes, channels: int, width: int, smallest: int, largest: int) -> Iterator[int]:
    """The number of the sample behind each frame that begins in `tail`. Source  RFC 9639, section 9."""
    sizes = {
        1: 192,
        **{code: 576 << code - 2 for code in range(2, 6)},
        **{code: 256 << code - 8 for code in range(8, 16)},
    }
    widths = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}
    for match in re.finditer(rb"\xff[\xf8\xf9]", tail):
        head = tail[match.start() : match.start() + 16].ljust(16, b"\0")  # a frame of silence is shorter
        size_code, rate_code, layout, width_code = head[2] >> 4, head[2] & 15, head[3] >> 4, head[3] >> 1 & 7
        if (
            size_code == 0
            or rate_code == 15
            or layout > 10
            or head[3] & 1
            or widths.get(width_code, width) != width
        ):
            continue
        if (layout + 1 if layout < 8 else 2) != channels:
            continue
        lead = 8 - (head[4] ^ 0xFF).bit_length()  # ones in front, as in UTF-8
        if lead == 1 or lead > 7:
            continue
        length = max(1, lead)
        number = head[4] & (0xFF >> length + (lead > 0))
        for byte in head[5 : 4 + length]:
            number = number << 6 | byte & 0x3F
        place = 4 + length
        extra = {6: 1, 7: 2}.get(size_code, 0)
        size = int.from_bytes(head[place : place + extra], "big") + 1 if extra else sizes[size_code]
        place += extra + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
        if match.start() + place < len(tail) and _crc8(head[:place]) == head[place]:
            is_fixed = head[1] == 0xF8
            if not is_fixed or size <= largest:
                yield (
                    number * smallest
                    if is_fixed and smallest == largest
                    else number * largest
                    if is_fixed
                    else number
                ) + size


def _crc8(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 & 0xFF ^ (7 if crc & 0x80 else 0)
    return crc


def _ogg(file: _File, form: str) -> Extent:
    """Where the last page begins, whether it is whole, and whether another sound follows the first.

    Every page is complete in a whole file; nothing announces how many there are, so a torn one has lost an
    unknown rest.
    """
    first = max(0, file.size - 3 * PAGE_BYTES)
    tail = file.at(first, file.size - first)
    serials = set(_first_serials(file))
    pages = [match.start() for match in re.finditer(rb"OggS\0", tail)]
    end, is_chained, is_open, granules = 0, False, False, list[int]()
    numbers: dict[int, int] = {}  # of the last page of each stream
    for place in pages:
        if place < end or place + 27 > len(tail):
            continue
        granule, serial, number = struct.unpack("<qII", tail[place + 6 : place + 22])
        segments = tail[place + 27 : place + 27 + tail[place + 26]]
        length = 27 + tail[place + 26] + sum(segments)
        if tail[place + 5] & 2 and granules:  # another sound begins
            return Extent(form, is_chained=True)
        if place + length > len(tail) or number != numbers.get(serial, number - 1) + 1:
            return Extent(form, is_cut=True)
        numbers[serial] = number
        end, is_chained, is_open = place + length, serial not in serials, not tail[place + 5] & 4
        if granule >= 0:
            granules.append(granule)
    last_page = granules[-1] - granules[-2] if len(granules) > 1 else None
    is_cut = end < len(tail) and b"OggS".startswith(tail[end : end + 4])
    return Extent(form, is_cut=is_cut, is_open=is_open, is_chained=is_chained, last_page=last_page)


def _first_serials(file: _File) -> Iterator[int]:
    """Serial numbers of the streams that begin at the file's beginning."""
    place = 0
    while (page := file.at(place, 27))[:4] == b"OggS" and page[5] & 2:
        yield struct.unpack("<I", page[14:18])[0]
        place += 27 + page[26] + sum(file.at(place + 27, page[26]))


def _tagged(file: _File, form: str) -> Extent:
    """What stands behind an ID3v2 tag."""
    inner = file.at(mpeg.behind_tags(file.at, file.size), 4)
    if inner == b"fLaC":
        return _flac(file, "FLAC")
    return Extent("AAC") if inner[:2] in ADTS else _mp3(file, form)


def _mp3(file: _File, form: str) -> Extent:
    """MPEG frames by the Xing, Info or VBRI header, and as counted where there is none or where it does not
    fit the file."""
    frame = mpeg.first_frame(file.at, file.size)
    if frame is None:
        return Extent("")
    extent = Extent(form, frame_samples=mpeg.samples_per_frame(frame.header))
    if frame.place > mpeg.behind_tags(file.at, file.size):
        extent = replace(
            extent, head=b"", start=frame.place
        )  # mpg123 complains of what stands before the first frame
    announced = mpeg.announced(frame)
    fits = announced is not None and announced.fits(
        file.size - frame.place - mpeg.tags_bytes(file.at, file.size)
    )
    if announced is not None and fits and not file.is_thorough:
        return replace(extent, said=announced.frames, there=announced.frames)
    content = file.at(frame.place, file.size - frame.place)
    there, is_cut = mpeg.count(content, frame)
    if announced is None:
        extent, head = replace(extent, is_cut=is_cut), mpeg.tag_frame(frame, there, len(content))
        return replace(extent, there=there, head=head, start=frame.place) if head and there else extent
    there -= 1  # the header stands in a frame of its own
    if abs(there - announced.frames) <= 1:
        there = announced.frames
        if fits:
            return replace(extent, said=there, there=there)
    head = announced.mended(there, len(content))
    return (
        replace(extent, said=announced.frames, there=there, head=head, start=frame.place + len(head))
        if there > 0
        else extent
    )


def _iff(head: bytes, *kinds: bytes) -> bool:
    return head[8:12] in kinds


Parser = Callable[[_File, str], Extent]
FORMS: list[tuple[Callable[[bytes], bool], str, Parser | None]] = [
    (lambda head: head[:4] in (b"RIFF", b"RIFX") and _iff(head, b"WAVE"), "WAV", _wave),
    (lambda head: head[:4] in (b"RF64", b"BW64") and _iff(head, b"WAVE"), "RF64", _wave),
    (lambda head: head[:16] == W64_RIFF, "W64", _w64),
    (lambda head: head[:4] == b"FORM" and _iff(head, b"AIFF", b"AIFC"), "AIFF", _aiff),
    (lambda head: head[:4] == b"FORM" and _iff(head, b"8SVX", b"16SV"), "SVX", _aiff),
    (lambda head: head[:4] in (b".snd", b"dns."), "AU", _au),
    (lambda head: head[:4] == b"caff", "CAF", _caf),
    (lambda head: head[:7] == b"NIST_1A", "NIST", _nist),
    (lambda head: head[:19] == b"Creative Voice File", "VOC", _voc),
    (lambda head: head[:4] == b"2BIT", "AVR", _avr),
    (lambda head: head[:4] == b"fLaC", "FLAC", _flac),
    (lambda head: head[:4] == b"OggS", "OGG", _ogg),
    (lambda head: head[4:8] == b"ftyp", "MP4", None),
    (lambda head: head[:4] == b"\x1aE\xdf\xa3", "Matroska", None),
    (lambda head: head[:8] == bytes.fromhex("3026b2758e66cf11"), "ASF", None),
    (lambda head: head[:5] == b"#!AMR", "AMR", None),
    (lambda head: head[:4] == b"wvpk", "WavPack", None),
    (lambda head: head[:4] == b"MAC ", "APE", None),
    (lambda head: head[:4] == b"TTA1", "TTA", None),
    (lambda head: head[:4] == b"RIFF" and _iff(head, b"AVI "), "AVI", None),
    (lambda head: head[:3] == b"FLV", "FLV", None),
    (lambda head: head[:4] == b".RMF", "RealMedia", None),
    (lambda head: head[:2] in ADTS, "AAC", None),
    (lambda head: head[:1] == b"G" and head[188:189] == b"G" and head[376:377] == b"G", "MPEG-TS", None),
    (lambda head: head[:3] == b"ID3", "MP3", _tagged),
    (lambda head: not head[:4].strip(b"\0") or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"), "MP3", _mp3),
]
