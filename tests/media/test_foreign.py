"""What stands in a medium's place and is none is called by its name."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from muomni.errors import DataError
from muomni.media import audio, image

PLACES = {
    "git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "a pointer of git-lfs",
        "git lfs pull",
    ),
    "page": (
        b"\n<!DOCTYPE html>\n<html><title>Sign in</title></html>",
        "a web page",
        "download the file again",
    ),
    "page without a type": (b"<HTML><HEAD>403 Forbidden", "a web page", "download"),
    "XHTML": (b'<?xml version="1.0"?>\n<html xmlns="...">', "a web page", "download"),
    "bucket": (
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "a server's answer",
        "login",
    ),
    "api": (b'{"message": "rate limit exceeded"}', "a server's answer", "download"),
    "words": (b"404: Not Found", "text: '404: not found'", "download"),
    "archive": (gzip.compress(b"wave"), "a gzip archive", "unpack"),
    "zip": (b"PK\x03\x04" + bytes(60), "a zip archive", "unpack"),
    "numpy": (b"\x93NUMPY\x01\x00v\x00" + bytes(60), "a numpy array", "save it"),
}


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".jpg", ".png"])
def test_it_is_named_whatever_its_file_is_called(tmp_path, name: str, suffix: str) -> None:
    content, what, hint = PLACES[name]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        (image if suffix in (".jpg", ".png") else audio).read(path)
    assert caught.value.reason == "undecodable"
    assert what in caught.value.message
    assert hint in caught.value.hint
    assert str(path) in caught.value.message


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "HEIC"),
        (b"\xff\x0a" + bytes(99), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(99), "a video"),
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(99), "a sound"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a drawing in SVG"),
        (b"<?xml version='1.0'?><svg/>", "a drawing in SVG"),
        (b"%PDF-1.7\n", "a PDF"),
    ],
)
def test_what_a_picture_is_instead(content: bytes, what: str) -> None:
    with pytest.raises(DataError, match=f"got {what}") as caught:
        image.read(content)
    assert caught.value.hint


def test_a_sound_format_of_words_is_no_text() -> None:
    """A NIST header is plain ASCII."""
    samples = (0.3 * np.sin(np.arange(8000) / 9) * 32767).astype("<i2").tobytes()
    head = b"NIST_1A\n   1024\nchannel_count -i 1\nsample_rate -i 16000\nsample_n_bytes -i 2\nsample_byte_format -s2 01\n"
    head += b"sample_count -i 8000\nsample_coding -s3 pcm\nend_head\n"
    assert len(audio.read(head.ljust(1024, b" ") + samples)) == 8000
