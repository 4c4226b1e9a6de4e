"""Write the target span of a task by the decode loop: held to its grammar, or free, to see how often a model
obeys it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from muomni.errors import ConfigError, ContextError
from muomni.infer.decode import decode
from muomni.infer.sampling import MediaSampling, SamplingConfig, pick
from muomni.models.rows import TokenModel
from muomni.nn.head import IGNORE, row_means
from muomni.tokens import sequences
from muomni.tokens.grammar import Grammar, Legal
from muomni.tokens.sequences import TASKS, Task
from muomni.tokens.space import FRAMING

GREEDY = SamplingConfig()
READ_AT_ONCE = 64


class Span:
    """A span as a grid of streams (see `decode.Layout`), each row to its own end.

    Takes   streams: those of a column, at least the grammar's; further ones say pads;
            is_free: any id may stand anywhere, and a row ends with the end token of its first stream or after
            the longest span.
    """

    def __init__(
        self,
        rules: Grammar,
        rows: int,
        sampling: SamplingConfig,
        device: torch.device,
        *,
        streams: int = 1,
        is_free: bool = False,
    ) -> None:
        self.rules, self.sampling, self.steps = rules, sampling, rules.steps
        pad = (range(rules.pad, rules.pad + 1),)
        own = [None if is_free else rules.reach(stream) for stream in range(rules.streams)]
        self.legal: list[Legal | None] = [*own, *[pad] * (streams - rules.streams)]
        self._ids_V = [None if ids is None else _all_of(ids, device) for ids in self.legal]
        self.generator = torch.Generator(device).manual_seed(sampling.seed)
        self.ends: list[int | None] = [
            None
        ] * rows  # units of each row, and all its steps, once its end is said
        self.lengths: list[int | None] = [None] * rows
        self.written: list[Tensor] = []  # (B, S) of each step
        self._masks: dict[tuple[int, Legal], Tensor] = {}

    def name(self, step: int) -> str:
        """See Layout."""
        return f"ids in step {step}"

    def column(self, step: int, scores: list[Tensor]) -> Tensor:
        """The ids of a step, of rows that have ended too: (B, 1), or (B, K, 1)."""
        streams: list[Tensor] = []
        for stream, (scores_BV, ids_V) in enumerate(zip(scores, self._ids_V)):
            if ids_V is not None:
                keep_BV = torch.stack([self._mask(step, stream, end, ids_V) for end in self.ends])
                scores_BV = scores_BV.masked_fill(~keep_BV, -torch.inf)
            place_B = pick(scores_BV, self.sampling, generator=self.generator)
            streams.append(place_B if ids_V is None else ids_V[place_B])
            if stream == 0 and step > 0:
                self._note_ends(step, streams[0])  # which the other streams of this step must know
        self.written.append(torch.stack(streams, 1))
        return streams[0][:, None] if len(streams) == 1 else self.written[-1][..., None]

    def _note_ends(self, step: int, ids_B: Tensor) -> None:
        for row, token in enumerate(ids_B.tolist()):
            if token == self.rules.end and self.ends[row] is None:
                end = self.rules.end_of(step)
                self.ends[row] = end
                self.lengths[row] = step + 1 if self.rules.lags is None else self.rules.length(end)

    def _mask(self, step: int, stream: int, end: int | None, ids_V: Tensor) -> Tensor:
        """bool over the scored ids of a stream, True = may stand there; all of them where the row is over."""
        is_own = stream < self.rules.streams
        legal = self.rules.legal(step, stream, end) if is_own else ()
        if (stream, legal) not in self._masks:
            keep_V = torch.full_like(ids_V, not legal, dtype=torch.bool)
            for ids in legal:
                keep_V |= (ids_V >= ids.start) & (ids_V < ids.stop)
            self._masks[stream, legal] = keep_V
        return self._masks[stream, legal]

    @property
    def is_over(self) -> bool:
        """See Layout."""
        return all(length is not None and len(self.written) >= length for length in self.lengths)

    def rows(self) -> list[Tensor]:
        """Each row's ids up to its end, or all where it has none: (T,), or (K, T)."""
        written_BST = torch.stack(self.written, 2)
        grid_BST = written_BST[:, : self.rules.streams].cpu()
        cut = [grid_ST[:, :length] for grid_ST, length in zip(grid_BST, self.lengths)]
        return [each[0] if self.rules.streams == 1 else each for each in cut]


class Guided:
    """A span whose scores are pushed from those that follow a prompt without words (see MediaSampling).

    Rows of the cache are those of the span, then as many without words, which are given the same symbols.
    """

    def __init__(self, span: Span, guidance: float) -> None:
        self.span, self.guidance = span, guidance
        self.steps, self.legal, self.name = span.steps, span.legal, span.name

    def column(self, step: int, scores: list[Tensor]) -> Tensor:
        """See Layout."""
        halves = [scores_BV.float().chunk(2) for scores_BV in scores]
        column = self.span.column(step, [torch.lerp(blank, asked, self.guidance) for asked, blank in halves])
        return torch.cat((column, column))

    @property
    def is_over(self) -> bool:
        """See Layout."""
        return self.span.is_over


def _all_of(ids: Legal, device: torch.device) -> Tensor:
    return torch.cat([torch.arange(each.start, each.stop, device=device) for each in ids])


