"""A certificate speaks of the files in `final/` and of no others, whoever opens them."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from muomni import build_identity, cli, files
from muomni.errors import CheckpointError, GateRed
from muomni.evaluate import certificate
from muomni.infer.engine import Engine
from muomni.infer.parts import Parts
from muomni.models import integrity, reference
from muomni.models.decoder import Decoder
from muomni.models.reference import NetworkReference
from muomni.report.build import report
from seeing_run import certify, save_bases, save_stage
from shared import swap_weights
from tiny_run import save_run

CPU = torch.device("cpu")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "swapped": (swap_weights, "model.safetensors: expected "),
    "flipped": (lambda final: flip(final / "tokenizer.json"), "tokenizer.json: expected "),
    "extra": (lambda final: files.write_text(final / "sub" / "added.json", "{}"), "sub/added.json is extra"),
    "missing": (lambda final: (final / "tokenizer_config.json").unlink(), "tokenizer_config.json is missing"),
    "linked": (lambda final: (final / "more").symlink_to(final.parent), "more is extra"),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """thinker, vision and align, which stands on both, each with a certificate."""
    run = tmp_path / "run"
    save_bases(run)
    certify(run / "vision")
    save_stage(
        run, "align", NetworkReference(name="thinker"), NetworkReference(name="vision"), with_lora=False
    )
    return run


@pytest.mark.parametrize("how", CHANGES)
def test_what_was_changed_is_refused_by_name_whoever_opens_it(run: Path, tmp_path: Path, how: str) -> None:
    change, told = CHANGES[how]
    final = run / "thinker" / "final"
    assert integrity.verify(final) == certificate.demand(run / "thinker", "omni")
    Engine.load(run / "thinker", "cpu").logits([[5, 6]])
    change(final)
    with pytest.raises(certificate.BaseChanged, match=told) as caught:
        certificate.demand(run / "thinker", "omni")
    assert caught.value.exit_code == 1
    for part in (
        "stage omni",
        "thinker",
        "gate bases is red",
        str(run / "thinker" / "certificate.json"),
        "run the stage again",
    ):
        assert part in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # as it reaches another rank
    assert (str(again), again.lines) == (str(caught.value), caught.value.lines)
    for folder in (run, run / "thinker", final):
        with pytest.raises(CheckpointError, match=told) as refused:
            Engine.load(folder, "cpu").parts.stage("thinker", ability="write")
        assert refused.value.exit_code == 2
    with pytest.raises(CheckpointError):  # what stands on it opens it too
        Engine.load(run / "align", "cpu").logits([[5, 6]])
    for place in (run / "thinker", run / "align"):
        done = CliRunner().invoke(
            cli.app, ["export", str(place), "--to", "hf", "--out", str(tmp_path / "out")]
        )
        assert isinstance(done.exception, CheckpointError)
        assert not (tmp_path / "out").exists()


def test_of_a_part_its_own_files_are_compared(tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_run(run)
    certify(run / "omni")
    swap_weights(run / "omni" / "final" / "hearing")
    assert integrity.verify(run / "omni" / "final" / "thinker") is not None
    with pytest.raises(CheckpointError, match=r"hearing/model\.safetensors: expected"):
        integrity.verify(run / "omni" / "final")
    with pytest.raises(CheckpointError, match=r"final/hearing is not what .*: model\.safetensors: expected"):
        integrity.verify(run / "omni" / "final" / "hearing")


def test_a_copy_in_the_right_place_is_the_same(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "thinker", tmp_path / "moved" / "thinker")
    assert integrity.verify(tmp_path / "moved" / "thinker" / "final") is not None
    (tmp_path / "linked").symlink_to(run / "thinker")
    assert integrity.verify(tmp_path / "linked" / "final") is not None
    (tmp_path / "stands" / "thinker").mkdir(parents=True)
    (tmp_path / "stands" / "thinker" / "final").symlink_to(run / "thinker" / "final")
    assert integrity.verify(tmp_path / "stands" / "thinker" / "final") is not None
    swap_weights(run / "thinker" / "final")
    with pytest.raises(CheckpointError):
        integrity.verify(tmp_path / "stands" / "thinker" / "final")


def test_other_words_for_the_same_ids_are_another_base(run: Path, tmp_path: Path) -> None:
    """A base in a folder without a certificate: its weights alone would not say that its tokenizer is another
    one."""
    lone = shutil.copytree(run / "thinker" / "final", tmp_path / "lone")
    told = NetworkReference(name=str(lone)).describe(lone, is_stage=False)
    assert reference.find(told, run / "align" / "final")[1] == lone
    flip(lone / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*trained on another one"):
        reference.find(told, run / "align" / "final")


@pytest.mark.parametrize(
    ("verdict", "told"),
    [("red", "is red (image_swap_sure)"), (None, "no certificate"), ("old", "names no files")],
)
def test_what_is_not_proven_is_opened_and_told_once(
    run: Path, capsys: pytest.CaptureFixture[str], verdict: str | None, told: str
) -> None:
    path = run / "thinker" / "certificate.json"
    if verdict is None:
        path.unlink()
    elif verdict == "red":
        certify(run / "thinker", "red")
    else:
        files.write_json(path, {key: value for key, value in files.read_json(path).items() if key != "files"})
    parts = Parts(run, CPU)
    assert isinstance(parts.thinker, Decoder)
    parts.stage("thinker", ability="write")
    lines = [line for line in capsys.readouterr().err.splitlines() if str(run / "thinker") in line]
    assert len(lines) == 1
    assert told in lines[0]
    with pytest.raises(GateRed):
        certificate.demand(run / "thinker", "omni")


def test_one_that_is_proven_is_opened_in_silence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(Parts(run / "align", CPU).thinker, Decoder)
    assert capsys.readouterr().err == ""


def test_files_are_read_once_a_process(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    real = files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda path: (reads.append(path), real(path))[1])
    for _ in range(3):
        certificate.demand(run / "thinker", "omni")
        assert Parts(run / "align", CPU).omni is not None
    assert len(reads) == len(set(reads))


def test_an_exported_folder_is_tied_too(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for form in ("omni", "hf"):
        assert (
            CliRunner()
            .invoke(cli.app, ["export", str(run / "align"), "--to", form, "--out", str(out / form)])
            .exception
            is None
        )
        assert integrity.verify(out / form) is not None
        Engine.load(out / form, "cpu").logits([[5, 6]])
        swap_weights(out / form / "thinker" if form == "omni" else out / form)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: expected"):
            Engine.load(out / form, "cpu").logits([[5, 6]])


def test_waivers_are_gathered_each_once() -> None:
    gates = [
        {"name": "cer", "verdict": "waived", "why": "a toy"},
        {"name": "finite", "verdict": "green", "why": ""},
    ]
    older = [{"stage": "thinker", "gate": "floor", "why": "small"}]
    ears = {"stage": "hearing", "gates": gates, "inherited": older}
    assert integrity.waivers(ears) == [{"stage": "hearing", "gate": "cer", "why": "a toy"}, *older]
    assert integrity.merged(integrity.waivers(ears), older, []) == integrity.waivers(ears)
    assert integrity.waivers({"stage": "x", "gates": []}) == []


def test_the_page_shows_the_digest_and_what_was_waived_below(run: Path, tmp_path: Path) -> None:
    path = run / "align" / "certificate.json"
    inherited = [{"stage": "thinker", "gate": "floor", "why": "a toy of a few steps"}]
    files.write_json(
        path, {**files.read_json(path), "inherited": inherited, "code": build_identity.identity()}
    )
    text = report(run / "align", out=tmp_path / "page.html").read_text()
    assert files.sha256_file(path)[:12] in text
    assert "a toy of a few steps" in text
    assert build_identity.identity()["source"][:12] in text


def test_two_builds_are_told_apart(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        import subprocess

        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words],
            check=True,
            capture_output=True,
        )

    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    lone = build_identity.identity.__wrapped__(package)
    assert (lone["commit"], lone["dirty"]) == (None, None)
    git("init", "-q"), git("add", "."), git("commit", "-qm", "one")
    clean = build_identity.identity.__wrapped__(package)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    assert clean["source"] == lone["source"]
    (package / "__init__.py").write_text("x = 1\n")
    dirty = build_identity.identity.__wrapped__(package)
    assert (dirty["commit"], dirty["dirty"]) == (clean["commit"], True)
    assert dirty["source"] != clean["source"]
    assert "with changes" in build_identity.label(dirty)
    assert build_identity.label("0.1.0") == "0.1.0"
