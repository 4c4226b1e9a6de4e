"""The audit of token shards: a sound set is green, and each planted fault is named by its check, with file
and sample."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standins
import torch

from muomni import cli, files
from muomni.data.tokenized import index, make
from muomni.data.tokenized.index import SIDES, Piece, ShardSet, write_index, write_shard
from muomni.data.tokenized.record import FIELDS, Record, digest_of
from muomni.errors import ConfigError, UserError
from muomni.evaluate.token_shards import AuditSettings, audit
from muomni.models import store
from muomni.models.codec import Codec, CodecConfig

SETTINGS = make.ShardSettings(samples_per_shard=20, val_split=0.2, bad_limit=0.2)
FEW = AuditSettings(retokenise=30, decode=8, rows=30)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = standins.make_data(tmp_path_factory.mktemp("data"), 80)
    folder = tmp_path_factory.mktemp("whole") / "set"
    make.shard(sources, folder, standins.opener(), SETTINGS)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "set"))


def audited(
    folder: Path, settings: AuditSettings = FEW, *, tokens: Any = None, **more: Any
) -> dict[str, Any]:
    opened = tokens or standins.opener()()
    return audit(folder, opened.space, opened, settings, **more)


def verdicts(report: dict[str, Any]) -> dict[str, str]:
    return {check["check"]: check["verdict"] for check in report["checks"]}


def errors(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "verify" / "errors.jsonl").read_text().splitlines()]


def plant(folder: Path, change: Callable[[Record], None], place: int = 7) -> tuple[str, str]:
    """Write a set anew in which one sample of training is changed, as by a faulty writer: digests and index
    fit. Its shard and key."""
    records = list(ShardSet(folder, "train"))
    change(records[place])
    of_shard = ShardSet(folder, "train").rows[:, 0].tolist()
    for number in sorted(set(of_shard)):
        write_shard(
            folder,
            "train",
            number,
            [each for each, shard in zip(records, of_shard, strict=True) if shard == number],
        )
    about = files.read_json(folder / index.ABOUT)
    about["sides"]["train"] = write_index(folder, "train", len(set(of_shard)))
    files.write_json(folder / index.ABOUT, about)
    return f"train/{index.shard_name(of_shard[place])}", records[place].key


def settle(record: Record) -> None:
    record.about["tokens"] = {name: len(record.ids[name]) for name in FIELDS}
    record.about["tokens_sha256"] = digest_of(record.ids)


def first(folder: Path, task: str) -> int:
    return next(
        place
        for place, record in enumerate(ShardSet(folder, "train"))
        if record.about["task"] == task and place > 2
    )


def test_a_sound_set_is_green_and_every_check_looked_at_something(copy: Path) -> None:
    report = audited(copy)
    assert report["exit_code"] == 0
    assert verdicts(report) == {**dict.fromkeys("SABCDEFGH", "green"), "R": "not run"}
    assert all(check["n"] > 0 for check in report["checks"] if check["check"] != "R")
    assert errors(copy) == []
    assert "baseline" in report["checks"][-1]["note"]


def test_another_token_space_is_refused_with_what_differs(copy: Path) -> None:
    report = audited(copy, tokens=standins.opener(digest="c" * 64)())
    assert report["exit_code"] == 2
    (one,) = [each for each in errors(copy) if each["check"] == "A"]
    assert "audio codec digest" in one["what"]
    assert verdicts(report)["F"] == "not run"


def test_one_sample_of_another_space_is_named(copy: Path) -> None:
    def change(record: Record) -> None:
        record.about["token_space_sha256"] = "0" * 64

    shard, key = plant(copy, change)
    assert audited(copy)["exit_code"] == 2
    assert [(each["check"], each["file"], each["sample"]) for each in errors(copy)] == [("A", shard, key)]


@pytest.mark.parametrize(
    ("check", "what"),
    [
        ("B", "missing key"),
        ("B", "no text"),
        ("C", "high id"),
        ("C", "text id"),
        ("D", "swapped"),
        ("D", "lost"),
    ],
)
def test_a_planted_sample_is_named_by_its_check(copy: Path, check: str, what: str) -> None:
    def change(record: Record) -> None:
        ids = record.ids
        if what == "missing key":
            del record.about["group"]
        elif what == "no text":
            ids["text_out"] = ids["text_out"][:0]
        elif what == "high id":
            ids["audio"] = np.append(ids["audio"][:-1], np.int32(10**6))
        elif what == "text id":
            ids["text_out"] = np.append(ids["text_out"], ids["audio"][:1])
        elif what == "swapped":  # book 1 stands where book 0 belongs
            ids["audio"] = ids["audio"].reshape(-1, 2)[:, ::-1].reshape(-1).copy()
        else:
            ids["audio"] = ids["audio"][:-2]
        settle(record)

    shard, key = plant(copy, change, first(copy, "a2t"))
    report = audited(copy)
    assert report["exit_code"] == 2
    assert [(each["check"], each["file"], each["sample"]) for each in errors(copy)] == [(check, shard, key)]
    assert next(each for each in report["checks"] if each["check"] == check)["diagnosis"]


def test_a_group_an_id_and_a_moved_sample_are_named(copy: Path) -> None:
    other = ShardSet(copy, "valid")[0].about

    def change(record: Record) -> None:
        record.about["group"], record.about["id"] = other["group"], other["id"]

    shard, key = plant(copy, change)
    assert audited(copy)["exit_code"] == 2
    found = {each["what"] for each in errors(copy) if each["check"] == "E"}
    assert any(f"id {other['id']!r} stands twice" in what for what in found)
    assert any(f"group {other['group']!r} stands in train and in valid" in what for what in found)
    assert any("the hash gives the other side" in what for what in found)
    assert (shard, key) in {(each["file"], each["sample"]) for each in errors(copy)}


def test_a_truncated_tar_names_the_first_sample_that_is_cut_off(copy: Path) -> None:
    opened = ShardSet(copy, "train")
    row = opened.rows[25].tolist()
    tar = copy / "train/shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[: row[2] + 700])
    assert audited(copy)["exit_code"] == 2
    one = errors(copy)[0]
    assert (one["check"], one["file"], one["sample"]) == ("S", "train/shard-000001.tar", f"{row[1]:08d}")
    assert "truncated" in one["what"]


def test_a_tar_that_is_packed_again_is_named_with_members_that_stand_twice(copy: Path) -> None:
    path = copy / "train/shard-000001.tar"
    with tarfile.open(path) as tar:
        held = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for member, content in [*held, held[0]]:
            member.mtime = 1
            tar.addfile(member, io.BytesIO(content))
    assert audited(copy)["exit_code"] == 2
    one = errors(copy)[0]
    assert (one["check"], one["file"]) == ("S", "train/shard-000001.tar")
    assert f"1 members stand twice, the first {held[0][0].name}" in one["what"]


def test_a_changed_index_is_named(copy: Path) -> None:
    rows = np.load(copy / "train/index.npy")
    rows[[3, 4]] = rows[[4, 3]]
    np.save(copy / "train/index.npy", rows)
    assert audited(copy)["exit_code"] == 2
    assert errors(copy)[0]["file"] == "train/index.npy"


def test_codes_in_the_wrong_books_are_found_by_tokenising_again(copy: Path) -> None:
    """Ids, ranges and order are right; only the values of the two books are exchanged, as by a codec that
    changed without its digest."""
    report = audited(copy, tokens=standins.opener(swapped=True)())
    assert verdicts(report) == {**dict.fromkeys("SABCDEGH", "green"), "F": "red", "R": "not run"}
    assert report["exit_code"] == 1
    assert all(each["check"] == "F" and "audio" in each["what"] for each in errors(copy))
    assert "codec" in next(each for each in report["checks"] if each["check"] == "F")["diagnosis"]


def test_changed_media_and_lost_sources_are_told(copy: Path, tmp_path: Path) -> None:
    provenance = json.loads((copy / "provenance.json").read_text())
    provenance["sources"][0]["path"] = str(tmp_path / "nowhere.jsonl")
    (copy / "provenance.json").write_text(json.dumps(provenance))
    report = audited(copy)
    found = next(each for each in report["checks"] if each["check"] == "F")
    assert (found["verdict"], report["exit_code"]) == ("red", 1)
    assert "nowhere.jsonl" in found["note"]


def test_ids_that_do_not_decode_to_their_length_are_named(copy: Path) -> None:
    def change(record: Record) -> None:
        record.about["audio"]["samples"] += 4000

    shard, key = plant(copy, change, first(copy, "a2t"))
    report = audited(copy, AuditSettings(retokenise=10, decode=80, rows=10))
    assert report["exit_code"] == 1
    assert [(each["check"], each["file"], each["sample"]) for each in errors(copy)] == [("G", shard, key)]


def test_a_row_that_would_be_cut_is_named(copy: Path) -> None:
    report = audited(copy, AuditSettings(retokenise=5, decode=5, rows=60, max_len=24))
    assert verdicts(report)["H"] == "red"
    assert any("expected at most 24 positions" in each["what"] for each in errors(copy))


def test_a_baseline_is_set_with_a_reason_compared_and_renewed_with_its_history(copy: Path) -> None:
    with pytest.raises(ConfigError, match="a reason in words"):
        audited(copy, set_baseline=" ")
    audited(copy, set_baseline="first set")
    stored = json.loads((copy / "baseline.json").read_text())
    assert stored["reason"] == "first set"
    assert stored["codecs"]["audio"] == "a" * 64
    assert {"snr_db", "log_mel_l1", "psnr_db", "ssim"} == set(stored["round_trip"])
    report = audited(copy)
    assert verdicts(report)["R"] == "green"
    stored["lengths"]["train"]["audio"]["p90"] *= 1.2
    stored["round_trip"]["psnr_db"] += 1
    (copy / "baseline.json").write_text(json.dumps(stored))
    report = audited(copy)
    assert report["exit_code"] == 1
    assert {"p90 of audio", "psnr_db"} <= {
        part for each in errors(copy) for part in ("p90 of audio", "psnr_db") if part in each["what"]
    }
    audited(copy, set_baseline="longer clips")
    again = json.loads((copy / "baseline.json").read_text())
    assert [each["reason"] for each in again["history"]] == ["first set"]
    assert verdicts(audited(copy))["R"] == "green"


def test_a_red_set_does_not_become_the_baseline(copy: Path) -> None:
    with pytest.raises(ConfigError, match="F red or not run"):
        audited(copy, tokens=standins.opener(swapped=True)(), set_baseline="why not")
    assert not (copy / "baseline.json").exists()


def test_integrity_needs_no_codec_and_says_what_it_left(copy: Path) -> None:
    space = standins.opener()().space
    report = audit(copy, space, settings=AuditSettings(level="integrity"))
    assert (report["exit_code"], verdicts(report)["F"]) == (0, "not run")
    with pytest.raises(ConfigError, match="--level full"):
        audit(copy, space)


def test_books_side_by_side_are_audited_too(tmp_path: Path) -> None:
    sources = standins.make_data(tmp_path, 24)
    make.shard(
        sources,
        tmp_path / "set",
        standins.opener(layout="delay"),
        make.ShardSettings(samples_per_shard=10, val_split=0.2),
    )
    report = audited(tmp_path / "set", tokens=standins.opener(layout="delay")())
    assert verdicts(report) == {**dict.fromkeys("SABCDEFGH", "green"), "R": "not run"}


def test_a_folder_without_a_finished_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"index\.json"):
        audited(tmp_path)


def test_pieces_and_sides_are_all_walked(whole: Path) -> None:
    report = audited(whole, out=whole.parent / "elsewhere")
    found = {
        side: sum(len(Piece.load(path).rows) for path in (whole / side).glob("shard-*.json"))
        for side in SIDES
    }
    assert report["samples"] == found
    assert next(each for each in report["checks"] if each["check"] == "C")["n"] == 80


def test_the_commands_make_audit_and_renew_a_set_with_our_own_codec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def muomni(*args: object) -> int:
        with pytest.raises(SystemExit) as left:
            cli.main([str(arg) for arg in args])
        return int(left.value.code or 0)

    standins.make_data(tmp_path, 40)
    standins.text_tokenizer().save(tmp_path / "text")
    torch.manual_seed(0)
    config = CodecConfig(width=16, blocks=1, fine_width=8, fine_blocks=1)
    store.save(Codec(config).eval(), tmp_path / "codec")
    monkeypatch.chdir(tmp_path)
    made = [
        "data",
        "shard",
        "rows.jsonl",
        "--out",
        "set",
        "--tokenizer",
        "text",
        "--codec",
        "codec",
        "--val-split",
        0.2,
    ]
    assert muomni(*made, "--samples", 10) == 0
    assert len(ShardSet(tmp_path / "set", "train")) + len(ShardSet(tmp_path / "set", "valid")) == 20
    assert muomni("data", "verify", "set", "--set-baseline", "first") == 0
    assert muomni("data", "verify", "set") == 0
    assert verdicts(files.read_json(tmp_path / "set/verify/report.json")) == dict.fromkeys(
        "SABCDEFGHR", "green"
    )
    assert muomni(*made, "--samples", 20) == 2  # other settings
    (tmp_path / "set/train/shard-000000.tar").write_bytes(b"")
    assert muomni("data", "verify", "set") == 2
