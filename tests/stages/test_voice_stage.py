"""Stage voice by its command: trained, certified, opened by plain PEFT, spoken with, planned, shown; every planted
fault has its one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import soxr
import torch
from safetensors.torch import load_file

import tiny_higgs
import voice_manifest
from muomni import cli, inspection
from muomni.data.sample import AudioPart
from muomni.errors import DataError, GateRed, ShapeError
from muomni.evaluate import certificate
from muomni.execution import recipe as recipes
from muomni.execution import runner
from muomni.infer.voice import open_cloner
from muomni.media import audio
from muomni.models import store
from muomni.models.codecs import open_codec
from muomni.models.higgs import Higgs
from muomni.planning import forecast, walk
from muomni.report import explain
from muomni.report.build import report
from muomni.report.explain import SampleChoice
from muomni.runtime import Runtime
from muomni.stages import stage, voice_codes

peft = pytest.importorskip("peft")

# What an untrained base can't meet; all other gates hold.
UNTRAINED = "gates={text_wins: 0, reference_wins: 0, ends: 0}"


def command(folder: Path, out: Path, *more: str) -> list[str]:
    """The command that users of the source know, in small."""
    return [
        "voice-train", "--train_manifest", str(folder / "data" / "manifest.json"), "--output_dir", str(out),
        "--base_ckpt", str(folder / "base"), "--batch_size", "2", "--lr", "1e-2", "--epochs", "3",
        "--grad_accum", "2", "--warmup", "1", "--lora_r", "4", "--lora_alpha", "8", "--lora_dropout", "0.05",
        "--log_steps", "2", "--val_steps", "3", "--save_steps", "3", "--set", "threads=1", "--set", UNTRAINED, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with its codec in it, and a manifest."""
    folder = tmp_path_factory.mktemp("voice")
    tiny_higgs.saved(folder / "base")
    tiny_higgs.codec(folder / "base" / "codec")
    voice_manifest.write(folder / "data")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    assert cli._exit_code(command(folder, folder / "run")) == 0
    return folder / "run"


def test_the_command_trains_and_certifies(run: Path) -> None:
    made: Any = certificate.read(run / "voice")
    assert made["verdict"] == "green"
    facts = {name: fact["value"] for name, fact in made["facts"].items()}
    assert (
        facts["steps"] == 6
    )  # optimizer steps: 8 rows in 4 micro-batches of 2, two of them a step, 3 epochs
    assert (facts["taught_right"], facts["ends_taught"], facts["unfilled"], facts["stale_codes"]) == (
        1,
        1,
        0,
        0,
    )
    assert facts["blind_media"] == 0
    assert facts["nats_gain"] > 0.1
    assert {"text_swap_gap_nats", "reference_swap_gap_nats", "ended", "stop_within_20pct"} <= facts.keys()
    assert (run / "voice" / "step_000006").is_dir()
    lines = [json.loads(line) for line in (run / "voice" / "metrics.jsonl").read_text().splitlines()]
    trained = next(line for line in lines if "book0" in line)
    assert {"text", *(f"book{book}" for book in range(8))} <= trained.keys()


