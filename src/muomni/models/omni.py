"""Fusion: frozen vision tower and audio encoder, two projectors, and a decoder that reads their tokens among
text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from muomni.data.batch import Media, MediaBatch
from muomni.errors import ConfigError, ShapeError
from muomni.media.modality import Array
from muomni.models.audio_encoder import AudioEncoder
from muomni.models.connector import Perceiver, PerceiverConfig
from muomni.models.decoder import Decoder
from muomni.models.vision_tower import VisionTower
from muomni.tokens.special_tokens import OWN, SpecialTokens


class ProjectorSettings(BaseModel):
    """How pictures and sounds become tokens of the Thinker, as far as it can be chosen.

    pool_grid       0: a picture is its CLS token alone (1 token); g: the CLS token and g x g pooled patches,
                    each projected by itself
    perceiver       in place of pool_grid: learned queries attend to all features, so a picture fills a fixed
                    number of tokens
    feature_layers  after how many blocks of the vision tower its states are read; they are concatenated. ()
                    reads the last alone. Late layers know what is in the picture, early ones where it is (Yao
                    et al. 2024, Dense Connector)
    audio_pool      states of the audio encoder in one token: 1 = 25 Hz, 2 = 12.5 Hz
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    pool_grid: int = Field(default=0, ge=0)
    perceiver: PerceiverConfig | None = None
    feature_layers: tuple[NonNegativeInt, ...] = ()
    audio_pool: int = Field(default=1, ge=1, le=4)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.perceiver is not None and self.pool_grid:
            raise ValueError("pool_grid has no effect beside a perceiver")
        return self


class ProjectorsConfig(ProjectorSettings):
    """How pictures and sounds become tokens of the Thinker, between networks of these sizes.

    audio_width     None for a model without an audio encoder
    num_cls_tokens  1 for vision towers that give a CLS token before their patches, 0 for those that don't
    """

    width: int = Field(default=256, gt=0)
    vision_width: int = Field(default=128, gt=0)
    audio_width: int | None = Field(default=192, gt=0)
    num_cls_tokens: int = Field(default=1, ge=0, le=1)

    @model_validator(mode="after")
    def _fills_a_token(self) -> Self:
        if not self.image_tokens:
            raise ValueError("a vision tower without a CLS token needs pool_grid or a perceiver")
        return self

    @property
    def image_tokens(self) -> int:
        """Positions that one picture fills."""
        return (
            self.perceiver.tokens if self.perceiver is not None else self.num_cls_tokens + self.pool_grid**2
        )


class Projectors(nn.Module):
    """Project features of the towers into the decoder's width: one linear map a modality, or a perceiver for
    pictures (SPEC M-E, V2).

    Vision features are first brought to mean 0 and spread 1 in every channel, CLS tokens and patches each by
    their own statistics. Unnormalised, the component common to all patches has a large norm and the
    distinguishing one a small norm, and attention does not learn to select patches (docs/log.md).
    """

    model_type = "muomni_projectors"

    def __init__(self, config: ProjectorsConfig) -> None:
        super().__init__()
        self.config = config
        width_in = config.vision_width * max(1, len(config.feature_layers))
        self.vision: nn.Linear | Perceiver
        if config.perceiver is None:
            self.vision = nn.Linear(width_in, config.width)
        else:
            self.vision = Perceiver(config.perceiver, width_in, config.width)
        self.audio = (
            None
            if config.audio_width is None
            else nn.Linear(config.audio_width * config.audio_pool, config.width)
        )
        self.register_buffer("mean_2E", torch.zeros(2, width_in))  # of summaries, of patches
        self.register_buffer("spread_2E", torch.ones(2, width_in))

    mean_2E: Tensor
    spread_2E: Tensor

    @torch.no_grad()
    def standardise(self, states_NTE: Tensor) -> Self:
        """Set mean and spread from features of the vision tower, (N, num_cls_tokens + P, E), N pictures."""
        for row, part in enumerate(self._parts(states_NTE)):
            if not part.shape[1]:
                continue
            flat = part.float().flatten(0, 1)
            self.mean_2E[row] = flat.mean(0)
            # A channel that is alike everywhere (summaries before the first block) says nothing; it is left
            # quiet, not blown up.
            spread = flat.std(0)
            self.spread_2E[row] = torch.where(spread > 1e-3, spread, torch.ones_like(spread))
        return self

    def _parts(self, states_NTE: Tensor) -> tuple[Tensor, Tensor]:
        """Summaries and patches."""
        return states_NTE[:, : self.config.num_cls_tokens], states_NTE[:, self.config.num_cls_tokens :]

    def project_image(self, states_NTE: Tensor) -> Tensor:
        """Features of pictures, (N, num_cls_tokens + P, E) -> (N, image_tokens, D)."""
        even = [
            (x - mean) / spread
            for x, mean, spread in zip(self._parts(states_NTE), self.mean_2E, self.spread_2E)
        ]
        out: Tensor = self.vision(torch.cat(even, 1))
        return out

    @torch.no_grad()
    def init_output_scale(self, rms: float) -> Self:
        """Scale the initial weights so that features of rms 1 (both towers end in a norm) give tokens of rms
        `rms`."""
        for layer in (self.vision, self.audio):
            if isinstance(layer, Perceiver):
                layer.init_output_scale(rms)
            elif layer is not None:
                nn.init.normal_(layer.weight, std=rms / math.sqrt(layer.in_features))
                nn.init.zeros_(layer.bias)
        return self


