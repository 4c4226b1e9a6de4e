"""Hearing: speech to text by connectionist temporal classification; the ears that stage omni listens
through."""

from __future__ import annotations

import functools
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import nn

from muomni.config import is_set
from muomni.data import uses
from muomni.data.loader import Loader
from muomni.data.readers import Corpus
from muomni.data.sample import Sample
from muomni.data.segments import Segments
from muomni.data.source import Source
from muomni.data.utterances import SpeechAugment, Utterance, Utterances
from muomni.errors import DataError
from muomni.evaluate import labels, sample_writers
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.gates import Gate
from muomni.evaluate.metrics import bootstrap, cer, levenshtein, wer
from muomni.evaluate.samples import StageSamples
from muomni.evaluate.thresholds import SIGHT, held_out_gap
from muomni.infer import ctc
from muomni.infer.transcribe import log_probs
from muomni.media.frames import PAD_S
from muomni.models import store
from muomni.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from muomni.stages import assumed
from muomni.stages.stage import BoardRow, Inputs, Stage, StageSettings, Training, demand_tasks, loaders
from muomni.tokens.alphabet import Alphabet
from muomni.train.loop import Fitted
from muomni.train.objectives.ctc import Hearing, HearingBatch
from muomni.train.objectives.ctc import collate as collate_tensors


class HearingSettings(StageSettings):
    """Settings of stage hearing.

    word_tasks  tasks whose answers are single words; their share of exact transcripts is a fact of its own,
                `<task>_exact`
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

    def assuming(self, sources: list[Source]) -> Self:
        """Beside what all stages leave out."""
        return super().assuming(sources).model_copy(update={"lm_order": 0})

    def segments(self) -> Segments:
        """Transcripts that are too long are cut between words."""
        return Segments(self.max_text_len)


def collate(items: list[Utterance]) -> HearingBatch:
    """A batch of utterances."""
    mels = [torch.from_numpy(item.mel_FM) for item in items]
    return collate_tensors([item.sample_id for item in items], mels, [item.symbols for item in items])


class HearingTraining(Training[HearingSettings]):
    """Utterances in batches of like length, an encoder with a CTC head, and the transcripts of held-out
    speakers at the end."""

    words = f"{len(Alphabet())} symbols"

    def wire(self) -> tuple[Hearing, dict[str, nn.Module]]:
        """An encoder with a head of symbols."""
        self.encoder = self.inputs.place(AudioEncoder(self.settings.model))
        return Hearing(self.encoder, mistakes), {".": self.encoder}

    def data(self) -> tuple[Loader[Any, Any], Loader[Any, Any] | None]:
        """Utterances; what is learned from is changed a little each time."""
        settings, corpus = self.settings, self.corpus
        self.notes |= _left_out(corpus, self.inputs)
        demand_tasks(corpus, word_tasks=settings.word_tasks if is_set(settings, "word_tasks") else [])
        self.training, self.held_out = (
            self._utterances(corpus.train, settings.augment),
            self._utterances(corpus.valid, None),
        )
        order: Any = {"weights": corpus.weights, "lengths": Utterances.lengths}
        return loaders(self.training, self.held_out, collate, settings, **order)

    def _utterances(self, samples: Sequence[Sample], changes: SpeechAugment | None) -> Utterances:
        settings = self.settings
        limits: dict[str, Any] = {
            name: getattr(settings, name) for name in ("pad_s", "max_text_len", "max_s")
        }
        return Utterances(
            samples, settings.model.mel, downsample=settings.model.downsample, changes=changes, **limits
        )

    def checks(self) -> dict[str, Fact]:
        """Whether each sound has states enough for its symbols."""
        return labels.infeasible(self.training)

    @functools.cached_property  # the best is kept, and saved, more than once
    def language(self) -> ctc.CharLM | None:
        """The n-gram model of the training transcripts' characters, where one is wanted."""
        texts = [Alphabet().encode(uses.transcript(sample)) for sample in self.corpus.train]
        order = self.settings.lm_order
        return ctc.CharLM.train(texts, size=len(Alphabet()), order=order) if order else None

    def save(self, folder: Path) -> None:
        """The encoder and the model of characters."""
        store.save(self.encoder, folder, extra={"pad_s": self.settings.pad_s})
        if self.language is not None:
            self.language.save(folder / "char_lm.json")

    def measure(self, fitted: Fitted, stage_samples: StageSamples) -> dict[str, Fact]:
        """Character and word error rates of held-out transcripts."""
        return transcripts(self.encoder, self.held_out, self.settings, self.language, stage_samples)


def _left_out(corpus: Corpus, inputs: Inputs) -> dict[str, Fact]:
    """How many rows of too long a transcript are not learned from, told in a line; nothing where all are
    short enough."""
    segments = corpus.segments
    if segments is None or not segments.long:
        return {}
    if inputs.run.is_main:
        print(f"[{inputs.folder.name}] {segments.describe()}", file=sys.stderr, flush=True)
    rows = len(corpus.train) + len(corpus.valid) - segments.pieces + segments.long
    return {"left_out": Fact(float(segments.left_out.total()), rows, note=segments.describe())}


