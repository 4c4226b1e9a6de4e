"""Hearing: speech to text by connectionist temporal classification; the ears that stage omni listens through."""

from __future__ import annotations

import functools
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from muomni.config import is_set
from muomni.data import uses
from muomni.data.readers import Corpus
from muomni.data.sample import Sample
from muomni.data.segments import Segments
from muomni.data.utterances import SpeechAugment, Utterance, Utterances
from muomni.errors import DataError
from muomni.evaluate import exhibits, labels, thresholds
from muomni.evaluate.album import Album
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.metrics import bootstrap, cer, levenshtein, wer
from muomni.infer import ctc
from muomni.infer.transcribe import log_probs
from muomni.media.frames import PAD_S
from muomni.models import store
from muomni.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from muomni.stages.stage import Inputs, Plan, Stage, StageSettings, demand_tasks, loaders
from muomni.tokens.alphabet import Alphabet
from muomni.train.loop import Fitted
from muomni.train.objectives.ctc import Hearing, HearingBatch
from muomni.train.objectives.ctc import collate as collate_tensors


class HearingSettings(StageSettings):
    """Settings of stage hearing.

    word_tasks  tasks whose answers are single words; their share of exact transcripts is a fact of its own, `<task>_exact`
    lm_order    characters of context of the n-gram model that beam search may use; 0: none is kept
    """

    model: AudioEncoderConfig = AudioEncoderConfig()
    max_text_len: int = Field(uses.MAX_TEXT_LEN, ge=1)
    pad_s: float = Field(PAD_S, ge=0)
    max_s: float = Field(uses.MAX_S, gt=0)
    augment: SpeechAugment = SpeechAugment()
    word_tasks: list[str] = ["digit"]
    lm_order: int = Field(6, ge=0)
    unused: ClassVar[dict[str, str]] = {"eval_items": "all held-out items are measured here"}

    learns_as: ClassVar[str] = "hearing"

    def segments(self) -> Segments:
        """Transcripts that are too long are cut between words."""
        return Segments(self.max_text_len)


def collate(items: list[Utterance]) -> HearingBatch:
    """A batch of utterances."""
    mels = [torch.from_numpy(item.mel_FM) for item in items]
    return collate_tensors([item.sample_id for item in items], mels, [item.symbols for item in items])


def build(settings: HearingSettings, inputs: Inputs) -> Plan:
    """Utterances in batches of like length, an encoder with a CTC head, and the transcripts of held-out speakers at the end."""
    corpus = inputs.corpus(settings)
    notes = _left_out(corpus, inputs)
    demand_tasks(corpus, word_tasks=settings.word_tasks if is_set(settings, "word_tasks") else [])
    encoder = inputs.place(AudioEncoder(settings.model))

    def utterances(samples: Sequence[Sample], changes: SpeechAugment | None) -> Utterances:
        return Utterances(
            samples,
            settings.model.mel,
            downsample=settings.model.downsample,
            pad_s=settings.pad_s,
            max_text_len=settings.max_text_len,
            max_s=settings.max_s,
            changes=changes,
        )

    training, held_out = utterances(corpus.train, settings.augment), utterances(corpus.valid, None)
    train, valid = loaders(training, held_out, collate, settings, weights=corpus.weights, lengths=Utterances.lengths)  # type: ignore[arg-type]

    @functools.cache  # the best is kept, and saved, more than once
    def language() -> ctc.CharLM | None:
        texts = [Alphabet().encode(uses.transcript(sample)) for sample in corpus.train]
        return ctc.CharLM.train(texts, size=len(Alphabet()), order=settings.lm_order) if settings.lm_order else None

    def save(folder: Path) -> None:
        store.save(encoder, folder, extra={"pad_s": settings.pad_s})
        if (lm := language()) is not None:
            lm.save(folder / "char_lm.json")

    def measure(_: Fitted, album: Album) -> dict[str, Fact]:
        return transcripts(encoder, held_out, settings, language(), album)

    def checks() -> dict[str, Fact]:
        return labels.infeasible(training)

    words = f"{len(Alphabet())} symbols"
    return Plan(Hearing(encoder, mistakes), train, valid, save, measure, corpus, {".": encoder}, checks, notes, words=words)


