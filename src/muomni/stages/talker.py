"""Talker: text to the codec's codes; the voice in which answers are spoken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from muomni.data import uses
from muomni.data.cache import Cache
from muomni.data.loader import Loader
from muomni.data.readers import Corpus
from muomni.data.sample import Sample
from muomni.data.utterances import Utterances, spoken, voice_of
from muomni.errors import ConfigError, DataError
from muomni.evaluate import labels
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate
from muomni.evaluate.samples import StageSamples
from muomni.evaluate.speech_evaluation import free_speech, swap
from muomni.evaluate.thresholds import CAUSAL, SPOKEN_CODES, held_out_gap
from muomni.infer.speech import Think, Voice, listen_to
from muomni.media.frames import PAD_S
from muomni.models import pretrained, store
from muomni.models.codec import Codec
from muomni.models.decoder import Decoder
from muomni.models.talker import NO_VOICE, Talker, TalkerConfig
from muomni.stages import assumed, initial_weights
from muomni.stages.coded import Coded, most_bytes, shared_cache, thin_out
from muomni.stages.coded import build as build_coded
from muomni.stages.stage import BoardRow, Stage, StageSettings, Training, loaders
from muomni.tokens.alphabet import Alphabet
from muomni.tokens.bpe import Tokenizer
from muomni.train.loop import Fitted
from muomni.train.objectives.talker import TalkerItem, TalkerObjective, collate
from muomni.train.optim import freeze

CODED_AT_ONCE = 32
WINDOW, WINDOW_BYTES = (
    1024,
    128 << 20,
)  # samples, and bytes of their spectra, among which equal lengths are looked for
KNOWN = {
    "model.codebooks": "codec",
    "model.codebook_size": "codec",
    "model.condition_width": "Thinker",
}  # sizes that a recipe need not give


class TalkerSettings(StageSettings):
    """Settings of stage talker.

    condition         thinker: hidden states of the Thinker's middle layer beside the text tokens; text: the
                      tokens alone
    codebook_weights  weight of each codebook's loss; None: all 1
    """

    model: TalkerConfig = TalkerConfig(text_vocab=1)
    condition: Literal["thinker", "text"] = "thinker"
    codebook_weights: list[float] | None = None
    max_s: float = Field(uses.MAX_S, gt=0)

    learns_as: ClassVar[str] = "talker"

    def idle(self) -> dict[str, str]:
        """Beside those of all stages: sizes that codec and Thinker decide, and what belongs to a condition or
        voices that are not there."""
        idle_options = {name: f"it is that of the {whose}" for name, whose in KNOWN.items()}
        if self.condition == "text":
            idle_options["model.condition_dropout"] = "with condition: text there is nothing to do without"
        if not self.model.num_speakers:
            idle_options["model.speaker_dropout"] = "there is one voice (num_speakers 0)"
        return {**super().idle(), **idle_options}

    @model_validator(mode="after")
    def _reads_what_the_thinker_reads(self) -> Self:
        if self.model.text_units == "char" and self.condition == "thinker":
            raise ValueError(
                "text_units: char needs condition: text; the Thinker reads its own tokens, not characters"
            )
        return self


class TalkerTraining(Training[TalkerSettings]):
    """Texts beside the codes of their speech, durations in closed form, a causal model over codes; free
    speech judged at the end."""

    def vocabulary(self) -> None:
        """The Thinker's tokenizer, and the names of the voices."""
        settings, inputs = self.settings, self.inputs
        self.tokenizer = pretrained.open_tokenizer(inputs.needed["thinker"])
        initial_weights.demand_tokenizer(settings.init_from, inputs.base, self.tokenizer, "thinker")
        if settings.model.text_vocab not in (1, self.tokenizer.vocab_size):
            message = f"model.text_vocab has no effect: it is the tokenizer's, {self.tokenizer.vocab_size}"
            raise ConfigError(message, hint="text_vocab: 1")
        self.voices = _voices(settings, self.corpus)
        self.words = (
            str(self.tokenizer) if settings.model.text_units == "bpe" else f"{len(Alphabet())} characters"
        )

    def wire(self) -> tuple[TalkerObjective, dict[str, torch.nn.Module]]:
        """The Talker, of the sizes of the codec that it writes for and of the Thinker that it listens to."""
        settings, place, needed = self.settings, self.inputs.place, self.inputs.needed
        self.codec: Codec = place(freeze(store.load(needed["codec"])))  # type: ignore[assignment]
        self.thinker: Decoder | None = None
        self.layer: int | None = None
        self.think: Think | None = None
        if settings.condition == "thinker":
            self.thinker = place(Decoder.open(needed["thinker"]))
            freeze(self.thinker)
            self.layer = self.thinker.config.layers // 2
            self.think = listen_to(self.thinker, self.layer)
        sizes = {
            "text_vocab": self.tokenizer.vocab_size,
            "codebooks": self.codec.config.codebooks,
            "codebook_size": self.codec.config.codebook_size,
            "condition_width": self.thinker.config.width if self.thinker else 0,
            "num_speakers": len(self.voices),
        }
        self.talker = place(Talker(settings.model.model_copy(update=sizes)))
        networks: dict[str, torch.nn.Module] = {".": self.talker, "codec": self.codec}
        if self.thinker is not None:
            networks["thinker"] = self.thinker
        self.speech = TalkerObjective(self.talker, weights=settings.codebook_weights)
        return self.speech, networks

    def data(self) -> tuple[Loader[Any, Any], Loader[Any, Any] | None]:
        """All speech as codes, made once and kept."""
        corpus, thinker, cache = self.corpus, self.thinker, self.inputs.coded
        key: list[Any] = [
            store.digest(self.codec),
            store.digest(thinker) if thinker else "",
            self.tokenizer.digest,
            self.layer,
        ]
        key += [self.settings.max_s, self.talker.config.text_units]
        self.coded, self.held_out = (self._coded(side, key) for side in (corpus.train, corpus.valid))
        if cache == shared_cache():
            thin_out(cache, most_bytes())
        order: Any = {"weights": corpus.weights, "lengths": Coded.lengths}
        return loaders(
            self.coded, self.held_out, partial(collate, config=self.talker.config), self.settings, **order
        )

    def _coded(self, samples: Sequence[Sample], key: list[Any]) -> Coded:
        speaker = (
            partial(_number, {name: number for number, name in enumerate(self.voices)})
            if self.voices
            else None
        )
        parts = (self.talker, self.tokenizer, self.codec, self.think, self.settings, self.inputs.run.device)
        return build_coded(self.inputs.coded, samples, key, lambda chosen: code(chosen, *parts), speaker)

    def prepare(self) -> dict[str, Fact]:
        """How long each token is spoken, in closed form."""
        items = self.coded.items
        error = self.talker.pace.fit([item.text_ids for item in items.values()], items.num_frames().tolist())
        self.pace_error = Fact(error, len(items))
        return {}

    def checks(self) -> dict[str, Fact]:
        """Whether the codes that were kept are those of this codec, and whether speech ends where it is
        taught to."""
        codec, run, items = (
            self.inputs.place(store.load(self.inputs.needed["codec"])),
            self.inputs.run,
            self.coded.items,
        )
        return {
            **labels.stale(items, self.corpus.train, codec, run),
            **labels.speech_ends(self.speech, list(islice(items.values(), CODED_AT_ONCE)), run),
        }

    def save(self, folder: Path) -> None:
        """The Talker with all that it needs to speak."""
        voices = {"voices": self.voices} if self.voices else {}
        store.save(self.talker, folder, extra={"layer": self.layer, **voices})
        self.tokenizer.save(folder)
        store.save(self.codec, folder / "codec")
        if self.thinker is not None:
            store.save(self.thinker, folder / "thinker")

    def measure(self, fitted: Fitted, stage_samples: StageSamples) -> dict[str, Fact]:
        """Whether its codes follow the text, and how well our own ears understand what it says freely."""
        inputs, held_out = self.inputs, self.held_out.items
        voice = Voice(self.talker, self.codec, self.tokenizer, think=self.think, names=self.voices)
        ears = inputs.place(store.load(inputs.needed["hearing"]))
        pad_s = store.extra_of(inputs.needed["hearing"]).get("pad_s", PAD_S)
        facts = {"pace_error_frames": self.pace_error, **swap(self.speech, [*held_out.values()], inputs.run)}
        limits: dict[str, Any] = {
            "most": self.settings.eval_items,
            "max_s": self.settings.max_s,
            "stage_samples": stage_samples,
        }
        return facts | free_speech(voice, ears, pad_s, self.corpus.valid, held_out, **limits)


