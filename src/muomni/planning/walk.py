"""One batch of a stage's training followed through its networks, up to the terms of its loss. Nothing is
trained, nothing is written."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muomni import runtime
from muomni.data.batch import SequenceBatch
from muomni.errors import DataError
from muomni.execution import recipe as recipes
from muomni.execution.recipe import Recipe
from muomni.infer import hops
from muomni.infer.hops import Hop, Watch
from muomni.models.audio_encoder import AudioEncoder
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.planning import building, forecast, missing_models
from muomni.planning.building import Task
from muomni.planning.dry_run import SurveyedStage
from muomni.planning.published_sizes import CodecSizes, Sizes
from muomni.stages.stage import Inputs
from muomni.tokens.chat import IGNORE
from muomni.train.objective import Objective
from muomni.train.objectives.codec import CodecBatch, CodecObjective
from muomni.train.objectives.contrast import Contrast, VisionBatch
from muomni.train.objectives.ctc import Hearing, HearingBatch
from muomni.train.objectives.image_codec import ImageCodecBatch, ImageCodecObjective
from muomni.train.objectives.language import NextToken
from muomni.train.objectives.symbols import targets
from muomni.train.objectives.talker import TalkerObjective
from muomni.train.objectives.tokens import TokenBatch, TokenTasks

FIRST_BATCHES = 64  # that are looked through for one with a readable sample


def trace(
    source: str, stage: str, overrides: list[str] | None = None, *, out: Path | None = None
) -> tuple[list[Hop], list[str]]:
    """The hops of the first batch of a stage's training, from its data to the terms of its loss, and what is
    to be known beside.

    Takes   source: a recipe's name or file, or a run's folder; out: the run folder, read for finished stages.
            What a stage builds on and is not trained yet is stood in for by an untrained network of its size,
            data that are not there by assumed ones; so is told.
    Raises  ConfigError for a stage that the recipe does not have, or that trains nothing itself; else
            whatever the stage would raise.
    """
    if (origin := Path(source) / "recipe.json").is_file():
        content, out = recipes.origin(origin.parent, "recipe", "overrides"), Path(source)
        source, overrides = content["recipe"], [*content["overrides"], *(overrides or [])]
    recipe = building.planned(recipes.read(source, overrides, out=out))
    recipe.entry(stage)
    folder = (out or Path("runs") / recipe.name).resolve()
    with tempfile.TemporaryDirectory(prefix="muomni-trace-") as temporary:
        forecast.link(recipe, folder, Path(temporary))
        missing = forecast.stood_in_for(recipe, [stage], folder)
        for name in [name for name in recipe.stages if name in missing]:
            _surveyed(recipe, _task(source, overrides, name, folder, temporary)).training.save(
                Path(temporary) / name / "final"
            )
        surveyed = _surveyed(recipe, _task(source, overrides, stage, folder, temporary))
        return walk(surveyed), surveyed.notes


def _task(source: str, overrides: list[str] | None, stage: str, folder: Path, temporary: str) -> Task:
    return Task(str(recipes.find(source)), overrides or [], stage, str(folder), temporary)


def _surveyed(recipe: Recipe, task: Task) -> SurveyedStage:
    """A stage as a plan builds it; a network of others that is not here is stood in for by one of its
    widths."""
    own = Path(task.temporary) / task.stage
    prepared = building.prepare(task, recipe, own)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a walk downloads no weights
    absent = missing_models.missing(recipe, task.stage, Path(task.folder))
    prepared.notes += [
        f"{name} ({each.base.name}) is not on this machine: {_stands_in(each.sizes)}"
        for name, each in absent.items()
    ]
    # What a connector, or rows, stand on was made with the stage that they come from.
    if absent and building.start_of(recipe, task.stage) is None:
        samples = (
            Inputs(own, {}, recipe.base, runtime.start(device=recipe.header.device))
            .corpus(prepared.settings)
            .train
        )
        named: dict[str, Any] = dict(
            missing_models.cut(absent, dict.fromkeys(absent, 1), samples, recipe.header.device, own)
        )
        if "vision_tower" in named:
            named["feature_layers"] = tuple(
                min(level, 1) for level in getattr(prepared.settings, "feature_layers", ())
            )
        prepared.settings = building.changed(prepared.settings, **named)
    return building.build(task, recipe, own, prepared)


def _stands_in(sizes: Sizes) -> str:
    """What stands in for a network that is not here."""
    if isinstance(sizes, CodecSizes):
        return "a random narrow one stands in, which makes as many codes"
    words = (
        f" and {missing_models.CUT_VOCABULARY} of {sizes.vocab_size} words"
        if isinstance(sizes, DecoderConfig)
        else ""
    )
    return f"a random network of its widths stands in, with 1 of {sizes.layers} blocks{words}"


def walk(surveyed: SurveyedStage) -> list[Hop]:
    """The hops of a built stage's first batch."""
    objective, run = surveyed.training.objective, surveyed.run
    batch = _first(surveyed)
    objective.train()
    objective.warm_start(batch)  # a quantiser that starts later starts now: this copy is thrown away
    begin: Callable[..., After] = WALKS.get(type(objective), _any)
    with hops.watching() as watch, run.autocast(), torch.no_grad():
        after = begin(watch, objective, batch, surveyed.training.train.dataset)
        objective.begin([batch], 1)
        terms = objective(batch)
        after()
        for name, term in terms.items():
            each = f"{float(term.total) / max(1, term.count):.4g} each"
            weight = "counted, not minimised" if not term.weight else f"weight {term.weight:g}"
            watch.add(
                f"term {name}", (), f"{float(term.total):.6g} over {term.count} targets, {each}; {weight}"
            )
        loss = sum(term.weight * float(term.total) / max(1, term.count) for term in terms.values())
        parts = surveyed.settings.gradient_accumulation_steps
        share = (
            f"; {parts} micro-batches make an update, and targets are counted over all of them first"
            if parts > 1
            else ""
        )
        watch.add(
            "loss", (), f"{loss:.6g}: the weighted sum of the terms, each divided by its own targets{share}"
        )
    return watch.hops


