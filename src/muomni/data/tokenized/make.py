"""Makes a set of shards from sources: split by group, some processes at work, each shard whole or absent, so
that a kill costs a shard."""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from muomni import files
from muomni.config import changes
from muomni.data import indexed, readers
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Sample
from muomni.data.source import Source
from muomni.data.tokenized import engines
from muomni.data.tokenized.encode import Encoder, Tokens
from muomni.data.tokenized.index import (
    ABOUT,
    MADE_OF,
    SIDES,
    SPACE,
    VERSION,
    Piece,
    Side,
    finished,
    pieces,
    shard_name,
    write_index,
    write_shard,
)
from muomni.errors import ConfigError, DataError, UserError
from muomni.units import format_seconds

LOCK, QUARANTINE, PROVENANCE = ".lock", "quarantine.jsonl", "provenance.json"
SHOWN = 4  # names in a message
SAID_S = 10.0  # between lines of progress


@dataclass(frozen=True)
class ShardSettings:
    """How a set is made; all of it changes the bytes, so a set is made with one of these from beginning to
    end.

    samples_per_shard  of a side, before unreadable ones are left out
    val_split, seed    share of the groups that is held out, and the seed of the hash that chooses them
    audit              encode each medium alone, on one thread, with deterministic algorithms only: slower,
                       and recorded
    bad_limit          largest share of unreadable samples
    """

    samples_per_shard: int = 1000
    val_split: float = 0.05
    seed: int = 0
    audit: bool = False
    bad_limit: float = 0.01


@dataclass(frozen=True)
class Job:
    """A shard to be made: its samples as lines of JSON, so that a worker needs no file of ours. `first` is
    the number of the first."""

    folder: str
    side: Side
    number: int
    first: int
    lines: list[bytes]


class Work:
    """What a worker process does: it opens the codecs once, then makes shards. Called with a job, it gives
    the shard's piece.

    Takes   tokens: opens the unified tokenizer; it travels to other processes, so it is a function of a
            module or a `partial` of one.
    """

    def __init__(
        self, tokens: Callable[[], Tokens], settings: ShardSettings, token_space_sha256: str
    ) -> None:
        self.tokens, self.settings, self.token_space_sha256 = tokens, settings, token_space_sha256
        self._encoder: Encoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None}

    def __call__(self, job: Job) -> Piece:
        """Make a shard.

        Raises  UserError: no room on the disk, or a worker that opened another token space.
        """
        encoder = self._opened()
        samples = [Sample.model_validate_json(line) for line in job.lines]
        with _one_thread(audit=self.settings.audit):
            records, bad, skipped = encoder.records(samples, job.side, job.first)
        try:
            return write_shard(Path(job.folder), job.side, job.number, records, bad, skipped)
        except OSError as error:
            raise _no_room(error, job) from error

    def _opened(self) -> Encoder:
        if self._encoder is None:
            opened = self.tokens()
            if opened.space.hash != self.token_space_sha256:
                raise UserError(
                    f"worker: expected token space {self.token_space_sha256[:16]}, got {opened.space.hash[:16]}",
                    hint="the codecs or the tokenizer changed while the shards were made",
                )
            settings = self.settings
            self._encoder = Encoder(
                opened, audit=settings.audit, val_split=settings.val_split, seed=settings.seed
            )
        return self._encoder


@contextmanager
def _one_thread(*, audit: bool) -> Iterator[None]:
    """One thread, and in audit mode deterministic algorithms only: codes must not depend on how many
    processes share the work."""
    threads, was = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    if audit != was:  # the call imports torch's compiler, for seconds
        torch.use_deterministic_algorithms(audit)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if audit != was:
            torch.use_deterministic_algorithms(was)


