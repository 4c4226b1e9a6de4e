"""The audit of a codec (SPEC T3): are its codes the same wherever they are made, and what does the round trip
leave.

`measure` gives facts, `GATES` judge them, `compare` holds them against a baseline that was stored with a
reason. `of_stage` does all three for a codec that a stage trained; `muomni data verify` reads what it left.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from muomni import files
from muomni.errors import CheckpointError, ConfigError, DataError, TokenRangeError
from muomni.evaluate.facts import Fact
from muomni.evaluate.gates import Gate, Judged, judge
from muomni.evaluate.metrics import bootstrap, snr_db
from muomni.evaluate.picture_metrics import psnr_B, ssim_B
from muomni.media.mel import MelSpec, log_mel
from muomni.models.codecs import open_codec
from muomni.models.store import digest_of_all
from muomni.tokens.codec import Codec, CodecEntry, encode_by_length

FORMAT = 1
CLIPS = 16  # held-out media on which a stage audits its codec
AUDIT = "audit.json"  # what an audit left in the folder of its stage
KEPT = 4  # clips whose codes a baseline keeps, so that books that have changed places are found by name
DRIFT = 1e-3  # share of codes that may differ where rounding may: SPEC T4's bound for tokens made again
# What a fact may lose against its baseline (SPEC T3): the bound as a function of the stored value, and its
# direction.
REGRESSIONS: dict[str, tuple[str, Callable[[float], float]]] = {
    "snr_db": (">=", lambda before: before - 1.0),
    "log_mel_l1": ("<=", lambda before: before * 1.05),
    "psnr_db": (">=", lambda before: before - 0.5),
    "ssim": (">=", lambda before: before - 0.02),
}
_RUNS_ELSEWHERE = (
    "the same clips get other codes: its kernels or a cache hold a state; tokenise in audit mode"
)

GATES = (
    Gate(
        "codec_repeat",
        "codec_repeat",
        "two runs in one process give other codes",
        at_most=0,
        source="SPEC T3",
    ),
    Gate("codec_process", "codec_process", "a second process gives other codes", at_most=0, source="SPEC T3"),
    Gate(
        "codec_decode", "codec_decode", "equal codes are decoded to other media", at_most=0, source="SPEC T3"
    ),
    Gate(
        "codec_batch",
        "codec_batch",
        f"another batch size: {_RUNS_ELSEWHERE}",
        at_most=DRIFT,
        source="SPEC T4",
    ),
    Gate(
        "codec_threads", "codec_threads", f"other threads: {_RUNS_ELSEWHERE}", at_most=DRIFT, source="SPEC T4"
    ),
    Gate("codec_range", "codec_range", "codes lie outside of their book", at_most=0, source="SPEC T3"),
    Gate(
        "codec_shape",
        "codec_shape",
        "clips get another number of frames or books than the codec says",
        at_most=0,
    ),
    Gate(
        "codec_length", "codec_length", "decoded media are longer or shorter by more than a frame", at_most=1
    ),
    Gate(
        "codec_media", "codec_media", "decoded media have another shape, or values that are none", at_most=0
    ),
    Gate(
        "codec_refuses", "codec_refuses", "a code outside of its book is decoded without a word", at_least=1
    ),
)
BASELINE_GATE = Gate(
    "codec_baseline",
    "baseline_lost",
    "the codec is not what its stored baseline says: renew it with a reason (muomni data verify --set-baseline), or train on",
    at_most=0,
    source="SPEC T3",
)
STAGE_GATES = (*GATES, BASELINE_GATE)


@torch.inference_mode()
def measure(codec: Codec, clips: Sequence[Tensor], *, folder: Path | None = None) -> dict[str, Fact]:
    """What an audit of a codec finds on clips: waves (S,) at its rate, or pictures (3, H, W), on its device.

    Takes   folder: from which a second process opens it. Without one, what needs a second process isn't
            measured, and its gates are red.
    Gives   codec_repeat, _process, _batch, _threads: the share of codes that are others in a second run, a
            second process, another batch size, another number of threads; codec_decode: decoded media that
            differ; codec_range, codec_shape, codec_media: clips at fault; codec_length: the largest
            difference in frames; codec_refuses; the means of snr_db and log_mel_l1 (nats), or psnr_db and
            ssim; codec_idempotent: the share of codes that a second round trip keeps, which no gate asks for.
    Raises  DataError without clips.
    """
    if not clips:
        raise DataError("empty", f"{codec.kind}: no clips to audit the codec on")
    alone = encode_by_length(codec, clips, most=1)
    total = sum(codes.numel() for codes in alone)
    decoded = [codec.decode(codes[None])[0] for codes in alone]
    facts = {
        "codec_repeat": Fact(_differ(alone, encode_by_length(codec, clips, most=1)), total),
        "codec_batch": Fact(max(_differ(alone, each) for each in _in_batches(codec, clips)), total),
        "codec_range": Fact(float(sum(_is_outside(codec, codes) for codes in alone)), len(clips)),
        "codec_shape": Fact(
            float(sum(_is_misshapen(codec, *each) for each in zip(clips, alone))), len(clips)
        ),
        "codec_media": Fact(float(sum(_is_odd(codec, *each) for each in zip(alone, decoded))), len(clips)),
        "codec_length": Fact(max(_frames_off(codec, *each) for each in zip(clips, decoded)), len(clips)),
        "codec_refuses": Fact(float(_refuses(codec, alone[0])), 1),
        "codec_idempotent": Fact(_kept(codec, alone, decoded), total),
    }
    again = [codec.decode(codes[None])[0] for codes in alone]
    threads = torch.get_num_threads()
    with _threads(threads + 1 if threads == 1 else threads - 1):
        facts["codec_threads"] = Fact(_differ(alone, encode_by_length(codec, clips, most=1)), total)
    changed = sum(not torch.equal(*each) for each in zip(decoded, again))
    if folder is not None:
        codes_there, digests_there = _elsewhere(codec, clips, folder)
        facts["codec_process"] = Fact(_differ(alone, codes_there), total)
        changed += sum(digest_of_all({"": each}) != there for each, there in zip(decoded, digests_there))
    facts["codec_decode"] = Fact(float(changed), len(clips))
    return facts | round_trip(codec, clips, decoded)


def round_trip(codec: Codec, clips: Sequence[Tensor], decoded: Sequence[Tensor]) -> dict[str, Fact]:
    """How near decoded media come to the true ones: means over clips."""
    scores: dict[str, list[float]] = {}
    for true, guess in zip(clips, decoded):
        for name, value in likeness(codec.modality, true, guess, codec.sample_rate_hz).items():
            scores.setdefault(name, []).append(value)
    return {
        name: Fact(mean(values), len(known), bootstrap(known) if known else None)
        for name, values in scores.items()
        for known in [[each for each in values if math.isfinite(each)]]
    }


def likeness(modality: str, true: Tensor, guess: Tensor, rate_hz: int | None) -> dict[str, float]:
    """How near a decoded medium is to what was encoded: the one home of the metrics of a round trip.

    Takes   pictures (3, H, W), the true one in [0, 1]; or waves (S,) at rate_hz, of which the length that
            both have is compared.
    Gives   psnr_db and ssim; or snr_db (`metrics.snr_db`) and, of a wave that is long enough, log_mel_l1, the
            mean distance of log-mels in nats (80 bins up to half the rate, frames of 1,024 samples).
    """
    if modality == "image":
        pair = true.float().cpu()[None], guess.float().cpu()[None].clamp(0, 1)
        return {"psnr_db": float(psnr_B(*pair)), "ssim": float(ssim_B(*pair))}
    assert rate_hz is not None
    length = min(len(true), len(guess))
    true_S, guess_S = true[:length].float().cpu(), guess[:length].float().cpu()
    found = {"snr_db": snr_db(true_S.numpy(), guess_S.numpy())}
    sizes = {"n_fft": 1024, "window_samples": 1024, "hop_samples": 256, "num_mels": 80}  # lumo.md B19
    spec = MelSpec(rate_hz=rate_hz, f_max_hz=rate_hz / 2, **sizes)
    if length >= spec.window_samples:
        true_FM, guess_FM = log_mel(torch.stack([true_S, guess_S]), spec)
        found["log_mel_l1"] = float((true_FM - guess_FM).abs().mean())
    return found


def mean(values: Sequence[float]) -> float:
    """The mean of a metric over media; a silent clip has no ratio (nan) and is left out, inf where all are
    equal."""
    known = [each for each in values if math.isfinite(each)]
    if known:
        return float(np.mean(known))
    return math.inf if math.inf in values else math.nan


def of_stage(
    folder: Path,
    save: Callable[[Path], None],
    clips: Sequence[Tensor],
    device: torch.device,
    measured: Mapping[str, Fact],
) -> dict[str, Fact]:
    """The audit of a codec that a stage trained: facts for STAGE_GATES. What `muomni data verify` needs of it
    is left in the stage's folder, as AUDIT.

    Takes   folder: the stage's own; save: writes the codec as it will stand in `final/`, from where it is
            opened here and by a second process; clips: as `measure`, on any device; measured: facts of the
            round trip that the stage has on more media, which stand in the place of those on the clips.
    Gives   nothing without clips. baseline_lost: how many verdicts of `compare` are red, against the baseline
            that is kept for the stage (`baseline_of`), with what they say; 0 of 0 where none is kept.
    """
    if not clips:
        return {}
    with tempfile.TemporaryDirectory(prefix="muomni-audit-") as name:
        place = Path(name) / "codec"
        save(place)
        codec = open_codec(place, device=device)
        there = [tensor.to(device) for tensor in clips]
        facts = {**measure(codec, there, folder=place), **measured}
        audit = record(codec, there, facts)
    files.write_json(folder / AUDIT, audit)
    return facts | against(audit, baseline_of(folder))


def against(audit: Mapping[str, Any], path: Path) -> dict[str, Fact]:
    """Facts of an audit's record against the baseline that is kept, where one is."""
    if not path.is_file():
        return {"baseline_lost": Fact(0.0, 0, note="no baseline is kept (muomni data verify --set-baseline)")}
    baseline = load_baseline(path)
    judged = compare(audit, baseline)
    lost = [f"{each.name}: {each.why}" for each in judged if each.verdict == "red"]
    stored = {
        name: Fact.from_json(baseline["facts"][name])
        for name in REGRESSIONS.keys() & baseline["facts"].keys()
    }
    now = {name: Fact.from_json(each) for name, each in audit["facts"].items()}
    noted = {
        name: replace(now[name], note=f"baseline {before.value:.4g}: {baseline['reason']}")
        for name, before in sorted(stored.items())
        if name in now
    }
    return {**noted, "baseline_lost": Fact(float(len(lost)), len(judged), note="; ".join(lost))}


