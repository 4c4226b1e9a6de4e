"""One stage: from settings to a certificate, reused where it is done, resumed where it broke off, refused where it was made otherwise."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from muomni import config, files, runtime
from muomni.data import readers
from muomni.errors import CheckpointError, ConfigError, GateRed
from muomni.evaluate import baseline, certificate, gates, soundness, thresholds, witnesses
from muomni.evaluate.album import Album
from muomni.evaluate.facts import Fact
from muomni.models import store
from muomni.runtime import Runtime
from muomni.stages import recipe as recipes
from muomni.stages.recipe import Recipe
from muomni.stages.stage import Inputs, Plan, Stage, StageSettings
from muomni.train import distributed, given, loop, optim, validation
from muomni.train.loop import Fitted
from muomni.train.witness import Rates

BATCH = "batch.json"  # micro-batches of an update over all ranks, as the stage was trained last


def all_gates(stage: Stage, settings: StageSettings) -> tuple[gates.Gate, ...]:
    """The gates that every stage has, the stage's own, and what the recipe demands beside them."""
    return (*thresholds.SOUND, *stage.gates, *gates.demanded(settings.demands))


def judge(
    stage: Stage, settings: StageSettings, modalities: Collection[str], facts: dict[str, Fact], waived: dict[str, str]
) -> list[gates.Judged]:
    """The verdicts of all gates that apply to a stage of these settings on data of these modalities."""
    every = all_gates(stage, settings)
    applying = [gate for gate in every if gate.applies(settings, modalities)]
    names = {gate.name for gate in every} - {gate.name for gate in applying}
    bounds = {name: bound for name, bound in settings.gates.items() if name not in names}
    return gates.judge(applying, facts, bounds, {name: why for name, why in waived.items() if name not in names})


def default_threads(plan: Recipe) -> int:
    """Threads of a stage that sets none: MUOMNI_THREADS, else the recipe's."""
    return int(os.environ.get("MUOMNI_THREADS", plan.threads))


def run_stage(plan: Recipe, name: str, folder: Path, machine: Runtime, *, fresh: bool, waived: dict[str, str]) -> dict[str, Any]:
    """Train, measure, judge and save one stage; give its certificate.

    Raises  GateRed where it, or one that it needs, is red.
    """
    stage, settings = recipes.stage(name), plan.stages[name]
    runtime.use_threads(settings.threads or default_threads(plan))
    own = folder / name
    needs = recipes.needs(plan.stages, name)
    needed = {other: certificate.demand(folder / other, name)["weights"] for other in needs} | settings.given(plan.base)
    named = distributed.from_main(named_by(own, settings, machine.world, fresh=fresh), machine)
    digest = recipes.digest(named, needed, readers.fingerprint(settings.data, plan.base))
    done = certificate.read(own)
    if done and done["settings"] == digest and (own / "final").is_dir() and not fresh and "modalities" in done:
        return _reuse(stage, settings, own, done, waived, machine)
    if machine.is_main:
        _open_folder(own, named, digest, fresh)
        files.write_json(own / BATCH, settings.gradient_accumulation_steps * machine.world)
    distributed.wait_for_main(machine)

    begin = time.perf_counter()
    built, run_as = _build(stage, settings, own, {n: folder / n / "final" for n in needs}, plan.base, machine)
    before = _frozen(built)  # before the trials too: they share what is given
    start = _start(built, settings, run_as)
    _refuse_early(stage, settings, built, start, own, digest, waived_here(stage, settings, waived), run_as)
    fitted = loop.fit(built.objective, built.train, built.valid, settings, run_as, own, name=name, saved=built.saved)
    spread = distributed.spread(store.digest(built.objective, parameters_only=True), run_as)
    result: dict[str, Any] = {}
    if machine.is_main:
        rows = [{"name": r.name, "shape": list(r.shape), "count": r.count, "lr": r.lr, "trains": r.trains} for r in fitted.account]
        files.write_json(own / "account.json", rows)
        album = Album()
        ended = _measure(built, fitted, before, settings, run_as, album)
        facts = {**start, "rank_spread": Fact(float(spread), run_as.world), **ended}
        album.write(own / "samples")
        with files.fresh_folder(own / "final") as part:
            built.save(part)
            facts["saved_error"] = _saved(built, part)
        facts["wall_s"] = Fact(time.perf_counter() - begin)
        judged = judge(stage, settings, built.modalities, facts, waived_here(stage, settings, waived))
        result = _certify(built, settings, own, facts, judged, digest)
    result = distributed.from_main(result, machine)
    refuse(result)
    return result


