"""Talker: text to the codec's codes; the voice in which answers are spoken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from muomni.data import uses
from muomni.data.cache import Cache
from muomni.data.readers import Corpus
from muomni.data.sample import Sample
from muomni.data.utterances import Utterances, spoken, voice_of
from muomni.errors import ConfigError, DataError
from muomni.evaluate import labels, thresholds
from muomni.evaluate.album import Album
from muomni.evaluate.facts import Fact
from muomni.evaluate.listening import free_speech, swap
from muomni.infer.speech import Think, Voice, listen_to
from muomni.media.frames import PAD_S
from muomni.models import pretrained, store
from muomni.models.codec import Codec
from muomni.models.decoder import Decoder
from muomni.models.talker import NO_VOICE, Talker, TalkerConfig
from muomni.stages import initial_weights
from muomni.stages.coded import Coded, most_bytes, shared_cache, thin_out
from muomni.stages.coded import build as build_coded
from muomni.stages.stage import Inputs, Plan, Stage, StageSettings, loaders
from muomni.tokens.alphabet import Alphabet
from muomni.tokens.bpe import Tokenizer
from muomni.train.loop import Fitted
from muomni.train.objectives.talker import TalkerBatch, TalkerItem, TalkerObjective
from muomni.train.optim import freeze

CODED_AT_ONCE = 32
WINDOW, WINDOW_BYTES = 1024, 128 << 20  # samples, and bytes of their spectra, among which equal lengths are looked for
KNOWN = {"model.codebooks": "codec", "model.entries": "codec", "model.condition_width": "Thinker"}  # sizes that a recipe need not give


class TalkerSettings(StageSettings):
    """Settings of stage talker.

    condition      thinker: hidden states of the Thinker's middle layer beside the text tokens; text: the tokens alone
    book_weights   weight of each codebook's loss; None: all 1
    """

    model: TalkerConfig = TalkerConfig(text_vocab=1)
    condition: Literal["thinker", "text"] = "thinker"
    book_weights: list[float] | None = None
    max_s: float = Field(uses.MAX_S, gt=0)

    learns_as: ClassVar[str] = "talker"

    def idle(self) -> dict[str, str]:
        """Beside those of all stages: sizes that codec and Thinker decide, and what belongs to a condition or voices that are not there."""
        found = {name: f"it is that of the {whose}" for name, whose in KNOWN.items()}
        if self.condition == "text":
            found["model.condition_dropout"] = "with condition: text there is nothing to do without"
        if not self.model.num_speakers:
            found["model.speaker_dropout"] = "there is one voice (num_speakers 0)"
        return {**super().idle(), **found}

    @model_validator(mode="after")
    def _reads_what_the_thinker_reads(self) -> Self:
        if self.model.text_units == "char" and self.condition == "thinker":
            raise ValueError("text_units: char needs condition: text; the Thinker reads its own tokens, not characters")
        return self


def build(settings: TalkerSettings, inputs: Inputs) -> Plan:
    """Texts beside the codes of their speech, durations in closed form, a causal model over codes; free speech judged at the end."""
    corpus = inputs.corpus(settings)
    tokenizer = pretrained.open_tokenizer(inputs.needed["thinker"])
    initial_weights.demand_tokenizer(settings.init_from, inputs.base, tokenizer, "thinker")
    codec: Codec = inputs.place(freeze(store.load(inputs.needed["codec"])))  # type: ignore[assignment]
    thinker, layer, think = None, None, None
    if settings.condition == "thinker":
        thinker = inputs.place(Decoder.open(inputs.needed["thinker"]))
        freeze(thinker)
        layer = thinker.config.layers // 2
        think = listen_to(thinker, layer)
    known = {
        "text_vocab": tokenizer.vocab_size,
        "codebooks": codec.config.codebooks,
        "entries": codec.config.entries,
        "condition_width": thinker.config.width if thinker else 0,
    }
    if settings.model.text_vocab not in (1, known["text_vocab"]):
        raise ConfigError(f"model.text_vocab has no effect: it is the tokenizer's, {known['text_vocab']}", hint="text_vocab: 1")
    voices = _voices(settings, corpus)
    known["num_speakers"] = len(voices)
    talker = inputs.place(Talker(settings.model.model_copy(update=known)))
    speaker = partial(_number, {name: number for number, name in enumerate(voices)}) if voices else None
    made_by = [store.digest(codec), store.digest(thinker) if thinker else "", tokenizer.digest, layer, settings.max_s]
    made_by.append(talker.config.text_units)
    coded = {
        name: build_coded(
            inputs.coded, samples, made_by, code(samples, talker, tokenizer, codec, think, settings, inputs.run.device), speaker
        )
        for name, samples in (("train", corpus.train), ("valid", corpus.valid))
    }
    if inputs.coded == shared_cache():
        thin_out(inputs.coded, most_bytes())
    said = coded["train"].items
    pace_error = talker.pace.fit([item.text_ids for item in said.values()], said.num_frames().tolist())
    train, valid = loaders(coded["train"], coded["valid"], TalkerBatch.of, settings, weights=corpus.weights, lengths=Coded.lengths)  # type: ignore[arg-type]
    objective = TalkerObjective(talker, weights=settings.book_weights)

    def save(folder: Path) -> None:
        store.save(talker, folder, extra={"layer": layer, **({"voices": voices} if voices else {})})
        tokenizer.save(folder)
        store.save(codec, folder / "codec")
        if thinker is not None:
            store.save(thinker, folder / "thinker")

    def measure(_: Fitted, album: Album) -> dict[str, Fact]:
        voice = Voice(talker, codec, tokenizer, think=think, names=voices)
        ears = inputs.place(store.load(inputs.needed["hearing"]))
        pad_s = store.extra_of(inputs.needed["hearing"]).get("pad_s", PAD_S)
        held_out = coded["valid"].items
        facts = {"pace_error_frames": Fact(pace_error, len(said)), **swap(objective, [*held_out.values()], inputs.run)}
        return facts | free_speech(voice, ears, pad_s, corpus.valid, held_out, most=settings.eval_items, max_s=settings.max_s, album=album)

    def checks() -> dict[str, Fact]:
        known, run = inputs.place(store.load(inputs.needed["codec"])), inputs.run
        return {
            **labels.stale(coded["train"].items, corpus.train, known, run),
            **labels.speech_ends(objective, list(islice(said.values(), CODED_AT_ONCE)), run),
        }

    words = str(tokenizer) if talker.config.text_units == "bpe" else f"{len(Alphabet())} characters"
    networks: dict[str, torch.nn.Module] = {".": talker, "codec": codec, **({"thinker": thinker} if thinker is not None else {})}
    return Plan(objective, train, valid, save, measure, corpus, networks, checks, words=words)


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
    """The speech of all samples as codes with what the Thinker thinks of the words, by the samples' numbers; of those that can't be read
    the error.

    Batches hold speech of equally many code frames, and texts of equally many tokens: there is no padding that could round a row otherwise
    than alone. They are drawn from windows of samples, whose spectra are what is in memory.

    Takes   device: where codec and Thinker lie. Items lie on the CPU, as those of other datasets do.
    """
    nothing_kept = Cache(0)  # each is read once
    utterances = Utterances(samples, codec.config.mel, downsample=0, pad_s=0.0, max_text_len=0, max_s=settings.max_s, cache=nothing_kept)
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
    found: dict[int, Tensor] = {}
    stride = codec.config.stride_frames
    for numbers in _alike({number: -(-len(mel) // stride) for number, mel in mels.items()}):
        frames_B = torch.tensor([len(mels[number]) for number in numbers])
        mel_BFM = torch.nn.utils.rnn.pad_sequence([mels[number] for number in numbers], batch_first=True)
        codes_BKF = codec.encode(mel_BFM.to(device), frames_B.to(device)).cpu()
        found |= {number: codes_KF.clone() for number, codes_KF in zip(numbers, codes_BKF, strict=True)}
    return found


def _thoughts(ids: Mapping[int, list[int]], think: Think, device: torch.device) -> dict[int, Tensor]:
    """Hidden states (T, D) of texts, by their numbers."""
    found: dict[int, Tensor] = {}
    for numbers in _alike({number: len(row) for number, row in ids.items()}):
        ids_BT = torch.tensor([ids[number] for number in numbers], device=device)
        hidden_BTD = think(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool)).cpu()
        found |= {number: hidden_TD.clone() for number, hidden_TD in zip(numbers, hidden_BTD, strict=True)}
    return found


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
    build,
    needs=("thinker", "codec", "hearing"),
    gates=thresholds.STAGES["talker"],
)
