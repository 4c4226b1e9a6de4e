"""What rows and mmpt share: a language model with rows for media tokens, tasks over a token space, their
proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, model_validator
from torch import nn

from muomni.data import readers
from muomni.data.corpus import Rows, TokenCorpus
from muomni.data.loader import Loader
from muomni.data.quarantine import Quarantine
from muomni.data.source import Source
from muomni.data.token_rows import TEXT, TokenRows, shares
from muomni.data.tokenized.index import ShardSet
from muomni.data.tokenized.make import ShardSettings, name_of, shard_corpus
from muomni.errors import ConfigError
from muomni.evaluate import token_ablations, token_labels, token_samples
from muomni.evaluate.facts import Fact
from muomni.evaluate.forgetting import Forgetting, Texts, own_texts
from muomni.evaluate.samples import StageSamples
from muomni.infer.sampling import MediaSampling
from muomni.models import pretrained, rows, store
from muomni.models.codecs import open_codec
from muomni.models.decoder import Decoder
from muomni.models.reference import NetworkReference
from muomni.models.rows import TokenModel
from muomni.stages.stage import Inputs, StageSettings, Training, demand_tasks, loaders
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.codec import Codec, CodecEntry
from muomni.tokens.sequences import TASKS
from muomni.tokens.space import TokenSpace
from muomni.tokens.unified import UnifiedTokenizer
from muomni.train.loop import Fitted
from muomni.train.objectives.language import NextToken
from muomni.train.objectives.symbols import Symbols
from muomni.train.objectives.tokens import TokenTasks, choices, collate

STAGES = ("thinker", "image_codec", "codec", "rows")  # of a recipe, that may be named as bases
TaskName = Literal["i2t", "a2t", "t2i", "t2a", "text"]
NEW_ROWS = ("*.new_embed", "*.new_head")


class TokenSettings(StageSettings):
    """Settings of a stage whose model reads and writes media tokens.

    tasks         weight of each task in the loss and in what is drawn; those that are left out are not
                  taught. i2t and a2t read an image or a sound, t2i and t2a write one, text replays `replay`
    replay        texts beside the tasks, so that the language stays
    ramp_steps    updates over which the weight of tasks that write media rises from 0
    max_seq_len   most positions of a row; a longer sample is left out and counted, nothing is cut
    drop_prompts  the share of rows that write an image or a sound and come without the words that ask for it:
                  what guidance needs
    legal_loss    the probability of a target is shared by the ids that may stand there alone; false: by all
                  ids
    regression_texts  texts that forgetting is measured by; none: those that the language model's own stage
                      held out
    checked_tasks  tasks of the data whose pictures show one object of the toy world: a checker by rules
                   judges what is drawn
    """

    tasks: dict[TaskName, float] = {"i2t": 1.0, "a2t": 1.0}
    replay: list[Source] = []
    ramp_steps: int = Field(0, ge=0)
    max_seq_len: int = Field(512, ge=16)
    drop_prompts: float = Field(0.0, ge=0, lt=1)
    legal_loss: bool = False
    regression_texts: list[Source] = []
    checked_tasks: list[str] = []

    @model_validator(mode="after")
    def _has_tasks(self) -> Self:
        if not self.tasks or min(self.tasks.values()) <= 0:
            raise ValueError("tasks: expected at least one with a weight above 0, e.g. {i2t: 1.0}")
        if (TEXT in self.tasks) != bool(self.replay):
            raise ValueError(
                "tasks: text needs texts to `replay`, and those have an effect with task text alone"
            )
        return self

    def idle(self) -> dict[str, str]:
        """Beside those of all stages: what belongs to tasks that are not taught."""
        found = super().idle()
        if not self.writes:
            found |= dict.fromkeys(("ramp_steps", "drop_prompts"), "no task writes a medium")
        if not self.teaches_t2i:
            found["checked_tasks"] = "no task draws (t2i)"
        return found

    def assuming(self, sources: list[Source]) -> Self:
        """Beside the data: the texts that are replayed are assumed too."""
        beside = {"replay": sources if self.replay else [], "regression_texts": [], "checked_tasks": []}
        return super().assuming(sources).model_copy(update=beside)

    @property
    def learned(self) -> list[Source]:
        """The texts that are replayed too."""
        return [*self.data, *self.replay]

    @property
    def media_read(self) -> list[str]:
        """Media whose words a task writes."""
        return [task.reads for name, task in TASKS.items() if name in self.tasks and task.writes == "text"]

    @property
    def reads(self) -> bool:
        """Whether a task reads a medium."""
        return bool(self.media_read)

    @property
    def writes(self) -> bool:
        """Whether a task writes a medium."""
        return any(name in self.tasks for name in ("t2i", "t2a"))

    @property
    def teaches_i2t(self) -> bool:
        """Whether images are read."""
        return "i2t" in self.tasks

    @property
    def teaches_a2t(self) -> bool:
        """Whether sounds are read."""
        return "a2t" in self.tasks

    @property
    def teaches_t2i(self) -> bool:
        """Whether images are written."""
        return "t2i" in self.tasks

    @property
    def teaches_t2a(self) -> bool:
        """Whether sounds are written."""
        return "t2a" in self.tasks


def without_dtype(base: NetworkReference | None, setting: str) -> dict[str, str]:
    """The number format among a setting's options without effect: what it names is opened in one of its
    own."""
    return {} if base is None else {f"{setting}.dtype": "it is opened in its own number format"}


T = TypeVar("T", bound=TokenSettings)


class TokenTraining(Training[T]):
    """A stage's `wire` sets model, tokenizer and codecs by `opened`; the rest reads them.

    bases   what the folder says of the networks that it stands on: "thinker", and each codec by its modality
    """

    model: TokenModel
    tokenizer: Tokenizer
    codecs: list[Codec]
    bases: dict[str, dict[str, Any]]
    text_folder: Path

    def vocabulary(self) -> None:
        """Refuses tasks that no sample has."""
        demand_tasks(self.corpus, checked_tasks=self.settings.checked_tasks)

    def opened(
        self, decoder: Decoder, tokenizer: Tokenizer, codecs: Sequence[Codec], space: TokenSpace
    ) -> TokenModel:
        """The model of a space upon a decoder, and what turns samples into its ids."""
        self.tokenizer, self.codecs = tokenizer, list(codecs)
        self.unified = UnifiedTokenizer(tokenizer, space, self.codecs)
        self.model = self.inputs.place(TokenModel(decoder, space))
        self.words = f"token space of {space.size:,} ids, {space.hash[:12]}"
        if space.streams > 1:
            raise ConfigError(
                "layout: a row of this stage is one stream of ids: expected interleaved",
                hint="delay and parallel are for shards and for reading and writing by the library",
            )
        return self.model

    def tasks(self, frozen: bool) -> TokenTasks:
        """The objective; `frozen`: the language model rests, and no checkpoint holds it."""
        settings = self.settings
        weights = {str(task): weight for task, weight in settings.tasks.items()}
        late: dict[str, int] = {
            name: settings.ramp_steps
            for name in ("t2i", "t2a")
            if name in settings.tasks and settings.ramp_steps
        }
        legal = choices(self.model.space, self.unified.words) if settings.legal_loss else None
        given = ("decoder.decoder.",) if frozen else ()
        return self.inputs.place(TokenTasks(self.model, weights, legal=legal, ramp=late, frozen_parts=given))

    def data(self) -> tuple[Loader[Any, Any], Loader[Any, Any] | None]:
        """The samples as ids, made once and kept as shards in the stage's folder, and the texts that are
        replayed."""
        settings, space = self.settings, self.model.space
        how = ShardSettings(
            val_split=settings.val_split, seed=settings.seed, bad_limit=settings.quarantine_limit
        )
        shards = self.inputs.folder / "shards" / f"{name_of(self.corpus)[:12]}-{space.hash[:12]}"
        shard_corpus(self.corpus, shards, lambda: self.unified, how)
        longest = min(settings.max_seq_len, self.model.ctx_len)
        replayed = self._replayed(longest)
        names = [task for task in settings.tasks if task != TEXT]
        self.sides = {}
        for side in ("train", "valid"):
            drop_prompts = settings.drop_prompts if side == "train" else 0.0
            self.sides[side] = TokenRows(
                ShardSet(shards, side), space, names, longest, replayed[side], drop_prompts
            )
        self._demand_tasks(names)
        weights = shares(
            self.sides["train"].blocks, {str(name): weight for name, weight in settings.tasks.items()}
        )
        self._demand_mixed(weights)
        by_row = self._by_row(weights)
        gather = partial(collate, pad=space.pad)
        return loaders(self.sides["train"], self.sides["valid"], gather, settings, weights=by_row)

    def _by_row(self, shares_of: Sequence[tuple[float, int]]) -> list[float]:
        """The weight of each training row: that of its task, shared by the weights of the sources of its
        samples."""
        rows_of, given = self.sides["train"], self.corpus.weights
        own = np.array([given[rows_of.sample(place)] for place in range(len(rows_of.places))])
        found: list[float] = []
        for weight, size in shares_of:
            here = own[len(found) : len(found) + size]
            found += (
                (weight * here / here.mean()).tolist() if len(here) else [weight] * size
            )  # replayed texts come last
        return found

    def _demand_mixed(self, shares_of: Sequence[tuple[float, int]]) -> None:
        """Raises ConfigError for a `mix_temperature` that mixes nothing: the rows of each task are of one source,
        and tasks are mixed by their own weights."""
        given = self.corpus.weights
        if self.settings.mix_temperature is None or not isinstance(given, readers.Runs):
            return
        ends_of_sources = np.cumsum([size for _, size in given.runs])
        rows_of, first = self.sides["train"], 0
        for _, size in shares_of:
            here = range(first, min(first + size, len(rows_of.places)))  # replayed texts come last
            samples = [rows_of.sample(place) for place in here]
            if len(np.unique(np.searchsorted(ends_of_sources, samples, side="right"))) > 1:
                return
            first += size
        raise ConfigError(
            "mix_temperature has no effect: no task draws from two sources",
            hint="`tasks` has the weight of each task; leave mix_temperature out",
        )

    def _replayed(self, longest: int) -> dict[str, Rows | None]:
        settings, inputs = self.settings, self.inputs
        if not settings.replay:
            return {"train": None, "valid": None}
        quarantine = Quarantine(None, settings.quarantine_limit)
        corpus = readers.load(
            settings.replay,
            base=inputs.base,
            val_split=settings.val_split,
            seed=settings.seed,
            quarantine=quarantine,
        )
        found: dict[str, Rows | None] = {}
        for side, samples in (("train", corpus.train), ("valid", corpus.valid)):
            texts = [sample for sample in samples if not sample.media]
            tokens = TokenCorpus.build(inputs.folder / "tokens", texts, self.tokenizer) if texts else None
            found[side] = None if tokens is None else Rows(tokens.pack(longest, single=True))
        if found["train"] is None:
            raise ConfigError(
                "replay: no sample without media to learn from",
                hint="name sources of texts, or leave task text out",
            )
        return found

    def _demand_tasks(self, names: Sequence[str]) -> None:
        """Raises ConfigError for a task that no sample serves."""
        blocks = self.sides["train"].blocks
        if lost := [name for name in names if not blocks[name]]:
            media = ", ".join(sorted({TASKS[name].medium for name in lost}))
            raise ConfigError(
                f"tasks: no sample serves {', '.join(lost)}",
                hint=f"data with {media} and one text each, or leave the task out",
            )

    def prepare(self) -> dict[str, Fact]:
        """How well the language model knows texts before the ids of media share its probability."""
        settings, inputs = self.settings, self.inputs
        texts = self._texts()
        text = (range(self.model.space.text_size),)
        cache = inputs.folder / "tokens"
        alone = NextToken(self.model, terms={"text": Symbols(legal=text)})
        before = Forgetting(alone, texts.samples, self.tokenizer, cache, inputs.run)
        self.forgetting = Forgetting(NextToken(self.model), texts.samples, self.tokenizer, cache, inputs.run)
        self.forgetting.start = before.start
        objective: Any = self.objective
        self.read_before = token_ablations.reading(
            objective, self.sides["valid"], inputs.run, settings.eval_items
        )
        return {**texts.fact(), **self.forgetting.before()}

    def _texts(self) -> Texts:
        settings, inputs = self.settings, self.inputs
        if not settings.regression_texts:
            return own_texts(self.text_folder, inputs.base, settings.eval_items)
        quarantine = Quarantine(None, settings.quarantine_limit)
        found = readers.load(
            settings.regression_texts,
            base=inputs.base,
            val_split=settings.val_split,
            seed=settings.seed,
            quarantine=quarantine,
        )
        return Texts(
            [sample for sample in found.valid or found.train if not sample.media], "named in regression_texts"
        )

    def checks(self) -> dict[str, Fact]:
        """The rows, against the samples that they were made from."""
        train, valid, corpus = self.sides["train"], self.sides["valid"], self.corpus
        found = token_labels.facts(train, corpus.train, self.unified)
        return {
            **found,
            "shard_leaks": token_labels.leaks(train.shards, valid.shards, corpus.train, corpus.valid),
        }

    def measure(self, fitted: Fitted, stage_samples: StageSamples) -> dict[str, Fact]:
        """Nats of each task, whether media and prompts are used, what is written, and what was forgotten."""
        self.model.eval()
        rows_of, run, most = self.sides["valid"], self.inputs.run, self.settings.eval_items
        objective: Any = self.objective
        facts = token_ablations.facts(objective, rows_of, run, most)
        samples, longest = self.corpus.valid, self.longest()
        facts |= token_samples.facts(
            self.model,
            self.unified,
            rows_of,
            samples,
            longest=longest,
            most=most,
            stage_samples=stage_samples,
            writing=self.writing,
            checked_tasks=self.settings.checked_tasks,
            hear=self.judge(),
            spoken_tasks=self.spoken_tasks,
        )
        changes = [
            facts[f"{task}_nats"].value / before - 1
            for task, before in self.read_before.items()
            if f"{task}_nats" in facts
        ]
        if changes:
            facts["reading_change"] = Fact(max(changes), len(changes))
        facts |= _writing(facts)
        forgotten = self.forgetting.facts()
        if (now := forgotten.get("text_bits_per_byte")) is not None and self.forgetting.start:
            forgotten["text_change"] = Fact(now.value / self.forgetting.start - 1)
        return facts | forgotten

    def longest(self) -> dict[str, int]:
        """Units of the longest target that may be written, by kind."""
        kinds = [kind for kind in ("text", "audio") if kind == "text" or "audio" in self.unified.codecs]
        return {kind: token_samples.longest(self.sides["train"], kind) for kind in kinds}

    @property
    def writing(self) -> Mapping[str, MediaSampling]:
        """By medium, how its codes are drawn; greedily where it is not named."""
        return {}

    @property
    def spoken_tasks(self) -> Sequence[str]:
        """Tasks whose sounds `judge` must understand."""
        return ()

    def judge(self) -> token_samples.Hear | None:
        """What understands the sounds that it writes, where there is something."""
        return None

    def save_rows(self, folder: Path, base: Mapping[str, Any]) -> None:
        """The new rows, the token space, and on what they stand."""
        longest = self.longest()
        codecs = {codec.modality: self.bases[codec.modality] for codec in self.codecs}
        writing = {kind: how.model_dump() for kind, how in self.writing.items()}
        rows.save(
            self.model,
            folder,
            base=base,
            codecs=codecs,
            longest=longest,
            writing=writing,
            drop_prompts=self.settings.drop_prompts,
            reads=self.settings.media_read,
        )

    def save_with_base(self, folder: Path, plain: Decoder) -> None:
        """The new rows, the token space, and in `thinker/` the language model that learned with them."""
        own = folder / rows.THINKER
        store.save(plain, own)
        self.tokenizer.save(own, self.model.ctx_len)
        base = {**self.bases["thinker"], "name": rows.THINKER, "digest": pretrained.digest(own)}
        self.save_rows(folder, base)

    def changed(self, folder: Path) -> list[str]:
        """Beside the networks': the new rows."""
        return super().changed(folder) + rows.changed(self.model, folder)


