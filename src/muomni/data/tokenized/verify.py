"""Checks A to E of a set of shards, and S, of the files themselves: every sample is read, no network is
needed.

Source  lumo.md B32 for the letters and what passes; S (files as they were written) is ours.
"""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from muomni import files
from muomni.data import split
from muomni.data.tokenized.index import ABOUT, INDEX, MADE_OF, SIDES, ShardSet, Side
from muomni.data.tokenized.record import BLANK, FIELDS, KEYS, Record
from muomni.errors import DataError, MuomniError, ShapeError, TokenRangeError, TokenSpaceError, UserError
from muomni.tokens.sequences import TASKS
from muomni.tokens.space import TokenSpace

KEPT = 1000  # errors of a check that are written out; all are counted
Verdict = Literal["green", "red", "not run"]
Kind = Literal["hard", "promotion", "recommended", "regression"]

# By check: what it is about, how much it weighs, and what a person should look at when it is red (B36).
CHECKS: dict[str, tuple[str, Kind, str]] = {
    "S": (
        "files as they were written: sizes, sha256, keys, index",
        "hard",
        "a shard was cut off, packed again or changed: remove it and its .json, and run `muomni data shard` again",
    ),
    "A": (
        "token space of every sample",
        "hard",
        "shards of another token space, or a space of another checkpoint",
    ),
    "B": (
        "required fields of every sample",
        "hard",
        "written by another version, or by hand: make the shards anew",
    ),
    "C": ("every id in its region", "hard", "another codec or text tokenizer, or a region that moved"),
    "D": (
        "lengths equal what the sample says of its media, codebooks in their order",
        "hard",
        "another layout or number of codebooks than the token space says",
    ),
    "E": (
        "no id, group or key on both sides or twice; the hash gives the same side",
        "hard",
        "ids or groups were spelt anew, or shards of two sets were mixed: see how the rows name `group`",
    ),
    "F": (
        "media tokenised again give the same ids",
        "promotion",
        "the codec, its settings, or a library that decodes media changed (shards.json names their versions), or the media",
    ),
    "G": (
        "ids decode to media of the right size",
        "promotion",
        "another codec than the ids were made with, or torn numbers about media",
    ),
    "H": (
        "rows, labels and a forward pass",
        "recommended",
        "a text is empty, or a row is longer than --max-len",
    ),
    "R": (
        "lengths and round trips against the baseline",
        "regression",
        "other data, another codec, or other settings than the baseline's: renew it with --set-baseline REASON if that is meant",
    ),
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where: the tar and the sample's id or key, "" where it is about more than
    one."""

    check: str
    file: str
    sample: str
    what: str


@dataclass
class Check:
    """What a check found; `n` samples (or files) were looked at, `failed` of them are wrong."""

    name: str
    n: int = 0
    failed: int = 0
    is_run: bool = False
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """A check that was not run has no verdict; nothing to look at is red."""
        return "not run" if not self.is_run else "red" if self.failed or not self.n else "green"

    def to_json(self) -> dict[str, Any]:
        """As report.json has it."""
        what, kind, look = CHECKS[self.name]
        diagnosis = {"diagnosis": look} if self.verdict == "red" else {}
        about = {"check": self.name, "what": what, "kind": kind, "verdict": self.verdict}
        return {
            **about,
            **diagnosis,
            **{key: value for key, value in asdict(self).items() if key not in ("name", "is_run")},
        }


class Findings:
    """All checks, and the first thousand problems of each."""

    def __init__(self) -> None:
        self.checks = {name: Check(name) for name in CHECKS}
        self.problems: list[Problem] = []

    def run(self, *names: str) -> None:
        """These checks are run from here on."""
        for name in names:
            self.checks[name].is_run = True

    def add(self, check: str, file: str, sample: str, what: str) -> None:
        """One more problem."""
        found = self.checks[check]
        found.failed += 1
        if found.failed <= KEPT:
            self.problems.append(Problem(check, file, sample, " ".join(what.split())))

    @property
    def exit_code(self) -> int:
        """2 where a hard check is red: these shards must not be used; 1 where another is; else 0."""
        red = {CHECKS[name][1] for name, check in self.checks.items() if check.verdict == "red"}
        return UserError.exit_code if "hard" in red else 1 if red else 0


def integrity(folder: Path, space: TokenSpace, found: Findings) -> None:
    """Checks S and A to E over all samples.

    Raises  UserError for a folder that holds no finished set of shards.
    """
    found.run("S", "A", "B", "C", "D", "E")
    about = files.read_stored(
        folder / ABOUT, dict, hint="run `muomni data shard` again: it goes on where it was"
    )
    if about.get("token_space_sha256") != space.hash:
        what = f"the set is of token space {str(about.get('token_space_sha256'))[:12]}, expected {space.hash[:12]}"
        found.add("A", ABOUT, "", f"{what}{_differences(folder, space)}")
    split_of = files.read_stored(folder / MADE_OF, dict, hint="copy it from where the shards were made")[
        "settings"
    ]
    sides = _Sides(float(split_of["val_split"]), int(split_of["seed"]))
    for side in SIDES:
        opened = ShardSet(folder, side, check_sizes=False)
        _check_files(folder, opened, found)
        for place in range(len(opened)):
            shard = opened.shard_of(place)
            for name in ("A", "B", "C", "D", "E"):
                found.checks[name].n += 1
            try:
                record = opened.read(place)
            except TokenSpaceError as error:
                found.add("A", shard, f"{int(opened.rows[place][1]):08d}", str(error))
                continue
            except DataError as error:
                found.add("S", shard, f"{int(opened.rows[place][1]):08d}", str(error))
                continue
            if what := _missing(record):
                found.add("B", shard, record.key, what)
                continue
            _check_ids(record, space, shard, found)
            sides.add(record, side, shard, found)
    sides.finish(folder, found)


def _differences(folder: Path, space: TokenSpace) -> str:
    """What the set's own space has otherwise, for a message."""
    try:
        lines = space.differences(TokenSpace.load(folder))
    except MuomniError as error:
        return f": {error}"
    return f": {'; '.join(lines)}" if lines else ""


def _check_files(folder: Path, opened: ShardSet, found: Findings) -> None:
    """Check S of a side: its index, and each tar's size, sha256 and keys."""
    check = found.checks["S"]
    check.n += 1
    if files.sha256_file(folder / opened.side / INDEX) != opened.about["index_sha256"]:
        found.add("S", f"{opened.side}/{INDEX}", "", "the index is not the one that was written")
    for number, shard in enumerate(opened.about["shards"]):
        check.n += 1
        name, path = f"{opened.side}/{shard['file']}", folder / opened.side / shard["file"]
        if not path.exists():
            found.add("S", name, "", "missing")
            continue
        size = path.stat().st_size
        if size < shard["bytes"]:
            rows = opened.rows[opened.rows[:, 0] == number]
            lost = rows[rows[:, 2] + rows[:, 3] > size]
            first = f"{int(lost[0][1]):08d}" if len(lost) else ""
            found.add(
                "S",
                name,
                first,
                f"truncated: expected {shard['bytes']} bytes, got {size}; {len(lost)} samples are cut off",
            )
        elif size > shard["bytes"] or files.sha256_file(path) != shard["sha256"]:
            found.add(
                "S", name, "", f"packed again or changed: another sha256 than the index has{_names(path)}"
            )


def _names(path: Path) -> str:
    """What can be seen in the headers of a tar that is not as it was written."""
    seen: set[str] = set()
    twice: list[str] = []
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                twice += [member.name] if member.name in seen else []
                seen.add(member.name)
    except (tarfile.TarError, EOFError, OSError) as error:
        return f"; no whole tar: {error}"
    return f"; {len(twice)} members stand twice, the first {twice[0]}" if twice else ""


def _missing(record: Record) -> str:
    """What a sample lacks, "" where it has all."""
    about = record.about
    if lacking := sorted(set(KEYS) ^ set(about)):
        return f"missing or unknown keys: {', '.join(lacking)}"
    for name, blank in BLANK.items():
        kinds = {key: type(value) for key, value in blank.items()}
        if (
            not isinstance(about[name], dict)
            or {key: type(value) for key, value in about[name].items()} != kinds
        ):
            return f"{name}: expected {', '.join(f'{key} ({kind.__name__})' for key, kind in kinds.items())}"
    if about["task"] not in TASKS:
        return f"task: expected one of {', '.join(TASKS)}, got {about['task']!r}"
    task = TASKS[about["task"]]
    needed = ("text_out" if task.writes == "text" else "text_in", task.medium)
    empty = [name for name in needed if not len(record.ids[name])]
    return f"task {about['task']}: no ids in {', '.join(empty)}" if empty else ""


def _check_ids(record: Record, space: TokenSpace, shard: str, found: Findings) -> None:
    """Checks C and D of a sample."""
    for name in ("text_in", "text_out"):
        try:
            space.from_global("text", torch.from_numpy(record.ids[name].astype(np.int64)))
        except TokenRangeError as error:
            found.add("C", shard, record.key, f"{name}: {error}")
    modality = TASKS[record.about["task"]].medium
    if record.about["tokens"] != {name: len(record.ids[name]) for name in FIELDS}:
        found.add("D", shard, record.key, "`tokens` says other lengths than the arrays have")
    books, ids = space.books(modality), record.ids[modality]
    inside = ((ids >= books[0].start) & (ids <= books[-1].end)) | (
        ids == space.pad
    )  # books follow each other
    if not inside.all():
        place = int(np.flatnonzero(~inside)[0])
        got = space.describe(int(ids[place]))
        found.add(
            "C", shard, record.key, f"{modality}: position {place}: expected an id of its books, got {got}"
        )
        return
    try:
        codes_KF = space.codes_of(modality, laid_out(record, space, modality))
    except (TokenRangeError, ShapeError) as error:
        found.add("D", shard, record.key, str(error))
        return
    entry, about = space.codec(modality), record.about[modality]
    said = {
        "codebooks": about["codebooks"],
        "frames": about.get("frames", about.get("rows", 0) * about.get("columns", 0)),
    }
    expected = {"codebooks": codes_KF.shape[0], "frames": codes_KF.shape[1]}
    if modality == "audio":
        said["rate_hz"], expected["rate_hz"] = about["rate_hz"], entry.sample_rate_hz or 0
    else:
        said["size_px"], expected["size_px"] = about["size_px"], entry.size_px or 0
    if lines := [
        f"{key}: expected {value}, got {said[key]}" for key, value in expected.items() if said[key] != value
    ]:
        found.add("D", shard, record.key, f"{modality}: {'; '.join(lines)}")


def laid_out(record: Record, space: TokenSpace, modality: str) -> torch.Tensor:
    """The ids of a sample's medium as `space.ids_of` gave them: (T,), or (K, T) where books stand side by
    side.

    Raises  ShapeError for a number of ids that K streams can't share.
    """
    ids = torch.from_numpy(record.ids[modality].astype(np.int64))
    if space.lags(modality) is None:
        return ids
    books = space.codec(modality).codebooks
    if len(ids) % books:
        raise ShapeError(f"{modality}: expected a multiple of {books} ids, got {len(ids)}")
    return ids.reshape(books, -1)


class _Sides:
    """Check E: a few bytes of each sample are held, and names are looked up only where hashes meet."""

    def __init__(self, val_split: float, seed: int) -> None:
        self.val_split, self.seed = val_split, seed
        self._ids: dict[Side, array[int]] = {side: array("q") for side in SIDES}
        self._groups: dict[Side, array[int]] = {side: array("q") for side in SIDES}

    def add(self, record: Record, side: Side, shard: str, found: Findings) -> None:
        """One more sample."""
        about = record.about
        self._ids[side].append(hash(about["id"]))
        self._groups[side].append(hash(about["group"]))
        if about["side"] != side:
            found.add(
                "E", shard, record.key, f"sample {about['id']!r} says that it belongs to {about['side']}"
            )
        elif about["side_by"] == "hash" and split.assign(about["group"], self.val_split, self.seed) != side:
            found.add("E", shard, record.key, f"group {about['group']!r}: the hash gives the other side")

    def finish(self, folder: Path, found: Findings) -> None:
        """What stands on both sides, or twice."""
        train, valid = (np.array(self._groups[side], np.int64) for side in SIDES)
        everything = np.sort(np.concatenate([np.array(self._ids[side], np.int64) for side in SIDES]))
        twice = np.unique(everything[1:][everything[1:] == everything[:-1]])
        ids, groups = set(twice.tolist()), set(np.intersect1d(train, valid).tolist())
        if not (ids or groups):
            return
        seen: dict[str, str] = {}
        sides_of: dict[str, str] = {}
        for side, shard, record in _walk(folder):
            name, group = str(record.about["id"]), str(record.about["group"])
            where = f"{shard}: sample {record.key}"
            if hash(name) in ids:
                if name in seen:
                    found.add("E", shard, record.key, f"id {name!r} stands twice: also in {seen[name]}")
                seen.setdefault(name, where)
            if hash(group) in groups:
                first = sides_of.setdefault(group, side)
                if first != side:
                    found.add("E", shard, record.key, f"group {group!r} stands in {first} and in {side}")


def _walk(folder: Path) -> Iterator[tuple[Side, str, Record]]:
    for side in SIDES:
        opened = ShardSet(folder, side, check_sizes=False)
        for place in range(len(opened)):
            try:
                record = opened.read(place)
            except (DataError, TokenSpaceError):
                continue
            yield side, opened.shard_of(place), record
