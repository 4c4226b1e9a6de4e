"""Run one stage: reuse it if it is finished with equal inputs, resume it if interrupted, refuse changed
settings."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from muomni import config, files, runtime
from muomni.data import readers
from muomni.errors import ConfigError, GateRed, MuomniError
from muomni.evaluate import baseline, certificate, gates, run_record_checks, soundness, thresholds
from muomni.evaluate.facts import Fact
from muomni.evaluate.samples import StageSamples
from muomni.execution import introduction, ownership, sizing
from muomni.execution import recipe as recipes
from muomni.execution.recipe import Recipe
from muomni.models import integrity, store
from muomni.runtime import Runtime
from muomni.stages import initial_weights
from muomni.stages.stage import Entry, StageSettings, Training, build
from muomni.train import account, distributed, loop, optim, sharding, validation
from muomni.train.checkpoint import Identity
from muomni.train.loop import Fitted
from muomni.train.objective import Objective
from muomni.train.run_record import Rates
from muomni.train.settings import clipped, sized, steps_in_all
from muomni.units import format_seconds

BATCH = "batch.json"  # micro-batches of an update over all ranks, as the stage was trained last
DIGEST = "digest.json"  # of the settings, data and bases that a stage is made from (recipes.digest)
ANEW = "--fresh deletes it and starts anew, --out DIR keeps it"
T = TypeVar("T")


def judge(
    entry: Entry, modalities: Collection[str], facts: dict[str, Fact], waived: dict[str, str]
) -> list[gates.Judged]:
    """The verdicts of all gates that apply to a stage on data of these modalities."""
    applying = [gate for gate in entry.gates if gate.applies(entry.settings, modalities)]
    names = {gate.name for gate in entry.gates} - {gate.name for gate in applying}
    bounds = {name: bound for name, bound in entry.settings.gates.items() if name not in names}
    return gates.judge(
        applying, facts, bounds, {name: why for name, why in waived.items() if name not in names}
    )


def default_threads(recipe: Recipe) -> int:
    """Threads of a stage that sets none: MUOMNI_THREADS, else the recipe's."""
    return int(os.environ.get("MUOMNI_THREADS", recipe.threads))


@dataclass
class StageIdentity:
    """What a stage of a run is made of, and what names it.

    entry       the stage; its settings get an epoch in samples before it trains
    named       the settings that its folder goes by (see `named_by`)
    stored      the settings that lie in its folder, None where it starts anew
    bases       digests of the weights that it stands on, of its run and from outside, by name
    inherited   what was waived of these
    sources     a fingerprint of its data
    waived      reasons by gate, of those waivers that speak of its gates
    """

    entry: Entry
    named: StageSettings
    stored: dict[str, Any] | None
    bases: dict[str, str]
    inherited: certificate.Waivers
    sources: str
    waived: dict[str, str]

    @property
    def digest(self) -> str:
        """Of all that its result depends on."""
        return self._digest()

    @property
    def digests(self) -> set[str]:
        """The digest, and what it was while `val_batches` counted as harmless (up to c8b428a)."""
        return {self.digest, self._digest(without=["val_batches"])}

    def _digest(self, without: Collection[str] = ()) -> str:
        return recipes.digest(self.named, self.bases, self.sources, self.stored, without=without)

    @property
    def written(self) -> dict[str, Any]:
        """The settings as they are to lie in its folder."""
        values = self.named.model_dump(mode="json")
        return values if self.stored is None else config.as_stored(values, self.stored, type(self.named))

    def judge(self, modalities: Collection[str], facts: dict[str, Fact]) -> list[gates.Judged]:
        """The verdicts on facts of data of these modalities."""
        return judge(self.entry, modalities, facts, self.waived)


