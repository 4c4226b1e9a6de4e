"""Whether two builds train every stage to the same numbers.

    python -m benchmarks.equal_losses [--old CHECKOUT] [--stages STAGE ...]

Each build trains all stages for 20 updates on a CPU, seeded, by the recipe of its own
`tests/device_recipe.py` (so each reads its own keys), and align and instruct once more (`hub/`) on a Qwen3
and a SigLIP of transformers, by `tests/smoke/seeing_recipe.py`. A line a stage gives a digest of its losses
with all their bits, of its weights in `final/`, and of its facts. With `--old`, a checkout of an earlier
commit, the line says `equal`, or the first update and term, tensor or fact that differs. The exit code is 1
where losses or weights differ or a stage is missing. Facts are compared and shown; they do not decide,
since a refactor may add or rename one.

A name that one build alone has is paired with a name of the other that has the same numbers in all rows:
such a line says `renamed`. `--stages` runs these with the stages that they need. Gates on what so few
updates can't teach are waived. All takes half a minute a build. A checkout without a `.venv` of its own is
run by the interpreter that runs this.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
UPDATES = 20
STAGES = ("thinker", "hearing", "vision", "codec", "talker", "omni", "align", "sweep", "instruct")
HUB = ("hub/align", "hub/instruct")
TIMED = (
    "data_wait",
    "mfu",
    "flops_error",
    "format_gain",
    "wall_s",
    "rtf",
)  # metrics and facts that a clock decides
INHERITED_NOT = ("MUOMNI_CACHE", "MUOMNI_DATA")  # codes of an earlier run, and pictures of this machine
Numbers = dict[str, Any]

# Runs in the checkout: writes its recipes and prints, as JSON, what each stage needs and which gates may be
# red after so few updates.
PREPARE = f"""
import json, sys
from pathlib import Path
import muomni
import device_recipe, seeing_recipe

