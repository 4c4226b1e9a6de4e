"""Audit of a set of token shards: all checks, the report, and the baseline (`muomni data verify`).

Checks S and A to E read every sample (data.tokenized.verify). F tokenises some media again, G decodes some,
H builds rows and runs a
tiny language model over them, R compares lengths and round trips with a baseline. Samples are chosen by a
seed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from muomni import config, files
from muomni.data import readers
from muomni.data.quarantine import Quarantine
from muomni.data.source import Source
from muomni.data.tokenized import encode, verify
from muomni.data.tokenized.index import ABOUT, MADE_OF, SIDES, ShardSet, Side
from muomni.data.tokenized.make import PROVENANCE
from muomni.data.tokenized.record import FIELDS, Record
from muomni.data.tokenized.verify import Findings, laid_out
from muomni.errors import ConfigError, MuomniError
from muomni.evaluate.codec_audit import REGRESSIONS, likeness, mean
from muomni.evaluate.gates import COMPARISONS
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.tokens import sequences
from muomni.tokens.chat import IGNORE
from muomni.tokens.space import TokenSpace
from muomni.tokens.unified import UnifiedTokenizer

REPORT, ERRORS, BASELINE = "report.json", "errors.jsonl", "baseline.json"
MOST_RETOKENISED_SHARE = 0.001  # of ids that differ; an audit set has none (lumo.md B32 F)
MOST_DRIFT = 0.05  # of a length percentile (SPEC T4)
BATCH = 8


@dataclass(frozen=True)
class AuditSettings:
    """How much an audit looks at.

    level       integrity: every sample is read, nothing is encoded; full: all checks
    retokenise  samples whose media are tokenised again
    decode      samples of each modality whose ids are decoded
    rows        samples that are built into rows
    max_len     most positions of a row; None: no limit
    seed        chooses the samples
    """

    level: str = "full"
    retokenise: int = 512
    decode: int = 64
    rows: int = 512
    max_len: int | None = None
    seed: int = 0


def audit(
    folder: Path,
    space: TokenSpace,
    tokens: UnifiedTokenizer | None = None,
    settings: AuditSettings = AuditSettings(),
    *,
    baseline: Path | None = None,
    set_baseline: str | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Audit a set; the report, which is also written with `errors.jsonl` beside it. `exit_code` is 0, 1 or 2
    (`Findings.exit_code`).

    Takes   space: the token space that the samples must be of; tokens: its tokenizer and codecs, for level
            full;
            baseline: the file to compare with, the set's own if left out; set_baseline: the reason for which
            this set becomes the
            baseline, where all other checks are green; out: the folder of the report, `verify` in the set if
            left out.
    Raises  UserError for a folder without a finished set; ConfigError for a reason without words, or a set
            that is not green.
    """
    if settings.level not in ("integrity", "full"):
        raise ConfigError(f"--level: expected integrity or full, got {settings.level!r}")
    if settings.level == "full" and tokens is None:
        raise ConfigError(
            "--level full: expected the tokenizer and the codecs, got none",
            hint="--level integrity needs none",
        )
    if set_baseline is not None and not set_baseline.strip():
        raise ConfigError("--set-baseline: expected a reason in words, got none")
    found = Findings()
    verify.integrity(folder, space, found)
    is_sound = found.exit_code == 0  # ids that are out of place can't be decoded or compared
    place = baseline or folder / BASELINE
    measured: dict[str, Any] = {}
    if tokens is not None and settings.level == "full" and is_sound:
        space.require(tokens.space, "the codecs that were opened")
        measured = _full(folder, tokens, settings, found)
    if is_sound:
        _compare(folder, space, place, measured, found)
    report = {
        "folder": str(folder),
        "token_space_sha256": space.hash,
        "settings": asdict(settings),
        "samples": {side: files.read_json(folder / ABOUT)["sides"][side]["samples"] for side in SIDES},
        "checks": [check.to_json() for check in found.checks.values()],
        "exit_code": found.exit_code,
    }
    out = out or folder / "verify"
    files.write_json(out / REPORT, report)
    files.write_jsonl(out / ERRORS, [asdict(problem) for problem in found.problems])
    if set_baseline is not None:
        _renew(folder, space, place, measured, set_baseline, found)
    return report


