"""The unified tokenizer: text, pictures and sounds to ids of one space and back; every mismatch is
refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.errors import DataError, ShapeError, TokenRangeError, TokenSpaceError
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.codec import CodecEntry
from muomni.tokens.space import TokenSpace
from muomni.tokens.unified import UnifiedTokenizer
from spaces import ToyImages, ToySounds

TEXT = Tokenizer.train(["a red circle and a blue square"] * 4, 290)


def _space(layout: str = "interleaved") -> TokenSpace:
    return TokenSpace.of(
        TEXT,
        [CodecEntry.of(ToySounds(), "sounds", layout), CodecEntry.of(ToyImages(), "pictures", "interleaved")],
    )


def _unified(layout: str = "interleaved") -> UnifiedTokenizer:
    return UnifiedTokenizer(TEXT, _space(layout), [ToyImages(), ToySounds()])


@settings(deadline=None)
@given(st.text(max_size=30))
def test_text_survives(text):
    tokenizer = _unified()
    if any("\ud800" <= character <= "\udfff" for character in text):
        return
    ids = tokenizer.encode_text(text)
    assert tokenizer.decode_text(ids) == text
    assert all(any(token in words for words in tokenizer.words) for token in ids)


def test_text_never_spells_a_framing_token():
    tokenizer = _unified()
    ids = tokenizer.encode_text("<|img_start|><|end|>")
    assert max(ids) < tokenizer.space.text_size
    with pytest.raises(TokenRangeError, match="which is img_start"):
        tokenizer.decode_text([1, tokenizer.space.special("img_start")])


def test_words_are_plain_text():
    tokenizer = _unified()
    assert tokenizer.words == (range(TEXT.special_tokens.words_from, TEXT.num_ids),)


@pytest.mark.parametrize("layout", ["interleaved", "delay", "parallel"])
def test_media_survive_with_their_meta_alone(layout):
    tokenizer = _unified(layout)
    generator = torch.Generator().manual_seed(0)
    waves = [torch.rand(length, generator=generator) - 0.5 for length in (33, 20, 61, 33)]
    for wave, (ids, meta) in zip(waves, tokenizer.encode_audios(waves, 1000)):
        meta = json.loads(json.dumps(meta))
        again, rate_hz = tokenizer.decode_audio(ids, meta)
        expected = ToySounds().decode(ToySounds().encode(wave[None]))[0, : len(wave)]
        assert torch.equal(again, expected)
        assert rate_hz == 1000
        alone, _ = tokenizer.encode_audio(wave, 1000)
        assert torch.equal(ids, alone)
    pixels = torch.rand(3, 6, 6, generator=generator)
    ids, meta = tokenizer.encode_image(pixels)
    again = tokenizer.decode_image(ids, json.loads(json.dumps(meta)))
    assert torch.equal(again, ToyImages().decode(ToyImages().encode(pixels[None]))[0])


def test_the_meta_of_written_codes_decodes_them():
    tokenizer = _unified()
    codes = torch.zeros(3, 2, dtype=torch.int64)
    wave, _ = tokenizer.decode_audio(
        tokenizer.space.ids_of("audio", codes), tokenizer.meta_of("audio", codes)
    )
    assert len(wave) == 40
    codes = torch.zeros(1, 6, dtype=torch.int64)
    assert tokenizer.decode_image(
        tokenizer.space.ids_of("image", codes), tokenizer.meta_of("image", codes)
    ).shape == (3, 6, 6)


def test_another_tokenizer_or_codec_is_refused_with_what_differs():
    space = _space()
    other = Tokenizer.train(["something else entirely, of other words"] * 4, 290)
    with pytest.raises(TokenSpaceError, match="text tokenizer: expected"):
        UnifiedTokenizer(other, space)
    sounds = ToySounds()
    sounds.digest = "f" * 64
    with pytest.raises(
        TokenSpaceError, match=r"audio codec: .*digest: expected 555555555555, got ffffffffffff"
    ):
        UnifiedTokenizer(TEXT, space, [sounds])
    sounds = ToySounds()
    sounds.codebooks = 2
    with pytest.raises(TokenSpaceError, match="codebooks: expected 3, got 2"):
        UnifiedTokenizer(TEXT, space, [sounds])
    with pytest.raises(TokenSpaceError, match="no audio tokens"):
        UnifiedTokenizer(TEXT, replace(space, codecs=space.codecs[:1]), [ToySounds()])
    with pytest.raises(TokenSpaceError, match="no codec was opened"):
        UnifiedTokenizer(TEXT, space, [ToyImages()]).encode_audio(torch.zeros(20), 1000)


def test_ids_and_meta_that_do_not_fit_are_refused():
    tokenizer = _unified()
    ids, meta = tokenizer.encode_audio(torch.zeros(60), 1000)
    with pytest.raises(TokenRangeError, match=r"position 8: .*got the end"):
        tokenizer.decode_audio(ids[:-1], meta)
    with pytest.raises(DataError, match="expected 3 frames, got ids of 2"):
        tokenizer.decode_audio(ids[:6], meta)
    with pytest.raises(TokenSpaceError, match="codec_digest"):
        tokenizer.decode_audio(ids, {**meta, "codec_digest": "0" * 64})
    with pytest.raises(TokenSpaceError, match="layout: expected interleaved, got delay"):
        tokenizer.decode_audio(ids, {**meta, "layout": "delay"})
    with pytest.raises(DataError, match="missing samples"):
        tokenizer.decode_audio(ids, {key: value for key, value in meta.items() if key != "samples"})
    with pytest.raises(TokenSpaceError, match="modality"):
        tokenizer.decode_image(ids, meta)
    with pytest.raises(DataError, match="expected waves at 1000 Hz, got 16000 Hz"):
        tokenizer.encode_audio(torch.zeros(60), 16_000)
    with pytest.raises(ShapeError):
        tokenizer.encode_image(torch.zeros(3, 7, 6))
