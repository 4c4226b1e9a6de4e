"""Checks of a run's record (train.run_record): properties that hold for any correct loop, not its formulas
again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from muomni.data.order import Order
from muomni.evaluate.facts import Fact
from muomni.train.run_record import WRAPS, Drawn, Probes, Rates
from muomni.train.settings import TrainSettings

CLOSE = 1e-6  # of a rate: float64 rounds far below


def order(drawn: Drawn, order: Order, samples: int) -> dict[str, Fact]:
    """How many samples were drawn too often or too seldom, batches left out or taken twice, samples nobody
    accounts for.

    Takes   order: asked for the sizes of its sources and their draws an epoch only; samples: used and set
            aside, as the loop counts.
    After whole epochs a source of weight 1 has given each sample that often; within one, samples differ by 1
    at most. With other weights a source is gone through in rounds of its own: after E epochs of D draws from
    N samples each was drawn between floor(ED / N) and ceil(ED / N) times, and within the next epoch up to
    ceil((E + 1) D / N). The numbers of batches must follow one another besides: within the first epoch a
    sample that is passed over can't be told from one that is still to come.
    """
    epochs, rest = divmod(drawn.total, order.samples_per_epoch)
    wrong, note, first = 0, "", 0
    for size, draws in zip(order.sizes, order.draws, strict=True):
        if size:
            least = epochs * draws // size
            most = -(-(epochs + bool(rest)) * draws // size)
            above_N = (drawn.counts_N[first : first + size].astype(np.int64) - least) % WRAPS
            odd = np.flatnonzero(above_N > most - least)
            total = least * size + int(above_N.sum())
            wrong += len(odd) + (not epochs * draws <= total <= (epochs + bool(rest)) * draws)
            note = note or (f"sample {first + int(odd[0])} not {least} to {most} times" if len(odd) else "")
        first += size
    astray = abs(drawn.total - samples)
    parts = [
        note,
        f"{drawn.gaps} batches out of turn" if drawn.gaps else "",
        f"{astray} samples unaccounted for" if astray else "",
    ]
    errors = wrong + drawn.gaps + astray + (len(drawn.counts_N) != first)
    return {"order_error": Fact(float(errors), drawn.total, note="; ".join(filter(None, parts)))}


def schedule(rates: Rates, settings: TrainSettings, highest: float, *, is_whole: bool) -> dict[str, Fact]:
    """How many properties of its schedule the rates of a run break.

    Takes   highest: the largest rate that the recipe gives to any parameter; is_whole: whether the run came
            to its last step.
    A run whose batch became another one is told by what lies before and after that: its mean may be any.
    """
    floor, mean, n = settings.min_lr_ratio * highest, rates.area / max(1, rates.after), rates.after
    is_flat = settings.schedule == "constant"
    falling = (
        settings.decay_share if settings.schedule == "wsd" else 1.0
    )  # share of the run; cosine and line fall through half its height
    middle = highest if is_flat else highest - falling * (highest - floor) / 2
    ends = is_whole and n >= 2
    broken = {
        "no update was noted": not rates.updates,
        f"the first rate is {rates.first:.4g}": not _close(
            rates.first * max(1, settings.warmup_steps), highest
        ),
        f"{rates.dips} falls within the warm-up": rates.dips > 0,
        f"{rates.rises} rises after the warm-up": rates.rises > 0,
        f"the highest rate is {rates.peak:.4g}, not {highest:.4g}": rates.peak > highest * (1 + CLOSE)
        or (n > 0 and not _close(rates.peak, highest)),
        f"a constant rate falls {rates.falls} times": is_flat and rates.falls > 0,
        "the rate never falls": ends and not is_flat and floor < highest and not rates.falls,
        f"the last rate is {rates.last:.4g}": ends
        and not _close(rates.last, highest if is_flat else floor, highest),
        f"the mean after the warm-up is {mean:.4g}, not {middle:.4g}": ends
        and not rates.jumps
        and abs(mean - middle) > highest * (CLOSE + (0 if is_flat else 1 / n)),
    }
    broken_rules = [name for name, is_broken in broken.items() if is_broken]
    return {"rate_errors": Fact(float(len(broken_rules)), rates.updates, note="; ".join(broken_rules))}


def _close(one: float, other: float, scale: float | None = None) -> bool:
    return abs(one - other) <= CLOSE * (other if scale is None else scale)


def average(
    tensors: Sequence[torch.Tensor], decay: float, notes: Mapping[str, Sequence[float]]
) -> dict[str, Fact]:
    """How far the weights in place are from their average, as its probes tell, by how far the raw ones were:
    0 the average, 1 the raw."""
    if not notes:
        return {}
    now, mean, raw = (
        torch.tensor(values, dtype=torch.float64)
        for values in (Probes(tensors, decay).now_P().tolist(), *_of(notes))
    )
    apart = float((raw - mean).norm()) + CLOSE * float(mean.norm())  # where they are one, float32 rounds
    error = float((now - mean).norm()) / apart if apart else math.nan
    return {"ema_error": Fact(error, len(now))}


def _of(notes: Mapping[str, Sequence[float]]) -> tuple[Sequence[float], Sequence[float]]:
    return notes["mean"], notes["raw"]