def run_stage(
    recipe: Recipe, entry: Entry, machine: Runtime, *, fresh: bool, waived: dict[str, str]
) -> dict[str, Any]:
    """Train, measure, judge and save one stage; give its certificate.

    Raises  GateRed where it, or one that it needs, is red.
    """
    # 1. claim: what it is made of; a finished stage that is made of the same is reused
    runtime.use_threads(entry.settings.threads or default_threads(recipe))
    identity = _identify(recipe, entry, machine, fresh, waived)
    entry, own = identity.entry, entry.folder
    if not fresh and (done := _finished(identity, machine)) is not None:
        return _reuse(identity, done, machine)
    _on_main(lambda: _open_folder(identity, machine.world, fresh), machine)

    # 2. prepare: networks, data, and what must be known of both before they train
    begin = time.perf_counter()
    training = _begin(entry, recipe.base, machine)
    rows = optim.select(training.objective, entry.settings)
    _introduce(recipe, entry, training, training.inputs.run, rows)
    if machine.is_main:
        files.write_json(own / "account.json", account.to_json(rows))

    # 3. prove, on six rows, that it can learn what it is to learn and nothing else
    resting = _frozen(training)  # before the trials too: they share what is given
    start = {"base_mismatch": base_mismatch(entry), **_start(training)}
    _refuse_early(identity, training, start)
    if entry.settings.epoch_duration is not None and entry.settings.samples_per_epoch is None:
        _measure_epoch(identity, training)

    # 4. fit
    settings, run = identity.entry.settings, training.inputs.run
    how: dict[str, Any] = {"name": entry.name, "saved": training.saved, "export": training.export}
    how["identity"] = Identity(identity.digest, recipes.result_settings(identity.named), type(identity.named))
    fitted = loop.fit(training.objective, training.train, training.valid, settings, run, own, **how)

    # 5. certify
    spread = distributed.spread(store.digest(training.objective, parameters_only=True), run)
    start["rank_spread"] = Fact(float(spread), run.world)
    result: dict[str, Any] = {}
    if machine.is_main:
        result = _conclude(identity, training, fitted, resting, start, begin)
    result = distributed.from_main(result, machine)
    refuse(result)
    return result


def _identify(
    recipe: Recipe, entry: Entry, machine: Runtime, fresh: bool, waived: dict[str, str]
) -> StageIdentity:
    """The stage, with all that it stands on looked through; epochs and accumulation as its folder has them,
    unless `fresh`."""
    settings, own = entry.settings, entry.folder
    bases, inherited = _on_main(lambda: _dependencies(entry, recipe.base), machine)
    settings = settings if fresh else distributed.from_main(sizing.stored(settings, own), machine)
    named = distributed.from_main(named_by(own, settings, machine.world, fresh=fresh), machine)
    sources = readers.fingerprint(settings.learned, recipe.base)
    is_new = fresh or not (own / "config.yaml").exists()
    stored = _on_main(lambda: None if is_new else recipes.stored_settings(own, type(settings)), machine)
    return StageIdentity(
        replace(entry, settings=settings),
        named,
        stored,
        bases,
        inherited,
        sources,
        waived_here(entry, waived),
    )


def _finished(identity: StageIdentity, machine: Runtime) -> dict[str, Any] | None:
    """The certificate of a finished stage that was made of the same; one that names no files is told, and
    counts for nothing."""
    own = identity.entry.folder
    done = certificate.read(own)
    if (
        not done
        or done.get("settings") != identity.digest
        or not (own / "final").is_dir()
        or "modalities" not in done
    ):
        return None
    if integrity.names_files(done):
        return done
    if machine.is_main:
        line = "its certificate names no files (it is of an older version): measured again"
        print(f"[{identity.entry.name}] {line}", file=sys.stderr, flush=True)
    return None


def _measure_epoch(identity: StageIdentity, training: Training[Any]) -> None:
    """Have the stage go by the samples that fit `epoch_duration` on this machine, as its folder says from now
    on."""
    run = training.inputs.run
    samples, how = sizing.measured(training.settings, training, run)
    training.settings, identity.named = (
        each.model_copy(update={"samples_per_epoch": samples}) for each in (training.settings, identity.named)
    )
    identity.entry = replace(identity.entry, settings=training.settings)
    if run.is_main:
        write_settings(identity.entry.folder, identity.written, identity.digest)
    _tell_length(identity.entry.name, training, run, how=how)