def gate_stage(folder: Path, name: str, earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Build a finished stage from its own settings, put its weights in place, measure and judge it; nothing is written.

    Takes   earlier: the facts of another report, by stage, behind which these must not fall.
    """
    origin, stage, own = files.read_json(folder / "recipe.json"), recipes.stage(name), folder / name
    settings = config.build(stage.settings, config.read_yaml(own / "config.yaml"), str(own / "config.yaml"))
    machine = runtime.start(device=origin["device"], threads=int(os.environ.get("MUOMNI_THREADS", origin["threads"])))
    needed = {n: folder / n / "final" for n in recipes.needs({name: settings}, name)}
    built, run_as = _build(stage, settings, own, needed, Path(origin["base"]), machine)
    before = _frozen(built)
    start = _start(built, settings, run_as)
    fitted = loop.restore(built.objective, built.valid, settings, run_as, own)
    facts = {**start, **_measure(built, fitted, before, settings, run_as, Album()), "saved_error": _saved(built, own / "final")}
    stored = certificate.read(own) or {"gates": [], "facts": {}}
    if "rank_spread" in stored["facts"]:  # of the run itself: its ranks are gone
        facts["rank_spread"] = Fact.from_json(stored["facts"]["rank_spread"])
    return told_again(name, settings, facts, judge(stage, settings, built.modalities, facts, waived_before(stored)), earlier)


def waived_before(stored: Mapping[str, Any]) -> dict[str, str]:
    """The waivers of a certificate, with their reasons."""
    return {row["name"]: row["why"] for row in stored["gates"] if row["verdict"] == "waived"}


def told_again(
    name: str, settings: StageSettings, facts: dict[str, Fact], judged: list[gates.Judged], earlier: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What `muomni gate` tells of a stage, compared with the facts of an earlier report where there is one."""
    stage = recipes.stage(name)
    if earlier is not None:
        if name not in earlier:
            raise ConfigError(f"the baseline has no stage {name}", hint=f"it has {', '.join(earlier) or 'none'}")
        judged += baseline.compare([*stage.gates, *gates.demanded(settings.demands)], facts, earlier[name])
    return {
        "stage": name,
        "verdict": certificate.overall(judged),
        "facts": {key: fact.to_json() for key, fact in facts.items()},
        "gates": [row.to_json() for row in judged],
    }


def _build(stage: Stage, settings: StageSettings, own: Path, needed: dict[str, Path], base: Path, machine: Runtime) -> tuple[Plan, Runtime]:
    """The stage of a folder as its seed, number format and `init_from` say, frozen where it is to be, and the machine it runs on."""
    precision = settings.precision if settings.use_amp else "fp32"
    run_as = Runtime(machine.device, runtime.choose_dtype(precision, settings.width, machine.device), machine.rank, machine.world)
    runtime.seed_everything(settings.seed)
    built = stage.build(settings, Inputs(own, needed, base, run_as))
    if settings.init_from is not None:
        _init_from(built, base / settings.init_from)
    optim.select(built.objective, settings)  # so that what patterns freeze is watched too
    return built, run_as


def _start(built: Plan, settings: StageSettings, run: Runtime) -> dict[str, Fact]:
    """The facts that are known before the first step."""
    shared = built.corpus.leaks
    leaks = {"leaks": Fact(float(bool(shared)), note=str(shared) if shared else "")}
    return {**leaks, **soundness.examine(built.objective, built.train, settings, run), **built.checks(), **built.notes}


def _refuse_early(
    stage: Stage, settings: StageSettings, built: Plan, start: dict[str, Fact], own: Path, digest: str, waived: dict[str, str], run: Runtime
) -> None:
    """Before a step is paid for: raise GateRed, with a certificate that says so, where a gate on what is known already is red."""
    known = [row for row in judge(stage, settings, built.modalities, start, waived) if row.is_known(start)]
    if certificate.overall(known) != "red":
        return
    result = _certify(built, settings, own, start, known, digest) if run.is_main else {}
    refuse(distributed.from_main(result, run))


def _certify(
    built: Plan, settings: StageSettings, own: Path, facts: dict[str, Fact], judged: list[gates.Judged], digest: str
) -> dict[str, Any]:
    """Store and tell the certificate of a stage that is built."""
    digests = {"weights": store.digest(built.objective), "data": built.corpus.digest, "settings": digest}
    result = certificate.write(own, own.name, facts, judged, modalities=built.modalities, seed=settings.seed, **digests)
    tell(own.name, result)
    return result


def _measure(built: Plan, fitted: Fitted, before: dict[str, str], settings: StageSettings, run: Runtime, album: Album) -> dict[str, Fact]:
    """The facts that are known at the end: the run's own, whether what was frozen (digests `before`) stayed, and the stage's.

    What the stage's own were measured on goes into the album.
    """
    now = _frozen(built)
    moved = [key for key, value in before.items() if now.get(key) != value]
    frozen = {"frozen_moved": Fact(float(len(moved)), len(before), note=", ".join(moved[:4]))}
    return {**frozen, **_sound(built, fitted, settings), **_gap(built, fitted, settings, run), **built.measure(fitted, album)}


def _gap(built: Plan, fitted: Fitted, settings: StageSettings, run: Runtime) -> dict[str, Fact]:
    """How much more is lost on held-out data than on as many batches of training data (which may be augmented)."""
    if built.valid is None:
        return {}
    alone = Runtime(run.device, run.dtype)  # only this rank measures
    trained = validation.validate(built.objective, built.train, settings, alone)
    batches = min(settings.val_batches, built.train.order.batches_per_epoch)
    gap = fitted.validation["loss"] - trained["loss"]
    losses = {"training_loss": Fact(trained["loss"], batches), "held_out_loss": Fact(fitted.validation["loss"], len(built.valid.dataset))}
    return {"held_out_gap": Fact(gap, batches), **losses}


def _saved(built: Plan, folder: Path) -> Fact:
    """How many tensors of the networks are others in a folder than in memory."""
    wrong = [f"{place}/{name}" for place, network in built.networks.items() for name in store.changed(network, folder / place)]
    return Fact(float(len(wrong)), len(built.networks), note=", ".join(wrong[:4]))


def _init_from(built: Plan, folder: Path) -> None:
    """Start from another run's stage: tensors of equal name and shape are taken over.

    Raises  CheckpointError where there is no checkpoint, or nothing fits.
    """
    from safetensors.torch import load_file

    from muomni.train import checkpoint

    found = checkpoint.newest(folder)
    if found is None:
        raise CheckpointError(
            f"init_from: {folder} holds no whole checkpoint", hint="give the folder of a stage, e.g. runs/quickstart/hearing"
        )
    theirs, ours = load_file(found / "weights.safetensors"), given.beside(built.objective)
    fitting = {name: tensor for name, tensor in theirs.items() if name in ours and ours[name].shape == tensor.shape}
    if not fitting:
        raise CheckpointError(f"init_from: no tensor of {found} fits this stage")
    built.objective.load_state_dict(fitting, strict=False)
    built.notes["init_share"] = Fact(len(fitting) / len(ours), len(ours))


def _frozen(built: Plan) -> dict[str, str]:
    """Digests of what must not move: parameters that the patterns freeze, and all that networks without trained parameters hold."""
    resting = [(place, net) for place, net in built.networks.items() if not any(p.requires_grad for p in net.parameters())]
    tensors = {name: p for name, p in built.objective.named_parameters() if not p.requires_grad}
    known = {tensor.data_ptr() for tensor in tensors.values()}
    held = {f"{place}/{name}": tensor for place, net in resting for name, tensor in net.state_dict().items()}
    tensors |= {name: tensor for name, tensor in held.items() if tensor.data_ptr() not in known}
    return {name: store.digest_of(tensor) for name, tensor in tensors.items()}


def _sound(built: Plan, fitted: Fitted, settings: StageSettings) -> dict[str, Fact]:
    """The facts behind the gates on the run itself."""
    progress = fitted.progress
    trained = [p for p in built.objective.parameters() if p.requires_grad]
    finite = all(bool(p.isfinite().all()) for p in built.objective.parameters()) and all(v == v for v in fitted.validation.values())
    return {
        "finite": Fact(float(finite)),
        "skipped_share": Fact(progress.skipped / max(1, progress.step), progress.step),
        "label_coverage": Fact(progress.labelled / max(1, progress.samples), progress.samples),
        **witnesses.order(fitted.drawn, built.train.order, progress.samples + progress.quarantined),
        **witnesses.schedule(Rates(**progress.rates), settings, max(row.lr for row in fitted.account), is_whole=not progress.stopped_early),
        **witnesses.average(trained, settings.ema_decay or 0.0, fitted.average),
        "quarantined": Fact(float(progress.quarantined), progress.samples),
        "steps": Fact(float(progress.step)),
        "parameters": Fact(float(sum(row.count for row in fitted.account if row.trains))),
    }


def waived_here(stage: Stage, settings: StageSettings, waived: dict[str, str]) -> dict[str, str]:
    """Those of the waivers, by gate name, that speak of this stage's gates."""
    names = {gate.name for gate in all_gates(stage, settings)}
    return {gate: why for gate, why in waived.items() if gate in names}


def _reuse(
    stage: Stage, settings: StageSettings, own: Path, done: dict[str, Any], waived: dict[str, str], machine: Runtime
) -> dict[str, Any]:
    """A finished stage as it is; its facts are judged anew, so that new bounds and waivers count."""
    facts = {key: Fact.from_json(row) for key, row in done["facts"].items()}
    judged = judge(stage, settings, done["modalities"], facts, {**waived_before(done), **waived_here(stage, settings, waived)})
    if machine.is_main:
        digests = {key: done[key] for key in ("weights", "data", "settings")}
        done = certificate.write(own, own.name, facts, judged, modalities=done["modalities"], seed=settings.seed, **digests)
        print(f"[{stage.name}] done before: reused", file=sys.stderr)
        tell(stage.name, done)
    done = distributed.from_main(done, machine)
    refuse(done)
    return done


def named_by(own: Path, settings: StageSettings, world: int, *, fresh: bool) -> StageSettings:
    """The settings that a stage's folder goes by: these, but for another accumulation that makes the same batch on another number of ranks.

    So 1 rank x 6 micro-batches may go on as 2 x 3; where the product is another one too, accumulation is a setting like any other.
    """
    if fresh or not (own / BATCH).exists() or settings.gradient_accumulation_steps * world != files.read_json(own / BATCH):
        return settings
    made = config.read_yaml(own / "config.yaml")["gradient_accumulation_steps"]
    return settings.model_copy(update={"gradient_accumulation_steps": made})


def _open_folder(own: Path, settings: StageSettings, digest: str, fresh: bool) -> None:
    """Make the stage's folder, or see that the one there was made with the same settings."""
    path = own / "config.yaml"
    if fresh and own.exists():
        shutil.rmtree(own)
    dumped = settings.model_dump(mode="json")
    if path.exists():
        old = config.read_yaml(path)
        changed = [line for line in config.difference(old, dumped) if line.split(":")[0].split(".")[0] not in recipes.HARMLESS]
        stored = own / "digest.json"
        if changed or (stored.exists() and files.read_json(stored) != digest):
            what = "; ".join(changed) or "its data, a stage that it needs, or weights of others that it stands on"
            raise ConfigError(f"{own}: made with other settings: {what}", hint="--fresh deletes it and starts anew")
    for leftover in own.glob(".final.*"):  # of a run that was killed while it saved
        shutil.rmtree(leftover)
    write_settings(own, settings, digest)


def write_settings(own: Path, settings: StageSettings, digest: str) -> None:
    """Put a stage's settings, and their digest, into its folder."""
    files.write_text(own / "config.yaml", yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    files.write_json(own / "digest.json", digest)


def tell(name: str, result: dict[str, Any]) -> None:
    """Print a certificate's verdicts."""
    for gate in result["gates"]:
        value = "-" if gate["value"] is None else f"{gate['value']:.4g}"
        print(f"[{name}] {gate['verdict']:6} {gate['name']}: {value} {gate['threshold']}", file=sys.stderr)
    print(f"[{name}] {result['verdict']} after {result['facts'].get('wall_s', {}).get('value') or 0:.0f}s", file=sys.stderr, flush=True)


def refuse(result: dict[str, Any]) -> None:
    """Raise GateRed, with the reasons, for a certificate that is red."""
    if result["verdict"] == "red":
        raise GateRed(f"stage {result['stage']}: {certificate.reasons(result)}")
