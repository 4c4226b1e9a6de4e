"""Renamed keys of settings: old names are read everywhere, said once, and leave digests of finished runs as
they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from muomni import config, files, renamed
from muomni.data import readers
from muomni.data.source import Source
from muomni.errors import CheckpointError, ConfigError
from muomni.execution import recipe as recipes
from muomni.execution import runner
from muomni.models import store
from muomni.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from muomni.models.codec import Codec, CodecConfig
from muomni.models.omni import Projectors, ProjectorsConfig
from muomni.models.talker import Talker, TalkerConfig
from muomni.models.text_tower import TextTower, TextTowerConfig
from muomni.models.vision_encoder import VisionEncoder, VisionEncoderConfig
from muomni.stages import registry
from muomni.train import checkpoint
from muomni.train.checkpoint import Identity

DOCS = Path(__file__).parent.parent / "docs"
OLD: dict[str, dict[str, Any]] = {
    "vision": {
        "data": [{"path": "a.jsonl"}],
        "probe": [{"path": "probe.jsonl"}],
        "zero_shot": ["flower"],
        "word_weight": 0.5,
        "negatives": 2,
        "augment": {"flip": ["flower"], "spared": ["caption"], "jitter": True},
        "model": {"patch": 8, "hidden": 64},
        "text": {"kind": "transformer", "hidden": 32},
        "demands": {"retrieval_r1": ">= 0.5"},
    },
    "thinker": {
        "data": [{"path": "a.jsonl", "told": True}],
        "model": {
            "vocab_size": 300,
            "hidden": 64,
            "theta": 100.0,
            "experts": {
                "number": 3,
                "per_token": 1,
                "normalise": False,
                "dense": [0],
                "balance": 0.5,
                "hidden": 16,
                "every": 2,
            },
        },
        "epoch": "1h",
        "max_epochs": 2,
    },
    "hearing": {
        "data": [{"path": "a.jsonl"}],
        "augment": {
            "formants": [0.9, 1.1],
            "narrow_hz": 4000,
            "time_masks": 1,
            "time_frames": 5,
            "bin_masks": 2,
            "bins": 4,
        },
    },
    "codec": {"data": [{"path": "a.jsonl"}], "model": {"entries": 8, "latent": 4, "kernel": 3, "decay": 0.9}},
    "talker": {"data": [{"path": "a.jsonl"}], "model": {"text_vocab": 1, "hidden": 64, "theta": 100.0}},
    "align": {
        "data": [{"path": "a.jsonl", "names": "{label}"}],
        "eyes": "vision",
        "levels": [0, 2],
        "edges": [0, 5],
        "golden": 3,
        "max_new": 7,
        "apart": True,
        "proof": ["flower"],
        "exact": ["flower"],
        "regression": [{"path": "t.txt"}],
        "num_image_tokens": 16,
        "resampler_width": 64,
        "resampler_heads": 4,
        "mlp_ratio": 2.0,
        "vision_ln": False,
    },
    "sweep": {
        "resampler_depth": 1,
        "grid": {"levels": [[], [0, 2]], "vision_ln": ["trained"], "lr": [1e-3, 2e-3]},
    },
    "omni": {"data": [{"path": "a.jsonl"}], "grid": 2, "levels": [0, 2], "audio_pool": 2},
    "instruct": {"data": [{"path": "a.jsonl"}], "connector": "align"},
}
# The beginning of recipes.digest(settings, {}, "") of these stages, and of the fingerprint below, as a3f18fe
# took them, before any rename (all but hearing's as 0f7ae50 did, whose digests are a3f18fe's too).
DIGESTS = {
    "vision": "faedd8be9cbac75c",
    "thinker": "0ac4e3763f86aa1a",
    "hearing": "366e4182a086e9a1",
    "codec": "1f7f878162604154",
    "talker": "96c4671474315e07",
    "align": "cc47edeefd9ed58b",
    "sweep/feature_layers--_connector.vision_ln-trained_lr-0.001": "18d9fe04417ebe80",
    "sweep/feature_layers--_connector.vision_ln-trained_lr-0.002": "80e279bd4ff6c586",
    "sweep/feature_layers--0-2-_connector.vision_ln-trained_lr-0.001": "7ac94ad1c0def11d",
    "sweep/feature_layers--0-2-_connector.vision_ln-trained_lr-0.002": "767f1c29971b595e",
    "sweep": "61d3d9830ff5d599",
    "omni": "a359cbda3442ee53",
    "instruct": "22ac153e59589470",
}
FINGERPRINT = "b4a1dfca57461606"


def classes() -> dict[str, type]:
    """Every settings class that a recipe or a network's config.json has, by name."""
    found: dict[str, type] = {}

    def walk(model: type) -> None:
        for each in model.__mro__:
            found.setdefault(each.__name__, each)
        for each in list(getattr(model, "model_fields", {}).values()):
            for inside in config._models_in(each.annotation):
                if inside.__name__ not in found:
                    walk(inside)

    for name in registry.OURS:
        walk(recipes.stage(name).settings)
    walk(ProjectorsConfig)
    return found