def write(
    model: TokenModel,
    prompts: Sequence[Tensor],
    rules: Grammar,
    *,
    sampling: SamplingConfig = GREEDY,
    blank: Tensor | None = None,
    is_free: bool = False,
) -> list[Tensor]:
    """The span that follows each prompt, start and end included: (T,), or (K, T).

    Takes   prompts: ids (T,), or (K, T), of any lengths (`sequences.prompt`); is_free: not held to the
            grammar; blank: the prompt without words, which sampling with guidance needs. Of several candidates
            (`sampling`) the one stays whose words the model finds likeliest, the first of equals.
    Raises  ContextError where a prompt and the longest span do not fit; CheckpointError where scores are no
            numbers; ConfigError for guidance without a blank.
    """
    candidates = sampling.candidates if isinstance(sampling, MediaSampling) else 1
    if candidates == 1:
        return _write(model, prompts, rules, sampling, blank, is_free)
    asked = [prompt for prompt in prompts for _ in range(candidates)]
    rows = _write(model, asked, rules, sampling, blank, is_free)
    nats = words_nats(model, asked, rows, rules).view(len(prompts), candidates)
    return [rows[candidates * at + best] for at, best in enumerate(nats.argmin(1).tolist())]


def words_nats(
    model: TokenModel, prompts: Sequence[Tensor], rows: Sequence[Tensor], rules: Grammar
) -> Tensor:
    """Mean nats of the words of prompts, each read from the image or the sound that was written for it,
    (N,) float32. Spans that are not legal, which can't be read, cost infinitely many.

    Takes   prompts: as `sequences.prompt` makes them; rows: what `write` gave for each.
    """
    kind = next(kind for kind in ("image", "audio") if rules.end == model.space.special(FRAMING[kind][2]))
    task = next(name for name, task in TASKS.items() if task == Task(kind, "text"))
    nats_N = torch.full((len(rows),), torch.inf)
    read = [number for number, row in enumerate(rows) if rules.first_illegal(row) is None]
    for first in range(0, len(read), READ_AT_ONCE):
        some = read[first : first + READ_AT_ONCE]
        items = [
            sequences.build(
                model.space, task, sequences.words_of(prompts[number]), content(rows[number], rules)
            )
            for number in some
        ]
        most = max(len(item) for item in items)
        room = [(0, most - len(item)) for item in items]
        ids_BT = torch.stack(
            [F.pad(item.ids, pad, value=model.space.pad) for item, pad in zip(items, room)]
        ).to(model.new_embed.device)
        labels_BST = torch.stack([F.pad(item.labels, pad, value=IGNORE) for item, pad in zip(items, room)])
        labels_BT = (
            labels_BST[:, 0] if labels_BST.ndim == 3 else labels_BST
        )  # words are said by the first stream
        with torch.inference_mode():
            h_BTD = model.hidden(model.embed(ids_BT))
            each_M, rows_M = model.head.each_nats(h_BTD[:, :-1], labels_BT[:, 1:].to(h_BTD.device))
            nats_B = row_means(each_M, rows_M, len(some))
        nats_N[some] = nats_B.cpu()
    return nats_N


def _write(
    model: TokenModel,
    prompts: Sequence[Tensor],
    rules: Grammar,
    sampling: SamplingConfig,
    blank: Tensor | None,
    is_free: bool,
) -> list[Tensor]:
    guidance = sampling.guidance if isinstance(sampling, MediaSampling) else 1.0
    count, device = len(prompts), model.new_embed.device
    if guidance > 1:
        if blank is None:
            raise ConfigError("guidance: expected the prompt without words, got none")
        prompts = [*prompts, *[blank] * count]
    longest = max(each.shape[-1] for each in prompts)
    if longest + rules.steps > model.ctx_len:
        raise ContextError(
            f"{longest} + {rules.steps} new positions do not fit ctx_len {model.ctx_len}",
            hint="shorten the prompt, or write less",
        )
    padded = [F.pad(each, (longest - each.shape[-1], 0), value=model.space.pad) for each in prompts]
    keep = [[False] * (longest - each.shape[-1]) + [True] * each.shape[-1] for each in prompts]
    batch, keep_BT = torch.stack(padded).to(device), torch.tensor(keep, device=device)
    span = Span(rules, count, sampling, device, streams=model.space.streams, is_free=is_free)
    layout = Guided(span, guidance) if guidance > 1 else span
    with torch.inference_mode():
        x_BTD = model.embed(batch)
    for _ in decode(model, x_BTD, layout, keep_BT=None if bool(keep_BT.all()) else keep_BT):
        pass
    return span.rows()


@dataclass(frozen=True)
class Compliance:
    """How many spans that a model wrote freely are legal to their last id."""

    legal: int
    total: int

    @property
    def share(self) -> float:
        """Of all."""
        return self.legal / self.total


def raw_compliance(model: TokenModel, prompts: Sequence[Tensor], rules: Grammar) -> Compliance:
    """How often greedy writing obeys a grammar that it is not held to: what of it the model has learned.
    Raises as `write`."""
    rows = write(model, prompts, rules, is_free=True)
    return Compliance(sum(rules.first_illegal(row) is None for row in rows), len(rows))


def content(ids: Tensor, rules: Grammar) -> Tensor:
    """The ids between start and end of a legal span, as `TokenSpace.codes_of` takes them."""
    inside = ids[..., 1:]
    if rules.lags is None:
        return inside[:-1]
    frames = int((inside[0] == rules.end).nonzero()[0])
    return torch.where(inside == rules.end, rules.pad, inside)[:, : frames + max(rules.lags)]
