"""One stage: from settings to a certificate, reused where it is done, resumed where it broke off, refused where it was made otherwise."""

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
from muomni.evaluate import baseline, certificate, gates, soundness, thresholds, witnesses
from muomni.evaluate.album import Album
from muomni.evaluate.facts import Fact
from muomni.models import integrity, store
from muomni.runtime import Runtime
from muomni.stages import initial_weights, introduction, ownership, sizing
from muomni.stages import recipe as recipes
from muomni.stages.recipe import Recipe
from muomni.stages.stage import Entry, StageSettings, Training, build
from muomni.train import account, distributed, loop, optim, validation
from muomni.train.checkpoint import Identity
from muomni.train.loop import Fitted
from muomni.train.settings import clipped, sized, steps_in_all
from muomni.train.witness import Rates
from muomni.units import told_seconds

BATCH = "batch.json"  # micro-batches of an update over all ranks, as the stage was trained last
DIGEST = "digest.json"  # of the settings, data and bases that a stage is made from (recipes.digest)
ANEW = "--fresh deletes it and starts anew, --out DIR keeps it"
T = TypeVar("T")


def judge(entry: Entry, modalities: Collection[str], facts: dict[str, Fact], waived: dict[str, str]) -> list[gates.Judged]:
    """The verdicts of all gates that apply to a stage on data of these modalities."""
    applying = [gate for gate in entry.gates if gate.applies(entry.settings, modalities)]
    names = {gate.name for gate in entry.gates} - {gate.name for gate in applying}
    bounds = {name: bound for name, bound in entry.settings.gates.items() if name not in names}
    return gates.judge(applying, facts, bounds, {name: why for name, why in waived.items() if name not in names})


def default_threads(plan: Recipe) -> int:
    """Threads of a stage that sets none: MUOMNI_THREADS, else the recipe's."""
    return int(os.environ.get("MUOMNI_THREADS", plan.threads))


@dataclass
class Claim:
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


def run_stage(plan: Recipe, entry: Entry, machine: Runtime, *, fresh: bool, waived: dict[str, str]) -> dict[str, Any]:
    """Train, measure, judge and save one stage; give its certificate.

    Raises  GateRed where it, or one that it needs, is red.
    """
    # 1. claim: what it is made of; a finished stage that is made of the same is reused
    runtime.use_threads(entry.settings.threads or default_threads(plan))
    claim = _claimed(plan, entry, machine, fresh, waived)
    entry, own = claim.entry, entry.folder
    if not fresh and (done := _done(claim, machine)) is not None:
        return _reuse(claim, done, machine)
    _on_main(lambda: _open_folder(claim, machine.world, fresh), machine)

    # 2. prepare: networks, data, and what must be known of both before they train
    begin = time.perf_counter()
    built = _begun(entry, plan.base, machine)
    rows = optim.select(built.objective, entry.settings)
    _introduce(plan, entry, built, built.inputs.run, rows)
    if machine.is_main:
        files.write_json(own / "account.json", account.to_json(rows))

    # 3. prove, on six rows, that it can learn what it is to learn and nothing else
    resting = _frozen(built)  # before the trials too: they share what is given
    start = {"base_mismatch": base_mismatch(entry), **_start(built)}
    _refuse_early(claim, built, start)
    if entry.settings.epoch_duration is not None and entry.settings.samples_per_epoch is None:
        _measure_epoch(claim, built)

    # 4. fit
    settings, run = claim.entry.settings, built.inputs.run
    how: dict[str, Any] = {"name": entry.name, "saved": built.saved, "export": built.export}
    how["identity"] = Identity(claim.digest, recipes.result_settings(claim.named), type(claim.named))
    fitted = loop.fit(built.objective, built.train, built.valid, settings, run, own, **how)

    # 5. certify
    spread = distributed.spread(store.digest(built.objective, parameters_only=True), run)
    start["rank_spread"] = Fact(float(spread), run.world)
    result: dict[str, Any] = {}
    if machine.is_main:
        result = _concluded(claim, built, fitted, resting, start, begin)
    result = distributed.from_main(result, machine)
    refuse(result)
    return result


