"""Talker: text to the codec's codes; the voice in which answers are spoken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from muomni.data import uses
from muomni.data.cache import Cache
from muomni.data.sample import Sample
from muomni.data.utterances import Utterances, spoken
from muomni.errors import DataError
from muomni.evaluate import labels, thresholds
from muomni.evaluate.album import Album
from muomni.evaluate.facts import Fact
from muomni.evaluate.listening import free_speech, swap
from muomni.infer.speech import Think, Voice, listen_to
from muomni.models import store
from muomni.models.codec import Codec
from muomni.models.decoder import Decoder
from muomni.models.talker import Talker, TalkerConfig
from muomni.stages.coded import Coded
from muomni.stages.coded import build as build_coded
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
    max_s: float = Field(uses.MAX_S, gt=0)

    def refusal(self, sample: Sample) -> str | None:
        """Why the stage can't learn from a sample."""
        return uses.refusal("talker", sample)


def build(settings: TalkerSettings, inputs: Inputs) -> Plan:
    """Texts beside the codes of their speech, durations in closed form, a causal model over codes; free speech judged at the end."""
    corpus = inputs.corpus(settings)
    tokenizer = Tokenizer.load(inputs.needed["thinker"])
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
    talker = inputs.place(Talker(settings.model.model_copy(update=known)))
    made_by = [store.digest(codec), store.digest(thinker) if thinker else "", tokenizer.digest, layer, settings.max_s]
    made_by.append(talker.config.text_units)
    coded = {
        name: build_coded(
            inputs.folder / "coded", samples, made_by, code(samples, talker, tokenizer, codec, think, settings, inputs.run.device)
        )
        for name, samples in (("train", corpus.train), ("valid", corpus.valid))
    }
    said = coded["train"].items
    pace_error = talker.pace.fit([item.text_ids for item in said.values()], said.num_frames().tolist())
    train, valid = loaders(coded["train"], coded["valid"], TalkerBatch.of, settings, weights=corpus.weights, lengths=Coded.lengths)  # type: ignore[arg-type]
    objective = TalkerObjective(talker, weights=settings.book_weights)

    def save(folder: Path) -> None:
        store.save(talker, folder, extra={"layer": layer})
        tokenizer.save(folder)
        store.save(codec, folder / "codec")
        if thinker is not None:
            store.save(thinker, folder / "thinker")

    def measure(_: Fitted, album: Album) -> dict[str, Fact]:
        voice = Voice(talker, codec, tokenizer, think=think)
        ears = inputs.place(store.load(inputs.needed["hearing"]))
        pad_s = store.extra_of(inputs.needed["hearing"]).get("pad_s", 0.1)
        held_out = coded["valid"].items
        facts = {"pace_error_frames": Fact(pace_error, len(said)), **swap(objective, [*held_out.values()], inputs.run)}
        return facts | free_speech(voice, ears, pad_s, corpus.valid, held_out, most=settings.eval_items, max_s=settings.max_s, album=album)

    def checks() -> dict[str, Fact]:
        known, run = inputs.place(store.load(inputs.needed["codec"])), inputs.run
        return {
            **labels.stale(coded["train"].items, corpus.train, known, run),
            **labels.speech_ends(objective, list(islice(said.values(), CODED_AT_ONCE)), run),
        }

    networks: dict[str, torch.nn.Module] = {".": talker, "codec": codec, **({"thinker": thinker} if thinker is not None else {})}
    return Plan(objective, train, valid, save, measure, corpus, networks, checks)


def code(
    samples: Sequence[Sample],
    talker: Talker,
    tokenizer: Tokenizer,
    codec: Codec,
    think: Think | None,
    settings: TalkerSettings,
    device: torch.device,
) -> Iterator[tuple[int, TalkerItem | DataError]]:
    """The speech of all samples as codes, encoded in batches, by the samples' numbers; of those that can't be read the error.

    Takes   device: where codec and Thinker lie. Items lie on the CPU, as those of other datasets do.
    """
    nothing_kept = Cache(0)  # each is read once
    utterances = Utterances(samples, codec.config.mel, downsample=0, pad_s=0.0, max_text_len=0, max_s=settings.max_s, cache=nothing_kept)
    for first in range(0, len(samples), CODED_AT_ONCE):
        mels = {}
        for index in range(first, min(first + CODED_AT_ONCE, len(samples))):
            try:
                mels[index] = torch.from_numpy(utterances.item(index, np.random.default_rng(0)).mel_FM)
            except DataError as error:
                yield index, error
        if not mels:
            continue
        frames_B = torch.tensor([len(mel) for mel in mels.values()])
        mel_BFM = torch.nn.utils.rnn.pad_sequence(list(mels.values()), batch_first=True)
        codes_BKF = codec.encode(mel_BFM.to(device), frames_B.to(device)).cpu()
        lengths = codec.code_frames(frames_B).tolist()
        for (index, _), codes_KF, length in zip(mels.items(), codes_BKF, lengths, strict=True):
            ids = talker.text_ids(spoken(samples[index])[1], tokenizer)
            ids_BT = torch.tensor([ids], device=device)
            hidden = think(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool))[0].cpu() if think else None
            yield index, TalkerItem(samples[index].id, ids, codes_KF[:, :length].clone(), hidden)


STAGE = Stage(
    "talker",
    "speech from text",
    TalkerSettings,
    build,
    needs=("thinker", "codec", "hearing"),
    gates=thresholds.STAGES["talker"],
)
