"""Vision: a picture and its caption find each other among all pictures and captions of an update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from muomni.data.batch import Batch
from muomni.errors import ShapeError
from muomni.models.text_tower import TextTower
from muomni.models.vision_encoder import VisionEncoder, VisionOutput
from muomni.nn.recompute import Recomputing
from muomni.train.objective import Objective, Term

NEVER = -math.inf


class Reader(Protocol):
    """What a `thinker` text tower reads through: a frozen decoder."""

    def embed(self, ids_BT: Tensor) -> Tensor: ...  # (B, T) -> (B, T, D)
    def hidden(self, x_BTD: Tensor, *, keep_BT: Tensor) -> Tensor: ...  # (B, T, D) -> (B, T, D)


@dataclass
class VisionBatch(Batch):
    """Pictures, their captions and, if any, false captions of each.

    pixels_BHW3 uint8; caption_ids_BT int64, caption_keep_BT True = a real token; keys_B int64, equal for
    equal captions; negatives_BNT and negatives_keep_BNT: captions that differ from the true one in one
    attribute (a row without tokens is ignored).
    """

    sample_ids: list[str]
    pixels_BHW3: Tensor
    caption_ids_BT: Tensor
    caption_keep_BT: Tensor
    keys_B: Tensor
    negatives_BNT: Tensor | None = None
    negatives_keep_BNT: Tensor | None = None


@dataclass
class _Cached:
    """Embeddings of every row of an update, without gradients: (N, E) each, and where each local micro-batch
    starts.

    false_NM: each picture's similarity to its own false captions, -inf where it has fewer than M.
    """

    images_NE: Tensor
    texts_NE: Tensor
    keys_N: Tensor
    false_NM: Tensor
    starts: list[tuple[VisionBatch, int]]

    def start(self, batch: VisionBatch) -> int | None:
        """Where a batch's rows start; it is known by itself, since two of one update may hold the same
        samples."""
        return next((first for batch_known, first in self.starts if batch_known is batch), None)


class Words(nn.Module):
    """Which tokens a picture's caption holds: what the summary says, and what the surest patch says."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.summary = nn.Linear(width, vocab_size)
        self.patch = nn.Linear(width, vocab_size, bias=False)
        nn.init.constant_(self.summary.bias, -4.0)  # most tokens are in no caption

    def forward(self, seen: VisionOutput) -> Tensor:
        """Logits (B, V)."""
        out: Tensor = self.summary(seen.cls_B1D[:, 0]) + self.patch(seen.grid_BPD).amax(1)
        return out