folder = Path(sys.argv[1])
device_recipe.STEPS = seeing_recipe.STEPS = {UPDATES}
often = {{"checkpoint_freq": {UPDATES}, "val_freq": {UPDATES // 2}}}
chain, hub = device_recipe.recipe(folder / "chain"), seeing_recipe.recipe(folder / "hub")
chain["device"] = hub["device"] = "cpu"
for stages in (chain, hub):
    for settings in stages.values():
        if isinstance(settings, dict) and "max_steps" in settings:
            settings |= often
device_recipe.write(folder / "chain.yaml", chain)
device_recipe.write(folder / "hub.yaml", hub)
may_be_red = {{stage: device_recipe.learned(stage) for stage in device_recipe.ORDER}}
needs = {{stage: list(device_recipe.NEEDS[stage]) for stage in device_recipe.ORDER}}
print(json.dumps({{"needs": needs, "may_be_red": may_be_red, "source": muomni.__file__}}))
"""


@dataclass(frozen=True)
class Outcome:
    """What a stage left.

    losses   a row of metrics.jsonl each, without what a clock decides; all bits, as JSON keeps them
    weights  tensor -> digest of its type, shape and bytes, named as `FILE: TENSOR`
    facts    fact -> value, count, interval and floor
    """

    losses: list[Numbers]
    weights: dict[str, str]
    facts: Numbers

    def line(self) -> str:
        """Digests of the three."""
        parts = {"losses": self.losses, "weights": self.weights, "facts": self.facts}
        return "  ".join(f"{name} {digest(value)}" for name, value in parts.items())


def digest(value: object) -> str:
    """Twelve hexadecimal digits that name a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def read(stage: Path) -> Outcome:
    """What the folder of a trained stage holds."""
    rows = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    content = json.loads((stage / "certificate.json").read_text())["facts"]
    keys = ("value", "n", "ci", "floor")  # a note is words
    facts = {name: {key: fact.get(key) for key in keys} for name, fact in content.items()}
    weights = {}
    for path in sorted((stage / "final").rglob("*.safetensors")):
        place = path.relative_to(stage / "final")
        weights |= {f"{place}: {name}": told for name, told in tensors(path).items()}
    return Outcome([untimed(row) for row in rows], weights, untimed(facts))


def untimed(row: Numbers) -> Numbers:
    """A row without what a clock or the size of the process decides."""
    units = ("_per_s", "_mb", "_bytes")
    return {key: value for key, value in row.items() if key not in TIMED and not key.endswith(units)}


def tensors(path: Path) -> dict[str, str]:
    """The tensors of a safetensors file, each by a digest.

    The file is eight bytes of a length, a JSON header of so many bytes, and the data.
    """
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        bits = hashlib.sha256(content[start + begin : start + end]).hexdigest()
        found[name] = digest([entry["dtype"], entry["shape"], bits])
    return found


def differences(old: Outcome, new: Outcome) -> list[str]:
    """What decides: the first update and term whose losses differ, and the first tensor."""
    told = []
    names = paired(old.losses, new.losses)
    if len(old.losses) != len(new.losses):
        told.append(f"losses: {len(old.losses)} rows of metrics, now {len(new.losses)}")
    for before, now in zip(old.losses, new.losses, strict=False):
        renamed = {names.get(key, key): value for key, value in before.items()}
        if odd := unequal(renamed, now):
            what = "validation after update" if any(key.startswith("val_") for key in before) else "update"
            told.append(f"losses: {what} {before['step']}, {odd}")
            break
    if Counter(old.weights.values()) != Counter(new.weights.values()):
        told.append(f"weights: {unequal(old.weights, new.weights)}")
    return told


def paired(old: list[Numbers], new: list[Numbers]) -> dict[str, str]:
    """Names of the old rows alone -> names of the new rows alone that have the same numbers in all rows."""
    before, now = set[str]().union(*old), set[str]().union(*new)

    def column(rows: list[Numbers], name: str) -> list[Any]:
        return [row.get(name) for row in rows]

    found: dict[str, str] = {}
    for name in sorted(before - now):
        free = sorted(now - before - {*found.values()})
        same = next((other for other in free if column(old, name) == column(new, other)), None)
        if same is not None:
            found[name] = same
    return found


def unequal(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first entry in which two mappings differ, with both values; empty where they do not."""
    for key in [*old, *(key for key in new if key not in old)]:
        if key not in new:
            return f"{key} is gone"
        if key not in old:
            return f"{key} is new"
        if old[key] != new[key]:
            return f"{key}: {short(old[key])}, now {short(new[key])}"
    return ""


def short(value: Any) -> str:
    """A value in few words; numbers with all their digits."""
    return repr(value["value"]) if isinstance(value, dict) and "value" in value else repr(value)


def verdict(old: Outcome, new: Outcome) -> tuple[bool, str]:
    """Whether losses and weights are equal, and a line that says so."""
    odd = differences(old, new)
    names = paired(old.losses, new.losses)
    notes = [f"renamed: {', '.join(f'{a} -> {b}' for a, b in names.items())}"] if names else []
    if old.weights != new.weights and Counter(old.weights.values()) == Counter(new.weights.values()):
        notes.append(f"tensors renamed: {unequal(old.weights, new.weights)}")
    if facts := unequal(old.facts, new.facts):
        notes.append(f"facts: {facts}")
    return not odd, "; ".join(["equal" if not odd else "DIFFERENT", *odd, *notes])


def python(checkout: Path) -> str:
    """The interpreter of a checkout's own environment, else the one that runs this."""
    own = checkout / ".venv" / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def train(checkout: Path, stages: list[str], folder: Path) -> dict[str, Outcome]:
    """Train stages, and those that they need, by the build of a checkout.

    Gives   what each left, by name; a point of a sweep is `sweep/POINT`.
    Raises  SystemExit where a stage doesn't come to its end.
    """
    told = json.loads(_child(checkout, "-c", PREPARE, str(folder)))
    if not Path(told["source"]).is_relative_to(checkout):
        raise SystemExit(f"{checkout}: its python loads muomni from {told['source']}")
    found: dict[str, Outcome] = {}
    for recipe, names in (
        ("chain", [name for name in stages if name in STAGES]),
        ("hub", [name for name in stages if name in HUB]),
    ):
        if not names:
            continue
        if recipe == "chain":
            wanted = {need for name in names for need in (*told["needs"][name], name)}
            order = [name for name in told["needs"] if name in wanted]
        else:
            order = ["align", *(["instruct"] if "hub/instruct" in names else [])]
        out = folder / f"{recipe}-run"
        gates = sorted({gate for name in order for gate in told["may_be_red"][name]})
        waivers = [word for gate in gates for word in ("--waive", gate)]
        command = ["-m", "muomni", "run", str(folder / f"{recipe}.yaml"), *order, "--out", str(out), *waivers]
        _child(checkout, *command, "--reason", "20 updates teach nothing")
        for path in sorted(out.rglob("metrics.jsonl"), key=lambda path: path.stat().st_mtime):
            name = path.parent.relative_to(out).as_posix()
            found[name if recipe == "chain" else f"hub/{name}"] = read(path.parent)
    return found


def _child(checkout: Path, *arguments: str) -> str:
    """Standard output of a python of the checkout.

    Raises  SystemExit with its last lines where it fails.
    """
    source = os.pathsep.join(str(checkout / place) for place in ("src", "tests", "tests/smoke"))
    environment = {key: value for key, value in os.environ.items() if key not in INHERITED_NOT}
    environment |= {
        "PYTHONPATH": source,
        "OMP_NUM_THREADS": "1",
        "MUOMNI_THREADS": "1",
        "MUOMNI_PLAIN": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [python(checkout), *arguments],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {arguments[:3]} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def main() -> int:
    """Train with each build, print a line a stage; 1 where losses or weights differ."""
    every = [*STAGES, *HUB]
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--old", type=Path, metavar="CHECKOUT", help="an earlier build")
    names = ", ".join(every)
    parser.add_argument("--stages", nargs="+", default=every, choices=every, metavar="STAGE", help=names)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muomni-equal-") as temporary:
        new = train(REPOSITORY, asked.stages, Path(temporary) / "new")
        if asked.old is None:
            for name, left in new.items():
                print(f"{name:16} {left.line()}")
            return 0
        old = train(asked.old.resolve(), asked.stages, Path(temporary) / "old")
    is_equal = True
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in old or name not in new:
            is_equal = False
            print(f"{name:16} only the {'old' if name in old else 'new'} build trained it")
            continue
        same, line = verdict(old[name], new[name])
        is_equal = is_equal and same
        print(f"{name:16} {new[name].line()}  {line}")
    print("all equal" if is_equal else "not equal")
    return int(not is_equal)


if __name__ == "__main__":
    sys.exit(main())
