"""Frames of MPEG audio, counted by their headers: how long a file is that does not say so, or says something
else.

Source  ISO/IEC 11172-3 and 13818-3 for frame headers; the Xing, Info and VBRI headers as LAME and Fraunhofer
        write them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

At = Callable[[int, int], bytes]  # place, length -> bytes of a file
FIRST_FRAME_BYTES = 1 << 16  # behind the tags; what holds no frame there is no MPEG audio
RATES_HZ = {
    3: (44_100, 48_000, 32_000),
    2: (22_050, 24_000, 16_000),
    0: (11_025, 12_000, 8_000),
}  # by version: 1, 2, 2.5
KBITS = {  # by (version 1?, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
SAME = 0xFFFE_0C00  # of a header: sync, version, layer and rate, which all frames of a file share
TAG_BYTES = 24  # a Xing header with the fields that decoders ask for


@dataclass(frozen=True)
class Frame:
    """The first frame of a file."""

    place: int
    header: int
    content: bytes

    @property
    def is_version_1(self) -> bool:
        return self.header >> 19 & 3 == 3

    @property
    def layer(self) -> int:
        return 4 - (self.header >> 17 & 3)

    @property
    def side_bytes(self) -> int:
        """Bytes between the header and the main data of layer III."""
        is_mono = self.header >> 6 & 3 == 3
        return (17 if is_mono else 32) if self.is_version_1 else (9 if is_mono else 17)


@dataclass(frozen=True)
class Announced:
    """What a Xing, Info or VBRI header says: frames (its own left out) and size (all bytes); `places` of the
    two numbers in the frame."""

    frame: Frame
    frames: int
    size: int | None
    places: tuple[int, int]

    def fits(self, there_bytes: int) -> bool:
        """Whether the file holds as many bytes as announced, to a frame."""
        return self.size is not None and abs(self.size - there_bytes) <= self.size / max(1, self.frames)

    def mended(self, frames: int, size: int) -> bytes:
        """The frame of the header, with other numbers."""
        content = bytearray(self.frame.content)
        for place, number in zip(self.places, (frames, size), strict=True):
            if place:
                content[place : place + 4] = struct.pack(">I", number)
        return bytes(content)


def samples_per_frame(header: int) -> int:
    """Samples of a channel in a frame."""
    layer = 4 - (header >> 17 & 3)
    return 384 if layer == 1 else 1152 if layer == 2 or header >> 19 & 3 == 3 else 576


def length(header: int) -> int:
    """Bytes of a frame by its header; 0 for what is no header, or one of free format."""
    version, layer, rate_code, bits = (
        header >> 19 & 3,
        4 - (header >> 17 & 3),
        header >> 10 & 3,
        header >> 12 & 15,
    )
    if header >> 21 != 0x7FF or version == 1 or layer == 4 or rate_code == 3 or bits in (0, 15):
        return 0
    rate_hz, kbits, padding = (
        RATES_HZ[version][rate_code],
        KBITS[version == 3, layer][bits - 1],
        header >> 9 & 1,
    )
    if layer == 1:
        return (12_000 * kbits // rate_hz + padding) * 4
    return samples_per_frame(header) * 125 * kbits // rate_hz + padding


def behind_tags(at: At, size: int) -> int:
    """Where the ID3v2 tags at the file's beginning end; there may be several."""
    place = 0
    while place + 10 <= size and (tag := at(place, 10))[:3] == b"ID3":
        place += 10 + sum((byte & 127) << shift for byte, shift in zip(tag[6:10], (21, 14, 7, 0)))
        place += 10 if tag[5] & 16 else 0
    return place


def tags_bytes(at: At, size: int) -> int:
    """Bytes of ID3v1 and APE tags at the file's end."""
    end = size - (128 if size > 128 and at(size - 128, 3) == b"TAG" else 0)
    footer = at(end - 32, 32) if end > 32 else b""
    if footer[:8] == b"APETAGEX":
        end -= struct.unpack("<I", footer[12:16])[0] + (32 if footer[23] & 128 else 0)
    return size - max(0, end)


