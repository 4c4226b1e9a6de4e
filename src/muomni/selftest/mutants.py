"""The known bugs of this field, each as a small patch on the running code (SPEC G5); the gate that must catch
it stands beside it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.nn import functional as F

from muomni import runtime
from muomni.data import conversation, readers, utterances, voice_rows
from muomni.data.tokenized import encode
from muomni.evaluate import question_only, vqa_evaluation
from muomni.evaluate.facts import Fact
from muomni.execution import stage_run
from muomni.models import omni, store
from muomni.models.codec import Codec
from muomni.models.decoder import Decoder
from muomni.models.higgs import Higgs
from muomni.models.rows import TokenModel
from muomni.models.talker import TalkerConfig
from muomni.nn import masks
from muomni.nn.fsq import FiniteScalarQuantiser, Scalars
from muomni.nn.grown import GrownHead
from muomni.nn.rvq import Quantised, ResidualVQ
from muomni.stages import talker as talker_stage
from muomni.stages import token_model
from muomni.stages.placement import Placement
from muomni.tokens import chat, grid, sequences
from muomni.tokens.chat import IGNORE
from muomni.tokens.space import FRAMING
from muomni.train import loop, optim, step
from muomni.train.average import Average
from muomni.train.objective import Term
from muomni.train.objectives import ctc, symbols, voice
from muomni.train.objectives.language import NextToken
from muomni.train.objectives.talker import TalkerItem, TalkerObjective

Plant = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Mutant:
    """A bug: the stage that it is planted in, each way to plant it, and what must be red then (a gate a way,
    or several: "one, two").

    A plant may name several gates, which must all be red ("one, two").
    how        train | resume: stopped half-way, the bug sits in the second half | ranks: two processes |
               regroup: one, then two go on avx2: AVX512 switched off | judged: nothing is run, a plant gives
               facts as the stage would have measured them
    overrides  settings that the bug needs to have something to break
    """

    number: int
    name: str
    stage: str
    plants: tuple[tuple[Plant, str], ...]
    how: str = "train"
    overrides: tuple[str, ...] = ()


# --- who looks where ----------------------------------------------------------------------------------------------------------------------


def no_shift() -> AbstractContextManager[Any]:
    """Each position is asked for its own token: copying is enough."""
    return patch.object(symbols, "targets", lambda batch: batch.labels_BT[:, :-1])


def double_shift() -> AbstractContextManager[Any]:
    """Data and objective both shift: each position is asked for the token after the next."""
    return patch.object(symbols, "targets", lambda batch: F.pad(batch.labels_BT[:, 2:], (0, 1), value=IGNORE))


def no_causal_mask() -> AbstractContextManager[Any]:
    """The future may be looked at."""
    return _masks(lambda masks_given: {**masks_given, "causal": False}, otherwise=_everything)


def attended_padding() -> AbstractContextManager[Any]:
    """Padding is looked at as if it was there."""
    return _masks(lambda given: {**given, "keep_BT": None})


def leaking_packs() -> AbstractContextManager[Any]:
    """Documents of one row look at each other."""
    return _masks(lambda given: {**given, "documents_BT": None})


def _masks(
    change: Callable[[dict[str, Any]], dict[str, Any]], otherwise: Callable[..., Any] | None = None
) -> AbstractContextManager[Any]:
    true = masks.build

    def build(length: int, **conditions: Any) -> Any:
        mask = true(length, **change(conditions))
        return (
            otherwise(length, conditions)
            if mask is None and otherwise is not None and conditions.get("causal")
            else mask
        )

    return patch.object(masks, "build", build)


def _everything(length: int, conditions: dict[str, Any]) -> torch.Tensor:
    device = next((value.device for value in conditions.values() if isinstance(value, torch.Tensor)), None)
    return torch.ones(1, 1, length, length, dtype=torch.bool, device=device)


# --- what is lost -------------------------------------------------------------------------------------------------------------------------


def lost_term() -> AbstractContextManager[Any]:
    """Only the first codebook's loss is added up."""
    true = TalkerObjective.forward

    def forward(self: TalkerObjective, batch: Any) -> dict[str, Term]:
        return {"book0": true(self, batch)["book0"]}

    return patch.object(TalkerObjective, "forward", forward)


