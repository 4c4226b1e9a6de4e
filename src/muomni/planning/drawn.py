"""Cost of a stage whose pretrained networks are not on disk, extrapolated from 1 and 2 of their blocks.

Every count is linear in the number of blocks: weights, gradients, optimizer state, FLOPs, and the memory of an
update in each of its phases; the largest phase is the peak. The words that a small vocabulary leaves out are
added: embedding tables by count, logits by a trial of the loss alone.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from muomni import runtime
from muomni.data.sample import Sample
from muomni.models.decoder import DecoderConfig
from muomni.nn.head import linear_cross_entropy
from muomni.planning import accounts, bases, building, holding
from muomni.planning.bases import CUT_VOCABULARY, Absent
from muomni.planning.building import Ready, Task
from muomni.planning.trial import Built, items_of, make_state, some_of, typical_and_largest
from muomni.stages.recipe import Recipe
from muomni.stages.stage import Inputs
from muomni.tokens.chat import IGNORE
from muomni.train import account, cost, optim
from muomni.train.objectives.language import NextToken
from muomni.train.objectives.symbols import targets
from muomni.train.step import update

ROWS = (1, 2)  # of the largest batch, through which a line is drawn to all
PHASES = ("forward", "loss", "backward", "connector", "step")  # backward through the language model, then through the connector
TWO_CHUNKS = 1025  # labels from which on the loss's memory grows no more
NARROW = 8  # width at which the loss is tried alone: what its logits take does not depend on it

Account = dict[str, Any]


class Phases(cost.LiveTensors):  # type: ignore[no-untyped-call]
    """Live tensors, with the most of each phase of an update; a context around it that hooks the objective."""

    def __init__(self, objective: NextToken, optimizer: torch.optim.Optimizer, known: Sequence[torch.Tensor]) -> None:
        super().__init__(known)
        self.most = dict.fromkeys(PHASES, 0)
        self.phase = "step"
        assert objective.omni is not None
        self.hooks = [
            objective.register_forward_pre_hook(lambda *_: self.begin("forward")),
            objective.omni.decoder.body.register_forward_hook(lambda *_: self.begin("loss")),
            objective.register_forward_hook(lambda *_: self.begin("backward")),
            objective.omni.projectors.vision.register_forward_hook(lambda _, __, out: self._at_gradient(out)),
            optimizer.register_step_pre_hook(lambda *_: self.begin("step")),
        ]

    def _at_gradient(self, out: torch.Tensor) -> None:
        out.register_hook(lambda _: self.begin("connector"))  # type: ignore[no-untyped-call]

    def begin(self, phase: str) -> None:
        """Close one phase and open another."""
        self.most[self.phase] = max(self.most[self.phase], self.peak)
        self.phase, self.peak = phase, self.now

    def close(self) -> None:
        """The update is done."""
        self.begin("step")
        for hook in self.hooks:
            hook.remove()


def survey(task: Task, recipe: Recipe, made: Ready, missing: Mapping[str, Absent]) -> Account:
    """The account of one stage; keys as docs/plan.md has them, without a time and without what a process would take."""
    own = Path(task.temporary) / task.stage
    machine = runtime.start(device=recipe.header.device)
    samples = Inputs(own, {}, recipe.base, machine).corpus(made.settings).train
    once = dict.fromkeys(missing, 1)
    first = _tried(task, recipe, made, missing, once, samples, own)
    deeper = {name: _tried(task, recipe, made, missing, {**once, name: 2}, samples, own) for name in missing}
    found: Account = line(first, [(deeper[name], each.layers - 1) for name, each in missing.items()])
    _add_words(found, missing, recipe.header.device)
    _sum_up(found)
    found["notes"] = [*made.notes, *_notes(made, missing)]
    found["proposal"] = holding.propose(found, task.memory) if task.memory else None
    return found


def line(first: Any, others: Sequence[tuple[Any, int]]) -> Any:
    """Every number of an account, drawn out: the first's, and for each other one as many of its differences as are told."""
    if isinstance(first, dict):
        return {key: line(value, [(other[key], times) for other, times in others]) for key, value in first.items()}
    if isinstance(first, list):
        return [line(value, [(other[place], times) for other, times in others]) for place, value in enumerate(first)]
    if isinstance(first, int | float) and not isinstance(first, bool):
        return first + sum(times * (other - first) for other, times in others)
    return first


