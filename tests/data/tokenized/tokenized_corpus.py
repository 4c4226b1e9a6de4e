"""A corpus of the four tasks, and its shards, for tests of rows over tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import standins

from muomni.data import readers
from muomni.data.quarantine import Quarantine
from muomni.data.tokenized.make import ShardSettings, shard_corpus

ALL = ("i2t", "t2i", "a2t", "t2a")


def corpus_of(folder: Path, count: int) -> readers.Corpus:
    """Samples of the four tasks in turn, a fifth of them held out."""
    sources = standins.make_data(folder, count)
    return readers.load(sources, base=Path(), val_split=0.2, seed=0, quarantine=Quarantine(None, 0.0))


def sets(corpus: readers.Corpus, folder: Path, **how: Any) -> tuple[Any, Path]:
    """The tokenizer, and the shards of a corpus."""
    opened = standins.unified(standins.text_tokenizer(), **how)
    shard_corpus(corpus, folder, lambda: opened, ShardSettings(val_split=0.2, bad_limit=0.0))
    return opened, folder
