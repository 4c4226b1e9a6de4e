"""The audit of codecs: green on sound ones, and each planted fault is found by its name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from muomni import cli
from muomni.errors import CheckpointError, ConfigError, DataError, UserError
from muomni.evaluate import codec_audit
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import judge
from muomni.evaluate.metrics import snr_db
from muomni.models import codecs, store
from muomni.models.codec import Codec as SpeechNetwork
from muomni.models.codec import CodecConfig as SpeechConfig
from muomni.models.image_codec import ImageCodec, ImageCodecConfig
from tiny_codecs import pictures, saved, wave


def red(facts: dict[str, Fact]) -> set[str]:
    return {each.name for each in judge(codec_audit.GATES, facts) if each.verdict == "red"}


def clips(hop: int) -> list[Tensor]:
    return [wave(samples, seed=number)[0] for number, samples in enumerate((6 * hop, 6 * hop, 9 * hop - 5))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved("encodec", tmp_path / "encodec")
    return tmp_path / "encodec"


@pytest.mark.parametrize("kind", ["encodec", "janus_vq"])
def test_a_sound_codec_is_green_in_a_second_process_too(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    own = codecs.open_codec(tmp_path, 3 if kind == "encodec" else None)
    media = clips(320) if kind == "encodec" else list(pictures(3))
    facts = codec_audit.measure(own, media, folder=tmp_path)
    assert red(facts) == set()
    metrics = {"snr_db", "log_mel_l1"} if kind == "encodec" else {"psnr_db", "ssim"}
    assert metrics <= facts.keys()
    assert all(math.isfinite(facts[name].value) for name in metrics)
    assert 0 <= facts["codec_idempotent"].value <= 1
    # The second process must have happened: without a folder its gate has no fact.
    assert red(codec_audit.measure(own, media)) == {"codec_process"}


class Faulty:
    """A codec with one fault."""

    def __init__(self, true: Any, **fault: Any) -> None:
        self.true, self.fault, self.calls = true, fault, 0

    def __getattr__(self, name: str) -> Any:
        return self.fault.get(name, getattr(self.true, name))

    def encode(self, media: Tensor) -> Tensor:
        self.calls += 1
        codes = self.true.encode(media)
        return self.fault["changes"](self, media, codes) if "changes" in self.fault else codes

    def decode(self, codes: Tensor) -> Tensor:
        self.calls += 1
        if "decodes" in self.fault:
            return self.fault["decodes"](self, codes)
        return self.true.decode(codes)

    def encode_many(self, media: list[Tensor]) -> list[Tensor]:
        return codec_audit.encode_by_length(self, media)


def up(own: Faulty, media: Tensor, codes: Tensor) -> Tensor:
    return (codes + own.calls) % own.codebook_size


def by_rows(own: Faulty, media: Tensor, codes: Tensor) -> Tensor:
    return (codes + len(media)) % own.codebook_size


def by_threads(own: Faulty, media: Tensor, codes: Tensor) -> Tensor:
    return (codes + torch.get_num_threads()) % own.codebook_size


FAULTS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "a state between calls": (
        {"changes": up},
        {"codec_repeat", "codec_batch", "codec_threads", "codec_process"},
    ),
    "a batch that mixes rows": ({"changes": by_rows}, {"codec_batch", "codec_process"}),
    "kernels by threads": ({"changes": by_threads}, {"codec_threads", "codec_process"}),
    "other weights in the folder": (
        {"changes": lambda own, media, codes: codes.flip(2)},
        {"codec_process", "codec_decode"},
    ),
    "a wrong rate": ({"frame_rate_hz": 50.0}, {"codec_shape"}),
    "too small a book": ({"codebook_size": 8}, {"codec_range", "codec_refuses"}),
    "wrong frames": ({"frames": lambda samples: samples // 320}, {"codec_shape"}),
    "a long tail": (
        {"decodes": lambda own, codes: own.true.decode(codes).repeat(1, 2)},
        {"codec_media", "codec_length", "codec_decode"},
    ),
    "a decoder that draws": (
        {"decodes": lambda own, codes: own.true.decode(codes) + own.calls * 1e-6},
        {"codec_decode"},
    ),
    "no refusal": ({"decodes": lambda own, codes: own.true.decode(codes.clamp(0, 63))}, {"codec_refuses"}),
    "no numbers": (
        {"decodes": lambda own, codes: own.true.decode(codes) * math.nan},
        {"codec_media", "codec_decode"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_by_name(fault: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, names = FAULTS[fault]
    true = codecs.open_codec(folder, 2)
    answers = ([codec_audit.encode_by_length(true, clips(320), most=1)], [])

    def second(codec: Any, media: list[Tensor], place: Path) -> tuple[list[Tensor], list[str]]:
        """The second process, here: it opens the codec without the fault."""
        codes = answers[0][0]
        return codes, [codec_audit.digest_of_all({"": true.decode(each[None])[0]}) for each in codes]

    monkeypatch.setattr(codec_audit, "_elsewhere", second)
    monkeypatch.setattr(
        codec_audit, "_kept", lambda *given: 0.0
    )  # what decodes to no numbers can't be encoded again
    own = Faulty(true, **changes)
    found = red(codec_audit.measure(own, clips(320), folder=folder))
    assert names <= found
    if "process" not in "".join(names):
        assert found <= names | {"codec_process", "codec_decode"}


def test_a_folder_that_a_second_process_cant_open_is_named(folder: Path) -> None:
    own = codecs.open_codec(folder, 2)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="second process could not"):
        codec_audit.measure(own, clips(320)[:1], folder=folder)
    with pytest.raises(DataError):
        codec_audit.measure(own, [])


@pytest.fixture
def audited(folder: Path, tmp_path: Path) -> tuple[Any, list[Tensor], dict[str, Fact], Path]:
    own, media = codecs.open_codec(folder, 3), clips(320)
    facts = codec_audit.measure(own, media)
    record = codec_audit.record(own, media, facts)
    codec_audit.save_baseline(tmp_path / "baseline.json", record, "first")
    return own, media, facts, tmp_path / "baseline.json"


def compared(codec: Any, media: list[Tensor], facts: dict[str, Fact], path: Path) -> list[Any]:
    """Verdicts on an audit as it would be recorded now."""
    audit = json.loads(json.dumps(codec_audit.record(codec, media, facts)))
    return codec_audit.compare(audit, codec_audit.load_baseline(path))


def reds(judged: list[Any]) -> dict[str, str]:
    return {each.name: each.why for each in judged if each.verdict == "red"}


def test_a_codec_that_is_the_same_holds_its_baseline(audited: Any) -> None:
    own, media, facts, path = audited
    judged = compared(own, media, facts, path)
    assert reds(judged) == {}
    named = {each.name for each in judged}
    assert named == {
        "codec_baseline",
        "codec_codes",
        "codec_order",
        "baseline_snr_db",
        "baseline_log_mel_l1",
    }


def test_books_that_changed_places_are_found_by_name(audited: Any) -> None:
    own, media, facts, path = audited
    swapped = Faulty(own, changes=lambda _, media, codes: codes[:, [0, 2, 1]])
    found = reds(compared(swapped, media, facts, path))
    assert found.keys() == {"codec_codes", "codec_order"}
    assert "book 1 is now 2, book 2 is now 1" in found["codec_order"]


def test_a_stale_digest_is_found_by_name(audited: Any) -> None:
    own, media, facts, path = audited
    other = Faulty(own, digest="f" * 64)
    found = reds(compared(other, media, facts, path))
    assert found.keys() == {"codec_baseline"}
    assert f"digest: expected {own.digest[:12]}, got ffffffffffff" in found["codec_baseline"]
    found = reds(compared(own, media[:2], facts, path))
    assert "clips: expected" in found["codec_baseline"]


@pytest.mark.parametrize(
    ("name", "before", "holds", "breaks"),
    [
        ("snr_db", 6.0, 5.01, 4.99),
        ("log_mel_l1", 2.0, 2.09, 2.11),
        ("psnr_db", 20.0, 19.51, 19.49),
        ("ssim", 0.8, 0.781, 0.779),
        ("snr_db", -2.0, -2.99, -3.01),
    ],
)
def test_a_metric_may_lose_so_much_and_no_more(
    name: str, before: float, holds: float, breaks: float, audited: Any
) -> None:
    own, media, _, path = audited
    codec_audit.save_baseline(path, codec_audit.record(own, media, {name: Fact(before, 3)}), "chosen")
    gate = f"baseline_{name}"
    assert gate not in reds(compared(own, media, {name: Fact(holds, 3)}, path))
    assert gate in reds(compared(own, media, {name: Fact(breaks, 3)}, path))
    assert "not measured" in reds(compared(own, media, {}, path))[gate]


def test_a_baseline_is_renewed_with_a_reason_that_stays(audited: Any) -> None:
    own, media, facts, path = audited
    for reason in ("", "  "):
        with pytest.raises(ConfigError, match="reason"):
            codec_audit.save_baseline(path, codec_audit.record(own, media, facts), reason)
    assert codec_audit.load_baseline(path)["reason"] == "first"
    other = codec_audit.record(Faulty(own, digest="f" * 64), media, facts)
    codec_audit.save_baseline(path, other, "a longer training")
    codec_audit.save_baseline(path, codec_audit.record(own, media, facts), "and back")
    stored = codec_audit.load_baseline(path)
    assert [(row["reason"], row["digest"]) for row in stored["history"]] == [
        ("first", own.digest),
        ("a longer training", "f" * 64),
    ]
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError, match="torn"):
        codec_audit.load_baseline(path)
    path.write_text(json.dumps({**stored, "format": 0}))
    with pytest.raises(CheckpointError, match="format"):
        codec_audit.load_baseline(path)


def test_snr_is_what_it_says() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=1000)
    assert snr_db(true, 0 * true) == 0
    assert snr_db(true, 0.9 * true) == pytest.approx(20)
    assert snr_db(true, true) == math.inf
    assert math.isnan(snr_db(0 * true, true))


def test_a_silent_clip_has_no_ratio_and_counts_in_no_mean() -> None:
    true_S = torch.sin(torch.arange(4000) / 9)
    scores = [
        codec_audit.likeness("audio", true, 0.9 * true_S, 16_000) for true in (true_S, torch.zeros(4000))
    ]
    assert math.isnan(scores[1]["snr_db"])
    assert codec_audit.mean([each["snr_db"] for each in scores]) == pytest.approx(20, abs=1e-3)
    assert codec_audit.likeness("audio", true_S, true_S, 16_000) == {"snr_db": math.inf, "log_mel_l1": 0.0}
    assert "log_mel_l1" not in codec_audit.likeness("audio", true_S[:900], true_S[:900], 16_000)
    assert codec_audit.mean([math.inf, math.inf]) == math.inf


# --- of a stage -------------------------------------------------------------------------------------------------------


def audited_stage(folder: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Fact]:
    """What a stage's audit of its image codec finds; the second process opens its folder here."""

    def second(codec: Any, media: list[Tensor], place: Path) -> tuple[list[Tensor], list[str]]:
        there = codecs.open_codec(place)
        codes = codec_audit.encode_by_length(there, media, most=1)
        return codes, [codec_audit.digest_of_all({"": there.decode(each[None])[0]}) for each in codes]

    monkeypatch.setattr(codec_audit, "_elsewhere", second)
    torch.manual_seed(seed)
    network = ImageCodec(ImageCodecConfig(image_size=32, width=16, fine_width=8)).eval()
    media = list(torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    known = {"psnr_db": Fact(20.0 + seed, 40, None, 12.0)}
    return codec_audit.of_stage(
        folder, lambda place: store.save(network, place), media, torch.device("cpu"), known
    )


def verdicts(facts: dict[str, Fact]) -> dict[str, str]:
    return {each.name: each.why for each in judge(codec_audit.STAGE_GATES, facts) if each.verdict == "red"}


def test_a_stage_without_a_baseline_is_green_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = audited_stage(tmp_path / "codec", 0, monkeypatch)
    assert verdicts(facts) == {}
    assert (facts["baseline_lost"].value, facts["baseline_lost"].n) == (0.0, 0)
    assert "no baseline is kept" in facts["baseline_lost"].note
    assert facts["psnr_db"] == Fact(20.0, 40, None, 12.0), "what the stage measured on more pictures"
    assert codec_audit.of_stage(tmp_path, lambda place: None, [], torch.device("cpu"), {}) == {}
    assert verdicts({}).keys() >= {"codec_batch", "codec_process", "codec_baseline"}, "unmeasured is red"


def test_a_stage_is_held_to_the_baseline_that_is_kept_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "codec"
    facts = audited_stage(folder, 0, monkeypatch)
    with pytest.raises(ConfigError, match="reason"):
        codec_audit.verify_stage(folder, " ")
    assert verify(folder) == 0
    assert verify(folder, "--set-baseline", "first training") == 0
    assert "codec.json" in capsys.readouterr().out
    again = audited_stage(folder, 0, monkeypatch)
    assert verdicts(again) == {}
    assert again["baseline_lost"].n == 5
    assert again["psnr_db"].note == "baseline 20: first training"
    assert again["ssim"].value == facts["ssim"].value
    other = audited_stage(folder, 1, monkeypatch)  # trained anew: other weights, other codes
    why = verdicts(other)["codec_baseline"]
    assert "codec_baseline: the baseline is of another: digest: expected" in why
    assert "codec_codes" in why
    assert verify(folder) == 1
    assert verify(folder, "--set-baseline", "another seed") == 0
    assert verdicts(audited_stage(folder, 1, monkeypatch)) == {}
    worse = audited_stage(folder, 0, monkeypatch)  # psnr_db 20 for 21
    assert "baseline_psnr_db: worse than the stored 21" in worse["baseline_lost"].note


def verify(folder: Path, *more: str) -> int:
    """`muomni data verify`; its exit code."""
    with pytest.raises(SystemExit) as left:
        cli.main(["data", "verify", str(folder), *more])
    return int(left.value.code or 0)


def test_no_baseline_is_made_of_an_audit_that_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audited_stage(tmp_path / "codec", 0, monkeypatch)
    path = tmp_path / "codec" / codec_audit.AUDIT
    content = json.loads(path.read_text())
    content["facts"]["codec_batch"]["value"] = 0.5
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="codec_batch red"):
        codec_audit.verify_stage(tmp_path / "codec", "why not")
    assert not codec_audit.baseline_of(tmp_path / "codec").exists()


def test_our_codec_of_speech_is_sound_as_its_stage_audits_it(tmp_path: Path) -> None:
    """With a true second process, which decodes to the same samples."""
    torch.manual_seed(0)
    config = {"width": 16, "latent_width": 8, "blocks": 1, "fine_width": 8, "fine_blocks": 1}
    network = SpeechNetwork(SpeechConfig(codebook_size=12, **config)).eval()
    network.quantiser.codebooks_KND.normal_()
    media = [wave(samples, seed=number)[0] for number, samples in enumerate((8000, 9100))]
    facts = codec_audit.of_stage(
        tmp_path, lambda place: store.save(network, place), media, torch.device("cpu"), {}
    )
    assert verdicts(facts) == {}
    assert {"snr_db", "log_mel_l1", "codec_process"} <= facts.keys()
    stored = json.loads((tmp_path / codec_audit.AUDIT).read_text())
    assert stored["codec"]["kind"] == "muomni_codec"
