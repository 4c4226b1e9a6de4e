"""Voice evaluation: what rows of speech teach, whether speech depends on its text and its reference voice, and
whether it ends by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from muomni.data.sample import AudioPart, Message, Sample, TextPart
from muomni.data.speaker_tags import tagged
from muomni.data.voice_rows import VoiceRow, VoiceRows, prompt
from muomni.errors import DataError
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.metrics import paired
from muomni.evaluate.samples import Sound as SampleSound
from muomni.evaluate.samples import StageSamples
from muomni.infer.voice import Cloner
from muomni.models.higgs import GROUPS, Higgs
from muomni.runtime import Runtime
from muomni.tokens.chat import IGNORE
from muomni.train.objectives.voice import VoiceObjective, collate

LOOKED_AT = 64  # rows whose labels are read back
CODED_AGAIN = 12  # sounds
ROWS_AT_ONCE = 4
NEAR = 0.2  # of the true length
SPOKEN = 16  # held-out prompts that are answered by speech, at most


def labels(rows: VoiceRows) -> dict[str, Fact]:
    """Facts about up to LOOKED_AT rows, evenly chosen, counted anew from their samples:

    taught_right  rows whose learned words spell what the assistant says and the marks around its sounds, and
                  whose learned codes are those of its sounds, K (F + 1) of each
    ends_taught   rows in which each learned sound ends once in every book, and closes, and each turn ends
    unfilled      places of sounds without codes, and codes without a place
    misplaced_codes  symbols of sounds, heard ones too, that do not stand in the step in which they are said
    """
    right = ended = unfilled = n = misplaced = symbols = 0
    wrong = shifted = ""
    for index in _evenly(len(rows), LOOKED_AT):
        try:
            row = rows.item(index, np.random.default_rng(0))
        except DataError:
            continue  # the loader counts and names it
        n += 1
        words, ends = _expected(rows, tagged(rows.samples[index]))
        learned = [label for label in row.labels if label != IGNORE]
        taught = [sound for sound in row.sounds if sound.is_taught]
        books = rows.tokens.books
        has_codes = int((row.code_labels_KT != IGNORE).sum()) == sum(
            books * (sound.frames + 1) for sound in taught
        )
        is_own = all(own in (IGNORE, said) for own, said in zip(row.labels, row.ids, strict=True)) and bool(
            ((row.code_labels_KT == IGNORE) | (row.code_labels_KT == row.codes_KT)).all()
        )
        if learned == words and has_codes and is_own:
            right += 1
        else:
            wrong = wrong or row.sample_id
        end = rows.tokens.end_of_stream
        closes = [
            all((row.code_labels_KT[:, sound.start : sound.start + sound.steps] == end).sum(1) == 1)
            and row.labels[sound.start + sound.steps] == rows.tokens.close
            for sound in taught
        ]
        ended += (
            all(closes) and sum(label in (rows.tokens.end, rows.tokens.more) for label in learned) == ends
        )
        ids_T = torch.tensor(row.ids)
        is_place_T = (ids_T == rows.tokens.code) | (ids_T == rows.tokens.last)
        unfilled += int((is_place_T != (row.codes_KT >= 0).all(0)).sum())
        unfilled += int((~is_place_T & (row.codes_KT >= 0).any(0)).sum())
        astray, looked_at = _misplaced(rows, rows.samples[index], row)
        misplaced, symbols = misplaced + astray, symbols + looked_at
        shifted = shifted or (row.sample_id if astray else "")
    return {
        "taught_right": Fact(right / max(1, n), n, note=wrong),
        "ends_taught": share(ended, n),
        "unfilled": Fact(float(unfilled), n),
        "misplaced_codes": Fact(float(misplaced), symbols, note=shifted),
    }


def _misplaced(rows: VoiceRows, sample: Sample, row: VoiceRow) -> tuple[int, int]:
    """Symbols of a row's sounds that do not stand where they are said, and how many were looked at.

    Frame f of book k is said in step k + 1 + f; a start stands in each step before, an end in each behind. Counted
    symbol by symbol and apart from `tokens.grid` on purpose: a mistake must be made twice to go unseen.
    """
    tokens, wrong, total = rows.tokens, 0, 0
    parts = [part for message in sample.messages for part in message.media]
    for sound, part in zip(row.sounds, parts, strict=True):
        assert isinstance(part, AudioPart)
        here_KS = row.codes_KT[:, sound.start : sound.start + sound.steps].tolist()
        for book, codes in enumerate(rows.codes_of(part).tolist()):
            starts, ends = (
                [tokens.start_of_stream] * (book + 1),
                [tokens.end_of_stream] * (tokens.books - book),
            )
            said = [*starts, *codes, *ends]
            wrong += abs(len(said) - len(here_KS[book]))
            wrong += sum(own != other for own, other in zip(said, here_KS[book], strict=False))
            total += len(said)
    return wrong, total


def adapter(model: Higgs, groups: Sequence[str]) -> dict[str, Fact]:
    """adapter_gaps: linear layers of the groups that were asked for without an adapter, and all others (heads too) with
    one, as the network itself has them, whatever was aimed at."""
    asked = {GROUPS[group] for group in groups}
    layers = {
        name.removesuffix(".base_layer")
        for name, module in model.adapted.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }
    adapted = {name for name, module in model.adapted.named_modules() if hasattr(module, "lora_A")}
    wanted = {name for name in layers if "layers" in name.split(".") and asked & set(name.split("."))}
    gaps = [f"{name} has none" for name in sorted(wanted - adapted)]
    gaps += [f"{name} has one" for name in sorted(adapted - wanted)]
    return {"adapter_gaps": Fact(float(len(gaps)), len(layers), note="; ".join(gaps[:4]))}


def _expected(rows: VoiceRows, sample: Sample) -> tuple[list[int], int]:
    """The ids that a sample teaches, in their order, and how many turns it ends."""
    first = sample.extra.get("start_index") or 0
    words: list[int] = []
    ends = 0
    for number, message in enumerate(sample.messages):
        if message.role != "assistant" or number < first:
            continue
        for part in message.parts:
            if part.type == "text":
                words += rows.tokenizer.encode(part.text)
            else:
                words += [rows.tokens.said, rows.tokens.close]
        after = sample.messages[number + 1 : number + 2]
        goes_on = bool(after) and after[0].role == "assistant"
        words.append(rows.tokens.more if goes_on else rows.tokens.end)
        ends += 1
    return words, ends


def stale(rows: VoiceRows, again: Callable[[AudioPart], torch.Tensor]) -> dict[str, Fact]:
    """Share of codes to be learned that the codec, asked again about the same sound, does not give."""
    differ = total = 0
    for index in _evenly(len(rows), CODED_AGAIN):
        for part in rows.samples[index].speech[-1:]:
            try:
                then, now = rows.codes_of(part), again(part)
            except DataError:
                continue
            differ += int((then != now).sum()) if then.shape == now.shape else now.numel()
            total += now.numel()
    return {"stale_codes": Fact(differ / max(1, total), total)}


@torch.inference_mode()
def nats(objective: VoiceObjective, rows: VoiceRows, run: Runtime, most: int) -> Fact | None:
    """Mean nats of held-out rows' labels, codes and words; None where there is no row."""
    objective.eval()
    found = []
    for index in _evenly(len(rows), most):
        try:
            found.append(rows.item(index, np.random.default_rng(0)))
        except DataError:
            continue
    return Fact(float(np.mean(_nats(objective, found, run))), len(found)) if found else None


