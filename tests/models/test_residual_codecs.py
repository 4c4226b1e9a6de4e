"""EnCodec, Mimi and DAC behind the face of all codecs; and what a guess about them gets wrong (transformers
5.24)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import tiny_codecs
from muomni.errors import CheckpointError, ConfigError, DataError, ShapeError, TokenRangeError
from muomni.models import codecs
from tiny_codecs import network, saved, wave

HOPS = {"encodec": 320, "mimi": 1920, "dac": 512}
RATES = {"encodec": 24_000, "mimi": 24_000, "dac": 16_000}
BOOKS = 4


def codes_of(model: Any, wave_BS: Tensor, books: int = BOOKS, **how: Any) -> Tensor:
    """Codes (B, K, F) as the library itself gives them."""
    with torch.inference_mode():
        if model.config.model_type == "encodec":
            bandwidth = tiny_codecs.BANDWIDTHS[[1, 2, 4, 8].index(books)]
            return model.encode(wave_BS[:, None], bandwidth=bandwidth, **how).audio_codes[0]
        if model.config.model_type == "mimi":
            return model.encode(wave_BS[:, None], num_quantizers=books, **how).audio_codes
        return model.encode(wave_BS[:, None], n_quantizers=books).audio_codes


@pytest.mark.parametrize("kind", HOPS)
def test_a_folder_of_the_library_is_opened_as_what_it_is(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    own = codecs.open_codec(tmp_path, BOOKS)
    assert (own.kind, own.modality, own.codebooks, own.codebook_size) == (kind, "audio", BOOKS, 64)
    assert (own.frame_rate_hz, own.sample_rate_hz, own.size_px, own.grid) == (
        RATES[kind] / HOPS[kind],
        RATES[kind],
        None,
        None,
    )


@pytest.mark.parametrize("kind", HOPS)
def test_codes_and_waves_are_the_librarys_own(kind: str, tmp_path: Path) -> None:
    model, wave_BS = saved(kind, tmp_path), wave(6 * HOPS[kind], rows=3)
    own = codecs.open_codec(tmp_path, BOOKS)
    codes = own.encode(wave_BS)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, codes_of(model, wave_BS))
    assert all(len(book.unique()) > 1 for book in codes.unbind(1))
    sound = own.decode(codes)
    with torch.inference_mode():
        if kind == "encodec":
            expected = model.decode(codes[None], [None]).audio_values[:, 0]
        else:
            expected = model.decode(audio_codes=codes).audio_values.reshape(3, -1)
    assert sound.dtype == torch.float32
    assert torch.equal(sound, expected)
    assert torch.equal(own.decode(codes), sound)


@pytest.mark.parametrize("kind", HOPS)
@pytest.mark.parametrize("book", range(BOOKS))
def test_codes_with_one_vector_sound_alike(kind: str, book: int, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    own = codecs.open_codec(tmp_path, BOOKS)
    place = {
        "encodec": f"quantizer.layers.{book}.",
        "mimi": f"quantizer.acoustic_residual_vector_quantizer.layers.{book - 1}."
        if book
        else "quantizer.semantic_residual_vector_quantizer.layers.0.",
        "dac": f"quantizer.quantizers.{book}.",
    }[kind]
    codes = torch.randint(2, 64, (1, BOOKS, 6), generator=torch.Generator().manual_seed(0))
    zeros, ones = codes.clone(), codes.clone()
    zeros[:, book], ones[:, book] = 0, 1

    def equal_rows() -> list[bool]:
        return [torch.equal(table[0], table[1]) for table in own.code_vectors()]

    assert [table.shape[0] for table in own.code_vectors()] == [64] * BOOKS
    assert equal_rows() == [False] * BOOKS
    assert not torch.equal(own.decode(zeros), own.decode(ones))
    model: Any = own.network  # type: ignore[attr-defined]
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.startswith(f"{place}codebook.") and len(tensor) == 64:
                tensor[1] = tensor[0]
    model.apply(
        lambda part: setattr(part, "_embed", None) if hasattr(part, "_embed") else None
    )  # Mimi's cache
    assert equal_rows() == [each == book for each in range(BOOKS)]
    assert torch.equal(own.decode(zeros), own.decode(ones))


@pytest.mark.parametrize("kind", HOPS)
@pytest.mark.parametrize("about", [-2, -1, 0, 1, 100])
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_frames_and_samples_are_told_beforehand(kind: str, about: int, frames: int, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    own = codecs.open_codec(tmp_path, 2)
    samples = frames * HOPS[kind] + about
    codes = own.encode(wave(samples))
    assert codes.shape == (1, 2, own.frames(samples))
    assert own.decode(codes).shape == (1, own.samples(codes.shape[2]))
    assert 0 <= own.samples(codes.shape[2]) - samples < HOPS[kind]


@pytest.mark.parametrize("kind", HOPS)
def test_a_single_sample_has_codes(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    assert codecs.open_codec(tmp_path, 1).encode(wave(1)).shape == (1, 1, 1)


def test_dac_of_odd_ratios_gives_less_than_whole_frames(tmp_path: Path) -> None:
    """Higgs' 25 Hz at 24 kHz: 8 * 5 * 4 * 2 * 3 = 960 samples a frame; a guess of 960 a frame is wrong after
    decoding."""
    saved("dac", tmp_path, downsampling_ratios=[8, 5, 4, 2, 3], sampling_rate=24_000)
    own = codecs.open_codec(tmp_path, BOOKS)
    assert own.frame_rate_hz == 25
    for samples in (960, 9_599, 9_600, 9_601):
        codes = own.encode(wave(samples))
        assert codes.shape[2] == own.frames(samples) == -(-samples // 960)
        assert own.decode(codes).shape[1] == own.samples(codes.shape[2]) < 960 * codes.shape[2]
    assert own.samples(10) == 9_600 - 328


@pytest.mark.parametrize("kind", HOPS)
def test_fewer_books_are_the_first_of_more(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    wave_BS = wave(5 * HOPS[kind], rows=2)
    whole = codecs.open_codec(tmp_path, 5).encode(wave_BS)
    for books in (1, 2, 3, 4):
        own = codecs.open_codec(tmp_path, books)
        assert own.codebooks == books
        assert torch.equal(own.encode(wave_BS), whole[:, :books])
        assert own.decode(whole[:, :books]).isfinite().all()
    with pytest.raises(ShapeError):
        codecs.open_codec(tmp_path, 3).decode(whole)


def test_the_number_of_books_is_never_guessed(tmp_path: Path) -> None:
    """Unasked, Mimi gives all of its 32, EnCodec at 24 kHz 2 of 32, DAC all of its 9: so it must be said."""
    defaults = {
        "mimi": {},
        "encodec": {"codebook_size": 1024, "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0]},
        "dac": {"n_codebooks": 9},
    }
    given, most = {}, {}
    for kind, sizes in defaults.items():
        model = saved(kind, tmp_path / kind, **sizes)
        with torch.inference_mode():
            codes = model.encode(wave(2 * HOPS[kind])[:, None]).audio_codes
        given[kind] = codes.shape[-2]
        for asked in (None, 0, 33):
            with pytest.raises(ConfigError, match=r"expected 1 to \d+ codebooks") as refused:
                codecs.open_codec(tmp_path / kind, asked)
        most[kind] = int(refused.value.message.split("1 to ")[1].split()[0])
    assert given == {"mimi": 32, "encodec": 2, "dac": 9}
    assert most == {"mimi": 32, "encodec": 32, "dac": 9}


def differing(model: Any, frames: int, **how: Any) -> list[int]:
    """The frames of a clip that get other codes once it is padded on the right by four frames."""
    hop = HOPS[model.config.model_type]
    clip = wave(frames * hop - hop // 3, seed=1)
    alone, padded = codes_of(model, clip), codes_of(model, F.pad(clip, (0, 4 * hop)), **how)
    padded = padded[..., : alone.shape[2]]
    return (alone != padded).any(1).nonzero()[:, 1].tolist()


def test_a_clip_padded_in_a_batch_gets_other_codes_whatever_the_mask_says() -> None:
    """Why clips are batched by equal length only. Seen at the library itself, which no later version must
    have mended."""
    hop, frames = 320, 6
    mask = F.pad(torch.ones(1, 1, frames * hop - hop // 3), (0, 4 * hop)).bool()
    encodec = network("encodec")
    assert differing(encodec, 6) == differing(encodec, 6, padding_mask=mask)
    assert 0 in differing(encodec, 6)  # at its beginning!
    assert differing(encodec, 3) == [0, 1, 2]
    assert set(differing(encodec, 12)) <= {11}
    mimi = network("mimi")
    mask = F.pad(torch.ones(1, 1, 6 * 1920 - 640), (0, 4 * 1920)).bool()
    assert differing(mimi, 6) == differing(mimi, 6, padding_mask=mask) == [5]
    dac = differing(network("dac"), 12)
    assert dac
    assert max(dac) == 10  # of its 11 frames, the last
    assert min(dac) >= 4


@pytest.mark.parametrize("kind", HOPS)
def test_clips_of_any_length_get_the_codes_that_they_have_alone(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    own, hop = codecs.open_codec(tmp_path, BOOKS), HOPS[kind]
    lengths = [3 * hop, 6 * hop - 7, 3 * hop, 8 * hop, 6 * hop - 7, 2 * hop + 1]
    clips = [wave(length, seed=number)[0] for number, length in enumerate(lengths)]
    for clip, codes in zip(clips, own.encode_many(clips)):
        assert torch.equal(codes, own.encode(clip[None])[0])


def streamed(model: Any, wave_BS: Tensor, chunk: int) -> Tensor:
    """Codes of Mimi's streaming encode, chunk by chunk."""
    caches: dict[str, Any] = {"encoder_cache": None, "padding_cache": None}
    codes = []
    for first in range(0, wave_BS.shape[1], chunk):
        piece = wave_BS[:, None, first : first + chunk]
        out = model.encode(piece, num_quantizers=BOOKS, use_streaming=True, **caches)
        caches = {"encoder_cache": out.encoder_cache, "padding_cache": out.padding_cache}
        codes.append(out.audio_codes)
    return torch.cat(codes, -1)