def _claimed(plan: Recipe, entry: Entry, machine: Runtime, fresh: bool, waived: dict[str, str]) -> Claim:
    """The stage, with all that it stands on looked through; epochs and accumulation as its folder has them, unless `fresh`."""
    settings, own = entry.settings, entry.folder
    bases, inherited = _on_main(lambda: _foundation(entry, plan.base), machine)
    settings = settings if fresh else distributed.from_main(sizing.stored(settings, own), machine)
    named = distributed.from_main(named_by(own, settings, machine.world, fresh=fresh), machine)
    sources = readers.fingerprint(settings.learned, plan.base)
    is_new = fresh or not (own / "config.yaml").exists()
    stored = _on_main(lambda: None if is_new else recipes.stored_settings(own, type(settings)), machine)
    return Claim(replace(entry, settings=settings), named, stored, bases, inherited, sources, waived_here(entry, waived))


def _done(claim: Claim, machine: Runtime) -> dict[str, Any] | None:
    """The certificate of a finished stage that was made of the same; one that names no files is told, and counts for nothing."""
    own = claim.entry.folder
    done = certificate.read(own)
    if not done or done.get("settings") != claim.digest or not (own / "final").is_dir() or "modalities" not in done:
        return None
    if integrity.names_files(done):
        return done
    if machine.is_main:
        line = "its certificate names no files (it is of an older version): measured again"
        print(f"[{claim.entry.name}] {line}", file=sys.stderr, flush=True)
    return None


def _measure_epoch(claim: Claim, built: Training[Any]) -> None:
    """Have the stage go by the samples that fit `epoch_duration` on this machine, as its folder says from now on."""
    run = built.inputs.run
    samples, how = sizing.measured(built.settings, built, run)
    built.settings, claim.named = (each.model_copy(update={"samples_per_epoch": samples}) for each in (built.settings, claim.named))
    claim.entry = replace(claim.entry, settings=built.settings)
    if run.is_main:
        write_settings(claim.entry.folder, claim.written, claim.digest)
    _tell_length(claim.entry.name, built, run, how=how)


def _concluded(
    claim: Claim, built: Training[Any], fitted: Fitted, resting: dict[str, str], start: dict[str, Fact], begin: float
) -> dict[str, Any]:
    """Measure, save, and certify a stage that has trained; the main rank alone.

    Takes   resting: digests of what must not have moved; start: the facts known before; begin: when it was, by the clock.
    """
    album = Album()
    facts = {**start, **_measure(built, fitted, resting, album)}
    album.write(claim.entry.folder / "samples")
    with files.fresh_folder(claim.entry.folder / "final") as part:
        built.save(part)
        facts["saved_error"] = _saved(built, part)
    facts["base_mismatch"] = base_mismatch(claim.entry)  # once more: hours have passed, and measuring opened some of them
    facts["wall_s"] = Fact(time.perf_counter() - begin)
    return _certify(claim, built, facts, claim.judge(built.modalities, facts))


