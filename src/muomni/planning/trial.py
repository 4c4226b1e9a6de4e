"""Trial updates of a stage that is built but not trained: what they hold, how much they compute, how long they take."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from muomni.data.loader import Loader
from muomni.data.readers import Corpus
from muomni.errors import DataError
from muomni.runtime import Runtime
from muomni.stages.stage import Stage, StageSettings, Training
from muomni.train import cost, optim
from muomni.train.flops import UpdateFlops
from muomni.train.meter import Meter
from muomni.train.step import update
from muomni.train.timing import timed

# A dry run of the whole batch that would take longer (on the stage's own data; on assumed ones) is made on fewer rows, and drawn out
# in a line.
DRY_RUN_S, ASSUMED_S = 4.0, 0.3
LIMIT_S = 60.0  # that the fewest updates of a probe may take
SHAKES = 12  # updates of other shapes, after which the allocator's pieces and the kernels of each shape are mostly there


Number = TypeVar("Number", int, float)


@dataclass
class Built:
    """A stage as a survey builds it. `whole` counts what the sources hold, `scale` how many times the part that was built."""

    stage: Stage
    settings: StageSettings
    plan: Training[Any]
    run: Runtime
    rows: list[optim.Row]
    whole: Corpus
    scale: float
    is_assumed: bool
    notes: list[str]

    @property
    def samples(self) -> int:
        """Samples of a pass through the whole of the data."""
        return round(self.plan.train.order.samples_per_epoch * self.scale)

    @property
    def updates(self) -> int:
        """Updates of the stage."""
        settings = self.settings
        ends = [] if settings.max_steps is None else [settings.max_steps]
        if settings.max_epochs is not None:
            per_update = settings.batch_size * settings.gradient_accumulation_steps
            ends.append(math.ceil(settings.max_epochs * (settings.samples_per_epoch or self.samples) / per_update))
        return min(ends)


class Trial:
    """Updates of a built stage for their cost: memory of the largest batch, arithmetic of a typical one."""

    def __init__(self, built: Built) -> None:
        self.built = built
        settings, plan, run = built.settings, built.plan, built.run
        self.optimizer = optim.make_optimizer(plan.objective, built.rows, settings)
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
        optim.set_lr(self.optimizer, 1e-3)
        self.highest = 0  # bytes of any update so far
        typical, largest = typical_and_largest(plan.train)
        self.items = items_of(plan.train, largest)
        typical_items = self.items if typical == largest else items_of(plan.train, typical)
        self.typical = self.batch(typical_items)
        plan.objective.settle(self.typical)  # codebooks that start late would leave their share of an update unseen
        make_state(self.optimizer)
        self.rows = len(self.items)
        most, less = self._largest()
        self.per_row = max(0.0, (most[1] - less[1]) / max(1, most[0] - less[0]))
        self.rows_run = most[0]
        self.fixed = most[1] - self.per_row * self.rows_run
        some = some_of(typical_items, min(self.rows_run, len(typical_items)))
        counted = self._counted(cost.flops_of_update, some)
        self.flops = counted * len(typical_items) / len(some) * settings.gradient_accumulation_steps
        self.reckoner = UpdateFlops()
        self.reckoner.add(plan.objective.sizes(self.batch(some)), counted)
        self.valid_bytes = self._validation() if plan.valid is not None else 0
        if not built.is_assumed:
            self._shake()

    def _largest(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and bytes of the largest batch, or as many of its rows as time allows, and of fewer."""
        allowed_s = ASSUMED_S if self.built.is_assumed else DRY_RUN_S
        ran = []
        count = 1
        while True:
            begin = _own_s()
            ran.append((count, self.of(some_of(self.items, count))))
            more = min(self.rows, max(4, int(count * allowed_s / max(1e-3, _own_s() - begin))))
            if count == self.rows or (count > 1 and more < 1.5 * count):
                break
            count = min(more, 8 * count)  # one moment is not to decide
        if ran[-1][0] < self.rows and ran[-2][0] == 1:
            # From one row to two more than a row is added: losses taken in chunks hold two of them from the second chunk on.
            ran.insert(-1, (2, self.of(some_of(self.items, 2))))
        return ran[-1], ran[-2] if len(ran) > 1 else ran[-1]

    def batch(self, items: Sequence[Any]) -> Any:
        """A batch on the device."""
        return self.built.plan.train.collate(list(items)).to(self.built.run.device)

    def of(self, items: Sequence[Any]) -> int:
        """The most bytes of one update by one micro-batch."""
        found = self._counted(cost.of_update, items)
        self.highest = max(self.highest, found)
        return found

    def _counted(self, count: Callable[..., Number], items: Sequence[Any]) -> Number:
        built = self.built
        return count(built.plan.objective, self.optimizer, [self.batch(items)], built.settings, built.run, self.scaler)

    def peak(self, batch_size: int) -> float:
        """The most bytes beside weights and optimizer state in an update of so many rows."""
        return self.fixed + self.per_row * batch_size

    def _shake(self) -> None:
        """Updates of other shapes, uncounted: kernels and the allocator keep something for each that they meet."""
        built, begin = self.built, _own_s()
        for number in range(SHAKES):
            batch = self.batch(some_of(items_of(built.plan.train, number), min(self.rows_run, built.settings.batch_size)))
            update(built.plan.objective, built.plan.objective, self.optimizer, self.scaler, [batch], built.settings, built.run)
            built.plan.objective.after_step(number + 2)
            if _own_s() - begin > DRY_RUN_S:
                break

    def _validation(self) -> int:
        """The most bytes while the largest held-out batch is judged, in a line through two sizes."""
        valid = self.built.plan.valid
        assert valid is not None
        items = items_of(valid, typical_and_largest(valid)[1])
        counts = sorted({min(self.rows_run, len(items)), max(1, min(self.rows_run, len(items)) // 2)})
        peaks = []
        for count in counts:
            batch = valid.collate(some_of(items, count)).to(self.built.run.device)
            peaks.append(cost.of_validation(self.built.plan.objective, batch, self.built.run))
        slope = (peaks[-1] - peaks[0]) / max(1, counts[-1] - counts[0])
        return int(peaks[-1] + slope * (len(items) - counts[-1]))


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer make what it keeps, by a step along nothing."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _own_s() -> float:
    """Seconds that this process has computed, whatever else the machine does."""
    return time.process_time() / torch.get_num_threads()


def typical_and_largest(loader: Loader[Any, Any], most: int = 4000) -> tuple[int, int]:
    """The numbers of the batches of an epoch with the median and the most padded elements, as far as lengths tell."""
    order = loader.order
    count = min(order.batches_per_epoch, most)
    if order.lengths is None:
        return 0, 0
    draws = [order.batch(number) for number in range(count)]
    padded = [len(batch) * int(order.lengths[[draw.index for draw in batch]].max()) for batch in draws]
    by_size = np.argsort(padded, kind="stable")
    return int(by_size[len(by_size) // 2]), int(by_size[-1])


def items_of(loader: Loader[Any, Any], number: int) -> list[Any]:
    """The readable items of a batch, the longest last.

    Raises  the last DataError where none is readable.
    """
    items, error = [], None
    lengths = loader.order.lengths
    for draw in sorted(loader.order.batch(number), key=lambda draw: 0 if lengths is None else int(lengths[draw.index])):
        try:
            items.append(loader.dataset.item(draw.index, np.random.default_rng([draw.epoch, draw.index])))
        except DataError as bad:
            error = bad
    if not items:
        assert error is not None
        raise error
    return items


def some_of(items: list[Any], count: int) -> list[Any]:
    """So many of the items, or all, evenly, the last among them."""
    count = min(count, len(items))
    return [items[int(place)] for place in np.linspace(len(items) - 1, 0, count).round()][::-1]


def probe(built: Built, trial: Trial, count: int, most_s: float) -> dict[str, Any] | None:
    """Real updates on real batches, timed as a run times its own; None where none are wanted.

    Where data are assumed and a whole batch would take too long, rows of it are timed and the time is drawn out in
    proportion.
    Gives   update_s, the median; updates_timed, rows_timed; and what train.meter gives of a run, in the same units.
    """
    settings, plan, run = built.settings, built.plan, built.run
    if not count:
        return None
    accumulation, rows = settings.gradient_accumulation_steps, settings.batch_size
    loader, share = plan.train, 1.0
    if built.is_assumed:
        loader = Loader(plan.train.dataset, plan.train.order, plan.train.collate)
        share = trial.rows_run / rows
    stream = loader.numbers(range(10**6)) if share == 1 else None
    # Where rows are drawn out, one update may be all that there is time for: what the trial counted has to do.
    meter = Meter(plan.objective, run, reckoner=None if stream else trial.reckoner, counts=stream is not None)
    made = 0

    def one() -> float | None:
        nonlocal made
        start, made = time.perf_counter(), made + 1
        if stream is None:
            batches = [plan.train.collate(some_of(trial.items, trial.rows_run))]
        else:
            batches = [batch for batch in (next(stream).batch for _ in range(accumulation)) if batch is not None]
        with meter.update(batches, time.perf_counter() - start):
            moved = [batch.to(run.device) for batch in batches]
            update(plan.objective, plan.objective, trial.optimizer, trial.scaler, moved, settings, run)
            if run.device.type == "cuda":
                torch.cuda.synchronize(run.device)
        with meter.more():
            plan.objective.after_step(made)
        return None if meter.is_counted else time.perf_counter() - start  # the first is: caches fill, kernels are made

    if stream is None:
        took = timed(one, most=count, enough_s=ASSUMED_S, limit_s=ASSUMED_S)
    else:
        took = timed(one, most=count, enough_s=most_s, limit_s=max(most_s, LIMIT_S))
    factor = 1.0 if stream is not None else accumulation / share
    found: dict[str, Any] = meter.read()
    found.pop("peak_memory_mb")
    if stream is None:
        found["data_wait"] = None
    return {
        **found,
        "update_s": statistics.median(took) * factor,
        "updates_timed": len(took),
        "rows_timed": rows if stream is not None else trial.rows_run,
    }
