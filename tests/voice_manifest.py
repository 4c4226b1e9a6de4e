"""The selftest's manifests of two voices in Higgs' ChatML."""

from __future__ import annotations

from muomni.selftest.voices import RATE_HZ, WORDS, row, wave, write

__all__ = ["RATE_HZ", "WORDS", "row", "wave", "write"]
