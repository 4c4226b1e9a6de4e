"""Sources -> samples, with every bad row in quarantine, and a corpus split by group."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from muomni import files
from muomni.data import formats, split
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Sample, TextPart, parse
from muomni.data.source import Source
from muomni.data.told import in_words
from muomni.errors import DataError


@dataclass(frozen=True)
class Corpus:
    """Samples on their sides. `weights[i]` belongs to train[i]; `digest` names the data and the settings, not the place."""

    train: list[Sample]
    valid: list[Sample]
    digest: str
    weights: list[float]
    leaks: split.Leaks


def locate(source: Source, base: Path) -> Path:
    """The file or folder of a source: relative to `base` (the recipe's folder), else to the working folder.

    Raises  DataError (missing).
    """
    given = Path(source.path).expanduser()
    path = Path(base) / given
    if not path.exists() and given.exists():
        return given.absolute()
    if not path.exists():
        raise DataError("missing", f"{path}: expected a manifest, found nothing there", hint="check the source's `path`")
    if not (path.is_file() or path.is_dir()):  # a pipe or a device may never end
        raise DataError("missing", f"{path}: expected a file or a folder, found neither", hint="check the source's `path`")
    return path


def read(source: Source, base: Path, quarantine: Quarantine) -> Iterator[Sample]:
    """The good samples of a source, media paths made absolute (`told`: put into words); bad rows go to the quarantine with file and line.

    Raises  DataError if the manifest is missing or no file of that kind; ConfigError if the template or format is wrong.
    """
    return (sample for _, sample in numbered(source, base, quarantine))


def numbered(source: Source, base: Path, quarantine: Quarantine) -> Iterator[tuple[int, Sample]]:
    """`read` with the line of each sample."""
    path = locate(source, base)
    root = Path(base) / source.root if source.root else (path if path.is_dir() else path.parent)
    present: dict[str, bool] = {}
    count = 0
    for line, row in _rows(path, source):
        try:
            if isinstance(row, DataError):
                raise row
            found = parse(row)
            is_wanted = source.tasks is None or found.task in source.tasks
            sample = _rooted(in_words(found) if source.told and is_wanted else found, root, present)
        except DataError as error:
            quarantine.add(formats.listing(path), line, error.reason, str(error))
            continue
        if is_wanted:
            yield line, sample
            count += 1
            if count == source.limit:
                return


def _rows(path: Path, source: Source) -> formats.Rows:
    try:
        yield from formats.READERS[formats.sniff(path, source)](path, source)
    except OSError as error:
        raise DataError("missing", f"{path}: can't be read: {error.strerror}") from error


def _rooted(sample: Sample, root: Path, present: dict[str, bool]) -> Sample:
    """The sample with absolute media paths, each known to exist. The named manifest may point anywhere (SPEC C11)."""
    if not sample.media:
        return sample
    messages = []
    for message in sample.messages:
        if isinstance(message.content, str):
            messages.append(message)
            continue
        parts = [
            part
            if isinstance(part, TextPart) or part.path.startswith("data:")
            else part.model_copy(update={"path": _existing(part.path, root, present)})
            for part in message.content
        ]
        messages.append(message.model_copy(update={"content": parts}))
    return sample.model_copy(update={"messages": messages})


def _existing(path: str, root: Path, present: dict[str, bool]) -> str:
    full = os.path.normpath(os.path.join(root.absolute(), path))
    if full not in present:
        try:
            present[full] = os.path.isfile(full)
        except ValueError:  # a NUL in the name
            present[full] = False
    if not present[full]:
        raise DataError("missing", f"{path}: expected a file under {root}", hint="check the source's `root`")
    return full


def load(sources: Sequence[Source], *, base: Path, val_split: float, seed: int, quarantine: Quarantine) -> Corpus:
    """All samples of all sources, split: a sample's own `split` wins, then held_out_groups, then the hash of its group.

    Where the hash holds out nothing (few groups), the group that it would hold out first is validation.
    Raises  DataError: missing, empty (a source without samples), quarantine (too many bad rows).
    """
    samples: list[tuple[Sample, Source]] = []
    owner: dict[str, int] = {}
    for number, source in enumerate(sources):
        before, bad = len(samples), quarantine.total
        for sample in read(source, base, quarantine):
            if owner.setdefault(sample.id, number) != number:  # two manifests may both count from 0
                sample = sample.model_copy(update={"id": f"{Path(source.path).stem}:{sample.id}"})
            samples.append((sample, source))
        if len(samples) == before:
            found = (
                f"{quarantine.total - bad} bad rows: {quarantine.summary()}"
                if quarantine.total > bad
                else "no rows that fit the source's filters"
            )
            raise DataError("empty", f"{locate(source, base)}: expected samples, got {found}")
    quarantine.check(len(samples) + quarantine.total)
    placed = sides(samples, val_split, seed)
    train = [(sample, source.weight) for (sample, source), side in zip(samples, placed, strict=True) if side == "train"]
    valid = [sample for (sample, _), side in zip(samples, placed, strict=True) if side == "valid"]
    kept = [sample for sample, _ in train]
    digest = files.sha256_json([val_split, seed, fingerprint(sources, base)])
    return Corpus(kept, valid, digest, [weight for _, weight in train], split.leaks(kept, valid))


def sides(samples: list[tuple[Sample, Source]], val_split: float, seed: int) -> list[str]:
    """`train` or `valid` for each sample, as `load` says."""
    placed: list[str] = []
    free: list[int] = []  # those that the hash alone decides
    for index, (sample, source) in enumerate(samples):
        if sample.split is not None:
            placed.append(sample.split)
        elif any(fnmatchcase(sample.group, pattern) for pattern in source.held_out_groups):
            placed.append("valid")
        else:
            share = val_split if source.val_split is None else source.val_split
            placed.append(split.assign(sample.group, share, seed))
            if share > 0:
                free.append(index)
    if "valid" not in placed and len({samples[i][0].group for i in free}) > 1:
        first = min({samples[i][0].group for i in free}, key=lambda group: split.place(group, seed))
        for i in free:
            if samples[i][0].group == first:
                placed[i] = "valid"
    return placed


def fingerprint(sources: Sequence[Source], base: Path) -> str:
    """Digest of what the sources hold, without reading their samples."""
    return files.sha256_json([_fingerprint(source, base) for source in sources])


def _fingerprint(source: Source, base: Path) -> list[object]:
    """What a source holds, wherever it lies: the manifest's bytes, or the names and sizes in a folder; and its settings."""
    path = locate(source, base)
    # What a later version can ask for, and this source doesn't, leaves the digests of runs from before it as they were.
    settings = source.model_dump(exclude={"path", "root", *(name for name in ("told", "names") if not getattr(source, name))})
    if not path.is_dir():
        return [settings, files.sha256_file(path)]
    inside = sorted(file for file in path.rglob("*") if file.is_file())
    return [settings, [[str(file.relative_to(path)), file.stat().st_size] for file in inside]]
