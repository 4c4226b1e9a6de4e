"""Whether tasks over tokens use what they read: the nats of a target with its own source, another's, noise,
and none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from muomni.data.token_rows import TEXT, TokenItem, TokenRows
from muomni.errors import DataError
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.metrics import paired
from muomni.runtime import Runtime
from muomni.tokens import sequences
from muomni.tokens.sequences import TASKS
from muomni.tokens.space import TokenSpace
from muomni.train.objectives.tokens import TokenTasks, collate

ROWS_AT_ONCE = 32
Words = list[int]


def facts(objective: TokenTasks, held_out: TokenRows, run: Runtime, most: int) -> dict[str, Fact]:
    """For each task, over up to `most` held-out rows:

    nats              mean nats of a target's token, over all ids; floor: all codes or ids alike
    swap_gap_nats     how much more a target costs behind another row's source, paired; swap_win_rate: how
                      often it does
    noise_win_rate    the same with random codes in the place of the image or sound that is read
    empty_win_rate    the same without the words that ask for an image or a sound
    """
    found: dict[str, Fact] = {}
    for task in (name for name in held_out.blocks if name != TEXT):
        places, parts = readable(held_out, task, most)
        if len(parts) < 2:
            continue
        space, rng = held_out.space, np.random.default_rng(0)
        own = _nats(
            objective, [_row(space, task, words, medium, held_out.max_len) for words, medium in parts], run
        )
        arms = {
            "swap": [_swapped(space, task, parts, place, held_out.max_len) for place in range(len(parts))]
        }
        if TASKS[task].writes == "text":
            arms["noise"] = [
                _row(space, task, words, _noise(space, task, medium, rng), held_out.max_len)
                for words, medium in parts
            ]
        else:
            arms["empty"] = [
                _without_words(space, task, words, medium, held_out.max_len) for words, medium in parts
            ]
        found[f"{task}_nats"] = Fact(float(np.mean(own)), len(own), None, _floor(space, task))
        for arm, rows in arms.items():
            gaps = np.array(_nats(objective, rows, run)) - np.array(own)
            found[f"{task}_{arm}_gap_nats"] = Fact(float(gaps.mean()), len(gaps), paired(gaps.tolist()))
            found[f"{task}_{arm}_win_rate"] = share(int((gaps > 0).sum()), len(gaps), floor=0.5)
    return found


def reading(objective: TokenTasks, held_out: TokenRows, run: Runtime, most: int) -> dict[str, float]:
    """Mean nats of held-out texts of images and sounds, by task."""
    found = {}
    for task in (name for name in held_out.blocks if name in TASKS and TASKS[name].writes == "text"):
        _, parts = readable(held_out, task, most)
        if parts:
            rows = [_row(held_out.space, task, words, medium, held_out.max_len) for words, medium in parts]
            found[task] = float(np.mean(_nats(objective, rows, run)))
    return found


def readable(held_out: TokenRows, task: str, most: int) -> tuple[list[int], list[tuple[Words, Tensor]]]:
    """Up to `most` rows of a task, evenly chosen, that fit: their numbers, and words and medium of each."""
    start = 0
    for name, size in held_out.blocks.items():
        if name == task:
            break
        start += size
    size = held_out.blocks.get(task, 0)
    places, parts = [], []
    for place in start + np.linspace(0, size - 1, min(most, size)).astype(int) if size else ():
        try:
            held_out.row(int(place))
        except DataError:
            continue
        places.append(int(place))
        parts.append(held_out.parts(int(place)))
    return places, parts


def _row(space: TokenSpace, task: str, words: Words, medium: Tensor, max_len: int) -> TokenItem:
    row = sequences.build(space, task, words, medium, max_len=max_len)
    return TokenItem("", task, row.ids, row.labels)


def _swapped(
    space: TokenSpace, task: str, parts: Sequence[tuple[Words, Tensor]], place: int, max_len: int
) -> TokenItem:
    """The row with the source of the next one whose words are others; equal words would prove nothing."""
    words, medium = parts[place]
    for step in range(1, len(parts)):
        other_words, other_medium = parts[(place + step) % len(parts)]
        if other_words != words:
            source = (words, other_medium) if TASKS[task].writes == "text" else (other_words, medium)
            try:
                return _row(space, task, *source, max_len)
            except DataError:
                continue  # too long together
    return _row(space, task, words, medium, max_len)


def _noise(space: TokenSpace, task: str, medium: Tensor, rng: np.random.Generator) -> Tensor:
    """As many random codes of each book."""
    modality = TASKS[task].medium
    codes_KF = space.codes_of(modality, medium)
    drawn = rng.integers(0, space.codec(modality).codebook_size, tuple(codes_KF.shape))
    return space.ids_of(modality, torch.from_numpy(drawn))


def _without_words(space: TokenSpace, task: str, words: Words, medium: Tensor, max_len: int) -> TokenItem:
    row = sequences.without_words(sequences.build(space, task, words, medium, max_len=max_len))
    return TokenItem("", task, row.ids, row.labels)


def _floor(space: TokenSpace, task: str) -> float:
    """Nats of one choice among all ids that a target consists of."""
    writes = TASKS[task].writes
    size = space.text_size if writes == "text" else space.codec(writes).codebook_size
    return float(np.log(size))


@torch.inference_mode()
def _nats(objective: TokenTasks, rows: Sequence[TokenItem], run: Runtime) -> list[float]:
    """Mean nats of each row's targets."""
    objective.eval()
    order = sorted(range(len(rows)), key=lambda place: rows[place].ids.shape[-1])
    nats = [0.0] * len(rows)
    for first in range(0, len(order), ROWS_AT_ONCE):
        some = order[first : first + ROWS_AT_ONCE]
        batch = collate([rows[place] for place in some], objective.model.space.pad).to(run.device)
        with run.autocast():
            for place, value in zip(some, objective.nats(batch).tolist(), strict=True):
                nats[place] = value
    return nats
