"""Codec: speech to a few codes a second and back; the alphabet in which the Talker speaks."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from muomni.data import uses
from muomni.data.conversation import read_wave
from muomni.data.loader import Loader
from muomni.data.utterances import Crops, Utterance, Utterances, spoken
from muomni.errors import DataError
from muomni.evaluate import codec_audit, sample_writers
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate
from muomni.evaluate.samples import StageSamples
from muomni.evaluate.thresholds import held_out_gap
from muomni.models.codec import Codec, CodecConfig
from muomni.stages import assumed
from muomni.stages.stage import BoardRow, Inputs, Stage, StageSettings, Training, loaders
from muomni.train.loop import Fitted
from muomni.train.objectives.codec import CodecBatch, CodecObjective

STATISTICS_ITEMS = 200  # utterances behind the stored mean and deviation of the log-mel


class CodecSettings(StageSettings):
    """Settings of stage codec.

    crop_frames      mel frames of a training crop (1.28 s); quantise_after: updates before the codebooks
                     start by k-means
    """

    model: CodecConfig = CodecConfig()
    crop_frames: int = Field(128, ge=8)
    quantise_after: int = Field(60, ge=0)
    max_s: float = Field(uses.MAX_S, gt=0)
    unused: ClassVar[dict[str, str]] = {
        "eval_items": "all held-out items are measured here",
        "len_buckets": "batches here hold rows of all lengths",
    }

    learns_as: ClassVar[str] = "codec"


def collate(items: list[Utterance]) -> CodecBatch:
    """A batch of log-mels, padded."""
    mels = [torch.from_numpy(item.mel_FM) for item in items]
    padded = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)
    return CodecBatch([item.sample_id for item in items], padded, torch.tensor([len(mel) for mel in mels]))


class CodecTraining(Training[CodecSettings]):
    """Crops of speech through a codec whose codebooks start from what the encoder has learned; usage and
    error at the end."""

    def wire(self) -> tuple[CodecObjective, dict[str, nn.Module]]:
        """A codec, whose codebooks rest until `quantise_after`."""
        settings = self.settings
        self.codec = self.inputs.place(Codec(settings.model))
        objective = CodecObjective(self.codec, warmup=settings.quantise_after, seed=settings.seed)
        return self.inputs.place(objective), {".": self.codec}

    def data(self) -> tuple[Loader[Any, Any], Loader[Any, Any] | None]:
        """Crops to learn from, whole utterances held out."""
        settings, shape = self.settings, self.settings.model.mel
        limits: dict[str, Any] = {"downsample": 0, "pad_s": 0.0, "max_text_len": 0, "max_s": settings.max_s}
        self.whole, self.held_out = (
            Utterances(side, shape, **limits) for side in (self.corpus.train, self.corpus.valid)
        )
        training = Crops(self.whole, settings.crop_frames)
        return loaders(training, self.held_out, collate, settings, weights=self.corpus.weights)

    def prepare(self) -> dict[str, Fact]:
        """Mean and deviation of the log-mel, by which the codec normalises."""
        self.codec.fit_statistics(*_some(self.whole, STATISTICS_ITEMS))
        return {}

    def measure(self, fitted: Fitted, stage_samples: StageSamples) -> dict[str, Fact]:
        """Usage of the codebooks, the error of the round trip, and the audit of the codec."""
        facts = quality(self.codec, self.held_out, self.inputs, stage_samples)
        clips, device = _clips(self.held_out, codec_audit.CLIPS), self.inputs.run.device
        return facts | codec_audit.of_stage(self.inputs.folder, self.save, clips, device, {})


def _some(utterances: Utterances, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mels of up to `count` utterances, spread evenly, padded."""
    items = []
    for index in np.linspace(0, len(utterances) - 1, min(count, len(utterances))).astype(int):
        try:
            items.append(utterances.item(int(index), np.random.default_rng(0)))
        except DataError:
            continue  # the loader counts and names it
    if not items:
        raise DataError(
            "empty", "codec: no utterance can be read", hint="run muomni data check on the sources"
        )
    batch = collate(items)
    return batch.mel_BFM, batch.frames_B


def _clips(utterances: Utterances, most: int) -> list[torch.Tensor]:
    """Waves (S,) at the codec's rate of up to `most` utterances, spread evenly over those that can be read."""
    waves = []
    for index in np.linspace(0, len(utterances) - 1, min(most, len(utterances))).astype(int).tolist():
        part, _ = spoken(utterances.samples[index])
        try:
            wave_S = read_wave(part, utterances.spec.rate_hz, max_s=utterances.max_s)
        except DataError:
            continue  # the loader counts and names it
        waves.append(torch.from_numpy(wave_S))
    return waves


@torch.inference_mode()
def quality(
    codec: Codec, held_out: Utterances, inputs: Inputs, stage_samples: StageSamples
) -> dict[str, Fact]:
    """Usage of the codebooks and the error of the round trip on held-out speech, against a codec that always
    says the mean."""
    codec.eval()
    errors, spreads, heard = [], [], []
    codes, frames = [], 0
    for index in range(len(held_out)):
        try:
            item = held_out.item(index, np.random.default_rng(0))
        except DataError:
            continue
        batch = collate([item]).to(inputs.run.device)
        coded = codec.encode(batch.mel_BFM, batch.frames_B)
        rebuilt = codec.normalise(codec.decode(coded))[:, : batch.mel_BFM.shape[1]]
        target = codec.normalise(batch.mel_BFM)
        errors.append(float((rebuilt - target[:, : rebuilt.shape[1]]).square().sum()))
        spreads.append(float((target - target.mean()).square().sum()))
        heard.append(index)
        codes.append(coded[0])
        frames += coded.shape[-1]
    if not codes:
        return {}
    used = codec.usage(torch.cat(codes, dim=1)[None])
    shares = [error / max(spread, 1e-9) for error, spread in zip(errors, spreads)]
    sample_writers.round_trips(stage_samples, codec, held_out, heard, shares, torch.cat(codes, dim=1))
    facts = {
        "mel_error": Fact(sum(errors) / max(sum(spreads), 1e-9), len(codes), None, 1.0),
        "code_frames": Fact(float(frames)),
    }
    facts["usage"] = Fact(min(book.used for book in used), frames)
    facts["perplexity_share"] = Fact(
        min(book.perplexity for book in used) / codec.codebook_size, frames, None, 1 / codec.codebook_size
    )
    for number, book in enumerate(used):
        facts[f"usage_{number}"] = Fact(book.used, frames)
        facts[f"perplexity_{number}"] = Fact(book.perplexity, frames, None, 1.0)
    return facts


STAGE = Stage(
    "codec",
    "speech to codes and back",
    CodecSettings,
    CodecTraining,
    gates=(
        Gate(
            "round_trip",
            "mel_error",
            "the codec rebuilds little more than the mean: train longer, more codebooks",
            below_floor=0.5,
            source="floor: the mean",
        ),
        Gate(
            "usage",
            "usage",
            "codebook entries lie dead: more data, longer training, look at revival",
            at_least=0.5,
            source="SPEC 7 asks 0.8 of the quickstart",
        ),
        Gate(
            "perplexity",
            "perplexity_share",
            "a few entries do all the work: more data, longer training, look at revival",
            at_least=0.1,
            source="chosen",
        ),
        *codec_audit.STAGE_GATES,
        held_out_gap(0.5, "error, deviations"),
    ),
    board=(BoardRow("codec.usage", "usage", 0.8),),
    assume=assumed.speech,
    anatomy="muomni.report.anatomy:codec",
)