def _tried(
    task: Task, recipe: Recipe, made: Ready, missing: Mapping[str, Absent], blocks: dict[str, int], samples: Sequence[Sample], own: Path
) -> Account:
    """The account of the stage upon networks of so many blocks."""
    folder = own / "_".join(f"{name}-{count}" for name, count in blocks.items())
    standing_in: dict[str, Any] = dict(bases.cut(missing, blocks, samples, recipe.header.device, folder))
    connector = bases.connector_of(recipe, task.stage)
    levels = getattr(recipe.stages[connector or task.stage].settings, "feature_layers", ())
    if "vision_tower" in blocks:
        standing_in["feature_layers"] = tuple(min(level, blocks["vision_tower"]) for level in levels)
    if connector is None:
        built = building.build(task, recipe, folder, replace(made, settings=building.changed(made.settings, **standing_in)))
    else:
        place = folder / "connector"
        settings = building.changed(recipe.stages[connector].settings, data=made.settings.data, **standing_in)
        building.build(replace(task, stage=connector), recipe, place, replace(made, settings=settings)).plan.save(place / "final")
        built = building.build(task, recipe, folder, made, {recipe.stages[task.stage].needs[0]: place / "final"})
    found = _account(built, folder)
    del built
    gc.collect()
    return found


def _account(built: Built, folder: Path) -> Account:
    """What is counted of a stage as it is built."""
    settings, objective, loader = built.settings, built.plan.objective, built.plan.train
    assert isinstance(objective, NextToken)
    typical, largest = (items_of(loader, number) for number in typical_and_largest(loader))
    batch, whole = loader.collate(typical), loader.collate(largest)
    optimizer = optim.make_optimizer(objective, built.rows, settings)
    optim.set_lr(optimizer, 1e-3)
    make_state(optimizer)
    counts = [min(count, len(largest)) for count in ROWS]
    less, more = (_update(built, objective, optimizer, some_of(largest, count)) for count in counts)
    times = settings.gradient_accumulation_steps
    per_row = {key: (more[key] - less[key]) / max(1, counts[1] - counts[0]) for key in more}
    some = some_of(typical, ROWS[1])
    flops = cost.flops_of_update(objective, optimizer, [loader.collate(some).to(built.run.device)], settings, built.run, _scaler(built))
    gradients = cost.gradients(objective)
    return {
        "stage": built.stage.name,
        "data_found": not built.is_assumed,
        "device": built.run.device.type,
        "number_format": str(built.run.dtype).removeprefix("torch."),
        "parameters": account.parameters(built.rows),
        "data": accounts.data(built, batch),
        "batch_size": settings.batch_size,
        "gradient_accumulation_steps": times,
        "flops_per_update": flops / len(some) * settings.batch_size * times,
        "memory": {
            "weights": cost.weights(objective),
            "gradients": gradients,
            "optimizer": holding.optimizer_bytes(built),
            "average": gradients if settings.ema_decay else 0,
            "inputs": cost.size(cost.tensors(batch)) * times,
            "context": holding.CUDA_CONTEXT_BYTES,
            "rows_run": counts[1],
        },
        "phases": {name: {"fixed": more[name] - per_row[name] * counts[1], "per_row": per_row[name]} for name in PHASES},
        "labels": {"typical": _labels(batch) * times, "largest": _labels(whole)},
        "speed": None,
        "disk": accounts.disk(built, folder),
    }


