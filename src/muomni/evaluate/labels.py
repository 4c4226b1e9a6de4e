"""Label checks against the samples: labels decode to the assistant's text, ends are learned, codes are
current."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from muomni.data.conversation import MEDIA_READERS, Conversations, Item, input_media, prepare, rendered
from muomni.data.corpus import TokenCorpus
from muomni.data.sample import Sample
from muomni.data.utterances import Utterances, spoken
from muomni.errors import DataError
from muomni.evaluate.facts import Fact, share
from muomni.media.frames import num_states
from muomni.models.codec import Codec
from muomni.runtime import Runtime
from muomni.tokens.alphabet import Alphabet, min_frames
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.chat import IGNORE
from muomni.train.objectives.talker import TalkerItem, TalkerObjective, collate

LOOKED_AT = 64  # samples of a source of labels that are read back


def documents(corpus: TokenCorpus, samples: Sequence[Sample], tokenizer: Tokenizer) -> dict[str, Fact]:
    """Documents of a token file against the samples that they were made from."""
    chosen = _evenly(len(corpus))
    rows = [corpus.labels(int(corpus.offsets[i]), int(corpus.offsets[i + 1])).tolist() for i in chosen]
    return _read_back(rows, [samples[i] for i in chosen], tokenizer, most=None)


def conversations(dataset: Conversations, tokenizer: Tokenizer) -> dict[str, Fact]:
    """Rows of a stage that speaks about media, against their samples."""
    rows, kept = [], []
    for index in _evenly(len(dataset)):
        try:
            rows.append(dataset.item(index, np.random.default_rng(0)).labels)
        except DataError:
            continue  # the loader counts and names it
        kept.append(dataset.samples[index])
    return _read_back(rows, kept, tokenizer, most=dataset.ctx_len)


def whole(dataset: Conversations, tokenizer: Tokenizer, most: int = 50_000) -> dict[str, Fact]:
    """What all rows of a training set teach, or `most` of them, evenly thinned; no picture is read.

    Gives   truncated_share     rows whose words are cut, or that are left out because they can't fit
            zero_label_rows     rows without a learned label
            label_tokens_mean   learned labels of a row
    Rows that can't be read are not of these: the loader counts and names them.
    """
    counts: list[int] = []  # learned labels of each row that is taught
    cut: list[str] = []
    empty: list[str] = []
    n = 0
    for index in _evenly(len(dataset), most):
        sample = dataset.samples[index]
        try:
            full = _unread(dataset, index, tokenizer, sys.maxsize)
        except DataError:
            continue
        n += 1
        try:
            labels = (
                full
                if len(full.ids) <= dataset.ctx_len
                else _unread(dataset, index, tokenizer, dataset.ctx_len)
            ).labels
        except DataError:
            cut.append(sample.id)
            continue
        if len(labels) < len(full.labels):
            cut.append(sample.id)
        counts.append(sum(label != IGNORE for label in labels[1:]))  # nothing foretells the first
        if not counts[-1]:
            empty.append(sample.id)
    mean = float(np.mean(counts)) if counts else math.nan
    return {
        "truncated_share": dataclasses.replace(share(len(cut), n), note=", ".join(cut[:4])),
        "zero_label_rows": Fact(
            float(len(empty)) if counts else math.nan, len(counts), note=", ".join(empty[:4])
        ),
        "label_tokens_mean": Fact(mean, len(counts)),
    }


def _unread(dataset: Conversations, index: int, tokenizer: Tokenizer, ctx_len: int) -> Item:
    """A row as it is taught; its media are read only where an array tells how many positions it fills."""
    sample = dataset.samples[index]
    return (prepare if any(MEDIA_READERS[kind].fills for kind in input_media(sample)) else rendered)(
        sample, tokenizer, dataset.spec, ctx_len, apart=dataset.apart
    )


def _read_back(
    rows: Sequence[Sequence[int]], samples: Sequence[Sample], tokenizer: Tokenizer, *, most: int | None
) -> dict[str, Fact]:
    """Share of rows whose labels spell the assistant's words (a document: all of it), and whose turns all end
    in a learned end symbol."""
    right, ends, wrong, endless = 0, 0, "", ""
    marks = tokenizer.special_tokens
    for labels, sample in zip(rows, samples, strict=True):
        learned = [token for token in labels if token != IGNORE]
        answers = [message.text for message in sample.messages if message.role == "assistant"]
        stop, references = (marks.eos, [sample.text]) if sample.text is not None else (marks.end, answers)
        words = tokenizer.decode([token for token in learned if marks.is_word(token)])
        whole = "".join(tokenizer.normal(text or "") for text in references)
        start = words.rstrip("\ufffd")  # a long one loses its end, maybe within a letter
        if words == whole or (len(labels) == most and start and whole.startswith(start)):
            right += 1
        else:
            wrong = wrong or f"{sample.id}: {words[:40]!r} for {whole[:40]!r}"
        if learned.count(stop) == len(references) and learned and learned[-1] == stop:
            ends += 1
        else:
            endless = endless or sample.id
    n = len(rows)
    return {
        "taught_right": Fact(right / max(1, n), n, note=wrong),
        "ends_taught": Fact(ends / max(1, n), n, note=endless),
    }


def infeasible(dataset: Utterances) -> dict[str, Fact]:
    """Rows that CTC can't spell by their header's duration and their own words, and that the dataset would
    let through all the same."""
    alphabet, doomed = Alphabet(), []
    for index, (sample, length_s) in enumerate(zip(dataset.samples, dataset.seconds_N.tolist(), strict=True)):
        try:
            text = spoken(sample)[1]
        except DataError:
            continue
        frames = int((length_s + 2 * dataset.pad_s) * dataset.spec.frame_rate_hz + 1)
        states = num_states(frames, max(1, dataset.downsample))
        if length_s > 0 and min_frames(alphabet.encode(text)) > states + 1:
            doomed.append(index)
    taught = []
    for index in doomed[: 4 * LOOKED_AT]:
        try:
            taught.append(dataset.item(index, np.random.default_rng(0)).sample_id)
        except DataError:
            continue
    return {"infeasible_taught": Fact(float(len(taught)), len(dataset), note=", ".join(taught[:4]))}


@torch.no_grad()
def stale(
    items: Mapping[int, TalkerItem], samples: Sequence[Sample], codec: Codec, run: Runtime
) -> dict[str, Fact]:
    """Share of codes to be learned that the codec (on the run's device), asked again about the same speech,
    does not give."""
    codec.eval()
    utterances = Utterances(
        samples, codec.config.mel, downsample=0, pad_s=0.0, max_text_len=0, max_s=math.inf
    )
    chosen = [sorted(items)[place] for place in _evenly(len(items))]
    differ = count = 0
    for index in chosen:
        mel_FM = torch.from_numpy(utterances.item(index, np.random.default_rng(0)).mel_FM)
        now = codec.encode(mel_FM[None].to(run.device), torch.tensor([len(mel_FM)], device=run.device))[
            0
        ].cpu()
        then = items[index].codes_KF
        differ += int((now != then).sum()) if now.shape == then.shape else now.numel()
        count += now.numel()
    return {"stale_codes": Fact(differ / max(1, count), count)}


@torch.no_grad()
def speech_ends(objective: TalkerObjective, items: Sequence[TalkerItem], run: Runtime) -> dict[str, Fact]:
    """Share of utterances whose end alone, asked of the objective (on the run's device), has a loss."""
    batch = collate(items, objective.talker.config).to(run.device)
    assert batch.frames_B is not None
    assert batch.code_labels_BKS is not None
    was_training = objective.training
    objective.eval()
    taught = 0
    for row, frames in enumerate(batch.frames_B.tolist()):
        labels_BKS = torch.full_like(batch.code_labels_BKS, IGNORE)
        labels_BKS[row, 0, frames] = batch.code_labels_BKS[row, 0, frames]
        taught += float(objective(dataclasses.replace(batch, code_labels_BKS=labels_BKS))["book0"].total) > 0
    objective.train(was_training)
    return {"ends_taught": Fact(taught / len(items), len(items))}


def _evenly(count: int, most: int = LOOKED_AT) -> list[int]:
    return sorted(set(np.linspace(0, count - 1, min(count, most)).astype(int).tolist()))
