"""The token space: ranges, ids of codes and back, one hash for one meaning, and refusals that say what
differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muomni.errors import ConfigError, ShapeError, TokenRangeError, TokenSpaceError, UserError
from muomni.tokens import sequences
from muomni.tokens.sequences import TASKS
from muomni.tokens.space import SPECIALS, TOKEN_SPACE, TokenSpace
from spaces import AUDIO, IMAGE, SOURCE, codes, small, spaces


def test_the_sources_layout_has_exactly_its_ranges():
    ranges = {region.name: (region.start, region.end, region.size) for region in SOURCE.regions}
    assert ranges == {
        "text": (0, 151_668, 151_669),
        "special": (151_669, 151_732, 64),
        "image": (151_733, 159_924, 8192),
        "audio_0": (159_925, 160_948, 1024),
        "audio_1": (160_949, 161_972, 1024),
        "audio_2": (161_973, 162_996, 1024),
        "audio_3": (162_997, 164_020, 1024),
    }
    assert SOURCE.size == 164_021
    assert len(SOURCE.new_rows) == 12_352
    assert SOURCE.specials == {name: 151_669 + place for place, name in enumerate(SPECIALS)}
    assert len(SPECIALS) == 10
    assert SOURCE.pad == 151_678


@given(spaces(), st.integers(1, 9), st.integers(0, 99))
def test_ids_of_codes_are_those_codes_again(space, frames, seed):
    for modality in ("image", "audio"):
        before = codes(space, modality, frames, seed)
        ids = space.ids_of(modality, before)
        assert torch.equal(space.codes_of(modality, ids), before)
        names = {space.region_of(int(token)).name for token in ids.flatten()}
        assert names <= {book.name for book in space.books(modality)} | {"special"}
        if space.lags(modality) is None:  # the K ids of a frame stand together, book k in place k
            for position, token in enumerate(ids.tolist()):
                assert token in space.books(modality)[position % space.codec(modality).codebooks].ids


@given(spaces())
def test_regions_follow_each_other_and_every_id_has_one(space):
    assert space.regions[0].start == 0
    for before, after in zip(space.regions, space.regions[1:]):
        assert after.start == before.end + 1
    assert sum(region.size for region in space.regions) == space.size
    for region in space.regions:
        assert space.region_of(region.start) == space.region_of(region.end) == region


@given(spaces())
def test_a_space_survives_its_file(space):
    again = TokenSpace.from_json(json.loads(json.dumps(space.to_json({"made": "today"}))))
    assert again == space
    assert again.hash == space.hash


def test_two_processes_two_times_and_two_paths_give_one_hash(tmp_path):
    program = "import sys, pathlib; from spaces import SOURCE; SOURCE.save(pathlib.Path(sys.argv[1]), {'at': sys.argv[2]})"
    hashes, contents = set(), set()
    for place in ("one", "two/deep"):
        env = {**os.environ, "PYTHONHASHSEED": str(len(place)), "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / place), place], check=True, env=env, timeout=600
        )
        hashes.add(TokenSpace.load(tmp_path / place).hash)
        contents.add((tmp_path / place / TOKEN_SPACE).read_text())
    assert hashes == {SOURCE.hash}
    assert len(contents) == 2, "the provenance differs, and is no part of the hash"


def test_the_name_of_a_codec_and_the_kind_of_its_number_are_no_meaning():
    other = replace(SOURCE, codecs=(replace(IMAGE, name="x"), replace(AUDIO, name="y", frame_rate_hz=150)))
    assert other.hash == SOURCE.hash
    assert SOURCE.differences(other) == []


MISMATCHES = {
    "range": (replace(SOURCE, text_size=151_643), "region text: expected 0..151668, got 0..151642"),
    "special": (
        replace(SOURCE, special_size=32),
        "region special: expected 151669..151732, got 151669..151700",
    ),
    "image size": (
        replace(SOURCE, codecs=(replace(IMAGE, codebook_size=4096), AUDIO)),
        "image codec codebook_size: expected 8192, got 4096",
    ),
    "digest": (
        replace(SOURCE, codecs=(IMAGE, replace(AUDIO, digest="9" * 64))),
        "audio codec digest: expected 222222222222, got 999999999999",
    ),
    "layout": (
        replace(SOURCE, codecs=(IMAGE, replace(AUDIO, layout="delay"))),
        "audio codec layout: expected interleaved, got delay",
    ),
    "rate": (
        replace(SOURCE, codecs=(IMAGE, replace(AUDIO, frame_rate_hz=75.0))),
        "audio codec frame_rate_hz: expected 150.0, got 75.0",
    ),
    "books": (
        replace(SOURCE, codecs=(IMAGE, replace(AUDIO, codebooks=2))),
        "region audio_2: expected 161973..162996, got none",
    ),
    "tokenizer": (
        replace(SOURCE, tokenizer="8" * 64),
        "text tokenizer: expected 333333333333, got 888888888888",
    ),
    "medium": (replace(SOURCE, codecs=(IMAGE,)), "region audio_0: expected 159925..160948, got none"),
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_another_space_is_refused_with_what_differs(what):
    other, line = MISMATCHES[what]
    with pytest.raises(TokenSpaceError) as caught:
        SOURCE.require(other, "checkpoint x")
    assert str(caught.value).startswith("checkpoint x: ")
    assert line in str(caught.value)
    assert caught.value.exit_code == 2
    assert other.hash != SOURCE.hash
    with pytest.raises(TokenSpaceError, match=SOURCE.hash[:12]):
        SOURCE.require_hash(other.hash, "shard 3, sample 7")
    SOURCE.require_hash(SOURCE.hash, "shard 3, sample 8")


@given(spaces(), spaces())
def test_spaces_differ_exactly_if_their_hashes_do(one, other):
    assert (one.hash == other.hash) == (one.differences(other) == [])


def test_a_planted_special_id_is_refused_at_load(tmp_path):
    SOURCE.save(tmp_path)
    path = tmp_path / TOKEN_SPACE
    content = json.loads(path.read_text())
    content["special_tokens"]["img_start"] += 1
    path.write_text(json.dumps(content))
    with pytest.raises(TokenSpaceError, match=r"special token img_start: expected 151671, got 151672"):
        TokenSpace.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["regions"]["image"].update(end=159_923), "region image"),
        (lambda c: c.update(hash="0" * 64), "hash: expected"),
        (lambda c: c.update(size=164_022), "size: expected 164021, got 164022"),
        (lambda c: c.update(version="muomni_tokens_v9"), "expected version"),
        (lambda c: c["codecs"][1].update(digest="7" * 64), "hash: expected"),
        (lambda c: c.pop("regions"), "no token space"),
        (lambda c: c.update(tokenizer="7" * 64), "hash: expected"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, change, message):
    SOURCE.save(tmp_path)
    path = tmp_path / TOKEN_SPACE
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(TokenSpaceError, match=message):
        TokenSpace.load(tmp_path)


def test_a_torn_or_missing_file_is_the_users_matter(tmp_path):
    with pytest.raises(UserError, match=TOKEN_SPACE):
        TokenSpace.load(tmp_path)
    (tmp_path / TOKEN_SPACE).write_text('{"version": ')
    with pytest.raises(UserError, match="torn"):
        TokenSpace.load(tmp_path)


def test_out_of_range_codes_and_ids_are_named_both_ways():
    with pytest.raises(
        TokenRangeError, match=r"position 1: expected a code of image \(0\.\.8191\), got 9000"
    ):
        SOURCE.to_global("image", torch.tensor([5, 9000]))
    with pytest.raises(TokenRangeError, match=r"position \(0, 1\): .* got -1"):
        SOURCE.to_global("image", torch.tensor([[5, -1]]))
    with pytest.raises(
        TokenRangeError, match=r"position 2: expected an id of image .*got 159925, which is of audio_0"
    ):
        SOURCE.from_global("image", torch.tensor([151_733, 159_924, 159_925]))
    with pytest.raises(TokenRangeError, match=r"got 151671, which is img_start"):
        SOURCE.from_global("image", torch.tensor([151_671]))
    with pytest.raises(TokenRangeError, match=r"got 164021, which is no id of this space"):
        SOURCE.from_global("audio_3", torch.tensor([164_021]))
    with pytest.raises(TokenRangeError, match=r"0\.\.164020, got 164021"):
        SOURCE.region_of(164_021)
    with pytest.raises(ShapeError):
        SOURCE.to_global("image", torch.tensor([0.5]))
    with pytest.raises(TokenSpaceError, match="audio_4"):
        SOURCE.region("audio_4")


def test_swapped_codebooks_are_named():
    ids = SOURCE.ids_of("audio", codes(SOURCE, "audio", 5))
    ids[[9, 10]] = ids[[10, 9]]
    with pytest.raises(
        TokenRangeError,
        match=r"audio span: position 9: expected an id of audio_1 \(160949\.\.161972\), got \d+, which is of audio_2",
    ):
        SOURCE.codes_of("audio", ids)


def test_truncated_spans_are_named():
    ids = SOURCE.ids_of("audio", codes(SOURCE, "audio", 5))
    with pytest.raises(
        TokenRangeError, match=r"position 18: expected an id of audio_2 \(161973\.\.162996\), got the end"
    ):
        SOURCE.codes_of("audio", ids[:18])
    with pytest.raises(TokenRangeError, match="position 0"):
        SOURCE.codes_of("audio", ids[:0])
    image = SOURCE.ids_of("image", codes(SOURCE, "image", 0))
    with pytest.raises(
        TokenRangeError, match=r"position 31: expected an id of image .* got the end.*32 frames"
    ):
        SOURCE.codes_of("image", image[:31])
    with pytest.raises(TokenRangeError, match="expected the end after 32 frames, got 1 more"):
        SOURCE.codes_of("image", torch.cat((image, image[:1])))


@pytest.mark.parametrize("layout", ["delay", "parallel"])
def test_streams_side_by_side_are_checked_where_they_are_silent_too(layout):
    space = small(layout)
    ids = space.ids_of("audio", codes(space, "audio", 4))
    assert ids.shape == (3, 6 if layout == "delay" else 4)
    swapped = ids.clone()
    swapped[[0, 1], 2] = swapped[[1, 0], 2]
    with pytest.raises(TokenRangeError, match=r"position 2 of stream 0: expected an id of audio_0"):
        space.codes_of("audio", swapped)
    with pytest.raises(ShapeError):
        space.codes_of("audio", ids[0])
    if layout == "delay":
        loud = ids.clone()
        loud[1, 0] = int(ids[1, 1])
        with pytest.raises(TokenRangeError, match=r"position 0 of stream 1: expected pad_mm"):
            space.codes_of("audio", loud)
        with pytest.raises(TokenRangeError, match="got the end"):
            space.codes_of("audio", ids[:, :2])


def test_codes_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match=r"\(4, F >= 1\)"):
        SOURCE.ids_of("audio", torch.zeros(3, 5, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"\(1, 32\)"):
        SOURCE.ids_of("image", torch.zeros(1, 31, dtype=torch.int64))


def test_impossible_spaces_are_refused():
    for wrong in (
        {"text_size": 0},
        {"special_size": 9},
        {"codecs": (AUDIO, IMAGE)},
        {"codecs": (AUDIO, AUDIO)},
        {"codecs": (replace(IMAGE, layout="diagonal"),)},
        {"codecs": (replace(IMAGE, codebooks=0),)},
    ):
        with pytest.raises(ConfigError):
            replace(SOURCE, **wrong)


def test_the_documents_tables_are_the_code():
    lines = (Path(__file__).parents[2] / "docs" / "tokens.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    regions = {
        row[0]: tuple(int(cell.replace(",", "")) for cell in row[1:])
        for row in rows
        if len(row) == 4 and row[1][:1].isdigit()
    }
    expected = {region.name: (region.start, region.end, region.size) for region in SOURCE.regions}
    assert regions == {**expected, "all": (0, SOURCE.size - 1, SOURCE.size)}
    specials = {row[0]: int(row[1].replace(",", "")) for row in rows if row[0] in SPECIALS}
    assert specials == SOURCE.specials
    tasks = {row[0]: row[1] for row in rows if row[0] in TASKS}
    for name, row in tasks.items():
        media = small().ids_of(TASKS[name].medium, codes(small(), TASKS[name].medium, 2))
        ids = sequences.build(small(), name, [1], media).ids
        words = [small().describe(int(token)).split()[-1] for token in ids]
        words = [word if word in SPECIALS else word.split("_")[0].upper() for word in words]
        assert row.split() == [
            word for place, word in enumerate(words) if place == 0 or word != words[place - 1]
        ]
    assert set(tasks) == set(TASKS)
