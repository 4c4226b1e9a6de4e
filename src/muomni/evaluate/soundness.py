"""Checks before training, on six rows.

No leakage through padding, packing or the causal mask; every parameter that trains gets a gradient.

Every check runs on a few rows, in float32, on a copy that is thrown away and shares only frozen pretrained
parts; weights, generators and data order stay as they were (SPEC G2).
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from muomni.data.loader import Loader
from muomni.errors import DataError
from muomni.evaluate import counting
from muomni.evaluate.facts import Fact
from muomni.models import store
from muomni.nn import recompute
from muomni.runtime import Runtime
from muomni.train import checkpoint, frozen_parts, optim
from muomni.train.eager import SGD
from muomni.train.objective import Objective, Term
from muomni.train.settings import TrainSettings
from muomni.train.step import update

ROWS = 6  # rows of the batch that everything is tried on
DRAWS = 64  # rows that are looked at where these do not show everything
BATCHES = 16  # over an epoch, from which they are taken
SEARCHED = 1024  # rows of an epoch that are searched for targets of a term, where these hold none
PROBES = 6  # targets, and packed documents, that are asked alone
OVERFIT_STEPS = 24
OVERFIT_LR = 2e-3  # at least: a recipe of many thousand steps goes too slowly to show anything in so few
HALVES = (torch.bfloat16, torch.float16)
MOVES = 1e-7  # a loss that moves less than this, of its size, does not depend on what was changed


@dataclass(frozen=True)
class Bench:
    """An objective's copy with a batch to try it on.

    items   the batch's rows; batch is their collation
    """

    objective: Objective
    items: list[Any]
    batch: Any
    loader: Loader[Any, Any]
    run: Runtime
    settings: TrainSettings

    @cached_property
    def has_halves(self) -> bool:
        """Whether something is stored in half precision."""
        return any(
            tensor.dtype in HALVES for tensor in [*self.objective.parameters(), *self.objective.buffers()]
        )

    def collate(self, items: list[Any]) -> Any:
        """A batch of these rows, in its place."""
        return self.loader.collate(items).to(self.run.device)

    @contextlib.contextmanager
    def in_single(self) -> Iterator[None]:
        """A context in which forward and backward compute in float32 (`Single`), where something is stored in
        half precision."""
        if not self.has_halves:  # Single looks at each operation, which takes time
            yield
            return
        # A call of backward() leaves the mode, and checkpointed blocks are computed again within it: they
        # enter the mode again, in this thread, for a mode is of one thread.
        alone = torch.autograd.set_multithreading_enabled(False)
        with alone, Single() as mode, mode.saved(), recompute.within(mode):
            yield

    @torch.no_grad()
    def terms(self, batch: Any) -> dict[str, float]:
        """Each term's sum; nan for one that is announced and not given."""
        self.objective.begin([batch], 1)
        with self.in_single():
            terms_given: dict[str, Term] = self.objective(batch)
        return {
            name: float(terms_given[name].total) if name in terms_given else math.nan
            for name in {**self.objective.counts(batch), **terms_given}
        }

    @torch.no_grad()
    def loss(self, batch: Any) -> float:
        """What is minimised: the terms' means, weighted."""
        self.objective.begin([batch], 1)
        terms: dict[str, Term] = self.objective(batch)
        return sum(float(term.total) * term.weight / max(1, term.count) for term in terms.values())