def _first(surveyed: SurveyedStage) -> Any:
    """The first batch that holds a readable sample, on the run's device."""
    for number in range(FIRST_BATCHES):
        loaded = surveyed.training.train.load(number)
        if loaded.batch is not None:
            return loaded.batch.to(surveyed.run.device)
    first = loaded.bad[0]
    raise DataError(
        first.reason,
        f"{first.sample_id}: {first.detail}",
        hint="none of the first samples can be read: muomni data check",
    )


# --- one function for each kind of objective: it sets the hooks, and gives what is told after the forward ---------------------------------

After = Callable[[], None]


def _any(watch: Watch, objective: Objective, batch: Any, dataset: Any) -> After:
    """An objective that no function here knows: what its batch holds."""
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            watch.add(name, value.shape, f"of the batch, {value.dtype}")
    return lambda: None


def _language(watch: Watch, objective: NextToken, batch: SequenceBatch, dataset: Any) -> After:
    trunk, omni, media = objective.trunk, objective.omni, batch.media
    assert isinstance(trunk, Decoder)
    watch.add(
        "ids",
        batch.ids_BT.shape,
        "rows of token ids, padded to the longest, with pads where media go" if omni else "rows of token ids",
    )
    learned = int((batch.labels_BT != IGNORE).sum())
    watch.add(
        "labels",
        batch.labels_BT.shape,
        f"the same ids where they are learned ({learned} of {batch.labels_BT.numel()}), else {IGNORE}",
    )
    if batch.documents_BT is not None:
        watch.add(
            "documents",
            batch.documents_BT.shape,
            "which document of its row each token is of: none sees another",
        )
    watch.out_of(trunk.table, "embeddings", "one vector a token")
    if omni is not None and "image" in media and omni.vision is not None:
        hops.watch_vision_tower(watch, omni.vision, omni.projectors)
    if omni is not None and "audio" in media and omni.audio is not None:
        _second(watch, omni.audio, dataset.spec.pad_s)
        hops.watch_audio_encoder(watch, omni.audio, omni.projectors)
    if omni is not None:
        watch.into(trunk.body, "fused", "media tokens in the places of their pads")
    hops.watch_thinker(watch, trunk)

    def after() -> None:
        wanted_BT = targets(batch)
        count = int((wanted_BT != IGNORE).sum())
        watch.add(
            "targets",
            wanted_BT.shape,
            f"the label of the next position: the one shift that there is; {count} are asked",
        )
        watch.add(
            "logits",
            (count, trunk.head.size),
            "of the asked places alone, a few hundred rows at a time: never held whole",
        )

    return after