def detached_term() -> AbstractContextManager[Any]:
    """The second codebook's loss is reported, but no gradient comes of it."""
    true = TalkerObjective.forward

    def forward(self: TalkerObjective, batch: Any) -> dict[str, Term]:
        terms = true(self, batch)
        return {**terms, "book1": replace(terms["book1"], total=terms["book1"].total.detach())}

    return patch.object(TalkerObjective, "forward", forward)


def nothing_taught() -> AbstractContextManager[Any]:
    """Every label is masked."""
    return _labels(lambda rendered: [IGNORE] * len(rendered.ids))


def prompt_taught() -> AbstractContextManager[Any]:
    """The user's words are learned like the assistant's."""
    return _labels(lambda rendered: list(rendered.ids))


@contextmanager
def _labels(change: Callable[[chat.Rendered], list[int]]) -> Iterator[None]:
    true = chat.render

    def render(*args: Any, **more: Any) -> chat.Rendered:
        rendered = true(*args, **more)
        return replace(rendered, labels=change(rendered))

    with patch.object(chat, "render", render):
        yield


def no_end_of_speech() -> AbstractContextManager[Any]:
    """Where speech is over, nothing is to be said."""
    true = TalkerConfig.lay_out

    def lay_out(self: TalkerConfig, *args: Any) -> torch.Tensor:
        laid = true(self, *args)
        return laid.masked_fill(laid == self.end, self.pad)

    return patch.object(TalkerConfig, "lay_out", lay_out)


def cut_quantiser() -> AbstractContextManager[Any]:
    """What leaves the quantiser carries no gradient back to the encoder."""
    true = ResidualVQ.forward

    def forward(self: ResidualVQ, *args: Any) -> Quantised:
        out = true(self, *args)
        return replace(out, vectors_BTD=out.vectors_BTD.detach())

    return patch.object(ResidualVQ, "forward", forward)


def cut_scalars() -> AbstractContextManager[Any]:
    """What leaves the scalar quantiser carries no gradient back: values are rounded, and not passed straight
    through."""
    true = FiniteScalarQuantiser.forward

    def forward(self: FiniteScalarQuantiser, *args: Any) -> Scalars:
        out = true(self, *args)
        return out._replace(values_BTD=out.values_BTD.detach())

    return patch.object(FiniteScalarQuantiser, "forward", forward)


def still_codebooks() -> AbstractContextManager[Any]:
    """The codebooks stay where they started."""
    return patch.object(ResidualVQ, "update", lambda self, generator: 0)


# --- media and codes ----------------------------------------------------------------------------------------------------------------------


def swapped_pictures() -> AbstractContextManager[Any]:
    """Every sample shows the picture of another one."""
    true = conversation.Conversations.__init__

    def __init__(self: Any, samples: Any, *args: Any, **more: Any) -> None:
        shown = [sample for sample in samples if sample.images]
        others = dict(zip((sample.id for sample in shown), [*shown[7:], *shown[:7]], strict=True))
        true(self, [_showing(sample, others.get(sample.id)) for sample in samples], *args, **more)

    return patch.object(conversation.Conversations, "__init__", __init__)


def _showing(sample: Any, other: Any) -> Any:
    if other is None:
        return sample
    picture = other.images[0]
    messages = [
        message
        if isinstance(message.content, str)
        else message.model_copy(
            update={"content": [picture if p.type == "image" else p for p in message.parts]}
        )
        for message in sample.messages
    ]
    return sample.model_copy(update={"messages": messages})


def blank_pictures() -> AbstractContextManager[Any]:
    """All pictures reach the eyes as nothing."""
    true = omni.Omni.encode_image
    return patch.object(omni.Omni, "encode_image", lambda self, pixels: true(self, torch.zeros_like(pixels)))


def stale_codes() -> AbstractContextManager[Any]:
    """The codes to learn from were made by another codec than the one that will speak them."""
    true = talker_stage.code

    def code(*args: Any) -> Any:
        entries = int(args[3].codebook_size)
        for index, item in true(*args):
            yield (
                index,
                replace(item, codes_KF=(item.codes_KF + 1) % entries)
                if isinstance(item, TalkerItem)
                else item,
            )

    return patch.object(talker_stage, "code", code)


