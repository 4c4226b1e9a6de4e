"""What a model of media tokens writes for held-out prompts: does it decode, does it show and say what was
asked?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from muomni.data.sample import Sample
from muomni.data.token_rows import TokenRows
from muomni.data.tokenized.index import COLUMNS
from muomni.errors import ContextError, MuomniError
from muomni.evaluate import shape_checker
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.metrics import cer
from muomni.evaluate.samples import MOST, Picture, Sound, StageSamples
from muomni.evaluate.token_ablations import readable
from muomni.infer import spans
from muomni.infer.sampling import MediaSampling
from muomni.infer.spans import GREEDY
from muomni.media.text import spoken
from muomni.models.rows import TokenModel
from muomni.tokens import grammar, sequences
from muomni.tokens.grammar import Grammar
from muomni.tokens.sequences import TASKS
from muomni.tokens.unified import UnifiedTokenizer

ROWS_AT_ONCE = 32
Hear = Callable[[Sequence[np.ndarray]], list[str]]


def facts(
    model: TokenModel,
    tokens: UnifiedTokenizer,
    rows: TokenRows,
    samples: Sequence[Sample],
    *,
    longest: dict[str, int],
    most: int,
    writing: Mapping[str, MediaSampling],
    stage_samples: StageSamples,
    checked_tasks: Sequence[str] = (),
    hear: Hear | None = None,
    spoken_tasks: Sequence[str] = (),
) -> dict[str, Fact]:
    """For each task, over up to `most` held-out prompts:

    exact          texts that were written as they are (i2t, a2t)
    decoded        images and sounds that decode when they are held to the grammar
    raw_compliance those that are legal to the last id when they are not
    drawn_right    pictures of `checked_tasks` that show the colour and shape of the prompt, by the checker of
                   rules
    spoken_right   sounds in which `hear` understands the prompt's words, as they are said, to the last letter; of
                   `spoken_tasks` where some are named (then no fact where none of them is held out), else of all
    spoken_cer     the share of letters that it understands otherwise, of all sounds

    Takes   longest: frames or tokens of the longest target (`longest`); writing: by medium, how its codes are
            drawn, greedily where it is not named.
    """
    found: dict[str, Fact] = {}
    for task in (name for name in rows.blocks if name in TASKS):
        places, parts = readable(rows, task, most)
        if not places:
            continue
        writes = TASKS[task].writes
        rules = rules_of(model, tokens, writes, longest)
        prompts = [rows.row(place).prompt for place in places]
        blank = None if writes == "text" else sequences.prompt(model.space, writes, [])
        written = _written(model, prompts, rules, sampling=writing.get(writes, GREEDY), blank=blank)
        if writes == "text":
            truths = [tokens.decode_text(words) for words, _ in parts]
            said = [tokens.decode_text(spans.content(ids, rules).tolist()) for ids in written]
            found[f"{task}_exact"] = share(sum(a == b for a, b in zip(said, truths)), len(said))
            for truth, text, place, (_, medium) in list(zip(truths, said, places, parts))[
                : MOST // 2
            ]:  # both tasks have room
                shown = _shown(tokens, TASKS[task].reads, medium)
                stage_samples.add(
                    "token_text", task=task, id=samples[rows.sample(place)].id, text=truth, said=text, **shown
                )
            continue
        texts = [tokens.decode_text(words) for words, _ in parts]
        media = [_decoded(tokens, writes, ids, rules) for ids in written]
        found[f"{task}_decoded"] = share(sum(each is not None for each in media), len(media))
        free = _written(model, prompts, rules, is_free=True)
        found[f"{task}_raw_compliance"] = share(
            sum(rules.first_illegal(ids) is None for ids in free), len(free)
        )
        chosen = [samples[rows.sample(place)] for place in places]
        if writes == "image":
            found |= _drawn(media, texts, chosen, checked_tasks, stage_samples)
        else:
            found |= _spoken(media, texts, chosen, spoken_tasks, tokens, hear, stage_samples)
    return found


def longest(rows: TokenRows, writes: str) -> int:
    """Units (tokens of a text, frames of a sound) of the longest target of the rows, and a quarter more, 0
    where none writes it."""
    columns = {"text": ("text_in", "text_out"), "audio": ("audio",)}[writes]
    most = max((int(rows.shards.rows[:, COLUMNS.index(name)].max(initial=0)) for name in columns), default=0)
    if writes == "audio" and most:
        most = -(-most // rows.space.codec("audio").codebooks)
    return most + most // 4


def rules_of(model: TokenModel, tokens: UnifiedTokenizer, writes: str, most: dict[str, int]) -> Grammar:
    """The grammar of what is written."""
    if writes == "text":
        return grammar.of_text(model.space, most["text"], words=tokens.words)
    return grammar.of_medium(model.space, writes, most=most.get(writes))


def _written(model: TokenModel, prompts: Sequence[Tensor], rules: Grammar, **how: Any) -> list[Tensor]:
    """`spans.write`, some prompts at a time."""
    return [
        ids
        for first in range(0, len(prompts), ROWS_AT_ONCE)
        for ids in spans.write(model, prompts[first : first + ROWS_AT_ONCE], rules, **how)
    ]


def _decoded(tokens: UnifiedTokenizer, writes: str, ids: Tensor, rules: Grammar) -> np.ndarray | None:
    """A picture (H, W, 3) uint8 or a wave (S,), None where the ids are none."""
    try:
        inside = spans.content(ids, rules)
        meta = tokens.meta_of(writes, tokens.space.codes_of(writes, inside))
        if writes == "image":
            return _pixels(tokens.decode_image(inside, meta))
        wave_S = tokens.decode_audio(inside, meta)[0]
        return wave_S.cpu().numpy()
    except (MuomniError, ContextError):
        return None


def _shown(tokens: UnifiedTokenizer, modality: str, ids: Tensor) -> dict[str, Picture | Sound]:
    """An image or a sound that is read, as its tokens have it."""
    meta = tokens.meta_of(modality, tokens.space.codes_of(modality, ids))
    if modality == "image":
        return {"picture": Picture(_pixels(tokens.decode_image(ids, meta)))}
    wave_S, rate_hz = tokens.decode_audio(ids, meta)
    return {"audio": Sound(wave_S.cpu().numpy(), rate_hz)}


def _pixels(pixels_3HW: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    pixels_HW3 = (pixels_3HW.permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels_HW3.cpu().numpy()


def _drawn(
    media: Sequence[np.ndarray | None],
    texts: Sequence[str],
    samples: Sequence[Sample],
    checked: Sequence[str],
    stage_samples: StageSamples,
) -> dict[str, Fact]:
    """How many pictures show what their prompt names; those of held-out pairs of colour and shape beside."""
    hits: list[tuple[bool, str]] = []
    for pixels, text, sample in zip(media, texts, samples):
        is_checked, is_right = sample.task in checked, False
        seen = shape_checker.only(pixels) if is_checked and pixels is not None else None
        if is_checked:
            wanted = (sample.extra.get("colour"), sample.extra.get("shape"))
            is_right = seen is not None and (seen.colour, seen.shape) == wanted
            hits.append((is_right, str(sample.extra.get("pairs", ""))))
        if pixels is not None:
            shown = (
                "nothing that it knows"
                if seen is None
                else f"{seen.size} {seen.colour} {seen.shape}, {seen.place}"
            )
            judged = {"seen": shown, "right": is_right} if is_checked else {}
            stage_samples.add("drawn", id=sample.id, prompt=text, picture=Picture(pixels), **judged)
    if not hits:
        return {}
    found = {"drawn_right": share(sum(hit for hit, _ in hits), len(hits))}
    for pairs in sorted({pairs for _, pairs in hits if pairs}):
        own = [hit for hit, each in hits if each == pairs]
        found[f"drawn_right_{pairs}"] = share(sum(own), len(own))
    return found


def _spoken(
    media: Sequence[np.ndarray | None],
    texts: Sequence[str],
    samples: Sequence[Sample],
    tasks: Sequence[str],
    tokens: UnifiedTokenizer,
    hear: Hear | None,
    stage_samples: StageSamples,
) -> dict[str, Fact]:
    """What a recogniser that was trained apart understands of the sounds."""
    waves = [np.zeros(1600, np.float32) if wave is None else wave for wave in media]
    heard = [None] * len(waves) if hear is None else hear(waves)
    rate_hz = int(tokens.codecs["audio"].sample_rate_hz or 0)
    for sample, wave, text, words in zip(samples, waves, texts, heard):
        stage_samples.add("token_speech", id=sample.id, prompt=text, audio=Sound(wave, rate_hz), heard=words)
    if hear is None:
        return {}
    guesses = [str(words) for words in heard]
    truths = [spoken(text) for text in texts]  # a recogniser writes words as they are said
    hits = [
        guess == truth
        for guess, truth, sample in zip(guesses, truths, samples)
        if not tasks or sample.task in tasks
    ]
    found = {"spoken_cer": Fact(cer(truths, guesses), len(truths))}
    return found | ({"spoken_right": share(sum(hits), len(hits))} if hits else {})