class Omni(nn.Module):
    """ids and media -> embeddings that the decoder reads. The towers stay frozen; what trains is chosen by
    the stage.

    Raises  ConfigError where the projectors read feature_layers that the vision tower does not have, or the
            vocabulary has no marks for pictures.
    """

    def __init__(
        self,
        decoder: Decoder,
        vision: VisionTower | None,
        audio: AudioEncoder | None,
        projectors: Projectors,
        special_tokens: SpecialTokens = OWN,
    ) -> None:
        super().__init__()
        if vision is not None and max(projectors.config.feature_layers, default=0) > vision.depth:
            raise ConfigError(
                f"feature_layers {projectors.config.feature_layers}: the vision tower has {vision.depth} blocks"
            )
        if vision is not None and "image" not in special_tokens.media:
            raise ConfigError(
                "this vocabulary has no marks for pictures (Qwen's are <|vision_start|>, <|image_pad|>, <|vision_end|>)"
            )
        self.decoder, self.vision, self.audio, self.projectors, self.special_tokens = (
            decoder,
            vision,
            audio,
            projectors,
            special_tokens,
        )

    def embed_image(self, pixels_N3HW: Tensor) -> Tensor:
        """Pictures -> (N, image_tokens, D)."""
        return self.projectors.project_image(self.encode_image(pixels_N3HW))

    @torch.no_grad()
    def encode_image(self, pixels_N3HW: Tensor) -> Tensor:
        """Pictures -> features for the projector: CLS token where the tower has one, and patches or their
        pooled grid, (N, T, E)."""
        if self.vision is None:
            raise ShapeError("this model has no vision tower: stage omni was trained without stage vision")
        config, side = self.projectors.config, self.vision.side
        states = self.vision.encode_image(pixels_N3HW, config.feature_layers)
        if config.perceiver is not None or config.pool_grid == side:
            return states
        summary, patches = states[:, : config.num_cls_tokens], states[:, config.num_cls_tokens :]
        if not config.pool_grid:
            return summary
        square = patches.transpose(1, 2).unflatten(2, (side, side))  # type: ignore[no-untyped-call]
        return torch.cat(
            [summary, F.adaptive_avg_pool2d(square, config.pool_grid).flatten(2).transpose(1, 2)], 1
        )

    def embed_audio(self, mel_NFM: Tensor, frames_N: Tensor) -> tuple[Tensor, Tensor]:
        """Sounds -> (N, T, D) and the real tokens of each, (N,)."""
        if self.audio is None or self.projectors.audio is None:
            raise ShapeError("this model has no audio encoder: stage omni was trained without stage hearing")
        with torch.no_grad():
            heard = self.audio(mel_NFM, frames_N)
        states, pool = heard.states_BTD * heard.keep_BT[..., None], self.projectors.config.audio_pool
        states = F.pad(states, (0, 0, 0, -states.shape[1] % pool)).reshape(
            len(states), -1, pool * states.shape[2]
        )
        return self.projectors.audio(states), (heard.lengths_B + pool - 1) // pool

    def embed(self, ids_BT: Tensor, media: Media) -> Tensor:
        """Token embeddings with the media's tokens in the places of their pads.

        Takes   ids_BT with pads where media go; media in the order of these pads.
        Gives   (B,T,D).
        Raises  ShapeError where pads and media tokens do not count the same.
        """
        x_BTD = self.decoder.embed(ids_BT)
        tokens = {kind: MEDIA_INPUTS[kind].encode(self, stack) for kind, stack in media.items()}
        for kind, row in MEDIA_INPUTS.items():
            projector, medium = row.projector(self), self.special_tokens.media.get(kind)
            if projector is None or medium is None:
                continue
            if kind not in tokens:
                # Absent media go through the projector as no tokens at all, so that the loss still has a
                # gradient where projectors alone train.
                nothing = x_BTD.new_zeros(0, 1, projector.in_features, dtype=torch.float32)
                tokens[kind] = projector(nothing).flatten(0, 1)
            x_BTD = _fill(x_BTD, ids_BT == medium.pad, tokens[kind], kind)
        return x_BTD

    def _audio_tokens(self, stack: MediaBatch) -> Tensor:
        """The real tokens of sounds, one sound's after another's, (all of them, D)."""
        assert stack.lengths_N is not None
        tokens_NTD, lengths_N = self.embed_audio(stack.values_N, stack.lengths_N)
        return tokens_NTD[torch.arange(tokens_NTD.shape[1], device=tokens_NTD.device) < lengths_N[:, None]]


