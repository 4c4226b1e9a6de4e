"""Voice: LoRA on a language model of words and speech codes (Higgs Audio v2) learns the voices of
recordings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from muomni import files
from muomni.data.loader import Loader
from muomni.data.sample import AudioPart, Message, Sample
from muomni.data.tokenized.encode import BATCH_NUMBERS, HELD_BYTES, read
from muomni.data.voice_rows import VoiceRows, asks_for_whisper
from muomni.errors import DataError, ShapeError
from muomni.evaluate import voice_evaluation
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate
from muomni.evaluate.samples import StageSamples
from muomni.evaluate.thresholds import CAUSAL, LABELS, SIGHT, held_out_gap
from muomni.infer.voice import NOTE, Cloner, tokens_of
from muomni.models import lora, pretrained, store
from muomni.models.codecs import open_codec
from muomni.models.higgs import Higgs
from muomni.models.lora import LoraSettings
from muomni.models.reference import NetworkReference
from muomni.stages import assumed, coded
from muomni.stages.stage import BoardRow, Stage, StageSettings, Training, loaders
from muomni.stages.token_model import place, without_dtype
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.codec import Codec, encode_by_length
from muomni.train.loop import Fitted
from muomni.train.objectives.talker import TalkerItem
from muomni.train.objectives.voice import VoiceObjective, collate

HIGGS = "bosonai/higgs-audio-v2-generation-3B-base"
REFERENCE = (
    "reference"  # what rows hold besides words and sounds: a voice that is heard before it is spoken in
)
ADAPTER = lora.NAMES
LONGEST_S, POSITIONS = 20.0, 2048  # of assumed data; of the released model
STAGES = ("codec",)  # of a recipe, that may be named as the codec
Group = Literal["attn", "text_ffn", "audio_ffn"]
Place = tuple[str, float | None, float | None, int | None]


class VoiceLora(BaseModel):
    """Rank, strength and groups of the adapter (SPEC H5).

    groups  attn: attention; text_ffn, audio_ffn: what words and codes go through
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    r: int = Field(16, gt=0)
    alpha: int = Field(32, gt=0, description="the delta is alpha / r * B A")
    dropout: float = Field(0.05, ge=0, lt=1, description="on what A reads, in training mode")
    groups: list[Group] = Field(["attn", "text_ffn", "audio_ffn"], min_length=1)


class VoiceSettings(StageSettings):
    """Settings of stage voice.

    base               the model of words and codes, frozen: a folder that transformers wrote, or a hub id
    codec              what makes codes of sounds, of the model's books: a folder, a hub id, or a stage
    text_loss_weight, audio_loss_weight   of the mean over words, and of the mean over the books' means
    max_seq_len        positions of the longest row; null: what the model allows. A longer row is left out and
                       counted
    """

    base: NetworkReference = NetworkReference(name=HIGGS)
    codec: NetworkReference = NetworkReference(name="codec")
    lora: VoiceLora = VoiceLora()
    text_loss_weight: float = Field(1.0, gt=0)
    audio_loss_weight: float = Field(1.0, gt=0)
    max_seq_len: int | None = Field(None, ge=16)
    gradient_checkpointing: bool = False
    train: list[str] = [ADAPTER]
    lr: float = Field(2e-4, gt=0)
    wd: float = Field(0.01, ge=0)
    val_split: float = Field(0.05, ge=0, lt=1)

    learns_as: ClassVar[str] = "voice"

    def idle(self) -> dict[str, str]:
        """Beside those of all stages: the number format of a codec, which has its own."""
        return {**super().idle(), **without_dtype(self.codec, "codec")}

    @property
    def needs(self) -> tuple[str, ...]:
        """The codec, where it is a stage."""
        return tuple(name for name in STAGES if name == self.codec.name)

    def stands_on(self, needed: dict[str, Path], base: Path) -> Path | None:
        """The model's."""
        return self.base.locate(needed, base)

    def external_digests(self, base: Path) -> dict[str, str]:
        """Digests of model and codec."""
        return {
            name: pretrained.digest(each.locate({}, base))
            for name, each in (("base", self.base), ("codec", self.codec))
            if each.name not in STAGES
        }

    def external_folders(self, base: Path) -> list[Path]:
        """A codec of another run."""
        return [
            *super().external_folders(base),
            *([] if self.codec.name in STAGES else [self.codec.locate({}, base)]),
        ]


