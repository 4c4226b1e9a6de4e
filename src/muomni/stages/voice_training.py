"""What the stages of voices share: rows of words and delayed codes, their codec, the loss, and how speech is judged;
voice teaches an adapter by it, voice_base all weights."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import Field
from torch import nn

from muomni.data.loader import Loader
from muomni.data.sample import Message, Sample
from muomni.data.voice_rows import VoiceRows, asks_for_whisper
from muomni.errors import DataError
from muomni.evaluate import voice_evaluation
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate
from muomni.evaluate.samples import StageSamples
from muomni.evaluate.thresholds import CAUSAL, LABELS, SIGHT, SPOKEN_CODES, held_out_gap
from muomni.infer.voice import Cloner, tokens_of
from muomni.models import pretrained, store
from muomni.models.codecs import open_codec
from muomni.models.higgs import Higgs
from muomni.models.reference import NetworkReference
from muomni.stages import assumed, coded, voice_codes
from muomni.stages.stage import StageSettings, Training, loaders
from muomni.stages.token_model import place, without_dtype
from muomni.stages.voice_codes import Clips
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.codec import Codec
from muomni.train.loop import Fitted
from muomni.train.objectives.talker import TalkerItem
from muomni.train.objectives.voice import VoiceObjective, collate

REFERENCE = (
    "reference"  # what rows hold besides words and sounds: a voice that is heard before it is spoken in
)
LONGEST_S, POSITIONS = 20.0, 2048  # of assumed data; of the released model
STAGES = ("codec", "voice_base")  # of a recipe, that may be named as codec or base


class SpeechSettings(StageSettings):
    """Settings of the stages of voices.

    codec              what makes codes of sounds, of the model's books: a folder, a hub id, or a stage
    text_loss_weight, audio_loss_weight   of the mean over words, and of the mean over the books' means
    max_seq_len        positions of the longest row; null: what the model allows. A longer row is left out and
                       counted
    """

    codec: NetworkReference = NetworkReference(name="codec")
    text_loss_weight: float = Field(1.0, gt=0)
    audio_loss_weight: float = Field(1.0, gt=0)
    max_seq_len: int | None = Field(None, ge=16)
    gradient_checkpointing: bool = False
    wd: float = Field(0.01, ge=0)
    val_split: float = Field(0.05, ge=0, lt=1)

    learns_as: ClassVar[str] = "voice"

    def idle(self) -> dict[str, str]:
        """Beside those of all stages: the number format of a codec, which has its own."""
        return {**super().idle(), **without_dtype(self.codec, "codec")}

    @property
    def networks(self) -> dict[str, NetworkReference]:
        """The networks that it is given, by the setting that names them."""
        return {"codec": self.codec}

    @property
    def needs(self) -> tuple[str, ...]:
        """Those of them that are stages."""
        named = {each.name for each in self.networks.values()}
        return tuple(name for name in STAGES if name in named)

    def external_digests(self, base: Path) -> dict[str, str]:
        """Digests of those that are not."""
        return {
            name: pretrained.digest(each.locate({}, base))
            for name, each in self.networks.items()
            if each.name not in STAGES
        }

    def external_folders(self, base: Path) -> list[Path]:
        """A codec of another run."""
        return [
            *super().external_folders(base),
            *([] if self.codec.name in STAGES else [self.codec.locate({}, base)]),
        ]


S = TypeVar("S", bound=SpeechSettings)


class SpeechTraining(Training[S]):
    """Conversations as words and delayed codes, to a model of both; speech judged at the end."""

    model: Higgs
    tokenizer: Tokenizer
    codec: Codec

    @abstractmethod
    def open(self, folders: dict[str, Path]) -> tuple[Higgs, Tokenizer, Codec]:
        """The model as it begins, its words and its codec, each placed.

        Takes   folders: of `settings.networks`.
        """

    def adapt(self) -> None:
        """Choose what of the model trains: all of it, where this does nothing."""

    @property
    def is_frozen(self) -> bool:
        """Whether the model's own weights rest, and checkpoints leave them out."""
        return False

    def wire(self) -> tuple[VoiceObjective, dict[str, nn.Module]]:
        """The model, and the codec of its codes."""
        settings, inputs = self.settings, self.inputs
        folders = {name: each.locate(inputs.needed, inputs.base) for name, each in settings.networks.items()}
        self.model, self.tokenizer, self.codec = self.open(folders)
        self.tokens = tokens_of(self.model, self.tokenizer, self.codec)
        self.adapt()
        inputs.place(self.model)
        self.model.checkpointing = settings.gradient_checkpointing
        self.bases = {
            name: each.describe(folders[name], is_stage=each.name in inputs.needed)
            for name, each in settings.networks.items()
        }
        self.words = str(self.tokenizer)
        self.speech = VoiceObjective(
            self.model,
            text_weight=settings.text_loss_weight,
            audio_weight=settings.audio_loss_weight,
            frozen=self.is_frozen,
        )
        return self.speech, {}

    def opened_codec(self, books: int) -> Codec:
        """The codec that the settings name, by so many books, placed."""
        folder = self.settings.codec.locate(self.inputs.needed, self.inputs.base)
        codec = open_codec(folder, books, self.inputs.run.device)
        place(codec, self.inputs)
        return codec

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
        parts = voice_codes.parts_of(self._told(samples))
        alone = [
            Sample(id=str(number), group=str(number), messages=[Message(role="assistant", content=[part])])
            for number, part in enumerate(parts)
        ]
        codec, device = self.codec, self.inputs.run.device

        def code(chosen: Sequence[Sample]) -> Iterator[tuple[int, TalkerItem | DataError]]:
            return voice_codes.encoded([sample.speech[0] for sample in chosen], codec, device)

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
        """The rows against their samples, and the codes against the codec."""
        rows = self.sides["train"]
        # Opened anew: the codec that codes were made with proves nothing about the one that will speak.
        again = self.opened_codec(self.model.books)
        fresh = Cloner(self.model, self.tokenizer, self.tokens, again)
        return {**voice_evaluation.labels(rows), **voice_evaluation.stale(rows, fresh.codes_of)}

    def prepare(self) -> dict[str, Fact]:
        """How many nats held-out speech costs before the first step."""
        before = voice_evaluation.nats(
            self.speech, self.sides["valid"], self.inputs.run, self.settings.eval_items
        )
        return {} if before is None else {"nats_before": before}

    def measure(self, fitted: Fitted, stage_samples: StageSamples) -> dict[str, Fact]:
        """Whether speech follows its text and its reference, whether training helps, and whether speech ends
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
    sizes = getattr(settings, "model", None)  # of a new model
    most = settings.max_seq_len or (POSITIONS if sizes is None else sizes.ctx_len)
    longest_s = min(LONGEST_S, most / 2 / 2 / 25)
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


GATES = (
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
    SPOKEN_CODES,
    *(replace(gate, modality=REFERENCE) for gate in SIGHT),
    Gate(
        "tuned",
        "nats_gain",
        "held-out speech costs as many nats as before: it learned nothing that carries over",
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
)