def _conclude(
    identity: StageIdentity,
    training: Training[Any],
    fitted: Fitted,
    resting: dict[str, str],
    start: dict[str, Fact],
    begin: float,
) -> dict[str, Any]:
    """Measure, save, and certify a stage that has trained; the main rank alone.

    Takes   resting: digests of what must not have moved; start: the facts known before; begin: when it was,
            by the clock.
    """
    stage_samples = StageSamples()
    facts = {**start, **_measure(training, fitted, resting, stage_samples)}
    stage_samples.write(identity.entry.folder / "samples")
    with files.fresh_folder(identity.entry.folder / "final") as part:
        training.save(part)
        facts["saved_error"] = _saved(training, part)
    facts["base_mismatch"] = base_mismatch(
        identity.entry
    )  # once more: hours have passed, and measuring opened some of them
    facts["wall_s"] = Fact(time.perf_counter() - begin)
    return _certify(identity, training, facts, identity.judge(training.modalities, facts))


@contextmanager
def alone(entry: Entry, machine: Runtime) -> Iterator[None]:
    """Hold a stage of a run's folder for this process (or its ranks): what two would write there, neither
    could stand for.

    Raises  UserError where another process doesn't let go of it.
    """
    lock = files.only_writer(
        entry.run / ownership.LOCKS / entry.name.replace("/", "-"),
        say=lambda line: print(f"[{entry.name}] {line}", file=sys.stderr, flush=True),
    )
    with on_main(lock, machine):
        yield


@contextmanager
def on_main(lock: AbstractContextManager[None], machine: Runtime) -> Iterator[None]:
    """Enter a context on the main rank alone; the others wait until it has, and raise what it raises."""
    with ExitStack() as stack:
        _on_main(lambda: stack.enter_context(lock), machine)
        yield


def base_mismatch(entry: Entry) -> Fact:
    """How many files of the stages that this one needs are not what their certificates name, now."""
    return _mismatch(
        [f"{name}: {line}" for name, final in entry.needed.items() for line in integrity.changed(final)],
        len(entry.needs),
    )


def _mismatch(lines: Sequence[str], among: int) -> Fact:
    """The fact behind gate `bases`: so many files of so many stages are others, and which."""
    return Fact(float(len(lines)), among, note=integrity.shown(list(lines)))


def also_changed(saved_error: Fact, own: Path) -> Fact:
    """The fact behind gate `saved`, with the files of `final/` that are not what its certificate names
    counted in."""
    lines = integrity.changed(own / "final")
    note = "; ".join(each for each in (saved_error.note, integrity.shown(lines)) if each)
    return Fact(saved_error.value + len(lines), saved_error.n, note=note)


def _dependencies(entry: Entry, base: Path) -> tuple[dict[str, str], certificate.Waivers]:
    """Digests of the weights that a stage stands on, every file of them checked, and what was waived of
    these.

    Takes   base: where the paths of its settings start.

    Raises  GateRed where a needed stage is missing, red, or other than its certificate says: then this
            stage's certificate, unless it is finished, says so too; CheckpointError where what comes from
            outside is other.
    """
    name, settings, needs = entry.name, entry.settings, entry.needs
    try:
        certificates = {other: certificate.demand(entry.run / other, name) for other in needs}
    except certificate.BaseChanged as error:
        own, done = entry.folder, certificate.read(entry.folder)
        if done is None or not integrity.names_files(done):
            facts = {"base_mismatch": _mismatch(error.lines, len(needs))}
            judged = [row for row in judge(entry, (), facts, {}) if row.is_known(facts)]
            tell(
                name,
                certificate.write(
                    own, own.name, facts, judged, weights="", data="", settings="", seed=settings.seed
                ),
            )
        raise
    digests = {
        other: stored["weights"] for other, stored in certificates.items()
    } | settings.external_digests(base)
    inherited = [integrity.waivers(stored) for stored in certificates.values()]
    return digests, integrity.merged(*inherited, _external_waivers(settings, base, name))