def summary(report: dict[str, Any]) -> list[list[str]]:
    """Rows of a table: check, verdict, how many of how many are wrong, what it is about or what to look
    at."""
    rows = []
    for check in report["checks"]:
        counts = f"{check['failed']} of {check['n']}" if check["verdict"] != "not run" else "-"
        what = f"{check['what']}: {check['diagnosis']}" if "diagnosis" in check else check["what"]
        rows.append(
            [check["check"], check["kind"], check["verdict"], counts, f"{what} {check['note']}".strip()]
        )
    return rows


def first_problems(out: Path, most: int = 20) -> list[str]:
    """The first problems of an audit in lines: check, file, sample, what."""
    lines = (out / ERRORS).read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines[:most]]
    places = [
        f"{each['file']}: sample {each['sample']}" if each["sample"] else each["file"] for each in found
    ]
    told = [f"{each['check']} {place}: {each['what']}" for each, place in zip(found, places, strict=True)]
    return told + ([f"... {len(lines) - most} more in {out / ERRORS}"] if len(lines) > most else [])


# Checks F, G, H


def _full(folder: Path, tokens: UnifiedTokenizer, settings: AuditSettings, found: Findings) -> dict[str, Any]:
    sets = {side: ShardSet(folder, side) for side in SIDES}
    every = [(side, place) for side in SIDES for place in range(len(sets[side]))]
    order = np.random.default_rng(settings.seed).permutation(len(every))
    chosen = [every[number] for number in order]
    media = _retokenise(folder, tokens, sets, chosen[: settings.retokenise], found)
    round_trips = _decode(tokens, sets, chosen, media, settings.decode, found)
    _rows(tokens, sets, chosen[: settings.rows], settings, found)
    return {"round_trip": round_trips}


Place = tuple[Side, int]


def _retokenise(
    folder: Path,
    tokens: UnifiedTokenizer,
    sets: dict[Side, ShardSet],
    chosen: Sequence[Place],
    found: Findings,
) -> dict[Place, encode.Medium]:
    """Check F; the media that it opened."""
    check = found.checks["F"]
    made_of = files.read_stored(folder / MADE_OF, dict, hint="copy it from where the shards were made")
    split = made_of["settings"]
    try:
        corpus = _corpus(folder, split)
    except (MuomniError, OSError) as error:
        check.note = f"the sources can't be read: {error}"
        found.run("F")
        return {}
    found.run("F")
    if corpus.digest != made_of["data"]:
        found.add("F", PROVENANCE, "", "the sources changed since the shards were made")
        check.n += 1
        return {}
    samples = {"train": corpus.train, "valid": corpus.valid}
    encoder = encode.Encoder(tokens, audit=True, val_split=split["val_split"], seed=split["seed"])
    media: dict[Place, encode.Medium] = {}
    differ = total = 0
    wrong: list[tuple[str, str, str]] = []
    for side, place in chosen:
        record = sets[side].read(place)
        number, sample = int(record.key), samples[side][int(record.key)]
        shard = sets[side].shard_of(place)
        check.n += 1
        again, bad, _ = encoder.records([sample], side, number)
        if not again:
            found.add(
                "F",
                shard,
                record.key,
                f"sample {sample.id!r}: {bad[0].detail if bad else 'has no task any more'}",
            )
            continue
        task = encode.wanted(sample)
        assert isinstance(task, encode.Wanted)
        media[side, place] = encode.read(task.medium, tokens.codecs[task.medium.type])
        for name in FIELDS:
            old, new = record.ids[name], again[0].ids[name]
            total += len(old)
            count = int((old != new).sum()) if len(old) == len(new) else max(len(old), len(new))
            differ += count
            if count:
                wrong.append(
                    (shard, record.key, f"sample {sample.id!r}: {name}: {count} of {len(old)} ids differ")
                )
    share = differ / max(total, 1)
    check.facts = {"ids": total, "ids_that_differ": differ, "samples_that_differ": len(wrong)}
    limit = 0.0 if split["audit"] else MOST_RETOKENISED_SHARE
    if share > limit:
        for each in wrong:
            found.add("F", *each)
    check.note = f"{differ} of {total} ids differ, limit {limit:.1%}"
    return media


def _corpus(folder: Path, split: dict[str, Any]) -> readers.Corpus:
    """The samples that the shards were made of, from where they were."""
    provenance = files.read_stored(folder / PROVENANCE, dict, hint="copy it from where the shards were made")
    sources = [config.build(Source, each, where=PROVENANCE) for each in provenance["sources"]]
    quarantine = Quarantine(limit=1.0)
    base = Path(provenance["base"])
    return readers.load(
        sources, base=base, val_split=split["val_split"], seed=split["seed"], quarantine=quarantine
    )