def _voices(settings: TalkerSettings, corpus: Corpus) -> list[str]:
    """The names of the voices that get a row each, in order; none where the Talker has one voice.

    Raises  ConfigError where the data name no speakers, or more than there is room for.
    """
    most = settings.model.num_speakers
    if not most:
        return []
    names = [voice_of(sample) for sample in corpus.train]
    voices = sorted({name for name in names if name is not None})
    if len(voices) < 2 or None in names:
        raise ConfigError(
            f"talker.model.num_speakers: {most} voices are asked for, and the data name {len(voices)}; {names.count(None)} rows name none",
            hint="name them (`speaker` of a sound, or `group`), or leave num_speakers at 0",
        )
    if len(voices) > most:
        raise ConfigError(
            f"talker.model.num_speakers: the data have {len(voices)} speakers, there is room for {most}",
            hint=f"num_speakers: {len(voices)}",
        )
    return voices


def _number(rows: Mapping[str, int], sample: Sample) -> int:
    """The row of a sample's voice; held-out speakers have none."""
    return rows.get(voice_of(sample) or "", NO_VOICE)


def code(
    samples: Sequence[Sample],
    talker: Talker,
    tokenizer: Tokenizer,
    codec: Codec,
    think: Think | None,
    settings: TalkerSettings,
    device: torch.device,
) -> Iterator[tuple[int, TalkerItem | DataError]]:
    """The speech of all samples as codes with what the Thinker thinks of the words, by the samples' numbers;
    of those that can't be read the error.

    Batches hold speech of equally many code frames, and texts of equally many tokens: there is no padding
    that could round a row otherwise than alone. They are drawn from windows of samples, whose spectra are
    what is in memory.

    Takes   device: where codec and Thinker lie. Items lie on the CPU, as those of other datasets do.
    """
    nothing_kept = Cache(0)  # each is read once
    utterances = Utterances(
        samples,
        codec.config.mel,
        downsample=0,
        pad_s=0.0,
        max_text_len=0,
        max_s=settings.max_s,
        cache=nothing_kept,
    )
    window: dict[int, Tensor | DataError] = {}
    held_bytes = 0
    for index in range(len(samples)):
        try:
            mel_FM = torch.from_numpy(utterances.item(index, np.random.default_rng(0)).mel_FM)
            window[index] = mel_FM
            held_bytes += mel_FM.numel() * mel_FM.element_size()
        except DataError as error:
            window[index] = error
        if len(window) < WINDOW and held_bytes < WINDOW_BYTES and index + 1 < len(samples):
            continue
        mels = {number: mel for number, mel in window.items() if isinstance(mel, Tensor)}
        ids = {number: talker.text_ids(spoken(samples[number])[1], tokenizer) for number in mels}
        codes = _codes(mels, codec, device)
        hidden = {} if think is None else _thoughts(ids, think, device)
        for number, mel in window.items():
            if isinstance(mel, DataError):
                yield number, mel
            else:
                yield number, TalkerItem(samples[number].id, ids[number], codes[number], hidden.get(number))
        window, held_bytes = {}, 0