def infeasible_rows() -> AbstractContextManager[Any]:
    """Texts longer than their sound are let through, and their infinite loss is set to 0."""

    @contextmanager
    def plant() -> Iterator[None]:
        true = F.ctc_loss
        with (
            patch.object(utterances, "min_frames", lambda ids: 1),
            patch.object(ctc.Hearing, "_check", lambda self, batch: self.encoder.lengths(batch.frames_B)),
            patch.object(F, "ctc_loss", lambda *args, **more: true(*args, **{**more, "zero_infinity": True})),
        ):
            yield

    return plant()


def split_by_row() -> AbstractContextManager[Any]:
    """Rows are split one by one, whatever group they are of."""
    return patch.object(readers.Sides, "is_valid", lambda self: np.arange(len(self._is_valid)) % 5 == 0)


# --- the loop -----------------------------------------------------------------------------------------------------------------------------


def mean_of_means() -> AbstractContextManager[Any]:
    """Each micro-batch is divided by its own count, and the means are averaged (of two)."""
    return patch.object(
        step, "mean_share", lambda term, count: term.total.float() * (term.weight / max(1, term.count) / 2)
    )


def early_sync() -> AbstractContextManager[Any]:
    """Gradients are exchanged before the last micro-batch, and not after it."""
    return patch.object(step, "syncs", lambda number, micro_batches: number != micro_batches - 1)


def frozen_moves() -> AbstractContextManager[Any]:
    """The eyes, which are frozen, drift a little with every update."""

    def after_step(self: NextToken, number: int) -> None:
        if self.omni is not None and self.omni.vision is not None:
            with torch.no_grad():
                for parameter in self.omni.vision.parameters():
                    parameter.mul_(1 + 1e-4)

    return patch.object(NextToken, "after_step", after_step)


def resume_from_the_start() -> AbstractContextManager[Any]:
    """A run that is resumed reads its data from the beginning again."""
    true = loop.to_come

    return patch.object(loop, "to_come", lambda position, count, run: true(0, count, run))


def climbing_rate() -> AbstractContextManager[Any]:
    """The cosine is not stopped at the end of the run, and climbs again."""

    def lr_scale(number: int, settings: Any) -> float:
        turn = math.pi * (number - settings.warmup_steps) / max(1, settings.max_steps - settings.warmup_steps)
        return (
            (number + 1) / settings.warmup_steps
            if number < settings.warmup_steps
            else 0.55 + 0.45 * math.cos(turn)
        )

    return patch.object(optim, "lr_scale", lr_scale)


# --- proof --------------------------------------------------------------------------------------------------------------------------------


def swapped_final() -> AbstractContextManager[Any]:
    """As soon as the main rank reads what the stage stands on, each `final/` there holds another network of
    the same shapes.

    The run's own stages are shared by all mutants: what is swapped is a copy.
    """
    true = stage_run._dependencies

    def foundation(entry: Any, base: Path) -> Any:
        for needed in entry.needs:
            stage = entry.run / needed
            if stage.is_symlink():
                certified = stage.resolve()
                stage.unlink()
                shutil.copytree(certified, stage)
            network = store.load(stage / "final")
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(0.01)
            store.save(network, stage / "final", extra=store.extra_of(stage / "final"))
        return true(entry, base)

    return patch.object(stage_run, "_dependencies", foundation)


# --- the machine --------------------------------------------------------------------------------------------------------------------------


@contextmanager
def emulated_format() -> Iterator[None]:
    """The chip is believed to have bf16 of its own, for networks of any width, and has not."""
    with patch.object(runtime, "bf16_gains", lambda device: True), patch.object(runtime, "BF16_MIN_WIDTH", 0):
        yield


# --- numbers ------------------------------------------------------------------------------------------------------------------------------


