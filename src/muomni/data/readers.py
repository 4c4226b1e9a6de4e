"""Sources -> samples, with every bad row in quarantine, and a corpus split by group."""

from __future__ import annotations

import hashlib
import io
import math
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate, chain, pairwise, repeat
from pathlib import Path
from typing import overload

import numpy as np
import soundfile
from numpy.typing import NDArray

from muomni import config, files
from muomni.data import formats, parquet, schema_inference, shards, split, streams, trees
from muomni.data.captions_as_text import replace_images
from muomni.data.indexed import Samples, Writer, seldom_collected
from muomni.data.layouts import fields
from muomni.data.places import Places
from muomni.data.quarantine import Quarantine
from muomni.data.reading import Account, Reading, Signs, plain, refuse_placeholders
from muomni.data.sample import AudioPart, Sample, inline_bytes, parse
from muomni.data.segments import Segments
from muomni.data.source import Source
from muomni.data.transcripts import Transcripts
from muomni.data.transcripts import clash_message as told_clash
from muomni.errors import DataError, DataNote
from muomni.media import audio, stored


@dataclass(frozen=True)
class Corpus:
    """Samples on their sides, each read when it is asked for. `weights[i]` belongs to train[i]; `digest`
    names the data and the settings, not the place; `modalities` says what samples hold: image, audio, text
    (no media); `segments` tells what became of samples that were too long for their stage, where one asks for
    that; `accounts` says of each source which of its columns were read."""

    train: Sequence[Sample]
    valid: Sequence[Sample]
    digest: str
    weights: Sequence[float]
    leaks: split.Leaks
    modalities: set[str]
    segments: Segments | None = None
    accounts: Sequence[tuple[str, Account]] = ()
    notes: Sequence[str] = ()  # what was read otherwise than it stands, by file and line


def locate(source: Source, base: Path) -> Path:
    """The file or folder of a source: relative to `base` (the recipe's folder), else to the working folder.

    Raises  DataError (missing).
    """
    named = Path(source.path).expanduser()
    path = Path(base) / named
    if not path.exists() and named.exists():
        return named.absolute()
    if not path.exists() and shards.is_pattern(named):
        return _pattern(path, named)
    if not path.exists():
        raise DataError(
            "missing", f"{path}: expected a manifest, found nothing there", hint="check the source's `path`"
        )
    if not (path.is_file() or path.is_dir()):  # a pipe or a device may never end
        raise DataError(
            "missing", f"{path}: expected a file or a folder, found neither", hint="check the source's `path`"
        )
    return path


def _pattern(path: Path, named: Path) -> Path:
    """A pattern that fits files, relative to the recipe's folder or to the working folder."""
    try:
        shards.parts(path)
    except DataError:
        if named.is_absolute():
            raise
        try:
            shards.parts(named.absolute())
        except DataError:
            shards.parts(path)
        return named.absolute()
    return path


def read(source: Source, base: Path, quarantine: Quarantine) -> Iterator[Sample]:
    """The good samples of a source, media paths made absolute; bad rows go to the quarantine with file and
    line.

    Pictures of a source with `captions_as_text` are replaced by words.

    Raises  DataError if the manifest is missing or no file of that kind; ConfigError if the template or
            format is wrong.
    """
    return (sample for _, sample in numbered(source, base, quarantine))


def numbered(
    source: Source, base: Path, quarantine: Quarantine, account: Account | None = None
) -> Iterator[tuple[int, Sample]]:
    """`read` with the line of each sample; a flat manifest without a template is read by what its columns
    seem to hold.

    Takes   account: which columns were read and which were left goes there.
    """
    path = locate(source, base)
    source = schema_inference.table(path, source)
    places = Places(
        [str(each.absolute()) for each in (_root(source, base, path), Path(base), *formats.folders(path))]
    )
    account, listing = Account() if account is None else account, formats.listing(path)
    signs = Signs(places.roots, places.has)
    ignored = frozenset(source.ignore)
    count = 0
    for line, row_reading in _rows(path, source):
        try:
            if isinstance(row_reading, DataNote):
                quarantine.note(listing, line, row_reading.reason, str(row_reading))
                continue
            if isinstance(row_reading, DataError):
                raise row_reading
            if isinstance(row_reading, Reading | dict):
                reading = row_reading if isinstance(row_reading, Reading) else Reading(row_reading)
                account.add(reading)
                sample = _parsed(reading, signs, account, places)
            else:
                sample, reading = row_reading, plain(frozenset(row_reading.model_fields_set))
                account.add(reading)
            refuse_placeholders(sample, ignored)
            is_wanted = source.tasks is None or sample.task in source.tasks
            sample = _rooted(
                replace_images(sample) if source.captions_as_text and is_wanted else sample, places
            )
        except DataError as error:
            quarantine.add(listing, line, error.reason, str(error))
            continue
        if is_wanted:
            account.add_sample(line, sample, reading)
            yield line, sample
            count += 1
            if count == source.limit:
                return