def baseline_of(folder: Path) -> Path:
    """Where the baseline of a stage's codec is kept: beside the stage, so that a stage that is trained anew
    is held to it."""
    return folder.parent / "baselines" / f"{folder.name}.json"


def record(codec: Codec, clips: Sequence[Tensor], facts: Mapping[str, Fact]) -> dict[str, Any]:
    """What an audit leaves: the codec's entry, the digest of the clips, the codes of the first, the facts."""
    codes = encode_by_length(codec, clips[:KEPT], most=1)
    return {
        "format": FORMAT,
        "codec": CodecEntry.of(codec, codec.kind, "").to_json(),
        "clips": _digest(clips),
        "facts": {name: fact.to_json() for name, fact in facts.items()},
        "codes": [each.tolist() for each in codes],
    }


def save_baseline(path: Path, audit: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """Store an audit's record as what later ones are held against; gives what was stored.

    A baseline that is there already is renewed: its facts and its reason stay in the new one's history.
    Raises  ConfigError without a reason.
    """
    if not reason.strip():
        raise ConfigError(f"{path}: a baseline needs a reason", hint='--set-baseline "WHY"')
    history = []
    if path.is_file():
        before = load_baseline(path)
        history = [*before["history"], {key: before[key] for key in ("reason", "clips", "facts")}]
        history[-1]["digest"] = before["codec"]["digest"]
    content = {**audit, "reason": reason.strip(), "history": history}
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(content, ensure_ascii=False) + "\n")
    return content