def _tokens(watch: Watch, objective: TokenTasks, batch: TokenBatch, dataset: Any) -> After:
    model = objective.model
    space, decoder, tasks = model.space, model.decoder, Counter(batch.tasks)
    told = ", ".join(f"{count} {task}" for task, count in tasks.items())
    watch.add(
        "ids",
        batch.ids_BT.shape,
        f"rows of {told}, padded to the longest; words, and codes as ids of their own",
    )
    learned = int((batch.labels_BT != IGNORE).sum())
    watch.add(
        "labels",
        batch.labels_BT.shape,
        f"the ids of what is written ({learned} of {batch.labels_BT.numel()}), else {IGNORE}",
    )
    assert decoder.grown_embed is not None
    new = len(space.new_rows)
    watch.out_of(
        decoder.grown_embed,
        "embeddings",
        f"one vector a token; {new} rows for special and media tokens beside the text's",
    )
    hops.watch_thinker(watch, decoder)

    def after() -> None:
        choice = "of the ids that may stand there" if objective.legal else "of all ids"
        watch.add(
            "logits", (learned, space.size), f"of the asked places alone, the probability is that {choice}"
        )

    return after


def _hearing(watch: Watch, objective: Hearing, batch: HearingBatch, dataset: Any) -> After:
    encoder = objective.encoder
    watch.add(
        "frames", batch.mel_BFM.shape, "log-mel of utterances with their silence, padded to the longest"
    )
    watch.add("transcripts", batch.labels_BU.shape, f"symbols, {int(batch.symbols_B.sum())} in all, padded")
    _second(watch, encoder, dataset.pad_s)
    hops.watch_audio_encoder(watch, encoder, None)
    watch.out_of(encoder.head, "symbols", "a score for every character and the blank, at every state")
    return lambda: watch.add(
        "states a row", encoder.lengths(batch.frames_B).shape, "how many are real; CTC asks these alone"
    )


def _second(watch: Watch, encoder: AudioEncoder, pad_s: float) -> None:
    """What a second of sound amounts to, with the silence that is put around it."""
    spec = encoder.config.mel
    plain, whole = (
        encoder.length(spec.frames(spec.rate_hz + 2 * round(each * spec.rate_hz))) for each in (0.0, pad_s)
    )
    note = f"states of a second of sound: {plain} of its own, the others of {pad_s:g} s of silence on either side (pad_s)"
    watch.add("one second", (1, whole), note)


def _contrast(watch: Watch, objective: Contrast, batch: VisionBatch, _: Any) -> After:
    tower, text = objective.vision, objective.text
    rows = len(batch.sample_ids)
    watch.add("pictures", batch.pixels_BHW3.shape, "red, green and blue, 0 to 255")
    watch.add("captions", batch.caption_ids_BT.shape, "token ids, padded")
    if batch.negatives_BNT is not None:
        watch.add("false captions", batch.negatives_BNT.shape, "of each picture: with one attribute changed")
    hops.watch_vision_tower(watch, tower, None)
    watch.out_of(
        tower.proj, "picture embeddings", "of summary and surest patches together; brought to length 1"
    )
    if text.config.kind == "thinker":
        watch.into(text.norm, "caption states", "of the frozen Thinker")
    else:
        watch.out_of(text.tokens, "caption tokens", "one vector a token")
        for number, block in enumerate(text.blocks, start=1):
            watch.out_of(block, f"caption block {number}", "attention, then feed-forward, both added")
    watch.out_of(text.proj, "caption embeddings", "of the mean over the tokens; brought to length 1")
    if objective.words is not None:
        watch.out_of(objective.words, "words", "which tokens the caption holds")

    def after() -> None:
        false = 0 if batch.negatives_BNT is None else batch.negatives_BNT.shape[1]
        beside = f" and its {false} false ones" if false else ""
        scale = float(objective.scale)
        watch.add(
            "similarities",
            (rows, rows + false),
            f"each picture with every caption{beside}, times {scale:.3g} (1 / temperature)",
        )

    return after