def _external_waivers(settings: StageSettings, base: Path, name: str) -> certificate.Waivers:
    """What was waived of stages of other runs that this one starts from; what is not proven of them is told.

    Raises  CheckpointError where their files are not what their certificates name.
    """
    waivers = []
    for folder in settings.external_folders(base):
        theirs = integrity.verify(folder)
        is_stage = (
            folder.name == integrity.FINAL or integrity.locate(folder) is not None
        )  # what others trained has no certificate
        if is_stage and (caveat := integrity.caveat(theirs)):
            print(f"[{name}] stands on {folder}: {caveat}", file=sys.stderr, flush=True)
        waivers += [] if theirs is None else [integrity.waivers(theirs)]
    return integrity.merged(*waivers)


def external_waivers(settings: StageSettings, origin: Mapping[str, Any]) -> certificate.Waivers:
    """The same for a finished stage, of the run whose `recipe.json` is given."""
    return _external_waivers(settings, Path(origin["base"]), "gate")


def _on_main(work: Callable[[], T], machine: Runtime) -> T:
    """What the main rank finds, on all ranks; so is an error of ours. What it read and hashed, the others
    need not read again."""
    result: T | None = None
    error: MuomniError | None = None
    if machine.is_main:
        try:
            result = work()
        except MuomniError as problem:
            if machine.world == 1:
                raise
            error = problem
    error, result, digests = distributed.from_main((error, result, files.known_digests()), machine)
    files.learn_digests(digests)
    if error is not None:
        raise error
    return result


def _introduce(
    recipe: Recipe, entry: Entry, training: Training[Any], run: Runtime, rows: Sequence[optim.Row]
) -> None:
    """Say what the stage is, which of how many, in what it computes (what is emulated in a line of its own),
    what trains, and on what."""
    if not run.is_main:
        return
    name, settings = entry.name, entry.settings
    trained = [other.name for other in recipe.stages.values() if not other.points]
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if run.device.type == "cpu" else ""
    what = f"stage {trained.index(name) + 1} of {len(trained)}: {entry.stage.teaches}"
    is_known = settings.epoch_duration is None or settings.samples_per_epoch is not None
    steps = (
        steps_in_all(settings, training.train.order, settings.gradient_accumulation_steps * run.world)
        if is_known
        else None
    )
    length = f"epochs of {settings.epoch_duration}" if steps is None else f"{steps} steps"
    lines = [f"{what}; {length} in {runtime.format_name(run.dtype)} on {run.device.type}{threads}"]
    lines += runtime.emulated({run.dtype, *(p.dtype for p in training.objective.parameters())}, run.device)
    lines += introduction.lines(training, settings, rows, run.world, steps)
    print("\n".join(f"[{name}] {line}" for line in lines), file=sys.stderr, flush=True)
    if is_known:
        _tell_length(name, training, run)


def _tell_length(name: str, training: Training[Any], run: Runtime, **how: str) -> None:
    """Say what an epoch is, where it is no pass through the data, and that the warm-up is cut, where it is
    longer than the run."""
    if not run.is_main:
        return
    settings, order = training.settings, training.train.order
    per_step = settings.gradient_accumulation_steps * run.world
    lines = (
        []
        if settings.samples_per_epoch is None
        else [sizing.describe_epoch(settings, order, per_step, **how)]
    )
    lines += clipped(settings, sized(settings, order, per_step))
    for line in lines:
        print(f"[{name}] {line}", file=sys.stderr, flush=True)