@torch.inference_mode()
def test_mimis_streaming_encode_is_right_for_whole_frames_only() -> None:
    """Other chunks give wrong codes and too few of them, without a word; some fail in a convolution."""
    model, wave_BS = network("mimi"), wave(24 * 1920)
    whole = codes_of(model, wave_BS)
    for chunk in (1920, 2 * 1920):
        assert torch.equal(streamed(model, wave_BS, chunk), whole)
    for chunk in (2880, 12_000, 16_000):
        codes = streamed(model, wave_BS, chunk)
        assert codes.shape[2] < 24
        assert (codes != whole[..., : codes.shape[2]]).any(1).sum() > 10
    with pytest.raises(RuntimeError):
        streamed(model, wave_BS, 2400)


@torch.inference_mode()
def test_mimis_decode_by_chunks_needs_more_than_its_cache() -> None:
    """Its cache holds attention only. What makes pieces equal to the whole, and what only comes near.

    Six frames decoded before and cut off again cover its convolutions (five would do), and they are exact as
    far as attention does not matter; it reaches back sliding_window positions in each layer. Exact is: one
    frame before for the unfolding, attention from the cache, and the last 8 of its states for the
    convolutions after it.
    """
    model = network("mimi")
    codes = codes_of(model, wave(24 * 1920))
    whole = model.decode(codes).audio_values
    size = float(whole.abs().max())

    def error(pieces: list[Tensor]) -> float:
        return float((torch.cat(pieces, -1) - whole).abs().max()) / size

    def before(context: int) -> float:
        pieces = []
        for first in range(0, 24, 4):
            start = max(0, first - context)
            sound = model.decode(codes[..., start : first + 4]).audio_values
            pieces.append(sound[..., (first - start) * 1920 :])
        return error(pieces)

    cache, pieces = None, []
    for first in range(0, 24, 4):
        out = model.decode(codes[..., first : first + 4], decoder_cache=cache, use_cache=True)
        cache = out.decoder_cache
        pieces.append(out.audio_values)
    assert float((pieces[0] - whole[..., : 4 * 1920]).abs().max()) / size < 1e-5
    assert error(pieces) > 0.5
    assert before(0) > 0.5
    assert 1e-3 < before(6) < 0.2

    def by_states(kept: int) -> float:
        decoder, cache, past, pieces = model.decoder, None, None, []
        for first in range(0, 24, 4):
            latents = model.quantizer.decode(codes[..., max(0, first - 1) : first + 4])
            unfolded = decoder.upsample(latents)[..., 2 if first else 0 :]
            out = decoder.decoder_transformer(unfolded.transpose(1, 2), cache=cache, use_cache=True)
            cache, states = out.cache, out.last_hidden_state.transpose(1, 2)
            states = states if past is None else torch.cat([past, states], -1)
            pieces.append(decoder.decoder_seanet(states)[..., -4 * 1920 :])
            past = states[..., -kept:]
        return error(pieces)

    assert by_states(8) < 1e-5
    assert by_states(7) > 0.1

    for layer in model.decoder.decoder_transformer.layers:
        layer.self_attn_layer_scale.scale.zero_()
    whole = model.decode(codes).audio_values
    assert before(6) < 1e-5
    assert before(4) > 0.1


