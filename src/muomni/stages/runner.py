"""From a recipe to finished stages: reuse what is done, resume what is broken, refuse what is not proven, run side by side what can."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from muomni import config, files, runtime
from muomni.data import readers
from muomni.errors import CheckpointError, ConfigError, GateRed, MuomniError
from muomni.evaluate import certificate, gates
from muomni.evaluate.facts import Fact
from muomni.models import store
from muomni.runtime import Runtime
from muomni.stages import recipe as recipes
from muomni.stages import scoreboard
from muomni.stages.recipe import Recipe
from muomni.stages.schedule import side_by_side
from muomni.stages.stage import Inputs, Plan, Stage, StageSettings
from muomni.train import distributed, loop, optim
from muomni.train.loop import Fitted


def run(
    recipe: str,
    *,
    stages: list[str] | None = None,
    out: Path | None = None,
    overrides: list[str] | None = None,
    fresh: bool = False,
    waive: list[str] | None = None,
    reason: str | None = None,
) -> Path:
    """Run a recipe, or some of its stages, and give its run folder.

    Finished stages of the same settings, data and needed weights are reused; broken ones resume; changed ones are refused unless `fresh`.
    Raises  GateRed where a gate is red; ConfigError for what the user must change; Interrupted after a signal.
    """
    plan = recipes.read(recipe, overrides, out=out)
    folder = (out or Path("runs") / plan.name).resolve()
    unknown = [name for name in stages or [] if name not in plan.stages]
    if unknown:
        raise ConfigError(f"{recipe}: no stage {', '.join(unknown)}", hint=f"it has {', '.join(plan.stages)}")
    chosen = [name for name in plan.stages if not stages or name in stages]
    waived = dict.fromkeys(waive or [], reason or "")
    if waive and not (reason or "").strip():
        raise ConfigError("--waive needs --reason", hint='--waive GATE --reason "why this is acceptable"')
    _check_gates(waived, plan, chosen)
    begin = time.perf_counter()
    machine = runtime.start(device=plan.header.device, threads=_threads(plan))
    if machine.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        origin = {
            "recipe": str(recipes.find(recipe).resolve()),
            "base": str(plan.base),
            "device": plan.header.device,
            "threads": _threads(plan),
        }
        files.write_json(folder / "recipe.json", origin)
        _make_world(plan, folder)
    distributed.barrier(machine)
    if plan.header.jobs > 1 and len(chosen) > 1 and machine.world == 1:
        _side_by_side(plan, chosen, recipe, folder, overrides or [], fresh, waived, reason)
    else:
        for name in chosen:
            run_stage(plan, name, folder, machine, fresh=fresh, waived=waived)
    if plan.header.scoreboard and machine.is_main and len(chosen) == len(plan.stages):
        board = scoreboard.write(folder, plan, time.perf_counter() - begin)
        print("\n".join(scoreboard.lines(board)), file=sys.stderr, flush=True)
    return folder


def quickstart(out: Path | None = None) -> dict[str, Any]:
    """Train the whole muomni recipe on the toy world and give its score board; run again, it resumes or reuses.

    Raises  as `run`.
    """
    folder = run("quickstart", out=out)
    board: dict[str, Any] = files.read_json(folder / "scoreboard.json")
    return board


def _threads(plan: Recipe) -> int:
    return int(os.environ.get("MUOMNI_THREADS", plan.threads))


def _check_gates(waived: dict[str, str], plan: Recipe, chosen: list[str]) -> None:
    for name in chosen:  # judged on nothing: a bound for no gate is found before anything is spent
        gates.judge(all_gates(recipes.stage(name), plan.stages[name]), {}, plan.stages[name].gates)
    known = {gate.name for name in chosen for gate in all_gates(recipes.stage(name), plan.stages[name])}
    for gate in waived:
        if gate not in known:
            raise ConfigError(f"--waive {gate}: no such gate", hint=f"the gates are {', '.join(sorted(known))}")


def all_gates(stage: Stage, settings: StageSettings) -> tuple[gates.Gate, ...]:
    """The gates that every stage has, the stage's own, and what the recipe demands beside them."""
    return (*gates.SOUND, *stage.gates, *gates.demanded(settings.demands))


