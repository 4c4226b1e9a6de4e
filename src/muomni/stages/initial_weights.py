"""`init_from`: start from the weights of another run's stage; locate it, check its tokenizer, load what
fits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from muomni import files
from muomni.errors import CheckpointError
from muomni.evaluate.facts import Fact
from muomni.models import integrity
from muomni.tokens.bpe import Tokenizer
from muomni.train import checkpoint, frozen_parts
from muomni.train.objective import Objective

RECORD = "init_from.json"  # in a stage's folder: what it began from
TOKENIZERS = (
    Path(integrity.FINAL),
    Path(integrity.FINAL) / "thinker",
)  # where a finished stage keeps its own, or its Thinker's
SHOWN = 4  # folders that a hint names


def find(init_from: Path, base: Path) -> Path | None:
    """The folder of the stage that is named: relative to `base` (the recipe's folder), else to the working
    folder; None where none is."""
    name = init_from.expanduser()
    return next((folder for folder in (base / name, name.absolute()) if folder.is_dir()), None)


def locate(init_from: Path, base: Path) -> Path:
    """As `find`.

    Raises  CheckpointError where there is none; its hint names stages that would do.
    """
    if (folder := find(init_from, base)) is not None:
        return folder
    looked = " and ".join(dict.fromkeys(str(place) for place in (base.resolve(), Path.cwd())))
    raise CheckpointError(
        f"init_from: {init_from}: no such folder, looked in {looked}", hint=_hint(init_from, base)
    )


def _hint(name: Path, base: Path) -> str:
    """Stages near a name that is not there, or that is no stage: below it, or below what is there of it."""
    for start in dict.fromkeys((base / name.expanduser(), name.expanduser().absolute())):
        near = next((folder for folder in (start, *start.parents) if folder.is_dir()), None)
        if near is None or near in base.resolve().parents or near in Path.cwd().parents:
            continue  # a search from there would walk through the whole disk
        stages = {step.parent for depth in ("step_*", "*/step_*", "*/*/step_*") for step in near.glob(depth)}
        stages |= {near.parent} if near.name == integrity.FINAL and any(near.parent.glob("step_*")) else set()
        if stages:
            stage_names = sorted(stages)
            return f"these would do: {', '.join(map(str, stage_names[:SHOWN]))}" + (
                f" and {len(stage_names) - SHOWN} more" * (len(stage_names) > SHOWN)
            )
    return "give the folder of a stage that was trained, e.g. runs/quickstart/hearing"


def tokenizer(init_from: Path | None, base: Path) -> Tokenizer | None:
    """The tokenizer that the weights of `init_from` were trained with, for a stage that would train one
    itself; None without `init_from`.

    Raises  CheckpointError where the stage has none: rows of an embedding table mean nothing without it.
    """
    if init_from is None:
        return None
    folder = locate(init_from, base)
    path = next(
        (folder / place for place in TOKENIZERS if (folder / place / "tokenizer.json").is_file()), None
    )
    if path is None:
        raise CheckpointError(
            f"init_from: {folder} holds no tokenizer, without which its embeddings mean nothing",
            hint="run that stage to its end, which writes final/"
            if not (folder / integrity.FINAL).is_dir()
            else _hint(init_from, base),
        )
    return Tokenizer.load(path)


def demand_tokenizer(init_from: Path | None, base: Path, own: Tokenizer, of: str) -> None:
    """See that the weights of `init_from` were trained with the tokenizer that the stage has from stage `of`.

    Raises  CheckpointError where they were trained with another: the same ids would mean other words.
    """
    theirs = tokenizer(init_from, base)
    if theirs is not None and theirs.digest != own.digest:
        raise CheckpointError(
            f"init_from: {init_from} was trained with another tokenizer than stage {of} of this run has:"
            f" {theirs.digest[:12]}, not {own.digest[:12]}",
            hint=f"let stage {of} begin with init_from of the same run, which brings its tokenizer, or leave init_from out",
        )


def take_over(objective: Objective, init_from: Path, base: Path, own: Path, *, is_main: bool) -> Fact:
    """Put the tensors of equal name and shape of another stage's newest checkpoint into an objective; what is
    left out is told.

    Gives   their share of the objective's tensors. What the stage `own` began from is kept in its folder.
    Raises  CheckpointError where there is no checkpoint, nothing fits, or a begun stage did not begin from
            these weights.
    """
    folder = locate(init_from, base)
    newest = checkpoint.newest(folder)
    if newest is None:
        raise CheckpointError(f"init_from: {folder} holds no whole checkpoint", hint=_hint(init_from, base))
    theirs = load_file(newest / "weights.safetensors")
    aliases = files.read_json(newest / "progress.json").get("aliases", {})
    theirs |= {alias: theirs[name] for alias, name in aliases.items()}
    taken, left = frozen_parts.load_matching(objective, theirs, where=f"init_from: {newest}")
    if left and is_main:
        print(f"init_from: {newest}: {taken} tensors taken over; not so: {left}", file=sys.stderr, flush=True)
    whole = len(frozen_parts.checkpoint_state(objective))
    digest = files.read_json(newest / checkpoint.MANIFEST)["files"]["weights.safetensors"]
    record = {
        "folder": str(folder.resolve()),
        "checkpoint": newest.name,
        "digest": digest,
        "taken": taken,
        "of": whole,
        "left": str(left),
    }
    began = origin(own)
    if began is not None and began["digest"] != digest and any(own.glob("step_*")):
        raise CheckpointError(
            f"init_from: {own} began from weights {began['digest'][:12]} ({began['checkpoint']}), {folder} now holds {digest[:12]}"
            f" ({newest.name})",
            hint="put the old ones back, or start anew with --fresh",
        )
    if is_main and not any(own.glob("step_*")):
        files.write_json(own / RECORD, record)
    return Fact(taken / whole, whole, note=str(left))


def origin(own: Path) -> dict[str, Any] | None:
    """What a stage began from, as its certificate tells it: folder, checkpoint, digest of the weights,
    tensors taken; None for nothing."""
    if not (own / RECORD).is_file():
        return None
    hint = f"--fresh starts {own.name} anew"
    record: dict[str, Any] = files.read_stored(own / RECORD, dict, hint=hint)
    if odd := [key for key in ("folder", "checkpoint", "digest", "taken", "of", "left") if key not in record]:
        raise CheckpointError(f"{own / RECORD}: torn: it lacks {', '.join(odd)}", hint=hint)
    return record
