"""What a stage made the Thinker forget: bits per byte of held-out text before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from muomni.data.corpus import Rows, TokenCorpus
from muomni.data.sample import Sample
from muomni.evaluate.facts import Fact
from muomni.evaluate.metrics import bits_per_byte
from muomni.runtime import Runtime
from muomni.tokens.bpe import Tokenizer
from muomni.train.objectives.language import NextToken, collate_rows


class Forgetting:
    """The meter: made before training, read after. Samples with media are left out; without text there are no facts."""

    def __init__(self, objective: NextToken, samples: Sequence[Sample], tokenizer: Tokenizer, cache: Path, run: Runtime) -> None:
        texts = [sample for sample in samples if not sample.media]
        self.objective, self.run = objective, run
        self.corpus = TokenCorpus.build(cache, texts, tokenizer) if texts else None
        self.start = self.measure() if self.corpus is not None else None

    @torch.inference_mode()
    def measure(self) -> float:
        """Bits per byte now."""
        assert self.corpus is not None
        self.objective.to(self.run.device).eval()
        rows = Rows(self.corpus.pack(self.objective.trunk.config.ctx_len // 4))
        nats = 0.0
        for first in range(0, len(rows), 16):
            batch = collate_rows([rows.item(i, np.random.default_rng(0)) for i in range(first, min(first + 16, len(rows)))])
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