class Clips:
    """The codes of sounds, made once and kept on disk (`coded`); a sound that could not be read raises why."""

    def __init__(self, parts: Sequence[AudioPart], items: coded.Items) -> None:
        self.places = {place_of(part): number for number, part in enumerate(parts)}
        self.items = items

    def __call__(self, part: AudioPart) -> Tensor:
        """Codes (K, F) int64; raises DataError."""
        number = self.places[place_of(part)]
        if number in self.items.refused:
            raise self.items.refused[number]
        return self.items[number].codes_KF


def place_of(part: AudioPart) -> Place:
    """What names a stretch of a sound."""
    return part.path, part.start, part.end, part.channel


def parts_of(samples: Iterable[Sample]) -> list[AudioPart]:
    """All sounds of samples, each once."""
    found: dict[Place, AudioPart] = {}
    for sample in samples:
        for part in (*sample.audios, *sample.speech):
            found.setdefault(place_of(part), part)
    return list(found.values())


def encoded(
    parts: Sequence[AudioPart], codec: Codec, device: torch.device
) -> Iterator[tuple[int, TalkerItem | DataError]]:
    """The codes of sounds by their numbers, in rising order; of those that can't be read the error.

    Sounds of one window that are equally long share a batch, as shards' do; none is padded to another's length.
    """
    window: dict[int, Tensor | DataError] = {}
    held = 0
    rates: Counter[int] = Counter()  # of the files, in Hz
    for number, part in enumerate(parts):
        try:
            medium = read(part, codec)
            window[number], held = medium.values, held + medium.values.nbytes
            rates[int(medium.about["file_rate_hz"])] += 1
        except DataError as error:
            window[number] = error
        if held < HELD_BYTES and number + 1 < len(parts):
            continue
        yield from _coded(window, codec, device)
        window, held = {}, 0
    if resampled := describe_resampled(rates, codec.sample_rate_hz):
        store.say_once(resampled)


def describe_resampled(rates: Mapping[int, int], rate_hz: int | None) -> str:
    """How many sounds are not of the rate that a codec takes, a line; "" where all are.

    Takes   rates: sounds by the rate of their file, in Hz.
    """
    others = {rate: count for rate, count in sorted(rates.items()) if rate != rate_hz}
    if not others:
        return ""
    named = ", ".join(f"{count} of {rate} Hz" for rate, count in others.items())
    lower = sum(count for rate, count in others.items() if rate_hz is not None and rate < rate_hz)
    low = f"; {lower} of a lower rate have nothing above half of it" if lower else ""
    return (
        f"{sum(others.values())} of {sum(rates.values())} sounds are resampled to {rate_hz} Hz: {named}{low}"
    )