def is_field(model: Any, path: str) -> bool:
    *parents, last = path.split(".")
    for part in parents:
        (model,) = config._models_at(model, part)
    return last in model.model_fields


def write(folder: Path, content: Any, name: str = "mine.yaml") -> str:
    (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
    return str(folder / name)


def is_old(value: Any, model: type[Any]) -> bool:
    return bool(config.current(value, model) != json.loads(json.dumps(value)))


def test_the_page_is_the_table() -> None:
    assert (DOCS / "renamed.md").read_text() == renamed.page(), "python -m muomni.renamed > docs/renamed.md"


def test_every_new_name_is_a_field_and_no_old_one_is() -> None:
    known = classes()
    assert renamed.KEYS.keys() == renamed.PLACES.keys()
    for name, keys in renamed.KEYS.items():
        fields = known[name].model_fields  # type: ignore[attr-defined]
        assert all(is_field(known[name], new) for new in keys.values()), name
        assert not keys.keys() & fields.keys(), name


def test_a_recipe_of_old_names_is_the_same_recipe(tmp_path: Path) -> None:
    old = recipes.read(write(tmp_path, OLD), out=tmp_path / "run")
    values = {name: config.current(values, recipes.stage(name).settings) for name, values in OLD.items()}
    new = recipes.read(write(tmp_path, values, "new.yaml"), out=tmp_path / "run")
    assert old.stages == new.stages
    assert not any(is_old(new.values[name], recipes.stage(name).settings) for name in OLD), (
        "and is stored by its new names"
    )
    assert old.values == new.values
    align, point = (
        old.stages["align"].settings.model_dump(),
        old.stages["sweep/feature_layers--0-2-_connector.vision_ln-trained_lr-0.001"].settings.model_dump(),
    )
    assert (align["separate_questions"], align["watched_items"], align["data"][0]["class_name"]) == (
        True,
        3,
        "{label}",
    )
    connector = {"tokens": 16, "width": 64, "heads": 4, "depth": 2, "mlp_ratio": 2.0, "vision_ln": "off"}
    assert align["connector"] == connector
    assert point["feature_layers"] == (0, 2)
    assert point["connector"] == {**connector, "depth": 1, "vision_ln": "trained"}, (
        "align's, the sweep's, and the grid's"
    )
    assert old.stages["omni"].settings.model_dump()["projectors"] == {
        "pool_grid": 2,
        "perceiver": None,
        "feature_layers": (0, 2),
        "audio_pool": 2,
    }


def test_digests_are_those_of_before_the_rename(tmp_path: Path) -> None:
    read = recipes.read(write(tmp_path, OLD), out=tmp_path / "run")
    found = {}
    for name, entry in read.stages.items():
        stored = entry.settings.model_dump(mode="json")
        for group in stored["param_groups"]:
            del group["from_step"]  # which came later
        for reference in (stored.get("llm"), stored.get("vision_tower")):
            if reference is not None:
                del reference["subfolder"]  # and this
        found[name] = recipes.digest(entry.settings, {}, "", stored)[:16]
    assert found == DIGESTS
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    sources = [
        Source(path="a.jsonl", captions_as_text=True),
        Source(path="a.jsonl", class_name="{a}"),
        Source(path="a.jsonl"),
    ]
    assert readers.fingerprint(sources, tmp_path)[:16] == FINGERPRINT


def test_an_override_by_an_old_name_meets_the_new_one(tmp_path: Path) -> None:
    values = {
        "thinker": {"data": [{"path": "a.jsonl"}], "model": {"vocab_size": 300}},
        "vision": {"data": [{"path": "a.jsonl"}], "num_negatives": 1},
        "align": {"data": [{"path": "a.jsonl"}], "connector": {"width": 32, "heads": 2}},
        "sweep": {"grid": {"lr": [1e-3]}},
    }
    by_old = [
        "thinker.model.experts.number=5",
        "thinker.data.0.told=true",
        "vision.negatives=4",
        "vision.augment.flip=[x]",
    ]
    by_old += ["align.resampler_width=64", "sweep.grid.vision_ln=[trained]"]
    read = recipes.read(write(tmp_path, values), by_old, out=tmp_path / "run")
    thinker, vision = (read.stages[name].settings.model_dump() for name in ("thinker", "vision"))
    assert thinker["model"]["experts"]["num_experts"] == 5
    assert thinker["data"][0]["captions_as_text"]
    assert (vision["num_negatives"], vision["augment"]["flip_tasks"]) == (4, ["x"])
    point: Any = read.stages["sweep/lr-0.001_connector.vision_ln-trained"].settings
    assert (point.connector.width, point.connector.heads, point.connector.vision_ln) == (64, 2, "trained")
    assert read.overrides == [
        "thinker.model.experts.num_experts=5",
        "thinker.data.0.captions_as_text=true",
        "vision.num_negatives=4",
        "vision.augment.flip_tasks=[x]",
        "align.connector.width=64",
        "sweep.grid.connector.vision_ln=[trained]",
    ]


def test_a_new_name_is_said_once_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(config, "_SAID", set())
    path = write(tmp_path, OLD)
    recipes.read(path, ["align.apart=false"])
    recipes.read(path)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "apart" in line] == [
        "'align.apart=false': apart is now separate_questions (docs/renamed.md)"
    ]
    assert [line for line in lines if "told" in line] == [
        f"{path}: thinker: told is now captions_as_text (docs/renamed.md)"
    ]
    every = {old for keys in renamed.KEYS.values() for old in keys} - {
        "book_weights",
        "pool_grid",
        "summaries",
        "feature_layers",
        "resampler",
    }  # which it doesn't have
    said = [line.split(": ")[-1].split(" (docs")[0] for line in lines]
    assert len(said) == len(set(said))
    assert {line.split(" is now ")[0] for line in said} == every


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"apart": True, "separate_questions": False},
            "apart: given twice \\(it means the same as separate_questions\\)",
        ),
        ({"data": [{"path": "a", "told": True, "captions_as_text": True}]}, "told: given twice"),
        ({"separate_question": True}, "did you mean separate_questions"),
        ({"apartt": True}, "apartt: extra inputs"),
        ({"zero_shot": []}, "zero_shot: extra inputs"),  # of another stage
        (
            {"pool_grid": 2, "projectors": {"pool_grid": 3}},
            "pool_grid: given twice \\(it means the same as projectors.pool_grid\\)",
        ),
        ({"projectors": {"pool_grid": 3}, "grid": 2}, "grid: given twice"),
        ({"grid": 2, "pool_grid": 3}, "pool_grid: given twice"),
        ({"projectors": 3, "pool_grid": 2}, "projectors"),
        (
            {"projectors": {"poolgrid": 3}, "audio_pool": 2},
            "projectors.poolgrid: extra inputs .* did you mean pool_grid",
        ),
    ],
)
def test_doubled_and_unknown_keys_are_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipes.read(write(tmp_path, {"omni": {"data": [{"path": "a"}], **values}}), is_part=True)


