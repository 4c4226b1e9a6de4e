"""Codec: speech to a few codes a second and back; the alphabet in which the Talker speaks."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from muomni.data import uses
from muomni.data.utterances import Crops, Utterance, Utterances
from muomni.errors import DataError
from muomni.evaluate import exhibits, thresholds
from muomni.evaluate.album import Album
from muomni.evaluate.facts import Fact
from muomni.models import store
from muomni.models.codec import Codec, CodecConfig
from muomni.stages.stage import Inputs, Plan, Stage, StageSettings, loaders
from muomni.train.loop import Fitted
from muomni.train.objectives.codec import CodecBatch, CodecObjective

STATISTICS_ITEMS = 200  # utterances behind the stored mean and deviation of the log-mel


class CodecSettings(StageSettings):
    """Settings of stage codec.

    crop_frames      mel frames of a training crop (1.28 s); quantise_after: updates before the codebooks start by k-means
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


def build(settings: CodecSettings, inputs: Inputs) -> Plan:
    """Crops of speech through a codec whose codebooks start from what the encoder has learned; usage and error at the end."""
    corpus = inputs.corpus(settings)
    codec = inputs.place(Codec(settings.model))
    whole = {
        name: Utterances(samples, settings.model.mel, downsample=0, pad_s=0.0, max_text_len=0, max_s=settings.max_s)
        for name, samples in (("train", corpus.train), ("valid", corpus.valid))
    }
    codec.fit_statistics(*_some(whole["train"], STATISTICS_ITEMS))
    training = Crops(whole["train"], settings.crop_frames)
    train, valid = loaders(training, whole["valid"], collate, settings, weights=corpus.weights)

    def measure(_: Fitted, album: Album) -> dict[str, Fact]:
        return quality(codec, whole["valid"], inputs, album)

    return Plan(
        inputs.place(CodecObjective(codec, warmup=settings.quantise_after, seed=settings.seed)),
        train,
        valid,
        lambda folder: store.save(codec, folder),
        measure,
        corpus,
        {".": codec},
    )


def _some(utterances: Utterances, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mels of up to `count` utterances, spread evenly, padded."""
    items = []
    for index in np.linspace(0, len(utterances) - 1, min(count, len(utterances))).astype(int):
        try:
            items.append(utterances.item(int(index), np.random.default_rng(0)))
        except DataError:
            continue  # the loader counts and names it
    if not items:
        raise DataError("empty", "codec: no utterance can be read", hint="run muomni data check on the sources")
    batch = collate(items)
    return batch.mel_BFM, batch.frames_B


@torch.inference_mode()
def quality(codec: Codec, held_out: Utterances, inputs: Inputs, album: Album) -> dict[str, Fact]:
    """Usage of the codebooks and the error of the round trip on held-out speech, against a codec that always says the mean."""
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
    exhibits.round_trips(album, codec, held_out, heard, shares, torch.cat(codes, dim=1))
    facts = {"mel_error": Fact(sum(errors) / max(sum(spreads), 1e-9), len(codes), None, 1.0), "code_frames": Fact(float(frames))}
    facts["usage"] = Fact(min(book.used for book in used), frames)
    facts["perplexity_share"] = Fact(min(book.perplexity for book in used) / codec.codebook_size, frames, None, 1 / codec.codebook_size)
    for number, book in enumerate(used):
        facts[f"usage_{number}"] = Fact(book.used, frames)
        facts[f"perplexity_{number}"] = Fact(book.perplexity, frames, None, 1.0)
    return facts


STAGE = Stage(
    "codec",
    "speech to codes and back",
    CodecSettings,
    build,
    gates=thresholds.STAGES["codec"],
)