@contextmanager
def alone(entry: Entry, machine: Runtime) -> Iterator[None]:
    """Hold a stage of a run's folder for this process (or its ranks): what two would write there, neither could stand for.

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
    return _mismatch([f"{name}: {line}" for name, final in entry.needed.items() for line in integrity.changed(final)], len(entry.needs))


def _mismatch(lines: Sequence[str], among: int) -> Fact:
    """The fact behind gate `bases`: so many files of so many stages are others, and which."""
    return Fact(float(len(lines)), among, note=integrity.shown(list(lines)))


def also_changed(saved_error: Fact, own: Path) -> Fact:
    """The fact behind gate `saved`, with the files of `final/` that are not what its certificate names counted in."""
    lines = integrity.changed(own / "final")
    note = "; ".join(each for each in (saved_error.note, integrity.shown(lines)) if each)
    return Fact(saved_error.value + len(lines), saved_error.n, note=note)


def _foundation(entry: Entry, base: Path) -> tuple[dict[str, str], certificate.Waivers]:
    """Digests of the weights that a stage stands on, every file of them checked, and what was waived of these.

    Takes   base: where the paths of its settings start.

    Raises  GateRed where a needed stage is missing, red, or other than its certificate says: then this stage's certificate,
            unless it is finished, says so too; CheckpointError where what comes from outside is other.
    """
    name, settings, needs = entry.name, entry.settings, entry.needs
    try:
        certificates = {other: certificate.demand(entry.run / other, name) for other in needs}
    except certificate.BaseChanged as error:
        own, done = entry.folder, certificate.read(entry.folder)
        if done is None or not integrity.names_files(done):
            facts = {"base_mismatch": _mismatch(error.lines, len(needs))}
            judged = [row for row in judge(entry, (), facts, {}) if row.is_known(facts)]
            tell(name, certificate.write(own, own.name, facts, judged, weights="", data="", settings="", seed=settings.seed))
        raise
    digests = {other: found["weights"] for other, found in certificates.items()} | settings.given(base)
    inherited = [integrity.waivers(found) for found in certificates.values()]
    return digests, integrity.merged(*inherited, _outside(settings, base, name))


def _outside(settings: StageSettings, base: Path, name: str) -> certificate.Waivers:
    """What was waived of stages of other runs that this one starts from; what is not proven of them is told.

    Raises  CheckpointError where their files are not what their certificates name.
    """
    found = []
    for folder in settings.outside(base):
        theirs = integrity.verify(folder)
        is_stage = folder.name == integrity.FINAL or integrity.locate(folder) is not None  # what others trained has no certificate
        if is_stage and (caveat := integrity.caveat(theirs)):
            print(f"[{name}] stands on {folder}: {caveat}", file=sys.stderr, flush=True)
        found += [] if theirs is None else [integrity.waivers(theirs)]
    return integrity.merged(*found)


def outside_waivers(settings: StageSettings, origin: Mapping[str, Any]) -> certificate.Waivers:
    """The same for a finished stage, of the run whose `recipe.json` is given."""
    return _outside(settings, Path(origin["base"]), "gate")


def _on_main(work: Callable[[], T], machine: Runtime) -> T:
    """What the main rank finds, on all ranks; so is an error of ours. What it read and hashed, the others need not read again."""
    found: T | None = None
    error: MuomniError | None = None
    if machine.is_main:
        try:
            found = work()
        except MuomniError as problem:
            if machine.world == 1:
                raise
            error = problem
    error, found, known = distributed.from_main((error, found, files.known_digests()), machine)
    files.learn_digests(known)
    if error is not None:
        raise error
    return found


def _introduce(plan: Recipe, entry: Entry, built: Training[Any], run: Runtime, rows: Sequence[optim.Row]) -> None:
    """Say what the stage is, which of how many, in what it computes (what is emulated in a line of its own), what trains, and on what."""
    if not run.is_main:
        return
    name, settings = entry.name, entry.settings
    trained = [other.name for other in plan.stages.values() if not other.points]
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if run.device.type == "cpu" else ""
    what = f"stage {trained.index(name) + 1} of {len(trained)}: {entry.stage.teaches}"
    is_known = settings.epoch_duration is None or settings.samples_per_epoch is not None
    steps = steps_in_all(settings, built.train.order, settings.gradient_accumulation_steps * run.world) if is_known else None
    length = f"epochs of {settings.epoch_duration}" if steps is None else f"{steps} steps"
    lines = [f"{what}; {length} in {runtime.told_format(run.dtype)} on {run.device.type}{threads}"]
    lines += runtime.emulated({run.dtype, *(p.dtype for p in built.objective.parameters())}, run.device)
    lines += introduction.lines(built, settings, rows, run.world, steps)
    print("\n".join(f"[{name}] {line}" for line in lines), file=sys.stderr, flush=True)
    if is_known:
        _tell_length(name, built, run)


def _tell_length(name: str, built: Training[Any], run: Runtime, **how: str) -> None:
    """Say what an epoch is, where it is no pass through the data, and that the warm-up is cut, where it is longer than the run."""
    if not run.is_main:
        return
    settings, order = built.settings, built.train.order
    per_step = settings.gradient_accumulation_steps * run.world
    lines = [] if settings.samples_per_epoch is None else [sizing.told(settings, order, per_step, **how)]
    lines += clipped(settings, sized(settings, order, per_step))
    for line in lines:
        print(f"[{name}] {line}", file=sys.stderr, flush=True)


def gate_stage(entry: Entry, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Build a finished stage from its own settings, put its weights in place, measure and judge it; nothing is written.

    Takes   earlier: the facts of another report, by stage, behind which these must not fall.
    """
    origin, settings, own = recipes.origin(entry.run, "base", "device", "threads"), entry.settings, entry.folder
    machine = runtime.start(device=origin["device"], threads=int(os.environ.get("MUOMNI_THREADS", origin["threads"])))
    stored = certificate.read(own) or {"gates": [], "facts": {}}
    known = [certificate.read(entry.run / name) for name in entry.needs]
    inherited = integrity.merged(*(integrity.waivers(each) for each in known if each is not None), outside_waivers(settings, origin))
    start = {"base_mismatch": base_mismatch(entry)}
    if start["base_mismatch"].value:  # to measure upon other weights would tell nothing
        judged = [row for row in judge(entry, stored.get("modalities", ()), start, {}) if row.is_known(start)]
        return told_again(entry, start, judged, earlier, inherited)
    built = _begun(entry, Path(origin["base"]), machine)
    before = _frozen(built)
    start |= _start(built)
    is_known = (own / DIGEST).exists()
    digest = files.read_stored(own / DIGEST, str, hint=ANEW) if is_known else ""
    identity = Identity(digest, recipes.result_settings(settings), type(settings)) if is_known else None
    fitted = loop.restore(built.objective, built.valid, settings, built.inputs.run, own, identity=identity, export=built.export)
    facts = {**start, **_measure(built, fitted, before, Album()), "saved_error": _saved(built, own / "final")}
    facts["saved_error"] = also_changed(facts["saved_error"], own)
    if "rank_spread" in stored["facts"]:  # of the run itself: its ranks are gone
        facts["rank_spread"] = Fact.from_json(stored["facts"]["rank_spread"])
    return told_again(entry, facts, judge(entry, built.modalities, facts, waived_before(stored)), earlier, inherited)


