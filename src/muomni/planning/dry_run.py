"""Dry run: updates of an untrained stage, for their memory, FLOPs and time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from muomni.data.loader import Loader
from muomni.data.readers import Corpus
from muomni.data.token_rows import TokenRows
from muomni.errors import DataError
from muomni.runtime import Runtime
from muomni.stages.stage import Stage, StageSettings, Training
from muomni.train import cost, optim
from muomni.train.flops import UpdateFlops
from muomni.train.meter import Meter
from muomni.train.step import update
from muomni.train.timing import timed

# A dry run of the whole batch that would take longer (on the stage's own data; on assumed ones) is made on
# fewer rows, and drawn out in a line.
DRY_RUN_S, ASSUMED_S = 4.0, 0.3
LIMIT_S = 60.0  # that the fewest updates of a probe may take
SHAKES = 12  # updates of other shapes, after which the allocator's pieces and the kernels of each shape are mostly there


Number = TypeVar("Number", int, float)


@dataclass
class SurveyedStage:
    """A stage as a survey builds it. `whole` counts what the sources hold, `scale` how many times the part
    that was built."""

    stage: Stage
    settings: StageSettings
    training: Training[Any]
    run: Runtime
    rows: list[optim.Row]
    whole: Corpus
    scale: float
    is_assumed: bool
    notes: list[str]

    @property
    def samples(self) -> int:
        """Samples of a pass through the whole of the data."""
        return round(self.training.train.order.samples_per_epoch * self.scale)

    @property
    def updates(self) -> int:
        """Updates of the stage."""
        settings = self.settings
        ends = [] if settings.max_steps is None else [settings.max_steps]
        if settings.max_epochs is not None:
            per_update = settings.batch_size * settings.gradient_accumulation_steps
            ends.append(
                math.ceil(settings.max_epochs * (settings.samples_per_epoch or self.samples) / per_update)
            )
        return min(ends)


class DryRun:
    """Updates of a built stage for their cost: memory of the largest batch, arithmetic of a typical one."""

    def __init__(self, surveyed: SurveyedStage) -> None:
        self.surveyed = surveyed
        settings, plan, run = surveyed.settings, surveyed.training, surveyed.run
        self.optimizer = optim.make_optimizer(plan.objective, surveyed.rows, settings)
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
        optim.set_lr(self.optimizer, 1e-3)
        self.highest = 0  # bytes of any update so far
        typical, largest = typical_and_largest(plan.train)
        self.items = items_of(plan.train, largest)
        typical_items = self.items if typical == largest else items_of(plan.train, typical)
        self.typical = self.batch(typical_items)
        plan.objective.warm_start(
            self.typical
        )  # codebooks that start late would leave their share of an update unseen
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
        if not surveyed.is_assumed:
            self._shake()

    def _largest(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and bytes of the largest batch, or as many of its rows as time allows, and of fewer."""
        allowed_s = ASSUMED_S if self.surveyed.is_assumed else DRY_RUN_S
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
            # From one row to two more than a row is added: losses taken in chunks hold two of them from the
            # second chunk on.
            ran.insert(-1, (2, self.of(some_of(self.items, 2))))
        return ran[-1], ran[-2] if len(ran) > 1 else ran[-1]

    def batch(self, items: Sequence[Any]) -> Any:
        """A batch on the device."""
        return self.surveyed.training.train.collate(list(items)).to(self.surveyed.run.device)

    def of(self, items: Sequence[Any]) -> int:
        """The most bytes of one update by one micro-batch."""
        bytes_counted = self._counted(cost.of_update, items)
        self.highest = max(self.highest, bytes_counted)
        return bytes_counted

    def _counted(self, count: Callable[..., Number], items: Sequence[Any]) -> Number:
        surveyed = self.surveyed
        return count(
            surveyed.training.objective,
            self.optimizer,
            [self.batch(items)],
            surveyed.settings,
            surveyed.run,
            self.scaler,
        )

    def peak(self, batch_size: int) -> float:
        """The most bytes beside weights and optimizer state in an update of so many rows."""
        return self.fixed + self.per_row * batch_size

    def _shake(self) -> None:
        """Updates of other shapes, uncounted: kernels and the allocator keep something for each that they
        meet."""
        built, begin = self.surveyed, _own_s()
        for number in range(SHAKES):
            batch = self.batch(
                some_of(items_of(built.training.train, number), min(self.rows_run, built.settings.batch_size))
            )
            update(
                built.training.objective,
                built.training.objective,
                self.optimizer,
                self.scaler,
                [batch],
                built.settings,
                built.run,
            )
            built.training.objective.after_step(number + 2)
            if _own_s() - begin > DRY_RUN_S:
                break

    def _validation(self) -> int:
        """The most bytes while the largest held-out batch is judged, in a line through two sizes."""
        valid = self.surveyed.training.valid
        assert valid is not None
        items = items_of(valid, typical_and_largest(valid)[1])
        counts = sorted({min(self.rows_run, len(items)), max(1, min(self.rows_run, len(items)) // 2)})
        peaks = []
        for count in counts:
            batch = valid.collate(some_of(items, count)).to(self.surveyed.run.device)
            peaks.append(cost.of_validation(self.surveyed.training.objective, batch, self.surveyed.run))
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
    """The numbers of the batches of an epoch with the median and the most padded elements, as far as lengths
    tell."""
    order = loader.order
    count = min(order.batches_per_epoch, most)
    lengths = _lengths(loader)
    if lengths is None:
        return 0, 0
    draws = [order.batch(number) for number in range(count)]
    padded = [len(batch) * int(lengths[[draw.index for draw in batch]].max()) for batch in draws]
    by_size = np.argsort(padded, kind="stable")
    return int(by_size[len(by_size) // 2]), int(by_size[-1])


def _lengths(loader: Loader[Any, Any]) -> NDArray[Any] | None:
    """Elements of each row, where they are known without reading it; batches of tokens are of any lengths."""
    return loader.dataset.lengths() if isinstance(loader.dataset, TokenRows) else loader.order.lengths


def items_of(loader: Loader[Any, Any], number: int) -> list[Any]:
    """The readable items of a batch, the longest last.

    Raises  the last DataError where none is readable.
    """
    items, error = [], None
    lengths = _lengths(loader)
    for draw in sorted(
        loader.order.batch(number), key=lambda draw: 0 if lengths is None else int(lengths[draw.index])
    ):
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


def probe(surveyed: SurveyedStage, dry_run: DryRun, count: int, most_s: float) -> dict[str, Any] | None:
    """Real updates on real batches, timed as a run times its own; None where none are wanted.

    Where data are assumed and a whole batch would take too long, rows of it are timed and the time is drawn
    out in proportion.
    Gives   update_s, the median; updates_timed, rows_timed; and what train.meter gives of a run, in the same
            units.
    """
    settings, plan, run = surveyed.settings, surveyed.training, surveyed.run
    if not count:
        return None
    accumulation, rows = settings.gradient_accumulation_steps, settings.batch_size
    loader, share = plan.train, 1.0
    if surveyed.is_assumed:
        loader = Loader(plan.train.dataset, plan.train.order, plan.train.collate)
        share = dry_run.rows_run / rows
    stream = loader.numbers(range(10**6)) if share == 1 else None
    # Where rows are drawn out, one update may be all that there is time for: what the trial counted has to
    # do.
    meter = Meter(
        plan.objective, run, reckoner=None if stream else dry_run.reckoner, counts=stream is not None
    )
    updates_made = 0

    def one() -> float | None:
        nonlocal updates_made
        start, updates_made = time.perf_counter(), updates_made + 1
        if stream is None:
            batches = [plan.train.collate(some_of(dry_run.items, dry_run.rows_run))]
        else:
            batches = [
                batch for batch in (next(stream).batch for _ in range(accumulation)) if batch is not None
            ]
        with meter.update(batches, time.perf_counter() - start):
            moved = [batch.to(run.device) for batch in batches]
            update(plan.objective, plan.objective, dry_run.optimizer, dry_run.scaler, moved, settings, run)
            if run.device.type == "cuda":
                torch.cuda.synchronize(run.device)
        with meter.more():
            plan.objective.after_step(updates_made)
        return (
            None if meter.is_counted else time.perf_counter() - start
        )  # the first is: caches fill, kernels are made

    if stream is None:
        took = timed(one, most=count, enough_s=ASSUMED_S, limit_s=ASSUMED_S)
    else:
        took = timed(one, most=count, enough_s=most_s, limit_s=max(most_s, LIMIT_S))
    factor = 1.0 if stream is not None else accumulation / share
    speed: dict[str, Any] = meter.read()
    speed.pop("peak_memory_mb")
    if stream is None:
        speed["data_wait"] = None
    return {
        **speed,
        "update_s": statistics.median(took) * factor,
        "updates_timed": len(took),
        "rows_timed": rows if stream is not None else dry_run.rows_run,
    }
