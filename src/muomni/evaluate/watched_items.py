"""Watched items: a few held-out items that are answered at every checkpoint, so that a person can compare
them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from muomni import files
from muomni.data.sample import Sample
from muomni.evaluate.vqa_evaluation import readable
from muomni.infer.engine import Engine

HASH_CHARACTERS = 12  # of a prediction's sha256: enough to see at a glance what has changed


class WatchedItems:
    """Held-out items with their length bucket; `dump` answers them greedily with the current weights."""

    def __init__(
        self, folder: Path, items: Sequence[tuple[Sample, int]], engine: Callable[[], Engine], max_new: int
    ) -> None:
        self.folder, self.items, self.engine, self.max_new = folder, items, engine, max_new

    def dump(self, step: int) -> None:
        """Write step_NNNNNN.jsonl: {id, bucket, prompt, reference, prediction, hash} a line; generators are
        left as they were."""
        if not self.items:
            return
        engine = self.engine()
        buckets = {sample.id: bucket for sample, bucket in self.items}
        samples, prompts = readable(engine, [sample for sample, _ in self.items])
        answers = [answer.text for answer in engine.answer_many(prompts, max_new=self.max_new)]
        rows = [
            {
                "id": sample.id,
                "bucket": buckets[sample.id],
                "prompt": [turn.model_dump(exclude_none=True) for turn in sample.messages[:-1]],
                "reference": sample.answer,
                "prediction": text,
                "hash": files.sha256_bytes(text.encode())[:HASH_CHARACTERS],
            }
            for sample, text in zip(samples, answers, strict=True)
        ]
        files.write_jsonl(self.folder / f"step_{step:06d}.jsonl", rows)
