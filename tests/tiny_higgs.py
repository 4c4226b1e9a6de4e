"""The selftest's tiny Higgs Audio v2, its tokenizer and its codec, for tests that are skipped where transformers is
not installed."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

from muomni.selftest.voices import BOOKS, NAMES, codec, config, saved, tokenizer  # noqa: E402

__all__ = ["BOOKS", "NAMES", "codec", "config", "saved", "tokenizer", "transformers"]