def _parsed(reading: Reading, signs: Signs, account: Account, places: Places) -> Sample:
    """The sample of a row.

    Raises  DataError, as `sample.parse` does, and for what must not be left of it.
    """
    if reading.left:
        signs.refuse(reading, account)
    if (extra := reading.row.get("extra")) and not reading.chosen:
        signs.refuse_extra(extra)
    if reading.frames:
        _in_seconds(reading.row, places)
    return parse(reading.row)


def _root(source: Source, base: Path, path: Path) -> Path:
    """Where the media of a manifest lie: its `root`, found as the manifest is, else its own folder."""
    if source.root is None:
        return formats.home(path)
    root = Path(base) / source.root
    return root if root.is_dir() or not Path(source.root).is_dir() else Path(source.root).absolute()


def _rows(path: Path, source: Source) -> formats.Rows:
    try:
        yield from formats.READERS[formats.sniff(path, source)](path, source)
    except OSError as error:
        raise DataError("missing", f"{path}: can't be read: {error.strerror}") from error


def _rooted(sample: Sample, places: Places) -> Sample:
    """A sample that was just made, with absolute media paths, each known to exist. The named manifest may
    point anywhere (SPEC C11).

    The group of a sample that names none is its medium: however that is spelt, it is one.
    """
    for part in sample.media:
        if not part.path.startswith("data:"):
            full, name = places.find(part.path)
            if sample.group == part.path:
                object.__setattr__(sample, "group", name)
            object.__setattr__(part, "path", full)  # frozen, but nobody else has seen it yet
        if isinstance(part, AudioPart) and part.rate_hz is not None:
            _refuse_other_rate(part.path, part.rate_hz)
    return sample


def _refuse_other_rate(path: str, stated_hz: int) -> None:
    """Raises DataError: wrong_rate where a file has not the rate that its row states; as `audio.info` does."""
    rate_hz = audio.info(inline_bytes(path) or path).rate_hz
    if rate_hz != stated_hz:
        raise DataError(
            "wrong_rate",
            f"{stored.shown(path)}: expected {stated_hz} Hz, as its row states, got {rate_hz} Hz",
            hint="take the file that the row means; or leave the rate out: sounds are resampled as they are read",
        )


def _in_seconds(row: dict[str, object], places: Places) -> None:
    """Put seconds in the place of samples of the file, by its rate.

    Raises  DataError: missing, undecodable.
    """
    for part in fields.sounds(row):
        if part.keys() & {"start_frame", "end_frame"}:
            rate_hz = _rate_hz(_bytes_or_path(part["path"], places))
            for name in ("start", "end"):
                if f"{name}_frame" in part:
                    part[name] = part.pop(f"{name}_frame") / rate_hz


def _rate_hz(source: str | bytes) -> int:
    try:
        return int(soundfile.info(io.BytesIO(source) if isinstance(source, bytes) else source).samplerate)
    except (soundfile.LibsndfileError, OSError) as error:
        raise DataError(
            "undecodable", f"{source!r:.80}: expected a rate, by which frames are seconds, got none: {error}"
        ) from error


def _bytes_or_path(path: str, places: Places) -> str | bytes:
    full = path if path.startswith("data:") else places.find(path)[0]
    return inline_bytes(full) or full


