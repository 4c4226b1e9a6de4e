"""Utterances as codes, text ids and the Thinker's hidden states: computed once, stored on disk,
memory-mapped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

FORMAT = 2  # of the files, and of how they are made; part of the key, so that an older build is made again
META = "coded.json"
DEFAULT_GB = "20"  # that a shared cache may hold, unless MUOMNI_CACHE_GB says otherwise; what is in use stays


Speaker = Callable[[Sample], int | None]


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
        try:
            meta = files.read_json(folder / META)
            # Numbers of the samples, then where the codes and the text ids of each begin and end, (items +
            # 1,) each.
            self._numbers, self._frames, self._tokens = (
                np.load(folder / f"{name}.npy") for name in ("numbers", "frames", "tokens")
            )
            self._books, self._width = int(meta["codebooks"]), int(meta["width"])
            self._codes = _mapped(folder / "codes.bin", meta["codes"], self._books * int(self._frames[-1]))
            self._ids = _mapped(folder / "ids.bin", "int32", int(self._tokens[-1]))
            self._hidden = _mapped(folder / "hidden.bin", "float32", self._width * int(self._tokens[-1]))
            self.refused = {
                int(index): DataError(reason, message) for index, reason, message in meta["refused"]
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder}: not a whole set of codes ({error})", hint="remove the folder; it is made again"
            ) from error

    def __reduce__(self) -> tuple[type[Items], tuple[Path, Sequence[Sample], Speaker | None]]:
        return type(self), (self.folder, self.samples, self.speaker)  # a worker maps the files itself

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[int]:
        return (int(number) for number in self._numbers)

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int | np.integer) and self._place(int(index)) is not None

    def __getitem__(self, index: int) -> TalkerItem:
        place = self._place(int(index))
        if place is None:
            raise KeyError(index)
        low, high = (int(at) for at in self._frames[place : place + 2])
        first, last = (int(at) for at in self._tokens[place : place + 2])
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
            self.samples[index].id,
            self._ids[first:last].tolist(),
            torch.from_numpy(codes_KF),
            None if hidden is None else torch.from_numpy(hidden),
            None if self.speaker is None else self.speaker(self.samples[index]),
        )

    def num_frames(self) -> NDArray[np.int64]:
        """Code frames of each item, (items,), in the order of their samples."""
        frames: NDArray[np.int64] = np.diff(self._frames)
        return frames

    def _place(self, index: int) -> int | None:
        place = int(np.searchsorted(self._numbers, index))
        return place if place < len(self._numbers) and self._numbers[place] == index else None


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
    coded: Iterable[tuple[int, TalkerItem | DataError]],
    speaker: Speaker | None = None,
) -> Coded:
    """The items of `made`, in rising order of their samples' numbers: written once to `cache/<digest>`, then
    opened.

    Several processes may ask for the same at once: one makes it, the others wait for it. What is not whole is
    made anew. As long as items live, no other process removes their files.

    Takes   key: all that they are made from beside the samples, as JSON; where their folder is whole, nothing
            is drawn from `made`.
    """
    place = Path(cache) / files.sha256_json([FORMAT, key, _digest(samples)])[:16]
    use = files.Use(place.with_name(f"{place.name}.lock"))
    use.share()
    items = _whole(place, samples, use, speaker)
    if items is None:
        use.alone(_say)
        items = _whole(place, samples, use, speaker, _say)  # another may have made it meanwhile
        if items is None:
            for left in place.parent.glob(
                f".{place.name}.*{files.PART}"
            ):  # of a process that died: nobody else is at work on these
                files.remove(left)
            with files.fresh_folder(place) as part:
                _write(part, coded)
            items = Items(place, samples, use, speaker)
        use.share()
    os.utime(place / META)  # the last use, by which a cache that is too large is thinned out
    return Coded(items)


def _whole(
    place: Path,
    samples: Sequence[Sample],
    use: files.Use,
    speaker: Speaker | None,
    say: Callable[[str], None] | None = None,
) -> Items | None:
    """What lies there; None where nothing does, or a torn set, which is told."""
    if not (place / META).exists():
        return None
    try:
        return Items(place, samples, use, speaker)
    except CheckpointError as error:
        if say is not None:
            say(f"{error.message}: it is made anew")
        return None


def _say(line: str) -> None:
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


def _digest(samples: Iterable[Sample]) -> str:
    """Names what is said where: words, and names, sizes and times of the files, wherever they lie. Gate
    `stale_codes` looks into them."""
    digest = hashlib.sha256()
    for sample in samples:
        media = []
        for part in sample.media:
            is_inline = part.path.startswith("data:")
            with contextlib.suppress(OSError):
                status = None if is_inline else os.stat(stored.container(part.path) or part.path)
                media.append(
                    [Path(part.path).name, status.st_size, status.st_mtime_ns] if status else part.path
                )
        windows = [
            [part.start, part.end, *([] if part.channel is None else [part.channel])]
            for part in sample.media
            if isinstance(part, AudioPart)
        ]
        words = [sample.extra.get("text"), *(message.text for message in sample.messages)]
        digest.update(files.sha256_json([sample.id, words, windows, media]).encode())
    return digest.hexdigest()


def _write(folder: Path, coded: Iterable[tuple[int, TalkerItem | DataError]]) -> None:
    numbers, frames, tokens = array("q"), array("q", [0]), array("q", [0])
    refused: list[list[Any]] = []
    books = width = 0
    with (
        (folder / "codes.bin").open("wb") as codes_file,
        (folder / "ids.bin").open("wb") as ids_file,
        (folder / "hidden.bin").open("wb") as hidden_file,
    ):
        for index, item in coded:
            if isinstance(item, DataError):
                refused.append([index, item.reason, item.message])
                continue
            books = item.codes_KF.shape[0]
            codes = item.codes_KF.cpu().numpy()
            assert codes.max(initial=0) < 2**15, "codes of 16 bits"
            codes_file.write(codes.astype(np.int16).tobytes())
            ids_file.write(np.array(item.text_ids, np.int32).tobytes())
            if item.hidden_TD is not None:
                width = item.hidden_TD.shape[1]
                hidden_file.write(item.hidden_TD.float().cpu().contiguous().numpy().tobytes())
            numbers.append(index)
            frames.append(frames[-1] + codes.shape[1])
            tokens.append(tokens[-1] + len(item.text_ids))
    for stem, values in (("numbers", numbers), ("frames", frames), ("tokens", tokens)):
        np.save(folder / f"{stem}.npy", np.asarray(values, np.int64))
    meta = {"codebooks": books, "width": width, "codes": "int16", "refused": refused}
    files.write_text(folder / META, json.dumps(meta, ensure_ascii=True) + "\n")


def _mapped(path: Path, kind: str, count: int) -> NDArray[Any]:
    """A file of numbers; written to, a page becomes this process's own and the file stays as it is."""
    if not count:
        return np.empty(0, kind)
    array = np.memmap(path, kind, "c")
    if len(array) != count:
        raise ValueError(f"{path.name}: expected {count} numbers, got {len(array)}")
    return array
