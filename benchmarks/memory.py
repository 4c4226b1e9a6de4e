"""What a run holds in memory, as samples and steps grow: slopes, each measured in a process of its own.

    python -m benchmarks.memory [--quick]

Rows, each printed as soon as it is known: a corpus read and a few batches of it, at 10^4, 10^5 and 10^6
samples; batches of an order of two million; a run of 10^5 steps of the real loop on a network of a few
weights; pictures drawn at random through a cache that is too small for them, by this process and by two
workers. `--quick` takes a tenth of all, and a hundredth of the steps. Memory is the resident size of the
process, without its workers; seconds are of the processor, so that a busy machine does not change them much.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np


def resident_bytes() -> int:
    """Of this process, now."""
    from muomni.planning.peak_memory import resident_bytes

    return resident_bytes()


# 1. Samples


def samples(count: int) -> str:
    """A manifest of conversations: read, split, put in order by length, and 50 batches of it."""
    from muomni.data import readers
    from muomni.data.conversation import Conversations, MediaSpec
    from muomni.data.loader import Loader
    from muomni.data.order import Order
    from muomni.data.quarantine import Quarantine
    from muomni.data.source import Source
    from muomni.tokens.bpe import Tokenizer

    words = [
        "the",
        "red",
        "star",
        "is",
        "big",
        "and",
        "the",
        "blue",
        "one",
        "is",
        "small",
        "said",
        "who",
        "saw",
        "them",
        "both",
    ]
    tokenizer = Tokenizer.train([" ".join(words)] * 3, 300)
    with tempfile.TemporaryDirectory() as folder:
        path, rng = Path(folder) / "talk.jsonl", np.random.default_rng(0)
        with path.open("w") as stream:
            for number in range(count):
                said = " ".join(rng.choice(words, rng.integers(3, 30)))
                turns = [
                    {"role": "user", "content": f"what about {number}?"},
                    {"role": "assistant", "content": said},
                ]
                stream.write(
                    json.dumps({"id": f"s{number}", "group": f"g{number // 4}", "messages": turns}) + "\n"
                )
        start, begin_s = resident_bytes(), time.process_time()
        corpus = readers.load(
            [Source(path="talk.jsonl")], base=Path(folder), val_split=0.05, seed=0, quarantine=Quarantine()
        )
        read_s, read = time.process_time() - begin_s, resident_bytes() - start
        dataset = Conversations(corpus.train, tokenizer, MediaSpec(), 128)
        order = Order([len(dataset)], batch_size=16, seed=0, lengths=dataset.lengths())
        loader = Loader(dataset, order, len)
        for number in range(0, order.batches_per_epoch, max(1, order.batches_per_epoch // 50)):
            loader.load(number)
        all_s, held = time.process_time() - begin_s, resident_bytes() - start
    return (
        f"{count:>9,} samples: read in {read_s:.1f} s, with lengths, order and 50 batches {all_s:.1f} s; "
        f"{read / 1e6:.1f} MB held when read, {held / 1e6:.1f} MB at the end, {held / count:.0f} bytes a sample"
    )


def order(count: int) -> str:
    """Batches anywhere in an order of many samples, by length."""
    from muomni.data.order import Order

    lengths = np.random.default_rng(0).integers(1, 200, count)
    start, begin_s = resident_bytes(), time.process_time()
    made = Order([count], batch_size=16, seed=1, lengths=lengths)
    made.batch(5)
    first_s = time.process_time() - begin_s
    for number in range(1000):
        made.batch(number * 7919)
    each_ms = time.process_time() - begin_s - first_s
    return f"{count:>9,} in order: first batch {first_s:.3f} s, any other {each_ms:.1f} ms, {(resident_bytes() - start) / 1e6:.1f} MB"


# 2. Steps


def steps(count: int) -> str:
    """The real loop on a network of a few weights: by how much the process grows from a fifth of the run to
    its end."""
    import torch
    from torch import Tensor, nn

    from muomni.data.loader import Loader
    from muomni.data.order import Order
    from muomni.runtime import Runtime
    from muomni.train import loop
    from muomni.train.objective import Objective, Term
    from muomni.train.settings import TrainSettings

    torch.set_num_threads(1)

    @dataclass
    class Batch:
        sample_ids: list[str]
        x_BD: Tensor

        def to(self, device: torch.device) -> Batch:
            return replace(self, x_BD=self.x_BD.to(device))

    class Line(Objective):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 1)
            self.seen: list[int] = []

        def counts(self, batch: Batch) -> dict[str, int]:
            return {"error": len(batch.x_BD)}

        def forward(self, batch: Batch) -> dict[str, Term]:
            return {"error": Term((self.body(batch.x_BD) - 1).square().sum(), len(batch.x_BD))}

        def after_step(self, step: int) -> None:
            if step % max(1, count // 10) == 0:
                self.seen.append(resident_bytes())

    class Rows:
        def __len__(self) -> int:
            return 100_000

        def name(self, index: int) -> str:
            return f"row {index}"

        def item(self, index: int, rng: np.random.Generator) -> tuple[str, np.ndarray]:
            return self.name(index), rng.normal(size=4).astype(np.float32)

    def collate(rows: list[tuple[str, np.ndarray]]) -> Batch:
        return Batch([name for name, _ in rows], torch.from_numpy(np.stack([x for _, x in rows])))

    objective, begin_s = Line(), time.process_time()
    loader = Loader(Rows(), Order([100_000], batch_size=2, seed=0), collate)
    settings = TrainSettings(
        max_steps=count,
        batch_size=2,
        lr=1e-3,
        warmup_steps=0,
        print_freq=20,
        val_freq=count + 1,
        checkpoint_freq=max(1, count // 4),
    )
    with tempfile.TemporaryDirectory() as folder:
        loop.fit(
            objective,
            loader,
            None,
            settings,
            Runtime(torch.device("cpu"), torch.float32),
            Path(folder),
            name="steps",
        )
    held = objective.seen
    fifth = len(held) // 5
    slope = (held[-1] - held[fifth]) / (count * (len(held) - 1 - fifth) / len(held))
    told = ", ".join(f"{size / 1e6:.1f}" for size in held)
    return f"{count:>9,} steps in {time.process_time() - begin_s:.0f} s: {slope:.1f} bytes a step; MB at each tenth {told}"


# 3. Decoded media


def cache(count: int, workers: int) -> str:
    """Pictures at random through a cache that holds an eighth of them."""
    from muomni.data.cache import Cache
    from muomni.data.loader import Loader
    from muomni.data.order import Order

    size = (112, 112, 3)
    kept = Cache(count * 112 * 112 * 3 // 8)
    part = kept.part()

    class Drawn:
        def __len__(self) -> int:
            return count

        def name(self, index: int) -> str:
            return str(index)

        def item(self, index: int, rng: np.random.Generator) -> int:
            (pixels,) = part.get(index, lambda: [np.full(size, index % 251, np.uint8)])
            return int(pixels[0, 0, 0])

    loader = Loader(Drawn(), Order([count], batch_size=16, seed=0), len, workers=workers)
    start = resident_bytes()
    for _ in loader.numbers(range(2 * loader.order.batches_per_epoch)):
        pass
    return (
        f"{count:>9,} pictures, {workers} workers, two epochs: {(resident_bytes() - start) / 1e6:.1f} MB more in this process, "
        f"{kept.used_bytes / 1e6:.1f} of {kept.budget_bytes / 1e6:.1f} MB in the cache's file, {kept.records:,} pictures"
    )


def rows(*, quick: bool) -> Iterator[list[str]]:
    """The rows, as arguments of a process each."""
    scale = 10 if quick else 1
    for count in (10_000, 100_000, 1_000_000):
        yield ["samples", str(count // scale)]
    yield ["order", str(2_000_000 // scale)]
    yield ["steps", str(1_000 if quick else 100_000)]
    for workers in (0, 2):
        yield ["cache", str(20_000 // scale), str(workers)]


def main() -> None:
    """Print every row, each from a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--row", nargs="+", metavar=("NAME", "NUMBER"), help="this row alone, in this process"
    )
    asked = parser.parse_args()
    if asked.row:
        name, *numbers = asked.row
        print(
            {"samples": samples, "order": order, "steps": steps, "cache": cache}[name](*map(int, numbers)),
            flush=True,
        )
        return
    for row in rows(quick=asked.quick):
        command = [sys.executable, "-m", "benchmarks.memory", "--row", *row]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        print(found.stdout.strip() or f"{' '.join(row)} failed: {found.stderr[-2000:]}", flush=True)


if __name__ == "__main__":
    main()
