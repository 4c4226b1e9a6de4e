"""The album: bounded, the same every time, small media; and the attention that it records is the one that the
network used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from muomni.evaluate import attention
from muomni.evaluate.samples import LONGEST_S, MOST, ROWS, Picture, Sound, StageSamples, chosen
from muomni.nn import masks, rope
from muomni.nn.attention import Attention


def test_an_album_holds_so_many_of_a_kind_and_small_media(tmp_path: Path) -> None:
    album = StageSamples()
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 24_000 * 9).astype(np.float32)
    for number in range(3 * MOST):
        album.add("heard", number=number, audio=Sound(wave, 24_000) if number == 0 else None)
        album.add("seen", picture=Picture(np.zeros((500, 300, 3), np.uint8)) if number == 0 else None)
    album.write(tmp_path / "samples")
    rows = [json.loads(line) for line in (tmp_path / "samples" / ROWS).read_text().splitlines()]
    assert len(rows) == 2 * MOST
    sound = soundfile.info(tmp_path / "samples" / rows[0]["audio"])
    assert (sound.samplerate, sound.channels, sound.subtype) == (16_000, 1, "PCM_16")
    assert sound.duration == pytest.approx(LONGEST_S, abs=0.01)
    assert max(Image.open(tmp_path / "samples" / rows[1]["picture"]).size) == 224
    assert "audio" not in rows[2]  # absent is absent, not null


def test_what_is_written_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "old.png").write_bytes(b"old")
    StageSamples().write(tmp_path / "samples")
    assert [path.name for path in (tmp_path / "samples").iterdir()] == [ROWS]


def test_the_worst_and_the_best_are_chosen_and_some_between() -> None:
    errors = [(i * 37 % 101) / 100 for i in range(101)]
    taken = chosen(errors, 24)
    assert taken == chosen(errors, 24)
    assert len({index for index, _ in taken}) == len(taken) == 24
    by_reason = {
        why: [errors[i] for i, reason in taken if reason == why] for why in ("worst", "even", "best")
    }
    assert sorted(by_reason["worst"]) == sorted(errors)[-8:]
    assert sorted(by_reason["best"]) == sorted(errors)[:4]
    assert len(by_reason["even"]) == 12


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7, 100])
@pytest.mark.parametrize("most", [1, 5, 24])
def test_never_more_are_chosen_than_there_are_or_may_be(count: int, most: int) -> None:
    for errors in ([0.0] * count, [float(i) for i in range(count)]):
        taken = [index for index, _ in chosen(errors, most)]
        assert len(taken) == len(set(taken)) == min(count, most)


def test_single_words_are_counted_whole_and_sentences_are_not() -> None:
    album = StageSamples()
    album.confusion("digit", [("one", "one")] * 300 + [("one", "nine")] * 2)
    album.confusion("place", [("at the top", "at the top")])
    assert album.rows == [
        {"kind": "confusion", "task": "digit", "counts": [["one", "nine", 2], ["one", "one", 300]]}
    ]


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("hidden", ["nothing", "future", "documents"])
def test_recorded_weights_are_those_that_made_the_output(kv_heads: int, hidden: str) -> None:
    torch.manual_seed(0)
    module = Attention(32, 4, kv_heads)
    x_BTD = torch.randn(2, 6, 32)
    turns = rope.angles(torch.arange(6), 8, 1e4)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    mask = masks.build(6, documents_BT=documents, causal=True) if hidden == "documents" else None
    before = torch.get_rng_state()
    with attention.watched([module]) as seen:
        out_BTD = module(x_BTD, rope=turns, mask=mask, causal=hidden == "future")
    assert torch.equal(before, torch.get_rng_state())
    module(x_BTD)  # outside nothing is watched
    (weights,) = seen
    v_BHTd = module.v_proj(x_BTD).view(2, 6, kv_heads, 8).transpose(1, 2).repeat_interleave(4 // kv_heads, 1)
    mine_BTD = module.o_proj((weights @ v_BHTd).transpose(1, 2).reshape(2, 6, 32))
    torch.testing.assert_close(mine_BTD, out_BTD, atol=1e-5, rtol=1e-4)
