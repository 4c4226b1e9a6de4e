"""Utterances as codes, text ids and the Thinker's hidden states: computed once, stored on disk,
memory-mapped."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from muomni import files
from muomni.data.sample import AudioPart, OfSamples, Sample
from muomni.errors import CheckpointError, ConfigError, DataError
from muomni.media import stored
from muomni.train.objectives.talker import TalkerItem

FORMAT = 3  # of the files, and of how they are made; part of the key, so that an older build is made again
META = "coded.json"
DEFAULT_GB = "20"  # that a shared cache may hold, unless MUOMNI_CACHE_GB says otherwise; what is in use stays
PAUSE_S = 0.05  # before looking again, where another was first
NAME_BYTES = 16  # of the digest by which a set knows what it holds


Speaker = Callable[[Sample], int | None]
Made = Iterable[tuple[int, TalkerItem | DataError]]


class _Set:
    """What a folder holds: codes, text ids and hidden states of things that are told apart by content.

    names    (things, NAME_BYTES) uint8, a digest of each
    numbers  of those that have codes, rising; of the others, which are refused, reasons and messages stand
             in `refused`
    """

    def __init__(self, folder: Path) -> None:
        """Open it.

        Raises  CheckpointError if it is not whole.
        """
        self.folder = folder
        try:
            meta = files.read_json(folder / META)
            # Numbers of the things, then where the codes and the text ids of each begin and end, (items +
            # 1,) each; and of each sample the number of what it says.
            self.numbers, self.frames, self.tokens, self.names, self.of_samples = (
                np.load(folder / f"{name}.npy")
                for name in ("numbers", "frames", "tokens", "names", "of_samples")
            )
            self.made_by = str(meta["made_by"])
            self._books, self._width = int(meta["codebooks"]), int(meta["width"])
            self._codes = _mapped(folder / "codes.bin", meta["codes"], self._books * int(self.frames[-1]))
            self._ids = _mapped(folder / "ids.bin", "int32", int(self.tokens[-1]))
            self._hidden = _mapped(folder / "hidden.bin", "float32", self._width * int(self.tokens[-1]))
            self.refused: list[tuple[int, str, str, str]] = [
                (int(number), str(reason), str(message), str(path))
                for number, reason, message, path in meta["refused"]
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder}: not a whole set of codes ({error})", hint="remove the folder; it is made again"
            ) from error

    def item(self, place: int) -> TalkerItem:
        """The item at a place among those that have codes; nobody's name is on it."""
        low, high = (int(at) for at in self.frames[place : place + 2])
        first, last = (int(at) for at in self.tokens[place : place + 2])
        codes_KF = (
            self._codes[self._books * low : self._books * high]
            .reshape(self._books, high - low)
            .astype(np.int64)
        )
        hidden = (
            self._hidden[self._width * first : self._width * last].reshape(last - first, self._width)
            if self._width
            else None
        )
        return TalkerItem(
            "",
            self._ids[first:last].tolist(),
            torch.from_numpy(codes_KF),
            None if hidden is None else torch.from_numpy(hidden),
        )