@contextmanager
def targets_doubled() -> Iterator[None]:
    """Each label is counted as two targets, before the forward and after it: losses and gradients are
    halved."""
    counts, forward = NextToken.counts, NextToken.forward
    with (
        patch.object(
            NextToken, "counts", lambda self, batch: {name: 2 * n for name, n in counts(self, batch).items()}
        ),
        patch.object(
            NextToken,
            "forward",
            lambda self, batch: {
                name: replace(term, count=2 * term.count) for name, term in forward(self, batch).items()
            },
        ),
    ):
        yield


def told_counted() -> AbstractContextManager[Any]:
    """What is told beside the loss (misses) is counted in the speed as if it was learned."""
    true = NextToken.contents

    def contents(self: NextToken, batch: Any) -> dict[str, float]:
        return {**true(self, batch), "labels": float(sum(self.counts(batch).values()))}

    return patch.object(NextToken, "contents", contents)


# --- where networks lie -------------------------------------------------------------------------------------------------------------------


def codec_left_behind() -> AbstractContextManager[Any]:
    """The codec stays where its file was read, though the run computes elsewhere."""
    true = Placement.__call__
    return patch.object(
        Placement,
        "__call__",
        lambda self, network: network if isinstance(network, Codec) else true(self, network),
    )


def placed_where_nothing_trains() -> AbstractContextManager[Any]:
    """Networks are copied to their device under inference_mode, so that what is learned there has no gradient
    (a copy, on a CPU too)."""
    true = Placement.__call__

    def place(self: Placement, network: Any) -> Any:
        network = true(self, network)
        if isinstance(network, Decoder):
            with torch.inference_mode():
                for part in network.modules():
                    part._buffers.update(
                        {name: tensor.clone() for name, tensor in part._buffers.items() if tensor is not None}
                    )
                    part._parameters.update(
                        {
                            name: torch.nn.Parameter(p.clone(), False)
                            for name, p in part._parameters.items()
                            if p is not None
                        }
                    )
        return network

    return patch.object(Placement, "__call__", place)


# --- rates, ranks, averages ----------------------------------------------------------------------------------------------------


def rate_never_set() -> AbstractContextManager[Any]:
    """The schedule is reckoned, and nobody tells the optimizer."""
    return patch.object(optim, "set_lr", lambda optimizer, scale: None)


def another_world() -> AbstractContextManager[Any]:
    """The place in the data is the step times the ranks of today: a run that goes on with more of them passes
    batches over."""
    true = loop.to_come
    return patch.object(loop, "to_come", lambda position, count, run: true(position * run.world, count, run))


def average_lost() -> AbstractContextManager[Any]:
    """The moving average is followed, and the raw weights are validated, kept and handed on."""

    @contextmanager
    def plant() -> Iterator[None]:
        with (
            patch.object(Average, "put", lambda self: None),
            patch.object(Average, "in_place", lambda self: nullcontext()),
        ):
            yield

    return plant()


# --- what proves nothing ---------------------------------------------------------------------------------------------------------


@contextmanager
def media_never_swapped() -> Iterator[None]:
    """What is measured as another medium, as none and as noise is the right one: every gap is exactly 0."""
    with ExitStack() as stack:
        for name in ("_swapped", "_with"):
            stack.enter_context(patch.object(vqa_evaluation, name, lambda item, *_: item))
        yield


@contextmanager
def guesses_for_answers() -> Iterator[dict[str, Fact]]:
    """Every answer is what the question alone gives away."""
    guessed = ["red", "blue"] * 100
    yield {"above_question_only": question_only.above(question_only.gains(guessed, guessed, ["red"] * 200))}


@contextmanager
def four_lucky_answers() -> Iterator[dict[str, Fact]]:
    """Of 200 answers, 4 are better than the guess and none is worse: resampled, their mean lies above 0."""
    guessed = ["blue"] * 200
    said = ["red"] * 4 + guessed[4:]
    yield {"above_question_only": question_only.above(question_only.gains(said, guessed, ["red"] * 200))}


# --- tokens of images and sounds ------------------------------------------------------------------------------------------------


def swapped_books() -> AbstractContextManager[Any]:
    """Shards hold book 1 of a sound where book 0 belongs: every id is legal."""
    return _codes(lambda codes_KF, entries: codes_KF.flip(0))


def stale_digest() -> AbstractContextManager[Any]:
    """Shards hold the codes of another codec, though its digest is that of the one that will decode them."""
    return _codes(lambda codes_KF, entries: (codes_KF + 1) % entries)


