"""Sounds of any length -> text: overlapping chunks through the ears, then one CTC decoding over all of
them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from muomni.data.conversation import wave_to_mel
from muomni.infer.ctc import CharLM, beam, greedy
from muomni.media.frames import PAD_S
from muomni.models import finite
from muomni.models.audio_encoder import AudioEncoder
from muomni.models.omni import padded
from muomni.runtime import computing_in
from muomni.tokens.alphabet import Alphabet

CHUNK_S, OVERLAP_S = (
    20.0,
    2.0,
)  # of an overlap, each side keeps its own half: what it heard with a second of context or more
BATCH = 16

FloatArray = NDArray[np.float32]


def cut(frames: int, chunk: int, overlap: int) -> list[tuple[int, int]]:
    """[start, end) of chunks that cover all frames, neighbours sharing `overlap` of them; a last one is
    longer than that."""
    hop = chunk - overlap
    starts = range(0, max(1, frames - overlap), hop)
    return [(start, min(start + chunk, frames)) for start in starts]


@torch.no_grad()
def log_probs(
    encoder: AudioEncoder,
    mels: Sequence[FloatArray],
    *,
    chunk_s: float = CHUNK_S,
    overlap_s: float = OVERLAP_S,
    dtype: torch.dtype = torch.float32,
) -> list[FloatArray]:
    """CTC log-probabilities (T, symbols) of each log-mel (F, M), T = encoder.length(F); chunks of like
    lengths share a batch.

    Raises  CheckpointError where the encoder gives no numbers.
    """
    stride = encoder.config.downsample
    rate_hz = encoder.config.mel.frame_rate_hz
    # Borders on the encoder's stride, so that states of neighbours fall on the same times.
    chunk, half = (max(1, round(seconds * rate_hz / stride)) * stride for seconds in (chunk_s, overlap_s / 2))
    pieces = [
        (owner, start, end) for owner, mel in enumerate(mels) for start, end in cut(len(mel), chunk, 2 * half)
    ]
    order = sorted(range(len(pieces)), key=lambda i: pieces[i][2] - pieces[i][1])
    heard: dict[int, FloatArray] = {}
    device = encoder.head.weight.device
    for first in range(0, len(order), BATCH):
        batch = order[first : first + BATCH]
        sounds = padded([mels[owner][start:end] for owner, start, end in (pieces[i] for i in batch)]).to(
            device
        )
        mel_NFM, frames_N = sounds.values_N, sounds.lengths_N
        with computing_in(dtype, device):
            states = encoder(mel_NFM, frames_N)
            symbols_BTC = encoder.symbols(states.states_BTD)
        finite.demand(
            symbols_BTC[states.keep_BT], encoder, "scores of symbols", partial(encoder, mel_NFM, frames_N)
        )
        rows = symbols_BTC.cpu().numpy()
        heard |= {i: rows[row, : int(states.lengths_B[row])] for row, i in enumerate(batch)}
    whole: list[list[FloatArray]] = [[] for _ in mels]
    for i, (owner, start, end) in enumerate(pieces):
        left = 0 if start == 0 else half // stride
        right = len(heard[i]) if end == len(mels[owner]) else (chunk - half) // stride
        whole[owner].append(heard[i][left:right])
    return [np.concatenate(parts) for parts in whole]


def transcribe(
    encoder: AudioEncoder,
    waves: Sequence[FloatArray],
    *,
    pad_s: float = PAD_S,
    char_lm: CharLM | None = None,
    beam_width: int = 8,
    dtype: torch.dtype = torch.float32,
) -> list[str]:
    """Text of each wave (S,) at the encoder's rate; greedy, or by a beam that listens to `char_lm`."""
    alphabet = Alphabet()
    mels = [wave_to_mel(wave, encoder.config.mel, pad_s) for wave in waves]
    log_probs_list = log_probs(encoder, mels, dtype=dtype)
    spelt = [
        greedy(each) if char_lm is None else beam(each, width=beam_width, lm=char_lm)[0].ids
        for each in log_probs_list
    ]
    return [alphabet.decode(ids) for ids in spelt]