def waived_before(stored: Mapping[str, Any]) -> dict[str, str]:
    """The waivers of a certificate, with their reasons."""
    return {row["name"]: row["why"] for row in stored["gates"] if row["verdict"] == "waived"}


def told_again(
    entry: Entry,
    facts: dict[str, Fact],
    judged: list[gates.Judged],
    earlier: Mapping[str, Any] | None,
    inherited: certificate.Waivers,
) -> dict[str, Any]:
    """What `muomni gate` tells of a stage, compared with the facts of an earlier report where there is one."""
    name = entry.name
    if earlier is not None:
        if name not in earlier:
            raise ConfigError(f"the baseline has no stage {name}", hint=f"it has {', '.join(earlier) or 'none'}")
        compared = [gate for gate in entry.gates if gate not in thresholds.SOUND]
        judged += baseline.compare(compared, facts, earlier[name])
    return {
        "stage": name,
        "verdict": certificate.overall(judged, inherited),
        "facts": {key: fact.to_json() for key, fact in facts.items()},
        "gates": [row.to_json() for row in judged],
        "inherited": inherited,
    }


def _begun(entry: Entry, base: Path, machine: Runtime) -> Training[Any]:
    """The stage, built, with the weights that `init_from` names.

    Takes   base: where the paths of its settings start.
    Raises  ConfigError for settings that would have no effect.
    """
    settings, own = entry.settings, entry.folder
    built = build(entry.stage, settings, own, entry.needed, base, machine)
    if settings.init_from is not None:
        taken = initial_weights.take_over(built.objective, settings.init_from, base, own, is_main=machine.is_main)
        built.notes["init_share"] = taken
    optim.refuse_idle(optim.select(built.objective, settings), settings)  # what patterns freeze is watched too
    if built.valid is None and (settings.patience is not None or settings.final == "best"):
        raise ConfigError(
            f"{own.name}: nothing is held out, so there is no best to hand on and nothing for patience to wait for",
            hint="set val_split above 0, or leave out patience and final: best",
        )
    return built