def verify_stage(folder: Path, set_baseline: str | None = None) -> tuple[dict[str, Any], list[Judged]]:
    """The record that a codec's stage left, with its verdicts; and make it the baseline, with a reason.

    Gives   the record, and a verdict for each of GATES, and for each of `compare` where a baseline is kept.
    Raises  UserError where the record is missing or torn; ConfigError for a baseline without a reason, or of
            an audit of which a gate is red.
    """
    hint = "measure the stage again: muomni gate"
    audit: dict[str, Any] = files.read_stored(folder / AUDIT, dict, hint=hint)
    judged = judge(GATES, {name: Fact.from_json(each) for name, each in audit["facts"].items()})
    path = baseline_of(folder)
    if set_baseline is not None:
        if red := [each.name for each in judged if each.verdict == "red"]:
            raise ConfigError(f"--set-baseline: expected all gates green, got {', '.join(red)} red")
        save_baseline(path, audit, set_baseline)
    return audit, judged + (compare(audit, load_baseline(path)) if path.is_file() else [])


def load_baseline(path: Path) -> dict[str, Any]:
    """What `save_baseline` stored.

    Raises  UserError where it is torn; CheckpointError where it is of another format.
    """
    content: dict[str, Any] = files.read_stored(
        path, dict, hint="make it anew: muomni data verify --set-baseline REASON"
    )
    wanted = {"format", "codec", "clips", "facts", "codes", "reason", "history"}
    if content.get("format") != FORMAT or wanted - content.keys():
        hint = "make it anew: muomni data verify --set-baseline REASON"
        raise CheckpointError(f"{path}: no baseline of format {FORMAT}", hint=hint)
    return content