def _codes(mels: Mapping[int, Tensor], codec: Codec, device: torch.device) -> dict[int, Tensor]:
    """Codes (K, F) of spectra (frames, M), by their numbers."""
    codes: dict[int, Tensor] = {}
    stride = codec.config.stride_frames
    for numbers in _alike({number: -(-len(mel) // stride) for number, mel in mels.items()}):
        frames_B = torch.tensor([len(mels[number]) for number in numbers])
        mel_BFM = torch.nn.utils.rnn.pad_sequence([mels[number] for number in numbers], batch_first=True)
        codes_BKF = codec.encode(mel_BFM.to(device), frames_B.to(device)).cpu()
        codes |= {number: codes_KF.clone() for number, codes_KF in zip(numbers, codes_BKF, strict=True)}
    return codes


def _thoughts(ids: Mapping[int, list[int]], think: Think, device: torch.device) -> dict[int, Tensor]:
    """Hidden states (T, D) of texts, by their numbers."""
    hidden: dict[int, Tensor] = {}
    for numbers in _alike({number: len(row) for number, row in ids.items()}):
        ids_BT = torch.tensor([ids[number] for number in numbers], device=device)
        hidden_BTD = think(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool)).cpu()
        hidden |= {number: hidden_TD.clone() for number, hidden_TD in zip(numbers, hidden_BTD, strict=True)}
    return hidden


def _alike(lengths: Mapping[int, int]) -> Iterator[list[int]]:
    """Numbers in batches of equal lengths."""
    by_length: dict[int, list[int]] = {}
    for number, length in lengths.items():
        by_length.setdefault(length, []).append(number)
    for numbers in by_length.values():
        yield from (numbers[first : first + CODED_AT_ONCE] for first in range(0, len(numbers), CODED_AT_ONCE))


STAGE = Stage(
    "talker",
    "speech from text",
    TalkerSettings,
    TalkerTraining,
    needs=("thinker", "codec", "hearing"),
    gates=(
        *CAUSAL,
        Gate(
            "ends_taught",
            "ends_taught",
            "the symbol that ends speech is not learned: it will not stop",
            at_least=1.0,
            source="reference muomni B",
        ),
        SPOKEN_CODES,
        Gate(
            "text_matters",
            "text_swap_gap_nats",
            "it speaks without reading: train longer, check that text reaches the frames",
            at_least=0.1,
            source="SPEC M-D",
        ),
        Gate(
            "text_sure",
            "text_swap_gap_nats",
            "it speaks without reading",
            more_than=0.0,
            source="SPEC M-D: paired bootstrap and sign test, 95 %",
            by_ci=True,
        ),
        Gate("text_wins", "text_swap_win_rate", "it speaks without reading", at_least=0.8, source="SPEC M-E"),
        Gate(
            "own_cer",
            "own_cer",
            "its speech is not understood: train longer, look at the codec's own CER first",
            at_most=0.5,
            source="floor: copy synthesis",
        ),
        Gate(
            "own_cer_cost",
            "own_cer_above_copy",
            "its speech is far less clear than the codec allows: train longer",
            at_most=0.45,
            source="SPEC M-D: the copy-synthesis ceiling",
        ),
        Gate(
            "stops",
            "stop_within_20pct",
            "it does not know when to end: check the end symbol's labels",
            at_least=0.8,
            source="SPEC 7 asks 0.95 of the quickstart",
        ),
        Gate(
            "ends",
            "ended",
            "it does not end by itself: check the end symbol's labels",
            at_least=0.9,
            source="SPEC M-D",
        ),
        held_out_gap(2.0, "nats a frame"),
    ),
    enough=256,
    board=(
        BoardRow("codec.own_cer", "codec_own_cer", 0.03, more_is_better=False),
        BoardRow("talker.own_cer", "own_cer", 0.12, more_is_better=False),
        BoardRow("talker.stop_within_20pct", "stop_within_20pct", 0.95),
        BoardRow("talker.rtf", "rtf", 0.5, more_is_better=False),
    ),
    assume=assumed.speech,
    anatomy="muomni.report.anatomy:talker",
)