def _start(built: Training[Any]) -> dict[str, Fact]:
    """The facts that are known before the first step; none but `misplaced` where networks lie elsewhere, for nothing would run then."""
    placed, run, settings = _placed(built), built.inputs.run, built.settings
    if placed["misplaced"].value:
        return placed
    shared = built.corpus.leaks
    leaks = {"leaks": Fact(float(bool(shared)), note=str(shared) if shared else "")}
    return {
        **placed,
        **leaks,
        **_formats(settings, run),
        **soundness.examine(built.objective, built.train, settings, run),
        **built.checks(),
        **built.notes,
    }


def _placed(built: Training[Any]) -> dict[str, Fact]:
    """How many modules that training, measuring or saving can reach do not lie where the run computes, or were never placed there."""
    roots = {name: value for name, value in vars(built).items() if name not in ("corpus", "inputs")}  # samples, and the placement itself
    wrong = built.inputs.place.misplaced(**roots)
    return {"misplaced": Fact(float(len(wrong)), note="; ".join(wrong[:4]))}


def _formats(settings: StageSettings, run: Runtime) -> dict[str, Fact]:
    """How fast the slowest format that the recipe left to us is against float32, as the main rank measures it on its machine."""
    ours = {run.dtype} if settings.chooses_format else {torch.float32}
    if settings.optimizer == "muon":
        ours.add(runtime.product_format(1 << 30, run.device))
    gains = {one: runtime.format_gain(one, run.device) for one in ours | {run.dtype}} if run.is_main else {}
    note = ", ".join(f"{runtime.told_format(one)} x {gain:.2g}" for one, gain in gains.items())
    least = min((gains[one] for one in ours), default=1.0) if run.is_main else 1.0
    least, note = distributed.from_main((least, note), run)
    return {"format_gain": Fact(least, note=f"{note} of float32's speed on this {run.device.type}")}


def _refuse_early(claim: Claim, built: Training[Any], start: dict[str, Fact]) -> None:
    """Before a step is paid for: raise GateRed, with a certificate that says so, where a gate on what is known already is red."""
    known = [row for row in claim.judge(built.modalities, start) if row.is_known(start)]
    if certificate.overall(known) != "red":
        return
    run = built.inputs.run
    refuse(distributed.from_main(_certify(claim, built, start, known) if run.is_main else {}, run))


def _certify(claim: Claim, built: Training[Any], facts: dict[str, Fact], judged: list[gates.Judged]) -> dict[str, Any]:
    """Store and tell the certificate of a stage that is built."""
    own, weights = claim.entry.folder, store.digest(built.objective)
    digests: dict[str, Any] = {"weights": weights, "data": built.corpus.digest, "settings": claim.digest}
    more: dict[str, Any] = {"modalities": built.modalities, "seed": claim.named.seed, "inherited": claim.inherited}
    more["init_from"] = initial_weights.origin(own)
    result = certificate.write(own, own.name, facts, judged, **digests, **more)
    tell(own.name, result)
    return result