def _codes(change: Callable[[torch.Tensor, int], torch.Tensor]) -> AbstractContextManager[Any]:
    true = encode.Encoder._encoded

    def encoded(self: encode.Encoder, modality: str, media: Any) -> list[torch.Tensor]:
        entries = self.tokens.codecs[modality].codebook_size
        return [change(codes_KF, entries) for codes_KF in true(self, modality, media)]

    return patch.object(encode.Encoder, "_encoded", encoded)


def still_head() -> AbstractContextManager[Any]:
    """The new output rows carry no gradient."""
    true = GrownHead.tables.fget  # type: ignore[attr-defined]
    assert true is not None
    return patch.object(
        GrownHead, "tables", property(lambda self: (*true(self)[:-1], true(self)[-1].detach()))
    )


def ignored_source() -> AbstractContextManager[Any]:
    """All that a task reads before it is asked for its target is one and the same token."""
    true = TokenModel.embed

    def embed(self: TokenModel, ids: torch.Tensor) -> torch.Tensor:
        asks = torch.tensor(
            [self.space.special(FRAMING[kind][0]) for kind in ("text", "image", "audio")], device=ids.device
        )
        is_before_BT = torch.isin(ids, asks).flip(1).cumsum(1).flip(1) > 0
        return true(self, ids.masked_fill(is_before_BT, self.space.pad))

    return patch.object(TokenModel, "embed", embed)


def leaking_shards() -> AbstractContextManager[Any]:
    """A few samples that are learned from stand in the held-out shards too."""
    true = token_model.shard_corpus  # type: ignore[attr-defined]  # where the stages find it

    def shard_corpus(corpus: readers.Corpus, *args: Any) -> None:
        true(replace(corpus, valid=[*corpus.valid, *(corpus.train[place] for place in range(4))]), *args)

    return patch.object(token_model, "shard_corpus", shard_corpus)


def source_taught() -> AbstractContextManager[Any]:
    """What a task reads is learned like what it writes."""
    return _built(lambda row: replace(row, labels=row.ids.clone()))


def no_end_of_target() -> AbstractContextManager[Any]:
    """Where an image, a sound or a text is over, nothing is to be said."""
    return _built(
        lambda row: replace(
            row, labels=torch.cat((row.labels[:-1], torch.full_like(row.labels[-1:], IGNORE)))
        )
    )


def _built(change: Callable[[sequences.TokenRow], sequences.TokenRow]) -> AbstractContextManager[Any]:
    true = sequences.build
    return patch.object(sequences, "build", lambda *args, **more: change(true(*args, **more)))


# --- voices: words and codes of one conversation --------------------------------------------------------------------------------

ROLLED = 3  # the book whose labels are


def no_shift_of_words() -> AbstractContextManager[Any]:
    """Each position of a word is asked for its own word."""
    return patch.object(voice, "targets", lambda batch: batch.labels_BT[:, :-1])


def no_shift_of_codes() -> AbstractContextManager[Any]:
    """Each step of speech is asked for its own codes."""
    return patch.object(
        voice, "targets_of_codes", lambda batch: list(batch.code_labels_BKS[..., :-1].unbind(1))
    )


def lost_speech() -> AbstractContextManager[Any]:
    """Only the loss of the words is added up."""
    return _spoken(lambda terms: {"text": terms["text"]})


def detached_speech() -> AbstractContextManager[Any]:
    """The losses of all codebooks are reported, but no gradient comes of them."""
    return _spoken(
        lambda terms: {
            name: term if name == "text" else replace(term, total=term.total.detach())
            for name, term in terms.items()
        }
    )


def _spoken(change: Callable[[dict[str, Term]], dict[str, Term]]) -> AbstractContextManager[Any]:
    true = voice.VoiceObjective.weighed
    return patch.object(voice.VoiceObjective, "weighed", lambda self, scored: change(true(self, scored)))


def rolled_rows() -> AbstractContextManager[Any]:
    """The rows hold one book's labels a step later than its codes."""
    return _code_labels(lambda grid_BKS, labels_BKS, _: _rolled(labels_BKS))


