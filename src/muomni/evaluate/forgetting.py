"""Forgetting: bits per byte of held-out text before and after a stage, and accuracy of vision and hearing
after it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from muomni import config, files
from muomni.data import indexed, readers
from muomni.data.conversation import read_wave
from muomni.data.corpus import Rows, TokenCorpus
from muomni.data.pictures import Pictures
from muomni.data.quarantine import Quarantine
from muomni.data.sample import Sample
from muomni.data.source import Source
from muomni.data.utterances import spoken
from muomni.errors import DataError, UserError
from muomni.evaluate.facts import Fact
from muomni.evaluate.metrics import bits_per_byte, cer
from muomni.evaluate.vision_evaluation import VisionEvaluation
from muomni.infer.transcribe import transcribe
from muomni.models import integrity, store
from muomni.models.audio_encoder import AudioEncoder
from muomni.models.decoder import Decoder
from muomni.models.vision_encoder import VisionEncoder
from muomni.runtime import Runtime
from muomni.tokens.bpe import Tokenizer
from muomni.train.objectives.contrast import Contrast
from muomni.train.objectives.language import NextToken, collate_rows
from muomni.train.optim import freeze

ROWS_AT_ONCE = 16
PAIRS_AT_ONCE = (
    1 << 24
)  # positions that look at positions, over the rows of a batch: packed rows need a mask of so many bytes


class Forgetting:
    """The meter: made before training, read after. Samples with media are left out; without text there are no
    facts.

    Takes   objective: on the run's device.
    """

    def __init__(
        self, objective: NextToken, samples: Sequence[Sample], tokenizer: Tokenizer, cache: Path, run: Runtime
    ) -> None:
        texts = indexed.where(samples, lambda sample: not sample.media)
        self.objective, self.run = objective, run
        self.corpus = TokenCorpus.build(cache, texts, tokenizer) if texts else None
        self.start = self.measure() if self.corpus is not None else None

    @torch.inference_mode()
    def measure(self) -> float:
        """Bits per byte now."""
        assert self.corpus is not None
        self.objective.eval()
        row_len = self.objective.trunk.ctx_len // 4
        rows, size = Rows(self.corpus.pack(row_len)), rows_at_once(row_len)
        nats = 0.0
        for first in range(0, len(rows), size):
            batch = collate_rows(
                [rows.item(i, np.random.default_rng(0)) for i in range(first, min(first + size, len(rows)))]
            )
            with self.run.autocast():
                nats += float(self.objective(batch.to(self.run.device))["text"].total)
        return bits_per_byte(nats, self.corpus.num_bytes)

    def before(self) -> dict[str, Fact]:
        """The fact before training."""
        return {} if self.start is None else {"text_bits_per_byte_before": Fact(self.start)}

    def facts(self) -> dict[str, Fact]:
        """The facts after training."""
        if self.start is None:
            return {}
        now = self.measure()
        return {"text_bits_per_byte": Fact(now), "forgetting_bits_per_byte": Fact(now - self.start)}


@dataclass(frozen=True)
class Texts:
    """Texts to measure forgetting by, and where they come from or why there are none."""

    samples: Sequence[Sample]
    origin: str

    def fact(self) -> dict[str, Fact]:
        """How many there are: gate `regression_texts`."""
        return {"regression_texts": Fact(float(len(self.samples)), note=self.origin)}


def own_texts(final: Path, base: Path, most: int) -> Texts:
    """Held-out texts of the data that a language model of ours was trained on, at most so many, evenly
    chosen.

    Takes   final: its stage's `final/`, beside which its settings lie; base: where its sources' paths start,
            unless its run says so.
    Gives   none, and why, for a model of others, or where its data are gone.
    """
    path, origin = final.parent / "config.yaml", final.parents[1] / "recipe.json"
    if final.name != integrity.FINAL or not path.is_file():
        return Texts([], f"{final} is no stage of ours: nobody knows what it was trained on")
    try:
        settings = config.read_yaml(path)
        sources = [config.build(Source, source, str(path), is_stored=True) for source in settings["data"]]
        start = Path(files.read_json(origin)["base"]) if origin.is_file() else base
        quarantine = Quarantine(None, 1.0)
        corpus = readers.load(
            sources, base=start, val_split=settings["val_split"], seed=settings["seed"], quarantine=quarantine
        )
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        return Texts([], f"what {path} names can't be read: {error}")
    texts = indexed.where(corpus.valid, lambda sample: not sample.media)
    places = np.linspace(0, len(texts) - 1, min(most, len(texts))).astype(int)
    return Texts(
        [texts[place] for place in sorted(set(places.tolist()))], f"held out from stage {final.parent.name}"
    )


def rows_at_once(row_len: int) -> int:
    """Rows of a batch: fewer of long ones, since their masks grow with the square (of Qwen3's 10,240
    positions 16 would take 1.7 GB)."""
    return max(1, min(ROWS_AT_ONCE, PAIRS_AT_ONCE // row_len**2))


class Senses:
    """Ears and eyes asked again, after a later stage, what their own stages were asked: some held-out items
    of these, then and now.

    needed   the `final/` folders of the stages hearing and vision; the items come from the settings beside
             them
    place    puts a network that is opened here on the run's device
    """

    def __init__(
        self,
        needed: Mapping[str, Path],
        base: Path,
        run: Runtime,
        items: int,
        place: Callable[[nn.Module], nn.Module],
    ) -> None:
        self.needed, self.base, self.run, self.items, self.place = needed, base, run, min(items, 64), place

    def _open(self, folder: Path) -> Any:
        return self.place(store.load(folder))

    def facts(self, vision: VisionEncoder, audio: AudioEncoder) -> dict[str, Fact]:
        """CER and R@1 of the towers in place of those that lie in the folders, and by how much they are
        worse."""
        return {**self._ears(audio), **self._eyes(vision)}

    def _held_out(self, stage: str) -> tuple[dict[str, Any], list[Sample]]:
        path = self.needed[stage].parent / "config.yaml"
        settings = config.read_yaml(path)
        sources = [config.build(Source, source, str(path), is_stored=True) for source in settings["data"]]
        quarantine = Quarantine(None, 1.0)
        corpus = readers.load(
            sources,
            base=self.base,
            val_split=settings["val_split"],
            seed=settings["seed"],
            quarantine=quarantine,
        )
        places = np.linspace(0, len(corpus.valid) - 1, min(self.items, len(corpus.valid))).astype(int)
        return settings, [corpus.valid[place] for place in sorted(set(places.tolist()))]

    def _ears(self, audio: AudioEncoder) -> dict[str, Fact]:
        settings, samples = self._held_out("hearing")
        heard = []
        for sample in samples:
            with contextlib.suppress(DataError):
                part, text = spoken(sample)
                heard.append((text, read_wave(part, audio.config.mel.rate_hz, max_s=settings["max_s"])))
        if not heard:
            return {}
        texts, waves = [text for text, _ in heard], [wave for _, wave in heard]
        then = cer(texts, transcribe(self._open(self.needed["hearing"]), waves, pad_s=settings["pad_s"]))
        now = cer(texts, transcribe(audio, waves, pad_s=settings["pad_s"]))
        facts = {"hearing_cer_before": then, "hearing_cer_after": now, "forgetting_cer": now - then}
        return {name: Fact(value, len(texts)) for name, value in facts.items()}

    def _eyes(self, vision: VisionEncoder) -> dict[str, Fact]:
        _, samples = self._held_out("vision")
        folder = self.needed["vision"]
        text = self._open(folder / "text_tower")
        if len(samples) < 2:
            return {}
        # Captions that a Thinker read are read by that of its own stage, whatever became of it since.
        reader = (
            freeze(self.place(Decoder.open(self.needed["thinker"])))
            if text.config.kind == "thinker"
            else None
        )
        facts = {}
        for name, eyes in (("then", self._open(folder)), ("now", vision)):
            pictures = Pictures(samples, Tokenizer.load(folder), eyes.config.image_size)
            both: Any = self.place(Contrast(eyes, text, reader=reader))
            facts[name] = VisionEvaluation(both, self.run).retrieval(pictures)["retrieval_r1"]
        drop = Fact(facts["then"].value - facts["now"].value, len(samples))
        return {
            "retrieval_before": facts["then"],
            "retrieval_after": facts["now"],
            "forgetting_retrieval": drop,
        }
