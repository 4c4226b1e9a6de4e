"""How many states the audio encoder makes of a sound: numbers that a data check needs without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Frames = TypeVar("Frames", int, "Tensor")

MELS_HZ = 100  # mel frames a second (SPEC M-B)
DOWNSAMPLE: Final = 4  # frames of one state
STATES_HZ = MELS_HZ // DOWNSAMPLE
PAD_S = 0.1  # silence on both sides of a sound, so that the shortest word has states enough
MAX_AUDIO_TOKENS = 128  # of a conversation: a quarter of a context of 512 (SPEC M-E)


def num_states(frames: Frames, downsample: int) -> Frames:
    """States that so many mel frames give: each stride of 2 rounds up, which equals rounding up once."""
    return -(-frames // downsample)