def gate_stage(entry: Entry, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Build a finished stage from its own settings, put its weights in place, measure and judge it; nothing
    is written.

    Takes   earlier: the facts of another report, by stage, behind which these must not fall.
    """
    origin, settings, own = (
        recipes.origin(entry.run, "base", "device", "threads"),
        entry.settings,
        entry.folder,
    )
    machine = runtime.start(
        device=origin["device"], threads=int(os.environ.get("MUOMNI_THREADS", origin["threads"]))
    )
    stored = certificate.read(own) or {"gates": [], "facts": {}}
    certificates = [certificate.read(entry.run / name) for name in entry.needs]
    inherited = integrity.merged(
        *(integrity.waivers(each) for each in certificates if each is not None),
        external_waivers(settings, origin),
    )
    start = {"base_mismatch": base_mismatch(entry)}
    if start["base_mismatch"].value:  # to measure on other weights would tell nothing
        judged = [row for row in judge(entry, stored.get("modalities", ()), start, {}) if row.is_known(start)]
        return certified_again(entry, start, judged, earlier, inherited)
    training = _begin(entry, Path(origin["base"]), machine)
    before = _frozen(training)
    start |= _start(training)
    is_known = (own / DIGEST).exists()
    digest = files.read_stored(own / DIGEST, str, hint=ANEW) if is_known else ""
    identity = Identity(digest, recipes.result_settings(settings), type(settings)) if is_known else None
    fitted = loop.restore(
        training.objective,
        training.valid,
        settings,
        training.inputs.run,
        own,
        identity=identity,
        export=training.export,
    )
    facts = {
        **start,
        **_measure(training, fitted, before, StageSamples()),
        "saved_error": _saved(training, own / "final"),
    }
    facts["saved_error"] = also_changed(facts["saved_error"], own)
    if "rank_spread" in stored["facts"]:  # of the run itself: its ranks are gone
        facts["rank_spread"] = Fact.from_json(stored["facts"]["rank_spread"])
    return certified_again(
        entry, facts, judge(entry, training.modalities, facts, waived_before(stored)), earlier, inherited
    )


def waived_before(stored: Mapping[str, Any]) -> dict[str, str]:
    """The waivers of a certificate, with their reasons."""
    return {row["name"]: row["why"] for row in stored["gates"] if row["verdict"] == "waived"}


def certified_again(
    entry: Entry,
    facts: dict[str, Fact],
    judged: list[gates.Judged],
    earlier: Mapping[str, Any] | None,
    inherited: certificate.Waivers,
) -> dict[str, Any]:
    """What `muomni gate` tells of a stage, compared with the facts of an earlier report where there is
    one."""
    name = entry.name
    if earlier is not None:
        if name not in earlier:
            raise ConfigError(
                f"the baseline has no stage {name}", hint=f"it has {', '.join(earlier) or 'none'}"
            )
        compared = [gate for gate in entry.gates if gate not in thresholds.SOUND]
        judged += baseline.compare(compared, facts, earlier[name])
    return {
        "stage": name,
        "verdict": certificate.overall(judged, inherited),
        "facts": {key: fact.to_json() for key, fact in facts.items()},
        "gates": [row.to_json() for row in judged],
        "inherited": inherited,
    }


def _begin(entry: Entry, base: Path, machine: Runtime) -> Training[Any]:
    """The stage, built, with the weights that `init_from` names.

    Takes   base: where the paths of its settings start.
    Raises  ConfigError for settings that would have no effect.
    """
    settings, own = entry.settings, entry.folder
    training = build(entry.stage, settings, own, entry.needed, base, machine)
    if settings.init_from is not None:
        taken = initial_weights.take_over(
            training.objective, settings.init_from, base, own, is_main=machine.is_main
        )
        training.notes["init_share"] = taken
    rows = optim.select(training.objective, settings)
    optim.refuse_idle(rows, settings)  # what patterns freeze is watched too
    sharding.refuse(training.objective, rows, settings, machine)
    if training.valid is None and (settings.patience is not None or settings.final == "best"):
        raise ConfigError(
            f"{own.name}: nothing is held out, so there is no best to hand on and nothing for patience to wait for",
            hint="set val_split above 0, or leave out patience and final: best",
        )
    return training


def _start(training: Training[Any]) -> dict[str, Fact]:
    """The facts that are known before the first step; none but `misplaced` where networks lie elsewhere, for
    nothing would run then."""
    placed, run, settings = _placed(training), training.inputs.run, training.settings
    if placed["misplaced"].value:
        return placed
    shared = training.corpus.leaks
    leaks = {"leaks": Fact(float(bool(shared)), note=str(shared) if shared else "")}
    return {
        **placed,
        **leaks,
        **_formats(settings, run),
        **soundness.examine(training.objective, training.train, settings, run),
        **training.checks(),
        **training.notes,
    }


def _placed(training: Training[Any]) -> dict[str, Fact]:
    """How many modules that training, measuring or saving can reach do not lie where the run computes, or
    were never placed there."""
    roots = {
        name: value for name, value in vars(training).items() if name not in ("corpus", "inputs")
    }  # samples, and the placement itself
    wrong = training.inputs.place.misplaced(**roots)
    return {"misplaced": Fact(float(len(wrong)), note="; ".join(wrong[:4]))}


def _formats(settings: StageSettings, run: Runtime) -> dict[str, Fact]:
    """How fast the slowest format that the recipe left to us is against float32, as the main rank measures it
    on its machine."""
    ours = {run.dtype} if settings.chooses_format else {torch.float32}
    if settings.optimizer == "muon":
        ours.add(runtime.product_format(1 << 30, run.device))
    gains = {one: runtime.format_gain(one, run.device) for one in ours | {run.dtype}} if run.is_main else {}
    note = ", ".join(f"{runtime.format_name(one)} x {gain:.2g}" for one, gain in gains.items())
    least = min((gains[one] for one in ours), default=1.0) if run.is_main else 1.0
    least, note = distributed.from_main((least, note), run)
    return {"format_gain": Fact(least, note=f"{note} of float32's speed on this {run.device.type}")}


def _refuse_early(identity: StageIdentity, training: Training[Any], start: dict[str, Fact]) -> None:
    """Before a step is paid for: raise GateRed, with a certificate that says so, where a gate on what is
    known already is red."""
    judged = [row for row in identity.judge(training.modalities, start) if row.is_known(start)]
    if certificate.overall(judged) != "red":
        return
    run = training.inputs.run
    refuse(distributed.from_main(_certify(identity, training, start, judged) if run.is_main else {}, run))


def _certify(
    identity: StageIdentity, training: Training[Any], facts: dict[str, Fact], judged: list[gates.Judged]
) -> dict[str, Any]:
    """Store and tell the certificate of a stage that is built."""
    own, weights = identity.entry.folder, store.digest(training.objective)
    digests: dict[str, Any] = {
        "weights": weights,
        "data": training.corpus.digest,
        "settings": identity.digest,
    }
    more: dict[str, Any] = {
        "modalities": training.modalities,
        "seed": identity.named.seed,
        "inherited": identity.inherited,
    }
    more["init_from"] = initial_weights.origin(own)
    result = certificate.write(own, own.name, facts, judged, **digests, **more)
    tell(own.name, result)
    return result


def _measure(
    training: Training[Any], fitted: Fitted, before: dict[str, str], stage_samples: StageSamples
) -> dict[str, Fact]:
    """The facts that are known at the end: the run's own, whether what was frozen (digests `before`) stayed,
    and the stage's.

    What the stage's own were measured on goes into the album.
    """
    now = _frozen(training)
    moved = [key for key, value in before.items() if now.get(key) != value]
    frozen = {"frozen_moved": Fact(float(len(moved)), len(before), note=", ".join(moved[:4]))}
    own = {**frozen, **_sound(training, fitted, training.settings), **_gap(training, fitted)}
    if own["finite"].value:  # what gives no numbers can't be asked: all that was not measured is red
        own |= training.measure(fitted, stage_samples)
    return {**own, **_placed(training)}


def _gap(training: Training[Any], fitted: Fitted) -> dict[str, Fact]:
    """How much more is lost on held-out data than on as many batches of training data (which may be
    augmented)."""
    if training.valid is None:
        return {}
    settings, run = training.settings, training.inputs.run
    alone = Runtime(run.device, run.dtype)  # only this rank measures
    trained = validation.validate(training.objective, training.train, settings, alone)
    batches = min(settings.val_batches, training.train.order.batches_per_epoch)
    gap = fitted.validation["loss"] - trained["loss"]
    losses = {
        "training_loss": Fact(trained["loss"], batches),
        "held_out_loss": Fact(fitted.validation["loss"], len(training.valid.dataset)),
    }
    return {"held_out_gap": Fact(gap, batches), **losses}


def _saved(training: Training[Any], folder: Path) -> Fact:
    """How many tensors of the networks are others in a folder than in memory."""
    wrong = training.changed(folder)
    return Fact(float(len(wrong)), len(training.networks), note=", ".join(wrong[:4]))


def _frozen(training: Training[Any]) -> dict[str, str]:
    """Digests of what must not move: parameters that the patterns freeze, and all that networks without
    trained parameters hold."""
    resting = [
        (place, net)
        for place, net in training.networks.items()
        if not any(p.requires_grad for p in net.parameters())
    ]
    resting_first = training.objective.joining  # gates `rests` and `joins` are on these
    tensors = {name: p for name, p in training.objective.named_parameters() if not p.requires_grad}
    placed = {tensor.data_ptr() for tensor in tensors.values()}
    tensors = {name: p for name, p in tensors.items() if name not in resting_first}
    tensors_frozen = {
        f"{place}/{name}": tensor for place, net in resting for name, tensor in net.state_dict().items()
    }
    tensors |= {name: tensor for name, tensor in tensors_frozen.items() if tensor.data_ptr() not in placed}
    return {name: store.digest_of(tensor) for name, tensor in tensors.items()}


def _sound(training: Training[Any], fitted: Fitted, settings: StageSettings) -> dict[str, Fact]:
    """The facts behind the gates on the run itself."""
    progress = fitted.progress
    trained = [p for p in training.objective.parameters() if p.requires_grad]
    planned = sized(settings, training.train.order, progress.worlds[0][2])
    finite = all(bool(p.isfinite().all()) for p in training.objective.parameters()) and all(
        v == v for v in fitted.validation.values()
    )
    return {
        "finite": Fact(float(finite)),
        "skipped_share": Fact(progress.skipped / max(1, progress.step), progress.step),
        "label_coverage": Fact(progress.labelled / max(1, progress.samples), progress.samples),
        **run_record_checks.order(
            fitted.drawn, training.train.order, progress.samples + progress.quarantined
        ),
        **run_record_checks.schedule(
            Rates(**progress.rates),
            planned,
            max(row.lr for row in fitted.account),
            is_whole=not progress.stopped_early,
        ),
        **run_record_checks.average(trained, settings.ema_decay or 0.0, fitted.average),
        "quarantined": Fact(float(progress.quarantined), progress.samples),
        **_kept(progress, settings),
        **_phases(training.objective, progress),
        "steps": Fact(float(progress.step)),
        "parameters": Fact(float(sum(row.count for row in fitted.account if row.trains))),
    }


def _phases(objective: Objective, progress: loop.Progress) -> dict[str, Fact]:
    """Of the parameters that rest at first: how many moved before they joined, and how many never did."""
    if not objective.joining:
        return {}
    still = [
        name
        for name, digest in progress.resting.items()
        if store.digest_of(objective.get_parameter(name)) == digest
    ]
    moved, count = progress.moved_early, len(objective.joining)
    return {
        "rested_moved": Fact(float(len(moved)), count, note=", ".join(moved[:4])),
        "joined_still": Fact(float(len(still)), count, note=", ".join(still[:4])),
    }


def _kept(progress: loop.Progress, settings: StageSettings) -> dict[str, Fact]:
    """Both losses of the validations while it trained: of the best weights, which lie in `best/`, and of the
    last; fp16's overflows."""
    facts = {"fp16_overflows": Fact(float(progress.overflows), progress.step)} if progress.overflows else {}
    if progress.best_step >= 0:
        handed = "handed on" if settings.final == "best" else "kept in best/"
        facts["best_validation_loss"] = Fact(
            progress.best, settings.val_batches, note=f"of step {progress.best_step}, {handed}"
        )
        facts["last_validation_loss"] = Fact(
            progress.last, settings.val_batches, note=f"of step {progress.step}"
        )
    return facts


def waived_here(entry: Entry, waived: dict[str, str]) -> dict[str, str]:
    """Those of the waivers, by gate name, that speak of this stage's gates."""
    names = {gate.name for gate in entry.gates}
    return {gate: why for gate, why in waived.items() if gate in names}


def _reuse(identity: StageIdentity, done: dict[str, Any], machine: Runtime) -> dict[str, Any]:
    """A finished stage as it is; its facts are judged anew, so that new bounds and waivers, its own and those
    below it, count.

    Raises  CheckpointError where its `final/` is not what its certificate speaks of.
    """
    own = identity.entry.folder
    _on_main(lambda: integrity.verify(own / "final"), machine)
    facts = {key: Fact.from_json(row) for key, row in done["facts"].items()}
    judged = judge(identity.entry, done["modalities"], facts, {**waived_before(done), **identity.waived})
    if machine.is_main:
        digests: dict[str, Any] = {key: done[key] for key in ("weights", "data", "settings")}
        more: dict[str, Any] = {
            "modalities": done["modalities"],
            "seed": identity.named.seed,
            "inherited": identity.inherited,
        }
        more["init_from"] = done.get("init_from")
        done = certificate.write(own, own.name, facts, judged, **digests, **more)
        print(f"[{identity.entry.name}] done before: reused", file=sys.stderr)
        tell(identity.entry.name, done)
    done = distributed.from_main(done, machine)
    refuse(done)
    return done


def named_by(own: Path, settings: StageSettings, world: int, *, fresh: bool) -> StageSettings:
    """The settings that a stage's folder goes by: these, but for another accumulation that makes the same
    batch on another number of ranks.

    So 1 rank x 6 micro-batches may go on as 2 x 3; where the product is another one too, accumulation is a
    setting like any other.
    """
    if fresh or not (own / BATCH).exists() or not (own / "config.yaml").exists():
        return settings
    if settings.gradient_accumulation_steps * world != files.read_stored(own / BATCH, int, hint=ANEW):
        return settings
    stored_accumulation = recipes.stored_settings(own, type(settings)).get(
        "gradient_accumulation_steps", settings.gradient_accumulation_steps
    )
    return settings.model_copy(update={"gradient_accumulation_steps": stored_accumulation})


def _open_folder(identity: StageIdentity, world: int, fresh: bool) -> None:
    """Make the stage's folder, or see that the one there was made with the same settings.

    Raises  ConfigError where it was made with others.
    """
    own, settings, digest = identity.entry.folder, identity.named, identity.digest
    if fresh and own.exists():
        files.put_away(own)
    if identity.stored is not None:
        lines, harmless = config.difference(identity.stored, identity.written), recipes.harmless(settings)
        changed = [line for line in lines if line.split(":")[0].split(".")[0] not in harmless]
        stored = own / DIGEST
        if changed or (stored.exists() and files.read_stored(stored, str, hint=ANEW) not in identity.digests):
            what = (
                "; ".join(changed)
                or "its data, a stage that it needs, or weights of others that it stands on"
            )
            raise ConfigError(f"{own}: made with other settings: {what}", hint=ANEW)
    files.clear_leftovers(own, deep=True)  # of a run that was killed while it wrote
    (own / certificate.NAME).unlink(
        missing_ok=True
    )  # what is trained or measured again has none until it is done
    write_settings(own, identity.written, digest)
    files.write_json(own / BATCH, identity.entry.settings.gradient_accumulation_steps * world)


def write_settings(own: Path, settings: dict[str, Any], digest: str) -> None:
    """Put a stage's settings, and their digest, into its folder."""
    files.write_text(own / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
    files.write_json(own / DIGEST, digest)


def tell(name: str, result: dict[str, Any]) -> None:
    """Print a certificate's verdicts."""
    for gate in result["gates"]:
        value = "-" if gate["value"] is None else f"{gate['value']:.4g}"
        print(f"[{name}] {gate['verdict']:6} {gate['name']}: {value} {gate['threshold']}", file=sys.stderr)
    took_s = result["facts"].get("wall_s", {}).get("value") or 0
    print(f"[{name}] {result['verdict']} after {format_seconds(took_s)}", file=sys.stderr, flush=True)


def refuse(result: dict[str, Any]) -> None:
    """Raise GateRed, with the reasons, for a certificate that is red."""
    if result["verdict"] == "red":
        raise GateRed(f"stage {result['stage']}: {certificate.reasons(result)}")