class Contrast(Objective):
    """Symmetric InfoNCE with a learned temperature; term "contrast", counted in rows.

    With word_weight also term "words", counted in the captions' tokens.
    The value is the own rows' nats, image to text and text to image averaged. Negatives are all rows of the
    update, over micro-batches and ranks, by embeddings cached in `begin`; the sum of all micro-batches'
    gradients is exactly the gradient of the one large batch (the towers must be deterministic: no dropout).
    Captions with equal keys are never each other's negatives. False captions are extra columns of their own
    picture, image to text only. "words" asks which tokens the caption holds, by a linear layer on the summary
    and one on every patch, of which the surest patch counts: contrast may hide an attribute in products of
    others where no linear reader finds it (shape: probe 0.51 at 96 % right against one changed attribute);
    this lays it open, in the patch where the thing is.
    Source  SPEC M-C; Gao et al. 2021 (gradient caching), changed to one live block a micro-batch instead of
            stored gradients.
    """

    joint = frozenset({"contrast"})

    def __init__(
        self,
        vision: VisionEncoder,
        text: TextTower,
        *,
        temperature: float = 0.07,
        word_weight: float = 0.0,
        reader: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if (text.config.kind == "thinker") != (reader is not None):
            raise ShapeError(
                f"contrast: a text tower of kind {text.config.kind} and reader {type(reader).__name__} do not fit"
            )
        if text.config.embed_dim != vision.config.embed_dim:
            raise ShapeError(
                f"contrast: pictures embed into {vision.config.embed_dim}, captions into {text.config.embed_dim}"
            )
        self.vision = vision
        self.text = text
        self.reader = reader
        self.log_scale = nn.Parameter(torch.tensor(math.log(1.0 / temperature)))
        self.word_weight = word_weight
        self.words: Words | None = Words(vision.config.width, text.config.vocab_size) if word_weight else None
        self._cached: _Cached | None = None

    def counts(self, batch: VisionBatch) -> dict[str, int]:
        """Rows, and the different tokens of each row's caption."""
        counts = {"contrast": len(batch.sample_ids)}
        if self.words:
            counts["words"] = int(self._held(batch).sum())
        return counts

    def contents(self, batch: VisionBatch) -> dict[str, float]:
        """Rows, pictures (one a row), and tokens of the captions, true and false."""
        tokens = float(batch.caption_keep_BT.sum())
        tokens += 0.0 if batch.negatives_keep_BNT is None else float(batch.negatives_keep_BNT.sum())
        return {**super().contents(batch), "pictures": float(len(batch.pixels_BHW3)), "tokens": tokens}

    def sizes(self, batch: VisionBatch) -> tuple[float, ...]:
        """Pictures; positions of the captions, and squared; the same of the false captions."""
        rows, length = batch.caption_ids_BT.shape
        false, width = 0, 0
        if batch.negatives_BNT is not None and batch.negatives_keep_BNT is not None:
            false, width = int(batch.negatives_keep_BNT.any(2).sum()), batch.negatives_BNT.shape[2]
        return rows, rows * length, rows * length**2, false * width, false * width**2

    def _held(self, batch: VisionBatch) -> Tensor:
        """Which tokens each caption holds, bool (B, V)."""
        held_BV = torch.zeros(
            len(batch.sample_ids),
            self.text.config.vocab_size,
            dtype=torch.bool,
            device=batch.caption_ids_BT.device,
        )
        rows, columns = batch.caption_keep_BT.nonzero(as_tuple=True)
        held_BV[rows, batch.caption_ids_BT[rows, columns]] = True
        return held_BV

    @property
    def scale(self) -> Tensor:
        """What similarities are multiplied with, 1 / temperature, at most 100."""
        return self.log_scale.exp().clamp(max=100.0)

    def images(self, batch: VisionBatch) -> Tensor:
        """Unit vectors of the pictures, (B, E)."""
        return self.vision.unit(self.vision.pooled(self._seen(batch)))

    def _seen(self, batch: VisionBatch) -> VisionOutput:
        seen: VisionOutput = self.vision(batch.pixels_BHW3.permute(0, 3, 1, 2))
        return seen

    def texts(self, ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
        """Unit vectors of captions, (B, E)."""
        if self.reader is None:
            return self.text.embed(ids_BT, keep_BT)
        reader = cast(Reader, self.reader)
        with torch.no_grad():
            states_BTD = reader.hidden(reader.embed(ids_BT), keep_BT=keep_BT)
        return self.text.embed(states_BTD.float(), keep_BT)

    @torch.no_grad()
    def begin(self, micro_batches: Sequence[VisionBatch], world: int) -> None:
        """Embed every row of the coming update, here and on the other ranks; one micro-batch on one rank
        needs none of it."""
        self._cached = None
        if len(micro_batches) == 1 and world == 1:
            return
        with Recomputing():  # each micro-batch embeds its own rows again
            seen = [self.images(batch) for batch in micro_batches]
            images = torch.cat(seen)
            false = _stack([self._false_captions(batch, own) for batch, own in zip(micro_batches, seen)])
            texts = torch.cat(
                [self.texts(batch.caption_ids_BT, batch.caption_keep_BT) for batch in micro_batches]
            )
        keys = torch.cat([batch.keys_B for batch in micro_batches])
        first = 0
        if world > 1:
            sizes = _sizes(len(images), images.device)
            first = sum(sizes[: dist.get_rank()])
            images, texts, keys = _gather(images, sizes), _gather(texts, sizes), _gather(keys, sizes)
            false = _gather(_widened(false, max(_sizes(false.shape[1], images.device)), NEVER), sizes)
        starts = []
        for batch in micro_batches:
            starts.append((batch, first))
            first += len(batch.sample_ids)
        self._cached = _Cached(images, texts, keys, false, starts)

    def after_step(self, step: int) -> None:
        """Forget the update's embeddings: the weights have moved."""
        self._cached = None

    def expected_gradients(self) -> dict[str, tuple[str, ...]]:
        """Contrast teaches both towers and the temperature, words the eyes and their own layers."""
        return {
            "contrast": ("vision.*", "text.*", "log_scale"),
            **({"words": ("vision.*", "words.*")} if self.words else {}),
        }

    def padded(self, batch: VisionBatch) -> VisionBatch:
        """The batch with longer captions, real token ids in their padding."""
        junk = {"caption_ids_BT": 1, "caption_keep_BT": False}
        if batch.negatives_BNT is not None:
            junk |= {"negatives_BNT": 1, "negatives_keep_BNT": False}
        wider: dict[str, Any] = {
            name: nn.functional.pad(getattr(batch, name), (0, 5), value=value) for name, value in junk.items()
        }
        return replace(batch, **wider)

    def media_swaps(self, batch: VisionBatch) -> dict[str, VisionBatch]:
        """The batch with inverted pictures."""
        return {"image": replace(batch, pixels_BHW3=255 - batch.pixels_BHW3)}

    def forward(self, batch: VisionBatch) -> dict[str, Term]:
        """The own rows' nats; the gradient is that of the whole update's loss with respect to the own
        rows."""
        seen = self._seen(batch)
        terms = {"contrast": self._contrast(batch, self.vision.unit(self.vision.pooled(seen)))}
        if self.words:
            logits_BV = self.words(seen).float()
            held_BV = self._held(batch)
            nats = nn.functional.binary_cross_entropy_with_logits(logits_BV, held_BV.float(), reduction="sum")
            terms["words"] = Term(nats, int(held_BV.sum()), self.word_weight)
        return terms

    def _contrast(self, batch: VisionBatch, images: Tensor) -> Term:
        texts = self.texts(batch.caption_ids_BT, batch.caption_keep_BT)
        false = self._false_captions(batch, images)
        start = self._cached.start(batch) if self._cached else None
        if self._cached is None or start is None:
            return Term(_nats(images, texts, batch.keys_B, self.scale, false).sum(), len(images))
        own = slice(start, start + len(images))
        all_images, all_texts = self._cached.images_NE.clone(), self._cached.texts_NE.clone()
        all_images[own], all_texts[own] = images, texts
        # Another micro-batch's rows pull on our embeddings, but their pull on the temperature is theirs to
        # count.
        is_own = torch.zeros(len(all_images), dtype=torch.bool, device=images.device)
        is_own[own] = True
        scale_N1 = torch.where(is_own, self.scale, self.scale.detach())[:, None]
        all_false = self._cached.false_NM.clone()
        all_false[own, : false.shape[1]] = false
        nats_N = _nats(all_images, all_texts, self._cached.keys_N, scale_N1, all_false)
        surrogate = nats_N.sum()
        value = nats_N[own].sum().detach()
        return Term(surrogate - surrogate.detach() + value, len(images))

    def _false_captions(self, batch: VisionBatch, images_BE: Tensor) -> Tensor:
        """Similarities of the pictures with their own false captions, (B, N), N may be 0; absent ones at
        -inf."""
        if (
            batch.negatives_BNT is None
            or batch.negatives_keep_BNT is None
            or not batch.negatives_keep_BNT.any()
        ):
            return images_BE.new_empty(len(images_BE), 0)
        keep_BN = batch.negatives_keep_BNT.any(2)
        false_RE = self.texts(batch.negatives_BNT[keep_BN], batch.negatives_keep_BNT[keep_BN])
        rows = keep_BN.nonzero()[:, 0]
        similar_R = (images_BE[rows] * false_RE).sum(1)
        absent = torch.full(keep_BN.shape, NEVER, device=images_BE.device)
        return absent.masked_scatter(keep_BN, similar_R)


def _nats(images_NE: Tensor, texts_NE: Tensor, keys_N: Tensor, scale: Tensor, false_NM: Tensor) -> Tensor:
    """InfoNCE a row, (N,), both directions averaged; scale is a scalar or (N, 1)."""
    same_NN = (keys_N[:, None] == keys_N[None, :]).fill_diagonal_(False)
    similar_NN = images_NE @ texts_NE.T
    # Scaled before it is masked: a scale times -inf has no gradient but NaN.
    absent = torch.cat([same_NN, false_NM == NEVER], 1)
    to_text = (torch.cat([similar_NN, false_NM.masked_fill(false_NM == NEVER, 0.0)], 1) * scale).masked_fill(
        absent, NEVER
    )
    to_image = (similar_NN.T * scale).masked_fill(same_NN, NEVER)
    return -(to_text.log_softmax(1).diagonal() + to_image.log_softmax(1).diagonal()) / 2


def _widened(x_NM: Tensor, columns: int, value: float) -> Tensor:
    return nn.functional.pad(x_NM, (0, columns - x_NM.shape[1]), value=value)


def _stack(pieces: list[Tensor]) -> Tensor:
    """Rows of pieces with different numbers of columns, the missing ones at -inf."""
    columns = max(piece.shape[1] for piece in pieces)
    return torch.cat([_widened(piece, columns, NEVER) for piece in pieces])


def _sizes(own: int, device: torch.device) -> list[int]:
    """A number of every rank, in rank order."""
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([own], device=device))
    return [int(size) for size in sizes]


def _gather(own: Tensor, sizes: list[int]) -> Tensor:
    """The rows of all ranks, one after another; ranks may hold different numbers of rows."""
    padded = own.new_zeros(max(sizes), *own.shape[1:])
    padded[: len(own)] = own
    pieces = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(pieces, padded)
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes)])