@torch.inference_mode()
def swaps(objective: VoiceObjective, rows: VoiceRows, run: Runtime, most: int) -> dict[str, Fact]:
    """Mean nats of held-out codes and words: as they are, with another row's words, and with another voice's
    reference, in pairs.

    text_swap_*       the words of all turns are another row's
    reference_swap_*  sounds that are heard and not learned are those of a row of another group
    """
    objective.eval()
    samples = [rows.samples[index] for index in _evenly(len(rows), most)]
    facts: dict[str, Fact] = {}
    for arm, other in (("text", _other_words), ("reference", _other_voice)):
        pairs = []
        for place, sample in enumerate(samples):
            changed = other(samples, place)
            try:
                if changed is not None:
                    pairs.append((rows.row(sample), rows.row(changed)))
            except DataError:
                continue
        if not pairs:
            continue
        own = np.array(_nats(objective, [row for row, _ in pairs], run))
        gaps = np.array(_nats(objective, [row for _, row in pairs], run)) - own
        facts[f"{arm}_swap_gap_nats"] = Fact(float(gaps.mean()), len(gaps), paired(gaps.tolist()))
        facts[f"{arm}_swap_win_rate"] = share(int((gaps > 0).sum()), len(gaps), floor=0.5)
    return facts


def _other_words(samples: Sequence[Sample], place: int) -> Sample | None:
    """The sample with the users' words of the next one that asks for others; its own sounds, and what the
    assistant says in words, stay what is learned."""
    sample = samples[place]
    for step in range(1, len(samples)):
        other = samples[(place + step) % len(samples)]
        asked = [message.text for message in other.messages if message.role == "user"]
        own = [message.text for message in sample.messages if message.role == "user"]
        if not asked or not own or asked[-1] == own[-1]:
            continue
        last = max(number for number, message in enumerate(sample.messages) if message.role == "user")
        return _with(sample, last, partial(_worded, text=asked[-1]))
    return None


def _worded(message: Message, text: str) -> Message:
    """A turn with other words behind its sounds."""
    if isinstance(message.content, str):
        return message.model_copy(update={"content": text})
    parts = [*message.media, TextPart(text=text)]
    return message.model_copy(update={"content": parts})