def test_a_flat_config_may_use_an_old_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n")
    path = tmp_path / "flat.json"
    path.write_text(
        json.dumps(
            {"d_model": 16, "n_heads": 2, "ctx_len": 16, "train_text": "a.txt", "demands": {"steps": ">= 1"}}
        )
    )
    assert recipes.read(str(path), out=tmp_path / "run").stages["thinker"].settings.extra_gates == {
        "steps": ">= 1"
    }


SMALL = {"width": 8, "layers": 1, "heads": 1, "ffn_width": 16}
NETWORKS = [
    Projectors(
        ProjectorsConfig(
            width=8, vision_width=4, audio_width=None, pool_grid=1, num_cls_tokens=0, feature_layers=(0, 1)
        )
    ),
    AudioEncoder(AudioEncoderConfig(**SMALL, channels=2)),
    VisionEncoder(VisionEncoderConfig(**SMALL, image_size=16, patch_size=8, embed_dim=4)),
    TextTower(TextTowerConfig(**SMALL, vocab_size=20, embed_dim=4)),
    Codec(
        CodecConfig(
            codebook_size=4, width=8, latent_width=4, kernel_size=3, blocks=1, fine_width=4, fine_blocks=1
        )
    ),
    Talker(TalkerConfig(**SMALL, text_vocab=20, codebook_size=4)),
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.model_type)
def test_a_network_of_old_names_opens(tmp_path: Path, network: Any) -> None:
    store.save(network, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    old = config.first_names(content, type(network.config))
    assert old != content
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert store.load(tmp_path).config == network.config


def test_a_point_of_a_sweep_that_has_an_old_name_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "run" / "sweep" / "levels--0-2-_vision_ln-trained_lr-0.001").mkdir(parents=True)
    stages = recipes.read(write(tmp_path, OLD), out=tmp_path / "run").stages
    assert {
        "sweep/levels--0-2-_vision_ln-trained_lr-0.001",
        "sweep/feature_layers--0-2-_connector.vision_ln-trained_lr-0.002",
    } <= stages.keys()


