"""What a header announces against what is there: streams are read to their end, torn files are refused with
both lengths."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from muomni.errors import DataError
from muomni.media import audio, mpeg

RATE_HZ = 16_000


def speech(seconds: float = 1.5, rate_hz: int = RATE_HZ, seed: int = 0) -> NDArray[np.float32]:
    """Gliding tones in syllables: neither a codec nor an estimate of lengths finds it as easy as a sine."""
    time_S = np.arange(round(seconds * rate_hz)) / rate_hz
    rng = np.random.default_rng(seed)
    wave_S = sum(
        np.sin(2 * np.pi * (hz * time_S + 3 * np.sin(2 * np.pi * time_S))) for hz in rng.uniform(150, 2500, 4)
    )
    return (
        0.15 * wave_S * np.abs(np.sin(2 * np.pi * 1.7 * time_S)) + 0.01 * rng.standard_normal(len(time_S))
    ).astype(np.float32)


WAVE_S = speech()
PCM = (WAVE_S * 32767).astype("<i2").tobytes()
FMT = struct.pack("<HHIIHH", 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)


def chunk(name: bytes, body: bytes, size: int | None = None, *, pad: bool = True) -> bytes:
    return (
        name
        + struct.pack("<I", len(body) if size is None else size)
        + body
        + (b"\0" if pad and len(body) % 2 else b"")
    )


def riff(*chunks: bytes, size: int | None = None, form: bytes = b"RIFF") -> bytes:
    body = b"".join(chunks)
    return form + struct.pack("<I", 4 + len(body) if size is None else size) + b"WAVE" + body


def encoded(
    form: str,
    subtype: str | None = None,
    wave: NDArray[np.float32] = WAVE_S,
    rate_hz: int = RATE_HZ,
    **options: object,
) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, wave, rate_hz, format=form, subtype=subtype, **options)
    return stream.getvalue()


def reason(content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        audio.read(content, RATE_HZ)
    assert "\n" not in str(caught.value)
    assert caught.value.reason == "undecodable"
    return str(caught.value)


fmt, data, info = (
    chunk(b"fmt ", FMT),
    chunk(b"data", PCM),
    chunk(b"LIST", b"INFO" + chunk(b"IART", b"somebody")),
)
WHOLE = {
    "plain": riff(fmt, data),
    "RIFF size counts its own eight bytes": riff(fmt, data, size=len(riff(fmt, data))),
    "RIFF size too small": riff(fmt, data, size=999),
    "RIFF size far too large": riff(fmt, data, size=10**8),
    "RIFF size 0": riff(fmt, data, size=0),
    "words before": riff(fmt, info, data),
    "words after": riff(fmt, data, info),
    "an odd chunk without its pad byte": riff(fmt, chunk(b"note", b"odd", pad=False), data),
    "an ID3 tag behind": riff(fmt, data) + b"TAG" + bytes(125),
    "data size a header too large": riff(fmt, chunk(b"data", PCM, len(PCM) + 44)),
    "a PEAK chunk too short": riff(fmt, chunk(b"PEAK", bytes(10)), data),
}
STREAMS = {
    "0": (0, 0),
    "0 and a header": (0, 36),
    "ffmpeg": (0xFFFF_FFFF, 0xFFFF_FFFF),
    "sox": (0x7FFF_F000, 0x7FFF_F024),
    "arecord": (0x8000_0000, 0x8000_0024),
    "arecord in frames of 18 bytes": (0x7FFF_FFEE, 0x8000_0012),
    "2**31 - 1": (0x7FFF_FFFF, 0x7FFF_FFFF),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_wav_is_read_whatever_else_its_header_says(name: str) -> None:
    assert np.abs(audio.read(WHOLE[name], RATE_HZ) - WAVE_S).max() < 1e-4
    about = audio.info(WHOLE[name])
    assert about.seconds == len(WAVE_S) / RATE_HZ
    assert not about.is_stream
    assert about.surplus == 0


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_with_unfilled_sizes_is_read_to_its_end(name: str) -> None:
    size, whole = STREAMS[name]
    content = riff(fmt, chunk(b"data", PCM, size), size=whole)
    assert np.abs(audio.read(content, RATE_HZ) - WAVE_S).max() < 1e-4
    assert audio.info(content).is_stream
    assert np.array_equal(
        audio.read(content, RATE_HZ, start_s=0.5, end_s=0.75), audio.read(content, RATE_HZ)[8000:12_000]
    )


@pytest.mark.parametrize(("width", "subtype"), [(1, "PCM_U8"), (3, "PCM_24"), (4, "FLOAT"), (8, "DOUBLE")])
def test_streams_of_other_widths(width: int, subtype: str) -> None:
    content = bytearray(encoded("WAV", subtype))
    place = content.index(b"data")
    content[place + 4 : place + 8] = bytes(4)
    assert len(content) - place - 8 == width * len(WAVE_S)
    assert np.abs(audio.read(bytes(content), RATE_HZ) - WAVE_S).max() < 1 / 100


def test_a_data_chunk_that_is_truly_empty_is_empty() -> None:
    for content in (riff(fmt, chunk(b"data", b"")), riff(fmt, chunk(b"data", b""), info)):
        with pytest.raises(DataError) as caught:
            audio.read(content)
        assert caught.value.reason == "empty"


@pytest.mark.parametrize("shape", ["padded", "no pad", "pad counted only", "pad written only"])
def test_the_pad_byte_of_an_odd_chunk_is_nobodys_length(shape: str) -> None:
    odd = ((WAVE_S[:-1] * 127) + 128).astype("u1").tobytes()
    fmt_8 = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE_HZ, RATE_HZ, 1, 8))
    body = chunk(b"data", odd, pad=shape in ("padded", "pad written only"))
    size = {
        "pad counted only": 4 + len(fmt_8) + 8 + len(odd) + 1,
        "pad written only": 4 + len(fmt_8) + 8 + len(odd),
    }.get(shape)
    assert len(audio.read(riff(fmt_8, body, size=size), RATE_HZ)) == len(WAVE_S) - 1


TORN = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "FLOAT"),
    ("WAV", "ULAW"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "MS_ADPCM"),
    ("WAV", "GSM610"),
]
TORN += [
    ("WAVEX", "PCM_16"),
    ("RF64", "PCM_16"),
    ("RF64", "FLOAT"),
    ("W64", "PCM_16"),
    ("W64", "PCM_24"),
    ("AIFF", "PCM_16"),
    ("AIFF", "FLOAT"),
]
TORN += [
    ("AIFF", "ALAW"),
    ("AIFF", "IMA_ADPCM"),
    ("AU", "PCM_16"),
    ("AU", "ULAW"),
    ("AU", "DOUBLE"),
    ("CAF", "PCM_16"),
    ("CAF", "FLOAT"),
]
TORN += [
    ("NIST", "PCM_16"),
    ("SVX", "PCM_16"),
    ("VOC", "PCM_16"),
    ("AVR", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("MP3", None),
]


@pytest.mark.parametrize(("form", "subtype"), TORN)
@pytest.mark.parametrize("share", [0.35, 0.9])
def test_a_torn_file_is_refused_with_both_lengths(form: str, subtype: str | None, share: float) -> None:
    content = encoded(form, subtype)
    length_s = len(audio.read(content, RATE_HZ)) / RATE_HZ
    assert length_s == pytest.approx(1.5, abs=0.06)
    message = reason(content[: int(len(content) * share)])
    assert "torn" in message
    lengths_s = sorted(float(word) for word in message.split() if word.replace(".", "", 1).isdigit())
    assert lengths_s[1] == pytest.approx(length_s, abs=0.15)
    assert lengths_s[0] == pytest.approx(length_s * share, abs=0.25)


def test_a_torn_window_is_refused_though_the_window_is_there() -> None:
    content = encoded("AIFF", "PCM_16")
    with pytest.raises(DataError, match="torn"):
        audio.read(content[: len(content) // 2], start_s=0.1, end_s=0.3)


def test_a_data_chunk_that_overruns_a_file_whose_RIFF_size_fits() -> None:
    half = PCM[: len(PCM) // 2]
    assert "announces 1.50 s, the file holds 0.75 s" in reason(
        riff(fmt, chunk(b"data", half, len(PCM)), size=4 + len(fmt) + 8 + len(half))
    )


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
def test_an_ogg_that_ends_within_a_page(codec: str) -> None:
    content = encoded("OGG", codec, speech(9.0))
    assert len(audio.read(content, RATE_HZ)) == 9 * RATE_HZ
    for share in (0.4, 0.97):
        assert "torn, a page is cut short" in reason(content[: int(len(content) * share)])


def test_a_lost_page_within_an_ogg() -> None:
    content = encoded("OGG", "VORBIS", speech(20.0))
    pages = [place for place in range(len(content)) if content[place : place + 4] == b"OggS"]
    assert "torn, a page is cut short or missing" in reason(content[: pages[-3]] + content[pages[-2] :])


@pytest.mark.parametrize("size", [0, 24, 2**63 - 1, -1])
def test_a_w64_from_a_pipe(size: int) -> None:
    content = bytearray(encoded("W64", "PCM_16"))
    place = content.index(b"data")
    content[place + 16 : place + 24] = content[16:24] = struct.pack("<q", size)
    assert np.abs(audio.read(bytes(content), RATE_HZ) - WAVE_S).max() < 1e-4


def test_what_follows_a_w64_is_not_its_sound() -> None:
    content = encoded("W64", "PCM_16")
    assert len(audio.read(content + bytes(range(256)) * 16, RATE_HZ)) == len(WAVE_S)


@pytest.mark.parametrize("size", [0, 2**64 - 1, 2**63 - 1])
def test_an_rf64_from_a_pipe(size: int) -> None:
    content = bytearray(encoded("RF64", "PCM_16"))
    place = content.index(b"ds64")
    content[place + 8 : place + 32] = struct.pack("<QQQ", size, size, size)
    assert np.abs(audio.read(bytes(content), RATE_HZ) - WAVE_S).max() < 1e-4


def test_a_bw64_is_an_rf64_by_another_name() -> None:
    assert np.abs(audio.read(b"BW64" + encoded("RF64", "PCM_16")[4:], RATE_HZ) - WAVE_S).max() < 1e-4


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000])
def test_an_au_from_a_pipe(size: int) -> None:
    content = bytearray(encoded("AU", "PCM_16"))
    content[8:12] = struct.pack(">I", size)
    assert np.abs(audio.read(bytes(content), RATE_HZ) - WAVE_S).max() < 1e-4


def test_an_au_that_announces_half_of_what_follows_is_refused() -> None:
    content = bytearray(encoded("AU", "PCM_16"))
    content[8:12] = struct.pack(">I", len(PCM) // 2)
    assert "announces 0.75 s, as much as 1.50 s follow" in reason(bytes(content))


@pytest.mark.parametrize("size", [-1, 0])
def test_a_caf_from_a_pipe(size: int) -> None:
    content = bytearray(encoded("CAF", "PCM_16"))
    place = content.index(b"data")
    content[place + 4 : place + 12] = struct.pack(">q", size)
    assert np.abs(audio.read(bytes(content), RATE_HZ) - WAVE_S).max() < 1e-4


@pytest.mark.parametrize("frames", [0, 0xFFFF_FFFF, 0x7F00_0000 // 2])
def test_an_aiff_from_a_pipe(frames: int) -> None:
    content = bytearray(encoded("AIFF", "PCM_16"))
    common, sound = content.index(b"COMM"), content.index(b"SSND")
    content[common + 10 : common + 14] = struct.pack(">I", frames)
    content[sound + 4 : sound + 8] = struct.pack(">I", min(0xFFFF_FFFF, 2 * frames))
    assert np.abs(audio.read(bytes(content), RATE_HZ) - WAVE_S).max() < 1e-4


def test_a_flac_from_a_pipe_and_one_that_announces_too_little() -> None:
    for samples in (0, len(WAVE_S) // 2):
        content = bytearray(encoded("FLAC", "PCM_16", speech(5.0)))
        content[22:26] = struct.pack(">I", samples)
        assert np.abs(audio.read(bytes(content), RATE_HZ) - speech(5.0)).max() < 1e-4
        about = audio.info(bytes(content))
        assert about.seconds == 5.0
        assert about.is_stream == (samples == 0)


def bare(content: bytes) -> tuple[bytes, mpeg.Frame]:
    """An MP3 without its Xing or Info frame, and the first frame that is left."""
    found = mpeg.first_frame(lambda place, length: content[place : place + length], len(content))
    assert found is not None
    assert mpeg.announced(found) is not None
    content = content[found.place + len(found.content) :]
    first = mpeg.first_frame(lambda place, length: content[place : place + length], len(content))
    assert first is not None
    return content, first


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_without_a_xing_header_is_as_long_as_its_frames(rate_hz: int, mode: str) -> None:
    quiet_then_loud = np.concatenate([1e-3 * speech(3.0, rate_hz), speech(3.0, rate_hz)])
    whole = encoded("MP3", None, quiet_then_loud, rate_hz, compression_level=0.5, bitrate_mode=mode)
    content, first = bare(whole)
    frames, is_cut = mpeg.count(content, first)
    assert not is_cut
    assert frames * mpeg.samples_per_frame(first.header) == pytest.approx(6.0 * rate_hz, abs=0.3 * rate_hz)
    read_S, whole_S = audio.read(content, rate_hz), audio.read(whole, rate_hz)
    assert len(read_S) == pytest.approx(len(whole_S), abs=3 * 1152)
    assert np.array_equal(
        read_S[576:][2000 : len(whole_S) - 3000], whole_S[2000:-3000]
    )  # LAME's delay, which only its header tells
    assert audio.info(content).said_s is None


def test_an_mp3_cut_within_a_frame_is_read_and_told() -> None:
    content, _ = bare(encoded("MP3", None, speech(3.0)))
    for share in (0.5, 0.8):
        half = content[: int(len(content) * share)]
        assert audio.info(half).is_cut
        assert len(audio.read(half, RATE_HZ)) / RATE_HZ == pytest.approx(3.1 * share, abs=0.2)
    assert not audio.info(content).is_cut


def test_two_mp3s_in_a_row_are_both_read() -> None:
    one, other = encoded("MP3", None, speech(2.0, seed=1)), encoded("MP3", None, speech(3.0, seed=2))
    assert len(audio.read(one + other, RATE_HZ)) / RATE_HZ == pytest.approx(5.0, abs=0.25)
    assert audio.info(one + other).said_s == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("frames", [1, 7, 60])
def test_an_mp3_whose_header_counts_too_few_frames_is_read_whole(frames: int) -> None:
    content = bytearray(encoded("MP3", None, speech(3.0)))
    place = content.index(b"Xing") if b"Xing" in content else content.index(b"Info")
    content[place + 8 : place + 12] = struct.pack(">I", frames)
    assert np.array_equal(
        audio.read(bytes(content), RATE_HZ), audio.read(encoded("MP3", None, speech(3.0)), RATE_HZ)
    )
    assert audio.decode(bytes(content)).info.said_s == pytest.approx(frames * 576 / RATE_HZ, abs=0.1)


def test_an_mp3_whose_header_counts_too_many_frames_is_refused() -> None:
    content = bytearray(encoded("MP3", None, speech(3.0)))
    place = content.index(b"Xing") if b"Xing" in content else content.index(b"Info")
    content[place + 8 : place + 12] = struct.pack(">I", 1000)
    assert "torn, the header announces" in reason(bytes(content))


def id3(size: int) -> bytes:
    body = b"PRIV" + struct.pack(">I", size) + b"\0\0" + bytes(number % 251 for number in range(size))
    return b"ID3\3\0\0" + bytes(len(body) >> shift & 127 for shift in (21, 14, 7, 0)) + body


@pytest.mark.parametrize(
    "before", [b"", id3(300), id3(200_000), id3(50) + id3(700), bytes(3000), id3(300) + bytes(100_000)]
)
@pytest.mark.parametrize("behind", [b"", b"TAG" + bytes(125), b"APETAGEX" + bytes(500), bytes(700)])
def test_tags_and_zeros_around_an_mp3_change_nothing(
    before: bytes, behind: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    content = encoded("MP3", None, speech(2.0))
    assert np.array_equal(audio.read(before + content + behind, RATE_HZ), audio.read(content, RATE_HZ))
    assert capfd.readouterr().err == ""


def test_a_tag_before_a_flac() -> None:
    assert np.abs(audio.read(id3(400) + encoded("FLAC", "PCM_16"), RATE_HZ) - WAVE_S).max() < 1e-4


def test_codecs_that_libsndfile_cannot_seek_in_are_read_and_cut() -> None:
    for form, subtype in (
        ("WAV", "GSM610"),
        ("AIFF", "GSM610"),
        ("W64", "GSM610"),
        ("WAV", "G721_32"),
        ("AU", "G723_24"),
    ):
        content = encoded(form, subtype, speech(2.0, 8000), 8000)
        whole_S = audio.read(content, 8000)
        assert len(whole_S) == pytest.approx(16_000, abs=200)
        assert np.array_equal(audio.read(content, 8000, start_s=0.5, end_s=1.5), whole_S[4000:12_000])


def test_sounds_whose_length_nothing_checks_are_refused() -> None:
    for form in ("MAT4", "MPC2K", "PAF"):
        assert "expected a format whose length can be checked" in reason(encoded(form, "PCM_16"))


def test_random_damage_never_raises_anything_else_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    forms = [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("RF64", "PCM_16"),
        ("W64", "PCM_16"),
        ("AIFF", "PCM_16"),
        ("AU", "ULAW"),
        ("CAF", "PCM_16"),
    ]
    for form, subtype in [
        *forms,
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("NIST", "PCM_16"),
        ("VOC", "PCM_16"),
        ("SVX", "PCM_16"),
    ]:
        whole = encoded(form, subtype, WAVE_S[:4000])
        for _ in range(25):
            content = bytearray(whole[: rng.integers(12, len(whole) + 1)])
            for place in rng.integers(0, min(len(content), 120), rng.integers(0, 3)):
                content[place] = rng.integers(0, 256)
            with contextlib.suppress(DataError):
                assert len(audio.read(bytes(content), allow_silent=True)) > 0
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("blocks", [1, 2, 3, 20])
@pytest.mark.parametrize("rest", [0, 1, 17, 3892])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_a_flac_that_ends_in_silence_is_whole(tmp_path: Path, blocks: int, rest: int, subtype: str) -> None:
    """Its last frame holds a constant and is shorter than a frame's header can be."""
    wave = np.concatenate([np.random.default_rng(0).normal(0, 0.1, 4096 * blocks), np.zeros(rest)])
    soundfile.write(tmp_path / "a.flac", wave, 16_000, subtype=subtype)
    assert audio.info(tmp_path / "a.flac").seconds == len(wave) / 16_000
    assert len(audio.read(tmp_path / "a.flac", 16_000)) == len(wave)
