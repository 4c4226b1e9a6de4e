"""The next token, for the Thinker and for everything that the Thinker reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from muomni.data.batch import SequenceBatch, right_padded
from muomni.data.conversation import Item
from muomni.data.corpus import NO_DOCUMENT, Row
from muomni.models.causal import CausalLM
from muomni.models.decoder import Decoder, ExpertsConfig
from muomni.models.omni import MEDIA_INPUTS, Omni, gather
from muomni.nn import masks, moe
from muomni.nn.head import Head
from muomni.nn.moe import MoE, Routing
from muomni.nn.recompute import Recomputing
from muomni.tokens.chat import IGNORE
from muomni.tokens.special_tokens import OWN, PAD, SpecialTokens
from muomni.train.objective import Probe, Term, without_misses
from muomni.train.objectives.symbols import NextSymbol, Symbols
from muomni.train.sharding import blocks_of


class NextToken(NextSymbol):
    """Cross entropy of the next labelled token; with `omni`, pictures and sounds stand among the tokens.

    Where routers of experts learn, term "balance" asks them to use all experts alike: experts x sum over them
    of (share of the tokens that use it) x (mean probability), over the layers and all tokens of the update,
    those of other micro-batches and ranks too. The shares have no gradient; where an update has several
    micro-batches they are found by a forward more.
    Source  Fedus et al. 2021, as transformers' load_balancing_loss_func has it.

    given  parts, by the beginning of their parameters' names, that come whole from another place (see
           Objective.frozen_parts)
    """

    def __init__(
        self,
        decoder: CausalLM,
        omni: Omni | None = None,
        frozen_parts: Sequence[str] = (),
        terms: Mapping[str, Symbols] | None = None,
    ) -> None:
        super().__init__(terms or {"text": Symbols()})
        self.omni = omni
        self._frozen_parts = tuple(frozen_parts)
        self._shares_E: Tensor | None = None
        self._has_experts = any(isinstance(part, MoE) for part in decoder.modules())
        if self._has_experts:
            self.joint = frozenset({"balance"})
        if omni is None:
            self.decoder = decoder
        else:
            assert omni.decoder is decoder

    @property
    def trunk(self) -> CausalLM:
        """The causal body, wherever it is held."""
        return self.omni.decoder if self.omni is not None else self.decoder

    @property
    def special_tokens(self) -> SpecialTokens:
        """Of the vocabulary that the rows are written in."""
        return OWN if self.omni is None else self.omni.special_tokens

    def blocks(self) -> Sequence[nn.Module]:
        """The trunk's, where all rows take the same way through it."""
        return () if self._has_experts or self.omni is not None else blocks_of(self.trunk)

    def frozen_parts(self) -> Sequence[str]:
        """What its checkpoints need not hold."""
        return self._frozen_parts

    def counts(self, batch: SequenceBatch) -> dict[str, int]:
        """Labelled targets by term, and all of them for the count of misses."""
        found = super().counts(batch)
        balance = {"balance": int(batch.is_real_BT.sum())} if self.balances else {}
        return {**found, "misses": sum(found.values()), **balance}

    @property
    def balances(self) -> bool:
        """Whether there are routers that learn, and are asked to use all experts alike."""
        if not self._has_experts or not self.experts.balance_weight:
            return False
        return any(part.gate.weight.requires_grad for part in self.trunk.modules() if isinstance(part, MoE))

    @torch.no_grad()
    def begin(self, micro_batches: Sequence[SequenceBatch], world: int) -> None:
        """Count which experts the whole update uses, here and on the other ranks; one micro-batch on one rank
        counts its own."""
        self._shares_E = None
        if not self.balances or (len(micro_batches) == 1 and world == 1):
            return
        was_training = self.training
        self.eval()  # without dropout, so that the shares are the same however an update is divided
        with Recomputing():
            counts = [self._use(batch, self._routed(batch)).sum(0) for batch in micro_batches]
        self.train(was_training)
        used_E = torch.stack(counts).sum(0)
        if world > 1:
            dist.all_reduce(used_E)
        self._shares_E = used_E / used_E.sum()

    def _routed(self, batch: SequenceBatch) -> Routing:
        routing = Routing()
        self._hidden(batch, routing)
        return routing

    def _use(self, batch: SequenceBatch, routing: Routing) -> Tensor:
        """How often each expert of each layer is used by the batch's tokens, (layers, experts)."""
        return moe.use(routing, batch.is_real_BT, self.experts.experts_per_token)

    @property
    def experts(self) -> ExpertsConfig:
        """Of a trunk that has them."""
        decoder = self.trunk
        assert isinstance(decoder, Decoder)
        assert decoder.config.experts is not None
        return decoder.config.experts

    @torch.no_grad()
    def expert_use(self, batch: SequenceBatch) -> Tensor:
        """How often each expert of each layer that has some is used by the batch's tokens, (layers, experts)
        float32."""
        return self._use(batch, self._routed(batch))

    def _balance(self, batch: SequenceBatch, routing: Routing) -> Term:
        """What the batch adds to the loss of the whole update, times its tokens."""
        experts = self.experts
        if (shares_E := self._shares_E) is None:
            used_E = self._use(batch, routing).sum(0)
            shares_E = used_E / used_E.sum().clamp(min=1)
        probabilities_E = moe.probabilities(routing, batch.is_real_BT) / len(routing.logits)
        # Each token uses several: shares of tokens sum to per_token, as in transformers.
        total = experts.num_experts * experts.experts_per_token * (shares_E * probabilities_E).sum()
        return Term(total, int(batch.is_real_BT.sum()), weight=experts.balance_weight)

    def contents(self, batch: SequenceBatch) -> dict[str, float]:
        """Samples, real tokens (a medium's positions are among them), labels that are learned, pictures and
        seconds of sound."""
        amounts = {
            **super().contents(batch),
            "tokens": float(batch.is_real_BT.sum()),
            "labels": float((self.labels(batch)[0] != IGNORE).sum()),
        }
        if self.omni is not None and self.omni.vision is not None:
            amounts["pictures"] = float(len(batch.media["image"].values_N)) if "image" in batch.media else 0.0
        if self.omni is not None and self.omni.audio is not None:
            frames_N = batch.media["audio"].lengths_N if "audio" in batch.media else None
            frames = 0.0 if frames_N is None else float(frames_N.sum())
            amounts["audio_s"] = frames / self.omni.audio.config.mel.frame_rate_hz
        return amounts

    def sizes(self, batch: SequenceBatch) -> tuple[float, ...]:
        """Positions, positions squared, labels; pictures; mel frames, mel frames squared."""
        rows, length = batch.ids_BT.shape
        media = batch.media
        pictures = len(media["image"].values_N) if "image" in media else 0
        sounds, frames = media["audio"].values_N.shape[:2] if "audio" in media else (0, 0)
        labels = float((self.labels(batch)[0] != IGNORE).sum())
        return rows * length, rows * length**2, labels, pictures, sounds * frames, sounds * frames**2

    def _hidden(self, batch: SequenceBatch, routing: Routing | None = None) -> Tensor:
        x_BTD = (
            self.trunk.embed(batch.ids_BT)
            if self.omni is None
            else self.omni.embed(batch.ids_BT, batch.media)
        )
        how = {} if routing is None else {"routing": routing}
        return self.trunk.hidden(x_BTD, keep_BT=batch.keep_BT, documents_BT=batch.documents_BT, **how)

    @property
    def head(self) -> Head:
        """The trunk's."""
        return self.trunk.head

    def states(self, batch: SequenceBatch, routing: Routing | None = None) -> Tensor:
        """See NextSymbol: of all positions but the last."""
        return self._hidden(batch, routing)[:, :-1]

    def forward(self, batch: SequenceBatch) -> dict[str, Term]:
        """Nats of the labelled tokens; `misses`, unweighted, counts those that were not the most probable
        one."""
        routing = Routing() if self.balances else None
        scored = self.scored(self.states(batch, routing), batch)
        count = sum(each.num_labels for each in scored.values())
        correct = torch.stack([each.correct for each in scored.values()]).sum()
        terms = {**self.weighed(scored), "misses": Term((count - correct).float(), count, weight=0.0)}
        return terms if routing is None else {**terms, "balance": self._balance(batch, routing)}

    def after_step(self, step: int) -> None:
        """Forget the update's shares: the weights have moved."""
        self._shares_E = None

    def expected_gradients(self) -> dict[str, tuple[str, ...]]:
        """Balance teaches the routers."""
        return {"balance": ("*.mlp.gate.weight",)} if self.balances else {}

    def padded(self, batch: SequenceBatch) -> SequenceBatch | None:
        """The batch with more padding, other words in it, where the term of all rows must not count it."""
        if not self.balances:
            return None
        more, pad, real_BT = (0, 5), nn.functional.pad, batch.is_real_BT
        # As packed rows, which may be longer than the context.
        documents_BT = (
            torch.where(real_BT, 0, NO_DOCUMENT) if batch.documents_BT is None else batch.documents_BT
        )
        return replace(
            batch,
            ids_BT=pad(batch.ids_BT, more, value=self.special_tokens.words_from),
            labels_BT=pad(batch.labels_BT, more, value=IGNORE),
            keep_BT=pad(real_BT, more, value=False),
            documents_BT=pad(documents_BT, more, value=NO_DOCUMENT),
        )

    def describe(self, means: Mapping[str, float]) -> dict[str, float]:
        """Nats, perplexity and accuracy."""
        rest, shares = without_misses(means)
        return {**super().describe(rest), **shares}

    def probes(self, batch: SequenceBatch, count: int, rng: np.random.Generator) -> list[Probe]:
        """Labelled tokens, each asked alone, with other tokens from its own place on, and with another one
        right before it."""
        labelled_BT = batch.labels_BT != IGNORE
        labelled_BT[:, :1] = False
        labelled_BT &= ~(self._is_media(batch.ids_BT) | self._is_media(batch.ids_BT.roll(1, 1)))
        if batch.documents_BT is not None:  # the first token of a document has nothing before it
            labelled_BT &= batch.documents_BT == batch.documents_BT.roll(1, 1)
        places = labelled_BT.nonzero().tolist()
        probes_made = []
        for place in rng.permutation(len(places))[:count]:
            row, t = places[place]
            here_BT = torch.zeros_like(labelled_BT)
            here_BT[row, t] = True
            batch_asked = replace(batch, labels_BT=batch.labels_BT.masked_fill(~here_BT, IGNORE))
            after_BT, before_BT = torch.zeros_like(here_BT), torch.zeros_like(here_BT)
            after_BT[row, t:], before_BT[row, t - 1] = True, True
            probes_made.append(
                Probe(
                    batch_asked,
                    self._with_others(batch_asked, after_BT, rng),
                    self._with_others(batch_asked, before_BT, rng),
                    ("text",),
                )
            )
        return probes_made

    def packing_pairs(
        self, batch: SequenceBatch, count: int, rng: np.random.Generator
    ) -> list[tuple[SequenceBatch, SequenceBatch]]:
        """Packed documents asked alone: with other tokens in the documents beside them, and (without media)
        in rows of their own."""
        if batch.documents_BT is None:
            return []
        wanted_BT = self.labels(batch)[0] != IGNORE
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
            batch_asked = replace(batch, labels_BT=batch.labels_BT.masked_fill(~mine_BT, IGNORE))
            beside_BT = torch.zeros_like(mine_BT)
            beside_BT[row] = (documents_T >= 0) & ~own_T
            pairs.append((batch_asked, self._with_others(batch_asked, beside_BT, rng)))
            if not batch.media:
                alone_T = own_T | shared_T
                labels_T = batch_asked.labels_BT[row].masked_fill(shared_T, IGNORE)
                if (
                    shared_T.any()
                ):  # its first token is the shared part's successor here, and is not asked for there
                    labels_T[int(own_T.nonzero()[0])] = IGNORE
                pairs.append(
                    (
                        batch_asked,
                        SequenceBatch(
                            [batch.sample_ids[row]], batch.ids_BT[row, alone_T][None], labels_T[alone_T][None]
                        ),
                    )
                )
            if len(pairs) >= count:
                break
        return pairs

    def media_swaps(self, batch: SequenceBatch) -> dict[str, SequenceBatch]:
        """The batch with the media of one modality changed, for each that it has."""
        swaps = {}
        for kind, media in batch.media.items():
            changed = replace(media, values_N=MEDIA_INPUTS[kind].other(media.values_N))
            swaps[kind] = replace(batch, media={**batch.media, kind: changed})
        return swaps

    def _with_others(self, batch: SequenceBatch, where_BT: Tensor, rng: np.random.Generator) -> SequenceBatch:
        """The batch with other words in the given places; labels and media stay."""
        marks, whole = self.special_tokens, self.trunk.head.size
        first, size = marks.words_from, whole if marks.words_to is None else marks.words_to
        drawn_BT = torch.from_numpy(rng.integers(first, size, batch.ids_BT.shape)).to(batch.ids_BT)
        drawn_BT = torch.where(
            drawn_BT == batch.ids_BT, (drawn_BT - first + 1) % (size - first) + first, drawn_BT
        )
        return replace(
            batch, ids_BT=torch.where(where_BT & ~self._is_media(batch.ids_BT), drawn_BT, batch.ids_BT)
        )

    def _is_media(self, ids_BT: Tensor) -> Tensor:
        return torch.isin(ids_BT, torch.tensor(self.special_tokens.pads, device=ids_BT.device))