def _coded(
    window: Mapping[int, Tensor | DataError], codec: Codec, device: torch.device
) -> Iterator[tuple[int, TalkerItem | DataError]]:
    """The codes of a window's waves; one that its codec refuses is found by encoding each alone."""
    waves = {place: wave_S for place, wave_S in window.items() if isinstance(wave_S, Tensor)}
    longest = max((wave_S.numel() for wave_S in waves.values()), default=1)
    found: dict[int, Tensor | DataError] = {}
    with torch.inference_mode():
        moved = [wave_S.to(device) for wave_S in waves.values()]
        try:
            codes = encode_by_length(codec, moved, most=max(1, BATCH_NUMBERS // longest))
            found.update(zip(waves, codes, strict=True))
        except (DataError, ShapeError):
            for place, wave_S in zip(waves, moved, strict=True):
                try:
                    (found[place],) = codec.encode_many([wave_S])
                except (DataError, ShapeError) as error:
                    found[place] = DataError("undecodable", f"sound of {len(wave_S)} samples: {error}")
    for place, wave in window.items():
        codes_KF = found.get(place, wave)
        yield place, codes_KF if isinstance(codes_KF, DataError) else TalkerItem("", [], codes_KF.cpu())


class VoiceTraining(Training[VoiceSettings]):
    """Conversations as words and delayed codes, an adapter on a frozen model; speech judged at the end."""

    def wire(self) -> tuple[VoiceObjective, dict[str, nn.Module]]:
        """The model with its adapter, and the codec of its codes."""
        settings, inputs = self.settings, self.inputs
        folders = {
            name: each.locate(inputs.needed, inputs.base)
            for name, each in (("base", settings.base), ("codec", settings.codec))
        }
        device = inputs.run.device
        self.model = inputs.place(
            Higgs.open(folders["base"], device=device, dtype=settings.base.dtype_on(device))
        )
        self.tokenizer = Tokenizer.load(folders["base"])
        self.codec = open_codec(folders["codec"], self.model.books, device)
        place(self.codec, inputs)
        self.tokens = tokens_of(self.model, self.tokenizer, self.codec)
        chosen = settings.lora
        adapter = LoraSettings(
            r=chosen.r,
            alpha=chosen.alpha,
            dropout=chosen.dropout,
            targets=self.model.targets(list(chosen.groups)),
        )
        lora.attach(self.model, adapter)
        inputs.place(self.model)
        self.model.checkpointing = settings.gradient_checkpointing
        self.bases = {
            name: each.describe(folders[name], is_stage=each.name in inputs.needed)
            for name, each in (("base", settings.base), ("codec", settings.codec))
        }
        self.words = str(self.tokenizer)
        self.speech = VoiceObjective(
            self.model,
            text_weight=settings.text_loss_weight,
            audio_weight=settings.audio_loss_weight,
        )
        return self.speech, {}

    def data(self) -> tuple[Loader[Any, Any], Loader[Any, Any] | None]:
        """The conversations, their sounds as codes, made once and kept."""
        corpus, settings = self.corpus, self.settings
        self.sides = {
            side: self._rows(samples) for side, samples in (("train", corpus.train), ("valid", corpus.valid))
        }
        if self.inputs.coded == coded.shared_cache():
            coded.thin_out(self.inputs.coded, coded.most_bytes())
        order: Any = {"weights": corpus.weights, "lengths": VoiceRows.lengths}
        gather = partial(collate, pad=self.tokens.pad)
        return loaders(self.sides["train"], self.sides["valid"], gather, settings, **order)

    def _rows(self, samples: Sequence[Sample]) -> VoiceRows:
        parts = parts_of(self._told(samples))
        alone = [
            Sample(id=str(number), group=str(number), messages=[Message(role="assistant", content=[part])])
            for number, part in enumerate(parts)
        ]
        codec, device = self.codec, self.inputs.run.device

        def code(chosen: Sequence[Sample]) -> Iterator[tuple[int, TalkerItem | DataError]]:
            return encoded([sample.speech[0] for sample in chosen], codec, device)

        clips = coded.build(self.inputs.coded, alone, ["voice", codec.digest], code)
        most = min(self.settings.max_seq_len or self.model.ctx_len, self.model.ctx_len)
        return VoiceRows(samples, self.tokenizer, self.tokens, Clips(parts, clips.items), most)

    def _told(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples; a line says how many of them ask for Whisper conditioning."""
        keys: Counter[str] = Counter()
        for sample in samples:
            if key := asks_for_whisper(sample):
                keys[key] += 1
            yield sample
        if keys:
            store.say_once(
                f"{self.inputs.folder.name}: {keys.total()} rows ask for Whisper conditioning ({', '.join(sorted(keys))}): "
                "it is off, references are heard by their codes alone"
            )

    @property
    def modalities(self) -> set[str]:
        """Beside words and sounds: whether held-out rows hear sounds of several voices."""
        heard = [sample for sample in self.corpus.valid if voice_evaluation.heard(sample) is not None]
        voices = {voice_evaluation.voice_of(sample) for sample in heard}
        return super().modalities | ({REFERENCE} if len(voices) > 1 else set())

    @property
    def cloner(self) -> Cloner:
        """What speaks by the weights as they are."""
        return Cloner(self.model, self.tokenizer, self.tokens, self.codec)

    def checks(self) -> dict[str, Fact]:
        """The adapter against its groups, the rows against their samples, and the codes against the codec."""
        rows = self.sides["train"]
        # Opened anew: the codec that codes were made with proves nothing about the one that will speak.
        again = open_codec(
            self.settings.codec.locate(self.inputs.needed, self.inputs.base),
            self.model.books,
            self.inputs.run.device,
        )
        place(again, self.inputs)
        fresh = Cloner(self.model, self.tokenizer, self.tokens, again)
        return {
            **voice_evaluation.adapter(self.model, self.settings.lora.groups),
            **voice_evaluation.labels(rows),
            **voice_evaluation.stale(rows, fresh.codes_of),
        }

    def prepare(self) -> dict[str, Fact]:
        """How many nats held-out speech costs the untuned model."""
        before = voice_evaluation.nats(
            self.speech, self.sides["valid"], self.inputs.run, self.settings.eval_items
        )
        return {} if before is None else {"nats_before": before}

    def save(self, folder: Path) -> None:
        """The adapter as PEFT has it, and on what it stands."""
        lora.save(self.model, folder, self.bases["base"]["name"])
        files.write_json(folder / NOTE, self.bases)

    def changed(self, folder: Path) -> list[str]:
        """Of the adapter."""
        return super().changed(folder) + lora.changed(self.model, folder)

    def measure(self, fitted: Fitted, stage_samples: StageSamples) -> dict[str, Fact]:
        """Whether speech follows its text and its reference, whether the adapter helps, and whether speech ends
        by itself."""
        self.model.eval()
        rows, run, most = self.sides["valid"], self.inputs.run, self.settings.eval_items
        facts = voice_evaluation.swaps(self.speech, rows, run, most)
        now = voice_evaluation.nats(self.speech, rows, run, most)
        if now is not None:
            facts["nats"] = now
            if (before := self.notes.get("nats_before")) is not None:
                facts["nats_gain"] = Fact(before.value - now.value, now.n)
        return facts | voice_evaluation.speech(self.cloner, rows, most, stage_samples)


def assume(settings: Any, context: int, words: list[str], folder: Path) -> list[assumed.Row]:
    """A reference turn and a target each, of noise; the longest two together take half of the positions, at 25
    a second."""
    longest_s = min(LONGEST_S, (settings.max_seq_len or POSITIONS) / 2 / 2 / 25)
    noises, text = assumed.sounds(folder, longest_s), assumed.Text(words)
    rows = []
    for number in range(2 * settings.batch_size):  # few: all of them are encoded before the stage begins
        (heard, _), (said, length_s) = noises[0], noises[number % assumed.KINDS]
        spoken = text.take(int(length_s * assumed.WORDS_PER_S))
        turns = [
            *assumed.turns(text.take(8), [assumed.part("audio", heard)])["messages"],
            *assumed.turns(spoken, [assumed.part("audio", said)])["messages"],
        ]
        rows.append({"messages": turns, "start_index": 3})
    return rows


STAGE = Stage(
    "voice",
    "the voices of recordings, to a model that speaks in the voice of a reference",
    VoiceSettings,
    VoiceTraining,
    gates=(
        *CAUSAL,
        *LABELS,
        Gate(
            "filled",
            "unfilled",
            "a place of a sound holds no codes, or codes stand where nothing reads them: the sound is not heard",
            at_most=0.0,
            source="SPEC H8, reference higgs B8",
        ),
        Gate(
            "delays",
            "misplaced_codes",
            "codes do not stand in the step in which they are said: a book is delayed by too much or too little, and "
            "what is spoken is decoded from the wrong frames",
            at_most=0.0,
            source="SPEC H2: book k of frame f in step k + 1 + f",
        ),
        Gate(
            "adapted",
            "adapter_gaps",
            "the adapter does not stand on the groups that were asked for, and on them alone: a path learns nothing",
            at_most=0.0,
            source="SPEC H5",
        ),
        Gate(
            "codes",
            "stale_codes",
            "the codes it learns from are not those of the codec it will speak through: they are stale",
            at_most=0.01,
            source="SPEC H2, DESIGN 5",
        ),
        *(replace(gate, modality=REFERENCE) for gate in SIGHT),
        Gate(
            "tuned",
            "nats_gain",
            "held-out speech costs as many nats as before: the adapter learned nothing that carries over",
            more_than=0.0,
            source="SPEC G1: baseline before",
        ),
        Gate(
            "text_wins",
            "text_swap_win_rate",
            "it speaks without reading: another text makes the speech no less likely",
            at_least=0.8,
            source="SPEC M-E",
        ),
        Gate(
            "reference_wins",
            "reference_swap_win_rate",
            "it ignores the reference voice: another voice's reference makes the speech no less likely",
            at_least=0.8,
            source="issue 17: win rate",
            modality=REFERENCE,
        ),
        Gate(
            "ends",
            "ended",
            "it does not end by itself: check the end symbols' labels, train longer",
            at_least=0.95,
            source="issue 17: 95 %",
        ),
        held_out_gap(2.0, "nats a code"),
    ),
    enough=256,
    board=(
        BoardRow("voice.stop_within_20pct", "stop_within_20pct", 0.95),
        BoardRow("voice.reference_wins", "reference_swap_win_rate", 0.8),
    ),
    assume=assume,
    anatomy="muomni.report.anatomy:voice",
)