def mistakes(log_probs_TC: ctc.FloatArray, symbols: Sequence[int]) -> tuple[int, int, int, int]:
    """Wrong characters, characters, wrong words and words of one utterance's greedy transcript."""
    truth, guess = Alphabet().decode(symbols), Alphabet().decode(ctc.greedy(log_probs_TC))
    words = truth.split()
    return levenshtein(truth, guess), len(truth), levenshtein(words, guess.split()), len(words)


def transcripts(
    encoder: AudioEncoder,
    held_out: Utterances,
    settings: HearingSettings,
    lm: ctc.CharLM | None,
    stage_samples: StageSamples,
) -> dict[str, Fact]:
    """Transcripts of held-out utterances, as `muomni transcribe` makes them, against the true ones, by task;
    refused ones count apart."""
    items: list[tuple[Sample, Utterance]] = []
    for index in range(len(held_out)):
        try:
            items.append((held_out.samples[index], held_out.item(index, np.random.default_rng(0))))
        except DataError:
            continue
    refused = len(held_out) - len(items)
    pairs_by_task: dict[str, list[tuple[str, str]]] = defaultdict(list)
    greedy = []
    seen = []
    for (sample, item), log_probs_TC in zip(
        items, log_probs(encoder.eval(), [item.mel_FM for _, item in items]), strict=True
    ):
        greedy.append((item.text, Alphabet().decode(ctc.greedy(log_probs_TC))))
        pairs_by_task[sample.task].append(
            (item.text, Alphabet().decode(ctc.beam(log_probs_TC, lm=lm)[0].ids)) if lm else greedy[-1]
        )
        seen.append((sample, *pairs_by_task[sample.task][-1], greedy[-1][1]))
    sample_writers.transcripts(stage_samples, seen, settings.word_tasks, settings.model.mel.rate_hz)
    facts = {"refused_share": Fact(refused / max(1, len(held_out)), len(held_out))}
    for task, pairs in sorted(pairs_by_task.items()):
        if task in settings.word_tasks:
            commonest = Counter(truth for truth, _ in pairs).most_common(1)[0][1] / len(pairs)
            facts[f"{task}_exact"] = share(
                sum(truth == guess for truth, guess in pairs), len(pairs), floor=commonest
            )
        else:
            facts[f"cer_{task}"] = error(pairs)
    sentences = [
        pair for task, pairs in pairs_by_task.items() if task not in settings.word_tasks for pair in pairs
    ]
    everything = sentences or [pair for pairs in pairs_by_task.values() for pair in pairs]
    if everything:
        facts["cer"] = error(everything)
        facts["cer_greedy"] = error(greedy)
        facts["wer"] = Fact(wer(*map(list, zip(*everything, strict=True))), len(everything), None, 1.0)
    return facts


def error(pairs: list[tuple[str, str]]) -> Fact:
    """Character error rate of (truth, guess) pairs; the floor is 1: without ears the best guess is silence,
    which misses everything."""
    rates = [levenshtein(truth, guess) / max(1, len(truth)) for truth, guess in pairs]
    return Fact(
        cer([truth for truth, _ in pairs], [guess for _, guess in pairs]), len(pairs), bootstrap(rates), 1.0
    )


def assume(settings: HearingSettings, context: int, words: list[str], folder: Path) -> list[assumed.Row]:
    """Noise of all lengths, and as many words as one reads in its time."""
    sounds, text = assumed.sounds(folder, settings.max_s - 2 * settings.pad_s), assumed.Text(words)
    rows = []
    for number in range(assumed.BATCHES * settings.batch_size):
        name, length_s = sounds[number % assumed.KINDS]
        words_said = text.take(int(length_s * assumed.WORDS_PER_S))
        most = min(settings.max_text_len, max(1, int(length_s * assumed.CHARACTERS_PER_S)))
        rows.append(assumed.turns([assumed.part("audio", name)], words_said[:most].strip()))
    return rows


STAGE = Stage(
    "hearing",
    "speech to text",
    HearingSettings,
    HearingTraining,
    gates=(
        *SIGHT,
        Gate(
            "infeasible",
            "infeasible_taught",
            "rows whose text can't fit their frames are learned from: CTC gives them a loss of 0",
            at_most=0.0,
            source="SPEC M-B",
        ),
        Gate(
            "cer",
            "cer",
            "held-out speech is not understood: train longer, more speakers, look at the transcripts",
            at_most=0.5,
            source="floor 1: silence",
        ),
        Gate(
            "refused",
            "refused_share",
            "held-out rows were refused: their texts are too long for their sound",
            at_most=0.1,
            source="chosen",
        ),
        held_out_gap(1.0, "nats a symbol"),
    ),
    board=(
        BoardRow("hearing.cer", "cer", 0.06, more_is_better=False),
        BoardRow("hearing.digit_exact", "digit_exact", 0.93),
    ),
    assume=assume,
    anatomy="muomni.report.anatomy:hearing",
)
