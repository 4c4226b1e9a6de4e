"""Sets of shards: equal bytes however they are made, whole after a kill, and nothing bad gets in without its
name."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import standins
import webdataset

from muomni import files
from muomni.data import split
from muomni.data.source import Source
from muomni.data.tokenized import encode, make
from muomni.data.tokenized.index import SIDES, Piece, ShardSet
from muomni.data.tokenized.record import FIELDS, digest_of, key_of, members, parse
from muomni.errors import ConfigError, DataError, TokenSpaceError, UserError

SETTINGS = make.ShardSettings(samples_per_shard=20, val_split=0.2, bad_limit=0.2)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    return standins.make_data(tmp_path_factory.mktemp("data"), 90, bad=(5,))


@pytest.fixture(scope="module")
def whole(sources: list[Source], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished set of 90 samples, one of them unreadable."""
    folder = tmp_path_factory.mktemp("whole") / "set"
    make.shard(sources, folder, standins.opener(), SETTINGS)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """All files of a set by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def changed(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_every_good_sample_is_there_once_with_the_ids_of_its_own_media(whole: Path) -> None:
    opened = standins.opener()()
    found = [record for side in SIDES for record in ShardSet(whole, side)]
    assert sorted(record.about["id"] for record in found) == sorted(
        f"row.{number}" for number in range(90) if number != 5
    )
    for record in found:
        number = int(record.about["id"].removeprefix("row."))
        assert record.about["task"] == ("i2t", "a2t", "t2i", "t2a")[number % 4]
        kind = "image" if number % 2 == 0 else "audio"
        words = record.ids["text_out" if number % 4 < 2 else "text_in"]
        assert opened.text.decode(words.tolist()) in standins.WORDS
        import torch

        codes_KF = opened.space.codes_of(kind, torch.from_numpy(record.ids[kind]))
        assert codes_KF.shape == ((1, 16) if kind == "image" else (2, record.about["audio"]["frames"]))
        assert [len(record.ids[name]) > 0 for name in FIELDS] == [
            number % 4 > 1,
            number % 4 < 2,
            kind == "image",
            kind == "audio",
        ]
        assert record.about["side"] == split.assign(record.about["group"], 0.2, 0)


def test_codes_of_a_batch_are_those_of_each_clip_alone(sources: list[Source], whole: Path) -> None:
    opened = standins.opener()()
    alone = encode.Encoder(opened, audit=True, val_split=0.2, seed=0)
    from muomni.data import readers
    from muomni.data.quarantine import Quarantine

    samples = {sample.id: sample for sample in readers.read(sources[0], Path(), Quarantine())}
    for side in SIDES:
        for record in ShardSet(whole, side):
            (again,), bad, _ = alone.records([samples[record.about["id"]]], side, int(record.key))
            assert digest_of(again.ids) == digest_of(record.ids)
            assert again.about == record.about


def test_one_process_and_two_give_equal_bytes(sources: list[Source], whole: Path, tmp_path: Path) -> None:
    make.shard(sources, tmp_path / "set", standins.opener(), SETTINGS, processes=2)
    assert content(tmp_path / "set") == content(whole)


def test_an_audit_gives_the_same_ids_and_is_recorded(
    sources: list[Source], whole: Path, tmp_path: Path
) -> None:
    about = make.shard(
        sources, tmp_path / "set", standins.opener(), make.ShardSettings(**{**vars(SETTINGS), "audit": True})
    )
    assert about["audit"] is True
    assert json.loads((tmp_path / "set/shards.json").read_text())["settings"]["audit"] is True
    for side in SIDES:
        assert [digest_of(each.ids) for each in ShardSet(tmp_path / "set", side)] == [
            digest_of(each.ids) for each in ShardSet(whole, side)
        ]


@pytest.mark.parametrize("moment", range(1, 60, 6))
def test_a_kill_at_any_moment_leaves_what_a_second_run_finishes_to_the_same_bytes(
    sources: list[Source], whole: Path, tmp_path: Path, moment: int
) -> None:
    out = tmp_path / "set"
    child = os.fork()
    if child == 0:  # dies at its `moment`th system call that makes a file durable
        left = [moment]

        def dying(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args)

            return counted

        os.fsync, os.replace = dying(os.fsync), dying(os.replace)
        try:
            make.shard(sources, out, standins.opener(), SETTINGS)
        finally:
            os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the run ended before its moment came"
    made = list(out.rglob("*.tar"))
    before = {path: path.stat().st_mtime_ns for path in made if path.with_suffix(".json").exists()}
    make.shard(sources, out, standins.opener(), SETTINGS)
    assert content(out) == content(whole)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items()), (
        "a finished shard was made again"
    )


def test_a_full_disk_ends_with_the_shards_name_and_loses_nothing(
    sources: list[Source], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = files.write_bytes, [0]

    def full(path: Path, held: bytes) -> None:
        count[0] += path.suffix == ".tar"
        if count[0] == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, held)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", full)
        with pytest.raises(UserError, match=r"train/shard-000002\.tar: no room: No space left") as caught:
            make.shard(sources, tmp_path / "set", standins.opener(), SETTINGS)
    assert caught.value.exit_code == 2
    assert len(list((tmp_path / "set").rglob("*.tar"))) == 2
    with pytest.raises(UserError, match="expected the index of a finished set"):
        ShardSet(tmp_path / "set", "train")
    make.shard(sources, tmp_path / "set", standins.opener(), SETTINGS)
    assert content(tmp_path / "set") == content(whole)


def test_an_unreadable_clip_is_set_aside_by_name_and_the_others_keep_their_keys(whole: Path) -> None:
    (entry,) = [json.loads(line) for line in (whole / "quarantine.jsonl").read_text().splitlines()]
    assert entry["row"] == "row.5"
    assert entry["path"].endswith("media/5.wav")
    assert entry["reason"] == "undecodable"
    about = json.loads((whole / "index.json").read_text())
    assert sum(side["samples"] for side in about["sides"].values()) == 89
    numbers = sorted(
        int(record.key)
        for side in SIDES
        for record in ShardSet(whole, side)
        if record.about["side"] == "train"
    )
    assert len(numbers) == max(numbers) or len(numbers) == max(numbers) + 1


def test_too_many_unreadable_clips_end_the_run_early(tmp_path: Path) -> None:
    rows = standins.make_data(tmp_path, 40, bad=tuple(range(1, 40, 2)))
    settings = make.ShardSettings(samples_per_shard=10, bad_limit=0.1)
    with pytest.raises(
        DataError,
        match=r"shard-00000\d\.tar: expected at most 10.0% unreadable samples, got \d+ of 40; sample 'row\.\d+'",
    ):
        make.shard(rows, tmp_path / "set", standins.opener(), settings)
    assert len(list((tmp_path / "set").rglob("*.tar"))) < 4


def row(name: str, said: str, **more: Any) -> str:
    turns = [
        {"role": "user", "content": [{"type": "image", "path": "media/0.png"}]},
        {"role": "assistant", "content": said},
    ]
    return json.dumps({"id": name, "messages": turns, **more}) + "\n"


def test_groups_that_straddle_the_split_are_refused_by_name(tmp_path: Path) -> None:
    standins.make_data(tmp_path, 2)
    (tmp_path / "rows.jsonl").write_text(
        row("a", "x", group="cat", split="train") + row("b", "y", group="cat", split="valid")
    )
    with pytest.raises(DataError, match="cat") as caught:
        make.shard([Source(path=str(tmp_path / "rows.jsonl"))], tmp_path / "set", standins.opener(), SETTINGS)
    assert caught.value.reason == "leak_group"
    assert not list((tmp_path / "set").rglob("*.tar"))


def test_an_id_that_stands_twice_is_refused_by_name(tmp_path: Path) -> None:
    standins.make_data(tmp_path, 2)
    (tmp_path / "rows.jsonl").write_text(row("again", "x") + row("b", "y") + row("again", "z"))
    with pytest.raises(DataError, match="1 ids stand twice: 'again'") as caught:
        make.shard([Source(path=str(tmp_path / "rows.jsonl"))], tmp_path / "set", standins.opener(), SETTINGS)
    assert caught.value.reason == "duplicate_id"


def test_other_codecs_settings_or_data_do_not_go_on_where_shards_are(
    sources: list[Source], whole: Path, tmp_path: Path
) -> None:
    out = changed(whole, tmp_path / "set")
    with pytest.raises(TokenSpaceError, match="audio codec digest: expected aaaaaaaaaaaa, got cccccccccccc"):
        make.shard(sources, out, standins.opener(digest="c" * 64), SETTINGS)
    with pytest.raises(TokenSpaceError, match="audio codec layout"):
        make.shard(sources, out, standins.opener(layout="delay"), SETTINGS)
    with pytest.raises(ConfigError, match=r"settings\.seed: 0 before, 1 now"):
        make.shard(sources, out, standins.opener(), make.ShardSettings(**{**vars(SETTINGS), "seed": 1}))
    assert content(out) == content(whole)
    about = make.shard(sources, out, standins.opener(digest="c" * 64), SETTINGS, fresh=True)
    assert about["token_space_sha256"] != json.loads((whole / "index.json").read_text())["token_space_sha256"]


def test_fresh_removes_no_folder_of_others(sources: list[Source], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        make.shard(sources, tmp_path, standins.opener(), SETTINGS, fresh=True)
    assert (tmp_path / "thesis.txt").read_text() == "dear"


def test_captions_of_one_clip_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = standins.make_data(tmp_path, 40, captions=20)
    clips: list[int] = []
    real = standins.MeanCodec.encode
    monkeypatch.setattr(
        standins.MeanCodec, "encode", lambda self, media: (clips.append(len(media)), real(self, media))[1]
    )
    make.shard(rows, tmp_path / "set", standins.opener(), make.ShardSettings(val_split=0))
    assert sum(clips) == 2


def test_a_codec_that_leaves_out_an_unfull_frame_still_gives_every_sample_back() -> None:
    class RoundsDown(standins.MeanCodec):
        def frames(self, samples: int) -> int:
            return max(1, samples // self.hop)

    for samples in (1, 159, 160, 161, 4001):
        filled = encode.whole_frames(RoundsDown(), samples)  # type: ignore[arg-type]
        assert filled == encode.whole_frames(standins.MeanCodec(), samples) == -(-samples // 160) * 160  # type: ignore[arg-type]


# Access


def test_any_sample_is_read_alone_and_is_the_one_of_a_walk(whole: Path) -> None:
    opened = ShardSet(whole, "train")
    walk = list(opened)
    for place in (0, 25, len(opened) - 1, -1):
        assert opened[place].about == walk[place].about
        assert all(np.array_equal(opened[place].ids[name], walk[place].ids[name]) for name in FIELDS)
    with pytest.raises(IndexError):
        opened[len(opened)]


def test_members_of_a_sample_come_back_from_its_bytes(whole: Path) -> None:
    record = ShardSet(whole, "train")[3]
    again = parse(members(record), "here")
    assert again.about == record.about
    assert members(again) == members(record)
    with pytest.raises(DataError, match="here: expected a tar header at byte 0"):
        parse(members(record)[5:], "here")


def test_a_truncated_or_packed_tar_is_found_by_name(whole: Path, tmp_path: Path) -> None:
    out = changed(whole, tmp_path / "set")
    tar = out / "train/shard-000001.tar"
    held = tar.read_bytes()
    tar.write_bytes(held[:-700])
    with pytest.raises(DataError, match=r"train/shard-000001\.tar: truncated"):
        ShardSet(out, "train")
    tar.write_bytes(held + bytes(8704))
    with pytest.raises(DataError, match=r"train/shard-000001\.tar: packed again or appended"):
        ShardSet(out, "train")
    tar.unlink()
    with pytest.raises(DataError, match=r"train/shard-000001\.tar: expected a shard of \d+ samples"):
        ShardSet(out, "train")


def test_a_changed_id_and_another_token_space_are_found_by_their_sample(whole: Path, tmp_path: Path) -> None:
    out = changed(whole, tmp_path / "set")
    opened = ShardSet(out, "train")
    tar, row = out / "train/shard-000001.tar", opened.rows[22].tolist()
    held = bytearray(tar.read_bytes())
    place = held.index(b"\x93NUMPY", row[2]) + 128
    place = next(
        at
        for at in range(row[2], row[2] + row[3])
        if held[at : at + 6] == b"\x93NUMPY" and held[at + 128 : at + 132] != bytes(4)
    )
    held[place + 128] ^= 1
    tar.write_bytes(held)
    with pytest.raises(
        DataError, match=rf"train/shard-000001\.tar: sample {key_of(row[1])}: the ids are not those"
    ):
        ShardSet(out, "train")[22]
    other = bytes(held).replace(opened.token_space_sha256.encode(), b"0" * 64)
    tar.write_bytes(other)
    with pytest.raises(
        TokenSpaceError, match=rf"sample {key_of(int(opened.rows[23][1]))}: expected token space"
    ):
        ShardSet(out, "train")[23]


# What other libraries read


def test_webdataset_reads_the_same_samples_in_the_same_order(whole: Path) -> None:
    ours = list(ShardSet(whole, "train"))
    urls = [str(path) for path in sorted((whole / "train").glob("*.tar"))]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in theirs] == [record.key for record in ours]
    for sample, record in zip(theirs, ours, strict=True):
        assert sample["json"] == record.about
        for name in FIELDS:
            assert sample[f"{name}.npy"].dtype == np.int32
            assert np.array_equal(sample[f"{name}.npy"], record.ids[name])


def test_datasets_reads_every_key_of_every_sample(whole: Path, tmp_path: Path) -> None:
    ours = list(ShardSet(whole, "train"))
    urls = [str(path) for path in sorted((whole / "train").glob("*.tar"))]
    theirs = datasets.load_dataset(
        "webdataset", data_files={"train": urls}, split="train", cache_dir=str(tmp_path)
    )
    assert len(theirs) == len(ours)
    for sample, record in zip(theirs, ours, strict=True):
        assert {**sample["json"], "__key__": record.key} == record.about
        assert all(sample[f"{name}.npy"] == record.ids[name].tolist() for name in FIELDS)


def test_tars_name_no_time_no_owner_and_tarfile_reads_them(whole: Path) -> None:
    with tarfile.open(whole / "train/shard-000000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_a_piece_names_the_sha256_of_its_tar(whole: Path) -> None:
    for path in whole.rglob("shard-*.json"):
        assert Piece.load(path).sha256 == files.sha256_file(path.with_suffix(".tar"))