def test_what_codes_alone_dont_give_back_is_refused(tmp_path: Path) -> None:
    """EnCodec at 48 kHz (stereo, chunks of a second, each with its gain)."""
    wide = {
        "sampling_rate": 48_000,
        "normalize": True,
        "chunk_length_s": 1.0,
        "overlap": 0.01,
        "audio_channels": 2,
    }
    causes = {
        "gain that is no code": {**wide},
        "overlapping chunks": {**wide, "normalize": False},
        "codes 2 channels": {"audio_channels": 2},
    }
    for number, (why, changes) in enumerate(causes.items()):
        saved("encodec", tmp_path / str(number), **changes)
        with pytest.raises(CheckpointError, match=why):
            codecs.open_codec(tmp_path / str(number), 2)


@pytest.mark.parametrize("kind", HOPS)
def test_bad_media_and_codes_are_refused(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    own = codecs.open_codec(tmp_path, 2)
    with pytest.raises(ShapeError, match="mono waves"):
        own.encode(wave(4 * HOPS[kind])[:, None])
    with pytest.raises(DataError, match="NaN"):
        own.encode(torch.full((1, 4 * HOPS[kind]), torch.inf))
    for code in (64, -1):
        with pytest.raises(TokenRangeError, match=f"0 to 63, got {code}"):
            own.decode(torch.full((1, 2, 3), code))


@pytest.mark.parametrize("kind", HOPS)
def test_a_digest_names_weights_config_and_books(kind: str, tmp_path: Path) -> None:
    model = saved(kind, tmp_path / "first")
    digests = [codecs.open_codec(tmp_path / "first", books).digest for books in (2, 3)]
    model.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    (tmp_path / "again" / "config.json").write_text(
        json.dumps({**config, "transformers_version": "4.0", "_name_or_path": "elsewhere"})
    )
    assert (
        codecs.open_codec(tmp_path / "again", 2).digest == digests[0]
    )  # where and by which version it was saved is nothing to codes
    changes = {"pad_mode": "constant"} if kind == "encodec" else {"sampling_rate": 8_000}
    (tmp_path / "again" / "config.json").write_text(json.dumps({**config, **changes}))
    digests.append(codecs.open_codec(tmp_path / "again", 2).digest)
    tensors = load_file(tmp_path / "first" / "model.safetensors")
    first, second = [
        name
        for name in tensors
        if "codebook." in name and name.endswith(("embed", "embed_sum", "codebook.weight"))
    ][:2]
    swapped = {**tensors, first: tensors[second], second: tensors[first]}  # two books have changed places
    save_file(swapped, tmp_path / "first" / "model.safetensors", metadata={"format": "pt"})
    digests.append(codecs.open_codec(tmp_path / "first", 2).digest)
    assert len(set(digests)) == 4


@pytest.mark.parametrize("kind", HOPS)
def test_a_torn_folder_is_refused_in_a_line(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    absent = next(name for name in tensors if "quantizer" in name)
    save_file(
        {name: each for name, each in tensors.items() if name != absent}, path, metadata={"format": "pt"}
    )
    with pytest.raises(CheckpointError, match="missing quantizer"):
        codecs.open_codec(tmp_path, 2)
    save_file(
        {name: each * torch.nan if "bias" in name else each for name, each in tensors.items()},
        path,
        metadata={"format": "pt"},
    )
    with pytest.raises(CheckpointError):
        codecs.open_codec(tmp_path, 2)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError) as torn:
        codecs.open_codec(tmp_path, 2)
    assert "\n" not in str(torn.value)
