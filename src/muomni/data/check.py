"""What a manifest, or a folder of them, holds and what is wrong with it, row by row, before any training pays for it."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from pathlib import Path

from muomni.data import columns, folder, formats, medium, overlap, readers, shards, transcripts
from muomni.data.findings import Finding, Findings, of_error, printable
from muomni.data.layouts.fields import LENGTH
from muomni.data.medium import Medium
from muomni.data.overlap import Row
from muomni.data.quarantine import Quarantine
from muomni.data.reading import Account
from muomni.data.report import Manifest, Report, balance, forecast, histogram
from muomni.data.sample import AudioPart, ImagePart, Sample
from muomni.data.source import Source
from muomni.data.uses import ALPHABET, PAD_S, RULES, refusals, states
from muomni.errors import DataError, UserError
from muomni.tokens.alphabet import min_frames
from muomni.tokens.bpe import Tokenizer

AUDIO_TOKENS_MAX = 128  # a sound is capped at a quarter of the context (SPEC M-E)
BYTES_PER_TOKEN = 3  # a careful guess where no tokenizer is given; English with 5000 tokens has 3.6
SHORT_ANSWER = 40  # characters: an answer of this length may be a label
FEW_ANSWERS = 20  # samples of a task from which the balance of its answers says something
ONE_ANSWER = 0.9
LENGTH_SLACK_S, LENGTH_SLACK = 0.1, 0.05  # by which a told length may differ: it may be rounded
TREES = ("ljspeech", "librispeech", "vctk")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")  # but tab and line ends


def check(
    source: Source, base: Path, *, tokenizer: Tokenizer | None = None, ctx_len: int = 512, val_split: float = 0.05, seed: int = 0
) -> Report:
    """Read every row and open every file of a source, or of all manifests of a folder. What can't be used is reported, never raised.

    A flat manifest without a template is read by what its columns seem to hold (`Manifest.read_as`). A folder with manifests is checked
    manifest by manifest, together: what stands in two of them is found too.
    """
    run = _Check(str(Path(base) / source.path), tokenizer, ctx_len)
    try:
        path = readers.locate(source, base)
        found = folder.scan(path) if path.is_dir() and source.format is None else None
    except UserError as error:
        run.findings.add(of_error(error, "config", run.report.path))
        return run.judged(val_split, seed)
    if found is None or not found.manifests:
        run.manifest(source, path, base)
        if path.is_dir() and run.report.manifests[-1].format in TREES:
            for name in sorted(folder.sounds(path) - run.named):
                run.findings.add(Finding("orphan", name, "no line of its tables names it"))
    else:
        for inside in found.manifests:
            run.manifest(source.model_copy(update={"path": str(inside)}), inside, base)
        for other in found.skipped:
            run.findings.add(Finding("skipped", str(other), "looks like no manifest"))
        for name in folder.unnamed(found.media - run.named, found.manifests):
            run.findings.add(Finding("orphan", name, "no manifest of the folder names it"))
    return run.judged(val_split, seed)


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
    def __init__(self, path: str, tokenizer: Tokenizer | None, ctx_len: int) -> None:
        self.tokenizer = tokenizer
        self.report = Report(path, ctx_len=ctx_len, is_estimate=tokenizer is None)
        self.findings = Findings()
        self.rows: list[Row] = []
        self.pairs: list[tuple[Sample, Source]] = []
        self.named: set[str] = set()  # every media file that a row names
        self.opened: dict[tuple[str, float | None, float | None], Medium | DataError] = {}
        self.tokens: list[int] = []

    def manifest(self, source: Source, path: Path, base: Path) -> None:
        """Read one manifest to its end."""
        known = Manifest(printable(str(path)))
        self.report.manifests.append(known)
        quarantine, account = _Collected(self.findings), Account()
        try:
            recognised = columns.recognise(path, source)
            known.read_as = columns.describe(recognised) if recognised is not source else ""
            known.format = formats.sniff(path, recognised)
            listing = formats.listing(path)
            has_lines = not listing.is_dir() or shards.is_set(path) or known.format == "librispeech"  # not folders of classes
            for line, sample in readers.numbered(recognised, base, quarantine, account):
                where = f"{listing}:{line}" if has_lines else sample.media[0].path
                known.rows += 1
                if self._row(sample, where):
                    self.pairs.append((sample, recognised))
                    known.samples += 1
                    self._use(known)
        except (UserError, OSError) as error:
            problem = error if isinstance(error, UserError) else DataError("missing", f"{path}: can't be read: {error}")
            self.findings.add(of_error(problem, "config", str(path)))
        known.rows += quarantine.total
        self._account(known, account, formats.listing(path))
        if not known.samples:
            self.findings.add(Finding("no_samples", str(path), "no usable sample"))
        elif not known.stages:
            why = "; ".join(f"{stage}: {', '.join(reasons)}" for stage, reasons in known.refused.items())
            self.findings.add(Finding("no_stage", str(path), f"no stage can learn from any of its {known.samples} rows: {why}"))

    def _account(self, known: Manifest, account: Account, path: Path) -> None:
        """What of the columns was read, what was left, and what must not be: files, and persons that only some rows name."""
        known.read, known.left, known.columns = account.read, account.left, account.told()
        known.said_sides = dict(account.sides)
        for key, what in account.signs.items():
            self.findings.add(Finding("left_column", str(path), f"column {key} names {what}, and is not read"))
        if account.named:
            for line in account.unnamed:
                self.findings.add(Finding("unnamed_speaker", f"{path}:{line}", account.told_unnamed()))

    def _row(self, sample: Sample, where: str) -> bool:
        """Open the sample's media and look at its words; a sample that training would set aside is reported as that."""
        self.named.update(part.path for part in sample.media)
        row = Row(sample, where)
        try:
            row.media = [self._medium(part, where) for part in sample.media]
            self._transcript(row)
            self._length(row)
        except DataError as error:
            self.findings.add(of_error(error, error.reason, where))
            return False
        self._labels_and_length(row)
        self.rows.append(row)
        return True

    def _use(self, known: Manifest) -> None:
        """Which stages can learn from the last row; one that none can is told, unless it is said of it already that it teaches nothing."""
        row = self.rows[-1]
        refused = refusals(row.sample, [medium.seconds for medium in row.media if medium.is_sound])
        row.stages = tuple(stage for stage in RULES if stage not in refused)
        for stage in row.stages:
            known.stages[stage] = known.stages.get(stage, 0) + 1
        for stage, reason in refused.items():
            reasons = known.refused.setdefault(stage, {})
            reasons[reason] = reasons.get(reason, 0) + 1
        if not row.stages and any(message.role == "assistant" for message in row.sample.messages):
            why = "; ".join(f"{stage}: {reason}" for stage, reason in refused.items())
            self.findings.add(Finding("useless_row", row.where, f"no stage can learn from it: {why}"))

    def _medium(self, part: ImagePart | AudioPart, where: str) -> Medium:
        """The medium, opened once; its oddities are told at the first row that uses it.

        Raises  DataError, at each row that uses it.
        """
        key = (part.path, part.start, part.end) if isinstance(part, AudioPart) else (part.path, None, None)
        found = self.opened.get(key)
        if found is None:
            try:
                found = medium.examine(part)
            except DataError as error:
                found = error
            self.opened[key] = found
            for reason, what in found.oddities if isinstance(found, Medium) else ():
                self.findings.add(of_error(what, reason, where))
        if isinstance(found, DataError):
            raise found
        return found

    def _transcript(self, row: Row) -> None:
        """Whether CTC can write the words in the frames of their sound.

        Raises  DataError (infeasible).
        """
        sample = row.sample
        if sample.task != "transcribe":
            return
        needed, frames = min_frames(ALPHABET.encode(sample.answer)), states(sum(m.seconds for m in row.media) + 2 * PAD_S)
        if needed > frames:
            raise DataError("infeasible", f"transcript {sample.answer[:60]!r}: expected at most {frames} frames, got {needed}")
        odd = sorted({character for character in sample.answer if ALPHABET.unknown(character)})
        if odd:
            got = " ".join(odd)
            self.findings.add(
                Finding("unknown_symbols", row.where, f"transcript: expected printable ASCII, got {got}", "printable ASCII", got)
            )

    def _length(self, row: Row) -> None:
        """Whether a sound is as long as its row says.

        Raises  DataError (other_length): the words may be those of a part of it.
        """
        said = row.sample.extra.get(LENGTH)
        sounds = [found.seconds for found in row.media if found.is_sound]
        if isinstance(said, int | float) and len(sounds) == 1 and abs(said - sounds[0]) > LENGTH_SLACK_S + LENGTH_SLACK * sounds[0]:
            raise DataError(
                "other_length",
                f"duration: expected the {sounds[0]:.2f} s of the sound, got {said:g} s",
                hint="a part of it has `offset` too; a duration of something else is left out by `ignore: [duration]`",
            )

    def _labels_and_length(self, row: Row) -> None:
        sample, ctx_len = row.sample, self.report.ctx_len
        if sample.messages and not any(m.role == "assistant" for m in sample.messages):
            self.findings.add(Finding("zero_label", row.where, "no assistant turn, so nothing is learned", "an assistant's turn", "none"))
        if sample.messages and sample.messages[0].role == "assistant":
            what = "the first turn is the assistant's, so it answers nobody"
            self.findings.add(Finding("no_question", row.where, what, "a user's turn first", "an assistant's"))
        odd = CONTROL.search(sample.text if sample.text is not None else "\n".join(m.text for m in sample.messages))
        if odd:
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
        sample = row.sample
        texts = [m.text for m in sample.messages]
        if self.tokenizer is not None:
            words = sum(map(len, self.tokenizer.encode_many(texts)))
        else:
            words = sum(math.ceil(len(text.encode()) / BYTES_PER_TOKEN) for text in texts)
        heard = sum(medium.seconds for medium in row.media) if sample.audios else 0.0
        sounds = min(AUDIO_TOKENS_MAX, states(heard)) + 2 if sample.audios else 0
        return 1 + 2 * len(sample.messages) + words + sounds + 3 * len(sample.images)

    def judged(self, val_split: float, seed: int) -> Report:
        """The report, with what only all rows together tell."""
        for row, side in zip(self.rows, readers.sides(self.pairs, val_split, seed), strict=True):
            row.side = side
        for finding in overlap.find(self.rows):
            self.findings.add(finding)
        self._clashes()
        self._answers()
        self._tables()
        report = self.report
        if len(self.rows) > 1 and "valid" not in report.sides:
            what = f"nothing is held out: expected several groups, got {report.groups}"
            self.findings.add(of_error(what, "no_validation", report.path))
        report.usable = [{"where": row.where, "id": row.sample.id, "stages": list(row.stages)} for row in self.rows]
        report.counts, report.findings = dict(self.findings.counts), self.findings.kept
        return report

    def _clashes(self) -> None:
        """Rows of one sound whose words differ."""
        found = transcripts.Transcripts()
        for number, row in enumerate(self.rows):
            found.add(number, row.sample)
        for numbers in found.clashes():
            first = self.rows[numbers[0]]
            for number in numbers[1:]:
                what = transcripts.told(first.media[0].name, len(numbers))
                self.findings.add(Finding("two_transcripts", self.rows[number].where, what, other=first.where))

    def _answers(self) -> None:
        answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for row in self.rows:
            if row.sample.answer and len(row.sample.answer) <= SHORT_ANSWER:
                answers[row.sample.task][row.sample.answer] += 1
        self.report.answers = balance(answers)
        for task, found in self.report.answers.items():
            if found["samples"] >= FEW_ANSWERS and found["share"] > ONE_ANSWER:
                got = f"{found['commonest']!r} in {found['share']:.0%}"
                what = f"answers of {task}: expected none in over {ONE_ANSWER:.0%}, got {got}"
                self.findings.add(of_error(what, "one_answer", self.report.path))

    def _tables(self) -> None:
        report, rows = self.report, self.rows
        media = [found for found in self.opened.values() if isinstance(found, Medium)]
        sounds = [found for found in media if found.is_sound]
        sides = [max(found.size) for found in media if not found.is_sound]
        report.samples = len(rows)
        report.rows = sum(manifest.rows for manifest in report.manifests)
        report.groups = len({row.sample.group for row in rows})
        report.tasks = dict(Counter(row.sample.task for row in rows))
        report.sides = dict(Counter(row.side for row in rows))
        report.sounds, report.pictures = len(sounds), len(sides)
        report.sample_rates = dict(Counter(str(found.rate_hz) for found in sounds))
        report.channels = dict(Counter(str(found.channels) for found in sounds))
        report.durations_s = histogram([found.seconds for found in sounds])
        report.picture_sides = histogram(sides)
        report.lengths_characters = histogram([len(s.text if s.text is not None else s.answer) for s in (row.sample for row in rows)])
        report.tokens = forecast(self.tokens, report.ctx_len)