def collate(items: Sequence[Item]) -> SequenceBatch:
    """Items padded on the right to the longest, their media in the order of the rows; questions that stand
    apart are documents."""
    ids_BT, keep_BT = right_padded([item.ids for item in items], PAD)
    labels_BT, _ = right_padded([item.labels for item in items], IGNORE)
    documents_BT = None
    if any(item.starts for item in items):
        places = np.arange(ids_BT.shape[1])
        documents_BT = torch.from_numpy(
            np.stack([np.searchsorted(item.starts, places, side="right") for item in items])
        )
        for row, item in enumerate(items):
            documents_BT[row, : item.shared] = masks.SHARED
    return SequenceBatch(
        [item.sample_id for item in items],
        ids_BT,
        labels_BT,
        keep_BT,
        documents_BT,
        gather([item.media for item in items]),
    )


def collate_rows(rows: list[tuple[str, Row]]) -> SequenceBatch:
    """Rows, cut to the longest real length; documents do not look at each other."""
    longest = max(int((row.documents_T >= 0).sum()) for _, row in rows)

    def stack(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([getattr(row, name)[:longest] for _, row in rows]))

    return SequenceBatch(
        [name for name, _ in rows], stack("ids_T"), stack("labels_T"), documents_BT=stack("documents_T")
    )
