"""Option `audio_codebooks` of stage rows: how many books of a residual codec become ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from muomni.errors import ConfigError
from muomni.models.reference import NetworkReference
from muomni.runtime import Runtime
from muomni.stages.stage import Inputs
from muomni.stages.token_model import open_codecs
from tiny_codecs import saved


def test_books_of_a_codec_decide_the_ids(tmp_path: Path) -> None:
    """Our own codec decodes by all of its books and is refused by the walk of options (test_options)."""
    saved("encodec", tmp_path / "encodec")
    inputs = Inputs(tmp_path, {}, tmp_path, Runtime(torch.device("cpu"), torch.float32))
    named = {"audio": NetworkReference(name=str(tmp_path / "encodec"))}
    one, two = (open_codecs(named, {"audio": books}, "interleaved", inputs)[1][0] for books in (1, 2))
    assert (one.codebooks, two.codebooks) == (1, 2)
    assert one.digest != two.digest
    for books in (None, 99):
        with pytest.raises(ConfigError, match="audio_codebooks: "):
            open_codecs(named, {"audio": books}, "interleaved", inputs)
