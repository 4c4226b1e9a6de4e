"""Sounds beside ffmpeg's libraries (PyAV): the same samples, or a refusal; and the containers that only PyAV
opens."""

from __future__ import annotations

import io
import struct
import sys

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from muomni.errors import DataError
from muomni.media import audio

av = pytest.importorskip(
    "av", reason="PyAV is not there: pip install 'muomni[av]', or nothing checks AAC, WMA, AMR and webm"
)
ROUNDING = {
    "MS_ADPCM": 6e-3,
    "IMA_ADPCM": 1e-3,
    "VORBIS": 1e-4,
    "MPEG_LAYER_III": 2e-3,
    "GSM610": 1e-3,
}  # two decoders of one format


def tones(seconds: float, rate_hz: int, channels: int = 1, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    time_S = np.arange(round(seconds * rate_hz)) / rate_hz
    waves = [
        0.1
        * sum(
            np.sin(2 * np.pi * hz * (time_S + 0.01 * np.sin(7 * time_S)))
            for hz in rng.uniform(100, rate_hz / 5, 4)
        )
        for _ in range(channels)
    ]
    return np.stack(waves, 1).astype(np.float32)


def by_ffmpeg(content: bytes) -> NDArray[np.float32]:
    """(S,) the mean of the channels, as libavcodec decodes them."""
    with av.open(io.BytesIO(content)) as container:
        blocks = []
        for frame in container.decode(audio=0):
            block = frame.to_ndarray()
            block = block.T if frame.format.is_planar else block.reshape(-1, frame.layout.nb_channels)
            scale, zero = (
                (128, 128)
                if block.dtype == np.uint8
                else (2.0 ** (8 * block.itemsize - 1) if block.dtype.kind == "i" else 1, 0)
            )
            blocks.append((block.astype(np.float64) - zero) / scale)
    return np.concatenate(blocks).mean(1).astype(np.float32)


def encoded(form: str, subtype: str, wave_SC: NDArray[np.float32], rate_hz: int, **options: object) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, wave_SC, rate_hz, format=form, subtype=subtype, **options)
    return stream.getvalue()


KINDS = [
    ("WAV", kind)
    for kind in (
        "PCM_16",
        "PCM_U8",
        "PCM_24",
        "PCM_32",
        "FLOAT",
        "DOUBLE",
        "ULAW",
        "ALAW",
        "IMA_ADPCM",
        "MS_ADPCM",
        "GSM610",
    )
]
KINDS += [(form, kind) for form in ("WAVEX", "RF64") for kind in ("PCM_16", "PCM_24", "FLOAT")]
KINDS += [
    (form, kind)
    for form in ("AIFF", "AU", "CAF")
    for kind in ("PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")
]
KINDS += [
    ("W64", "PCM_16"),
    ("W64", "FLOAT"),
    ("FLAC", "PCM_S8"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("OGG", "VORBIS"),
    ("NIST", "PCM_16"),
]


@pytest.mark.parametrize(("form", "subtype"), KINDS)
def test_every_kind_of_samples(form: str, subtype: str) -> None:
    for rate_hz, channels in ((8000, 1), (44_100, 2)):
        channels = 1 if subtype == "GSM610" else channels
        content = encoded(form, subtype, tones(1.1, rate_hz, channels), rate_hz)
        ours_S, theirs_S = audio.read(content, rate_hz), by_ffmpeg(content)
        slack = {"IMA_ADPCM": 1100, "MS_ADPCM": 1100, "VORBIS": 256}.get(
            subtype, 0
        )  # ffmpeg keeps what pads the last block
        assert len(ours_S) == pytest.approx(len(theirs_S), abs=slack)
        both = min(len(ours_S), len(theirs_S))
        assert np.abs(ours_S[:both] - theirs_S[:both]).max() <= ROUNDING.get(subtype, 1e-6)


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 22_050, 44_100, 48_000])
def test_mp3(rate_hz: int) -> None:
    for mode in ("CONSTANT", "VARIABLE"):
        content = encoded(
            "MP3", "MPEG_LAYER_III", tones(2.1, rate_hz, 2), rate_hz, compression_level=0.4, bitrate_mode=mode
        )
        ours_S, theirs_S = audio.read(content, rate_hz), by_ffmpeg(content)
        assert abs(len(ours_S) - len(theirs_S)) <= 1
        both = min(len(ours_S), len(theirs_S))
        assert np.abs(ours_S[:both] - theirs_S[:both]).max() < ROUNDING["MPEG_LAYER_III"]