def test_a_checkpoint_of_old_names_goes_on_and_says_what_differs_by_new_ones(tmp_path: Path) -> None:
    align = recipes.read(write(tmp_path, OLD)).stages["align"].settings
    before = config.first_names(align.model_dump(mode="json"), type(align))
    (tmp_path / "manifest.json").write_text("{}")  # of a version that kept no digest

    def go_on(**changes: Any) -> None:
        settings = align.model_copy(update=changes)
        identity = Identity("now", recipes.result_settings(settings), type(settings))
        checkpoint._demand_identity(tmp_path, {"settings": before}, identity)

    go_on()
    with pytest.raises(CheckpointError, match=r"other settings: separate_questions: True -> False"):
        go_on(separate_questions=False)


def test_a_run_of_old_names_is_reused_and_measured_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"the ball number {n} is red\n" for n in range(40)))
    thinker = {
        "data": [{"path": "a.txt"}],
        "model": {"vocab_size": 300, "width": 16, "layers": 1, "heads": 2, "ffn_width": 32, "ctx_len": 32},
        "max_steps": 2,
        "batch_size": 2,
        "gates": {"overfits": 9.0, "floor": 9.0, "held_out_gap": 9.0},
    }
    content = {"threads": 1, "device": "cpu", "thinker": {**thinker, "demands": {"nats_per_token": "<= 99"}}}
    path, run = write(tmp_path, content), tmp_path / "run"
    runner.run(path, out=run)
    stored, weights = run / "thinker" / "config.yaml", run / "thinker" / "final" / "model.safetensors"
    settings = yaml.safe_load(stored.read_text())
    old = config.first_names(settings, recipes.stage("thinker").settings)
    assert {"demands", "epoch"} <= old.keys()
    stored.write_text(yaml.safe_dump(old))
    when = weights.stat().st_mtime_ns
    runner.run(path, out=run)
    assert weights.stat().st_mtime_ns == when, "reused"
    ((again),) = runner.gate(run)
    assert again["verdict"] == "green"


def test_a_run_from_before_an_option_is_reused_until_the_option_is_used(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"the ball number {n} is red\n" for n in range(40)))
    content: dict[str, Any] = {
        "threads": 1,
        "device": "cpu",
        "thinker": {
            "data": [{"path": "a.txt"}],
            "model": {"vocab_size": 300, "width": 16, "layers": 1, "heads": 2, "hidden": 32, "ctx_len": 32},
            "max_steps": 2,
            "batch_size": 2,
            "gates": {"overfits": 9.0, "floor": 9.0, "held_out_gap": 9.0},
        },
    }
    path, own = write(tmp_path, content), tmp_path / "run" / "thinker"
    runner.run(path, out=tmp_path / "run")
    # A version that knew neither of these options would have left these files.
    settings = yaml.safe_load((own / "config.yaml").read_text())
    del settings["mix_temperature"], settings["model"]["qk_norm"], settings["data"][0]["expand"]
    (own / "config.yaml").write_text(yaml.safe_dump(settings))
    result = {
        key: value
        for key, value in settings.items()
        if key not in recipes.HARMLESS | {"epoch_duration", "samples_per_epoch"}
    }
    result["data"] = [{key: value for key, value in result["data"][0].items() if key not in ("path", "root")}]
    thinker = recipes.stage("thinker").settings
    sources = readers.fingerprint([Source(path=str(tmp_path / "a.txt"))], tmp_path)
    digest = files.sha256_json([config.first_names(result, thinker), {}, sources])
    before = json.loads((own / "digest.json").read_text())
    assert digest != before
    for changed in [own / "digest.json", own / "certificate.json", *own.glob("step_*/manifest.json")]:
        changed.write_text(changed.read_text().replace(before, digest))
    weights = own / "final" / "model.safetensors"
    when = weights.stat().st_mtime_ns
    for _ in range(2):
        runner.run(path, out=tmp_path / "run")
        assert weights.stat().st_mtime_ns == when, "reused"
    content["thinker"]["model"]["qk_norm"] = False
    with pytest.raises(ConfigError, match=r"made with other settings: model\.qk_norm: None -> False"):
        runner.run(write(tmp_path, content), out=tmp_path / "run")
