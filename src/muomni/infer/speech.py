"""Speech out: texts -> codes -> log-mel -> waves, whole or as a stream of growing pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni.data.batch import right_padded
from muomni.errors import ConfigError
from muomni.infer import codes
from muomni.infer.codes import Choose, Frame
from muomni.infer.sampling import SamplingConfig, pick
from muomni.media import griffin_lim
from muomni.models import finite
from muomni.models.codec import Codec
from muomni.models.decoder import Decoder
from muomni.models.talker import Talker
from muomni.tokens.bpe import Tokenizer

Wave = NDArray[np.float32]
Think = Callable[[Tensor, Tensor], Tensor]
"""(text_ids_BT, keep_BT) -> the Thinker's hidden states (B, T, D) at the same tokens."""


def listen_to(thinker: Decoder, layer: int | None) -> Think:
    """What a Talker hears of a Thinker: the hidden states after `layer` blocks, without gradients."""

    @torch.no_grad()
    def think(text_ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
        return thinker.hidden(thinker.embed(text_ids_BT), keep_BT=keep_BT, layer=layer).float()

    return think


REPETITION_WINDOW_FRAMES = 8
FIRST_PIECE_FRAMES = 2
FADE_S = 0.02
SEARCH_S = 0.005  # half a period of the lowest voices: so far pieces may be shifted to meet in phase


@dataclass(frozen=True)
class Speech:
    """One spoken text."""

    wave_S: Wave  # float32 at Voice.rate_hz
    codes_KF: Tensor  # int64
    is_ended: bool  # the Talker itself said the end; False = its guard cut it off


class Voice:
    """A Talker and its codec, ready to speak.

    Takes   tokenizer for a Talker of BPE tokens; think for one that may listen to the Thinker (without, it
            speaks from the tokens alone); names of its voices, in the order of their rows.
    """

    def __init__(
        self,
        talker: Talker,
        codec: Codec,
        tokenizer: Tokenizer | None = None,
        *,
        think: Think | None = None,
        names: Sequence[str] = (),
    ) -> None:
        self.talker, self.codec, self.tokenizer, self.think = talker.eval(), codec.eval(), tokenizer, think
        self.names = tuple(names)

    @property
    def rate_hz(self) -> int:
        """Samples a second."""
        return self.codec.config.mel.rate_hz

    def number(self, name: str) -> int:
        """The row of a voice by its name.

        Raises  ConfigError for one that it does not have.
        """
        if name not in self.names:
            names_text = (
                f"it has {', '.join(self.names[:20])}"
                if self.names
                else "it has one voice: train it with model.num_speakers"
            )
            raise ConfigError(f"voice {name!r}: this Talker does not have it", hint=names_text)
        return self.names.index(name)

    @property
    def device(self) -> torch.device:
        """Where its networks lie; all of them lie there."""
        return next(self.talker.parameters()).device

    @torch.inference_mode()
    def speak(
        self,
        texts: Sequence[str],
        *,
        sampling: SamplingConfig | None = None,
        speakers: Sequence[int] | None = None,
        batch: int = 16,
        max_frames: int | None = None,
    ) -> list[Speech]:
        """Say texts, `batch` at a time; equal seeds give equal waves.

        Raises  DataError(empty) for a text without words; CheckpointError where a network gives no numbers.
        """
        speeches: list[Speech] = []
        for first in range(0, len(texts), batch):
            voices = None if speakers is None else speakers[first : first + batch]
            spoken = codes.gathered(self._frames(texts[first : first + batch], sampling, voices, max_frames))
            mel_BFM = self.codec.decode(spoken.codes_BKF, spoken.frames_B)
            finite.demand(mel_BFM, self.codec, "values of the log-mel")
            for row, frames in enumerate(spoken.frames_B.tolist()):
                wave_S = griffin_lim.sound(
                    mel_BFM[row, : frames * self.codec.config.stride_frames], self.codec.config.mel
                )
                speeches.append(
                    Speech(wave_S, spoken.codes_BKF[row, :, :frames].cpu(), bool(spoken.ended_B[row]))
                )
        return speeches

    @torch.inference_mode()
    def stream(
        self, text: str, *, sampling: SamplingConfig | None = None, speaker: int | None = None
    ) -> Iterator[Wave]:
        """Say one text in pieces, the first after two code frames, each about twice as long as the one
        before.

        Pieces are cross-faded over 20 ms where they meet in phase, so the whole lasts as long as that of
        `speak` to within 5 ms, and sounds alike; samples differ, since the phases of a piece are found
        without knowing what comes after.
        """
        frames = self._frames([text], sampling, None if speaker is None else [speaker])
        pieces = _Pieces(self.codec)
        frames_said: list[Tensor] = []
        piece_frames = FIRST_PIECE_FRAMES
        for frame in frames:
            frames_said.append(frame.codes_BK[0])
            if len(frames_said) == piece_frames:
                piece_frames = 2 * piece_frames
                yield pieces.add(torch.stack(frames_said, -1), is_last=False)
        yield pieces.add(torch.stack(frames_said, -1), is_last=True)

    def _frames(
        self,
        texts: Sequence[str],
        sampling: SamplingConfig | None,
        speakers: Sequence[int] | None,
        max_frames: int | None = None,
    ) -> Iterator[Frame]:
        """The speech of texts, by as many voices, a frame at a time."""
        padded = right_padded([self.talker.text_ids(text, self.tokenizer) for text in texts])
        ids_BT, keep_BT = (each_BT.to(self.device) for each_BT in padded)
        return codes.frames(
            self.talker,
            ids_BT,
            keep_BT,
            hidden_BTD=self.think(ids_BT, keep_BT) if self.think else None,
            speaker_B=None if speakers is None else torch.tensor(speakers, device=self.device),
            choose=_chooser(sampling, self.device),
            max_frames=max_frames,
        )


class _Pieces:
    """Turns growing codes into consecutive pieces of one wave."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        spec = codec.config.mel
        self.frame_samples = codec.config.stride_frames * spec.hop_samples
        self.fade, self.search = int(FADE_S * spec.rate_hz), int(SEARCH_S * spec.rate_hz)
        self.sent = 0  # samples given so far, in the time of the codes
        self.tail_S: Wave | None = None  # the samples after those: to be faded into the next piece

    def add(self, codes_KF: Tensor, *, is_last: bool) -> Wave:
        """The next samples, up to one code frame (which may still change) before the end of the codes
        known."""
        frames = codes_KF.shape[1]
        first = max(0, self.sent // self.frame_samples - self.codec.reach_frames)
        stride = self.codec.config.stride_frames
        # The decoder looks back once more as far, so that the piece's own frames are decoded as in the whole.
        context = max(0, first - self.codec.reach_frames)
        mel_FM = self.codec.decode(codes_KF[None, :, context:])[0, (first - context) * stride :]
        wave_S = griffin_lim.sound(mel_FM, self.codec.config.mel)
        start = self.sent - first * self.frame_samples  # where the tail begins, in this piece's samples
        stop = len(wave_S) if is_last else (frames - 1 - first) * self.frame_samples
        self.sent = first * self.frame_samples + stop
        if self.tail_S is not None:
            shift = self._shift(wave_S, start)
            start += shift
            stop += 0 if is_last else shift  # so that shifts don't add up
            rise = np.linspace(0, 1, self.fade, dtype=np.float32)
            wave_S[start : start + self.fade] = (
                rise * wave_S[start : start + self.fade] + (1 - rise) * self.tail_S
            )
        self.tail_S = None if is_last else wave_S[stop : stop + self.fade].copy()
        return wave_S[start:stop]

    def _shift(self, wave_S: Wave, start: int) -> int:
        """By how many samples the piece fits best to the tail of the one before."""
        assert self.tail_S is not None
        best, shift = -np.inf, 0
        for moved in range(-min(self.search, start), min(self.search, len(wave_S) - start - self.fade) + 1):
            part_S = wave_S[start + moved : start + moved + self.fade]
            likeness = float(part_S @ self.tail_S) / (float(np.linalg.norm(part_S)) + 1e-6)
            if likeness > best:
                best, shift = likeness, moved
        return shift


def _chooser(sampling: SamplingConfig | None, device: torch.device) -> Choose:
    """How codes are drawn; the repetition penalty looks at the last few frames of the same book."""
    config = sampling or SamplingConfig()
    generator = torch.Generator(device=device).manual_seed(config.seed)

    def choose(logits_BV: Tensor, before_BF: Tensor) -> Tensor:
        recent_BF = before_BF[:, -REPETITION_WINDOW_FRAMES:]
        classes = logits_BV.shape[1]
        seen_BV = torch.zeros(len(logits_BV), classes + 2, dtype=torch.bool, device=device).scatter_(
            1, recent_BF, True
        )[:, :classes]
        return pick(logits_BV, config, generator=generator, seen_BV=seen_BV)

    return choose
