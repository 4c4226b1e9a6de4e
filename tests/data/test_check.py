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

from muomni.data.check import check, histogram
from muomni.data.sample import Source


def wav(path, seconds=1.0, seed=0, rate_hz=16000):
    noise = np.random.default_rng(seed).standard_normal(int(seconds * rate_hz)) * 0.1
    soundfile.write(path, noise.astype(np.float32), rate_hz)


def hear(name, text, group, **more):
    turns = [{"role": "user", "content": [{"type": "audio", "path": name}]}, {"role": "assistant", "content": text}]
    return {"id": more.pop("id", name + text), "group": group, "messages": turns, **more}


def report_of(folder, rows, **kwargs):
    (folder / "m.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return check(Source(path="m.jsonl"), folder, **kwargs)


def test_a_sound_manifest_is_green(tmp_path):
    wav(tmp_path / "a.wav", 1.0, 1)
    wav(tmp_path / "b.wav", 2.0, 2, 8000)
    report = report_of(tmp_path, [hear("a.wav", "hello", "ann"), hear("b.wav", "hello you", "ben")])
    assert report.errors == []
    assert (report.rows, report.samples, report.groups, report.tasks) == (2, 2, 2, {"transcribe": 2})
    assert report.sample_rates == {"16000": 1, "8000": 1}
    assert report.durations_s["sum"] == pytest.approx(3.0, abs=0.01)
    assert json.loads(json.dumps(report.to_json()))["samples"] == 2


def test_every_planted_fault_is_found_with_its_line(tmp_path):
    wav(tmp_path / "a.wav", 1.0, 1)
    (tmp_path / "copy.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    (tmp_path / "torn.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:300])
    (tmp_path / "bad.png").write_bytes(b"\x89PNG nothing")
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000, np.float32), 16000)
    picture = [{"role": "user", "content": [{"type": "image", "path": "bad.png"}]}, {"role": "assistant", "content": "x"}]
    rows = [
        hear("a.wav", "hello", "ann"),
        hear("copy.wav", "hello", "ben"),  # 2 duplicate
        hear("gone.wav", "x", "ann"),  # 3 missing
        hear("torn.wav", "x", "ann"),  # 4 undecodable
        hear("silent.wav", "x", "ann"),  # 5 silent
        hear("a.wav", "aa" * 9, "ann"),  # 6 infeasible: 18 + 17 frames of 25
        hear("a.wav", " ", "ann"),  # 7 empty
        "not json",  # 8 bad_row
        {"messages": picture},  # 9 undecodable
        {"messages": [{"role": "user", "content": "nobody answers"}]},  # 10 zero_label
        {"messages": [{"role": "user", "content": "word " * 900}, {"role": "assistant", "content": "x"}]},  # 11 too_long
    ]
    report = report_of(tmp_path, rows)
    assert report.bad == {"missing": 1, "undecodable": 2, "silent": 1, "infeasible": 1, "empty": 1, "bad_row": 1}
    assert (report.rows, report.samples, report.duplicates, report.zero_label, report.too_long) == (11, 4, 1, 1, 1)
    lines = {reason: [int(e.split("m.jsonl:")[1].split(":")[0]) for e in found] for reason, found in report.examples.items()}
    expected = {"missing": [3], "undecodable": [4, 9], "silent": [5], "infeasible": [6], "empty": [7], "bad_row": [8]}
    assert lines == {**expected, "duplicate": [2], "zero_label": [10], "too_long": [11]}
    assert len(report.errors) >= 6
    assert len(report.warnings) == 3


def test_leaks_between_given_splits(tmp_path):
    wav(tmp_path / "a.wav", 1.0, 1)
    wav(tmp_path / "b.wav", 1.0, 2)
    (tmp_path / "copy.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    rows = [
        hear("a.wav", "hi", "ann", split="train"),
        hear("copy.wav", "ho", "cat", split="valid"),
        hear("b.wav", "hm", "ann", split="valid"),
    ]
    report = report_of(tmp_path, rows)
    assert report.leaks["groups"] == ["ann"]
    assert len(report.leaks["contents"]) == 1
    assert "paths" not in report.leaks
    assert any("both sides" in error for error in report.errors)


def test_the_edge_of_ctc_feasibility(tmp_path):
    wav(tmp_path / "a.wav", 0.4)  # 10 frames at 25 Hz
    assert report_of(tmp_path, [hear("a.wav", "abcdefghij", "g")]).bad == {}
    assert report_of(tmp_path, [hear("a.wav", "abcdefghhj", "g")]).bad == {"infeasible": 1}


def test_wrong_sources_are_reported_not_raised(tmp_path):
    assert check(Source(path="none.jsonl"), tmp_path).bad == {"missing": 1}
    (tmp_path / "a.bin").write_bytes(b"x")
    assert check(Source(path="a.bin"), tmp_path).bad == {"config": 1}
    (tmp_path / "e.jsonl").write_bytes(b"")
    assert check(Source(path="e.jsonl"), tmp_path).errors


def test_images_are_opened(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "c.json").write_text('[{"image": "a.png", "caption": "black"}]')
    report = check(Source(path="c.json"), tmp_path)
    assert (report.format, report.samples, report.errors) == ("captions", 1, [])


@given(st.binary(max_size=120), st.sampled_from(["jsonl", "csv", "txt", "json"]), st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
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


REAL = Path(os.environ.get("MUOMNI_DATA", Path(__file__).parents[2] / "../shared/data"))


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "speech.jsonl").exists(), reason="MUOMNI_DATA is absent")
def test_real_speech_is_green():
    turns = [{"user": [{"audio": "{path}"}]}, {"assistant": "{text}"}]
    report = check(Source(path="speech.jsonl", group="{speaker}", messages=turns, where={"lang": "en"}), REAL)
    assert (report.samples, report.errors) == (314, [])