def damaged(rng: np.random.Generator) -> bytes:
    """A file with a size of its header changed, its end cut off or something behind it, as tools leave
    them."""
    form, subtype = [
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("WAV", "FLOAT"),
        ("RF64", "PCM_16"),
        ("W64", "PCM_16"),
        ("AIFF", "PCM_16"),
    ][rng.integers(6)]
    content = bytearray(encoded(form, subtype, tones(1.3, 8000, int(rng.integers(1, 3)), 1), 8000))
    if rng.random() < 0.4:
        del content[len(content) - int(rng.choice([1, 30, 4000, len(content) // 2])) :]
    if rng.random() < 0.6:
        names = [content.find(name) for name in (b"data", b"SSND", b"ds64")]
        place = int(rng.choice([place for place in (0, *names) if place >= 0])) + 4
        order = ">" if form == "AIFF" else "<"
        sizes = [
            0,
            1,
            36,
            len(content),
            len(content) - 8,
            len(content) // 2,
            2 * len(content),
            0xFFFF_FFFF,
            0x7FFF_F000,
            0x8000_0000,
        ]
        content[place : place + 4] = struct.pack(f"{order}I", int(rng.choice(sizes)))
    if rng.random() < 0.3:
        content += rng.bytes(int(rng.choice([1, 7, 500, 4000])))
    return bytes(content)


def test_damaged_headers_are_read_as_ffmpeg_reads_them_or_refused() -> None:
    rng, same, refused = np.random.default_rng(0), 0, 0
    for number in range(500):
        content = damaged(rng)
        try:
            ours_S = audio.read(content, 8000)
        except DataError:
            refused += 1
            continue
        try:
            theirs_S = by_ffmpeg(content)
        except (av.FFmpegError, ValueError, IndexError):
            # What ffmpeg does not open is read whole: to its end, where its header holds a placeholder.
            assert audio.info(content).is_stream or len(ours_S) == pytest.approx(10_400, abs=400), number
            continue
        both = min(len(ours_S), len(theirs_S))
        assert abs(len(ours_S) - len(theirs_S)) <= 400, number
        assert both == 0 or np.abs(ours_S[:both] - theirs_S[:both]).max() < 1e-4, number
        same += 1
    assert same > 150
    assert refused > 50


def written(codec: str, form: str, wave_SC: NDArray[np.float32], rate_hz: int, **options: str) -> bytes:
    stream, layout = io.BytesIO(), "stereo" if wave_SC.shape[1] == 2 else "mono"
    with av.open(stream, "w", format=form, options=options) as container:
        out = container.add_stream(codec, rate=rate_hz)
        out.codec_context.layout, out.bit_rate = layout, 12_200 if "amr" in codec else 64_000
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray((wave_SC * 32767).astype("<i2").reshape(1, -1)), format="s16", layout=layout
        )
        frame.sample_rate, frame.pts = rate_hz, 0
        size = out.codec_context.frame_size or None
        resampler = av.AudioResampler(out.codec_context.format or "fltp", layout, rate_hz, frame_size=size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(out.encode(piece))
        container.mux(out.encode(None))
    return stream.getvalue()


ONLY_AV = {
    "m4a": ("aac", "mp4", 44_100, 2),
    "m4a of speech": ("aac", "mp4", 16_000, 1),
    "lossless m4a": ("alac", "mp4", 16_000, 2),
    "mov": ("pcm_s16le", "mov", 16_000, 1),
    "aac": ("aac", "adts", 44_100, 1),
    "webm": ("libopus", "webm", 48_000, 1),
    "mka": ("flac", "matroska", 16_000, 1),
    "wma": ("wmav2", "asf", 16_000, 1),
    "amr": ("libopencore_amrnb", "amr", 8000, 1),
    "wavpack": ("wavpack", "wv", 16_000, 2),
    "mp2 in a wav": ("mp2", "wav", 16_000, 1),
}


@pytest.mark.parametrize("name", ONLY_AV)
def test_containers_that_pyav_opens(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, form, rate_hz, channels = ONLY_AV[name]
    if codec not in av.codecs_available:
        pytest.skip(f"this ffmpeg has no {codec}")
    wave_SC = tones(4.0, rate_hz, channels)
    content = written(codec, form, wave_SC, rate_hz)
    (tmp_path / "a").write_bytes(content)
    whole_S = audio.read(tmp_path / "a", rate_hz)
    assert len(whole_S) / rate_hz == pytest.approx(4.0, abs=0.07)
    assert np.array_equal(whole_S, by_ffmpeg(content)[: len(whole_S)])
    for start_s, end_s in ((0.0, 0.5), (1.25, 1.5), (3.0, 3.9), (3.5, 9.0)):
        cut_S = audio.read(content, rate_hz, start_s=start_s, end_s=end_s)
        assert np.array_equal(cut_S, whole_S[round(start_s * rate_hz) : round(end_s * rate_hz)])
    with pytest.raises(DataError, match="no sound from 9 s on"):
        audio.read(content, start_s=9.0)
    with pytest.raises(DataError) as caught:
        audio.read(content, max_s=2.0)
    assert caught.value.reason == "too_long"
    for share in (0.5, 0.9):
        with pytest.raises(DataError) as caught:
            audio.read(content[: int(len(content) * share)])
        assert caught.value.reason == "undecodable"
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"takes PyAV, which is not installed \(pip install 'muomni\[av\]'"):
        audio.read(content)


def test_a_torn_m4a_whose_index_is_whole() -> None:
    content = written("aac", "mp4", tones(4.0, 16_000), 16_000)
    index, sound = content.index(b"moov") - 4, content.index(b"mdat") - 4
    assert sound < index
    front = (
        content[:sound] + content[index:] + content[sound:index]
    )  # places in the index are now too small, by its own size
    moved, shift = bytearray(front), len(content) - index
    table = moved.index(b"stco")
    for number in range(int.from_bytes(moved[table + 8 : table + 12], "big")):
        place = table + 12 + 4 * number
        moved[place : place + 4] = (int.from_bytes(moved[place : place + 4], "big") + shift).to_bytes(
            4, "big"
        )
    content = bytes(moved)
    assert len(audio.read(content, 16_000)) / 16_000 == pytest.approx(4.0, abs=0.07)
    with pytest.raises(DataError, match="torn"):
        audio.read(content[: len(content) // 2])


def test_a_long_m4a_is_sought_in() -> None:
    content = written("alac", "mp4", tones(80.0, 8000), 8000)
    whole_S = audio.read(content, 8000, max_s=100)
    for start_s in (61.0, 70.123, 79.5):
        cut_S = audio.read(content, 8000, start_s=start_s, end_s=start_s + 1)
        assert np.array_equal(cut_S, whole_S[round(start_s * 8000) :][: len(cut_S)])


def test_oggs_in_a_row_are_all_read() -> None:
    one, other = (encoded("OGG", "VORBIS", tones(2.0, 16_000, seed=seed), 16_000) for seed in (1, 2))
    assert len(audio.read(one + other, 16_000)) / 16_000 == pytest.approx(4.0, abs=0.05)


def test_a_video_without_sound_is_named() -> None:
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        out = container.add_stream("mpeg4", rate=10)
        out.width = out.height = 32
        out.pix_fmt = "yuv420p"
        for _ in range(5):
            container.mux(out.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        container.mux(out.encode(None))
    with pytest.raises(DataError, match="expected a sound, got MP4 without one"):
        audio.read(stream.getvalue())