def _fill(x_BTD: Tensor, pads_BT: Tensor, tokens_ND: Tensor, kind: str) -> Tensor:
    """x with the tokens put at the pads, in order."""
    places = pads_BT.sum()
    if int(places) != len(tokens_ND):
        raise ShapeError(f"{kind}: {int(places)} pads in the rows but {len(tokens_ND)} tokens from the media")
    return x_BTD.masked_scatter(pads_BT[..., None], tokens_ND.to(x_BTD.dtype))


def pixels(pictures: Sequence[Array]) -> MediaBatch:
    """Pictures (H,W,3) uint8, all of one size."""
    return MediaBatch(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous())


def padded(arrays: Sequence[Array]) -> MediaBatch:
    """Arrays that differ along their first axis, e.g. log-mels (F,M), float32 with zeros behind the shorter
    ones."""
    lengths_N = torch.tensor([len(array) for array in arrays])
    values_N = np.zeros((len(arrays), int(lengths_N.max()), *arrays[0].shape[1:]), dtype=np.float32)
    for row, array in enumerate(arrays):
        values_N[row, : len(array)] = array
    return MediaBatch(torch.from_numpy(values_N), lengths_N)


@dataclass(frozen=True)
class MediaInput:
    """How the media of one modality enter an Omni.

    stack      the arrays of a batch, at least one
    encode     their tokens in the Thinker's width, one medium's after another's, (all of them, D)
    projector  what learns to speak in that width; None: this Omni takes no such media
    other      the same media with their content changed, on which soundness tries whether they reach the loss
    """

    stack: Callable[[Sequence[Array]], MediaBatch]
    encode: Callable[[Omni, MediaBatch], Tensor]
    projector: Callable[[Omni], nn.Linear | Perceiver | None]
    other: Callable[[Tensor], Tensor]


MEDIA_INPUTS: dict[str, MediaInput] = {
    "image": MediaInput(
        pixels,
        encode=lambda omni, stack: omni.embed_image(stack.values_N).flatten(0, 1),
        projector=lambda omni: omni.projectors.vision,
        other=lambda pixels_N3HW: 255 - pixels_N3HW,
    ),
    "audio": MediaInput(
        padded,
        encode=Omni._audio_tokens,
        projector=lambda omni: omni.projectors.audio,
        other=lambda mel_NFM: mel_NFM.flip(2),
    ),
}


def gather(rows: Sequence[Mapping[str, Sequence[Array]]], device: torch.device | None = None) -> Media:
    """The media of rows as padded tensors, on the CPU or another device."""
    every = {kind: [array for row in rows for array in row.get(kind, ())] for kind in MEDIA_INPUTS}
    media = {kind: MEDIA_INPUTS[kind].stack(arrays) for kind, arrays in every.items() if arrays}
    return media if device is None else {kind: values.to(device) for kind, values in media.items()}