def _left_out(corpus: Corpus, inputs: Inputs) -> dict[str, Fact]:
    """How many rows of too long a transcript are not learned from, told in a line; nothing where all are short enough."""
    found = corpus.segments
    if found is None or not found.long:
        return {}
    if inputs.run.is_main:
        print(f"[{inputs.folder.name}] {found.told()}", file=sys.stderr, flush=True)
    rows = len(corpus.train) + len(corpus.valid) - found.pieces + found.long
    return {"left_out": Fact(float(found.left_out.total()), rows, note=found.told())}


def mistakes(log_probs_TC: ctc.FloatArray, symbols: Sequence[int]) -> tuple[int, int, int, int]:
    """Wrong characters, characters, wrong words and words of one utterance's greedy transcript."""
    truth, guess = Alphabet().decode(symbols), Alphabet().decode(ctc.greedy(log_probs_TC))
    words = truth.split()
    return levenshtein(truth, guess), len(truth), levenshtein(words, guess.split()), len(words)


def transcripts(
    encoder: AudioEncoder, held_out: Utterances, settings: HearingSettings, lm: ctc.CharLM | None, album: Album
) -> dict[str, Fact]:
    """Transcripts of held-out utterances, as `muomni transcribe` makes them, against the true ones, by task; refused ones count apart."""
    items: list[tuple[Sample, Utterance]] = []
    for index in range(len(held_out)):
        try:
            items.append((held_out.samples[index], held_out.item(index, np.random.default_rng(0))))
        except DataError:
            continue
    refused = len(held_out) - len(items)
    told: dict[str, list[tuple[str, str]]] = defaultdict(list)
    greedy = []
    seen = []
    for (sample, item), found in zip(items, log_probs(encoder.eval(), [item.mel_FM for _, item in items]), strict=True):
        greedy.append((item.text, Alphabet().decode(ctc.greedy(found))))
        told[sample.task].append((item.text, Alphabet().decode(ctc.beam(found, lm=lm)[0].ids)) if lm else greedy[-1])
        seen.append((sample, *told[sample.task][-1], greedy[-1][1]))
    exhibits.transcripts(album, seen, settings.word_tasks, settings.model.mel.rate_hz)
    facts = {"refused_share": Fact(refused / max(1, len(held_out)), len(held_out))}
    for task, pairs in sorted(told.items()):
        if task in settings.word_tasks:
            commonest = Counter(truth for truth, _ in pairs).most_common(1)[0][1] / len(pairs)
            facts[f"{task}_exact"] = share(sum(truth == guess for truth, guess in pairs), len(pairs), floor=commonest)
        else:
            facts[f"cer_{task}"] = error(pairs)
    sentences = [pair for task, pairs in told.items() if task not in settings.word_tasks for pair in pairs]
    everything = sentences or [pair for pairs in told.values() for pair in pairs]
    if everything:
        facts["cer"] = error(everything)
        facts["cer_greedy"] = error(greedy)
        facts["wer"] = Fact(wer(*map(list, zip(*everything, strict=True))), len(everything), None, 1.0)
    return facts


def error(pairs: list[tuple[str, str]]) -> Fact:
    """Character error rate of (truth, guess) pairs; the floor is 1: without ears the best guess is silence, which misses everything."""
    rates = [levenshtein(truth, guess) / max(1, len(truth)) for truth, guess in pairs]
    return Fact(cer([truth for truth, _ in pairs], [guess for _, guess in pairs]), len(pairs), bootstrap(rates), 1.0)


STAGE = Stage(
    "hearing",
    "speech to text",
    HearingSettings,
    build,
    gates=thresholds.STAGES["hearing"],
)
