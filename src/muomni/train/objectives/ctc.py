"""Hearing: connectionist temporal classification of transcripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from muomni.data.batch import Batch
from muomni.errors import DataError, TokenRangeError
from muomni.models.audio_encoder import AudioEncoder
from muomni.tokens.alphabet import BLANK
from muomni.train.objective import Objective, Term

FloatArray = NDArray[np.floating[Any]]


@dataclass
class HearingBatch(Batch):
    """Utterances and their transcripts.

    mel_BFM natural-log mel; frames_B int64 real frames; labels_BU int64 symbols, padded with 0; symbols_B
    int64 real symbols a row.
    """

    sample_ids: list[str]
    mel_BFM: Tensor
    frames_B: Tensor
    labels_BU: Tensor
    symbols_B: Tensor

    @property
    def length(self) -> int:
        """Mel frames of the longest row."""
        return self.mel_BFM.shape[1]


def collate(
    sample_ids: Sequence[str], mels_FM: Sequence[Tensor], labels: Sequence[Sequence[int]]
) -> HearingBatch:
    """A batch from utterances (F, M) of any lengths and their symbols; mels keep their float type."""
    return HearingBatch(
        sample_ids=list(sample_ids),
        mel_BFM=torch.nn.utils.rnn.pad_sequence(list(mels_FM), batch_first=True),
        frames_B=torch.tensor([len(mel) for mel in mels_FM]),
        labels_BU=torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(ids, dtype=torch.int64) for ids in labels], batch_first=True
        ),
        symbols_B=torch.tensor([len(ids) for ids in labels]),
    )


Mistakes = Callable[[FloatArray, Sequence[int]], tuple[int, int, int, int]]
"""(log_probs (T, C) of one utterance, its true symbols) -> wrong characters, characters, wrong words,
words."""


class Hearing(Objective):
    """Nats of the transcripts under the encoder's CTC; one term "ctc", counted in symbols.

    Takes   mistakes: how a held-out utterance is transcribed and judged, for the unweighted terms "cer" and
            "wer" of a validation.
    """

    def __init__(self, encoder: AudioEncoder, mistakes: Mistakes | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.mistakes = mistakes

    def counts(self, batch: HearingBatch) -> dict[str, int]:
        """Symbols to be learned."""
        return {"ctc": int(batch.symbols_B.sum())}

    def contents(self, batch: HearingBatch) -> dict[str, float]:
        """Utterances, seconds of sound as they are heard (with the silence around them), and symbols to be
        learned."""
        seconds = float(batch.frames_B.sum()) / self.encoder.config.mel.frame_rate_hz
        return {**super().contents(batch), "audio_s": seconds, "labels": float(batch.symbols_B.sum())}

    def sizes(self, batch: HearingBatch) -> tuple[float, ...]:
        """Mel frames, mel frames squared."""
        rows, frames = batch.mel_BFM.shape[:2]
        return rows * frames, rows * frames**2

    def forward(self, batch: HearingBatch) -> dict[str, Term]:
        """The sum of -log p(transcript | audio) over the rows.

        Raises  DataError "infeasible" that names the rows whose text can't fit their states; TokenRangeError
                for symbols outside of 1..symbols-1 (torch's own CTC reads past its memory there).
        """
        return {"ctc": self._heard(batch)[0]}

    def _heard(self, batch: HearingBatch) -> tuple[Term, Tensor, Tensor]:
        """The term, the log-probabilities (B, T, C), and the states of each row."""
        lengths_B = self._check(batch)
        heard = self.encoder(batch.mel_BFM, batch.frames_B)
        log_probs_BTC = self.encoder.symbols(heard.states_BTD)
        nats = F.ctc_loss(
            log_probs_BTC.transpose(0, 1),
            batch.labels_BU,
            lengths_B,
            batch.symbols_B,
            blank=BLANK,
            reduction="sum",
        )
        return Term(nats, int(batch.symbols_B.sum())), log_probs_BTC, lengths_B

    def validated(self, batch: HearingBatch) -> dict[str, Term]:
        """Beside the nats how many characters (`cer`) and words (`wer`) a greedy transcript gets wrong, from
        the same forward."""
        term, log_probs_BTC, lengths_B = self._heard(batch)
        if self.mistakes is None:
            return {"ctc": term}
        sounds = log_probs_BTC.detach().float().cpu().numpy()
        lengths, labels, counts = lengths_B.tolist(), batch.labels_BU.tolist(), batch.symbols_B.tolist()
        rows = zip(sounds, lengths, labels, counts, strict=True)
        judged = [
            self.mistakes(log_probs_TC[:states], symbols[:count])
            for log_probs_TC, states, symbols, count in rows
        ]
        wrong, characters, wrong_words, words = (sum(column) for column in zip(*judged, strict=True))
        zero = term.total.new_zeros(())
        return {
            "ctc": term,
            "cer": Term(zero + wrong, characters, 0.0),
            "wer": Term(zero + wrong_words, words, 0.0),
        }

    def media_swaps(self, batch: HearingBatch) -> dict[str, HearingBatch]:
        """The batch with its spectra upside down."""
        return {"audio": replace(batch, mel_BFM=batch.mel_BFM.flip(2))}

    def _check(self, batch: HearingBatch) -> Tensor:
        labels_BU = batch.labels_BU
        real_BU = torch.arange(labels_BU.shape[1], device=labels_BU.device) < batch.symbols_B[:, None]
        repeats_B = ((labels_BU[:, 1:] == labels_BU[:, :-1]) & real_BU[:, 1:]).sum(1)
        lengths_B = self.encoder.lengths(batch.frames_B)
        refused_B = (batch.symbols_B + repeats_B > lengths_B) | (batch.symbols_B < 1)
        wild_B = (real_BU & ((labels_BU < 1) | (labels_BU >= self.encoder.config.symbols))).any(1)
        if bool((refused_B | wild_B).any()):  # one question to the device in the good case
            if bool(wild_B.any()):
                names = [batch.sample_ids[row] for row in wild_B.nonzero().flatten().tolist()]
                raise TokenRangeError(
                    f"hearing: rows {names} hold symbols outside of 1..{self.encoder.config.symbols - 1}"
                )
            rows = refused_B.nonzero().flatten().tolist()
            rows_text = [
                f"{batch.sample_ids[r]} ({int(batch.symbols_B[r])} symbols, {int(lengths_B[r])} states)"
                for r in rows
            ]
            raise DataError(
                "infeasible",
                f"hearing: texts that can't fit their audio: {', '.join(rows_text)}",
                hint="alphabet.min_frames says how many states a text needs: leave these out",
            )
        return lengths_B
