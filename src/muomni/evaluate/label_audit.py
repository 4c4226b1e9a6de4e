"""What the labels of any trainer teach: whether rows teach at all, whether the loss asks for the next symbol, whether
ends are taught, and whether prompts are.

A dump is a safetensors file of one batch as the model is given it: `input_ids` and `labels` (B, T), or (B, T, K)
for models of K books; beside them, where sounds have tensors of their own, `audio_input_ids` and `audio_labels`
(B, F, K), and `audio_input_ids_mask` (B, F) bool, True = a real step. -100 is no label. What a trainer's loss said may
stand beside them: `loss`, `logits` (..., V) and `loss_labels` (...), and for a decoder over books `depth_loss`,
`depth_logits` and `depth_labels`, each label beside the scores that are to foretell it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from muomni.errors import ConfigError, DataError
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate, Judged, judge
from muomni.tokens.chat import IGNORE

STREAMS = {"text": ("input_ids", "labels"), "audio": ("audio_input_ids", "audio_labels")}
MASKS = {"text": "attention_mask", "audio": "audio_input_ids_mask"}

COVERED = Gate(
    "label_coverage",
    "label_coverage",
    "some rows teach nothing: all their labels are masked",
    at_least=1.0,
    source="SPEC V5",
)
ASKED = Gate(
    "next_symbol",
    "misplaced",
    "the loss does not ask for the next symbol",
    at_most=0.01,
    source="reference higgs B1, B2: a copy task, or labels that are shifted twice",
)
ENDS = {
    kind: Gate(
        f"{kind}_ends",
        f"{kind}_ends_taught",
        f"the symbol that ends {noun} is not learned: generation will not stop",
        at_least=1.0,
        source="reference higgs, headline 3",
    )
    for kind, noun in (("text", "a turn"), ("audio", "a stream of codes"))
}
PROMPTS = {
    kind: Gate(
        f"{kind}_prompts",
        f"{kind}_prompt_taught",
        f"what is only {verb} is learned too: prompts are supervised",
        at_most=0.0,
        source="reference higgs, headline 3",
    )
    for kind, verb in (("text", "asked"), ("audio", "heard"))
}
SCALED = Gate(
    "loss_scale",
    "loss_scale_error",
    "the loss is not the mean over its labels: the rate that was chosen is another",
    at_most=0.01,
    source="CSM of transformers: its depth loss is K - 1 times as large where num_items_in_batch is given",
)
# What a trainer told of a batch: its loss, and the scores (..., V) and the labels (...), already shifted, behind it.
LOSSES = {"": ("loss", "logits", "loss_labels"), "depth": ("depth_loss", "depth_logits", "depth_labels")}


@dataclass(frozen=True)
class Marks:
    """What a vocabulary's ids mean to the audit; what is not named is not looked at.

    ends          close a turn
    audio_end     closes a stream of codes, in each of its books
    answer        the ids that open an answer, in a row; it goes on up to the next of `ends`
    is_last       only the last answer of a row is to be learned: those before it are references
    placeholders  words that stand for a step of codes, by which sounds are found in the text
    """

    ends: tuple[int, ...] = ()
    audio_end: int | None = None
    answer: tuple[int, ...] = ()
    is_last: bool = False
    placeholders: tuple[int, ...] = ()


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a dump.

    Raises  DataError where the file is none, lacks a tensor, or holds labels of another shape than their inputs.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(
            "undecodable", f"{path}: expected a safetensors file of labels, got {error}"
        ) from error
    found = [kind for kind, names in STREAMS.items() if all(name in tensors for name in names)]
    if not found:
        held = ", ".join(sorted(tensors)) or "nothing"
        raise DataError("bad_row", f"{path}: expected input_ids and labels, got {held}")
    for kind in found:
        ids, labels = (tensors[name] for name in STREAMS[kind])
        if ids.shape != labels.shape or ids.ndim not in (2, 3) or ids.is_floating_point():
            raise DataError(
                "bad_row",
                f"{path}: {kind}: expected ids and labels of one shape (B, T) or (B, T, K), got "
                f"{tuple(ids.shape)} and {tuple(labels.shape)}",
            )
    return tensors


def audit(
    tensors: Mapping[str, Tensor], loss: Literal["shifts", "plain"], marks: Marks
) -> tuple[dict[str, Fact], list[Judged]]:
    """Facts about a dump, and the verdicts on them.

    label_coverage           rows with a label
    misplaced                labels that make the loss ask for another symbol than the next one
    text_ends_taught, audio_ends_taught        ends that are learned, of those of answers
    text_prompt_taught, audio_prompt_taught    labels outside of answers, as a share of all
    loss_scale_error   of a dump that holds the loss that was told (LOSSES): how far it is from the mean

    Takes   loss: whether it compares a place's scores with the label of the next place (`shifts`, as the
            classes of transformers do), or with its own label (`plain`).
    Raises  ConfigError where marks ask for what the dump can't tell.
    """
    streams = {
        kind: _lanes(tensors, kind)
        for kind, names in STREAMS.items()
        if all(name in tensors for name in names)
    }
    facts: dict[str, Fact] = {}
    gates = [COVERED, ASKED]
    rows = next(iter(streams.values()))[0].shape[0]
    has_label = torch.zeros(rows, dtype=torch.bool)
    for _, labels_BTK, _ in streams.values():
        has_label |= (labels_BTK != IGNORE).flatten(1).any(1)
    facts["label_coverage"] = Fact(float(has_label.float().mean()), rows)
    facts["misplaced"] = _misplaced(streams, loss)
    asked = {kind: _asked(labels_BTK, loss) for kind, (_, labels_BTK, _) in streams.items()}
    answers = _answers(streams, marks)
    for kind, ends in (
        ("text", marks.ends),
        ("audio", () if marks.audio_end is None else (marks.audio_end,)),
    ):
        if not ends:
            continue
        if kind not in streams:
            raise ConfigError(f"audit: ends of {kind} are asked for, and the dump has no {STREAMS[kind][0]}")
        ids_BTK, _, keep_BT = streams[kind]
        is_end = torch.isin(ids_BTK, torch.tensor(ends)) & keep_BT[..., None]
        if kind == "audio":  # of ends one after another the first is to be learned
            is_end[:, 1:] &= ids_BTK[:, 1:] != ids_BTK[:, :-1]
        if kind in answers:
            is_end &= answers[kind][..., None]
        facts[f"{kind}_ends_taught"] = Fact(
            float(asked[kind][is_end].float().mean()) if bool(is_end.any()) else float("nan"),
            int(is_end.sum()),
        )
        gates.append(ENDS[kind])
    for kind, inside_BT in answers.items():
        taught = asked[kind].any(-1)
        outside = int((taught & ~inside_BT).sum())
        facts[f"{kind}_prompt_taught"] = Fact(outside / max(1, int(taught.sum())), int(taught.sum()))
        gates.append(PROMPTS[kind])
    if (scale := _loss_scale(tensors)) is not None:
        facts["loss_scale_error"] = scale
        gates.append(SCALED)
    return facts, judge(gates, facts)


def _loss_scale(tensors: Mapping[str, Tensor]) -> Fact | None:
    """How far the losses that were told are from the means of the cross entropies of their labels, as a share, at
    worst; the note says how often the mean one is. None where the dump has none.

    Raises  ConfigError where a loss comes without its scores and labels, or these are of different shapes.
    """
    worst, notes, count = 0.0, [], 0
    for part, names in LOSSES.items():
        given = [name for name in names if name in tensors]
        if not given or (part == "" and names[0] not in tensors):  # logits alone tell nothing
            continue
        if len(given) < len(names):
            raise ConfigError(f"audit: a {names[0]} needs {names[1]} and {names[2]} beside it in the dump")
        told, scores, labels = (tensors[name] for name in names)
        if scores.shape[:-1] != labels.shape or told.numel() != 1:
            raise ConfigError(
                f"audit: {names[1]} {tuple(scores.shape)} and {names[2]} {tuple(labels.shape)}: expected (..., V) and "
                f"(...), and one number of {names[0]}"
            )
        labels_N = labels.long().flatten()
        mean = float(cross_entropy(scores.float().flatten(0, -2), labels_N, ignore_index=IGNORE))
        times = float(told) / mean if mean else math.nan
        count += int((labels_N != IGNORE).sum())
        if not abs(times - 1) <= worst:  # a NaN is the worst
            worst, notes = abs(times - 1), [f"{names[0]} is {times:.4g} times the mean over its labels"]
    return (
        Fact(worst, count, note="; ".join(notes) if worst > 0.01 or math.isnan(worst) else "")
        if count
        else None
    )


def _lanes(tensors: Mapping[str, Tensor], kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and labels (B, T, K) of a stream, and which steps are real (B, T)."""
    ids, labels = (tensors[name].long() for name in STREAMS[kind])
    if ids.ndim == 2:
        ids, labels = ids[..., None], labels[..., None]
    keep = tensors.get(MASKS[kind])
    keep_BT = torch.ones(ids.shape[:2], dtype=torch.bool) if keep is None else keep.bool()
    return ids, labels, keep_BT