def _make_world(plan: Recipe, folder: Path) -> None:
    if plan.header.world is None:
        return
    from muomni.data.world.build import build

    begin = time.perf_counter()
    build(folder / "data" / "world", seed=plan.header.world.seed, size=plan.header.world.size)
    print(f"[world] ready in {time.perf_counter() - begin:.0f}s", file=sys.stderr, flush=True)


# --- one stage --------------------------------------------------------------------------------------------------------------------------


def run_stage(plan: Recipe, name: str, folder: Path, machine: Runtime, *, fresh: bool, waived: dict[str, str]) -> dict[str, Any]:
    """Train, measure, judge and save one stage; give its certificate.

    Raises  GateRed where it, or one that it needs, is red.
    """
    stage, settings = recipes.stage(name), plan.stages[name]
    runtime.use_threads(settings.threads or _threads(plan))
    own = folder / name
    needed = {other: certificate.demand(folder / other, name)["weights"] for other in stage.needs}
    digest = recipes.digest(settings, needed, readers.fingerprint(settings.data, plan.base))
    done = certificate.read(own)
    if done and done["settings"] == digest and (own / "final").is_dir() and not fresh:
        return _reuse(stage, settings, own, done, waived, machine)
    if machine.is_main:
        _open_folder(own, settings, digest, fresh)
    distributed.barrier(machine)

    begin = time.perf_counter()
    built, fitted = _train(stage, settings, own, folder, plan, machine)
    result: dict[str, Any] = {}
    if machine.is_main:
        facts = {**built.notes, **_sound(built, fitted), **built.measure(fitted)}
        facts["wall_s"] = Fact(time.perf_counter() - begin)
        with files.fresh_folder(own / "final") as part:
            built.save(part)
        judged = gates.judge(all_gates(stage, settings), facts, settings.gates, _waived_here(stage, settings, waived))
        result = certificate.write(
            own, name, facts, judged, weights=store.digest(built.objective), data=built.corpus.digest, settings=digest
        )
        _tell(name, result)
    result = distributed.from_main(result, machine)
    _refuse(result)
    return result


def _train(stage: Stage, settings: StageSettings, own: Path, folder: Path, plan: Recipe, machine: Runtime) -> tuple[Plan, Fitted]:
    precision = settings.precision if settings.use_amp else "fp32"
    run_as = Runtime(machine.device, runtime.choose_dtype(precision, settings.width, machine.device), machine.rank, machine.world)
    runtime.seed_everything(settings.seed)
    built = stage.build(settings, Inputs(own, {n: folder / n / "final" for n in stage.needs}, plan.base, run_as))
    if settings.init_from is not None:
        _init_from(built, plan.base / settings.init_from)
    optim.select(built.objective, settings)  # so that what patterns freeze is watched too
    before = _frozen(built)
    fitted = loop.fit(built.objective, built.train, built.valid, settings, run_as, own, name=stage.name)
    if machine.is_main:
        moved = sum(_frozen(built).get(key) != value for key, value in before.items())
        built.notes["frozen_moved"] = Fact(float(moved), len(before))
        rows = [{"name": r.name, "shape": list(r.shape), "count": r.count, "lr": r.lr, "trains": r.trains} for r in fitted.account]
        files.write_json(own / "account.json", rows)
    return built, fitted


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
    theirs, ours = load_file(found / "weights.safetensors"), built.objective.state_dict()
    fitting = {name: tensor for name, tensor in theirs.items() if name in ours and ours[name].shape == tensor.shape}
    if not fitting:
        raise CheckpointError(f"init_from: no tensor of {found} fits this stage")
    built.objective.load_state_dict(fitting, strict=False)
    built.notes["init_share"] = Fact(len(fitting) / len(ours), len(ours))


