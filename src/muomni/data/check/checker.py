"""Check a manifest or a folder of manifests row by row, before training."""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from muomni.data import formats, readers, schema_inference, shards, transcripts
from muomni.data.check import duplicates, folder, near_duplicates
from muomni.data.check.findings import Finding, Findings, of_error, printable
from muomni.data.check.media_pool import MediaPool
from muomni.data.check.media_stats import MediaStats
from muomni.data.check.report import Manifest, Report, forecast, histogram
from muomni.data.check.rows import AT_ITS_MEDIUM, Row, Rows, Usable
from muomni.data.indexed import seldom_collected
from muomni.data.layouts.fields import LENGTH
from muomni.data.quarantine import Quarantine
from muomni.data.reading import Account
from muomni.data.sample import AudioPart, ImagePart, Sample
from muomni.data.source import Source
from muomni.data.uses import ALPHABET, RULES, Standing, fits, standing, states
from muomni.errors import DataError, UserError
from muomni.media.frames import MAX_AUDIO_TOKENS, PAD_S
from muomni.tokens.alphabet import min_frames
from muomni.tokens.bpe import Tokenizer

BYTES_PER_TOKEN = 3  # a careful guess where no tokenizer is given; English with 5000 tokens has 3.6
SHORT_ANSWER = 40  # characters: an answer of this length may be a label
FEW_ANSWERS = 20  # samples of a task from which the balance of its answers says something
ONE_ANSWER = 0.9
LENGTH_SLACK_S, LENGTH_SLACK = 0.1, 0.05  # by which a told length may differ: it may be rounded
TREES = ("ljspeech", "librispeech", "vctk", "higgs")
ROWS_AHEAD = 256  # whose media are opened at once
Parts = list[ImagePart | AudioPart]
Key = tuple[str, float | None, float | None, int | None]
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")  # but tab and line ends


@seldom_collected()
def check(
    source: Source,
    base: Path,
    *,
    tokenizer: Tokenizer | None = None,
    ctx_len: int = 512,
    val_split: float = 0.05,
    seed: int = 0,
) -> Report:
    """Read every row and open every file of a source, or of all manifests of a folder. What can't be used is
    reported, never raised.

    A flat manifest without a template is read by what its columns seem to hold (`Manifest.read_as`). A folder
    with manifests is checked manifest by manifest, together: what stands in two of them is found too.
    """
    run = _Check(str(Path(base) / source.path), tokenizer, ctx_len, val_split, seed)
    try:
        path = readers.locate(source, base)
        contents = folder.scan(path) if path.is_dir() and source.format is None else None
    except UserError as error:
        run.findings.add(of_error(error, "config", run.report.path))
        return run.judged()
    if contents is None or not contents.manifests:
        run.manifest(source, path, base)
        if path.is_dir() and run.report.manifests[-1].format in TREES:
            for name in sorted(folder.sounds(path) - run.named):
                run.findings.add(Finding("orphan", name, "no line of its tables names it"))
    else:
        for inside in contents.manifests:
            run.manifest(source.model_copy(update={"path": str(inside)}), inside, base)
        for other in contents.skipped:
            run.findings.add(Finding("skipped", str(other), "looks like no manifest"))
        for name in folder.unnamed(contents.media - run.named, contents.manifests):
            run.findings.add(Finding("orphan", name, "no manifest of the folder names it"))
    return run.judged()


def _key(part: ImagePart | AudioPart) -> Key:
    return (
        (part.path, part.start, part.end, part.channel)
        if part.type == "audio"
        else (part.path, None, None, None)
    )


class _Collected(Quarantine):
    """A quarantine that keeps every row's finding."""

    def __init__(self, findings: Findings) -> None:
        super().__init__()
        self.findings = findings

    def add(self, path: str | Path, row: int | str, reason: str, detail: str = "") -> None:
        super().add(path, row, reason, detail)
        self.findings.add(of_error(DataError(reason, detail), reason, f"{path}:{row}"))

    def note(self, path: str | Path, row: int | str, reason: str, detail: str) -> None:
        self.findings.add(of_error(DataError(reason, detail), reason, f"{path}:{row}"))


