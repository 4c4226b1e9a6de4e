"""Pictures with captions, true and false."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from muomni.data.pictures import PictureAugment, Pictures
from muomni.data.sample import Sample, parse
from muomni.errors import DataError
from muomni.tokens.bpe import Tokenizer

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a red circle beside a blue square"] * 3, 290)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pictures")
    noise = RNG(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out / "noise.png")
    Image.new("RGB", (10, 10), (200, 0, 0)).save(out / "red.png")
    (out / "broken.png").write_bytes(b"no")
    return out


def shown(
    folder: Path, name: str, caption: str, *, negatives: int = 0, task: str = "caption", pictures: int = 1
) -> Sample:
    part = {"type": "image", "path": str(folder / f"{name}.png")}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [part] * pictures or "hm"},
        {"role": "assistant", "content": caption or [{"type": "audio", "path": "said.wav"}]},
    ]
    false = [{"kind": "colour", "text": f"a blue circle {n}"} for n in range(negatives)]
    return parse(
        {"id": f"{name}-{caption}", "group": "g", "task": task, "messages": messages, "negatives": false}
    )


def test_a_picture_with_its_captions(tokenizer: Tokenizer, folder: Path) -> None:
    data = Pictures([shown(folder, "red", "a red circle", negatives=3)], tokenizer, 16, negatives=2)
    item = data.item(0, RNG(0))
    assert item.pixels.shape == (16, 16, 3)
    assert item.pixels.dtype == np.uint8
    assert tokenizer.decode(item.caption_ids) == "a red circle"
    assert len(item.negatives) == 2
    assert item.negatives[0] != item.negatives[1], "drawn without repetition"


def test_negatives_are_drawn_by_the_given_generator(tokenizer: Tokenizer, folder: Path) -> None:
    data = Pictures([shown(folder, "red", "a red circle", negatives=9)], tokenizer, 16, negatives=3)
    draws = [tuple(map(tuple, data.item(0, RNG(seed)).negatives)) for seed in range(8)]
    assert len(set(draws)) > 4
    assert draws[3] == tuple(map(tuple, data.item(0, RNG(3)).negatives))
    few = Pictures([shown(folder, "red", "a red circle", negatives=1)], tokenizer, 16, negatives=3)
    assert len(few.item(0, RNG(0)).negatives) == 1
    assert Pictures([shown(folder, "red", "a", negatives=2)], tokenizer, 16).item(0, RNG(0)).negatives == []


def test_equal_captions_share_a_key(tokenizer: Tokenizer, folder: Path) -> None:
    captions = ["a red circle", "a red circle", "a red square", "a blue circle"]
    data = Pictures([shown(folder, "red", caption) for caption in captions], tokenizer, 16)
    keys = [data.item(i, RNG(0)).key for i in range(4)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert all(0 <= key < 2**63 for key in keys), "they go into an int64 tensor"


def test_long_captions_lose_their_end(tokenizer: Tokenizer, folder: Path) -> None:
    data = Pictures([shown(folder, "red", "a red circle " * 50)], tokenizer, 16, max_tokens=7)
    assert len(data.item(0, RNG(0)).caption_ids) == 7


@pytest.mark.parametrize(
    ("name", "caption", "pictures", "reason"),
    [
        ("broken", "x", 1, "undecodable"),
        ("red", "", 1, "empty"),
        ("red", "x", 0, "bad_row"),
        ("red", "x", 2, "bad_row"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(
    tokenizer: Tokenizer, folder: Path, name: str, caption: str, pictures: int, reason: str
) -> None:
    data = Pictures([shown(folder, name, caption, pictures=pictures)], tokenizer, 16)
    with pytest.raises(DataError) as caught:
        data.item(0, RNG(0))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "values", [{"shift": 3}, {"crop": 0.5}, {"flip_tasks": ["caption"]}, {"jitter": True}]
)
def test_changes_are_drawn_anew_and_leave_the_original(
    tokenizer: Tokenizer, folder: Path, values: dict[str, Any]
) -> None:
    samples = [shown(folder, "noise", "a red circle")]
    data = Pictures(samples, tokenizer, 24, changes=PictureAugment(**values))
    original = data.pixels(0).copy()
    seen = [data.item(0, RNG(seed)).pixels for seed in range(8)]
    assert len({pixels.tobytes() for pixels in seen}) > 1
    assert all(pixels.shape == original.shape and pixels.dtype == np.uint8 for pixels in seen)
    assert (data.item(0, RNG(5)).pixels == seen[5]).all()
    assert (data.pixels(0) == original).all()
    plain = Pictures(samples, tokenizer, 24)
    assert all((plain.item(0, RNG(seed)).pixels == original).all() for seed in range(3))


def test_only_the_named_tasks_are_mirrored(tokenizer: Tokenizer, folder: Path) -> None:
    """A mirrored 'left of' would be a lie."""
    data = Pictures(
        [shown(folder, "noise", "left of it", task="place")],
        tokenizer,
        24,
        changes=PictureAugment(flip_tasks=["colour"]),
    )
    assert all((data.item(0, RNG(seed)).pixels == data.pixels(0)).all() for seed in range(10))


def test_a_picture_is_read_once(tokenizer: Tokenizer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Pictures([shown(folder, "red", "one"), shown(folder, "red", "two")], tokenizer, 16)
    data.item(0, RNG(0))
    monkeypatch.setattr("muomni.data.pictures.read_picture", None)
    data.item(1, RNG(0))


def test_spared_tasks_are_shifted_and_no_more(tokenizer: Tokenizer, folder: Path) -> None:
    changes = PictureAugment(crop=0.5, jitter=True, degrees=20, shift_only_tasks=["probe"])
    pixels = RNG(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    assert np.array_equal(changes.change(pixels, RNG(2), "probe"), pixels)
    assert not np.array_equal(changes.change(pixels, RNG(2), "photo"), pixels)