def _frozen(built: Plan) -> dict[str, str]:
    """Digests of the parameters that the stage's patterns freeze."""
    return {
        n: files.sha256_bytes(p.detach().cpu().float().numpy().tobytes())
        for n, p in built.objective.named_parameters()
        if not p.requires_grad
    }


def _sound(built: Plan, fitted: Fitted) -> dict[str, Fact]:
    """The facts behind the gates that every stage has."""
    progress = fitted.progress
    finite = all(bool(p.isfinite().all()) for p in built.objective.parameters()) and all(v == v for v in fitted.validation.values())
    return {
        "finite": Fact(float(finite)),
        "skipped_share": Fact(progress.skipped / max(1, progress.step), progress.step),
        "label_coverage": Fact(progress.labelled / max(1, progress.samples), progress.samples),
        "leaks": Fact(float(bool(built.corpus.leaks))),
        "quarantined": Fact(float(progress.quarantined), progress.samples),
        "steps": Fact(float(progress.step)),
        "parameters": Fact(float(sum(row.count for row in fitted.account if row.trains))),
    }


def _waived_here(stage: Stage, settings: StageSettings, waived: dict[str, str]) -> dict[str, str]:
    names = {gate.name for gate in all_gates(stage, settings)}
    return {gate: why for gate, why in waived.items() if gate in names}


def _reuse(
    stage: Stage, settings: StageSettings, own: Path, done: dict[str, Any], waived: dict[str, str], machine: Runtime
) -> dict[str, Any]:
    """A finished stage as it is; its facts are judged anew, so that new bounds and waivers count."""
    facts = {key: Fact.from_json(row) for key, row in done["facts"].items()}
    kept = {gate["name"]: gate["why"] for gate in done["gates"] if gate["verdict"] == "waived"}
    judged = gates.judge(all_gates(stage, settings), facts, settings.gates, {**kept, **_waived_here(stage, settings, waived)})
    if machine.is_main:
        done = certificate.write(own, stage.name, facts, judged, weights=done["weights"], data=done["data"], settings=done["settings"])
        print(f"[{stage.name}] done before: reused", file=sys.stderr)
        _tell(stage.name, done)
    done = distributed.from_main(done, machine)
    _refuse(done)
    return done


def _open_folder(own: Path, settings: StageSettings, digest: str, fresh: bool) -> None:
    """Make the stage's folder, or see that the one there was made with the same settings."""
    import shutil

    path = own / "config.yaml"
    if fresh and own.exists():
        shutil.rmtree(own)
    dumped = settings.model_dump(mode="json")
    if path.exists():
        old = config.read_yaml(path)
        changed = [line for line in config.difference(old, dumped) if line.split(":")[0].split(".")[0] not in recipes.HARMLESS]
        stored = own / "digest.json"
        if changed or (stored.exists() and files.read_json(stored) != digest):
            what = "; ".join(changed) or "its data, or a stage that it needs"
            raise ConfigError(f"{own}: made with other settings: {what}", hint="--fresh deletes it and starts anew")
    for leftover in own.glob(".final.*"):  # of a run that was killed while it saved
        shutil.rmtree(leftover)
    files.write_text(path, yaml.safe_dump(dumped, sort_keys=False))
    files.write_json(own / "digest.json", digest)


def _tell(name: str, result: dict[str, Any]) -> None:
    for gate in result["gates"]:
        value = "-" if gate["value"] is None else f"{gate['value']:.4g}"
        print(f"[{name}] {gate['verdict']:6} {gate['name']}: {value} {gate['threshold']}", file=sys.stderr)
    print(f"[{name}] {result['verdict']} after {result['facts'].get('wall_s', {}).get('value') or 0:.0f}s", file=sys.stderr, flush=True)


def _refuse(result: dict[str, Any]) -> None:
    if result["verdict"] == "red":
        raise GateRed(f"stage {result['stage']}: {certificate.reasons(result)}")


# --- stages side by side ------------------------------------------------------------------------------------------------------------------