class Items(Mapping[int, TalkerItem]):
    """The items of a folder by the number of their sample. An item's tensors are its own or lie in pages that
    the system may drop."""

    def __init__(
        self,
        folder: Path,
        samples: Sequence[Sample],
        use: files.Use | None = None,
        speaker: Speaker | None = None,
    ) -> None:
        """Open what `build` made of these samples.

        Takes   use: what keeps others from removing it, held as long as this object lives;
                speaker: the number of a sample's voice; None where there is one voice only.
        Raises  CheckpointError if it is not whole.
        """
        self.folder, self.samples, self.speaker, self._use = folder, samples, speaker, use
        self._set = _Set(folder)
        of_samples, numbers = self._set.of_samples, self._set.numbers
        places = np.searchsorted(numbers, of_samples)
        has_codes = np.append(numbers, -1)[places] == of_samples
        self._places = np.where(has_codes, places, -1)  # of each sample among the set's items
        known = {number: told for number, *told in self._set.refused}
        self.refused = {
            # The words name the file that was read when the set was made; a copy may be asked for now.
            index: DataError(reason, message.replace(path, _place_of(samples[index])) if path else message)
            for index in np.flatnonzero(~has_codes).tolist()
            for reason, message, path in [known[int(of_samples[index])]]
        }

    def __reduce__(self) -> tuple[type[Items], tuple[Path, Sequence[Sample], None, Speaker | None]]:
        return type(self), (self.folder, self.samples, None, self.speaker)  # a worker maps the files itself

    def __len__(self) -> int:
        return int((self._places >= 0).sum())

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self._places >= 0).tolist())

    def __contains__(self, index: object) -> bool:
        if not isinstance(index, int | np.integer) or not 0 <= index < len(self._places):
            return False
        return bool(self._places[int(index)] >= 0)

    def __getitem__(self, index: int) -> TalkerItem:
        if index not in self:
            raise KeyError(index)
        sample = self.samples[index]
        return replace(
            self._set.item(int(self._places[index])),
            sample_id=sample.id,
            speaker=None if self.speaker is None else self.speaker(sample),
        )

    def num_frames(self) -> NDArray[np.int64]:
        """Code frames of each item, (items,), in the order of their samples."""
        frames: NDArray[np.int64] = np.diff(self._set.frames)[self._places[self._places >= 0]]
        return frames


class Coded(OfSamples):
    """Utterances as codes and text ids: a dataset of `TalkerItem`s. Unreadable ones raise in their turn, to
    be counted."""

    def __init__(self, items: Items) -> None:
        self.samples, self.items = items.samples, items

    def item(self, index: int, rng: np.random.Generator) -> TalkerItem:
        """One utterance; raises DataError."""
        if index in self.items.refused:
            raise self.items.refused[index]
        return self.items[index]

    def lengths(self) -> NDArray[np.int32]:
        """Code frames of each, (len,); 0 where there are none."""
        lengths = np.zeros(len(self), np.int32)
        lengths[list(self.items)] = self.items.num_frames()
        return lengths


def shared_cache() -> Path | None:
    """Where all runs of this user keep codes together, if MUOMNI_CACHE names a folder: a new run on the same
    codec then encodes nothing."""
    named = os.environ.get("MUOMNI_CACHE")
    return Path(named).expanduser() / "coded" if named else None


def most_bytes() -> int:
    """What a shared cache may hold.

    Raises  ConfigError where MUOMNI_CACHE_GB is no number above 0.
    """
    setting = os.environ.get("MUOMNI_CACHE_GB", DEFAULT_GB)
    try:
        gigabytes = float(setting)
    except ValueError:
        gigabytes = math.nan
    if not 0 < gigabytes < math.inf:
        raise ConfigError(f"MUOMNI_CACHE_GB: expected gigabytes, a number above 0, got {setting!r}")
    return int(gigabytes * 1e9)


def build(
    cache: Path,
    samples: Sequence[Sample],
    key: Any,
    code: Callable[[Sequence[Sample]], Made],
    speaker: Speaker | None = None,
) -> Coded:
    """The items of samples: written once to `cache/<digest>`, then opened.

    Words and sounds of one content are one, however their files are called and wherever they lie: they are
    made once, and what another set of the cache holds under the same key is copied from there. Several
    processes may ask for the same at once: one makes it, the others wait for it. What is not whole is made
    anew. As long as items live, no other process removes their files.

    Takes   key: all that they are made from beside the samples, as JSON; code: gives the items of the samples
            that it is handed, by their numbers among these, in rising order. It is called where some are not
            there yet.
    """
    known: dict[str, str] = {}  # many stretches may be of one recording
    made_by, named = files.sha256_json([FORMAT, key]), [_digest(sample, known) for sample in samples]
    del known
    place = Path(cache) / files.sha256_bytes(made_by.encode() + b"".join(named))[:16]
    use = files.Use(place.with_name(f"{place.name}.lock"))
    said: list[str] = []
    while True:
        use.share(partial(_say_once, said))
        if (items := _whole(place, samples, use, speaker, partial(_say_once, said))) is not None:
            break
        if use.alone():
            _make(place, made_by, named, samples, code)
        else:  # several found nothing, and another of them is the first
            time.sleep(PAUSE_S)
    os.utime(place / META)  # the last use, by which a cache that is too large is thinned out
    return Coded(items)


