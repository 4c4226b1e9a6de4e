"""Cost of a stage whose pretrained networks are not on disk, extrapolated from 1 and 2 of their blocks.

Every count is linear in the number of blocks: weights, gradients, optimizer state, FLOPs, and the memory of
an update in each of its phases; the largest phase is the peak; and the time of an update by one row. The
words that a small vocabulary leaves out are added: embedding tables by count, logits by a trial of the loss
alone, and their time by their arithmetic, at the speed of the rest.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from muomni import runtime
from muomni.data.sample import Sample
from muomni.errors import ConfigError
from muomni.execution.recipe import Recipe
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.rows import TokenModel
from muomni.nn.head import linear_cross_entropy
from muomni.planning import accounts, building, missing_models, peak_memory
from muomni.planning.building import Prepared, Task
from muomni.planning.dry_run import SurveyedStage, items_of, make_state, some_of, typical_and_largest
from muomni.planning.missing_models import CUT_VOCABULARY, MissingModel
from muomni.planning.published_sizes import CodecSizes
from muomni.stages.stage import Inputs, StageSettings
from muomni.tokens.chat import IGNORE
from muomni.train import account, cost, optim
from muomni.train.objectives.language import NextToken
from muomni.train.objectives.symbols import targets
from muomni.train.objectives.voice import VoiceObjective
from muomni.train.step import update
from muomni.train.timing import timed

ROWS = (1, 2)  # of the largest batch, through which a line is drawn to all
PHASES = (
    "forward",
    "loss",
    "backward",
    "connector",
    "step",
)  # backward through the language model, then through the connector
TWO_CHUNKS = 1025  # labels from which on the loss's memory grows no more
TIMED, TIMED_S = 5, 2.0  # updates of one row that are timed, fewer where they take longer
NARROW = 8  # width at which the loss is tried alone: what its logits take does not depend on it

Account = dict[str, Any]
Speaking = NextToken | VoiceObjective  # objectives on a language model of others


class Phases(cost.LiveTensors):  # type: ignore[no-untyped-call]
    """Live tensors, with the most of each phase of an update; a context around it that hooks the
    objective."""

    def __init__(
        self, objective: Speaking, optimizer: torch.optim.Optimizer, known_tensors: Sequence[torch.Tensor]
    ) -> None:
        super().__init__(known_tensors)
        self.most = dict.fromkeys(PHASES, 0)
        self.phase = "step"
        self.hooks = [
            objective.register_forward_pre_hook(lambda *_: self.begin("forward")),
            body_of(objective).register_forward_hook(lambda *_: self.begin("loss")),
            objective.register_forward_hook(lambda *_: self.begin("backward")),
            optimizer.register_step_pre_hook(lambda *_: self.begin("step")),
        ]
        if isinstance(objective, NextToken) and objective.omni is not None:
            vision = objective.omni.projectors.vision
            self.hooks.append(vision.register_forward_hook(lambda _, __, out: self._at_gradient(out)))

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


def body_of(objective: Speaking) -> torch.nn.Module:
    """What makes the states that the loss reads."""
    return objective.model.body if isinstance(objective, VoiceObjective) else decoder_of(objective).body


def table_of(objective: Speaking) -> torch.Tensor:
    """The embeddings of words."""
    if isinstance(objective, VoiceObjective):
        weight: torch.Tensor = objective.model.network.model.embed_tokens.weight
        return weight
    return decoder_of(objective).table.weight


def words_of(objective: Speaking) -> int:
    """Words that it chooses among."""
    if isinstance(objective, VoiceObjective):
        return int(objective.model.config.vocab_size)
    return int(objective.trunk.head.size)


def decoder_of(objective: NextToken) -> Decoder:
    """The language model within an objective: beneath an Omni, beneath new rows, or itself."""
    trunk: Any = objective.trunk
    decoder = trunk.decoder if isinstance(trunk, TokenModel) else trunk
    assert isinstance(decoder, Decoder)
    return decoder


def survey(task: Task, recipe: Recipe, prepared: Prepared, missing: Mapping[str, MissingModel]) -> Account:
    """The account of one stage; keys as docs/plan.md has them, without what a process would take.

    Raises  ConfigError where a language model that is not here would learn whole.
    """
    own = Path(task.temporary) / task.stage
    machine = runtime.start(device=recipe.header.device)
    samples = Inputs(own, {}, recipe.base, machine).corpus(prepared.settings).train
    once = dict.fromkeys(missing, 1)
    deep = {name: each for name, each in missing.items() if not each.is_codec}
    first = _dry_run(task, recipe, prepared, missing, once, samples, own)
    deeper = {
        name: _dry_run(task, recipe, prepared, missing, {**once, name: 2}, samples, own) for name in deep
    }
    updates_timed = min(each.pop("updates_timed") for each in (first, *deeper.values()))
    account: Account = line(first, [(deeper[name], each.layers - 1) for name, each in deep.items()])
    # What a machine does beside may make two blocks no slower than one; more of them are no faster.
    account["update_s"] = max(
        [account["update_s"], first["update_s"], *(e["update_s"] for e in deeper.values())]
    )
    _add_vocabulary(account, missing, recipe.header.device)
    _sum_up(
        account, sum(each.sizes.parameters for each in missing.values() if isinstance(each.sizes, CodecSizes))
    )
    account["notes"] = [*prepared.notes, *_notes(prepared, missing)]
    account["speed"] = _speed(account, updates_timed) if task.probe else None
    account.pop("update_s")
    _resolve_epoch(account, prepared.settings)
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
    start = building.start_of(recipe, task.stage)
    levels = getattr(recipe.stages[start or task.stage].settings, "feature_layers", ())
    if "vision_tower" in blocks:
        standing_in["feature_layers"] = tuple(min(level, blocks["vision_tower"]) for level in levels)
    if start is None:
        surveyed = building.build(
            task,
            recipe,
            folder,
            replace(prepared, settings=building.changed(prepared.settings, **standing_in)),
        )
    else:
        place, settings = folder / "start", recipe.stages[start].settings
        if prepared.is_assumed:  # beside its data, what it replays
            settings = settings.assuming(prepared.settings.data)
        settings = building.changed(settings, data=prepared.settings.data, **standing_in)
        building.build(
            replace(task, stage=start), recipe, place, replace(prepared, settings=settings)
        ).training.save(place / "final")
        surveyed = building.build(
            task, recipe, folder, prepared, {recipe.stages[task.stage].needs[0]: place / "final"}
        )
    account = _account(surveyed, folder, missing)
    del surveyed
    gc.collect()
    return account


def _account(surveyed: SurveyedStage, folder: Path, missing: Mapping[str, MissingModel]) -> Account:
    """What is counted, and timed, of a stage as it is built."""
    settings, objective, loader = surveyed.settings, surveyed.training.objective, surveyed.training.train
    assert isinstance(objective, NextToken | VoiceObjective)
    table = table_of(objective)
    if table.requires_grad:
        stage = surveyed.stage.name
        raise ConfigError(
            f"{stage}: its language model is not on this machine and would learn whole: that is not drawn out",
            hint="get it ('hf download NAME'), or plan it with LoRA",
        )
    table_name = next(name for name, each in objective.named_parameters() if each is table)
    typical, largest = (items_of(loader, number) for number in typical_and_largest(loader))
    batch, whole = loader.collate(typical), loader.collate(largest)
    optimizer = optim.make_optimizer(objective, surveyed.rows, settings)
    optim.set_lr(optimizer, 1e-3)
    objective.warm_start(whole.to(surveyed.run.device))  # tasks that join late
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
    took = _timed(surveyed, objective, optimizer, some_of(typical, 1))
    return {
        "table": table_name,
        "update_s": statistics.median(took) * settings.batch_size * times,
        "updates_timed": len(took),
        "words": words_of(objective),
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
            "codecs": peak_memory.codec_bytes(surveyed.training, without=missing),
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
        "disk": accounts.disk(surveyed, folder),
    }


def _update(
    surveyed: SurveyedStage, objective: Speaking, optimizer: torch.optim.Optimizer, items: list[Any]
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
    words = words_of(objective)
    # A Higgs has all its words.
    is_cut = isinstance(objective, NextToken) and decoder_of(objective).config.vocab_size == CUT_VOCABULARY
    logits = logits_bytes(words, _labels(batches[-1]), run.dtype) if is_cut else 0
    return {**phases.most, "loss": phases.most["loss"] - logits}


def _timed(
    surveyed: SurveyedStage, objective: Speaking, optimizer: torch.optim.Optimizer, items: list[Any]
) -> list[float]:
    """Seconds of updates by these rows on this machine, one after another, the first left out."""
    run, updates = surveyed.run, 0

    def one() -> float | None:
        nonlocal updates
        begin, updates = time.perf_counter(), updates + 1
        batch = surveyed.training.train.collate(items).to(run.device)
        update(objective, objective, optimizer, _scaler(surveyed), [batch], surveyed.settings, run)
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        return None if updates == 1 else time.perf_counter() - begin

    return timed(one, most=TIMED, enough_s=TIMED_S, limit_s=TIMED_S)


def _speed(account: Account, updates_timed: int) -> dict[str, Any]:
    """The time of an update and what it amounts to, as docs/plan.md has them."""
    update_s = account["update_s"]
    samples = account["batch_size"] * account["gradient_accumulation_steps"]
    rates = {unit: amount * samples for unit, amount in account["data"]["per_sample"].items()}
    return {
        "update_s": update_s,
        "updates_timed": updates_timed,
        "rows_timed": 1,
        "data_wait": None,
        "mfu": None,
        "steps_per_s": 1 / update_s,
        "samples_per_s": samples / update_s,
        **{f"{unit}_per_s": amount / update_s for unit, amount in rates.items()},
    }


def _resolve_epoch(account: Account, settings: StageSettings) -> None:
    """Put the `epoch_duration` of a stage into its account, as samples and updates.

    Raises  ConfigError where nothing was timed.
    """
    if settings.epoch_duration is None or settings.samples_per_epoch is not None:
        return
    samples, note = building.epoch(settings, account["speed"])
    account["notes"].append(note)
    per_update = account["batch_size"] * account["gradient_accumulation_steps"]
    assert settings.max_epochs is not None
    by_epochs = -(-settings.max_epochs * samples // per_update)
    updates = by_epochs if settings.max_steps is None else min(by_epochs, settings.max_steps)
    data, disk = account["data"], account["disk"]
    data["epochs"] = updates * per_update / data["samples"]
    data["updates"] = updates
    kept = min(settings.keep_checkpoints, -(-updates // settings.checkpoint_freq))
    disk["total"] += (kept - disk["checkpoints_kept"]) * disk["checkpoint"]
    disk["checkpoints_kept"] = kept


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
    part = next(part for part in parameters["parts"] if account["table"].startswith(f"{part['part']}."))
    for counts, key in ((parameters, "all"), (parameters, "frozen"), (part, "count")):
        counts[key] += llm.words_left_out
    number_format, full_format = getattr(torch, account["number_format"]), llm.number_format(device)
    table = llm.sizes.width * (
        llm.sizes.vocab_size - CUT_VOCABULARY
    )  # what is missing of the one that gives logits
    account["memory"]["weights"] += llm.words_left_out * full_format.itemsize
    account["phases"]["loss"]["fixed"] += logits_bytes(
        account["words"] + llm.sizes.vocab_size - CUT_VOCABULARY, account["labels"]["largest"], number_format
    )
    if number_format != full_format:  # the loss takes the whole table in the format that it computes in
        account["phases"]["loss"]["fixed"] += table * number_format.itemsize
    # A product with the table forward, and one back to the states.
    words_flops = 4 * account["labels"]["typical"] * table
    account["update_s"] *= 1 + words_flops / account["flops_per_update"]
    account["flops_per_update"] += words_flops


def _sum_up(account: Account, codec_parameters: int) -> None:
    """Put the peak of the phases, and all that a device holds, into the account's memory."""
    memory, phases = account["memory"], account.pop("phases")
    for name in ("labels", "table", "words"):
        account.pop(name)
    memory["codecs"] += codec_parameters * torch.float32.itemsize
    of_all = {
        name: phase["fixed"] + phase["per_row"] * account["batch_size"] for name, phase in phases.items()
    }
    at = max(of_all, key=lambda name: of_all[name])
    memory["activations"] = max(0, int(of_all[at] - memory["gradients"]))
    kinds = ("weights", "codecs", "optimizer", "average", "inputs", "context")
    memory["device"] = int(sum(memory[name] for name in kinds) + of_all[at])
    rows = account["batch_size"] * account["gradient_accumulation_steps"]
    memory["per_row"] = int(phases[at]["per_row"] + memory["inputs"] / rows)
    memory["phases"] = {
        name: [int(phase["fixed"]), int(phase["per_row"] + memory["inputs"] / rows)]
        for name, phase in phases.items()
    }


def _notes(prepared: Prepared, missing: Mapping[str, MissingModel]) -> list[str]:
    notes = []
    for name, each in missing.items():
        how = "a narrow random network stands in, which makes as many codes"
        if not each.is_codec:
            how = (
                f"tried with random weights of its widths in 1 and 2 of its {each.layers} blocks, "
                "and drawn out from there, its time on this machine too"
            )
        notes.append(f"{name} {each.base.name} is not on this machine: {how}")
    if {"llm", "base"} & missing.keys() and not prepared.is_assumed:
        notes.append(
            f"its tokenizer is not here either: lengths are by {CUT_VOCABULARY} words learned from the data, longer than its own"
        )
    return notes