def _decode(
    tokens: UnifiedTokenizer,
    sets: dict[Side, ShardSet],
    chosen: Sequence[Place],
    media: dict[Place, encode.Medium],
    most: int,
    found: Findings,
) -> dict[str, float]:
    """Check G, and the round trip of each modality where its media were opened: means over samples."""
    found.run("G")
    left = dict.fromkeys(tokens.codecs, most)
    trips: dict[str, list[float]] = {}
    for side, place in chosen:
        if not any(left.values()):
            break
        row = sets[side].rows[place].tolist()
        modality = "image" if row[4 + FIELDS.index("image")] else "audio"
        if not left[modality]:
            continue
        left[modality] -= 1
        record = sets[side].read(place)
        found.checks["G"].n += 1
        try:
            what, decoded = _decoded(tokens, record, modality)
        except MuomniError as error:
            what, decoded = str(error), torch.zeros(0)
        if what:
            found.add("G", sets[side].shard_of(place), record.key, what)
        elif (medium := media.get((side, place))) is not None:
            rate_hz = tokens.space.codec(modality).sample_rate_hz
            for name, value in likeness(modality, medium.values, decoded, rate_hz).items():
                trips.setdefault(name, []).append(value)
    return {name: mean(values) for name, values in trips.items()}


def _decoded(tokens: UnifiedTokenizer, record: Record, modality: str) -> tuple[str, Tensor]:
    """What is wrong with a decoded medium, "" for nothing, and the medium."""
    ids, about = laid_out(record, tokens.space, modality), record.about[modality]
    codes_KF = tokens.space.codes_of(modality, ids)
    meta = {
        **tokens.meta_of(modality, codes_KF),
        **({"samples": about["samples"]} if modality == "audio" else {}),
    }
    with torch.inference_mode():
        if modality == "image":
            pixels_3HW = tokens.decode_image(ids, meta)
            size, got = about["size_px"], tuple(pixels_3HW.shape)
            ok = got == (3, size, size) and bool(pixels_3HW.isfinite().all())
            return ("" if ok else f"expected finite pixels (3, {size}, {size}), got {got}"), pixels_3HW
        wave_S, rate_hz = tokens.decode_audio(ids, meta)
    wanted = about["samples"]
    if rate_hz != about["rate_hz"] or abs(len(wave_S) - wanted) > 1 or not bool(wave_S.isfinite().all()):
        return (
            f"expected {wanted} finite samples at {about['rate_hz']} Hz, got {len(wave_S)} at {rate_hz} Hz",
            wave_S,
        )
    return "", wave_S


def _rows(
    tokens: UnifiedTokenizer,
    sets: dict[Side, ShardSet],
    chosen: Sequence[Place],
    settings: AuditSettings,
    found: Findings,
) -> None:
    """Check H."""
    found.run("H")
    space, check = tokens.space, found.checks["H"]
    rows: list[sequences.TokenRow] = []
    for side, place in chosen:
        record = sets[side].read(place)
        check.n += 1
        task = record.about["task"]
        kind = sequences.TASKS[task]
        text = record.ids["text_out" if kind.writes == "text" else "text_in"].tolist()
        try:
            row = sequences.build(
                space, task, text, laid_out(record, space, kind.medium), max_len=settings.max_len
            )
        except MuomniError as error:
            found.add("H", sets[side].shard_of(place), record.key, str(error))
            continue
        taught = row.labels.ne(IGNORE)
        is_target = bool(row.labels[taught].eq(row.ids[taught]).all()) and not bool(taught[..., 0].any())
        if not bool(taught.any()) or not is_target:
            found.add(
                "H", sets[side].shard_of(place), record.key, "labels are not the ids of the target span"
            )
            continue
        rows.append(row)
    if not rows:
        return
    lengths = np.array([len(row) for row in rows])
    check.facts = {
        name: float(np.percentile(lengths, share)) for name, share in (("p50", 50), ("p90", 90), ("p99", 99))
    }
    nats = _forward(space.size, space.streams, space.pad, rows[: 2 * BATCH], settings.seed)
    check.facts["tiny_lm_nats"] = nats
    if not math.isfinite(nats) or nats <= 0:
        found.add("H", "", "", f"a tiny language model gives {nats} nats a label on the first rows")


