"""Talker: text to the codec's codes; the voice in which answers are spoken."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from muomni.data.sample import Sample
from muomni.data.utterances import Utterances, spoken
from muomni.errors import DataError
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.gates import Gate
from muomni.evaluate.metrics import bootstrap, cer, levenshtein
from muomni.infer import speech
from muomni.infer.speech import Voice
from muomni.infer.transcribe import transcribe
from muomni.models import store
from muomni.models.codec import Codec
from muomni.models.decoder import Decoder
from muomni.models.talker import Talker, TalkerConfig
from muomni.stages.stage import Inputs, Plan, Stage, StageSettings, loaders
from muomni.tokens.bpe import Tokenizer
from muomni.train.loop import Fitted
from muomni.train.objectives.talker import TalkerBatch, TalkerItem, TalkerObjective
from muomni.train.optim import freeze

CODED_AT_ONCE = 32


class TalkerSettings(StageSettings):
    """Settings of stage talker.

    condition      thinker: hidden states of the Thinker's middle layer beside the text tokens; text: the tokens alone
    book_weights   weight of each codebook's loss; None: all 1
    """

    model: TalkerConfig = TalkerConfig(text_vocab=1)
    condition: Literal["thinker", "text"] = "thinker"
    book_weights: list[float] | None = None
    max_s: float = Field(20.0, gt=0)


class Mind:
    """The frozen Thinker that a Talker listens to: hidden states of its middle layer at the text's tokens."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.layer = decoder.config.layers // 2

    @torch.no_grad()
    def __call__(self, text_ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
        """(B,T) ids -> (B,T,D)."""
        return self.decoder.hidden(self.decoder.embed(text_ids_BT), keep_BT=keep_BT, layer=self.layer).float()


class Coded:
    """Utterances as codes and text ids, made once: a dataset of `TalkerItem`s. Unreadable ones raise in their turn, to be counted."""

    def __init__(self, samples: list[Sample], items: dict[int, TalkerItem], refused: dict[int, DataError]) -> None:
        self.samples, self.items, self.refused = samples, items, refused

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """The sample's id."""
        return self.samples[index].id

    def item(self, index: int, rng: np.random.Generator) -> TalkerItem:
        """One utterance; raises DataError."""
        if index in self.refused:
            raise self.refused[index]
        return self.items[index]

    def lengths(self) -> list[int]:
        """Code frames of each."""
        return [self.items[i].codes_KF.shape[1] if i in self.items else 0 for i in range(len(self))]


def build(settings: TalkerSettings, inputs: Inputs) -> Plan:
    """Texts beside the codes of their speech, durations in closed form, a causal model over codes; free speech judged at the end."""
    corpus = inputs.corpus(settings)
    tokenizer = Tokenizer.load(inputs.needed["thinker"])
    codec: Codec = freeze(store.load(inputs.needed["codec"]))  # type: ignore[assignment]
    mind = Mind(freeze(Decoder.open(inputs.needed["thinker"]))) if settings.condition == "thinker" else None  # type: ignore[arg-type]
    known = {
        "text_vocab": tokenizer.vocab_size,
        "codebooks": codec.config.codebooks,
        "entries": codec.config.entries,
        "condition_width": mind.decoder.config.width if mind else 0,
    }
    talker = Talker(settings.model.model_copy(update=known))
    coded = {
        name: code(samples, talker, tokenizer, codec, mind, settings)
        for name, samples in (("train", corpus.train), ("valid", corpus.valid))
    }
    said = list(coded["train"].items.values())
    pace_error = talker.pace.fit([item.text_ids for item in said], [item.codes_KF.shape[1] for item in said])
    train, valid = loaders(coded["train"], coded["valid"], TalkerBatch.of, settings, weights=corpus.weights, lengths=Coded.lengths)  # type: ignore[arg-type]
    objective = TalkerObjective(talker, weights=settings.book_weights)

    def save(folder: Path) -> None:
        store.save(talker, folder, extra={"layer": mind.layer if mind else None})
        tokenizer.save(folder)
        store.save(codec, folder / "codec")
        if mind is not None:
            store.save(mind.decoder, folder / "thinker")

    def measure(_: Fitted) -> dict[str, Fact]:
        voice = Voice(talker, codec, tokenizer, think=mind)
        ears = store.load(inputs.needed["hearing"], inputs.run.device)
        facts = {"pace_error_frames": Fact(pace_error, len(said)), **swap(objective, coded["valid"], settings, inputs)}
        return {**facts, **free_speech(voice, ears, corpus.valid, coded["valid"], settings, inputs)}

    return Plan(objective, train, valid, save, measure, corpus)


def code(samples: list[Sample], talker: Talker, tokenizer: Tokenizer, codec: Codec, mind: Mind | None, settings: TalkerSettings) -> Coded:
    """Encode the speech of all samples, in batches."""
    utterances = Utterances(samples, codec.config.mel, downsample=0, pad_s=0.0, max_text_len=0, max_s=settings.max_s)
    items: dict[int, TalkerItem] = {}
    refused: dict[int, DataError] = {}
    for first in range(0, len(samples), CODED_AT_ONCE):
        mels = {}
        for index in range(first, min(first + CODED_AT_ONCE, len(samples))):
            try:
                mels[index] = torch.from_numpy(utterances.item(index, np.random.default_rng(0)).mel_FM)
            except DataError as error:
                refused[index] = error
        if not mels:
            continue
        frames_B = torch.tensor([len(mel) for mel in mels.values()])
        codes_BKF = codec.encode(torch.nn.utils.rnn.pad_sequence(list(mels.values()), batch_first=True), frames_B)
        lengths = codec.code_frames(frames_B).tolist()
        for (index, _), codes_KF, length in zip(mels.items(), codes_BKF, lengths, strict=True):
            ids = talker.text_ids(spoken(samples[index])[1], tokenizer)
            hidden = mind(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))[0] if mind else None
            items[index] = TalkerItem(samples[index].id, ids, codes_KF[:, :length].clone(), hidden)
    return Coded(samples, items, refused)


