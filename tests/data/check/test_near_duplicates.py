"""Likeness: a copy in another size, format, gain or rate is known again; what only resembles is not; the cost
grows with the rows."""

import io

import numpy as np
import pytest
import soundfile
import soxr
from PIL import Image, ImageDraw, ImageEnhance

from muomni.data.check import near_duplicates
from muomni.media import audio


def photo(seed):
    rough = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((240, 180), Image.Resampling.BICUBIC)


def drawing(shape, colour, place):
    picture = Image.new("RGB", (112, 112), (240, 240, 240))
    getattr(ImageDraw.Draw(picture), shape)([*place, place[0] + 30, place[1] + 30], fill=colour)
    return picture


def jpeg(picture):
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=70)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


CHANGES = {
    "jpeg": jpeg,
    "smaller": lambda p: p.resize((p.width * 2 // 3, p.height * 2 // 3), Image.Resampling.BICUBIC),
    "larger": lambda p: p.resize((p.width * 2, p.height * 2)),
    "darker": lambda p: ImageEnhance.Brightness(p).enhance(0.8),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_picture_is_known_again(change):
    pictures = [photo(seed) for seed in range(20)] + [
        drawing("ellipse", (200, 0, 0), (10 * i, 40)) for i in range(6)
    ]
    index = near_duplicates.near_pictures()
    assert [index.add(near_duplicates.picture_vector(p)) for p in pictures] == [[]] * 26
    assert [index.add(near_duplicates.picture_vector(change(p)))[:1] for p in pictures] == [
        [i] for i in range(26)
    ]


def test_flat_pictures_of_other_content_are_told_apart():
    index = near_duplicates.near_pictures()
    pictures = [
        drawing(shape, colour, place)
        for shape in ("ellipse", "rectangle")
        for colour in ((200, 0, 0), (0, 150, 0), (0, 0, 200))
        for place in ((10, 40), (70, 40), (40, 10), (40, 70))
    ]
    assert [index.add(near_duplicates.picture_vector(p)) for p in pictures] == [[]] * 24
    assert near_duplicates.picture_vector(Image.new("RGB", (40, 40), (7, 7, 7))) is None


def voice(seed, seconds=1.0, rate_hz=16000):
    """Five syllables of drawn pitch and length."""
    rng = np.random.default_rng(seed)
    parts = []
    for length in rng.dirichlet(np.full(5, 3.0)) * seconds:
        times = np.arange(int(length * rate_hz)) / rate_hz
        tones = sum(
            np.sin(2 * np.pi * f * times) * g
            for f, g in zip(rng.uniform(150, 3300, 4), rng.random(4), strict=True)
        )
        parts.append(tones * np.hanning(len(times)) * 0.2)
    return np.concatenate(parts).astype(np.float32)


def coded(wave, rate_hz, form, subtype=None):
    stream = io.BytesIO()
    soundfile.write(stream, wave, rate_hz, format=form, subtype=subtype)
    return audio.read(stream.getvalue(), rate_hz), rate_hz


def test_a_changed_sound_is_known_again_and_another_is_not():
    waves = [voice(seed) for seed in range(30)]
    index = near_duplicates.near_sounds()

    def add(wave, rate_hz=16000):
        return index.add(near_duplicates.sound_vector(wave, rate_hz), len(wave) / rate_hz)

    assert [add(wave) for wave in waves] == [[]] * 30
    for i, wave in enumerate(waves):
        assert add(wave * 0.2)[:1] == [i]
        assert add(*coded(wave, 16000, "OGG", "VORBIS"))[:1] == [i]
        assert add(*coded(wave, 16000, "MP3"))[:1] == [i]
        assert add(soxr.resample(wave, 16000, 22050), 22050)[:1] == [i]
        assert add(np.concatenate([wave, wave])) == []


def test_texts():
    index = near_duplicates.NearTexts()
    words = "the quick brown fox jumps over the lazy dog while the cat sleeps in the warm afternoon sun near the old stone wall by a pond"
    said = [
        words,
        words.title() + "!",
        words.replace("pond", "lake"),
        " ".join(reversed(words.split())),
        "yes",
        "Yes.",
        "yes yes",
        "...",
    ]
    for text in [*said, "..."]:
        index.add(text)
    assert dict(index.near()) == {1: [0], 2: [0], 5: [4]}
    assert dict(index.near(np.array([1, 2, 3, 5]))) == {1: [0]}, "of some, by their places among these"


@pytest.mark.parametrize("alike", [False, True])
def test_the_cost_grows_with_the_rows(alike):
    rng = np.random.default_rng(0)
    index = near_duplicates.near_pictures()
    vectors = rng.normal(0, 12, (1 if alike else 4000, 768)).astype(np.int8)
    compared = []
    like = index._like
    index._like = lambda vector, length, numbers: (
        compared.append(len(numbers)) or like(vector, length, numbers)
    )
    for i in range(4000):
        index.add(vectors[i % len(vectors)])
    assert len(compared) == 3999 if alike else compared  # all but the first share a bucket with another
    assert (
        max(compared) <= near_duplicates.TABLES * near_duplicates.CROWD
    )  # of each table the last few, however many there are


def test_many_vectors_are_added_as_one_by_one():
    rng = np.random.default_rng(3)
    vectors = rng.normal(0, 12, (600, 768)).clip(-127, 127).astype(np.int8)
    vectors[300:] = vectors[:300] + rng.integers(-1, 2, (300, 768)).astype(
        np.int8
    )  # like the first half, most of them
    lengths = rng.uniform(1, 1.2, 600).tolist()
    one, many = near_duplicates.near_sounds(), near_duplicates.near_sounds()
    found = [one.add(vector, length) for vector, length in zip(vectors, lengths, strict=True)]
    assert found == list(many.add_all(list(vectors), lengths))
    assert sum(map(bool, found)) > 20