def _other_voice(samples: Sequence[Sample], place: int) -> Sample | None:
    """The sample with the last sound that is only heard replaced by one of another group's, with its own
    words."""
    sample = samples[place]
    own = heard(sample)
    if own is None:
        return None
    for step in range(1, len(samples)):
        other = samples[(place + step) % len(samples)]
        source = heard(other)
        if source is None or voice_of(other) == voice_of(sample):
            continue
        sound = other.messages[source].media[-1]

        def replaced(message: Message, sound: Any = sound) -> Message:
            assert not isinstance(message.content, str)
            return message.model_copy(
                update={"content": [sound if part.type == "audio" else part for part in message.content]}
            )

        return _with(sample, own, replaced)
    return None


def voice_of(sample: Sample) -> str:
    """Who speaks: `speaker` of the row, of its `misc`, or of its sounds, else its group."""
    misc = sample.extra.get("misc")
    inside = misc.get("speaker") if isinstance(misc, dict) else None
    named = next((part.speaker for part in sample.speech if part.speaker), None)
    return str(sample.extra.get("speaker") or inside or named or sample.group)


def heard(sample: Sample) -> int | None:
    """The last message whose sounds are heard and not learned."""
    first = sample.extra.get("start_index") or 0
    places = [
        number
        for number, message in enumerate(sample.messages)
        if message.media and (message.role != "assistant" or number < first)
    ]
    return places[-1] if places else None


def _with(sample: Sample, number: int, change: Callable[[Message], Message]) -> Sample:
    messages = [
        change(message) if place == number else message for place, message in enumerate(sample.messages)
    ]
    return sample.model_copy(update={"messages": messages})


def _nats(objective: VoiceObjective, rows: Sequence[VoiceRow], run: Runtime) -> list[float]:
    """Mean nats of each row's labels, in its order."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
    nats = [0.0] * len(rows)
    for first in range(0, len(order), ROWS_AT_ONCE):
        some = order[first : first + ROWS_AT_ONCE]
        batch = collate([rows[place] for place in some], 0).to(run.device)
        with run.autocast():
            for place, value in zip(some, objective.nats(batch).tolist(), strict=True):
                nats[place] = value
    return nats


def speech(
    cloner: Cloner, rows: VoiceRows, most: int, stage_samples: StageSamples | None = None
) -> dict[str, Fact]:
    """Held-out conversations answered by speech, up to their last learned sound, greedily.

    ended              share that ended by themselves, before twice the true length and a second
    stop_within_20pct  share whose length is within a fifth of the true one
    """
    ended = near = n = 0
    for index in _evenly(len(rows), min(most, SPOKEN)):
        sample = rows.samples[index]
        try:
            asked, said, frames = _asked(rows, sample)
        except DataError:
            continue
        answer = cloner.say(cloner_row(cloner, rows, asked, said), max_frames=2 * frames + 25)
        spoken = answer.codes_KF.shape[1]
        n, ended = n + 1, ended + answer.is_ended
        near += abs(spoken - frames) <= NEAR * frames
        if stage_samples is not None:
            sounds: dict[str, Any] = {
                name: SampleSound(cloner.wave(codes), cloner.rate_hz) if codes.shape[1] else None
                for name, codes in (("true", rows.codes_of(sample.speech[-1])), ("speech", answer.codes_KF))
            }
            before = heard(sample)
            if before is not None:
                part = sample.messages[before].media[-1]
                assert isinstance(part, AudioPart)
                sounds["reference"] = SampleSound(cloner.wave(rows.codes_of(part)), cloner.rate_hz)
            text = [message.text for message in asked.messages if message.role == "user"][-1:]
            stage_samples.add(
                "voice", id=sample.id, text="".join(text), frames=spoken, true_frames=frames,
                ended=answer.is_ended, **sounds,
            )  # fmt: skip
    return {"ended": share(ended, n), "stop_within_20pct": share(near, n)} if n else {}


def cloner_row(cloner: Cloner, rows: VoiceRows, asked: Sample, said: str) -> VoiceRow:
    """The prompt of a conversation, with the codes that the stage has made already."""

    return prompt(asked, cloner.tokenizer, cloner.tokens, rows.codes_of, said)


def _asked(rows: VoiceRows, sample: Sample) -> tuple[Sample, str, int]:
    """A conversation before its last turn, the words that stand in it before its sound, and that sound's
    frames.

    Raises  DataError where it does not end in a turn of the assistant's with one sound behind its words.
    """
    last = sample.messages[-1]
    if last.role != "assistant" or len(last.media) != 1 or last.parts[-1].type != "audio":
        raise DataError("bad_row", f"{sample.id}: does not end in a sound of the assistant's")
    (part,) = last.media
    assert isinstance(part, AudioPart)
    asked = sample.model_copy(update={"messages": sample.messages[:-1]})
    return asked, last.text, rows.codes_of(part).shape[1]


def _evenly(count: int, most: int) -> list[int]:
    return sorted(set(np.linspace(0, count - 1, min(count, most)).astype(int).tolist())) if count else []