def _asked(labels_BTK: Tensor, loss: str) -> Tensor:
    """bool (B, T, K), True = the symbol at this place is what the loss asks for."""
    is_label = labels_BTK != IGNORE
    if loss == "shifts":
        is_label = is_label.clone()
        is_label[:, 0] = False  # nothing foretells the first
        return is_label
    asked = torch.zeros_like(is_label)
    asked[:, 1:] = is_label[:, :-1]
    return asked


def _misplaced(streams: Mapping[str, tuple[Tensor, Tensor, Tensor]], loss: str) -> Fact:
    """Labels that are not what they should be; the note says what they are instead."""
    wrong = total = own = after = 0
    for ids_BTK, labels_BTK, _ in streams.values():
        is_label = labels_BTK[:, :-1] != IGNORE
        is_own = (labels_BTK[:, :-1] == ids_BTK[:, :-1]) & is_label
        is_next = (labels_BTK[:, :-1] == ids_BTK[:, 1:]) & is_label
        right = is_own if loss == "shifts" else is_next
        wrong += int((is_label & ~right).sum())
        total += int(is_label.sum())
        own, after = own + int(is_own.sum()), after + int(is_next.sum())
    note = ""
    if wrong > 0.01 * max(1, total):
        if loss == "plain" and own > 0.9 * total:
            note = "each label is the symbol at its own place, and the loss does not shift: a copy task"
        elif loss == "shifts" and after > 0.9 * total:
            note = "labels are shifted already, and the loss shifts again"
        else:
            note = "labels are neither the inputs nor the inputs shifted by one"
    return Fact(wrong / total if total else float("nan"), total, note=note)


