"""What a stage makes of its settings, in cheap steps: the first that differs tells that an option does
something."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file

import device_recipe
from muomni import config, files, runtime
from muomni.evaluate import codec_audit
from muomni.evaluate.samples import StageSamples
from muomni.execution import recipe as recipes
from muomni.execution import stage_run
from muomni.models import rows, store
from muomni.models.codecs import open_codec
from muomni.runtime import Runtime
from muomni.selftest import voices
from muomni.stages.stage import Entry, StageSettings, Training
from muomni.train import checkpoint, loop
from muomni.units import METERS
from shared import swap_weights

CPU = Runtime(torch.device("cpu"), torch.float32)
CLOCK = {*METERS, "step"}
ROWS = 48  # samples of a source: enough for every task to have some on both sides


@dataclass
class World:
    """Tiny data, and what every stage needs of the others: built, never trained."""

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.recipe = device_recipe.recipe(self.folder)
        for stage in device_recipe.ORDER:
            self.recipe[stage].pop("ema_decay", None), self.recipe[stage].pop("final", None)
            self.recipe[stage]["max_steps"] = 5  # fewer, and a cosine is a line
            for source in self.recipe[stage].get("data", []):
                source["limit"] = ROWS
            if stage != "sweep":
                self._stand(stage)
        shutil.copytree(self.folder / "align" / "final", self.folder / "another" / "final")
        swap_weights(self.folder / "another" / "final" / "projectors")
        shutil.copytree(self.folder / "rows" / "final", self.folder / "another_rows" / "final")
        other = self.folder / "another_rows" / "final" / rows.ROWS
        save_file(
            {name: tensor + 0.01 for name, tensor in load_file(other).items()},
            other,
            metadata={"format": "pt"},
        )
        if not voices.lacking():
            self._voices()
        named = _rows(self.folder, "captions")
        for number, row in enumerate(named):
            row["negatives"] = [{"kind": "colour", "text": f"it is {colour}"} for colour in ("pink", "grey")]
            row["extra"] = {
                "shape": ("round", "square")[number % 2],
                "colour": ("pale", "dark")[number % 3 // 2],
            }
        files.write_jsonl(self.folder / "world" / "rich.jsonl", named)
        (self.folder / "world" / "torn.jsonl").write_text(
            "{\n{\n" + (self.folder / "world" / "text.jsonl").read_text()
        )

    def _voices(self) -> None:
        """What stage voice is asked with: recordings whose rows say nothing of sides, a base and a codec, and others of
        each."""
        data, common = self.folder / "voices", self.recipe["talker"]
        voices.build(data)
        voices.write(data, takes=range(3))
        rows = json.loads((data / voices.MANIFEST).read_text())
        kept = [{key: value for key, value in row.items() if key != "split"} for row in rows]
        (data / voices.MANIFEST).write_text(json.dumps(kept))
        voices.saved(self.folder / "other_base" / "final", seed=1)
        voices.codec(self.folder / "other_codec" / "final", seed=1)
        self.recipe["voice"] = {
            **{key: value for key, value in common.items() if key != "model"},
            "data": [{"path": str(data / voices.MANIFEST), "limit": ROWS}],
            "base": {"name": str(data / voices.BASE)},
            "codec": {"name": str(data / voices.BASE / voices.CODEC)},
            "lora": {"r": 2, "alpha": 4},
            "lr": 1e-2,
            "eval_items": 4,
        }
        self._stand("voice")
        about = {key: value for key, value in self.recipe["voice"].items() if key not in ("base", "lora")}
        sizes = {
            "vocab_size": 300,
            "width": 16,
            "layers": 1,
            "heads": 2,
            "kv_heads": 1,
            "ffn_width": 24,
            "ctx_len": 256,
        }
        self.recipe["voice_base"] = {**about, "model": sizes}
        self._stand("voice_base")

    def settings(self, stage: str, values: dict[str, Any]) -> StageSettings:
        """The stage's settings with some of them (`model.width`) changed.

        Raises  ConfigError
        """
        content = json.loads(json.dumps({"max_steps": 3, "seed": 3, **self.recipe[stage]}))
        for name, value in values.items():
            node = content
            *parents, last = name.split(".")
            for part in parents:
                node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
            node[last] = copy.deepcopy(value)  # the next option is set within it
        return config.build(recipes.stage(stage).settings, content, stage)

    def built(self, stage: str, settings: StageSettings, own: Path) -> Training[Any]:
        own.mkdir(parents=True, exist_ok=True)
        entry = self.entry(stage, settings)
        needed = {name: self.folder / name / "final" for name in entry.needs}
        with patch.object(Entry, "folder", own), patch.object(Entry, "needed", needed):
            return stage_run._begin(entry, self.folder, CPU)

    def entry(self, stage: str, settings: StageSettings) -> Entry:
        return Entry(stage, recipes.stage(stage), settings, self.folder)

    def source(self, name: str, **more: Any) -> dict[str, Any]:
        return {"path": str(self.folder / "world" / f"{name}.jsonl"), "limit": ROWS, **more}

    def _stand(self, stage: str) -> None:
        settings, own = self.settings(stage, {}), self.folder / stage
        built = self.built(stage, settings, own)
        stage_run.write_settings(own, settings.model_dump(mode="json"), "")
        built.objective.warm_start(next(iter(built.train.numbers(range(1)))).batch)
        with files.fresh_folder(own / "final") as part:
            built.save(part)
        with torch.no_grad():
            for parameter in built.objective.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01)
        state = checkpoint.State({"step": 1}, {}, {}, {})
        checkpoint.save(own / checkpoint.name(1), built.objective, state)  # what another stage may start from

    def trained(self, stage: str) -> list[str]:
        """Names of what trains."""
        built = self.built(stage, self.settings(stage, {}), self.folder / "asked" / stage)
        return [name for name, p in built.objective.named_parameters() if p.requires_grad]

    def observe(self, stage: str, values: dict[str, Any], own: Path) -> Iterator[tuple[str, Any]]:
        """What the stage is, does and leaves, the cheap first.

        Raises  ConfigError where the settings are refused.
        """
        settings = self.settings(stage, values)
        with patch.object(runtime, "bf16_gains", lambda *_: True):
            precision = settings.precision if settings.use_amp else "fp32"
            yield "number format of a wide network", str(runtime.choose_dtype(precision, 1 << 20, CPU.device))
        shutil.rmtree(own, ignore_errors=True)
        built = self.built(stage, settings, own)
        yield "weights at the start", store.digest(built.objective)
        yield "what trains", [(name, p.requires_grad) for name, p in built.objective.named_parameters()]
        yield (
            "samples",
            [
                len(built.train.dataset),
                built.train.order.batches_per_epoch,
                len(built.valid.dataset) if built.valid else 0,
            ],
        )
        yield "batches", [batch_digest(built.train, 3), batch_digest(built.valid, 1) if built.valid else ""]
        yield "checks", {name: fact.value for name, fact in built.checks().items()}
        yield "files", folder_digest(own, built.save)
        fitted = loop.fit(
            built.objective,
            built.train,
            built.valid,
            settings,
            built.inputs.run,
            own,
            name="x",
            saved=built.saved,
            export=built.export,
        )
        rows = [
            {key: value for key, value in row.items() if key not in CLOCK}
            for row in files.read_json(own / "training_log.json")
        ]
        yield "losses", [json.dumps(row) for row in rows]
        yield "weights at the end", store.digest(built.objective)
        yield "progress", json.dumps({**vars(fitted.progress), "settings": {}})
        names = sorted(
            path.relative_to(own).as_posix()
            for path in own.rglob("*")
            if path.is_file() and "tokens/" not in str(path)
        )
        yield (
            "golden answers",
            {path.name: files.sha256_file(path) for path in sorted((own / "golden").glob("*.jsonl"))},
        )
        yield "names of the files", [name for name in names if "events.out" not in name]
        with patch.object(codec_audit, "_elsewhere", anew), patch.object(codec_audit, "CLIPS", 2):
            measured = built.measure(fitted, StageSamples())
        facts = {**built.notes, **stage_run._sound(built, fitted, settings), **measured}
        clock = {"rtf"}
        yield "facts", {name: (fact.value, fact.n) for name, fact in facts.items() if name not in clock}
        judged = stage_run.judge(self.entry(stage, settings), built.modalities, facts, {})
        yield "verdicts", [(row.name, row.verdict, row.threshold) for row in judged]


def anew(codec: Any, clips: list[torch.Tensor], folder: Path) -> tuple[list[torch.Tensor], list[str]]:
    """What a second process would find, by this one: to start one costs more than a walk has for an option."""
    there = open_codec(folder, codec.codebooks, clips[0].device)
    codes = codec_audit.encode_by_length(there, clips, most=1)
    return codes, [codec_audit.digest_of_all({"": there.decode(each[None])[0]}) for each in codes]


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "world" / f"{name}.jsonl").read_text().splitlines()][:ROWS]


def batch_digest(loader: Any, count: int) -> str:
    """Names the tensors of the first batches."""
    digest = hashlib.sha256()
    for loaded in loader.numbers(range(min(count, loader.order.batches_per_epoch))):
        told(loaded.batch, digest)
    return digest.hexdigest()


def told(value: Any, digest: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    elif hasattr(value, "__dict__"):
        for name in sorted(vars(value)):
            digest.update(name.encode())
            told(vars(value)[name], digest)
    else:
        digest.update(repr(value).encode())


def folder_digest(own: Path, save: Callable[[Path], None]) -> dict[str, str]:
    """What a stage would hand on."""
    with files.fresh_folder(own / "trial") as part:
        save(part)
    found = {
        path.relative_to(own).as_posix(): files.sha256_file(path)
        for path in sorted((own / "trial").rglob("*"))
        if path.is_file()
    }
    shutil.rmtree(own / "trial")
    return found