def _measure(built: Training[Any], fitted: Fitted, before: dict[str, str], album: Album) -> dict[str, Fact]:
    """The facts that are known at the end: the run's own, whether what was frozen (digests `before`) stayed, and the stage's.

    What the stage's own were measured on goes into the album.
    """
    now = _frozen(built)
    moved = [key for key, value in before.items() if now.get(key) != value]
    frozen = {"frozen_moved": Fact(float(len(moved)), len(before), note=", ".join(moved[:4]))}
    own = {**frozen, **_sound(built, fitted, built.settings), **_gap(built, fitted)}
    if own["finite"].value:  # what gives no numbers can't be asked: all that was not measured is red
        own |= built.measure(fitted, album)
    return {**own, **_placed(built)}


def _gap(built: Training[Any], fitted: Fitted) -> dict[str, Fact]:
    """How much more is lost on held-out data than on as many batches of training data (which may be augmented)."""
    if built.valid is None:
        return {}
    settings, run = built.settings, built.inputs.run
    alone = Runtime(run.device, run.dtype)  # only this rank measures
    trained = validation.validate(built.objective, built.train, settings, alone)
    batches = min(settings.val_batches, built.train.order.batches_per_epoch)
    gap = fitted.validation["loss"] - trained["loss"]
    losses = {"training_loss": Fact(trained["loss"], batches), "held_out_loss": Fact(fitted.validation["loss"], len(built.valid.dataset))}
    return {"held_out_gap": Fact(gap, batches), **losses}


def _saved(built: Training[Any], folder: Path) -> Fact:
    """How many tensors of the networks are others in a folder than in memory."""
    wrong = built.changed(folder)
    return Fact(float(len(wrong)), len(built.networks), note=", ".join(wrong[:4]))


def _frozen(built: Training[Any]) -> dict[str, str]:
    """Digests of what must not move: parameters that the patterns freeze, and all that networks without trained parameters hold."""
    resting = [(place, net) for place, net in built.networks.items() if not any(p.requires_grad for p in net.parameters())]
    tensors = {name: p for name, p in built.objective.named_parameters() if not p.requires_grad}
    known = {tensor.data_ptr() for tensor in tensors.values()}
    held = {f"{place}/{name}": tensor for place, net in resting for name, tensor in net.state_dict().items()}
    tensors |= {name: tensor for name, tensor in held.items() if tensor.data_ptr() not in known}
    return {name: store.digest_of(tensor) for name, tensor in tensors.items()}


def _sound(built: Training[Any], fitted: Fitted, settings: StageSettings) -> dict[str, Fact]:
    """The facts behind the gates on the run itself."""
    progress = fitted.progress
    trained = [p for p in built.objective.parameters() if p.requires_grad]
    planned = sized(settings, built.train.order, progress.worlds[0][2])
    finite = all(bool(p.isfinite().all()) for p in built.objective.parameters()) and all(v == v for v in fitted.validation.values())
    return {
        "finite": Fact(float(finite)),
        "skipped_share": Fact(progress.skipped / max(1, progress.step), progress.step),
        "label_coverage": Fact(progress.labelled / max(1, progress.samples), progress.samples),
        **witnesses.order(fitted.drawn, built.train.order, progress.samples + progress.quarantined),
        **witnesses.schedule(Rates(**progress.rates), planned, max(row.lr for row in fitted.account), is_whole=not progress.stopped_early),
        **witnesses.average(trained, settings.ema_decay or 0.0, fitted.average),
        "quarantined": Fact(float(progress.quarantined), progress.samples),
        **_kept(progress, settings),
        "steps": Fact(float(progress.step)),
        "parameters": Fact(float(sum(row.count for row in fitted.account if row.trains))),
    }


def _kept(progress: loop.Progress, settings: StageSettings) -> dict[str, Fact]:
    """Both losses of the validations while it trained: of the best weights, which lie in `best/`, and of the last; fp16's overflows."""
    found = {"fp16_overflows": Fact(float(progress.overflows), progress.step)} if progress.overflows else {}
    if progress.best_step >= 0:
        handed = "handed on" if settings.final == "best" else "kept in best/"
        found["best_validation_loss"] = Fact(progress.best, settings.val_batches, note=f"of step {progress.best_step}, {handed}")
        found["last_validation_loss"] = Fact(progress.last, settings.val_batches, note=f"of step {progress.step}")
    return found