def _update(built: Built, objective: NextToken, optimizer: torch.optim.Optimizer, items: list[Any]) -> dict[str, float]:
    """Bytes of each phase of an update by these rows; the loss without what its logits take.

    Where an update has several micro-batches one row goes before, so that gradients are there already, as in all but the first.
    """
    collate, run = built.plan.train.collate, built.run
    before = [items[-1:]] * (built.settings.gradient_accumulation_steps > 1)
    batches = [collate(rows).to(run.device) for rows in [*before, items]]
    known = [*objective.parameters(), *objective.buffers(), *cost.tensors(optimizer.state_dict()), *cost.tensors(batches)]
    phases = Phases(objective, optimizer, known)
    with phases:
        update(objective, objective, optimizer, _scaler(built), batches, built.settings, run)
    phases.close()
    words = objective.trunk.head.size
    logits = logits_bytes(words, _labels(batches[-1]), run.dtype) if words == CUT_VOCABULARY else 0
    return {**phases.most, "loss": phases.most["loss"] - logits}


def _scaler(built: Built) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(built.run.device.type, enabled=built.run.dtype == torch.float16)


def _labels(batch: Any) -> int:
    return int((targets(batch) != IGNORE).sum())


def logits_bytes(words: int, labels: int, number_format: torch.dtype) -> int:
    """The most bytes that the loss holds of its logits: counted, on states that are narrow and a frozen table."""
    states = torch.zeros(min(labels, TWO_CHUNKS), NARROW, dtype=number_format, requires_grad=True)
    table, wanted = torch.zeros(words, NARROW, dtype=number_format), torch.zeros(len(states), dtype=torch.long)
    with cost.LiveTensors([states, table, wanted]) as live:
        linear_cross_entropy(states, [table], wanted)
    return int(live.peak)


def _add_words(found: Account, missing: Mapping[str, Absent], device: str) -> None:
    """Count the words that were cut."""
    if "llm" not in missing:
        return
    llm = missing["llm"]
    assert isinstance(llm.sizes, DecoderConfig)
    parameters = found["parameters"]
    part = next(part for part in parameters["parts"] if part["part"].startswith("omni.decoder"))
    for counts, key in ((parameters, "all"), (parameters, "frozen"), (part, "count")):
        counts[key] += llm.words_left_out
    number_format, held = getattr(torch, found["number_format"]), llm.number_format(device)
    table = llm.sizes.width * (llm.sizes.vocab_size - CUT_VOCABULARY)  # what is missing of the one that gives logits
    found["memory"]["weights"] += llm.words_left_out * held.itemsize
    found["phases"]["loss"]["fixed"] += logits_bytes(llm.sizes.vocab_size, found["labels"]["largest"], number_format)
    if number_format != held:  # the loss takes the whole table in the format that it computes in
        found["phases"]["loss"]["fixed"] += table * number_format.itemsize
    # A product with the table forward, and one back to the states.
    found["flops_per_update"] += 4 * found["labels"]["typical"] * table


def _sum_up(found: Account) -> None:
    """Put the peak of the phases, and all that a device holds, into the account's memory."""
    memory, phases = found["memory"], found.pop("phases")
    found.pop("labels")
    of_all = {name: phase["fixed"] + phase["per_row"] * found["batch_size"] for name, phase in phases.items()}
    at = max(of_all, key=lambda name: of_all[name])
    memory["activations"] = max(0, int(of_all[at] - memory["gradients"]))
    held = ("weights", "optimizer", "average", "inputs", "context")
    memory["device"] = int(sum(memory[name] for name in held) + of_all[at])
    rows = found["batch_size"] * found["gradient_accumulation_steps"]
    memory["per_row"] = int(phases[at]["per_row"] + memory["inputs"] / rows)
    memory["phases"] = {name: [int(phase["fixed"]), int(phase["per_row"] + memory["inputs"] / rows)] for name, phase in phases.items()}


def _notes(made: Ready, missing: Mapping[str, Absent]) -> list[str]:
    notes = [
        f"{name} {each.base.name} is not on this machine: tried with random weights of its widths in 1 and 2 of its {each.layers} blocks, "
        "and drawn out from there; its time is not told"
        for name, each in missing.items()
    ]
    if "llm" in missing and not made.is_assumed:
        notes.append(f"its tokenizer is not here either: lengths are by {CUT_VOCABULARY} words learned from the data, longer than its own")
    return notes