def place(codec: Codec, inputs: Inputs) -> None:
    """Tell the run of a codec's networks, which were opened on its device."""
    for network in [codec] if isinstance(codec, nn.Module) else vars(codec).values():
        if isinstance(network, nn.Module):
            inputs.place(network)


def _writing(facts: Mapping[str, Fact]) -> dict[str, Fact]:
    """The nats of what is written as a share of those of a blind choice, the largest of the tasks that write
    a medium."""
    told = [facts[name] for name in ("t2i_nats", "t2a_nats") if name in facts]
    shares = [fact.value / fact.floor for fact in told if fact.floor]
    return (
        {"written_share": Fact(max(shares), sum(fact.n or 0 for fact in told), None, 1.0)} if shares else {}
    )


def open_codecs(
    named: Mapping[str, NetworkReference], codebooks: Mapping[str, int | None], layout: str, inputs: Inputs
) -> tuple[list[Codec], list[CodecEntry], dict[str, dict[str, Any]]]:
    """The codecs of a stage, what the token space stores of each, and how its folder names them, by
    modality."""
    codecs, entries, told = [], [], {}
    for modality, base in named.items():
        folder = base.locate(inputs.needed, inputs.base)
        try:
            codec = open_codec(folder, codebooks.get(modality), inputs.run.device)
        except ConfigError as error:
            if modality not in codebooks:
                raise
            raise ConfigError(f"{modality}_codebooks: {error.message}", hint=error.hint) from error
        if codec.modality != modality:
            raise ConfigError(
                f"{modality}_codec: {folder} is a codec of {codec.modality}s",
                hint="name a codec of the right medium",
            )
        place(codec, inputs)
        codecs.append(codec)
        entries.append(
            CodecEntry.of(codec, name=base.name, layout="interleaved" if codec.codebooks == 1 else layout)
        )
        told[modality] = base.describe(folder, is_stage=base.name in inputs.needed)
    return codecs, entries, told