def _forward(vocab: int, streams: int, pad: int, rows: Sequence[sequences.TokenRow], seed: int) -> float:
    """Nats a label of an untrained decoder of one block, over rows of K streams whose embeddings are
    added."""
    length = max(len(row) for row in rows)
    grids = [row.ids.reshape(streams, -1) for row in rows]
    marks = [row.labels.reshape(streams, -1) for row in rows]
    ids_BKT = torch.stack([nn.functional.pad(each, (0, length - each.shape[1]), value=pad) for each in grids])
    labels_BKT = torch.stack(
        [nn.functional.pad(each, (0, length - each.shape[1]), value=IGNORE) for each in marks]
    )
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        sizes = {"width": 32, "layers": 1, "heads": 2, "ffn_width": 64, "ctx_len": length}
        model = Decoder(DecoderConfig(vocab_size=vocab, dropout=0.0, **sizes)).eval()
        x_BTD = sum((model.embed(ids_BKT[:, stream]) for stream in range(streams)), torch.zeros(()))
        h_BTD = model.hidden(x_BTD)
        total, count = 0.0, 0
        for stream in range(streams):
            nats_N, _ = model.head.each_nats(h_BTD[:, :-1], labels_BKT[:, stream, 1:])
            total, count = total + float(nats_N.sum()), count + len(nats_N)
    return total / max(count, 1)


# Check R


def _now(folder: Path, space: TokenSpace, measured: dict[str, Any]) -> dict[str, Any]:
    """What a baseline holds."""
    sides = files.read_json(folder / ABOUT)["sides"]
    return {
        "token_space_sha256": space.hash,
        "codecs": {entry.modality: entry.digest for entry in space.codecs},
        "lengths": {side: sides[side]["lengths"] for side in SIDES},
        "round_trip": measured.get("round_trip", {}),
    }


def _compare(folder: Path, space: TokenSpace, place: Path, measured: dict[str, Any], found: Findings) -> None:
    check = found.checks["R"]
    if not place.exists():
        check.note = "no baseline yet: --set-baseline REASON makes one"
        return
    found.run("R")
    before, now = (
        files.read_stored(place, dict, hint="--set-baseline REASON makes a new one"),
        _now(folder, space, measured),
    )
    for key in ("token_space_sha256", "codecs"):
        check.n += 1
        if before[key] != now[key]:
            found.add("R", place.name, "", f"{key}: the baseline is of {before[key]}, the set of {now[key]}")
    for side, fields in now["lengths"].items():
        for name, marks in fields.items():
            for mark in ("p50", "p90", "p99"):
                check.n += 1
                old, new = before["lengths"][side][name][mark], marks[mark]
                if abs(new - old) > MOST_DRIFT * max(old, 1e-9) and (old or new):
                    found.add(
                        "R",
                        place.name,
                        "",
                        f"{side}: {mark} of {name}: expected {old:g} within {MOST_DRIFT:.0%}, got {new:g}",
                    )
    for name, holds, bound in _bounds(before["round_trip"], now["round_trip"]):
        check.n += 1
        if not holds:
            found.add("R", place.name, "", f"{name}: expected {bound}, got {now['round_trip'][name]:.4g}")


def _bounds(before: dict[str, float], now: dict[str, float]) -> Iterator[tuple[str, bool, str]]:
    """Each round-trip metric that both have: its name, whether it holds, and its bound."""
    for name in sorted(before.keys() & now.keys() & REGRESSIONS.keys()):
        sign, limit = REGRESSIONS[name]
        bound = limit(before[name])
        yield name, COMPARISONS[sign](now[name], bound), f"{sign} {bound:.4g}"


def _renew(
    folder: Path, space: TokenSpace, place: Path, measured: dict[str, Any], reason: str, found: Findings
) -> None:
    """Make the set the baseline; the one before, and its reason, stay in the file's history.

    Raises  ConfigError where another check than R is red, or was not run.
    """
    lacking = [name for name, check in found.checks.items() if name != "R" and check.verdict != "green"]
    if lacking:
        raise ConfigError(
            f"--set-baseline: expected all checks green, got {', '.join(lacking)} red or not run",
            hint="see the report",
        )
    history: list[dict[str, Any]] = []
    if place.exists():
        before = files.read_stored(place, dict, hint="remove it")
        history = [*before.pop("history", []), before]
    files.write_json(place, {**_now(folder, space, measured), "reason": reason.strip(), "history": history})