def _make(
    place: Path,
    made_by: str,
    named: Sequence[bytes],
    samples: Sequence[Sample],
    code: Callable[[Sequence[Sample]], Made],
) -> None:
    """The set of samples of which each has a name. Nobody else is at work on it."""
    for left in place.parent.glob(f".{place.name}.*{files.PART}"):  # of a process that died
        files.remove(left)
    numbers: dict[bytes, int] = {}  # of the contents, and the first sample of each
    firsts = array("q")
    for index, name in enumerate(named):
        if numbers.setdefault(name, len(firsts)) == len(firsts):
            firsts.append(index)
    of_samples = array("q", (numbers[name] for name in named))
    with _held(place, made_by, numbers.keys()) as held, files.fresh_folder(place) as part:
        made = _all(firsts, named, held, samples, code)
        _write(part, made_by, b"".join(numbers), of_samples, [samples[index] for index in firsts], made)


def _all(
    firsts: Sequence[int],
    named: Sequence[bytes],
    held: Mapping[bytes, tuple[_Set, int]],
    samples: Sequence[Sample],
    code: Callable[[Sequence[Sample]], Made],
) -> Iterator[TalkerItem | DataError]:
    """The items of the first samples of each content, in their order: from the sets that hold them, else
    made."""
    lacking = array("q", (index for index in firsts if named[index] not in held))
    fresh = iter(code([samples[index] for index in lacking]) if lacking else ())
    for index in firsts:
        if (kept := held.get(named[index])) is not None:
            yield kept[0].item(kept[1])
            continue
        number, item = next(fresh)
        assert lacking[number] == index, "items come in the order of their samples"
        yield item
    # What makes them may have something to say at its end, which it only reaches where it is asked once more.
    assert next(fresh, None) is None, "no more items than samples"


@contextlib.contextmanager
def _held(place: Path, made_by: str, wanted: Set[bytes]) -> Iterator[dict[bytes, tuple[_Set, int]]]:
    """Which of the things that are wanted lie in other sets beside `place`, and where; nobody removes these
    sets meanwhile."""
    held: dict[bytes, tuple[_Set, int]] = {}
    uses = []
    for meta in sorted(place.parent.glob(f"*/{META}"), key=_used_at, reverse=True):
        if meta.parent == place or len(held) == len(wanted):
            continue
        uses.append(files.Use(meta.parent.with_name(f"{meta.parent.name}.lock")))
        if not uses[-1].share():  # two that make sets and wait for each other would wait for ever
            continue
        with contextlib.suppress(CheckpointError):  # torn, or of an older format: whoever needs it makes it
            other = _Set(meta.parent)
            if other.made_by == made_by:
                for at, number in enumerate(other.numbers.tolist()):
                    name = other.names[number].tobytes()
                    if name in wanted:
                        held.setdefault(name, (other, at))
    yield held
    for use in uses:
        use.close()


def _used_at(meta: Path) -> float:
    with contextlib.suppress(OSError):
        return meta.stat().st_mtime
    return 0.0


def _whole(
    place: Path,
    samples: Sequence[Sample],
    use: files.Use,
    speaker: Speaker | None,
    say: Callable[[str], None],
) -> Items | None:
    """What lies there; None where nothing does, or a torn set, which is told."""
    if not (place / META).exists():
        return None
    try:
        return Items(place, samples, use, speaker)
    except CheckpointError as error:
        say(f"{error.message}: it is made anew")
        return None


def _say_once(said: list[str], line: str) -> None:
    if line not in said:
        said.append(line)
        print(line, file=sys.stderr, flush=True)


