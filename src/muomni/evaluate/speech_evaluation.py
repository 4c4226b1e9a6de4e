"""Speech evaluation: whether a Talker's speech depends on its text, and its error rate by our own
recogniser."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from muomni.data.sample import Sample
from muomni.data.utterances import Utterances, Wave, spoken
from muomni.evaluate import sample_writers
from muomni.evaluate.facts import Fact, share
from muomni.evaluate.metrics import bootstrap, cer, levenshtein, paired
from muomni.evaluate.samples import StageSamples
from muomni.infer.speech import Voice
from muomni.infer.transcribe import transcribe
from muomni.media import griffin_lim
from muomni.models.audio_encoder import AudioEncoder
from muomni.runtime import Runtime
from muomni.train.objectives.talker import TalkerItem, TalkerObjective, collate


@torch.inference_mode()
def swap(
    objective: TalkerObjective, items: Sequence[TalkerItem], run: Runtime, *, batch_size: int = 16
) -> dict[str, Fact]:
    """Does the text matter? Nats a code of held-out speech with its own text and with another of speech of
    like length, in pairs."""
    objective.eval()
    config = objective.talker.config
    items = sorted(items, key=lambda item: item.codes_KF.shape[1])
    pairs = [
        (item, other) for place, item in enumerate(items) if (other := _other_text(items, place)) is not None
    ]
    nats: dict[str, list[float]] = {"own": [], "other": []}
    for first in range(0, len(pairs), batch_size):
        some = pairs[first : first + batch_size]
        swapped = [replace(item, text_ids=other.text_ids, hidden_TD=other.hidden_TD) for item, other in some]
        nats["own"] += objective.nats(collate([item for item, _ in some], config).to(run.device)).tolist()
        nats["other"] += objective.nats(collate(swapped, config).to(run.device)).tolist()
    if not nats["own"]:
        return {}
    gaps, n = np.array(nats["other"]) - np.array(nats["own"]), len(nats["own"])
    return {
        "nats_per_code": Fact(float(np.mean(nats["own"])), n),
        "nats_per_code_swapped": Fact(float(np.mean(nats["other"])), n),
        "text_swap_gap_nats": Fact(float(gaps.mean()), n, paired(gaps.tolist())),
        "text_swap_win_rate": share(int((gaps > 0).sum()), n, floor=0.5),
    }


def _other_text(items: Sequence[TalkerItem], place: int) -> TalkerItem | None:
    """The nearest of the items with another text; the same words in place of themselves would prove
    nothing."""
    for step in range(1, len(items)):
        for other in (place - step, place + step):
            if 0 <= other < len(items) and items[other].text_ids != items[place].text_ids:
                return items[other]
    return None


def free_speech(
    voice: Voice,
    audio: AudioEncoder,
    pad_s: float,
    samples: Sequence[Sample],
    coded: Mapping[int, TalkerItem],
    *,
    most: int,
    max_s: float = 20.0,
    stage_samples: StageSamples | None = None,
) -> dict[str, Fact]:
    """Speech from text alone, heard by our own ears, beside what copy synthesis and the codec leave of the
    true speech.

    Takes   pad_s: silence that the ears want on both sides; coded: the samples' codes by their index; most:
            how many are spoken.
    """
    chosen = [
        i
        for i in np.linspace(0, len(samples) - 1, min(most, len(samples))).astype(int).tolist()
        if i in coded
    ]
    texts = [spoken(samples[i])[1] for i in chosen]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the real-time factor is quoted for one thread
    begin = time.perf_counter()
    speeches = voice.speak(texts)
    took_s = time.perf_counter() - begin
    torch.set_num_threads(threads)
    waves = [each.wave_S for each in speeches]
    true_frames = [coded[i].codes_KF.shape[1] for i in chosen]
    near = sum(
        abs(each.codes_KF.shape[1] - frames) <= 0.2 * frames
        for each, frames in zip(speeches, true_frames, strict=True)
    )

    def heard(waves: list[Wave]) -> list[str]:
        return transcribe(audio, waves, pad_s=pad_s)

    guesses = heard(waves)
    rates = [levenshtein(truth, guess) / len(truth) for truth, guess in zip(texts, guesses, strict=True)]
    if stage_samples is not None:
        sample_writers.said_aloud(stage_samples, voice, texts, speeches, guesses, true_frames)
    few = chosen[:: max(1, len(chosen) // 80)]
    spec = voice.codec.config.mel
    utterances = Utterances(samples, spec, downsample=0, pad_s=0.0, max_text_len=0, max_s=max_s)
    mels = [torch.from_numpy(utterances.item(i, np.random.default_rng(0)).mel_FM) for i in few]
    copies = heard([griffin_lim.sound(mel, spec) for mel in mels])
    decoded = [voice.codec.decode(coded[i].codes_KF[None].to(voice.device))[0] for i in few]
    rebuilt = heard([griffin_lim.sound(mel, spec) for mel in decoded])
    few_texts = [spoken(samples[i])[1] for i in few]
    copy_cer, codec_cer, own_cer = cer(few_texts, copies), cer(few_texts, rebuilt), cer(texts, guesses)
    ratios = [each.codes_KF.shape[1] / frames for each, frames in zip(speeches, true_frames, strict=True)]
    return {
        "own_cer": Fact(own_cer, len(texts), bootstrap(rates), copy_cer),
        "own_cer_above_copy": Fact(own_cer - copy_cer, len(texts)),
        **by_length(texts, guesses),
        "duration_ratio": Fact(float(np.median(ratios)), len(ratios), None, 1.0),
        "copy_synthesis_cer": Fact(copy_cer, len(few)),
        "codec_cer": Fact(codec_cer, len(few), None, copy_cer),
        "codec_own_cer": Fact(codec_cer - copy_cer, len(few)),
        "stop_within_20pct": share(near, len(chosen)),
        "ended": share(sum(each.is_ended for each in speeches), len(speeches)),
        "rtf": Fact(took_s / (sum(map(len, waves)) / voice.rate_hz), len(speeches)),
    }


def by_length(texts: Sequence[str], guesses: Sequence[str]) -> dict[str, Fact]:
    """CER of texts of one word, of a few, and of more: short ones are where speech is lost first."""
    facts = {}
    for name, least, most in (("1_word", 1, 1), ("2_to_4_words", 2, 4), ("5_words_on", 5, 10**9)):
        pairs = [
            (text, guess)
            for text, guess in zip(texts, guesses, strict=True)
            if least <= len(text.split()) <= most
        ]
        if pairs:
            facts[f"own_cer_{name}"] = Fact(
                cer([text for text, _ in pairs], [guess for _, guess in pairs]), len(pairs)
            )
    return facts
