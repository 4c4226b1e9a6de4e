"""Thinker: a language model from scratch; what every later stage speaks to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import nn

from muomni.data import indexed, readers
from muomni.data.batch import SequenceBatch
from muomni.data.corpus import Rows, TokenCorpus
from muomni.data.loader import Loader
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Sample
from muomni.data.source import Source
from muomni.errors import ConfigError
from muomni.evaluate import labels, sample_writers
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate
from muomni.evaluate.metrics import bits_per_byte, unigram_entropy
from muomni.evaluate.samples import StageSamples
from muomni.evaluate.thresholds import CAUSAL, LABELS, PACKING, held_out_gap
from muomni.models import store
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.stages import assumed, initial_weights
from muomni.stages.stage import BoardRow, Inputs, Stage, StageSettings, Training, loaders
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.chat import IGNORE
from muomni.train.loop import Fitted
from muomni.train.objective import perplexity
from muomni.train.objectives.language import NextToken, collate_rows
from muomni.train.objectives.symbols import targets


class ThinkerSettings(StageSettings):
    """Settings of stage thinker.

    model           its vocab_size is the most that the tokenizer may learn; ctx_len the longest sequence it
                    will ever read
    row_len         positions of a packed training row; None: ctx_len. Short rows give more updates a token,
                    which binding needs (SPEC 7)
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
        idle_options = (
            {"tokenizer_data": "the vocabulary is that of `init_from`"} if self.init_from is not None else {}
        )
        return {**super().idle(), **idle_options}

    @property
    def packs(self) -> bool:
        """Packed rows hold several documents."""
        return self.packing

    learns_as: ClassVar[str] = "thinker"

    def assuming(self, sources: list[Source]) -> Self:
        """Beside what all stages leave out."""
        return super().assuming(sources).model_copy(update={"tokenizer_data": []})

    @property
    def has_experts(self) -> bool:
        """Whether tokens choose among experts."""
        return self.model.experts is not None


class ThinkerTraining(Training[ThinkerSettings]):
    """A byte-level vocabulary and a decoder from nothing, on packed documents; bits per byte of held-out text
    at the end."""

    def vocabulary(self) -> None:
        """The tokenizer: that of the weights it starts from, else one learned from the training texts."""
        settings, corpus = self.settings, self.corpus
        if any(source.weight != 1.0 for source in settings.data):
            raise ConfigError(
                "thinker.data: weight has no effect on packed text",
                hint="leave it out, or name the file twice",
            )
        if settings.mix_temperature is not None:
            hint = "leave it out, or name the small files twice"
            raise ConfigError("thinker.mix_temperature has no effect on packed text", hint=hint)
        if not corpus.valid:
            raise ConfigError(
                "thinker: nothing is held out, so nothing can be proven", hint="set val_split above 0"
            )
        tokenizer = initial_weights.tokenizer(settings.init_from, self.inputs.base)
        self.tokenizer = tokenizer or Tokenizer.train(
            _texts(settings, self.inputs, corpus), settings.model.vocab_size
        )
        self.words = str(self.tokenizer)

    def wire(self) -> tuple[NextToken, dict[str, nn.Module]]:
        """A decoder with a row for each token."""
        shape = self.settings.model.model_copy(update={"vocab_size": self.tokenizer.vocab_size})
        self.decoder = self.inputs.place(Decoder(shape))
        return NextToken(self.decoder), {".": self.decoder}

    def data(self) -> tuple[Loader[Any, Any], Loader[Any, Any] | None]:
        """Documents, packed into rows; their tokens are kept in the stage's folder."""
        cache, settings = self.inputs.folder / "tokens", self.settings
        row_len = settings.row_len or settings.model.ctx_len
        sides = (("train", self.corpus.train), ("valid", self.corpus.valid))
        self.tokens = {name: TokenCorpus.build(cache, samples, self.tokenizer) for name, samples in sides}
        self.rows = {
            name: Rows(part.pack(row_len, single=not settings.packing)) for name, part in self.tokens.items()
        }
        return loaders(self.rows["train"], self.rows["valid"], collate_rows, settings)

    def checks(self) -> dict[str, Fact]:
        """The labels, against the documents."""
        return labels.documents(self.tokens["train"], self.corpus.train, self.tokenizer)

    def save(self, folder: Path) -> None:
        """The decoder and its tokenizer."""
        store.save(self.decoder, folder)
        self.tokenizer.save(folder, self.decoder.config.ctx_len)

    def measure(self, fitted: Fitted, stage_samples: StageSamples) -> dict[str, Fact]:
        """Perplexity, bits per byte and accuracy of held-out text, against how often each token stands
        there."""
        rows = self.rows["valid"]
        learned = [row.labels_T[row.labels_T != IGNORE] for row in (rows.packed[i] for i in range(len(rows)))]
        batches = [collate_rows([rows.item(i, np.random.default_rng(0))]) for i in range(len(rows))]
        count = sum(int((targets(batch) != IGNORE).sum()) for batch in batches)
        nats, num_bytes = fitted.validation["text"], self.tokens["valid"].num_bytes
        floor_nats = unigram_entropy(np.concatenate(learned).tolist())
        bits, floor_bits = (bits_per_byte(each * count, num_bytes) for each in (nats, floor_nats))
        shown = [text for sample in self.corpus.valid for text in [*_words([sample])][-1:]]
        sample_writers.texts(stage_samples, self.decoder, self.tokenizer, shown)
        return {
            "nats_per_token": Fact(nats, count, None, floor_nats),
            "perplexity": Fact(perplexity(nats), count, None, perplexity(floor_nats)),
            "bits_per_byte": Fact(bits, num_bytes, None, floor_bits),
            "token_accuracy": Fact(1 - fitted.validation["misses"], count),
            **(_experts(self.objective, batches, self.inputs) if self.settings.has_experts else {}),  # type: ignore[arg-type]
        }