@seldom_collected()
def load(
    sources: Sequence[Source],
    *,
    base: Path,
    val_split: float,
    seed: int,
    quarantine: Quarantine,
    segments: Segments | None = None,
) -> Corpus:
    """All samples of all sources, split: a sample's own `split` wins, then held_out_groups, then the hash of
    its group.

    `segments` makes shorter samples of long ones, on the side of the long one, since they keep its group.

    Where the hash holds out nothing (few groups), the group that it would hold out first is validation. The
    sources are read once, sample by sample, and what they hold goes to a file.
    Raises  DataError: missing, empty (a source without samples), quarantine (too many bad rows).
    """
    writer, sides, leaks, ids = Writer(), Sides(val_split, seed), split.LeakFinder(), _Ids()
    ends: list[int] = []
    accounts: list[tuple[str, Account]] = []
    transcripts, lines = Transcripts(), array("q")  # of the first sample of each row: file, line, number
    for source in sources:
        path = locate(source, base)
        formats.refuse_idle(path, source, schema_inference.table(path, source))
        before, bad = len(writer), quarantine.total
        account = Account()
        accounts.append((source.path, account))
        for line, sample in numbered(source, base, quarantine, account):
            transcripts.add(len(lines) // 3, sample)
            lines.extend((len(accounts) - 1, line, len(writer)))
            if len(sources) > 1 and ids.is_anothers(sample.id):  # two manifests may both count from 0
                sample = sample.model_copy(update={"id": f"{Path(source.path).stem}:{sample.id}"})
            for piece in [sample] if segments is None else segments.of(sample):
                writer.add(piece)
                sides.add(piece, source)
                leaks.add(piece)
        if len(writer) == before:
            nothing = "no rows that fit the source's filters"
            if quarantine.total > bad:
                nothing = f"{quarantine.total - bad} bad rows: {quarantine.summary()}"
            elif segments is not None and segments.left_out:
                nothing = f"none that is short enough: {segments.describe()}"
            raise DataError("empty", f"{locate(source, base)}: expected samples, got {nothing}")
        account.refuse_unnamed(str(formats.listing(path)))
        ids.next_source()
        ends.append(len(writer))
    total = len(writer) + quarantine.total
    is_valid, samples = sides.is_valid(), writer.close()
    is_good = _without_clashes(
        transcripts, lines, samples, [formats.listing(locate(source, base)) for source in sources], quarantine
    )
    quarantine.check(total)
    is_train, is_valid = ~is_valid & is_good, is_valid & is_good
    train, valid = samples.pick(np.flatnonzero(is_train)), samples.pick(np.flatnonzero(is_valid))
    counts = [int(is_train[start:stop].sum()) for start, stop in pairwise([0, *ends])]
    weights = Runs([(source.weight, count) for source, count in zip(sources, counts, strict=True)])
    digest = files.sha256_json([val_split, seed, fingerprint(sources, base)])
    return Corpus(
        train,
        valid,
        digest,
        weights,
        leaks.found(is_valid, train, valid),
        leaks.modalities,
        segments,
        accounts,
        quarantine.notes,
    )


def _without_clashes(
    transcripts: Transcripts,
    lines: array[int],
    samples: Samples,
    paths: Sequence[Path],
    quarantine: Quarantine,
) -> NDArray[np.bool_]:
    """True for each sample but those that share a sound and differ in its words, (samples,): these go to the
    quarantine."""
    is_good = np.ones(len(samples), bool)
    rows = np.frombuffer(lines, np.int64).reshape(-1, 3)
    for numbers in transcripts.clashes():
        for number in numbers:
            source, line, first = rows[number].tolist()
            stop = int(rows[number + 1, 2]) if number + 1 < len(rows) else len(samples)
            if first == stop:
                continue  # it was too long for its stage
            part = samples[first].media[0]
            where = f"; lines {', '.join(str(int(rows[other, 1])) for other in numbers[:4])}"
            quarantine.add(
                paths[source], line, "two_transcripts", told_clash(part.path, len(numbers)) + where
            )
            is_good[first:stop] = False
    return is_good


class Runs(Sequence[float]):
    """Numbers of which many in a row are equal, as [(number, how many)]."""

    def __init__(self, runs: Sequence[tuple[float, int]]) -> None:
        self.runs = [(value, count) for value, count in runs if count]
        self._ends = list(accumulate(count for _, count in self.runs))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...
    def __getitem__(self, index: int | slice) -> float | list[float]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"number {index} of {len(self)}")
        return self.runs[bisect_right(self._ends, index % len(self))][0]

    def __iter__(self) -> Iterator[float]:
        return chain.from_iterable(repeat(value, count) for value, count in self.runs)


