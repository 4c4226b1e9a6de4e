"""Cost of a stage whose pretrained networks are not on disk, extrapolated from 1 and 2 of their blocks.

Every count is linear in the number of blocks: weights, gradients, optimizer state, FLOPs, and the memory of
an update in each of its phases; the largest phase is the peak. The words that a small vocabulary leaves out
are added: embedding tables by count, logits by a trial of the loss alone.
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
from muomni.execution.recipe import Recipe
from muomni.models.decoder import DecoderConfig
from muomni.nn.head import linear_cross_entropy
from muomni.planning import accounts, building, missing_models, peak_memory
from muomni.planning.building import Prepared, Task
from muomni.planning.dry_run import SurveyedStage, items_of, make_state, some_of, typical_and_largest
from muomni.planning.missing_models import CUT_VOCABULARY, MissingModel
from muomni.stages.stage import Inputs
from muomni.tokens.chat import IGNORE
from muomni.train import account, cost, optim
from muomni.train.objectives.language import NextToken
from muomni.train.objectives.symbols import targets
from muomni.train.step import update

ROWS = (1, 2)  # of the largest batch, through which a line is drawn to all
PHASES = (
    "forward",
    "loss",
    "backward",
    "connector",
    "step",
)  # backward through the language model, then through the connector
TWO_CHUNKS = 1025  # labels from which on the loss's memory grows no more
NARROW = 8  # width at which the loss is tried alone: what its logits take does not depend on it

Account = dict[str, Any]


class Phases(cost.LiveTensors):  # type: ignore[no-untyped-call]
    """Live tensors, with the most of each phase of an update; a context around it that hooks the
    objective."""

    def __init__(
        self, objective: NextToken, optimizer: torch.optim.Optimizer, known_tensors: Sequence[torch.Tensor]
    ) -> None:
        super().__init__(known_tensors)
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


def survey(task: Task, recipe: Recipe, prepared: Prepared, missing: Mapping[str, MissingModel]) -> Account:
    """The account of one stage; keys as docs/plan.md has them, without a time and without what a process
    would take."""
    own = Path(task.temporary) / task.stage
    machine = runtime.start(device=recipe.header.device)
    samples = Inputs(own, {}, recipe.base, machine).corpus(prepared.settings).train
    once = dict.fromkeys(missing, 1)
    first = _dry_run(task, recipe, prepared, missing, once, samples, own)
    deeper = {
        name: _dry_run(task, recipe, prepared, missing, {**once, name: 2}, samples, own) for name in missing
    }
    account: Account = line(first, [(deeper[name], each.layers - 1) for name, each in missing.items()])
    _add_vocabulary(account, missing, recipe.header.device)
    _sum_up(account)
    account["notes"] = [*prepared.notes, *_notes(prepared, missing)]
    account["proposal"] = peak_memory.propose(account, task.memory) if task.memory else None
    return account


def line(first: Any, others: Sequence[tuple[Any, int]]) -> Any:
    """Every number of an account, drawn out: the first's, and for each other one as many of its differences
    as are told."""
    if isinstance(first, dict):
        return {
            key: line(value, [(other[key], times) for other, times in others]) for key, value in first.items()
        }
    if isinstance(first, list):
        return [
            line(value, [(other[place], times) for other, times in others])
            for place, value in enumerate(first)
        ]
    if isinstance(first, int | float) and not isinstance(first, bool):
        return first + sum(times * (other - first) for other, times in others)
    return first


def _dry_run(
    task: Task,
    recipe: Recipe,
    prepared: Prepared,
    missing: Mapping[str, MissingModel],
    blocks: dict[str, int],
    samples: Sequence[Sample],
    own: Path,
) -> Account:
    """The account of the stage on networks of so many blocks."""
    folder = own / "_".join(f"{name}-{count}" for name, count in blocks.items())
    standing_in: dict[str, Any] = dict(
        missing_models.cut(missing, blocks, samples, recipe.header.device, folder)
    )
    connector = missing_models.connector_of(recipe, task.stage)
    levels = getattr(recipe.stages[connector or task.stage].settings, "feature_layers", ())
    if "vision_tower" in blocks:
        standing_in["feature_layers"] = tuple(min(level, blocks["vision_tower"]) for level in levels)
    if connector is None:
        surveyed = building.build(
            task,
            recipe,
            folder,
            replace(prepared, settings=building.changed(prepared.settings, **standing_in)),
        )
    else:
        place = folder / "connector"
        settings = building.changed(
            recipe.stages[connector].settings, data=prepared.settings.data, **standing_in
        )
        building.build(
            replace(task, stage=connector), recipe, place, replace(prepared, settings=settings)
        ).training.save(place / "final")
        surveyed = building.build(
            task, recipe, folder, prepared, {recipe.stages[task.stage].needs[0]: place / "final"}
        )
    account = _account(surveyed, folder)
    del surveyed
    gc.collect()
    return account


def _account(surveyed: SurveyedStage, folder: Path) -> Account:
    """What is counted of a stage as it is built."""
    settings, objective, loader = surveyed.settings, surveyed.training.objective, surveyed.training.train
    assert isinstance(objective, NextToken)
    typical, largest = (items_of(loader, number) for number in typical_and_largest(loader))
    batch, whole = loader.collate(typical), loader.collate(largest)
    optimizer = optim.make_optimizer(objective, surveyed.rows, settings)
    optim.set_lr(optimizer, 1e-3)
    make_state(optimizer)
    counts = [min(count, len(largest)) for count in ROWS]
    less, more = (_update(surveyed, objective, optimizer, some_of(largest, count)) for count in counts)
    times = settings.gradient_accumulation_steps
    per_row = {key: (more[key] - less[key]) / max(1, counts[1] - counts[0]) for key in more}
    some = some_of(typical, ROWS[1])
    flops = cost.flops_of_update(
        objective,
        optimizer,
        [loader.collate(some).to(surveyed.run.device)],
        settings,
        surveyed.run,
        _scaler(surveyed),
    )
    gradients = cost.gradients(objective)
    return {
        "stage": surveyed.stage.name,
        "data_found": not surveyed.is_assumed,
        "device": surveyed.run.device.type,
        "number_format": str(surveyed.run.dtype).removeprefix("torch."),
        "parameters": account.parameters(surveyed.rows),
        "data": accounts.data(surveyed, batch),
        "batch_size": settings.batch_size,
        "gradient_accumulation_steps": times,
        "flops_per_update": flops / len(some) * settings.batch_size * times,
        "memory": {
            "weights": cost.weights(objective),
            "gradients": gradients,
            "optimizer": peak_memory.optimizer_bytes(surveyed),
            "average": gradients if settings.ema_decay else 0,
            "inputs": cost.size(cost.tensors(batch)) * times,
            "context": peak_memory.CUDA_CONTEXT_BYTES,
            "rows_run": counts[1],
        },
        "phases": {
            name: {"fixed": more[name] - per_row[name] * counts[1], "per_row": per_row[name]}
            for name in PHASES
        },
        "labels": {"typical": _labels(batch) * times, "largest": _labels(whole)},
        "speed": None,
        "disk": accounts.disk(surveyed, folder),
    }


def _update(
    surveyed: SurveyedStage, objective: NextToken, optimizer: torch.optim.Optimizer, items: list[Any]
) -> dict[str, float]:
    """Bytes of each phase of an update by these rows; the loss without what its logits take.

    Where an update has several micro-batches one row goes before, so that gradients are there already, as in
    all but the first.
    """
    collate, run = surveyed.training.train.collate, surveyed.run
    before = [items[-1:]] * (surveyed.settings.gradient_accumulation_steps > 1)
    batches = [collate(rows).to(run.device) for rows in [*before, items]]
    known_tensors = [
        *objective.parameters(),
        *objective.buffers(),
        *cost.tensors(optimizer.state_dict()),
        *cost.tensors(batches),
    ]
    phases = Phases(objective, optimizer, known_tensors)
    with phases:
        update(objective, objective, optimizer, _scaler(surveyed), batches, surveyed.settings, run)
    phases.close()
    words = objective.trunk.head.size
    logits = logits_bytes(words, _labels(batches[-1]), run.dtype) if words == CUT_VOCABULARY else 0
    return {**phases.most, "loss": phases.most["loss"] - logits}


def _scaler(surveyed: SurveyedStage) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(surveyed.run.device.type, enabled=surveyed.run.dtype == torch.float16)


def _labels(batch: Any) -> int:
    return int((targets(batch) != IGNORE).sum())


def logits_bytes(words: int, labels: int, number_format: torch.dtype) -> int:
    """The most bytes that the loss holds of its logits: counted, on states that are narrow and a frozen
    table."""
    states = torch.zeros(min(labels, TWO_CHUNKS), NARROW, dtype=number_format, requires_grad=True)
    table, labels_N = (
        torch.zeros(words, NARROW, dtype=number_format),
        torch.zeros(len(states), dtype=torch.long),
    )
    with cost.LiveTensors([states, table, labels_N]) as live:
        linear_cross_entropy(states, [table], labels_N)
    return int(live.peak)


def _add_vocabulary(account: Account, missing: Mapping[str, MissingModel], device: str) -> None:
    """Count the words that were cut."""
    if "llm" not in missing:
        return
    llm = missing["llm"]
    assert isinstance(llm.sizes, DecoderConfig)
    parameters = account["parameters"]
    part = next(part for part in parameters["parts"] if part["part"].startswith("omni.decoder"))
    for counts, key in ((parameters, "all"), (parameters, "frozen"), (part, "count")):
        counts[key] += llm.words_left_out
    number_format, full_format = getattr(torch, account["number_format"]), llm.number_format(device)
    table = llm.sizes.width * (
        llm.sizes.vocab_size - CUT_VOCABULARY
    )  # what is missing of the one that gives logits
    account["memory"]["weights"] += llm.words_left_out * full_format.itemsize
    account["phases"]["loss"]["fixed"] += logits_bytes(
        llm.sizes.vocab_size, account["labels"]["largest"], number_format
    )
    if number_format != full_format:  # the loss takes the whole table in the format that it computes in
        account["phases"]["loss"]["fixed"] += table * number_format.itemsize
    # A product with the table forward, and one back to the states.
    account["flops_per_update"] += 4 * account["labels"]["typical"] * table


def _sum_up(account: Account) -> None:
    """Put the peak of the phases, and all that a device holds, into the account's memory."""
    memory, phases = account["memory"], account.pop("phases")
    account.pop("labels")
    of_all = {
        name: phase["fixed"] + phase["per_row"] * account["batch_size"] for name, phase in phases.items()
    }
    at = max(of_all, key=lambda name: of_all[name])
    memory["activations"] = max(0, int(of_all[at] - memory["gradients"]))
    kinds = ("weights", "optimizer", "average", "inputs", "context")
    memory["device"] = int(sum(memory[name] for name in kinds) + of_all[at])
    rows = account["batch_size"] * account["gradient_accumulation_steps"]
    memory["per_row"] = int(phases[at]["per_row"] + memory["inputs"] / rows)
    memory["phases"] = {
        name: [int(phase["fixed"]), int(phase["per_row"] + memory["inputs"] / rows)]
        for name, phase in phases.items()
    }


def _notes(prepared: Prepared, missing: Mapping[str, MissingModel]) -> list[str]:
    notes = [
        f"{name} {each.base.name} is not on this machine: tried with random weights of its widths in 1 and 2 of its {each.layers} blocks, "
        "and drawn out from there; its time is not told"
        for name, each in missing.items()
    ]
    if "llm" in missing and not prepared.is_assumed:
        notes.append(
            f"its tokenizer is not here either: lengths are by {CUT_VOCABULARY} words learned from the data, longer than its own"
        )
    return notes