def _experts(objective: NextToken, batches: Sequence[SequenceBatch], inputs: Inputs) -> dict[str, Fact]:
    """How much the experts are used by held-out text, 1 where all are used alike, and how many parameters a
    token goes through."""
    objective.eval()
    on_device = [batch.to(inputs.run.device) for batch in batches]
    used_LE = torch.stack([objective.expert_use(batch) for batch in on_device]).sum(0)
    used_LE = used_LE.cpu()
    even_LE = used_LE / used_LE.mean(1, keepdim=True)
    least = int(even_LE.argmin())
    layer, expert = divmod(least, even_LE.shape[1])
    note = f"expert {expert} of the {layer + 1}. layer that has some"
    tokens = int(used_LE.sum(1)[0]) // objective.experts.experts_per_token
    decoder = objective.trunk
    assert isinstance(decoder, Decoder)
    return {
        "least_expert": Fact(float(even_LE.min()), tokens, note=note),
        "most_expert": Fact(float(even_LE.max()), tokens),
        "active_parameters": Fact(float(decoder.num_active)),
    }


def _texts(settings: ThinkerSettings, inputs: Inputs, corpus: readers.Corpus) -> Iterator[str]:
    """The training texts, and what `tokenizer_data` adds."""
    yield from _words(corpus.train)
    if settings.tokenizer_data:
        quarantine = Quarantine(None, settings.quarantine_limit)
        others = readers.load(
            settings.tokenizer_data,
            base=inputs.base,
            val_split=0.0,
            seed=settings.seed,
            quarantine=quarantine,
        )
        yield from _words(others.train)


def _words(samples: Sequence[Sample]) -> Iterator[str]:
    """All texts of samples."""
    for one in indexed.texts(samples):
        yield from (
            [one] if isinstance(one, str) else [message.text for message in one.messages if message.text]
        )


def assume(settings: ThinkerSettings, context: int, words: list[str], folder: Path) -> list[assumed.Row]:
    """Rows of words, as long as they are packed."""
    text, row_len = assumed.Text(words), settings.row_len or context
    count = max(assumed.BATCHES * settings.batch_size, len(words) // row_len + 1)
    return [{"text": text.take(row_len)} for _ in range(count)]


STAGE = Stage(
    "thinker",
    "language",
    ThinkerSettings,
    ThinkerTraining,
    gates=(
        *CAUSAL,
        *PACKING,
        *LABELS,
        Gate(
            "floor",
            "nats_per_token",
            "it knows little more than how often each token occurs: train longer, check the data",
            below_floor=0.8,
            source="SPEC M-A",
        ),
        held_out_gap(0.7, "nats a token"),
        Gate(
            "experts",
            "least_expert",
            "an expert is hardly used: raise model.experts.balance_weight, or take fewer experts",
            at_least=0.05,
            source="chosen: a twentieth of what an even use would give it",
            when="has_experts",
        ),
    ),
    enough=20_000,
    is_row_a_sample=False,
    board=(BoardRow("thinker.bits_per_byte", "bits_per_byte", more_is_better=False),),
    assume=assume,
    anatomy="muomni.report.anatomy:language",
)