class _Ids:
    """Which ids stood in an earlier source, eight bytes of each."""

    def __init__(self) -> None:
        self._earlier: NDArray[np.uint64] = np.array([], np.uint64)
        self._here = array("Q")

    def is_anothers(self, name: str) -> bool:
        """Whether an earlier source has this id."""
        key = int.from_bytes(
            hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
        )
        self._here.append(key)
        place = int(np.searchsorted(self._earlier, np.uint64(key)))
        return place < len(self._earlier) and int(self._earlier[place]) == key

    def next_source(self) -> None:
        """What was asked for so far is of an earlier source from now on."""
        self._earlier = np.union1d(self._earlier, np.frombuffer(self._here, np.uint64))
        self._here = array("Q")


class Sides:
    """The side of each sample, as `load` says, one after another; a few bytes of each are held."""

    def __init__(self, val_split: float, seed: int) -> None:
        self.val_split, self.seed = val_split, seed
        self._is_valid = bytearray()
        self._places = array(
            "d"
        )  # of the groups that the hash alone decides, until something is held out; nan: others decide

    def add(self, sample: Sample, source: Source) -> None:
        """One more sample."""
        share = self.val_split if source.val_split is None else source.val_split
        is_free = False
        if sample.split is not None:
            is_valid = sample.split == "valid"
        elif source.held_out_groups and any(
            fnmatchcase(sample.group, pattern) for pattern in source.held_out_groups
        ):
            is_valid = True
        else:
            is_valid, is_free = split.assign(sample.group, share, self.seed) == "valid", share > 0
        self._is_valid.append(is_valid)
        if is_valid:
            self._places = array("d")
        elif len(self._places) == len(self._is_valid) - 1:
            self._places.append(split.place(sample.group, self.seed) if is_free else math.nan)

    def is_valid(self) -> NDArray[np.bool_]:
        """True where a sample is held out, (samples,)."""
        is_valid_N = np.array(self._is_valid, np.uint8).astype(bool)
        places = np.array(self._places)
        if not is_valid_N.any() and np.isfinite(places).any() and np.nanmin(places) < np.nanmax(places):
            is_valid_N = places == np.nanmin(places)
        return is_valid_N


def fingerprint(sources: Sequence[Source], base: Path) -> str:
    """Digest of what the sources hold, without reading their samples."""
    return files.sha256_json([_fingerprint(source, base) for source in sources])


def _fingerprint(source: Source, base: Path) -> list[object]:
    """What a source holds, wherever it lies: a manifest's bytes, or a folder's names and sizes and its
    tables' bytes; and its settings."""
    path = locate(source, base)
    # What a later version can ask for, and this source doesn't, leaves the digests of runs from before it as
    # they were.
    unasked = {name for name in ("captions_as_text", "class_name", "ignore") if not getattr(source, name)}
    settings = config.first_names(source.model_dump(exclude={"path", "root", *unasked}), type(source))
    if not path.is_dir() and trees.is_higgs(path):
        path = path.parent  # its words stand in files beside it
    if not path.is_dir() or (shards.is_whole(path) and not trees.common_voice(path)):
        parts = shards.parts(path)
        digests = [_digest(part) for part in parts]
        return (
            [settings, *digests]
            if len(parts) == 1
            else [settings, [[part.name, each] for part, each in zip(parts, digests, strict=True)]]
        )
    inside = sorted(trees.files(path))
    tables = shards.parts(path) or list(trees.texts(path))  # a word may change, not the size
    return [
        settings,
        [[str(file.relative_to(path)), file.stat().st_size] for file in inside],
        *map(files.sha256_file, tables),
    ]


def _digest(path: Path) -> str:
    """Of a manifest's bytes; of a tar or parquet file's without its pictures and sounds, as those of other
    manifests are left out."""
    suffix = streams.suffix(path)
    if suffix == shards.TAR:
        return shards.digest(path)
    return parquet.digest(path) if suffix == shards.PARQUET else files.sha256_file(path)