class _Check:
    def __init__(
        self, path: str, tokenizer: Tokenizer | None, ctx_len: int, val_split: float, seed: int
    ) -> None:
        self.tokenizer = tokenizer
        self.report = Report(path, ctx_len=ctx_len, is_estimate=tokenizer is None)
        self.findings = Findings()
        self.rows = Rows(list(RULES))
        self.sides = readers.Sides(val_split, seed)
        self.named: set[str] = set()  # every media file that a row names
        # what was opened: a number among the rows' media, once one of them uses it
        self.opened: dict[Key, int | MediaStats | DataError] = {}
        self.tokens = array("q")
        self.lengths = array("q")  # characters of documents and answers
        self.tasks: Counter[str] = Counter()
        self.answers: defaultdict[str, Answers] = defaultdict(Answers)
        self.texts = near_duplicates.NearTexts()
        self.transcripts = transcripts.Transcripts()

    def manifest(self, source: Source, path: Path, base: Path) -> None:
        """Read one manifest to its end."""
        manifest_report = Manifest(printable(str(path)))
        self.report.manifests.append(manifest_report)
        quarantine, account = _Collected(self.findings), Account()
        standings: Counter[Standing] = Counter()
        try:
            recognised = schema_inference.recognise(path, source)
            manifest_report.read_as = (
                schema_inference.describe(recognised) if recognised is not source else ""
            )
            manifest_report.format = formats.sniff(path, recognised)
            listing = formats.listing(path)
            has_lines = (
                not listing.is_dir() or shards.is_set(path) or manifest_report.format == "librispeech"
            )  # not folders of classes
            self.rows.begin(str(listing))
            for line, sample, parts in self._ahead(readers.numbered(recognised, base, quarantine, account)):
                manifest_report.rows += 1
                row = Row(sample, f"{listing}:{line}" if has_lines else parts[0].path)
                media = self._opened(row, parts)
                if media is None:
                    continue
                manifest_report.samples += 1
                standings[self._use(row)] += 1
                self._keep(row, line if has_lines else AT_ITS_MEDIUM, media, recognised)
        except (UserError, OSError) as error:
            problem = (
                error
                if isinstance(error, UserError)
                else DataError("missing", f"{path}: can't be read: {error}")
            )
            self.findings.add(of_error(problem, "config", str(path)))
        manifest_report.rows += quarantine.total
        for standing_kind, count in standings.items():
            for stage in standing_kind.stages:
                manifest_report.stages[stage] = manifest_report.stages.get(stage, 0) + count
            for stage, reason in standing_kind.refused:
                reasons = manifest_report.refused.setdefault(stage, {})
                reasons[reason] = reasons.get(reason, 0) + count
        self._account(manifest_report, account, formats.listing(path))
        if not manifest_report.samples:
            self.findings.add(Finding("no_samples", str(path), "no usable sample"))
        elif not manifest_report.stages:
            why = "; ".join(
                f"{stage}: {', '.join(reasons)}" for stage, reasons in manifest_report.refused.items()
            )
            self.findings.add(
                Finding(
                    "no_stage",
                    str(path),
                    f"no stage can learn from any of its {manifest_report.samples} rows: {why}",
                )
            )

    def _account(self, manifest_report: Manifest, account: Account, path: Path) -> None:
        """What of the columns was read, what was left, and what must not be: files, and persons that only
        some rows name."""
        manifest_report.read, manifest_report.left, manifest_report.columns = (
            account.read,
            account.left,
            account.describe(),
        )
        manifest_report.said_sides = dict(account.sides)
        for key, what in account.signs.items():
            self.findings.add(
                Finding("left_column", str(path), f"column {key} names {what}, and is not read")
            )
        if account.named:
            for line in account.unnamed:
                self.findings.add(Finding("unnamed_speaker", f"{path}:{line}", account.describe_unnamed()))

    def _opened(self, row: Row, parts: Parts) -> list[int] | None:
        """Look at the row's media and words; None where training would set it aside, which is reported as
        that."""
        try:
            media = [self._medium(part, row.where) for part in parts]
            row.media = [self.rows.media[number] for number in media]
            self._transcript(row)
            self._length(row)
        except DataError as error:
            self.findings.add(of_error(error, error.reason, row.where))
            return None
        self._labels_and_length(row)
        return media

    def _keep(self, row: Row, line: int, media: list[int], source: Source) -> None:
        """What only all rows together tell needs of this one."""
        number, sample = len(self.rows), row.sample
        self.rows.add(row, line, media)
        self.sides.add(sample, source)
        self.tasks[sample.task] += 1
        answer = sample.answer
        self.lengths.append(len(answer if sample.text is None else sample.text))
        if answer and len(answer) <= SHORT_ANSWER:
            self.answers[sample.task].add(number, answer)
        self.transcripts.add(number, sample)
        if not media:
            self.texts.add(row.words)

    def _use(self, row: Row) -> Standing:
        """Which stages can learn from a row; one that none can is told, unless it is said of it already that
        it teaches nothing."""
        use = standing(
            row.sample, row.shape, [medium.seconds for medium in row.media if medium.kind == "audio"]
        )
        row.stages = use.stages
        if not row.stages and any(message.role == "assistant" for message in row.sample.messages):
            why = "; ".join(f"{stage}: {reason}" for stage, reason in use.refused)
            self.findings.add(Finding("useless_row", row.where, f"no stage can learn from it: {why}"))
        return use

    def _ahead(self, rows: Iterator[tuple[int, Sample]]) -> Iterator[tuple[int, Sample, Parts]]:
        """The rows as they come, with what they show and say opened side by side before each is looked at."""
        with MediaPool() as pool:
            while some := [(line, sample, sample.media) for line, sample in islice(rows, ROWS_AHEAD)]:
                new = {
                    key: part
                    for *_, parts in some
                    for part in parts
                    if (key := _key(part)) not in self.opened
                }
                self.named.update(part.path for part in new.values())
                self.opened.update(zip(new, pool.examine(list(new.values())), strict=True))
                yield from some

    def _medium(self, part: ImagePart | AudioPart, where: str) -> int:
        """The number of the medium; its oddities are told at the first row that uses it.

        Raises  DataError, at each row that uses it.
        """
        cached_number = self.opened[_key(part)]
        if isinstance(cached_number, int):
            return cached_number
        if isinstance(cached_number, DataError):
            raise cached_number
        for reason, what in cached_number.oddities:
            self.findings.add(of_error(what, reason, where))
        self.rows.media.append(cached_number)
        number = self.opened[_key(part)] = len(self.rows.media) - 1
        return number

    def _transcript(self, row: Row) -> None:
        """Whether CTC can write the words in the frames of their sound.

        Raises  DataError (infeasible).
        """
        sample = row.sample
        if sample.task != "transcribe":
            return
        heard_s = sum(medium.seconds for medium in row.media)
        if not fits(sample.answer, heard_s):
            needed, frames = min_frames(ALPHABET.encode(sample.answer)), states(heard_s + 2 * PAD_S)
            raise DataError(
                "infeasible",
                f"transcript {sample.answer[:60]!r}: expected at most {frames} frames, got {needed}",
            )
        odd = sorted(character for character in set(sample.answer) if ALPHABET.unknown(character))
        if odd:
            got = " ".join(odd)
            self.findings.add(
                Finding(
                    "unknown_symbols",
                    row.where,
                    f"transcript: expected printable ASCII, got {got}",
                    "printable ASCII",
                    got,
                )
            )

    def _length(self, row: Row) -> None:
        """Whether a sound is as long as its row says.

        Raises  DataError (other_length): the words may be those of a part of it.
        """
        claimed_s = row.sample.extra.get(LENGTH)
        sounds = [medium.seconds for medium in row.media if medium.kind == "audio"]
        if not isinstance(claimed_s, int | float) or len(sounds) != 1:
            return
        slack = LENGTH_SLACK_S + LENGTH_SLACK * sounds[0]
        if (
            claimed_s < sounds[0] - slack or claimed_s > sounds[0] + slack
        ):  # compared only: an integer of JSON may be too large to count with
            raise DataError(
                "other_length",
                f"duration: expected the {sounds[0]:.2f} s of the sound, got {claimed_s!s:.20} s",
                hint="a part of it has `offset` too; a duration of something else is left out by `ignore: [duration]`",
            )

    def _labels_and_length(self, row: Row) -> None:
        sample, ctx_len = row.sample, self.report.ctx_len
        if sample.messages and not any(m.role == "assistant" for m in sample.messages):
            self.findings.add(
                Finding(
                    "zero_label",
                    row.where,
                    "no assistant turn, so nothing is learned",
                    "an assistant's turn",
                    "none",
                )
            )
        if sample.messages and sample.messages[0].role == "assistant":
            what = "the first turn is the assistant's, so it answers nobody"
            self.findings.add(
                Finding("no_question", row.where, what, "a user's turn first", "an assistant's")
            )
        if odd := CONTROL.search("\n".join(row.texts)):
            got, near = f"U+{ord(odd[0]):04X}", odd.string[max(0, odd.start() - 20) : odd.end() + 20]
            what = f"words: expected printable characters, got {got} in {near!r}"
            self.findings.add(Finding("control", row.where, what, "printable characters", got))
        if sample.text is not None:
            return  # a document is cut into rows, nothing of it is lost
        count = self._count(row)
        self.tokens.append(count)
        if count > ctx_len:
            what = f"{count} tokens, the context has {ctx_len}"
            self.findings.add(Finding("truncated", row.where, what, f"at most {ctx_len}", str(count)))

    def _count(self, row: Row) -> int:
        """Tokens of a conversation with its media, about."""
        if self.tokenizer is not None:
            words = sum(map(len, self.tokenizer.encode_many(row.texts)))
        else:
            words = sum(math.ceil(len(text.encode()) / BYTES_PER_TOKEN) for text in row.texts)
        sounds = (
            min(MAX_AUDIO_TOKENS, states(sum(medium.seconds for medium in row.media))) + 2
            if row.shape.audios
            else 0
        )
        return 1 + 2 * len(row.sample.messages) + words + sounds + 3 * row.shape.images

    def judged(self) -> Report:
        """The report, with what only all rows together tell."""
        rows, report = self.rows, self.report
        rows.close(self.sides.is_valid())
        for finding in duplicates.find(rows, self.texts):
            self.findings.add(finding)
        self._clashes()
        self._balance()
        self._tables()
        if len(rows) > 1 and "valid" not in report.sides:
            what = f"nothing is held out: expected several groups, got {report.groups}"
            self.findings.add(of_error(what, "no_validation", report.path))
        report.usable = Usable(rows)
        report.counts, report.findings = dict(self.findings.counts), self.findings.kept
        return report

    def _clashes(self) -> None:
        """Rows of one sound whose words differ."""
        for numbers in self.transcripts.clashes():
            first = self.rows[numbers[0]]
            for number in numbers[1:]:
                what = transcripts.clash_message(first.media[0].name, len(numbers))
                self.findings.add(
                    Finding("two_transcripts", self.rows.where(number), what, other=first.where)
                )

    def _balance(self) -> None:
        self.report.answers = {task: answers.balance(self.rows) for task, answers in self.answers.items()}
        for task, task_answers in self.report.answers.items():
            if task_answers["samples"] >= FEW_ANSWERS and task_answers["share"] > ONE_ANSWER:
                got = f"{task_answers['commonest']!r} in {task_answers['share']:.0%}"
                what = f"answers of {task}: expected none in over {ONE_ANSWER:.0%}, got {got}"
                self.findings.add(of_error(what, "one_answer", self.report.path))

    def _tables(self) -> None:
        report, rows = self.report, self.rows
        sounds = [medium for medium in rows.media if medium.kind == "audio"]
        longer = [max(medium.size) for medium in rows.media if medium.kind == "image"]
        report.samples = len(rows)
        report.rows = sum(manifest.rows for manifest in report.manifests)
        report.groups = len(np.unique(rows.groups))
        report.tasks = dict(self.tasks)
        sides = (
            (side, int(count))
            for side, count in (("train", (~rows.is_valid).sum()), ("valid", rows.is_valid.sum()))
        )
        report.sides = {side: count for side, count in sides if count}
        report.sounds, report.pictures = len(sounds), len(longer)
        report.sample_rates = dict(Counter(str(medium.rate_hz) for medium in sounds))
        report.channels = dict(Counter(str(medium.channels) for medium in sounds))
        report.durations_s = histogram([medium.seconds for medium in sounds])
        report.picture_sides = histogram(longer)
        report.lengths_characters = histogram(self.lengths)
        report.tokens = forecast(self.tokens, report.ctx_len)


class Answers:
    """Short answers of a task: how many, how many different ones, and the commonest; 16 bytes of each are
    held."""

    def __init__(self) -> None:
        self._hashes, self._numbers = array("q"), array("q")

    def add(self, number: int, answer: str) -> None:
        """One more, of the row of this number."""
        self._hashes.append(hash(answer))
        self._numbers.append(number)

    def balance(self, rows: Rows) -> dict[str, Any]:
        """The commonest answer and its share: what a constant answer would score."""
        _, first, counts = np.unique(
            np.frombuffer(self._hashes, np.int64), return_index=True, return_counts=True
        )
        most = min(np.flatnonzero(counts == counts.max()).tolist(), key=lambda place: first[place])
        commonest = rows[self._numbers[int(first[most])]].sample.answer
        share = int(counts[most]) / len(self._hashes)
        return {
            "samples": len(self._hashes),
            "distinct": len(counts),
            "commonest": commonest[:80],
            "share": share,
        }