def test_a_gate_that_an_untrained_base_can_not_meet_is_red(run: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    recipe = tmp_path / "run" / "voice_train.yaml"
    with pytest.raises(GateRed, match="voice: gate"):
        runner.run(str(recipe), out=tmp_path / "run", overrides=["voice.gates={text_wins: 1.01}"])


def test_plain_peft_opens_the_adapter_and_says_the_same(run: Path, folder: Path) -> None:
    library = tiny_higgs.transformers.HiggsAudioV2ForConditionalGeneration
    plain = peft.PeftModel.from_pretrained(
        library.from_pretrained(folder / "base", use_text_head=True), run / "voice" / "final"
    ).eval()
    cloner = open_cloner(run)
    ids = torch.randint(0, 250, (1, 12), generator=torch.Generator().manual_seed(0))
    columns = torch.cat([ids[:, None], torch.full((1, 8, 12), -1)], 1)
    with torch.no_grad():
        states = cloner.model.hidden(cloner.model.embed(columns), is_audio_BT=cloner.model.is_audio(ids))
        theirs = plain.base_model.model.model(input_ids=ids).last_hidden_state
        untuned = Higgs.open(folder / "base")
        before = untuned.hidden(untuned.embed(columns), is_audio_BT=untuned.is_audio(ids))
    assert torch.equal(states, theirs)
    assert not torch.allclose(states, before)


def test_it_is_exported_merged_for_the_library(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert cli._exit_code(["export", str(run), "--to", "hf", "--out", str(out)]) == 0
    library = tiny_higgs.transformers.HiggsAudioV2ForConditionalGeneration
    merged, report = library.from_pretrained(out, use_text_head=True, output_loading_info=True)
    assert not any(report.values())
    plain = peft.PeftModel.from_pretrained(
        library.from_pretrained(folder / "base", use_text_head=True), run / "voice" / "final"
    ).eval()
    ids = torch.randint(0, 250, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(merged.eval()(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)
    assert Higgs.open(out).books == 8
    assert json.loads((out / "origin.json").read_text())["stage"] == "voice"
    assert cli._exit_code(["export", str(run), "--to", "omni", "--out", str(tmp_path / "other")]) == 2
    assert "for transformers or in its makers' layout" in capsys.readouterr().err


def same_scores(one: Higgs, two: Higgs, atol: float) -> bool:
    """Whether two models give the same scores of words."""
    ids = torch.randint(0, 250, (1, 12), generator=torch.Generator().manual_seed(0))
    columns = torch.cat([ids[:, None], torch.full((1, 8, 12), -1)], 1)
    with torch.no_grad():
        states = [model.hidden(model.embed(columns), is_audio_BT=model.is_audio(ids)) for model in (one, two)]
        scores = [model.network.text_lm_head(x_BTD) for model, x_BTD in zip((one, two), states, strict=True)]
    return torch.allclose(*scores, rtol=0, atol=atol)


def test_it_is_exported_in_its_makers_layout_with_the_adapter_beside_it(
    run: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "boson"
    assert cli._exit_code(["export", str(run), "--to", "boson", "--out", str(out)]) == 0
    names = load_file(out / "model.safetensors").keys()
    tiny_higgs.original(folder / "base", tmp_path / "original")
    assert names == load_file(tmp_path / "original" / "model.safetensors").keys() - {"audio_codebook_weights"}
    tuned = open_cloner(run).model
    assert same_scores(Higgs.open(out), tuned, 1e-5)
    assert not same_scores(Higgs.open(folder / "base"), tuned, 1e-3)
    # The adapter fits the makers' module names: put beside the untuned base under these, it is the merged one.
    adapter = load_file(out / "lora" / "adapter_model.safetensors")
    about = json.loads((out / "lora" / "adapter_config.json").read_text())
    untuned, merged = (load_file(place / "model.safetensors") for place in (tmp_path / "original", out))
    names = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in adapter}
    assert len(names) == 20
    for name in names:
        assert any(name.endswith(target) for target in about["target_modules"])
        a, b = (adapter[f"base_model.model.{name}.lora_{which}.weight"] for which in "AB")
        delta = about["lora_alpha"] / about["r"] * (b @ a)
        torch.testing.assert_close(untuned[f"{name}.weight"] + delta, merged[f"{name}.weight"])


@pytest.mark.slow
def test_a_base_in_its_makers_layout_is_tuned_and_written_in_both(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    tiny_higgs.original(folder / "base", tmp_path / "hub" / "base")
    shutil.copytree(folder / "base" / "codec", tmp_path / "hub" / "audio")
    places = ["--subfolder", "base", "--codec", str(tmp_path / "hub"), "--codec_subfolder", "audio"]
    made = command(folder, tmp_path / "run", *places, "--base_ckpt", str(tmp_path / "hub"))
    assert cli._exit_code(made) == 0
    for layout in ("hf", "boson"):
        out = tmp_path / layout
        assert cli._exit_code(["export", str(tmp_path / "run"), "--to", layout, "--out", str(out)]) == 0
        assert same_scores(Higgs.open(out), open_cloner(tmp_path / "run").model, 1e-5)
    library = tiny_higgs.transformers.HiggsAudioV2ForConditionalGeneration
    _, report = library.from_pretrained(tmp_path / "hf", use_text_head=True, output_loading_info=True)
    assert not any(report.values())
    config = json.loads((tmp_path / "boson" / "config.json").read_text())
    assert config == json.loads((tmp_path / "hub" / "base" / "config.json").read_text())


def test_speak_takes_a_reference_with_and_without_its_words(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = str(folder / "data" / "valid-two0.wav")
    for number, more in enumerate(
        ([], ["--reference", heard], ["--reference", heard, "--transcript", "two"])
    ):
        out = tmp_path / f"{number}.wav"
        # Untrained, it may end at once: drawn, it says something.
        how = ["--temperature", "1", "--seed", "3"]
        assert cli._exit_code(["speak", str(run), "one", "--out", str(out), *more, *how]) == 0
        wave = audio.read(str(out), 24_000)
        assert len(wave) > 0
    assert " s -> " in capsys.readouterr().err
    two = ["--reference", f"anna={heard}", "--reference", f"bo={folder / 'data' / 'valid-two1.wav'}"]
    out = tmp_path / "two.wav"
    how = ["--temperature", "1", "--seed", "3", "--out", str(out)]
    assert cli._exit_code(["speak", str(run), "[anna] one [bo] two", *two, *how]) == 0
    assert len(audio.read(str(out), 24_000)) > 0
    for faulty, message in (
        ([*two[:2], "--reference", heard], "a name of its own for each of 2 references"),
        ([*two, "--transcript", "two"], "a transcript for each of 2 references"),
        (["--transcript", "two"], "--transcript has an effect with --reference"),
        (["--reference", "anna=nowhere.wav"], "nowhere.wav: expected a sound"),
    ):
        assert cli._exit_code(["speak", str(run), "[anna] one [bo] two", *faulty, *how]) == 2
        assert message in capsys.readouterr().err


def test_sounds_are_encoded_once_by_what_they_hold(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second start, a renamed and a copied clip encode nothing; another sound of equal size and time is new."""
    asked: list[int] = []
    true = voice_codes.encoded

    def counted(parts: Any, *how: Any) -> Any:
        asked.append(len(parts))
        return true(parts, *how)

    data = Path(shutil.copytree(folder / "data", tmp_path / "data"))
    recipe = recipes.read(str(run / "voice_train.yaml"), ["voice.threads=1"], out=run)
    entry = recipe.stages["voice"]
    source = entry.settings.data[0].model_copy(update={"path": str(data / "manifest.json")})
    settings = entry.settings.model_copy(update={"data": [source]})
    monkeypatch.setattr(voice_codes, "encoded", counted)

    def build() -> Any:
        machine = Runtime(torch.device("cpu"), torch.float32)
        return stage.build(entry.stage, settings, run / "voice", {}, recipe.base, machine)

    made = build()
    assert asked == [], "other places, other times, the same sounds"
    before = made.sides["train"].row(made.corpus.train[0]).codes_KT
    manifest = data / "manifest.json"
    (data / "train-one0.wav").rename(data / "renamed.wav")
    shutil.copy(data / "train-two0.wav", data / "copy.wav")
    text = manifest.read_text().replace("train-one0.wav", "renamed.wav")
    rows = json.loads(text)
    for extra in (rows[0], rows[1]):
        row = json.loads(json.dumps(extra).replace("train-two0.wav", "copy.wav"))
        rows.append({**row, "id": f"again-{row['id']}"})
    manifest.write_text(json.dumps(rows))
    made = build()
    assert asked == []
    assert torch.equal(made.sides["train"].row(made.corpus.train[0]).codes_KT, before)
    clip = data / "renamed.wav"
    times, content = clip.stat(), bytearray(clip.read_bytes())
    content[-400:] = bytes(400)
    clip.write_bytes(content)
    os.utime(clip, ns=(times.st_atime_ns, times.st_mtime_ns))
    build()
    assert asked == [1]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_sound_that_the_codec_refuses_is_found_among_others(number: int) -> None:
    class Short:
        modality, codebooks = "audio", 2

        def encode(self, waves: torch.Tensor) -> torch.Tensor:
            if waves.shape[1] < 4:
                raise ShapeError("too short")
            return torch.zeros(len(waves), 2, waves.shape[1], dtype=torch.int64)

        def encode_many(self, waves: Any) -> Any:
            return [self.encode(wave[None])[0] for wave in waves]

    waves: dict[int, Any] = {place: torch.zeros(8) for place in range(3)}
    waves[number] = torch.zeros(2)
    found = dict(voice_codes._coded(waves, Short(), torch.device("cpu")))  # type: ignore[arg-type]
    assert list(found) == [0, 1, 2]
    assert [place for place, each in found.items() if isinstance(each, DataError)] == [number]


@pytest.mark.slow
def test_it_is_inspected_reported_planned_traced_and_explained(run: Path, tmp_path: Path) -> None:
    assert inspection.inspect(run)["stages"] == {"voice": "green"}
    page = report(run).read_text()
    assert "the voices of recordings" in page
    assert "Spoken in the voice of a reference" in page
    rows = [json.loads(line) for line in (run / "voice" / "samples" / "album.jsonl").read_text().splitlines()]
    assert {"reference", "true"} <= rows[0].keys()
    recipe = str(run / "voice_train.yaml")
    (planned,) = forecast.plan(recipe, out=tmp_path / "run", probe=2, probe_s=0.1)["stages"]
    assert (planned["data_found"], planned["data"]["updates"]) == (True, 6)
    assert planned["parameters"]["trained"] == 5632
    hops, _ = walk.trace(recipe, "voice", out=tmp_path / "run")
    assert {"codes_BKS", "term book7", "loss"} <= {hop.name for hop in hops}
    assert "book 7" in explain.of_stage(recipe, "voice", SampleChoice(index=2))


def test_sounds_of_other_rates_are_resampled_and_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = open_codec(folder / "base" / "codec", 8)
    wave = voice_manifest.wave("four", 0)
    parts = []
    for rate_hz in (24_000, 16_000, 16_000, 48_000):
        path = tmp_path / f"{len(parts)}.wav"
        audio.write(path, soxr.resample(wave, 24_000, rate_hz), rate_hz)
        parts.append(AudioPart(path=str(path)))
    monkeypatch.setattr(store, "_TOLD", set())
    made = dict(voice_codes.encoded(parts, codec, torch.device("cpu")))
    assert {item.codes_KF.shape for item in made.values()} == {(8, 13)}  # type: ignore[union-attr]
    line = "3 of 4 sounds are resampled to 24000 Hz: 2 of 16000 Hz, 1 of 48000 Hz; 2 of a lower rate have"
    assert capsys.readouterr().err.count(line) == 1
    assert voice_codes.describe_resampled({24_000: 4}, 24_000) == ""


def test_rows_that_ask_for_whisper_are_counted(
    run: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = Path(shutil.copytree(folder / "data", tmp_path / "data"))
    rows = json.loads((data / "manifest.json").read_text())
    for row in rows[:3]:
        row["misc"] = {"encode_whisper_embed": True}
    (data / "manifest.json").write_text(json.dumps(rows))
    recipe = recipes.read(str(run / "voice_train.yaml"), ["voice.threads=1"], out=run)
    entry = recipe.stages["voice"]
    source = entry.settings.data[0].model_copy(update={"path": str(data / "manifest.json")})
    settings = entry.settings.model_copy(update={"data": [source]})
    monkeypatch.setattr(store, "_TOLD", set())
    machine = Runtime(torch.device("cpu"), torch.float32)
    stage.build(entry.stage, settings, run / "voice", {}, recipe.base, machine)
    line = "voice: 3 rows ask for Whisper conditioning (encode_whisper_embed): it is off"
    assert capsys.readouterr().err.count(line) == 1


def _without_wav(folder: Path) -> list[str]:
    (folder / "data" / "train-one0.wav").unlink()
    return []


def _unfilled_turn(folder: Path) -> list[str]:
    """Rows with a place of a sound in the words, and no sound for it: more of them than quarantine takes."""
    path = folder / "data" / "manifest.json"
    rows = json.loads(path.read_text())
    for row in rows[:4]:
        row["messages"][1]["content"] = "<|AUDIO|> say it in this voice"
    path.write_text(json.dumps(rows))
    return []


def _text_only(folder: Path) -> list[str]:
    rows = [
        {"id": str(n), "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        for n in range(4)
    ]
    (folder / "data" / "manifest.json").write_text(json.dumps(rows))
    return []


def _headless(folder: Path) -> list[str]:
    shutil.rmtree(folder / "base")
    tiny_higgs.saved(folder / "base", use_text_head=False)
    tiny_higgs.codec(folder / "base" / "codec")
    return []


def _without_codec(folder: Path) -> list[str]:
    shutil.rmtree(folder / "base" / "codec")
    return []


def _of_other_books(folder: Path) -> list[str]:
    tiny_higgs.codec(folder / "other", codebook_size=16)
    return ["--codec", str(folder / "other")]


def _of_another_rate(folder: Path) -> list[str]:
    """Each row states the rate that its files should have; one file has another."""
    path = folder / "data" / "manifest.json"
    path.write_text(json.dumps([{**row, "sample_rate": 24_000} for row in json.loads(path.read_text())]))
    audio.write(folder / "data" / "train-one0.wav", voice_manifest.wave("one", 0), 16_000)
    return []


def _unfilled(folder: Path) -> list[str]:
    path = folder / "data" / "manifest.json"
    rows = json.loads(path.read_text())
    for row in rows[:4]:
        row["messages"][-1]["content"] = "<|AUDIO_OUT|>"
    path.write_text(json.dumps(rows))
    return []


FAULTS = {
    "a missing wav": (_without_wav, "train-one0.wav"),
    "a wrong rate": (
        _of_another_rate,
        "train-one0.wav: expected 24000 Hz, as its row states, got 16000 Hz",
    ),
    "an unfilled placeholder": (_unfilled, "<|AUDIO_OUT|>"),
    "one of the user's": (_unfilled_turn, "expected as many <|AUDIO|> as audios, got 1 for 0"),
    "text alone": (_text_only, "no sound of the assistant's"),
    "a missing tensor": (_headless, "missing text_lm_head.weight"),
    "no subfolder": (
        lambda folder: ["--subfolder", "nowhere", "--codec", str(folder / "base" / "codec")],
        "subfolder 'nowhere' is no folder in",
    ),
    "a place of no codec": (lambda _: ["--codec_subfolder", "x"], "--codec_subfolder has no effect"),
    "a revision of a folder": (lambda _: ["--revision", "main"], "revision has no effect"),
    "no codec": (_without_codec, "--codec is missing"),
    "another codec": (_of_other_books, "8 books of 16 codes, the model speaks 8 of 32"),
    "an unknown group": (lambda _: ["--set", "lora.groups=[ffn]"], "lora.groups"),
    "no group": (lambda _: ["--set", "lora.groups=[]"], "lora.groups"),
    "an unknown flag": (lambda _: ["--lora_rank", "4"], "--lora_rank"),
    "an unknown setting": (lambda _: ["--set", "whisper=true"], "whisper"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_has_its_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    plant, message = FAULTS[name]
    shutil.copytree(folder / "base", tmp_path / "base")
    shutil.copytree(folder / "data", tmp_path / "data")
    more = plant(tmp_path)
    assert cli._exit_code(command(tmp_path, tmp_path / "run", *more)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_a_reference_needs_a_voice(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heard = str(folder / "data" / "valid-two0.wav")
    out = str(tmp_path / "out.wav")
    assert cli._exit_code(["speak", str(tmp_path), "one", "--out", out, "--reference", heard]) == 2
    assert "need a folder of stage voice" in capsys.readouterr().err