def _rolled(labels_BKS: torch.Tensor) -> torch.Tensor:
    labels_BKS = labels_BKS.clone()
    labels_BKS[:, ROLLED] = labels_BKS[:, ROLLED].roll(1, -1)
    return labels_BKS


def rolled_targets() -> AbstractContextManager[Any]:
    """The loss asks one book a step later than the others."""
    true = symbols.targets_of_codes

    def targets_of_codes(batch: Any) -> list[torch.Tensor]:
        asked = true(batch)
        return [each.roll(1, -1) if book == ROLLED else each for book, each in enumerate(asked)]

    return patch.object(voice, "targets_of_codes", targets_of_codes)


def early_books() -> AbstractContextManager[Any]:
    """Every book but the first begins a step too early, in codes and labels alike."""
    true = grid.framed

    def framed(codes_BKF: torch.Tensor, start: int, end: int) -> torch.Tensor:
        grid_BKS = true(codes_BKF, start, end)
        return torch.cat([grid_BKS[:, :1], F.pad(grid_BKS[:, 1:, 1:], (0, 1), value=end)], 1)

    return patch.object(grid, "framed", framed)


def no_end_of_stream() -> AbstractContextManager[Any]:
    """Where a book is over, nothing is to be said."""
    return _code_labels(lambda grid_BKS, labels_BKS, end: labels_BKS.masked_fill(labels_BKS == end, IGNORE))


def _code_labels(
    change: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
) -> AbstractContextManager[Any]:
    true = grid.framed_labels

    def framed_labels(grid_BKS: torch.Tensor, start: int, end: int, ignore: int) -> torch.Tensor:
        return change(grid_BKS, true(grid_BKS, start, end, ignore), end)

    return patch.object(grid, "framed_labels", framed_labels)


def no_close_of_speech() -> AbstractContextManager[Any]:
    """The mark behind a sound is not learned."""
    true = voice_rows._Builder.words

    def words(self: Any, ids: Any, *, is_taught: bool) -> None:
        true(self, ids, is_taught=is_taught and list(ids) != [self.tokens.close])

    return patch.object(voice_rows._Builder, "words", words)


def one_path_adapted() -> AbstractContextManager[Any]:
    """Of the feed-forward layers those of words get an adapter, and those of codes none."""
    true = Higgs.targets
    return patch.object(
        Higgs, "targets", lambda self, groups: true(self, [each for each in groups if each != "audio_ffn"])
    )


def one_path_taken() -> AbstractContextManager[Any]:
    """Words go through the layers of codes, as codes do."""
    true = Higgs.hidden

    def hidden(self: Higgs, x_BTD: torch.Tensor, **how: Any) -> torch.Tensor:
        return true(self, x_BTD, **{**how, "is_audio_BT": None})

    return patch.object(Higgs, "hidden", hidden)


