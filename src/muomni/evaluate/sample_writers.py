"""Sample writers: for each kind of stage, held-out items beside the outputs of the networks.

Everything here only looks. Networks are in evaluation mode and stay as they are; maps are small arrays,
rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from muomni.data.conversation import read_wave
from muomni.data.pictures import Pictures, Stills
from muomni.data.sample import Sample
from muomni.data.utterances import Utterances, spoken
from muomni.errors import DataError
from muomni.evaluate.attention import watched
from muomni.evaluate.metrics import levenshtein
from muomni.evaluate.samples import MOST, Picture, Sound, StageSamples, chosen
from muomni.evaluate.vision_evaluation import VisionEvaluation, readable
from muomni.infer.engine import Engine
from muomni.infer.generate import generate
from muomni.infer.prompt import Prompt
from muomni.infer.speech import Speech, Voice
from muomni.media import griffin_lim
from muomni.models.codec import Codec
from muomni.models.decoder import Decoder
from muomni.models.omni import gather
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.chat import document
from muomni.train.objectives.symbols import before

TEXTS, LEAST_CHARACTERS = 12, 40  # continued, and spelt out token by token
PROMPT_SHARE, CONTINUATION_TOKENS, SPELT_TOKENS = 3, 32, 96  # a third of a text is its prompt
GALLERY = 256  # held-out pictures that compete for each other's captions


def _sound(sample: Sample, rate_hz: int) -> Sound | None:
    """What there is to hear of a sample, None where it can't be read."""
    heard = sample.audios or sample.speech
    try:
        return Sound(read_wave(heard[-1], rate_hz), rate_hz) if heard else None
    except DataError:
        return None


def _picture(prompt: Prompt) -> Picture | None:
    """The first picture that a prompt shows."""
    return Picture(prompt.media["image"][0]) if "image" in prompt.media else None


def _rows(values: Tensor, digits: int = 4) -> list[list[float]]:
    """A small matrix as JSON."""
    return [[round(float(x), digits) for x in row] for row in values.float().cpu()]