def compare(audit: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[Judged]:
    """Verdicts on an audit's record against a baseline: is it of this codec and these clips, and what has
    become worse.

    Gives   codec_baseline: red where the baseline is of another codec (a stale digest) or of other clips,
            with what differs; codec_codes: the share of the stored codes that are others now; codec_order:
            red where the books of the stored codes have changed places; and a verdict on each metric of
            REGRESSIONS that the baseline has (red, too, where it was not measured now).
    """
    facts = {name: Fact.from_json(each) for name, each in audit["facts"].items()}
    differences = CodecEntry.from_json(baseline["codec"]).unlike(CodecEntry.from_json(audit["codec"]))
    is_same_clips = baseline["clips"] == audit["clips"]
    if not is_same_clips:
        differences.append(f"clips: expected {baseline['clips'][:12]}, got {audit['clips'][:12]}")
    why = (
        f"the baseline is of another: {'; '.join(differences)}; renew it with a reason" if differences else ""
    )
    judged = [_judged("codec_baseline", not differences, float(len(differences)), "<= 0", why)]
    stored, now = ([torch.tensor(each) for each in row["codes"]] for row in (baseline, audit))
    if is_same_clips and len(stored) == len(now):
        share = _differ(stored, now)
        why = (
            "the same clips get other codes than when the baseline was made: another codec, library or build"
        )
        judged.append(_judged("codec_codes", share <= DRIFT, share, f"<= {DRIFT:g}", why))
        places = _places(stored, now)
        moved = [f"book {book} is now {place}" for book, place in enumerate(places) if place != book]
        judged.append(
            _judged(
                "codec_order",
                not moved,
                float(len(moved)),
                "<= 0",
                f"books changed places: {', '.join(moved)}",
            )
        )
    for name, (sign, limit) in REGRESSIONS.items():
        if name not in baseline["facts"]:
            continue
        before = Fact.from_json(baseline["facts"][name]).value
        if not math.isfinite(before):
            continue
        value, bound = facts[name].value if name in facts else math.nan, limit(before)
        holds = value >= bound if sign == ">=" else value <= bound
        why = f"worse than the stored {before:.4g}" if math.isfinite(value) else "it was not measured now"
        judged.append(_judged(f"baseline_{name}", holds, value, f"{sign} {bound:.4g}", why, name))
    return judged


def _judged(name: str, holds: bool, value: float, threshold: str, why: str, fact: str = "") -> Judged:
    number = value if math.isfinite(value) else None
    return Judged(name, "green" if holds else "red", number, threshold, "" if holds else why, fact)


def _digest(clips: Sequence[Tensor]) -> str:
    return digest_of_all({f"{number:06d}": clip for number, clip in enumerate(clips)})


def _in_batches(codec: Codec, clips: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Codes by other batch sizes: as they come, and each clip in the middle of a batch of three equals."""
    yield codec.encode_many(clips)
    yield [codec.encode(torch.stack([clip, clip.flip(-1), clip]))[2] for clip in clips]


def _differ(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The share of codes that differ; 1 for a clip whose codes have another shape."""
    pairs = list(zip(first, second, strict=True))
    wrong = 0
    for a_KF, b_KF in pairs:
        is_same_shape = a_KF.shape == b_KF.shape
        wrong += int((a_KF != b_KF.to(a_KF.device)).sum()) if is_same_shape else a_KF.numel()
    return wrong / max(1, sum(a.numel() for a, _ in pairs))


def _places(before: Sequence[Tensor], now: Sequence[Tensor]) -> list[int]:
    """For each book of the stored codes, the book that holds (nearly) the same codes now; itself where none
    does."""
    if any(a.shape != b.shape for a, b in zip(before, now)):
        return []
    old_KF, new_KF = torch.cat(list(before), -1), torch.cat(list(now), -1)
    same_KK = (old_KF[:, None] == new_KF[None]).float().mean(-1)
    best_K = same_KK.argmax(1).tolist()
    is_moved = [
        float(same_KK[book, best]) > 1 - DRIFT and float(same_KK[book, book]) < 1 - DRIFT
        for book, best in enumerate(best_K)
    ]
    return [best if moved else book for book, (best, moved) in enumerate(zip(best_K, is_moved))]


def _is_outside(codec: Codec, codes_KF: Tensor) -> bool:
    return bool(((codes_KF < 0) | (codes_KF >= codec.codebook_size)).any())


def _is_misshapen(codec: Codec, clip: Tensor, codes_KF: Tensor) -> bool:
    is_counted = tuple(codes_KF.shape) == (codec.codebooks, codec.frames(clip.shape[-1]))
    if codec.frame_rate_hz is None or codec.sample_rate_hz is None:
        return not is_counted
    in_time = abs(codes_KF.shape[1] - len(clip) / codec.sample_rate_hz * codec.frame_rate_hz) <= 1
    return not (is_counted and in_time and codes_KF.dtype == torch.int64)


def _is_odd(codec: Codec, codes_KF: Tensor, media: Tensor) -> bool:
    if codec.modality == "image":
        size = codec.size_px
        fits = tuple(media.shape) == (3, size, size) and float(media.min()) >= 0 and float(media.max()) <= 1
    else:
        fits = tuple(media.shape) == (codec.samples(codes_KF.shape[1]),)
    return not fits or media.dtype != torch.float32 or not bool(media.isfinite().all())


def _frames_off(codec: Codec, clip: Tensor, media: Tensor) -> float:
    """By how many frames the decoded wave is longer or shorter; pictures have one size."""
    if codec.frame_rate_hz is None or codec.sample_rate_hz is None:
        return 0.0
    return abs(len(media) - len(clip)) * codec.frame_rate_hz / codec.sample_rate_hz


def _refuses(codec: Codec, codes_KF: Tensor) -> bool:
    """Whether ids outside are refused, on both sides and in the last book."""
    for code in (-1, codec.codebook_size):
        wrong_KF = codes_KF.clone()
        wrong_KF[-1, -1] = code
        try:
            codec.decode(wrong_KF[None])
        except TokenRangeError:
            continue
        return False
    return True


def _kept(codec: Codec, codes: Sequence[Tensor], decoded: Sequence[Tensor]) -> float:
    """The share of codes that stay what they are when decoded media are encoded again."""
    same = total = 0
    for before, after in zip(codes, encode_by_length(codec, decoded, most=1)):
        length = min(before.shape[1], after.shape[1])
        same += int((before[:, :length] == after[:, :length]).sum())
        total += before[:, :length].numel()
    return same / max(1, total)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _elsewhere(codec: Codec, clips: Sequence[Tensor], folder: Path) -> tuple[list[Tensor], list[str]]:
    """Codes of the clips, and digests of what they decode to, by a second process that opens the codec anew.

    Raises  CheckpointError where it fails, with its last line.
    """
    with tempfile.TemporaryDirectory(prefix="muomni-audit-") as name:
        place = Path(name)
        save_file(
            {f"{number:06d}": clip.contiguous().cpu() for number, clip in enumerate(clips)}, place / "clips"
        )
        order = {
            "folder": str(folder),
            "codebooks": codec.codebooks,
            "device": str(clips[0].device),
            "threads": torch.get_num_threads(),
        }
        files.write_json(place / "order.json", order)
        command = [sys.executable, "-m", "muomni.evaluate.codec_audit", name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip() or "no word").splitlines()[-1]
            raise CheckpointError(f"{folder}: a second process could not encode with this codec: {last}")
        codes = load_file(place / "codes")
        digests: list[str] = files.read_json(place / "decoded.json")
        return [codes[key] for key in sorted(codes)], digests


@torch.inference_mode()
def _answer(place: Path) -> None:
    """What the second process does: encode and decode the clips that lie there."""
    order = files.read_json(place / "order.json")
    torch.set_num_threads(order["threads"])
    codec = open_codec(order["folder"], order["codebooks"], order["device"])
    clips = load_file(place / "clips", device=order["device"])
    codes = encode_by_length(codec, [clips[key] for key in sorted(clips)], most=1)
    decoded = [codec.decode(each[None])[0] for each in codes]
    files.write_json(place / "decoded.json", [digest_of_all({"": each}) for each in decoded])
    save_file(
        {f"{number:06d}": each.contiguous().cpu() for number, each in enumerate(codes)}, place / "codes"
    )


if __name__ == "__main__":
    _answer(Path(sys.argv[1]))
