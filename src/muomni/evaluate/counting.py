"""Targets and contents of a batch, counted row by row: an independent check of an objective's own counts.

Written row by row in plain Python and apart from the objectives on purpose: a mistake must be made twice to
go unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from muomni.data.batch import SequenceBatch
from muomni.tokens.chat import IGNORE
from muomni.train.objective import Objective
from muomni.train.objectives.codec import CodecBatch, CodecObjective
from muomni.train.objectives.contrast import Contrast, VisionBatch
from muomni.train.objectives.ctc import Hearing, HearingBatch
from muomni.train.objectives.image_codec import ImageCodecBatch, ImageCodecObjective
from muomni.train.objectives.language import NextToken
from muomni.train.objectives.talker import TalkerObjective
from muomni.train.objectives.tokens import TokenBatch, TokenTasks
from muomni.train.objectives.voice import VoiceObjective

Counts = dict[str, float]


def by_hand(objective: Objective, batch: Any) -> tuple[Counts, Counts] | None:
    """Targets by term, and contents by unit (units.CONTENTS); None for an objective that nobody has counted
    for."""
    count = next((count for kind, count in COUNTS.items() if isinstance(objective, kind)), None)
    return objective.by_hand(batch) if count is None else count(objective, batch)


def _language(objective: NextToken, batch: SequenceBatch) -> tuple[Counts, Counts]:
    """A label is learned where a token of the same document stands before it."""
    labels, ids = batch.labels_BT.tolist(), batch.ids_BT.tolist()
    documents = None if batch.documents_BT is None else batch.documents_BT.tolist()
    keep = None if batch.keep_BT is None else batch.keep_BT.tolist()
    learned: list[int] = []
    tokens = 0
    for row in range(len(ids)):
        for t in range(len(ids[row])):
            if keep is not None:
                tokens += keep[row][t]
            else:
                tokens += documents is None or documents[row][t] != -1
            has_before = t > 0 and (documents is None or documents[row][t] == documents[row][t - 1])
            if has_before and labels[row][t] != IGNORE:
                learned.append(labels[row][t])
    contents: Counts = {"samples": len(ids), "tokens": tokens, "labels": len(learned)}
    if objective.omni is not None and objective.omni.vision is not None:
        contents["pictures"] = batch.media["image"].values_N.shape[0] if "image" in batch.media else 0
    if objective.omni is not None and objective.omni.audio is not None:
        frames_N = batch.media["audio"].lengths_N if "audio" in batch.media else None
        frames = [] if frames_N is None else frames_N.tolist()
        contents["audio_s"] = _seconds(sum(frames), objective.omni.audio.config.mel)
    balance: Counts = {"balance": tokens} if objective.balances else {}
    terms: Counts = {
        name: sum(term.ids is None or any(label in ids for ids in term.ids) for label in learned)
        for name, term in objective.terms.items()
    }
    return {**terms, "misses": len(learned), **balance}, contents


def _tokens(objective: TokenTasks, batch: TokenBatch) -> tuple[Counts, Counts]:
    """A label is learned where an id stands before it, under the task of its row."""
    terms: Counts = dict.fromkeys(objective.terms, 0)
    for task, labels in zip(batch.tasks, batch.labels_BT.tolist(), strict=True):
        terms[task] += sum(label != IGNORE for label in labels[1:])
    tokens = sum(is_real for row in batch.is_real_BT.tolist() for is_real in row)
    learned = sum(terms.values())
    return {**terms, "misses": learned}, {"samples": len(batch.tasks), "tokens": tokens, "labels": learned}


def _hearing(objective: Hearing, batch: HearingBatch) -> tuple[Counts, Counts]:
    """Padding of the labels is 0, the blank, which no transcript holds."""
    symbols = sum(symbol > 0 for row in batch.labels_BU.tolist() for symbol in row)
    seconds = _seconds(sum(batch.frames_B.tolist()), objective.encoder.config.mel)
    return {"ctc": symbols}, {"samples": len(batch.labels_BU), "audio_s": seconds, "labels": symbols}


def _codec(objective: CodecObjective, batch: CodecBatch) -> tuple[Counts, Counts]:
    config, bins = objective.codec.config, batch.mel_BFM.shape[2]
    frames = batch.frames_B.tolist()
    values = sum(frames) * bins
    steps = sum(max(0, count - 1) for count in frames) * bins
    codes = sum(-(-count // config.stride_frames) for count in frames)
    terms: Counts = {"l1": values, "mse": values, "delta": steps, "commitment": codes}
    return terms, {"samples": len(frames), "audio_s": _seconds(sum(frames), config.mel)}


def _image_codec(objective: ImageCodecObjective, batch: ImageCodecBatch) -> tuple[Counts, Counts]:
    values = sum(len(pixel) for picture in batch.pixels_BHW3.tolist() for row in picture for pixel in row)
    return {"l1": values, "mse": values}, {
        "samples": len(batch.sample_ids),
        "pictures": len(batch.pixels_BHW3.tolist()),
    }


def _talker(objective: TalkerObjective, batch: SequenceBatch) -> tuple[Counts, Counts]:
    """A code a frame and book; the first book also says where speech ends."""
    assert batch.frames_B is not None
    assert batch.keep_BT is not None
    frames, text, books = batch.frames_B.tolist(), batch.keep_BT.tolist(), objective.talker.config.codebooks
    terms: Counts = {f"book{book}": sum(frames) + (len(frames) if book == 0 else 0) for book in range(books)}
    tokens = sum(is_real for row in text for is_real in row)
    return terms, {"samples": len(frames), "tokens": tokens, "code_frames": sum(frames)}


def _voice(objective: VoiceObjective, batch: SequenceBatch) -> tuple[Counts, Counts]:
    """Words and codes that have a position before them; frames are counted by the codes of the first book."""
    assert batch.keep_BT is not None
    assert batch.codes_BKS is not None
    assert batch.code_labels_BKS is not None
    words = [label for row in batch.labels_BT.tolist() for label in row[1:]]
    terms: Counts = {"text": sum(label != IGNORE for label in words)}
    grids = batch.code_labels_BKS.tolist()
    for book in range(objective.model.books):
        terms[f"book{book}"] = sum(label != IGNORE for grid in grids for label in grid[book][1:])
    tokens = sum(is_real for row in batch.keep_BT.tolist() for is_real in row)
    size = objective.model.codebook_size
    frames = sum(0 <= code < size for grid in batch.codes_BKS.tolist() for code in grid[0])
    return terms, {"samples": len(grids), "tokens": tokens, "code_frames": frames}


def _contrast(objective: Contrast, batch: VisionBatch) -> tuple[Counts, Counts]:
    """A caption's words are asked for once each."""
    ids, keep = batch.caption_ids_BT.tolist(), batch.caption_keep_BT.tolist()
    captions = [
        [i for i, is_real in zip(*row, strict=True) if is_real] for row in zip(ids, keep, strict=True)
    ]
    terms: Counts = {"contrast": len(ids)}
    if objective.words is not None:
        terms["words"] = sum(len(set(caption)) for caption in captions)
    false = [] if batch.negatives_keep_BNT is None else batch.negatives_keep_BNT.flatten().tolist()
    tokens = sum(map(len, captions)) + sum(false)
    return terms, {"samples": len(ids), "pictures": batch.pixels_BHW3.shape[0], "tokens": tokens}


def _seconds(frames: int, mel: Any) -> float:
    return float(frames * mel.hop_samples / mel.rate_hz)


COUNTS: dict[type[Objective], Callable[[Any, Any], tuple[Counts, Counts]]] = {
    TokenTasks: _tokens,
    NextToken: _language,
    Hearing: _hearing,
    CodecObjective: _codec,
    ImageCodecObjective: _image_codec,
    TalkerObjective: _talker,
    Contrast: _contrast,
    VoiceObjective: _voice,
}
