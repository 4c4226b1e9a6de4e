"""An outside recogniser listens to our speech: word error rate of wavs against their texts. A bench tool, no
part of the package.

    python benchmarks/listen.py --texts sentences.txt --wavs folder --language world_sentences.txt [--flat]
    [--json]

Line n of the texts belongs to the n-th wav of the folder by name. pocketsphinx's dictionary is cut to the
words of texts and language, its language model is 0.9 bigrams of the language + 0.1 uniform (`--flat`: any
word after any, strict). The same texts, shifted by one, give the chance level: a score means something only
beside it. A word-loop grammar in place of the n-grams ran at 2.5 times real time and was worse.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import jiwer
import numpy as np
import pocketsphinx  # type: ignore[import-untyped]
from numpy.typing import NDArray

from muomni.media import audio

RATE_HZ = 16_000
BIGRAM_SHARE = 0.9
PAD_SAMPLES = 3 * RATE_HZ // 10
NOISE = 1e-3


class Judge:
    """pocketsphinx with a dictionary of `words` and a bigram model of `language` (uniform where that is
    empty)."""

    def __init__(self, words: Iterable[str], language: Sequence[str] = ()) -> None:
        models = Path(pocketsphinx.get_model_path()) / "en-us"
        self.words = sorted(set(words))
        with tempfile.TemporaryDirectory() as folder:
            dictionary, grammar = Path(folder, "words.dict"), Path(folder, "bigrams.arpa")
            dictionary.write_text(_pronunciations(models / "cmudict-en-us.dict", self.words))
            grammar.write_text(_bigrams(self.words, language))
            self._decoder = pocketsphinx.Decoder(
                hmm=str(models / "en-us"),
                dict=str(dictionary),
                lm=str(grammar),
                cmn="batch",
                samprate=RATE_HZ,
                loglevel="FATAL",
            )

    def hear(self, wave_S: NDArray[np.float32]) -> str:
        """The words of a mono wave at 16 kHz."""
        # Digital silence breaks the recogniser's features: without the breath of noise, true speech is
        # misheard three times as often.
        padded_S = np.pad(wave_S, PAD_SAMPLES)
        padded_S += NOISE * np.random.default_rng(0).standard_normal(len(padded_S), dtype=np.float32)
        pcm = (np.clip(padded_S, -1, 1) * 32767).astype("<i2").tobytes()
        self._decoder.start_utt()
        self._decoder.process_raw(pcm, no_search=False, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found is not None else ""


def score(texts: Sequence[str], heard: Sequence[str]) -> dict[str, float]:
    """Word error rate, share of texts heard exactly, and the word error rate by chance (each text against its
    neighbour's sound)."""
    shifted = [*heard[1:], heard[0]]
    return {
        "n": len(texts),
        "wer": jiwer.wer(list(texts), list(heard)),
        "exact": sum(a == b for a, b in zip(texts, heard, strict=True)) / len(texts),
        "wer_chance": jiwer.wer(list(texts), shifted),
    }


def _pronunciations(source: Path, words: Sequence[str]) -> str:
    """The dictionary's lines (variants too) of the given words; raises SystemExit naming those that it
    lacks."""
    wanted, lines = set(words), []
    for line in source.read_text(encoding="utf-8").splitlines():
        if line.split(" ", 1)[0].split("(")[0] in wanted:
            lines.append(line)
    missing = wanted - {line.split(" ", 1)[0] for line in lines}
    if missing:
        raise SystemExit(f"pocketsphinx has no pronunciation for: {' '.join(sorted(missing))}")
    return "\n".join(lines) + "\n"


def _bigrams(words: Sequence[str], language: Sequence[str]) -> str:
    """A bigram model in ARPA form with every pair spelled out, so that nothing backs off."""
    follow: dict[str, Counter[str]] = {word: Counter() for word in ("<s>", *words)}
    for sentence in language:
        tokens = ["<s>", *sentence.split(), "</s>"]
        for first, second in itertools.pairwise(tokens):
            if first in follow:
                follow[first][second] += 1
    after = [*words, "</s>"]
    lines = ["\\data\\", f"ngram 1={len(words) + 2}", f"ngram 2={len(follow) * len(after)}", "", "\\1-grams:"]
    lines += [f"{-math.log10(len(after)):.4f}\t{word}\t0.0" for word in after] + [
        "-99\t<s>\t0.0",
        "",
        "\\2-grams:",
    ]
    for first, seen in follow.items():
        total = sum(seen.values())
        for second in after:
            share = (
                BIGRAM_SHARE * seen[second] / total + (1 - BIGRAM_SHARE) / len(after)
                if total
                else 1 / len(after)
            )
            lines.append(f"{math.log10(share):.4f}\t{first}\t{second}")
    return "\n".join([*lines, "", "\\end\\", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, required=True, help="one text a line")
    parser.add_argument("--wavs", type=Path, required=True, help="folder of wavs, in the order of the texts")
    parser.add_argument("--language", type=Path, help="sentences that the bigrams are counted on")
    parser.add_argument("--flat", action="store_true", help="no bigrams: any word may follow any")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    texts = [line.strip() for line in arguments.texts.read_text().splitlines() if line.strip()]
    wavs = sorted(arguments.wavs.glob("*.wav"))
    if len(texts) != len(wavs):
        raise SystemExit(f"expected a wav for each text, got {len(wavs)} wavs and {len(texts)} texts")
    language = (
        [line.strip() for line in arguments.language.read_text().splitlines()] if arguments.language else []
    )
    judge = Judge(
        {word for text in (*texts, *language) for word in text.split()}, [] if arguments.flat else language
    )
    heard = [judge.hear(audio.read(wav, RATE_HZ, allow_silent=True)) for wav in wavs]
    result = score(texts, heard)
    if arguments.json:
        print(json.dumps(result | {"heard": heard}, indent=2))
        return
    for wav, text, words in zip(wavs, texts, heard, strict=True):
        if text != words:
            print(f"{wav.name}: said {text!r}, heard {words!r}")
    print(" ".join(f"{name} {value:.4g}" for name, value in result.items()))


if __name__ == "__main__":
    main()