def texts(
    stage_samples: StageSamples, decoder: Decoder, tokenizer: Tokenizer, held_out: Sequence[str]
) -> None:
    """Held-out texts: how the Thinker goes on from their first third, and what each token of them costs it in
    nats."""
    device = next(decoder.parameters()).device
    held_out = [
        text for text in held_out if len(text) >= LEAST_CHARACTERS
    ] or held_out  # of a word alone there is nothing to continue
    for index in np.linspace(0, len(held_out) - 1, min(TEXTS, len(held_out))).astype(int):
        ids = document(tokenizer, held_out[index])[: min(SPELT_TOKENS, decoder.config.ctx_len)]
        if len(ids) < 3:
            continue
        row = torch.tensor([ids], device=device)
        with torch.inference_mode():
            nats = F.cross_entropy(decoder(row)[0, :-1].float(), row[0, 1:], reduction="none").tolist()
        prompt_length = max(2, len(ids) // PROMPT_SHARE)
        room = min(CONTINUATION_TOKENS, decoder.config.ctx_len - prompt_length)
        continuation = (
            generate(decoder, row[:, :prompt_length], max_new=room, stop_ids=tokenizer.special_tokens.stops)[
                0
            ]
            if room > 0
            else []
        )
        pieces = [
            [tokenizer.decode([each]) or tokenizer.token(each), round(value, 3)]
            for each, value in zip(ids[1:], nats)
        ]
        stage_samples.add(
            "text",
            prompt=tokenizer.decode(ids[:prompt_length]),
            truth=tokenizer.decode(ids[prompt_length:]),
            continuation=tokenizer.decode(continuation),
            tokens=pieces,
        )


def transcripts(
    stage_samples: StageSamples,
    heard: Sequence[tuple[Sample, str, str, str]],
    words: Sequence[str],
    rate_hz: int,
) -> None:
    """Utterances with (sample, truth, guess, greedy guess), by task; for tasks of single `words` the
    confusion of all items."""
    tasks = sorted({sample.task for sample, *_ in heard})
    for task in tasks:
        rows = [row for row in heard if row[0].task == task]
        if task in words:
            stage_samples.confusion(task, [(truth, guess) for _, truth, guess, _ in rows])
        errors = [levenshtein(truth, guess) / max(1, len(truth)) for _, truth, guess, _ in rows]
        for index, why in chosen(errors, MOST // len(tasks)):
            sample, truth, guess, greedy = rows[index]
            sound = _sound(sample, rate_hz)
            row = {
                "id": sample.id,
                "task": task,
                "why": why,
                "truth": truth,
                "guess": guess,
                "greedy": greedy,
                "error": errors[index],
            }
            stage_samples.add("transcript", **row, audio=sound)


@torch.inference_mode()
def pictures(stage_samples: StageSamples, vision: VisionEvaluation, held_out: Pictures) -> None:
    """Pictures with the three captions of GALLERY that fit best, changed captions that won, and where in the
    picture the caption is seen.

    `fits` of a patch is how well the picture would fit its caption if that patch alone spoke beside the
    summary; `looks` is the attention of the summary in the last block.
    """
    usable = readable(held_out)
    usable = (
        [usable[i] for i in np.linspace(0, len(usable) - 1, min(GALLERY, len(usable))).astype(int)]
        if usable
        else []
    )
    if len(usable) < 2:
        return
    captions = sorted({held_out.samples[i].answer for i in usable})
    unit = vision.images(held_out, usable)[0]
    vectors = vision.texts(held_out, captions)
    similar = (unit @ vectors.T).float()
    own = torch.tensor([captions.index(held_out.samples[i].answer) for i in usable])
    ranks = (similar > similar.gather(1, own[:, None])).sum(1)
    for place, why in chosen(ranks.float().tolist()):
        sample = held_out.samples[usable[place]]
        best = similar[place].topk(min(3, len(captions)))
        score = float(similar[place, own[place]])
        fooled = []
        if sample.negatives:
            scores = (vision.texts(held_out, [n.text for n in sample.negatives]) @ unit[place]).tolist()
            fooled = [
                {"kind": n.kind, "text": n.text, "score": s}
                for n, s in zip(sample.negatives, scores)
                if s >= score
            ]
        fits, looks = _patches(vision, held_out.pixels(usable[place]), vectors[own[place]])
        stage_samples.add(
            "picture",
            id=sample.id,
            task=sample.task,
            why=why,
            picture=Picture(held_out.pixels(usable[place])),
            caption=sample.answer,
            score=score,
            rank=1 + int(ranks[place]),
            among=len(captions),
            found=[[captions[i], s] for s, i in zip(best.values.tolist(), best.indices.tolist())],
            changed=len(sample.negatives),
            fooled=fooled,
            fits=fits,
            looks=looks,
        )


def _patches(
    eyes: VisionEvaluation, pixels: np.ndarray, caption_E: Tensor
) -> tuple[list[list[float]], list[list[float]]]:
    vision = eyes.objective.vision
    device = next(vision.parameters()).device
    with watched([vision.blocks[-1]]) as weights:
        seen = vision(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device))
    side = vision.config.side
    alone = torch.cat([seen.cls_B1D.expand(-1, seen.grid_BPD.shape[1], -1), seen.grid_BPD], -1)[0]
    fits = vision.unit(alone) @ caption_E.to(device).float()
    return _rows(fits.view(side, side)), _rows(weights[0][0, :, 0, 1:].mean(0).view(side, side))


@torch.inference_mode()
def round_trips(
    stage_samples: StageSamples,
    codec: Codec,
    held_out: Utterances,
    indices: Sequence[int],
    errors: Sequence[float],
    codes_KF: Tensor,
) -> None:
    """Speech before and after the codec, with each item's error, and how often each entry of each book was
    used over `codes_KF`."""
    counts = [torch.bincount(book, minlength=codec.config.codebook_size).tolist() for book in codes_KF]
    stage_samples.add("codebooks", counts=counts)
    device = next(codec.parameters()).device
    spec = codec.config.mel
    for place, why in chosen(errors, MOST // 2):
        sample = held_out.samples[indices[place]]
        mel_FM = torch.from_numpy(held_out.item(indices[place], np.random.default_rng(0)).mel_FM)
        codes = codec.encode(mel_FM[None].to(device), torch.tensor([len(mel_FM)], device=device))
        rebuilt = griffin_lim.sound(codec.decode(codes)[0].cpu(), spec)
        row = {
            "id": sample.id,
            "why": why,
            "text": spoken(sample)[1],
            "error": errors[place],
            "codes": codes[0].tolist(),
        }
        stage_samples.add(
            "round_trip", **row, audio=_sound(sample, spec.rate_hz), rebuilt=Sound(rebuilt, spec.rate_hz)
        )


def pictures_rebuilt(
    stage_samples: StageSamples,
    held_out: Stills,
    indices: Sequence[int],
    pixels: Sequence[np.ndarray],
    rebuilt: Sequence[np.ndarray],
    psnr: Sequence[float],
    codes_NKF: Tensor,
    codebook_size: int,
) -> None:
    """Pictures before and after their codes, worst first, with the codes as a grid; and how often each code
    was used."""
    stage_samples.add(
        "codebooks", counts=[torch.bincount(codes_NKF.cpu().flatten(), minlength=codebook_size).tolist()]
    )
    side = math.isqrt(codes_NKF.shape[2])
    for place, why in chosen([-each for each in psnr]):
        sample = held_out.samples[indices[place]]
        grid = codes_NKF[place, 0].view(side, side).tolist()
        row = {
            "id": sample.id,
            "task": sample.task,
            "why": why,
            "caption": sample.answer,
            "psnr": psnr[place],
            "codes": grid,
        }
        stage_samples.add("rebuilt", **row, picture=Picture(pixels[place]), rebuilt=Picture(rebuilt[place]))


@torch.inference_mode()
def said_aloud(
    stage_samples: StageSamples,
    voice: Voice,
    texts: Sequence[str],
    speeches: Sequence[Speech],
    heard: Sequence[str],
    true_frames: Sequence[int],
) -> None:
    """What the Talker said of texts, what our ears understood, and which text each frame looked at (mean over
    blocks and heads)."""
    errors = [levenshtein(truth, guess) / max(1, len(truth)) for truth, guess in zip(texts, heard)]
    for index, why in chosen(errors):
        pieces, looks = _reading(voice, texts[index], speeches[index])
        stage_samples.add(
            "speech",
            why=why,
            text=texts[index],
            heard=heard[index],
            error=errors[index],
            ended=speeches[index].is_ended,
            frames=speeches[index].codes_KF.shape[1],
            true_frames=true_frames[index],
            frame_rate_hz=voice.codec.rate_hz,
            audio=Sound(speeches[index].wave_S, voice.rate_hz),
            pieces=pieces,
            looks=looks,
        )


def _reading(voice: Voice, text: str, speech: Speech) -> tuple[list[str], list[list[float]]]:
    """The text's tokens, and attention (frames, tokens) of the Talker while it says what it said, each
    frame's share of the text."""
    talker = voice.talker
    device = voice.device
    ids = talker.text_ids(text, voice.tokenizer)
    ids_BT, keep_BT = (
        torch.tensor([ids], device=device),
        torch.ones(1, len(ids), dtype=torch.bool, device=device),
    )
    frames = speech.codes_KF.shape[1]
    laid = talker.config.lay_out(speech.codes_KF[None].to(device), torch.tensor([frames], device=device))
    with watched(talker.blocks) as weights:
        talker(
            ids_BT, keep_BT, before(laid), hidden_BTD=voice.think(ids_BT, keep_BT) if voice.think else None
        )
    looks = torch.stack([each[0].mean(0) for each in weights]).mean(0)[
        len(ids) : len(ids) + frames, : len(ids)
    ]
    pieces = (
        [voice.tokenizer.decode([each]) for each in ids]
        if talker.config.text_units == "bpe" and voice.tokenizer
        else list(text)
    )
    return pieces, _rows(looks / looks.sum(1, keepdim=True).clamp(min=1e-9), 3)


def answers(
    stage_samples: StageSamples,
    engine: Engine,
    samples_asked: Sequence[Sample],
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    swapped: Sequence[tuple[Prompt, str]] = (),
    *,
    most: int = MOST,
) -> None:
    """Questions of one task with pictures and sounds, the answers, and those with another's picture;
    confusion of single-word answers.

    Takes   swapped: for each question the prompt with the other's picture, and what was then said.
    """
    task = samples_asked[0].task
    kinds = sorted({str(sample.extra.get("kind") or "") for sample in samples_asked})
    for kind in kinds:
        of_kind = [i for i, sample in enumerate(samples_asked) if str(sample.extra.get("kind") or "") == kind]
        stage_samples.confusion(
            f"{task}: {kind}" if kind else task, [(samples_asked[i].answer, texts[i]) for i in of_kind]
        )
    for index, why in chosen(
        [float(guess != sample.answer) for guess, sample in zip(texts, samples_asked)], most
    ):
        sample, prompt = samples_asked[index], prompts[index]
        rate_hz = engine.parts.media[0].mel.rate_hz if engine.parts.media[0] else 16_000
        other = swapped[index] if swapped else None
        stage_samples.add(
            "answer",
            id=sample.id,
            task=task,
            asks=str(sample.extra.get("kind") or "") or None,
            why=why,
            question=" ".join(message.text for message in sample.messages[:-1] if message.text),
            truth=sample.answer,
            guess=texts[index],
            picture=_picture(prompt),
            audio=_sound(sample, rate_hz) if sample.audios else None,
            other_picture=_picture(other[0]) if other else None,
            other_guess=other[1] if other else None,
            looks=_looks(engine, prompt) if "image" in prompt.media else None,
        )


@torch.inference_mode()
def _looks(engine: Engine, prompt: Prompt) -> list[list[float]] | None:
    """Attention of the place from which the answer begins to the first picture's patches (g, g), mean over
    blocks and heads."""
    omni, thinker = engine.parts.omni, engine.parts.thinker
    assert omni is not None
    config = omni.projectors.config
    if not (grid := config.pool_grid):
        return None
    ids_BT = torch.tensor([prompt.ids], device=engine.device)
    with watched(thinker.blocks) as weights:
        thinker.hidden(omni.embed(ids_BT, gather([prompt.media], engine.device)))
    first, stop = config.num_cls_tokens, config.image_tokens  # without the summary
    pads = (ids_BT[0] == omni.special_tokens.media["image"].pad).nonzero()[first:stop, 0]
    return _rows(torch.stack([each[0, :, -1, pads].mean(0) for each in weights]).mean(0).view(grid, grid), 5)