def thin_out(cache: Path, most_bytes: int) -> list[str]:
    """Remove sets that nobody uses, those that were not used for longest first, until the others fit; their
    names."""
    sets = sorted(
        (path.parent for path in cache.glob(f"*/{META}")), key=lambda place: (place / META).stat().st_mtime
    )
    sizes = {place: sum(file.stat().st_size for file in place.iterdir()) for place in sets}
    removed = []
    for place in sets:
        if sum(sizes.values()) <= most_bytes:
            break
        use = files.Use(place.with_name(f"{place.name}.lock"))
        if use.alone():
            files.remove(place)
            del sizes[place]
            removed.append(place.name)
        use.close()
    return removed


def _digest(sample: Sample, known: dict[str, str]) -> bytes:
    """Names what is said where: words, stretches and the bytes of the sounds, whatever their files are called.
    A file that can't be read is named by its path.

    Takes   known: the digests of sounds by their paths, looked up and added to.
    """
    for part in sample.media:
        if part.path not in known:
            try:
                known[part.path] = stored.digest(part.path)
            except (OSError, DataError):
                known[part.path] = part.path
    sounds = [part for part in sample.media if isinstance(part, AudioPart)]
    windows = [[part.start, part.end, part.channel] for part in sounds]
    words = [sample.extra.get("text"), *(message.text for message in sample.messages)]
    media = [known[part.path] for part in sample.media]
    return bytes.fromhex(files.sha256_json([words, windows, media]))[:NAME_BYTES]


def _place_of(sample: Sample) -> str:
    """Where the first medium of a sample lies, as messages name it; "" where it has none."""
    media = sample.media
    return stored.shown(media[0].path) if media else ""


def _write(
    folder: Path,
    made_by: str,
    names: bytes,
    of_samples: array[int],
    firsts: Sequence[Sample],
    made: Iterable[TalkerItem | DataError],
) -> None:
    """A set: of each content its name, one behind another, its first sample and its item; and of each sample the
    number of its content."""
    numbers, frames, tokens = array("q"), array("q", [0]), array("q", [0])
    refused: list[list[Any]] = []
    books = width = 0
    with (
        (folder / "codes.bin").open("wb") as codes_file,
        (folder / "ids.bin").open("wb") as ids_file,
        (folder / "hidden.bin").open("wb") as hidden_file,
    ):
        for number, item in enumerate(made):
            if isinstance(item, DataError):
                refused.append([number, item.reason, item.message, _place_of(firsts[number])])
                continue
            books = item.codes_KF.shape[0]
            codes = item.codes_KF.cpu().numpy()
            assert codes.max(initial=0) < 2**15, "codes of 16 bits"
            codes_file.write(codes.astype(np.int16).tobytes())
            ids_file.write(np.array(item.text_ids, np.int32).tobytes())
            if item.hidden_TD is not None:
                width = item.hidden_TD.shape[1]
                hidden_file.write(item.hidden_TD.float().cpu().contiguous().numpy().tobytes())
            numbers.append(number)
            frames.append(frames[-1] + codes.shape[1])
            tokens.append(tokens[-1] + len(item.text_ids))
    lists = {"numbers": numbers, "frames": frames, "tokens": tokens, "of_samples": of_samples}
    for stem, values in lists.items():
        np.save(folder / f"{stem}.npy", np.asarray(values, np.int64))
    np.save(folder / "names.npy", np.frombuffer(names, np.uint8).reshape(-1, NAME_BYTES))
    meta = {"codebooks": books, "width": width, "codes": "int16", "made_by": made_by, "refused": refused}
    files.write_text(folder / META, json.dumps(meta, ensure_ascii=True) + "\n")


def _mapped(path: Path, kind: str, count: int) -> NDArray[Any]:
    """A file of numbers; written to, a page becomes this process's own and the file stays as it is."""
    if not count:
        return np.empty(0, kind)
    array = np.memmap(path, kind, "c")
    if len(array) != count:
        raise ValueError(f"{path.name}: expected {count} numbers, got {len(array)}")
    return array
