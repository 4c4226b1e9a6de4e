"""`data check`: each planted fault is found, counted and placed, and no bytes make it fall."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from muomni.data.check.checker import check
from muomni.data.check.findings import REASONS
from muomni.data.check.report import histogram, lines, summary
from muomni.data.layouts.fields import LENGTH
from muomni.data.sample import Source


def wav(path, seconds=1.0, seed=0, rate_hz=16000):
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(seed).standard_normal(int(seconds * rate_hz)) * 0.1
    soundfile.write(path, noise.astype(np.float32), rate_hz)


def hear(name, text, group, **more):
    turns = [
        {"role": "user", "content": [{"type": "audio", "path": name}]},
        {"role": "assistant", "content": text},
    ]
    return {"id": more.pop("id", name + text), "group": group, "messages": turns, **more}


def report_of(folder, rows, **kwargs):
    (folder / "m.jsonl").write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    )
    return check(Source(path="m.jsonl"), folder, **kwargs)


def places(report):
    """{reason: lines}"""
    found = {}
    for finding in report.findings:
        found.setdefault(finding.reason, []).append(int(finding.where.rpartition(":")[2]))
    return found


def test_a_sound_manifest_is_green(tmp_path):
    wav(tmp_path / "a.wav", 1.0, 1)
    wav(tmp_path / "b.wav", 2.0, 2, 8000)
    report = report_of(tmp_path, [hear("a.wav", "hello", "ann"), hear("b.wav", "hello you", "ben")])
    assert (report.errors, report.warnings) == ([], [])
    assert (report.rows, report.samples, report.groups, report.tasks) == (2, 2, 2, {"transcribe": 2})
    assert (report.sample_rates, report.channels) == ({"16000": 1, "8000": 1}, {"1": 2})
    assert report.sides == {"train": 1, "valid": 1}
    assert report.durations_s["sum"] == pytest.approx(3.0, abs=0.01)
    assert json.loads(json.dumps(report.to_json()))["samples"] == 2


def test_every_planted_fault_is_found_with_its_line(tmp_path):
    wav(tmp_path / "a.wav", 1.0, 1)
    (tmp_path / "copy.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    (tmp_path / "torn.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:300])
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nothing")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000, np.float32), 16000)
    picture = [
        {"role": "user", "content": [{"type": "image", "path": "bad.png"}]},
        {"role": "assistant", "content": "x"},
    ]
    rows = [
        hear("a.wav", "hello", "ann"),
        hear("copy.wav", "hello", "ann"),  # 2 duplicate
        hear("gone.wav", "x", "ann"),  # 3 missing
        hear("torn.wav", "x", "ann"),  # 4 undecodable
        hear("silent.wav", "x", "ann"),  # 5 silent
        hear("a.wav", "aa" * 9, "ann"),  # 6 infeasible: 18 + 17 states of 30
        hear("a.wav", " ", "ann"),  # 7 empty
        "not json",  # 8 bad_row
        {"messages": picture},  # 9 undecodable
        {"messages": [{"role": "user", "content": "nobody answers"}], "group": "ann"},  # 10 zero_label
        {
            "messages": [{"role": "user", "content": "word " * 900}, {"role": "assistant", "content": "x"}],
            "group": "ben",
        },  # 11 truncated
    ]
    report = report_of(tmp_path, rows)
    errors = {
        "missing": [3],
        "undecodable": [4, 9],
        "silent": [5],
        "infeasible": [6],
        "empty": [7],
        "bad_row": [8],
    }
    assert places(report) == {
        **errors,
        "duplicate": [2],
        "duplicate_file": [2],
        "zero_label": [10],
        "truncated": [11],
    }
    assert (report.rows, report.samples, report.total("error"), report.total("warning")) == (11, 4, 7, 4)


def test_a_finding_says_what_was_expected_and_what_stood_there(tmp_path):
    wav(tmp_path / "a.wav")
    (finding,) = report_of(
        tmp_path, [hear("a.wav", "aa" * 9, "ann"), hear("a.wav", "x", "ann")], val_split=0.0
    ).findings[:1]
    assert (finding.reason, finding.severity, finding.expected, finding.got) == (
        "infeasible",
        "error",
        "at most 30 frames",
        "35",
    )
    assert finding.where == f"{tmp_path}/m.jsonl:1"


def test_leaks_name_both_rows(tmp_path):
    wav(tmp_path / "a.wav", 1.0, 1)
    wav(tmp_path / "b.wav", 1.0, 2)
    (tmp_path / "copy.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    rows = [
        hear("a.wav", "hi", "ann", split="train"),
        hear("copy.wav", "ho", "cat", split="valid"),
        hear("b.wav", "hm", "ann", split="valid"),
        hear("b.wav", "hum", "dan", split="train", id="x"),
        hear("b.wav", "hem", "eve", split="valid", id="x"),
    ]
    found = {
        f.reason: (f.where.rpartition(":")[2], f.other.rpartition(":")[2])
        for f in report_of(tmp_path, rows).findings
    }
    leaks = {
        "leak_group": ("3", "1"),
        "leak_content": ("2", "1"),
        "leak_path": ("3", "4"),
        "leak_id": ("5", "4"),
    }
    assert found == {**leaks, "duplicate_id": ("5", "4"), "two_transcripts": ("5", "3")}


def test_the_edge_of_ctc_feasibility(tmp_path):
    wav(tmp_path / "a.wav", 0.4)  # 10 states at 25 Hz, and 5 of the silence around it
    assert report_of(tmp_path, [hear("a.wav", "abcdefghijklmno", "g")]).counts == {}
    assert report_of(tmp_path, [hear("a.wav", "abcdefghijklmnn", "g")]).counts == {
        "infeasible": 1,
        "no_samples": 1,
    }


def test_odd_media_are_warned_of_once(tmp_path):
    times = np.arange(8000) / 16000
    loud = np.clip(np.sin(2 * np.pi * 300 * times) * 3, -1, 1)
    for name, wave in (
        ("loud", loud),
        ("low", loud * 0.003),
        ("short", loud[:900] * 0.5),
        ("long", np.tile(loud * 0.5, 70)),
    ):
        soundfile.write(tmp_path / f"{name}.wav", wave, 16000)
    Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "blank.png")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 10, 3), dtype=np.uint8))
    noise.save(tmp_path / "thin.jpg", "PNG")
    window = [{"type": "audio", "path": "loud.wav", "start": 0.1, "end": 3.0}]
    see = [
        {
            "role": "user",
            "content": [{"type": "image", "path": "blank.png"}, {"type": "image", "path": "thin.jpg"}],
        }
    ]
    turns = [{"role": "assistant", "content": "x"}]
    rows = [
        hear(f"{name}.wav", "ö" if name == "low" else "a", "g")
        for name in ("loud", "loud", "low", "short", "long")
    ]
    rows += [
        {"messages": [{"role": "user", "content": window}, *turns], "group": "g"},
        {"messages": see + turns, "group": "g"},
    ]
    report = report_of(tmp_path, rows)
    assert report.errors == []
    expected = {
        "clipped": [1, 6],
        "duplicate_id": [],
        "quiet": [3],
        "unknown_symbols": [3],
        "short_sound": [4],
        "long_sound": [5],
    }
    expected |= {
        "end_beyond": [6],
        "blank_picture": [7],
        "tiny_picture": [7],
        "narrow_picture": [7],
        "wrong_extension": [7],
    }
    found = {finding.reason: [] for finding in report.findings}
    for finding in report.findings:
        if finding.where.rpartition(":")[2].isdigit():
            found[finding.reason].append(int(finding.where.rpartition(":")[2]))
    assert {reason: found.get(reason, []) for reason in expected} == expected
    assert found["no_validation"] == []


def test_the_balance_of_answers(tmp_path):
    rows = [
        {
            "task": "q",
            "messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yes"}],
        }
        for i in range(30)
    ]
    report = report_of(tmp_path, rows, val_split=0.3)
    assert report.answers == {"q": {"samples": 30, "distinct": 1, "commonest": "yes", "share": 1.0}}
    assert "one_answer" in report.counts
    assert report.tokens["over"] == 0


def test_a_folder_is_checked_manifest_by_manifest_and_together(tmp_path):
    wav(tmp_path / "a.wav", 1.0, 1)
    wav(tmp_path / "b.wav", 1.0, 2)
    wav(tmp_path / "sub" / "nobody.wav", 1.0, 3)
    (tmp_path / "README.txt").write_text("about")
    (tmp_path / "settings.json").write_text('{"version": 1}')
    (tmp_path / "one.jsonl").write_text(json.dumps(hear("a.wav", "hi", "ann", split="train")))
    (tmp_path / "sub" / "two.csv").write_text("wav,text,split,group\n../a.wav,ho,valid,ben\n../b.wav,\n")
    report = check(Source(path=str(tmp_path)), Path())
    assert [(Path(m.path).name, m.format, m.rows, m.samples) for m in report.manifests] == [
        ("one.jsonl", "samples", 1, 1),
        ("two.csv", "asr_csv", 2, 1),
    ]
    found = {(f.reason, Path(f.where).name, Path(f.other).name) for f in report.findings}
    assert found == {
        ("leak_path", "two.csv:2", "one.jsonl:1"),
        ("two_transcripts", "two.csv:2", "one.jsonl:1"),
        ("bad_row", "two.csv:3", ""),
        ("orphan", "nobody.wav", ""),
        ("skipped", "README.txt", ""),
        ("skipped", "settings.json", ""),
    }


def test_a_folder_of_pictures_stays_one(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "labels.txt").write_text("cat\n")
    Image.new("RGB", (40, 40), (200, 0, 0)).save(tmp_path / "cat" / "a.png")
    assert check(Source(path=str(tmp_path)), Path()).manifests[0].format == "images"
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "cat/a.png", "text": "a cat"}\n{"file_name": "no.png", "text": "x"}'
    )
    (finding,) = [f for f in check(Source(path=str(tmp_path)), Path()).findings if f.severity == "error"]
    assert (finding.reason, finding.where) == ("missing", f"{tmp_path}/metadata.jsonl:2")


def test_wrong_sources_are_reported_not_raised(tmp_path):
    assert check(Source(path="none.jsonl"), tmp_path).counts == {"missing": 1}
    (tmp_path / "a.bin").write_bytes(b"x")
    assert check(Source(path="a.bin"), tmp_path).counts == {"config": 1, "no_samples": 1}
    (tmp_path / "e.jsonl").write_bytes(b"")
    assert check(Source(path="e.jsonl"), tmp_path).errors


def test_images_are_opened(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "c.json").write_text('[{"image": "a.png", "caption": "black"}]')
    report = check(Source(path="c.json"), tmp_path)
    assert (report.manifests[0].format, report.samples, report.errors) == ("captions", 1, [])


@given(st.binary(max_size=120), st.sampled_from(["jsonl", "csv", "txt", "json"]), st.binary(max_size=60))
@settings(max_examples=100)
def test_no_bytes_make_it_fall(tmp_path_factory, content, suffix, media):
    folder = tmp_path_factory.getbasetemp() / "fuzz_check"
    folder.mkdir(exist_ok=True)
    (folder / f"m.{suffix}").write_bytes(content)
    check(Source(path=f"m.{suffix}"), folder)
    (folder / "a.wav").write_bytes(media)
    (folder / "a.png").write_bytes(media)
    (folder / "n.csv").write_text("wav,text\na.wav,x\n")
    (folder / "i.csv").write_text("image,text\na.png,x\n")
    assert check(Source(path="n.csv"), folder).errors
    assert check(Source(path="i.csv"), folder).errors


def test_histogram():
    assert histogram([]) == {}
    assert histogram([1.0, 2.0, 4.0])["counts"] == [1, 0, 0, 1, 0, 0, 0, 0, 0, 1]


REAL = Path(os.environ.get("MUOMNI_DATA", Path(__file__).parents[3] / "../shared/data"))


REAL_MANIFESTS = {
    "captions": 400,
    "digits": 600,
    "emoji": 800,
    "flowers": 500,
    "intents": 24,
    "speech": 354,
    "vqa": 561,
}


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "speech.jsonl").exists(), reason="MUOMNI_DATA is absent")
@pytest.mark.parametrize(("name", "samples"), REAL_MANIFESTS.items())
def test_real_manifests_are_recognised_and_green(name, samples):
    report = check(Source(path=f"{name}.jsonl"), REAL)
    assert (report.samples, report.errors) == (samples, [])
    assert report.manifests[0].read_as
    assert report.counts.get("near_duplicate", 0) <= (
        3 if name == "emoji" else 0
    )  # three pairs of emoji do look the same


def test_the_docs_table_is_the_table_of_reasons():
    docs = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()
    rows = [
        f"| {name} | {about.severity} | {about.meaning} | {about.remedy} |" for name, about in REASONS.items()
    ]
    assert "\n".join(rows) in docs


def test_lines_for_people_are_few_and_hold_nothing_that_a_terminal_obeys(tmp_path):
    report = report_of(tmp_path, [{"text": "fine"}, *[hear(f"\x1b[2J{i}.wav", "x", "g") for i in range(9)]])
    told = list(lines(report))
    assert told[0].startswith("error: 9 missing - a file that is not there;")
    assert told[1].startswith(r"  m.jsonl:2: \x1b[2J0.wav: expected a file under")
    assert told[4:] == ["  ... and 6 more (--json shows all)", "red: 9 errors, 0 warnings in 10 rows"]
    assert dict(summary(report))["m.jsonl"] == "1 of 10 rows usable, format samples"


def test_a_number_too_large_to_count_with_is_another_length(tmp_path):
    wav(tmp_path / "a.wav")
    (tmp_path / "rows.jsonl").write_text(json.dumps(hear("a.wav", "hum", "g", extra={LENGTH: 10**400})))
    assert check(Source(path="rows.jsonl"), tmp_path).counts["other_length"] == 1