@torch.inference_mode()
def swap(objective: TalkerObjective, held_out: Coded, settings: TalkerSettings, inputs: Inputs) -> dict[str, Fact]:
    """Does the text matter? Nats a code of held-out speech with its own text, and with the text of another of like length."""
    objective.eval()
    items = sorted(held_out.items.values(), key=lambda item: item.codes_KF.shape[1])
    sums = {"own": 0.0, "other": 0.0}
    count = 0
    for first in range(0, len(items) - 1, settings.batch_size):
        batch = TalkerBatch.of(items[first : first + settings.batch_size]).to(inputs.run.device)
        if len(batch.sample_ids) < 2:
            continue
        for name, variant in (("own", batch), ("other", batch.rolled())):
            sums[name] += sum(float(term.total) for term in objective(variant).values())
        count += sum(objective.counts(batch).values())
    if not count:
        return {}
    own, other = sums["own"] / count, sums["other"] / count
    return {"nats_per_code": Fact(own, count), "nats_per_code_swapped": Fact(other, count), "text_swap_gap_nats": Fact(other - own, count)}


def free_speech(
    voice: Voice, ears: object, samples: list[Sample], held_out: Coded, settings: TalkerSettings, inputs: Inputs
) -> dict[str, Fact]:
    """Speech from text alone, heard by our own ears, beside what copy synthesis and the codec leave of the true speech."""
    chosen = [
        i for i in np.linspace(0, len(samples) - 1, min(settings.eval_items, len(samples))).astype(int).tolist() if i in held_out.items
    ]
    texts = [spoken(samples[i])[1] for i in chosen]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the real-time factor is quoted for one thread
    begin = time.perf_counter()
    said = voice.speak(texts)
    took_s = time.perf_counter() - begin
    torch.set_num_threads(threads)
    waves = [each.wave_S for each in said]
    true_frames = [held_out.items[i].codes_KF.shape[1] for i in chosen]
    near = sum(abs(each.codes_KF.shape[1] - frames) <= 0.2 * frames for each, frames in zip(said, true_frames, strict=True))

    def heard(waves: list[np.ndarray]) -> list[str]:
        return transcribe(ears, waves, pad_s=store.extra_of(inputs.needed["hearing"]).get("pad_s", 0.1))  # type: ignore[arg-type]

    guesses = heard(waves)
    rates = [levenshtein(truth, guess) / len(truth) for truth, guess in zip(texts, guesses, strict=True)]
    few = chosen[:: max(1, len(chosen) // 80)]
    spec = voice.codec.config.mel
    utterances = Utterances(samples, spec, downsample=0, pad_s=0.0, max_text_len=0, max_s=settings.max_s)
    mels = [torch.from_numpy(utterances.item(i, np.random.default_rng(0)).mel_FM) for i in few]
    copies = heard([speech.sound(mel, spec) for mel in mels])
    decoded = [voice.codec.decode(held_out.items[i].codes_KF[None])[0] for i in few]
    coded = heard([speech.sound(mel, spec) for mel in decoded])
    few_texts = [spoken(samples[i])[1] for i in few]
    copy_cer, codec_cer = cer(few_texts, copies), cer(few_texts, coded)
    return {
        "own_cer": Fact(cer(texts, guesses), len(texts), bootstrap(rates), copy_cer),
        "copy_synthesis_cer": Fact(copy_cer, len(few)),
        "codec_cer": Fact(codec_cer, len(few), None, copy_cer),
        "codec_own_cer": Fact(codec_cer - copy_cer, len(few)),
        "stop_within_20pct": share(near, len(chosen)),
        "ended": share(sum(each.is_ended for each in said), len(said)),
        "rtf": Fact(took_s / (sum(map(len, waves)) / voice.rate_hz), len(said)),
    }


STAGE = Stage(
    "talker",
    "speech from text",
    TalkerSettings,
    build,
    needs=("thinker", "codec", "hearing"),
    gates=(
        Gate(
            "text_matters",
            "text_swap_gap_nats",
            "it speaks without reading: train longer, check that text reaches the frames",
            at_least=0.1,
        ),
        Gate("own_cer", "own_cer", "its speech is not understood: train longer, look at the codec's own CER first", at_most=0.5),
        Gate("stops", "stop_within_20pct", "it does not know when to end: check the end symbol's labels", at_least=0.8),
    ),
)
