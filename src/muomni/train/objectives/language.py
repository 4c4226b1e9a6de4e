"""The next token, for the Thinker and for everything that the Thinker reads; the only owner of its shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from muomni.data.conversation import Item
from muomni.data.corpus import Row
from muomni.models.decoder import Decoder
from muomni.models.omni import Media, Omni, gather
from muomni.nn import masks
from muomni.tokens.bpe import SPECIAL
from muomni.tokens.chat import IGNORE
from muomni.train.losses import linear_cross_entropy
from muomni.train.objective import Objective, Term


@dataclass
class LanguageBatch:
    """Rows of ids with labels aligned to them (labels[t] is ids[t] or -100).

    ids_BT, labels_BT  int64; keep_BT bool, True = a real position, None = all are
    documents_BT       int64, number of the packed document (masks.SHARED: of all), None = one a row
    media              pictures and sounds in the order of their pads
    """

    sample_ids: list[str]
    ids_BT: Tensor
    labels_BT: Tensor
    keep_BT: Tensor | None = None
    documents_BT: Tensor | None = None
    media: Media = field(default_factory=Media)

    @property
    def length(self) -> int:
        """Positions of a row."""
        return self.ids_BT.shape[1]

    @property
    def labelled_rows(self) -> int:
        """Rows that teach something."""
        return int((self.labels_BT != IGNORE).any(1).sum())

    def to(self, device: torch.device) -> LanguageBatch:
        """The same on another device."""
        move = {name: None if t is None else t.to(device, non_blocking=True) for name, t in self._tensors().items()}
        return replace(self, media=self.media.to(device), **move)  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor | None]:
        return {"ids_BT": self.ids_BT, "labels_BT": self.labels_BT, "keep_BT": self.keep_BT, "documents_BT": self.documents_BT}


def targets(batch: LanguageBatch) -> Tensor:
    """What each position is to predict: the label of the next one in the same document, int64 (B, T-1), -100 where there is none."""
    next_BT = batch.labels_BT[:, 1:]
    if batch.documents_BT is not None:
        next_BT = next_BT.masked_fill(batch.documents_BT[:, 1:] != batch.documents_BT[:, :-1], IGNORE)
    return next_BT


class NextToken(Objective):
    """Cross entropy of the next labelled token; with `omni`, pictures and sounds stand among the tokens."""

    def __init__(self, decoder: Decoder, omni: Omni | None = None) -> None:
        super().__init__()
        self.omni = omni
        if omni is None:
            self.decoder = decoder
        else:
            assert omni.decoder is decoder

    @property
    def trunk(self) -> Decoder:
        """The causal body, wherever it is held."""
        return self.omni.decoder if self.omni is not None else self.decoder

    def counts(self, batch: LanguageBatch) -> dict[str, int]:
        """Labelled targets, and the same for the count of misses."""
        count = int((targets(batch) != IGNORE).sum())
        return {"text": count, "misses": count}

    def _hidden(self, batch: LanguageBatch) -> Tensor:
        x_BTD = self.trunk.embed(batch.ids_BT) if self.omni is None else self.omni.embed(batch.ids_BT, batch.media)
        return self.trunk.hidden(x_BTD, keep_BT=batch.keep_BT, documents_BT=batch.documents_BT)

    @torch.no_grad()
    def nats(self, batch: LanguageBatch) -> Tensor:
        """Mean nats of each row's labelled tokens, (B,) float32; 0 where a row has none."""
        h_BTD, wanted_BT = self._hidden(batch)[:, :-1], targets(batch)
        rows, places = (wanted_BT != IGNORE).nonzero(as_tuple=True)
        logits_NV = self.trunk.logits(h_BTD[rows, places]).float()
        nats_N = nn.functional.cross_entropy(logits_NV, wanted_BT[rows, places], reduction="none")
        sums_B = nats_N.new_zeros(len(wanted_BT)).index_add(0, rows, nats_N)
        return sums_B / torch.bincount(rows, minlength=len(wanted_BT)).clamp(min=1)

    def forward(self, batch: LanguageBatch) -> dict[str, Term]:
        """Nats of the labelled tokens; `misses`, unweighted, counts those that were not the most probable one."""
        h_BTD = self._hidden(batch)
        total, count, correct = linear_cross_entropy(h_BTD[:, :-1].flatten(0, 1), self.trunk.output_weight_VD, targets(batch).flatten())
        return {"text": Term(total, count), "misses": Term((count - correct).float(), count, weight=0.0)}


def collate(items: Sequence[Item]) -> LanguageBatch:
    """Items padded on the right to the longest, their media in the order of the rows; questions that stand apart are documents."""
    size = max(len(item.ids) for item in items)
    ids = np.full((len(items), size), SPECIAL.pad, dtype=np.int64)
    labels = np.full((len(items), size), IGNORE, dtype=np.int64)
    keep = np.zeros((len(items), size), dtype=bool)
    documents = np.zeros((len(items), size), dtype=np.int64)
    for row, item in enumerate(items):
        ids[row, : len(item.ids)] = item.ids
        labels[row, : len(item.labels)] = item.labels
        keep[row, : len(item.ids)] = True
        documents[row] = np.searchsorted(item.starts, np.arange(size), side="right")
        documents[row, : item.shared] = masks.SHARED
    return LanguageBatch(
        [item.sample_id for item in items],
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(keep),
        torch.from_numpy(documents) if any(item.starts for item in items) else None,
        gather([picture for item in items for picture in item.pictures], [mel for item in items for mel in item.mels]),
    )


def collate_rows(rows: list[tuple[str, Row]]) -> LanguageBatch:
    """Rows, cut to the longest real length; documents do not look at each other."""
    longest = max(int((row.documents_T >= 0).sum()) for _, row in rows)

    def stack(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(row, name)[:longest] for _, row in rows]))

    return LanguageBatch([name for name, _ in rows], stack("ids_T"), stack("labels_T"), documents_BT=stack("documents_T"))