def _answers(streams: Mapping[str, tuple[Tensor, Tensor, Tensor]], marks: Marks) -> dict[str, Tensor]:
    """By stream which places lie in what is to be learned, (B, T); none where nothing says so.

    Raises  ConfigError where answers are named, and there are no words to find them in, no end to close them,
            or no placeholders to find sounds by.
    """
    if not marks.answer:
        return {}
    if "text" not in streams:
        raise ConfigError("audit: --answer needs input_ids in the dump")
    if not marks.ends:
        raise ConfigError("audit: --answer needs --end, which closes an answer")
    ids_BTK, _, keep_BT = streams["text"]
    ids_BT = ids_BTK[..., 0]
    inside_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for row, ids in enumerate(ids_BT.tolist()):
        spans = _spans(ids, marks)
        for start, stop in spans[-1:] if marks.is_last else spans:
            inside_BT[row, start:stop] = True
    answers = {"text": inside_BT & keep_BT}
    if "audio" in streams:
        if not marks.placeholders:
            raise ConfigError(
                "audit: the dump has sounds; --placeholder says which words stand for their steps"
            )
        audio_BF = streams["audio"][2]
        answers["audio"] = torch.zeros_like(audio_BF)
        is_place_BT = torch.isin(ids_BT, torch.tensor(marks.placeholders)) & keep_BT
        for row in range(len(ids_BT)):
            heard, places = int(audio_BF[row].sum()), int(is_place_BT[row].sum())
            if heard != places:
                raise ConfigError(f"audit: row {row} has {places} placeholders for {heard} steps of codes")
            answers["audio"][row, audio_BF[row]] = inside_BT[row, is_place_BT[row]]
    return answers


def _spans(ids: Sequence[int], marks: Marks) -> list[tuple[int, int]]:
    """Where answers stand in a row: behind the ids that open them, up to the end that closes them."""
    opens, found = list(marks.answer), []
    place = 0
    while place + len(opens) <= len(ids):
        if list(ids[place : place + len(opens)]) != opens:
            place += 1
            continue
        start = stop = place + len(opens)
        while stop < len(ids) and ids[stop] not in marks.ends:
            stop += 1
        found.append((start, min(stop + 1, len(ids))))
        place = stop
    return found
