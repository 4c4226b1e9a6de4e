"""Thinker: a language model from scratch; what every later stage speaks to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from muomni.data import indexed, readers
from muomni.data.corpus import Rows, TokenCorpus
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Sample
from muomni.data.source import Source
from muomni.errors import ConfigError
from muomni.evaluate import exhibits, labels, thresholds
from muomni.evaluate.album import Album
from muomni.evaluate.facts import Fact
from muomni.evaluate.metrics import bits_per_byte, unigram_entropy
from muomni.models import store
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.stages import initial_weights
from muomni.stages.stage import Inputs, Plan, Stage, StageSettings, loaders
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.chat import IGNORE
from muomni.train.loop import Fitted
from muomni.train.objective import perplexity
from muomni.train.objectives.language import LanguageBatch, NextToken, collate_rows, targets


class ThinkerSettings(StageSettings):
    """Settings of stage thinker.

    model           its vocab_size is the most that the tokenizer may learn; ctx_len the longest sequence it will ever read
    row_len         positions of a packed training row; None: ctx_len. Short rows give more updates a token, which binding needs (SPEC 7)
    packing         false: one document a row, padded
    tokenizer_data  more texts that the vocabulary, not the model, learns from
    """

    model: DecoderConfig = DecoderConfig(vocab_size=5000)
    row_len: int | None = Field(None, ge=8)
    packing: bool = True
    tokenizer_data: list[Source] = []
    unused: ClassVar[dict[str, str]] = {"eval_items": "all held-out items are measured here"}

    def idle(self) -> dict[str, str]:
        """Beside those of all stages: what teaches a vocabulary, where that comes from elsewhere."""
        known = {"tokenizer_data": "the vocabulary is that of `init_from`"} if self.init_from is not None else {}
        return {**super().idle(), **known}

    @property
    def packs(self) -> bool:
        """Packed rows hold several documents."""
        return self.packing

    learns_as: ClassVar[str] = "thinker"

    @property
    def has_experts(self) -> bool:
        """Whether tokens choose among experts."""
        return self.model.experts is not None


def build(settings: ThinkerSettings, inputs: Inputs) -> Plan:
    """A byte-level vocabulary and a decoder from nothing, on packed documents; bits per byte of held-out text at the end."""
    corpus = inputs.corpus(settings)
    if any(source.weight != 1.0 for source in settings.data):
        raise ConfigError("thinker.data: weight has no effect on packed text", hint="leave it out, or name the file twice")
    if settings.mix_temperature is not None:
        raise ConfigError("thinker.mix_temperature has no effect on packed text", hint="leave it out, or name the small files twice")
    if not corpus.valid:
        raise ConfigError("thinker: nothing is held out, so nothing can be proven", hint="set val_split above 0")
    tokenizer = initial_weights.tokenizer(settings.init_from, inputs.base)
    if tokenizer is None:
        tokenizer = Tokenizer.train(_texts(settings, inputs, corpus), settings.model.vocab_size)
    decoder = inputs.place(Decoder(settings.model.model_copy(update={"vocab_size": tokenizer.vocab_size})))
    cache = inputs.folder / "tokens"
    row_len = settings.row_len or settings.model.ctx_len
    tokens = {name: TokenCorpus.build(cache, samples, tokenizer) for name, samples in (("train", corpus.train), ("valid", corpus.valid))}
    rows = {name: Rows(part.pack(row_len, single=not settings.packing)) for name, part in tokens.items()}
    train, valid = loaders(rows["train"], rows["valid"], collate_rows, settings)
    assert valid is not None
    objective = NextToken(decoder)

    def save(folder: Path) -> None:
        store.save(decoder, folder)
        tokenizer.save(folder, decoder.config.ctx_len)

    def measure(fitted: Fitted, album: Album) -> dict[str, Fact]:
        learned = [row.labels_T[row.labels_T != IGNORE] for row in (rows["valid"].packed[i] for i in range(len(rows["valid"])))]
        batches = [collate_rows([rows["valid"].item(i, np.random.default_rng(0))]) for i in range(len(rows["valid"]))]
        count = sum(int((targets(batch) != IGNORE).sum()) for batch in batches)
        nats, num_bytes = fitted.validation["text"], tokens["valid"].num_bytes
        floor_nats = unigram_entropy(np.concatenate(learned).tolist())
        experts = _experts(objective, batches, inputs) if settings.has_experts else {}
        exhibits.texts(album, decoder, tokenizer, [text for sample in corpus.valid for text in [*_words([sample])][-1:]])
        return {
            "nats_per_token": Fact(nats, count, None, floor_nats),
            "perplexity": Fact(perplexity(nats), count, None, perplexity(floor_nats)),
            "bits_per_byte": Fact(bits_per_byte(nats * count, num_bytes), num_bytes, None, bits_per_byte(floor_nats * count, num_bytes)),
            "token_accuracy": Fact(1 - fitted.validation["misses"], count),
            **experts,
        }

    def checks() -> dict[str, Fact]:
        return labels.documents(tokens["train"], corpus.train, tokenizer)

    return Plan(objective, train, valid, save, measure, corpus, {".": decoder}, checks, words=str(tokenizer))


def _experts(objective: NextToken, batches: Sequence[LanguageBatch], inputs: Inputs) -> dict[str, Fact]:
    """How much the experts are used by held-out text, 1 where all are used alike, and how many parameters a token goes through."""
    objective.eval()
    on_device = [batch.to(inputs.run.device) for batch in batches]
    used_LE = torch.stack([objective.expert_use(batch) for batch in on_device]).sum(0)
    used_LE = used_LE.cpu()
    even_LE = used_LE / used_LE.mean(1, keepdim=True)
    least = int(even_LE.argmin())
    layer, expert = divmod(least, even_LE.shape[1])
    note = f"expert {expert} of the {layer + 1}. layer that has some"
    tokens = int(used_LE.sum(1)[0]) // (objective.trunk.config.experts.experts_per_token if objective.trunk.config.experts else 1)
    return {
        "least_expert": Fact(float(even_LE.min()), tokens, note=note),
        "most_expert": Fact(float(even_LE.max()), tokens),
        "active_parameters": Fact(float(objective.trunk.num_active)),
    }


def _texts(settings: ThinkerSettings, inputs: Inputs, corpus: readers.Corpus) -> Iterator[str]:
    """The training texts, and what `tokenizer_data` adds."""
    yield from _words(corpus.train)
    if settings.tokenizer_data:
        quarantine = Quarantine(None, settings.quarantine_limit)
        others = readers.load(settings.tokenizer_data, base=inputs.base, val_split=0.0, seed=settings.seed, quarantine=quarantine)
        yield from _words(others.train)


def _words(samples: Sequence[Sample]) -> Iterator[str]:
    """All texts of samples."""
    for one in indexed.texts(samples):
        yield from [one] if isinstance(one, str) else [message.text for message in one.messages if message.text]


STAGE = Stage(
    "thinker",
    "language",
    ThinkerSettings,
    build,
    gates=thresholds.STAGES["thinker"],
)
