"""Sounds of any length -> text: overlapping chunks through the ears, then one CTC decoding over all of
them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from muomni.data.conversation import wave_to_mel
from muomni.infer.ctc import Beam, CharLM, align, beam, greedy
from muomni.media.frames import PAD_S
from muomni.models import finite
from muomni.models.audio_encoder import AudioEncoder
from muomni.models.omni import padded
from muomni.runtime import computing_in
from muomni.tokens.alphabet import BLANK, Alphabet

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
    chunk, half = _borders(encoder, chunk_s, overlap_s)
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
        whole[owner].append(_own(encoder, heard[i], start, end == len(mels[owner]), chunk, half))
    return [np.concatenate(parts) for parts in whole]


def _chunks(encoder: AudioEncoder, mel_FM: FloatArray, dtype: torch.dtype) -> Iterator[FloatArray]:
    """The log-probabilities of one sound, chunk after chunk; joined they are those of `log_probs`."""
    chunk, half = _borders(encoder, CHUNK_S, OVERLAP_S)
    for start, end in cut(len(mel_FM), chunk, 2 * half):
        (heard,) = log_probs(encoder, [mel_FM[start:end]], dtype=dtype)
        yield _own(encoder, heard, start, end == len(mel_FM), chunk, half)


def _borders(encoder: AudioEncoder, chunk_s: float, overlap_s: float) -> tuple[int, int]:
    """Frames of a chunk, and of half an overlap, on the encoder's stride, so that states of neighbours fall on
    the same times."""
    stride, rate_hz = encoder.config.downsample, encoder.config.mel.frame_rate_hz
    chunk, half = (max(1, round(seconds * rate_hz / stride)) * stride for seconds in (chunk_s, overlap_s / 2))
    return chunk, half


def _own(
    encoder: AudioEncoder, heard: FloatArray, start: int, is_last: bool, chunk: int, half: int
) -> FloatArray:
    """What a chunk that begins at frame `start` keeps of its states: its half of each overlap."""
    stride = encoder.config.downsample
    left = 0 if start == 0 else half // stride
    return heard[left : len(heard) if is_last else (chunk - half) // stride]


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
    mels = [wave_to_mel(wave, encoder.config.mel, pad_s) for wave in waves]
    log_probs_list = log_probs(encoder, mels, dtype=dtype)
    return [Alphabet().decode(_spelt(each, char_lm, beam_width)) for each in log_probs_list]


@dataclass(frozen=True)
class Word:
    """A word, when it was said, and the mean log-probability of its symbols at their likeliest frames, nats."""

    text: str
    start_s: float
    end_s: float
    log_prob: float


@dataclass(frozen=True)
class Transcript:
    """What was said. `ids`: its symbols; `frames`: states of the encoder; `blank_log_prob`: that of no symbol
    at all, nats."""

    text: str
    ids: list[int]
    words: list[Word]
    seconds: float
    frames: int
    blank_log_prob: float


def growing(
    encoder: AudioEncoder,
    wave_S: FloatArray,
    *,
    pad_s: float = PAD_S,
    char_lm: CharLM | None = None,
    beam_width: int = 8,
    dtype: torch.dtype = torch.float32,
) -> Iterator[str | Transcript]:
    """The text of one wave as it becomes certain, a chunk of CHUNK_S a step, and at last all of it with its
    times.

    Gives   pieces of text that join to that of the Transcript, which is the last item. It is the text of
            `transcribe`, but where a chunk computed alone is rounded otherwise and that decides between symbols.
            Memory grows with the square of the length: 2 frames times symbols, in bytes.
    """
    spec, alphabet = encoder.config.mel, Alphabet()
    search = Beam(width=beam_width, lm=char_lm) if char_lm is not None else None
    parts: list[FloatArray] = []
    shown = ""
    for part in _chunks(encoder, wave_to_mel(wave_S, spec, pad_s), dtype):
        parts.append(part)
        if search is None:
            certain = greedy(np.concatenate(parts))
        else:
            search.push(part)
            certain = search.certain()
        text = alphabet.decode(certain)
        yield text[len(shown) :]
        shown = text
    scores_TC = np.concatenate(parts)
    ids = greedy(scores_TC) if search is None else search.hypotheses()[0].ids
    yield alphabet.decode(ids)[len(shown) :]
    seconds, silence = len(wave_S) / spec.rate_hz, float(scores_TC[:, BLANK].sum())
    frame_s = encoder.config.downsample / spec.frame_rate_hz
    words = _words(scores_TC, ids, lambda frame: min(max(0.0, frame * frame_s - pad_s), seconds))
    yield Transcript(alphabet.decode(ids), ids, words, seconds, len(scores_TC), silence)


def _words(scores_TC: FloatArray, ids: Sequence[int], seconds_at: Callable[[int], float]) -> list[Word]:
    """The words of a text with their times; seconds_at: when a frame begins."""
    alphabet, spans = Alphabet(), align(scores_TC, ids)
    words, begun = [], 0
    for place in range(len(ids) + 1):
        if place < len(ids) and not alphabet.decode([ids[place]]).isspace():
            continue
        if place > begun:
            said = [
                float(scores_TC[first:end, symbol].max())
                for (first, end), symbol in zip(spans[begun:place], ids[begun:place])
            ]
            times = seconds_at(spans[begun][0]), seconds_at(spans[place - 1][1])
            words.append(Word(alphabet.decode(ids[begun:place]), *times, sum(said) / len(said)))
        begun = place + 1
    return words


def _spelt(scores_TC: FloatArray, char_lm: CharLM | None, beam_width: int) -> list[int]:
    return greedy(scores_TC) if char_lm is None else beam(scores_TC, width=beam_width, lm=char_lm)[0].ids