def _codec(watch: Watch, objective: CodecObjective, batch: CodecBatch, _: Any) -> After:
    codec = objective.codec
    config = codec.config
    watch.add(
        "log-mel",
        batch.mel_BFM.shape,
        f"{config.mel.frame_rate_hz:g} frames a second, {config.mel.num_mels} bands",
    )
    watch.out_of(
        codec.patch, "code frames", f"{config.stride_frames} mel frames in one: {codec.rate_hz:g} a second"
    )
    watch.out_of(codec.to_latent, "latents", f"after {config.blocks} blocks")
    by_books: Callable[[Any], Tensor] = lambda made: made.codes_BKT.transpose(1, 2)  # noqa: E731
    watch.out_of(
        codec.quantiser,
        "codes",
        f"the nearest of {config.codebook_size} entries in each of {config.codebooks} codebooks",
        by_books,
    )
    watch.out_of(
        codec.quantiser,
        "quantised",
        "the sum of these entries; gradients go past it to the latents",
        lambda made: made.vectors_BTD,
    )
    watch.out_of(codec.unpatch, "mel frames", "after as many blocks, unfolded into mel frames again")
    watch.out_of(codec.to_mel, "rebuilt", "in units of the log-mel's deviation")
    return lambda: None


def _image_codec(watch: Watch, objective: ImageCodecObjective, batch: ImageCodecBatch, _: Any) -> After:
    codec = objective.codec
    config, side = codec.config, codec.config.side
    levels = " x ".join(map(str, config.levels))
    watch.add("pixels", batch.pixels_BHW3.shape, "bytes, as they were read and changed")
    watch.out_of(
        codec.patch, "fine grid", f"a cell for {config.fine_patch_size} x {config.fine_patch_size} pixels"
    )
    watch.out_of(
        codec.fold,
        "token grid",
        f"{side} x {side} tokens, each of {config.patch_size} x {config.patch_size} pixels",
    )
    watch.out_of(codec.to_latent, "latents", f"after {config.blocks} blocks")
    told = f"of {codec.codebook_size}: each latent at the nearest of its levels, {levels}"
    watch.out_of(codec.quantiser, "codes", told, lambda made: made.codes_BT)
    watch.out_of(
        codec.quantiser,
        "quantised",
        "the middles of these levels; gradients go past it",
        lambda made: made.values_BTD,
    )
    watch.out_of(codec.unfold, "fine grid again", "after as many blocks")
    watch.out_of(codec.to_pixels, "rebuilt", "pixels from -1 to 1")
    return lambda: None


def _talker(watch: Watch, objective: TalkerObjective, batch: SequenceBatch, _: Any) -> After:
    talker = objective.talker
    config = talker.config
    labels_BKS = batch.code_labels_BKS
    assert labels_BKS is not None
    rows, books, steps = labels_BKS.shape
    lag = (
        "each book a frame after the one before it"
        if config.layout == "delay" and books > 1
        else "all books in one step"
    )
    watch.add("text ids", batch.ids_BT.shape, "what is said, padded")
    if batch.hidden_BTD is not None:
        watch.add("Thinker's states", batch.hidden_BTD.shape, "how its middle layer understands these tokens")
    watch.add(
        "codes", (rows, batch.length, books), f"of the speech, by the codec: frames x {books} codebooks"
    )
    watch.add("targets", (rows, steps, books), f"laid out in steps, {lag}; book 1 also says the end")
    note = f"what stood one step before (first the start vector); of 100 codes {100 * config.code_noise:g} are random"
    watch.fixed(talker.tables[0], "previous codes", (rows, steps, books), note)
    watch.out_of(talker.text_table, "text embeddings", "one vector a token")
    watch.into(
        talker.blocks[0], "text, start and frames", "the text is seen whole, frames see what came before them"
    )
    for number, block in enumerate(talker.blocks, start=1):
        watch.out_of(block, f"block {number}", "attention, then feed-forward, both added")
    watch.out_of(talker.norm, "states", "of the start and the frames: what the next step is said from")

    def after() -> None:
        for book in range(books):
            is_code = labels_BKS[:, book] != IGNORE
            classes = config.codebook_size + (book == 0)
            end = " and the end" if book == 0 else ""
            meaning = f"{config.codebook_size} codes{end} at every step; {int(is_code.sum())} of {is_code.numel()} steps have something to say"
            watch.add(f"head {book + 1}", (rows, steps, classes), meaning)

    return after


WALKS: dict[type, Callable[[Watch, Any, Any, Any], After]] = {
    NextToken: _language,
    TokenTasks: _tokens,
    Hearing: _hearing,
    Contrast: _contrast,
    CodecObjective: _codec,
    ImageCodecObjective: _image_codec,
    TalkerObjective: _talker,
}