def _side_by_side(
    plan: Recipe,
    chosen: list[str],
    recipe: str,
    folder: Path,
    overrides: list[str],
    fresh: bool,
    waived: dict[str, str],
    reason: str | None,
) -> None:
    """Run stages as processes of their own, each as soon as what it needs is done, at most `jobs` at a time.

    Raises  the error of the first stage that fails, after the others that run have been asked to stop and have saved.
    """
    environment = {**os.environ, "MUOMNI_THREADS": str(plan.threads), "OMP_NUM_THREADS": str(plan.threads), "MUOMNI_PLAIN": "1"}
    commands, needs = {}, {}
    for name in chosen:
        command = [sys.executable, "-m", "muomni", "run", recipe, name, *overrides, "--out", str(folder)]
        command += ["--fresh"] if fresh else []
        for gate in _waived_here(recipes.stage(name), plan.stages[name], waived):
            command += ["--waive", gate, "--reason", reason or ""]
        commands[name] = command
        needs[name] = [other for other in recipes.stage(name).needs if other in chosen]
    failed = side_by_side(commands, needs, jobs=plan.header.jobs, environment=environment)
    if failed is None:
        return
    name, code = failed
    if not name:
        raise loop.Interrupted("stopped; every running stage has saved; run the same command to go on", code)
    found = certificate.read(folder / name)
    if code == 1 and found is not None:
        _refuse(found)
    error = MuomniError(f"stage {name} ended with exit code {code}", hint="its message stands above")
    error.exit_code = code
    raise error


# --- a finished run -----------------------------------------------------------------------------------------------------------------------


def gate(path: Path | str) -> dict[str, Any] | list[dict[str, Any]]:
    """Measure and judge a finished stage anew, or all stages of a recipe's folder; nothing is written.

    Raises  ConfigError where the folder is neither.
    """
    path = Path(path).resolve()
    path = path.parent if path.name == "final" else path
    if (path / "recipe.json").exists():
        return [_gate_stage(path, name) for name in recipes.STAGES if (path / name / certificate.NAME).exists()]
    if (path.parent / "recipe.json").exists() and (path / certificate.NAME).exists():
        return _gate_stage(path.parent, path.name)
    raise ConfigError(f"{path}: no finished stage and no run folder", hint="give runs/<recipe> or runs/<recipe>/<stage>")


def _gate_stage(folder: Path, name: str) -> dict[str, Any]:
    origin, stage, own = files.read_json(folder / "recipe.json"), recipes.stage(name), folder / name
    settings = config.build(stage.settings, config.read_yaml(own / "config.yaml"), str(own / "config.yaml"))
    base = Path(origin["base"])
    machine = runtime.start(device=origin["device"], threads=int(os.environ.get("MUOMNI_THREADS", origin["threads"])))
    precision = settings.precision if settings.use_amp else "fp32"
    run_as = Runtime(machine.device, runtime.choose_dtype(precision, settings.width, machine.device))
    runtime.seed_everything(settings.seed)
    built = stage.build(settings, Inputs(own, {n: folder / n / "final" for n in stage.needs}, base, run_as))
    if settings.init_from is not None:
        _init_from(built, base / settings.init_from)
    optim.select(built.objective, settings)
    before = _frozen(built)
    fitted = loop.restore(built.objective, built.valid, settings, run_as, own)
    built.notes["frozen_moved"] = Fact(float(sum(_frozen(built).get(key) != value for key, value in before.items())), len(before))
    facts = {**built.notes, **_sound(built, fitted), **built.measure(fitted)}
    stored = certificate.read(own) or {"gates": []}
    kept = {row["name"]: row["why"] for row in stored["gates"] if row["verdict"] == "waived"}
    judged = gates.judge(all_gates(stage, settings), facts, settings.gates, kept)
    return {
        "stage": name,
        "verdict": certificate.overall(judged),
        "facts": {key: fact.to_json() for key, fact in facts.items()},
        "gates": [row.to_json() for row in judged],
    }