def shard(
    sources: Sequence[Source],
    out: Path,
    tokens: Callable[[], Tokens],
    settings: ShardSettings = ShardSettings(),
    *,
    base: Path = Path(),
    processes: int = 1,
    engine: str = "local",
    fresh: bool = False,
    provenance: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Make a set of shards, or finish one; what `index.json` of the set says.

    The bytes of the set depend on the samples, the token space, the settings and this build alone, not on
    engine, processes, kills in between or the time. A shard that is finished is not made again.

    Takes   tokens: see `Work`; base: the folder that sources are relative to; engine: local, or ray (extra
            `scale`).
    Raises  DataError: leak_group and others (what stands on both sides), duplicate_id, quarantine (too many
            unreadable samples);
            ConfigError: the folder holds shards made of something else; UserError: no room, a worker that
            died.
    """

    def load(quarantine: Quarantine) -> readers.Corpus:
        corpus = readers.load(
            sources, base=base, val_split=settings.val_split, seed=settings.seed, quarantine=quarantine
        )
        _refuse_leaks(corpus)
        return corpus

    how: dict[str, Any] = {"processes": processes, "engine": engine, "fresh": fresh, "say": say}
    return _shard(load, out, tokens, settings, provenance=_provenance(sources, base, provenance or {}), **how)


def shard_corpus(
    corpus: readers.Corpus, out: Path, tokens: Callable[[], Tokens], settings: ShardSettings
) -> None:
    """Make the set of samples that are read and split already, in this process; a finished set is left as it
    is.

    Takes   out: a folder for these samples alone (`name_of`). Raises as `shard`.
    """
    if not (out / ABOUT).exists():
        _shard(lambda quarantine: corpus, out, tokens, settings, data=name_of(corpus))


def name_of(corpus: readers.Corpus) -> str:
    """sha256 of all samples, in their order and on their sides."""
    digest = hashlib.sha256()
    for samples in (corpus.train, corpus.valid):
        digest.update(len(samples).to_bytes(8, "little"))
        for line in indexed.lines(samples):
            digest.update(len(line).to_bytes(8, "little") + line)
    return digest.hexdigest()


def _shard(
    load: Callable[[Quarantine], readers.Corpus],
    out: Path,
    tokens: Callable[[], Tokens],
    settings: ShardSettings,
    *,
    data: str | None = None,
    provenance: dict[str, Any] | None = None,
    processes: int = 1,
    engine: str = "local",
    fresh: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """`shard`, of what `load` gives.

    Takes   data: what names the samples, None: the corpus' own digest.
    """
    out = Path(out).absolute()
    with files.only_writer(out / LOCK, patience_s=5.0, say=say):
        opened = tokens()
        if fresh:
            _clear(out)
        files.clear_leftovers(out, deep=True)
        quarantine = Quarantine(out / QUARANTINE, limit=settings.bad_limit)
        corpus = load(quarantine)
        _settle_contract(out, opened, data or corpus.digest, settings)
        if provenance is not None:
            files.write_json(out / PROVENANCE, provenance)
        sides: dict[Side, Sequence[Sample]] = {"train": corpus.train, "valid": corpus.valid}
        count = {side: -(-len(samples) // settings.samples_per_shard) for side, samples in sides.items()}
        total = sum(len(samples) for samples in sides.values())
        progress = _Progress(total, say)
        rows_bad, bad = dict(quarantine.counts), quarantine.total
        for side in SIDES:
            for piece in filter(None, (finished(out, side, number) for number in range(count[side]))):
                progress.add(piece, is_new=False)
                bad += len(piece.bad)
        work = Work(tokens, settings, opened.space.hash)
        with closing(engines.open_engine(engine)(work, _jobs(out, sides, settings), processes)) as made:
            for piece in made:
                bad += len(piece.bad)
                progress.add(piece, is_new=True)
                _refuse_bad(out, piece, bad, total, settings, quarantine)
        return _finish(out, opened, count, quarantine, settings, total, rows_bad)


def _jobs(out: Path, sides: dict[Side, Sequence[Sample]], settings: ShardSettings) -> Iterator[Job]:
    """The shards that are still to be made, each read when it is asked for."""
    step = settings.samples_per_shard
    for side, samples in sides.items():
        for number, first in enumerate(range(0, len(samples), step)):
            if finished(out, side, number) is None:
                some = indexed.pick(samples, range(first, min(first + step, len(samples))))
                yield Job(str(out), side, number, first, list(indexed.lines(some)))


def _refuse_leaks(corpus: readers.Corpus) -> None:
    """Raises  DataError where a group, id, file or content stands on both sides, or an id twice."""
    if corpus.leaks:
        kind = next(name for name in ("groups", "ids", "paths", "contents") if getattr(corpus.leaks, name))
        raise DataError(
            f"leak_{kind.removesuffix('s')}",
            f"sources: training and validation share {corpus.leaks}",
            hint="mend `split` of these rows, or leave it to the hash of the group",
        )
    sides = (corpus.train, corpus.valid)
    hashes = np.sort(np.fromiter((hash(sample.id) for side in sides for sample in side), np.int64))
    twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not twice:
        return
    seen: set[str] = set()
    again: list[str] = []
    for side in sides:
        for sample in side:
            if hash(sample.id) in twice:
                again += [sample.id] if sample.id in seen else []
                seen.add(sample.id)
    if again:
        raise DataError(
            "duplicate_id",
            f"sources: {len(again)} ids stand twice: {', '.join(map(repr, again[:SHOWN]))}",
            hint="give each sample its own id; `muomni data check` names the lines",
        )


def _settle_contract(out: Path, tokens: Tokens, corpus_digest: str, settings: ShardSettings) -> None:
    """Write what the shards are made of; refuse to go on where they were made of something else.

    Raises  ConfigError that says what differs.
    """
    contract = {
        "version": VERSION,
        "token_space_sha256": tokens.space.hash,
        "data": corpus_digest,
        "settings": vars(settings),
        "build": _build(tokens),
    }
    path = out / MADE_OF
    if not path.exists():
        tokens.space.save(out)
        files.write_json(path, contract)
        return
    before = files.read_stored(path, dict, hint="--fresh begins anew")
    if (out / SPACE).exists() and before.get("token_space_sha256") != tokens.space.hash:
        type(tokens.space).load(out).require(tokens.space, f"{out}: the shards that are there")
    lines = [
        f"{key}: {str(old)[:24]} before, {str(now)[:24]} now" for key, old, now in changes(before, contract)
    ]
    if lines:
        raise ConfigError(
            f"{out}: the shards that are there were made of something else: {'; '.join(lines)}",
            hint="another --out, or --fresh",
        )


def _build(tokens: Tokens) -> dict[str, str]:
    """What decodes and encodes media besides the codecs: a shard made by another one may hold other codes.

    Source  lumo.md C29: another loading library gave the source's data other codes, which nobody could see.
    """
    names = ("torch", "numpy", "soundfile", "soxr", "pillow", "tokenizers")
    found = {name: importlib.metadata.version(name) for name in names}
    return {**found, "libsndfile": soundfile.__libsndfile_version__}


def _provenance(sources: Sequence[Source], base: Path, more: Mapping[str, Any]) -> dict[str, Any]:
    """Where the samples came from, on this machine: `data verify` tokenises some of them again. It is part
    of no digest."""
    return {
        "sources": [
            {**source.model_dump(), "path": str(readers.locate(source, base).absolute())}
            for source in sources
        ],
        "base": str(Path(base).absolute()),
        **more,
    }


def _refuse_bad(
    out: Path, piece: Piece, bad: int, total: int, settings: ShardSettings, quarantine: Quarantine
) -> None:
    """Raises  DataError (quarantine) as soon as too many samples are unreadable: the rest would be made in
    vain."""
    if piece.bad and bad > max(settings.bad_limit * total, 1):
        _set_aside(piece, quarantine)
        first = piece.bad[0]
        raise DataError(
            "quarantine",
            f"{out / piece.file}: expected at most {settings.bad_limit:.1%} unreadable samples, got {bad} of {total}; "
            f"sample {first.id!r}: {first.reason}: {first.detail}; all are in {quarantine.path}",
            hint="mend or remove these rows, or raise --bad-limit",
        )


def _set_aside(piece: Piece, quarantine: Quarantine) -> None:
    for each in piece.bad:
        quarantine.add(each.path, each.id, each.reason, each.detail)


def _finish(
    out: Path,
    tokens: Tokens,
    count: dict[Side, int],
    quarantine: Quarantine,
    settings: ShardSettings,
    total: int,
    rows_bad: dict[str, int],
) -> dict[str, Any]:
    """Write the index and the quarantine of a set whose shards are all there."""
    sides = {side: write_index(out, side, count[side]) for side in SIDES}
    for piece in pieces(out, count):
        _set_aside(piece, quarantine)
    about = {
        "version": VERSION,
        "token_space_sha256": tokens.space.hash,
        "audit": settings.audit,
        "samples_given": total,
        "rows_in_quarantine": dict(sorted(rows_bad.items())),
        "sides": sides,
    }
    files.write_json(out / ABOUT, about)
    return about


def _clear(out: Path) -> None:
    """Remove a set; a folder that holds something else is left alone.

    Raises  ConfigError for a folder that is no set of shards.
    """
    others = [path for path in out.iterdir() if path.name != LOCK]
    if others and not (out / MADE_OF).exists():
        raise ConfigError(
            f"{out}: expected a set of shards, got other files: {others[0].name}",
            hint="--fresh removes shards only",
        )
    for path in others:
        files.remove(path)


def _no_room(error: OSError, job: Job) -> UserError:
    path = Path(job.folder) / job.side / shard_name(job.number)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"{path}: no room: {error.strerror}",
            hint="what is finished stays; make room and run the same command again",
        )
    return UserError(
        f"{path}: can't be written: {error.strerror}",
        hint="what is finished stays; run the same command again",
    )


class _Progress:
    """Lines about the pace, some seconds apart."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total, self.say = total, say
        self._begin = self._last = time.monotonic()
        self._done = self._new = 0

    def add(self, piece: Piece, *, is_new: bool) -> None:
        """One more shard."""
        count = len(piece.rows) + len(piece.bad) + sum(piece.skipped.values())
        self._done += count
        self._new += count if is_new else 0
        now = time.monotonic()
        if is_new and (now - self._last >= SAID_S or self._done == self.total):
            self._last = now
            pace = self._new / max(now - self._begin, 1e-9)
            left = format_seconds((self.total - self._done) / max(pace, 1e-9))
            self.say(f"{self._done:,} of {self.total:,} samples, {pace:,.0f} a second, {left} left")