MUTANTS = (
    Mutant(1, "no shift: the token itself is asked for", "thinker", ((no_shift, "causality"),)),
    Mutant(2, "double shift", "thinker", ((double_shift, "shift"),)),
    Mutant(3, "missing causal mask", "thinker", ((no_causal_mask, "causality"),)),
    Mutant(4, "attended padding", "hearing", ((attended_padding, "padding"),)),
    Mutant(5, "leaking packs", "thinker", ((leaking_packs, "packing"),)),
    Mutant(
        6,
        "lost sub-loss, detached sub-loss",
        "talker",
        ((lost_term, "terms"), (detached_term, "gradient_reach")),
    ),
    Mutant(
        7,
        "all labels masked, prompt supervised",
        "omni",
        ((nothing_taught, "supervision"), (prompt_taught, "supervision")),
    ),
    Mutant(
        8,
        "quantiser without gradient, codebooks that rest",
        "codec",
        ((cut_quantiser, "gradient_reach"), (still_codebooks, "all_learn")),
    ),
    Mutant(9, "no end symbol of speech", "talker", ((no_end_of_speech, "ends_taught"),)),
    Mutant(
        10,
        "swapped media, blank media",
        "omni",
        ((swapped_pictures, "image_swap_sure"), (blank_pictures, "media_reach")),
    ),
    Mutant(11, "stale codes", "talker", ((stale_codes, "codes"),)),
    Mutant(12, "accumulation by a mean of means", "thinker", ((mean_of_means, "accumulation"),)),
    Mutant(13, "inverted gradient sync (two ranks)", "thinker", ((early_sync, "ranks"),), how="ranks"),
    Mutant(14, "frozen part that moves", "omni", ((frozen_moves, "frozen_rests"),)),
    Mutant(15, "wrong order after a resume", "thinker", ((resume_from_the_start, "order"),), how="resume"),
    Mutant(16, "learning rate that climbs after the end", "thinker", ((climbing_rate, "schedule"),)),
    Mutant(17, "rows that CTC can't spell", "hearing", ((infeasible_rows, "infeasible"),)),
    Mutant(18, "split leakage", "thinker", ((split_by_row, "leaks"),)),
    Mutant(19, "swapped final/ of a needed stage", "omni", ((swapped_final, "bases"),)),
    Mutant(20, "set_lr is never called", "thinker", ((rate_never_set, "schedule"),)),
    Mutant(21, "another world size", "thinker", ((another_world, "order"),), how="regroup"),
    Mutant(22, "EMA lost", "thinker", ((average_lost, "average"),), overrides=("thinker.ema_decay=0.9",)),
    Mutant(
        23,
        "target count doubled, told terms counted",
        "thinker",
        ((targets_doubled, "counts"), (told_counted, "counts")),
    ),
    Mutant(24, "emulated bf16", "thinker", ((emulated_format, "native_format"),), how="avx2"),
    Mutant(
        25,
        "a module left on the other device, a module made where nothing trains",
        "talker",
        ((codec_left_behind, "placement"), (placed_where_nothing_trains, "placement")),
    ),
    Mutant(
        26,
        "gaps of exactly 0: no medium is ever swapped",
        "omni",
        ((media_never_swapped, "image_swap_sure, image_zero_sure, image_noise_sure"),),
    ),
    Mutant(
        27,
        "answers that the question gives away, four lucky ones of 200",
        "instruct",
        ((guesses_for_answers, "above_question"), (four_lucky_answers, "above_question")),
        how="judged",
    ),
    Mutant(
        28,
        "scalar quantiser without its straight-through gradient",
        "image_codec",
        ((cut_scalars, "gradient_reach"),),
    ),
    Mutant(29, "swapped order of codebooks", "rows", ((swapped_books, "codes"),)),
    Mutant(30, "codes of another codec under a stale digest", "rows", ((stale_digest, "codes"),)),
    Mutant(31, "new output rows that never learn", "rows", ((still_head, "all_learn"),)),
    Mutant(
        32, "a task whose source is ignored", "rows", ((ignored_source, "i2t_swap_wins, i2t_noise_wins"),)
    ),
    Mutant(33, "a group on both sides of the shards", "rows", ((leaking_shards, "shard_leaks"),)),
    Mutant(
        34,
        "what a task reads is taught, the end of what it writes is not",
        "rows",
        ((source_taught, "supervision"), (no_end_of_target, "ends_taught")),
    ),
    Mutant(
        35,
        "voice: no shift of words, of codes",
        "voice",
        ((no_shift_of_words, "causality"), (no_shift_of_codes, "causality")),
    ),
    Mutant(
        36,
        "voice: audio loss lost, audio loss detached",
        "voice",
        ((lost_speech, "terms"), (detached_speech, "gradient_reach")),
    ),
    Mutant(
        37,
        "voice: one codebook's labels rolled, in the rows, in the loss",
        "voice",
        ((rolled_rows, "supervision"), (rolled_targets, "causality")),
    ),
    Mutant(38, "voice: delay off by one", "voice", ((early_books, "delays"),)),
    Mutant(
        39,
        "voice: end of a stream not taught, the mark behind a sound not taught",
        "voice",
        ((no_end_of_stream, "ends_taught"), (no_close_of_speech, "ends_taught")),
    ),
    Mutant(
        40,
        "voice: LoRA on one path only, all positions on one path",
        "voice",
        ((one_path_adapted, "adapted"), (one_path_taken, "gradient_reach")),
    ),
)
