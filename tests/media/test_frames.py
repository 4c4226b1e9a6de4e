"""Mel frames and the states that the audio encoder makes of them."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from muomni.media.frames import num_states


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4, 8]))
def test_states_are_the_half_rounded_up_once_a_stride(frames: int, downsample: int) -> None:
    halved = frames
    for _ in range(downsample.bit_length() - 1):
        halved = (halved + 1) // 2
    assert num_states(frames, downsample) == halved
    assert num_states(torch.tensor([frames]), downsample).tolist() == [halved]
