"""The next token, for the Thinker and for everything that the Thinker reads; the only owner of its shift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from muomni.data.conversation import Item
from muomni.data.corpus import NO_DOCUMENT, Row
from muomni.models.decoder import Decoder
from muomni.models.omni import Media, Omni, gather
from muomni.nn import masks
from muomni.tokens.chat import IGNORE
from muomni.tokens.marks import OWN, PAD, Marks
from muomni.train.losses import linear_cross_entropy
from muomni.train.objective import Objective, Probe, Term, with_perplexity


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

    @property
    def is_real_BT(self) -> Tensor:
        """bool (B, T), True = a token, not padding."""
        if self.keep_BT is not None:
            return self.keep_BT
        if self.documents_BT is not None:
            return self.documents_BT != NO_DOCUMENT
        return torch.ones_like(self.ids_BT, dtype=torch.bool)

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
    """Cross entropy of the next labelled token; with `omni`, pictures and sounds stand among the tokens.

    given  parts, by the beginning of their parameters' names, that come whole from another place (see Objective.given)
    """

    def __init__(self, decoder: Decoder, omni: Omni | None = None, given: Sequence[str] = ()) -> None:
        super().__init__()
        self.omni = omni
        self._given = tuple(given)
        if omni is None:
            self.decoder = decoder
        else:
            assert omni.decoder is decoder

    @property
    def trunk(self) -> Decoder:
        """The causal body, wherever it is held."""
        return self.omni.decoder if self.omni is not None else self.decoder

    @property
    def marks(self) -> Marks:
        """Of the vocabulary that the rows are written in."""
        return OWN if self.omni is None else self.omni.marks

    def given(self) -> Sequence[str]:
        """What its checkpoints need not hold."""
        return self._given

    def counts(self, batch: LanguageBatch) -> dict[str, int]:
        """Labelled targets, and the same for the count of misses."""
        count = int((targets(batch) != IGNORE).sum())
        return {"text": count, "misses": count}

    def contents(self, batch: LanguageBatch) -> dict[str, float]:
        """Samples, real tokens (a medium's positions are among them), labels that are learned, pictures and seconds of sound."""
        found = {**super().contents(batch), "tokens": float(batch.is_real_BT.sum()), "labels": float((targets(batch) != IGNORE).sum())}
        if self.omni is not None and self.omni.vision is not None:
            found["pictures"] = 0.0 if batch.media.pixels_N3HW is None else float(len(batch.media.pixels_N3HW))
        if self.omni is not None and self.omni.audio is not None:
            frames = 0.0 if batch.media.frames_N is None else float(batch.media.frames_N.sum())
            found["audio_s"] = frames / self.omni.audio.config.mel.frame_rate_hz
        return found

    def sizes(self, batch: LanguageBatch) -> tuple[float, ...]:
        """Positions, positions squared, labels; pictures; mel frames, mel frames squared."""
        rows, length = batch.ids_BT.shape
        media = batch.media
        pictures = 0 if media.pixels_N3HW is None else len(media.pixels_N3HW)
        sounds, frames = (0, 0) if media.mel_NFM is None else media.mel_NFM.shape[:2]
        labels = float((targets(batch) != IGNORE).sum())
        return rows * length, rows * length**2, labels, pictures, sounds * frames, sounds * frames**2

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

    def told(self, means: Mapping[str, float]) -> dict[str, float]:
        """Nats, perplexity, and in the place of `misses` the accuracy: the share of labelled tokens that were the most probable ones."""
        shares = {key.replace("misses", "accuracy", 1): 1 - value for key, value in means.items() if key.partition("@")[0] == "misses"}
        rest = {key: value for key, value in means.items() if key.partition("@")[0] != "misses"}
        return {**with_perplexity(rest, {"text": "perplexity"}), **shares}

    def probes(self, batch: LanguageBatch, count: int, rng: np.random.Generator) -> list[Probe]:
        """Labelled tokens, each asked alone, with other tokens from its own place on, and with another one right before it."""
        labelled_BT = batch.labels_BT != IGNORE
        labelled_BT[:, :1] = False
        labelled_BT &= ~(self._is_media(batch.ids_BT) | self._is_media(batch.ids_BT.roll(1, 1)))
        if batch.documents_BT is not None:  # the first token of a document has nothing before it
            labelled_BT &= batch.documents_BT == batch.documents_BT.roll(1, 1)
        places = labelled_BT.nonzero().tolist()
        found = []
        for place in rng.permutation(len(places))[:count]:
            row, t = places[place]
            here_BT = torch.zeros_like(labelled_BT)
            here_BT[row, t] = True
            asked = replace(batch, labels_BT=batch.labels_BT.masked_fill(~here_BT, IGNORE))
            after_BT, before_BT = torch.zeros_like(here_BT), torch.zeros_like(here_BT)
            after_BT[row, t:], before_BT[row, t - 1] = True, True
            found.append(Probe(asked, self._with_others(asked, after_BT, rng), self._with_others(asked, before_BT, rng), "text"))
        return found

    def neighbours(self, batch: LanguageBatch, count: int, rng: np.random.Generator) -> list[tuple[LanguageBatch, LanguageBatch]]:
        """Packed documents asked alone: with other tokens in the documents beside them, and (without media) in rows of their own."""
        if batch.documents_BT is None:
            return []
        wanted_BT = targets(batch) != IGNORE
        pairs = []
        for row in rng.permutation(len(batch.ids_BT)).tolist():
            documents_T = batch.documents_BT[row]
            taught = sorted(set(documents_T[1:][wanted_BT[row]].tolist()))
            if len(set(documents_T[documents_T >= 0].tolist())) < 2 or not taught:
                continue
            number = taught[int(rng.integers(len(taught)))]
            own_T, shared_T = documents_T == number, documents_T == masks.SHARED
            mine_BT = torch.zeros_like(batch.ids_BT, dtype=torch.bool)
            mine_BT[row] = own_T
            asked = replace(batch, labels_BT=batch.labels_BT.masked_fill(~mine_BT, IGNORE))
            beside_BT = torch.zeros_like(mine_BT)
            beside_BT[row] = (documents_T >= 0) & ~own_T
            pairs.append((asked, self._with_others(asked, beside_BT, rng)))
            if batch.media.pixels_N3HW is None and batch.media.mel_NFM is None:
                alone_T = own_T | shared_T
                labels_T = asked.labels_BT[row].masked_fill(shared_T, IGNORE)
                if shared_T.any():  # its first token is the shared part's successor here, and is not asked for there
                    labels_T[int(own_T.nonzero()[0])] = IGNORE
                pairs.append((asked, LanguageBatch([batch.sample_ids[row]], batch.ids_BT[row, alone_T][None], labels_T[alone_T][None])))
            if len(pairs) >= count:
                break
        return pairs

    def other_media(self, batch: LanguageBatch) -> dict[str, LanguageBatch]:
        """The batch with inverted pictures, and with its sounds' spectra upside down."""
        media, found = batch.media, {}
        if media.pixels_N3HW is not None:
            found["image"] = replace(batch, media=replace(media, pixels_N3HW=255 - media.pixels_N3HW))
        if media.mel_NFM is not None:
            found["audio"] = replace(batch, media=replace(media, mel_NFM=media.mel_NFM.flip(2)))
        return found

    def _with_others(self, batch: LanguageBatch, where_BT: Tensor, rng: np.random.Generator) -> LanguageBatch:
        """The batch with other words in the given places; labels and media stay."""
        marks, whole = self.marks, self.trunk.config.vocab_size
        first, size = marks.words_from, whole if marks.words_to is None else marks.words_to
        drawn_BT = torch.from_numpy(rng.integers(first, size, batch.ids_BT.shape)).to(batch.ids_BT)
        drawn_BT = torch.where(drawn_BT == batch.ids_BT, (drawn_BT - first + 1) % (size - first) + first, drawn_BT)
        return replace(batch, ids_BT=torch.where(where_BT & ~self._is_media(batch.ids_BT), drawn_BT, batch.ids_BT))

    def _is_media(self, ids_BT: Tensor) -> Tensor:
        return torch.isin(ids_BT, torch.tensor(self.marks.pads, device=ids_BT.device))


def collate(items: Sequence[Item]) -> LanguageBatch:
    """Items padded on the right to the longest, their media in the order of the rows; questions that stand apart are documents."""
    size = max(len(item.ids) for item in items)
    ids = np.full((len(items), size), PAD, dtype=np.int64)
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