def first_frame(at: At, size: int) -> Frame | None:
    """The first header behind the tags that a second one of its kind follows, or the end of the file."""
    begin = behind_tags(at, size)
    place = begin
    while place < size and not (block := at(place, FIRST_FRAME_BYTES)).strip(b"\0"):
        place += len(block)  # padding of zeros, of any length
    content = at(place, 2 * FIRST_FRAME_BYTES)
    sync = content.find(b"\xff")
    while 0 <= sync < FIRST_FRAME_BYTES:
        header = int.from_bytes(content[sync : sync + 4], "big")
        step = length(header)
        if step and _follows(content, sync + step, header, place + len(content) >= size):
            return Frame(place + sync, header, content[sync : sync + step])
        sync = content.find(b"\xff", sync + 1)
    return None


def announced(frame: Frame) -> Announced | None:
    """What the first frame says of all of them; None where it says nothing."""
    content, place = frame.content, 4 + frame.side_bytes + (0 if frame.header >> 16 & 1 else 2)
    for start in (place, place - 2) if not frame.header >> 16 & 1 else (place,):
        if content[start : start + 4] in (b"Xing", b"Info"):
            flags = int.from_bytes(content[start + 4 : start + 8], "big")
            if not flags & 1 or len(content) < start + 16:
                return None
            frames = int.from_bytes(content[start + 8 : start + 12], "big")
            size = int.from_bytes(content[start + 12 : start + 16], "big") if flags & 2 else None
            return (
                Announced(frame, frames, size, (start + 8, start + 12 if flags & 2 else 0))
                if frames
                else None
            )
    if content[36:40] == b"VBRI" and len(content) >= 54:
        size, frames = struct.unpack(">II", content[46:54])
        return Announced(frame, frames, size, (50, 46))
    return None


def count(content: bytes, first: Frame) -> tuple[int, bool]:
    """Whole frames of the first one's kind, and whether the content ends within one; what lies between is
    passed over, as by decoders."""
    place, frames, end, kind, is_cut = 0, 0, len(content), first.header & SAME, False
    lengths: dict[int, int] = {}
    while place + 4 <= end:
        header = int.from_bytes(content[place : place + 3], "big") << 8
        step = lengths.get(header)
        if step is None:
            step = lengths[header] = length(header) if header & SAME == kind else 0
        if step:
            place += step
            is_cut = place > end
            frames += not is_cut
            continue
        place = content.find(b"\xff", place + 1)
        while place >= 0 and not _starts(content, place, kind):
            place = content.find(b"\xff", place + 1)
        if place < 0:
            break
    return frames, is_cut


def tag_frame(first: Frame, frames: int, size: int) -> bytes | None:
    """A frame with a Xing header, to stand before a file that has none; None for layers I and II, where no
    decoder looks for one."""
    if first.layer != 3:
        return None
    need = 4 + first.side_bytes + TAG_BYTES
    plain = first.header & 0xFFFF_0CFF | 1 << 16  # no CRC, no padding
    header = next(code for bits in range(1, 15) if length(code := plain | bits << 12) >= need)
    body = struct.pack(">4sIII", b"Xing", 3, frames, size + length(header))
    return (header.to_bytes(4, "big") + bytes(first.side_bytes) + body).ljust(length(header), b"\0")


def _follows(content: bytes, place: int, header: int, is_end: bool) -> bool:
    """Whether another header of the kind stands at `place`, or the file ends there."""
    if place + 4 > len(content):
        return is_end
    other = int.from_bytes(content[place : place + 4], "big")
    return other & SAME == header & SAME and length(other) > 0


def _starts(content: bytes, place: int, kind: int) -> bool:
    header = int.from_bytes(content[place : place + 4], "big")
    return (
        header & SAME == kind
        and length(header) > 0
        and _follows(content, place + length(header), header, True)
    )