class Single(TorchFunctionMode):
    """Reckons in float32 with what is stored in half precision (a given language model), layer by layer,
    without a copy of the whole.

    Half precision rounds by the shape of a batch: a row beside others then differs from itself alone, though
    nothing leaks; and gradients of float32 rows beside a table in bf16 are rounded on their way back.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stored: dict[int, Tensor] = {}  # of this operation: by the storage of a copy what it is of

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            args, kwargs = tree_map_only(Tensor, self._single, (args, kwargs or {}))
            return func(*args, **kwargs)
        finally:
            self._stored = {}

    def _single(self, tensor: Tensor) -> Tensor:
        if tensor.dtype not in HALVES:
            return tensor
        copy = tensor.float()
        self._stored[copy.untyped_storage()._cdata] = tensor
        return copy

    def saved(self) -> contextlib.AbstractContextManager[None]:
        """A context in which what the backward needs of a copy is made anew: else all weights would be held
        in float32."""

        def pack(tensor: Tensor) -> Any:
            source = self._stored.get(tensor.untyped_storage()._cdata)
            if source is None:
                return tensor
            return source.detach(), tensor.size(), tensor.stride(), tensor.storage_offset()

        def unpack(packed: Any) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            source, *view = packed
            copy: Tensor = source.float().as_strided(*view)
            return copy

        context: contextlib.AbstractContextManager[None] = torch.autograd.graph.saved_tensors_hooks(
            pack, unpack
        )
        return context


def examine(
    objective: Objective, loader: Loader[Any, Any], settings: TrainSettings, run: Runtime
) -> dict[str, Fact]:
    """The facts behind the gates that are judged before training; on several ranks, all of them call it.

    Raises  DataError (empty) where none of the first samples can be used.
    """
    state = torch.get_rng_state()
    try:
        bench = prepare(objective, loader, settings, run)
        facts = {
            **companions(bench),
            **counts(bench),
            **past_and_future(bench),
            **packing(bench),
            **media(bench),
            **accumulation(bench),
        }
        facts |= {**reach(bench), **round_trip(bench), **overfit(bench)}
    finally:
        torch.set_rng_state(state)
    return facts


def prepare(objective: Objective, loader: Loader[Any, Any], settings: TrainSettings, run: Runtime) -> Bench:
    """A copy in evaluation mode (no dropout, no noise) on the rows that `choose` finds."""
    items = choose(loader, ROWS)
    batch = loader.collate(items).to(run.device)
    twin = frozen_parts.sharing_copy(objective).eval()
    with torch.no_grad():
        twin.warm_start(batch)
    return Bench(twin, items, batch, loader, Runtime(run.device, torch.float32), settings)


def choose(loader: Loader[Any, Any], count: int) -> list[Any]:
    """Usable items of some batches of the first epoch, evenly over the data's sources: they stand one after
    another in the dataset.

    The batches lie far apart: with batches of like length, the first ones may hold no sound, or nothing but
    sounds.
    """
    last = loader.order.batches_per_epoch - 1
    numbers = sorted(set(np.linspace(0, last, min(BATCHES, last + 1)).astype(int).tolist()))
    drawn = {draw.index: draw for number in numbers for draw in loader.order.batch(number)}
    draws = [drawn[index] for index in sorted(drawn)]
    spread = [draws[i] for i in np.linspace(0, len(draws) - 1, min(count, len(draws))).astype(int).tolist()]
    chosen: list[Any] = []
    for draw in [*spread, *(draw for draw in draws if draw not in spread)]:
        if len(chosen) == count:
            break
        try:
            chosen.append(loader.item(draw))
        except DataError:
            continue  # the loader counts and names it in its turn
    if not chosen:
        raise DataError(
            "empty",
            f"none of the {len(draws)} samples that were tried can be used",
            hint="run muomni data check on the sources",
        )
    return chosen


def companions(bench: Bench) -> dict[str, Fact]:
    """Padding invariance: the rows alone, unpadded, have the losses that they have together; joint terms are
    padded further instead."""
    together = bench.terms(bench.batch)
    apart: dict[str, float] = {}
    for item in bench.items:
        for name, total in bench.terms(bench.collate([item])).items():
            apart[name] = apart.get(name, 0.0) + total
    joint = bench.objective.joint
    wider = bench.objective.padded(bench.batch)
    if wider is not None:
        padded = bench.terms(wider)
        apart |= {name: padded[name] for name in joint}
    counts = bench.objective.counts(bench.batch)
    lost = sorted(counts.keys() ^ bench.objective(bench.batch).keys())
    return {
        "padding_error": Fact(
            max(relative(apart[name], total) for name, total in together.items()), len(bench.items)
        ),
        "lost_terms": Fact(float(len(lost)), len(counts), note=", ".join(lost)),
    }


def counts(bench: Bench) -> dict[str, Fact]:
    """How many counts of the batch are not what a hand counts: targets announced and given (by which a loss
    is divided), and contents.

    No fact for an objective that evaluate.counting does not know: the gate is red then.
    """
    by_hand = counting.by_hand(bench.objective, bench.batch)
    if by_hand is None:
        return {}
    targets, contents = by_hand
    bench.objective.begin([bench.batch], 1)
    with torch.no_grad():
        forward_counts = {name: float(term.count) for name, term in bench.objective(bench.batch).items()}
    counted: dict[str, Mapping[str, float]] = {
        "announced": bench.objective.counts(bench.batch),
        "given": forward_counts,
        "held": bench.objective.contents(bench.batch),
    }
    wrong = [
        f"{name} {what}: {values.get(name, math.nan):g} for {number:g}"
        for what, values in counted.items()
        for name, number in (contents if what == "held" else targets).items()
        if relative(float(values.get(name, math.nan)), float(number)) > MOVES
    ]
    return {"count_error": Fact(float(len(wrong)), sum(map(len, counted.values())), note="; ".join(wrong))}


def past_and_future(bench: Bench) -> dict[str, Fact]:
    """Causality: no target depends on what stands at its own place or later. Shift: each depends on what
    stands right before it."""
    leak, moved, count = 0.0, 0, 0
    for probe in bench.objective.probes(bench.batch, PROBES, np.random.default_rng(0)):
        asked, future, past = (bench.terms(batch) for batch in (probe.asked, probe.future, probe.past))
        for term in probe.terms:
            leak = max(leak, relative(future[term], asked[term]))
            moved += relative(past[term], asked[term]) > MOVES
            count += 1
    return {"future_leak": Fact(leak, count), "past_seen": Fact(moved / count, count)} if count else {}


def packing(bench: Bench) -> dict[str, Fact]:
    """Packing: a document's loss is its own, whatever stands beside it in its row, and equals that in a row
    of its own.

    Joint terms, in which rows look at each other, are left out.
    """
    if type(bench.objective).packing_pairs is Objective.packing_pairs:
        return {}
    rng = np.random.default_rng(0)
    pairs = bench.objective.packing_pairs(bench.batch, PROBES, rng)
    if not pairs:  # rows of many documents may be rare
        pairs = bench.objective.packing_pairs(bench.collate(choose(bench.loader, DRAWS)), PROBES, rng)
    joint = bench.objective.joint
    errors = []
    for one, other in pairs:
        first, second = (
            {name: total for name, total in bench.terms(batch).items() if name not in joint}
            for batch in (one, other)
        )
        errors.append(total_error(first, second))
    return {"packing_error": Fact(max(errors, default=0.0), len(errors))}


def media(bench: Bench) -> dict[str, Fact]:
    """Media reach: with other pictures, or other sounds, the loss is another; counts the kinds for which it
    is not."""
    plain = bench.terms(bench.batch)
    others = bench.objective.media_swaps(bench.batch)
    blind = [kind for kind, batch in others.items() if total_error(plain, bench.terms(batch)) <= MOVES]
    return {"blind_media": Fact(float(len(blind)), len(others), note=", ".join(blind))} if others else {}


def accumulation(bench: Bench) -> dict[str, Fact]:
    """The update by one batch and by two micro-batches of unequal size and length, taken by the step itself:
    the same to the rounding of float32, whatever the weights are stored in."""
    if len(bench.items) < 2:
        return {"accumulation_error": Fact(0.0, len(bench.items))}
    order = sorted(
        range(len(bench.items)),
        key=lambda row: sum(bench.objective.counts(bench.collate([bench.items[row]])).values()),
    )
    cut = max(1, len(order) // 3)
    parts = [bench.collate([bench.items[row] for row in rows]) for rows in (order[:cut], order[cut:])]
    whole, halves = gradient(bench, [bench.batch]), gradient(bench, parts)
    return {
        "accumulation_error": Fact(
            float((whole - halves).norm() / whole.norm().clamp(min=1e-12)), len(bench.items)
        )
    }


def gradient(bench: Bench, micro_batches: Sequence[Any]) -> Tensor:
    """All gradients of one update as one vector, as the optimizer is given them."""
    twin = frozen_parts.sharing_copy(bench.objective)
    parameters = [p for p in twin.parameters() if p.requires_grad]
    unclipped = bench.settings.model_copy(update={"max_grad_norm": math.inf, "explosion_norm": math.inf})
    seen: list[Tensor] = []
    still = SGD(parameters, lr=0.0)
    still.register_step_pre_hook(
        lambda *_: seen.extend(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters)
    )
    scaler = torch.amp.GradScaler(bench.run.device.type, enabled=False)
    with bench.in_single():
        update(twin, twin, still, scaler, micro_batches, unclipped, bench.run)
    return torch.cat([g.flatten() for g in seen])


def reach(bench: Bench) -> dict[str, Fact]:
    """Gradient reach: each term that is minimised teaches what it is there to teach.

    A term that has no targets in the bench's rows (a task of a small weight) is asked on others of the first
    epoch. Where SEARCHED of them hold none either, nothing shows what it teaches, and it counts as lost.
    """
    named = {name: p for name, p in bench.objective.named_parameters() if p.requires_grad}
    reached, absent = _reach_of(bench, bench.batch, named)
    searched = len(bench.items)
    for items in _rows_of_an_epoch(bench.loader) if absent else ():
        searched += len(items)
        batch = bench.collate(items)
        counts = bench.objective.counts(batch)
        if any(counts.get(name) for name in absent):
            found, _ = _reach_of(bench, batch, named)
            reached |= {name: found[name] for name in absent & found.keys()}
            absent -= found.keys()
        if not absent:
            break
    expected = {name: bench.objective.expected_gradients().get(name, ("*",)) for name in reached}
    lost = [
        f"{name} does not reach {pattern}"
        for name, patterns in expected.items()
        for pattern in patterns
        if any(fnmatchcase(other, pattern) for other in named)
        and not any(fnmatchcase(other, pattern) for other in reached[name])
    ]
    lost += [f"{name} has no targets in {searched:,} rows" for name in sorted(absent)]
    return {"lost_gradients": Fact(float(len(lost)), len(reached) + len(absent), note="; ".join(lost))}


def _reach_of(bench: Bench, batch: Any, named: Mapping[str, Tensor]) -> tuple[dict[str, set[str]], set[str]]:
    """The parameters that each weighted term of a batch reaches, and the weighted terms without targets in
    it."""
    bench.objective.begin([batch], 1)
    terms: dict[str, Term] = bench.objective(batch)
    weighted = {name: term for name, term in terms.items() if term.weight}
    reached = {name: _reached(term, named) for name, term in weighted.items() if term.count}
    return reached, weighted.keys() - reached.keys()


def _rows_of_an_epoch(loader: Loader[Any, Any]) -> Iterator[list[Any]]:
    """Up to SEARCHED rows of the first epoch, as training draws them, ROWS at a time; bad ones are left
    out."""
    order = loader.order
    count = min(order.batches_per_epoch, -(-SEARCHED // order.batch_size))
    items: list[Any] = []
    for number in np.linspace(0, order.batches_per_epoch - 1, count).astype(int).tolist():
        for draw in order.batch(number):
            try:
                items.append(loader.item(draw))
            except DataError:
                continue  # the loader counts and names it in its turn
            if len(items) == ROWS:
                yield items
                items = []
    if items:
        yield items


def _reached(term: Term, named: Mapping[str, Tensor]) -> set[str]:
    """The parameters whose gradient by this term is not zero."""
    if not term.total.requires_grad:
        return set()
    gradients = torch.autograd.grad(term.total, list(named.values()), retain_graph=True, allow_unused=True)
    return {name for name, g in zip(named, gradients, strict=True) if g is not None and bool(g.any())}


def round_trip(bench: Bench) -> dict[str, Fact]:
    """Save-load equality: a checkpoint, loaded into a copy in which all that it holds was wiped, gives the
    same losses to the last bit."""
    plain = bench.terms(bench.batch)
    twin = frozen_parts.sharing_copy(bench.objective)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / checkpoint.name(0)
        checkpoint.save(path, bench.objective, checkpoint.State({"step": 0}, {}, {}, {}))
        for tensor in frozen_parts.checkpoint_state(twin).values():
            tensor.zero_()
        checkpoint.load(path, twin, bench.run.device)
    again = replace(bench, objective=twin).terms(bench.batch)
    return {"reload_error": Fact(total_error(plain, again), len(plain))}


def overfit(bench: Bench) -> dict[str, Fact]:
    """A few rows are learned by heart in a few real updates; meanwhile all that is to learn is taught, and
    nothing moves that is frozen."""
    settings = bench.settings.model_copy(update={"lr": max(bench.settings.lr, OVERFIT_LR)})
    mine = replace(bench, objective=frozen_parts.sharing_copy(bench.objective))
    twin, batch = mine.objective, bench.batch
    account = optim.select(twin, settings)
    # What rests at first must not move either.
    trains = {row.name for row in account if row.trains and not row.from_step}
    optimizer = optim.make_optimizer(twin, account, settings)
    scaler = torch.amp.GradScaler(bench.run.device.type, enabled=False)
    taught: set[str] = set()
    for name in trains:  # decay moves weights that nothing teaches, so it is the gradient that is looked at
        hook = _noting(taught, name)
        twin.get_parameter(name).register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    start = _watched(twin, trains)
    before = mine.loss(batch)
    twin.train()
    awake = [name for name, part in twin.named_modules() if part.training and _is_frozen(part)]
    for step in range(1, OVERFIT_STEPS + 1):
        if not update(twin, twin, optimizer, scaler, [batch], settings, bench.run).skipped:
            twin.after_step(step)
    twin.eval()
    now = _watched(twin, trains)
    moved = {name for name, digest in start.items() if digest != now[name]}
    still = sorted(_without_gradient(bench, trains - taught) | (twin.learning_buffers().keys() - moved))
    unfrozen = [*sorted(moved - twin.learning_buffers().keys()), *awake]
    return {
        "overfit_ratio": Fact(mine.loss(batch) / before if before else math.nan, len(bench.items)),
        "still_parameters": Fact(
            float(len(still)), len(trains) + len(twin.learning_buffers()), note=", ".join(still[:4])
        ),
        "unfrozen": Fact(float(len(unfrozen)), len(account) - len(trains), note=", ".join(unfrozen[:4])),
    }


def _without_gradient(bench: Bench, names: set[str]) -> set[str]:
    """Those of the parameters that other rows do not reach either: six may hold no sound."""
    others = choose(bench.loader, DRAWS) if names else []
    for first in range(0, len(others), ROWS):
        if names:
            batch = bench.collate(others[first : first + ROWS])
            bench.objective.begin([batch], 1)
            terms: dict[str, Term] = bench.objective(batch)
            named = {name: bench.objective.get_parameter(name) for name in names}
            names = names - set[str]().union(
                *(_reached(term, named) for term in terms.values() if term.weight)
            )
    return names


def _noting(taught: set[str], name: str) -> Callable[[Tensor], None]:
    def note(parameter: Tensor) -> None:
        if parameter.grad is not None and bool(parameter.grad.any()):
            taught.add(name)

    return note


def _watched(objective: Objective, trains: set[str]) -> dict[str, str]:
    """Digests of what must move without a gradient, and of what must not move at all."""
    resting = {name: p for name, p in objective.named_parameters() if name not in trains}
    return {
        name: store.digest_of(tensor) for name, tensor in {**resting, **objective.learning_buffers()}.items()
    }


def _is_frozen(part: torch.nn.Module) -> bool:
    parameters = list(part.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def relative(one: float, other: float) -> float:
    """The difference of two numbers by their size; infinite where one is not finite."""
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.inf
    return abs(one - other) / max(abs(one), abs(other), 1e-6)


def total_error(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The largest relative difference among equal terms."""
    return max(
        (relative(value, other[name]) for name, value in one.items() if name in other), default=math.inf
    )
