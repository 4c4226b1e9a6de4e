"""The source's token_space.json, read and written."""

from __future__ import annotations

import hashlib
import json

import pytest

from muomni.errors import TokenSpaceError
from muomni.tokens import uti
from spaces import AUDIO, IMAGE, SOURCE, small

# As the source's builder lays it out (reference B1 to B5): the order of keys, names of ranges and special
# tokens.
NAMES = (
    "text_start",
    "text_end",
    "img_start",
    "img_end",
    "aud_start",
    "aud_end",
    "gen_text",
    "gen_img",
    "gen_aud",
    "pad_mm",
)
FILE = {
    "version": "uti_v1",
    "created_utc": "2026-01-14T10:00:00Z",
    "base_text_model": "Qwen/Qwen3-8B",
    "text_vocab_size": 151_669,
    "special_tokens": {f"<|{name}|>": 151_669 + place for place, name in enumerate(NAMES)},
    "ranges": {
        "TEXT": {"start": 0, "end": 151_668, "size": 151_669},
        "SPECIAL": {"start": 151_669, "end": 151_732, "size": 64},
        "IMAGE": {"start": 151_733, "end": 159_924, "size": 8192},
        "AUDIO_CB0": {"start": 159_925, "end": 160_948, "size": 1024},
        "AUDIO_CB1": {"start": 160_949, "end": 161_972, "size": 1024},
        "AUDIO_CB2": {"start": 161_973, "end": 162_996, "size": 1024},
        "AUDIO_CB3": {"start": 162_997, "end": 164_020, "size": 1024},
    },
    "image_tokenizer": {"name": "seed2", "device": "cuda", "codebook_size": 8192},
    "audio_codec": {
        "name": "encodec",
        "fp16": True,
        "n_codebooks": 4,
        "codebook_size": 1024,
        "sample_rate": 48_000,
    },
    "vocab_size_total": 164_021,
}


def _read(folder, content):
    (folder / "token_space.json").write_text(json.dumps(content))
    return uti.read(folder / "token_space.json", tokenizer=SOURCE.tokenizer, codecs=(IMAGE, AUDIO))


def test_the_sources_file_is_the_space_of_its_codecs(tmp_path):
    space = _read(tmp_path, FILE)
    assert space == SOURCE
    assert space.hash == _read(tmp_path, {**FILE, "created_utc": "2026-02-01T00:00:00Z"}).hash


def test_what_is_written_is_the_sources_layout(tmp_path):
    uti.write(
        SOURCE,
        tmp_path,
        created_utc=FILE["created_utc"],
        base_text_model="Qwen/Qwen3-8B",
        image_tokenizer={"name": "seed2", "device": "cuda"},
        audio_codec={"name": "encodec", "fp16": True},
    )
    content = json.loads((tmp_path / "token_space.json").read_text())
    assert list(content) == list(FILE)
    assert content.pop("audio_codec") == {
        **FILE["audio_codec"],
        "serialization": "flatten_by_time_interleaved_codebooks",
    }
    assert content == {key: value for key, value in FILE.items() if key != "audio_codec"}
    whole = json.loads((tmp_path / "token_space.json").read_text())
    expected = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    assert (tmp_path / "token_space.sha256").read_text().strip() == expected
    assert (
        uti.read(tmp_path / "token_space.json", tokenizer=SOURCE.tokenizer, codecs=(IMAGE, AUDIO)) == SOURCE
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size_total": 164_022}, "vocab_size_total: expected 164021, got 164022"),
        (
            {"ranges": {**FILE["ranges"], "IMAGE": {"start": 151_733, "end": 159_923, "size": 8191}}},
            "ranges IMAGE",
        ),
        (
            {"ranges": {key: value for key, value in FILE["ranges"].items() if key != "AUDIO_CB3"}},
            "ranges AUDIO_CB3: .* got none",
        ),
        (
            {"special_tokens": {**FILE["special_tokens"], "<|img_start|>": 151_670}},
            r"special_tokens <\|img_start\|>",
        ),
        ({"audio_codec": {"n_codebooks": 8}}, "audio_codec n_codebooks: expected 4, got 8"),
        ({"audio_codec": {"sample_rate": 24_000}}, "audio_codec sample_rate: expected 48000, got 24000"),
        ({"version": "uti_v2"}, "expected version uti_v1"),
        ({"ranges": {}}, "no token space"),
    ],
)
def test_another_file_is_refused_with_what_differs(tmp_path, change, message):
    with pytest.raises(TokenSpaceError, match=message):
        _read(tmp_path, {**FILE, **change})


def test_its_one_layout_is_the_only_one_written():
    with pytest.raises(TokenSpaceError, match="delay"):
        uti.content(small("delay"), created_utc="", base_text_model="")