def waived_here(entry: Entry, waived: dict[str, str]) -> dict[str, str]:
    """Those of the waivers, by gate name, that speak of this stage's gates."""
    names = {gate.name for gate in entry.gates}
    return {gate: why for gate, why in waived.items() if gate in names}


def _reuse(claim: Claim, done: dict[str, Any], machine: Runtime) -> dict[str, Any]:
    """A finished stage as it is; its facts are judged anew, so that new bounds and waivers, its own and those below it, count.

    Raises  CheckpointError where its `final/` is not what its certificate speaks of.
    """
    own = claim.entry.folder
    _on_main(lambda: integrity.verify(own / "final"), machine)
    facts = {key: Fact.from_json(row) for key, row in done["facts"].items()}
    judged = judge(claim.entry, done["modalities"], facts, {**waived_before(done), **claim.waived})
    if machine.is_main:
        digests: dict[str, Any] = {key: done[key] for key in ("weights", "data", "settings")}
        more: dict[str, Any] = {"modalities": done["modalities"], "seed": claim.named.seed, "inherited": claim.inherited}
        more["init_from"] = done.get("init_from")
        done = certificate.write(own, own.name, facts, judged, **digests, **more)
        print(f"[{claim.entry.name}] done before: reused", file=sys.stderr)
        tell(claim.entry.name, done)
    done = distributed.from_main(done, machine)
    refuse(done)
    return done


def named_by(own: Path, settings: StageSettings, world: int, *, fresh: bool) -> StageSettings:
    """The settings that a stage's folder goes by: these, but for another accumulation that makes the same batch on another number of ranks.

    So 1 rank x 6 micro-batches may go on as 2 x 3; where the product is another one too, accumulation is a setting like any other.
    """
    if fresh or not (own / BATCH).exists() or not (own / "config.yaml").exists():
        return settings
    if settings.gradient_accumulation_steps * world != files.read_stored(own / BATCH, int, hint=ANEW):
        return settings
    made = recipes.stored_settings(own, type(settings)).get("gradient_accumulation_steps", settings.gradient_accumulation_steps)
    return settings.model_copy(update={"gradient_accumulation_steps": made})


def _open_folder(claim: Claim, world: int, fresh: bool) -> None:
    """Make the stage's folder, or see that the one there was made with the same settings.

    Raises  ConfigError where it was made with others.
    """
    own, settings, digest = claim.entry.folder, claim.named, claim.digest
    if fresh and own.exists():
        files.put_away(own)
    if claim.stored is not None:
        lines, harmless = config.difference(claim.stored, claim.written), recipes.harmless(settings)
        changed = [line for line in lines if line.split(":")[0].split(".")[0] not in harmless]
        stored = own / DIGEST
        if changed or (stored.exists() and files.read_stored(stored, str, hint=ANEW) not in claim.digests):
            what = "; ".join(changed) or "its data, a stage that it needs, or weights of others that it stands on"
            raise ConfigError(f"{own}: made with other settings: {what}", hint=ANEW)
    files.clear_leftovers(own, deep=True)  # of a run that was killed while it wrote
    (own / certificate.NAME).unlink(missing_ok=True)  # what is trained or measured again has none until it is done
    write_settings(own, claim.written, digest)
    files.write_json(own / BATCH, claim.entry.settings.gradient_accumulation_steps * world)


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
    print(f"[{name}] {result['verdict']} after {told_seconds(took_s)}", file=sys.stderr, flush=True)


def refuse(result: dict[str, Any]) -> None:
    """Raise GateRed, with the reasons, for a certificate that is red."""
    if result["verdict"] == "red":
        raise GateRed(f"stage {result['stage']}: {certificate.reasons(result)}")
