"""What `data check` can find: each reason with its weight and its meaning, and the list of what was found
where."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import astuple, dataclass
from typing import Literal

from muomni.errors import DataError, UserError

Severity = Literal["error", "warning", "note"]
KEPT = 10_000  # findings kept for each reason; all are counted
EXPECTED_GOT = re.compile(r"expected (?P<expected>.+?),? got (?P<got>.+?)(?: \([^()]*\))?$", re.DOTALL)


@dataclass(frozen=True)
class Reason:
    """One kind of fault: `error` must be mended, `warning` should be known, `note` is only counted."""

    severity: Severity
    meaning: str
    remedy: str


REASONS: dict[str, Reason] = {
    "bad_row": Reason("error", "no sample: broken JSON or CSV, an unknown key, role or split, end before start", "mend the row"),
    "missing": Reason("error", "a file that is not there", "mend the path, or give the media's folder with `--root`"),
    "empty": Reason("error", "no words, no bytes, or no sound in the window", "fill or remove the row"),
    "undecodable": Reason("error", "a torn or foreign file, or bytes that are no UTF-8", "make the file anew"),
    "too_large": Reason("error", "a picture, file or line over its limit", "shrink it"),
    "too_long": Reason("error", "a sound of more than 60 s", "cut it, or give start and end"),
    "silent": Reason("error", "a sound that holds nothing", "record it again, or remove the row"),
    "nonfinite": Reason("error", "a sound with NaN or infinite samples", "make the file anew"),
    "infeasible": Reason("error", "more symbols than CTC can write in the sound's frames", "check that words and sound belong together"),
    "duplicate_id": Reason("error", "an id that another sample has", "give each sample its own id"),
    "leak_id": Reason("error", "an id on both sides of the split", "give each sample its own id"),
    "leak_group": Reason("error", "a group on both sides of the split", "mend `split`, or leave it to the hash of the group"),
    "leak_path": Reason("error", "a file on both sides of the split", "give the rows of one file one group"),
    "leak_content": Reason("error", "the same bytes or words on both sides of the split", "remove the copy, or give both one group"),
    "two_transcripts": Reason("error", "a sound with several transcripts that differ, and no times", "give each its start and end"),
    "other_length": Reason("error", "a sound of another length than its row says", "give `offset` too, or mend the duration"),
    "unnamed_speaker": Reason("error", "a sound without its speaker, whom other rows name", "fill it in, or `ignore` the column"),
    "left_column": Reason("warning", "a column that names files or persons and is not read", "name it in a template, or `ignore` it"),
    "config": Reason("error", "a manifest that can't be read as asked", "give `--format` or `--template`"),
    "no_samples": Reason("error", "a manifest without a usable sample", "see its other errors"),
    "no_stage": Reason("error", "a manifest from which no stage can learn", "see what each stage lacks, and add it to the rows"),
    "repaired": Reason("warning", "a file or row that was read otherwise than it stands", "see whether that is what its writer meant"),
    "ambiguous": Reason("warning", "a table that can be read in two ways", "see whether the rows are what its writer meant"),
    "useless_row": Reason("warning", "a row from which no stage can learn", "see what each stage lacks, and add it"),
    "leak_near": Reason("warning", "a likeness on both sides of the split", "look at both; remove one, or give both one group"),
    "near_duplicate": Reason("warning", "a picture, sound or text all but the same as another", "look at both; remove one"),
    "duplicate": Reason("warning", "a sample whose content another one has", "remove the copy"),
    "duplicate_file": Reason("warning", "a file of the same bytes as another", "name one file in both rows"),
    "zero_label": Reason("warning", "a conversation without an assistant's turn: nothing is learned from it", "remove it"),
    "no_question": Reason("warning", "an assistant's turn that nothing stands before: it answers nobody", "add the user's turn"),
    "control": Reason("warning", "control or replacement characters in the words: a trace of broken encoding", "clean the text"),
    "truncated": Reason("warning", "a conversation of more tokens than the context", "shorten it, or raise `--ctx-len`"),
    "unknown_symbols": Reason("warning", "a transcript with characters that the CTC alphabet can't write", "spell them in ASCII"),
    "clipped": Reason("warning", "a sound cut off at full scale", "record it with less gain"),
    "quiet": Reason("warning", "a sound whose peak lies below -40 dB of full scale", "check the recording"),
    "short_sound": Reason("warning", "a sound of less than 0.1 s", "check that it is whole"),
    "long_sound": Reason("warning", "a sound of more than 30 s", "cut it at pauses"),
    "end_beyond": Reason("warning", "an end that lies behind the end of the sound", "check that window and file belong together"),
    "channels_differ": Reason("warning", "a second channel with another sound, or one that cancels the first", "name `channel` in the row"),
    "length_differs": Reason("warning", "a sound that breaks off, or is longer than its header says", "make the file anew"),
    "scaled": Reason("warning", "a file of floats that holds integers: they are divided by their full scale", "save it within 1"),
    "blank_picture": Reason("warning", "a picture of one colour", "check the file"),
    "tiny_picture": Reason("warning", "a picture with a side of less than 16 pixels", "check that it is no thumbnail"),
    "narrow_picture": Reason("warning", "a picture more than 5 times as long as wide", "crop it: it will be squeezed into a square"),
    "one_answer": Reason("warning", "over 90 % of a task's answers are the same", "balance it: a constant answer scores as high"),
    "no_validation": Reason("warning", "nothing is held out: one group, or every `split` is train", "name groups: speaker, clip, photo"),
    "orphan": Reason("warning", "a media file that no manifest of the folder names", "add its row, or remove it"),
    "wrong_extension": Reason("note", "a name of another format than the bytes; they are read by the bytes", "rename it"),
    "unfilled_length": Reason("note", "a sound from a pipe: its header says no length; it is read to its end", "make the file anew"),
    "over_full_scale": Reason("note", "a file of floats with samples beyond 1; they are left as they are", "record it with less gain"),
    "skipped": Reason("note", "a file of the folder that looks like no manifest", "check it by itself if it is one"),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One fault: where it is (file:line), what it is, and where given what was expected, what stood there,
    and the other row."""

    reason: str
    where: str
    what: str
    expected: str = ""
    got: str = ""
    other: str = ""  # file:line of the row that this one clashes with

    @property
    def severity(self) -> Severity:
        """How much it weighs."""
        return severity(self.reason)

    def __str__(self) -> str:
        return printable(
            f"{self.where}: {' '.join(self.what.split())}{f' ({self.other})' if self.other else ''}"
        )


def printable(text: str) -> str:
    """The text with what a terminal would obey, or could not show, escaped: names and rows may hold
    anything."""
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    )


def severity(reason: str) -> Severity:
    """How much a reason weighs; one that the table does not know is an error."""
    return REASONS[reason].severity if reason in REASONS else "error"


def of_error(error: UserError | str, reason: str, where: str) -> Finding:
    """The finding that an error's message tells."""
    match = EXPECTED_GOT.search(str(error))
    sides = match.groupdict() if match else {}
    return Finding(error.reason if isinstance(error, DataError) else reason, where, str(error), **sides)


class Findings:
    """Counts findings by reason and keeps the first 10,000 of each."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.kept: list[Finding] = []

    def add(self, finding: Finding) -> None:
        """One more; half a surrogate pair, which no JSON could carry, is escaped."""
        self.counts[finding.reason] += 1
        if self.counts[finding.reason] <= KEPT:
            self.kept.append(
                Finding(*(value.encode(errors="backslashreplace").decode() for value in astuple(finding)))
            )

    def total(self, weight: Severity) -> int:
        """How many of a severity."""
        return sum(count for reason, count in self.counts.items() if severity(reason) == weight)
